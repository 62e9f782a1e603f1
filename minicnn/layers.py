"""Layers own parameters and call operations: convolution, pooling, dropout, dense, softmax with temperature.

A layer is called as layer(x, masks): a Tensor, and None or, in training, the DropoutMasks of this forward pass. Every
Tensor attribute of a layer is a parameter, so that a layer of your own needs no more than

>>> class Scale(Layer):
...     def __init__(self):
...         self.factor = Tensor([2.0], requires_grad=True)
...
...     def __call__(self, x, masks=None):
...         return x * self.factor
>>> Sequential(scale=Scale(), flatten=Flatten())
Sequential(
  scale: Scale(), factor (1,)
  flatten: Flatten()
)
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, TypeVar

import numpy as np

from minicnn import backend as backends
from minicnn import ops
from minicnn.autograd import Tensor
from minicnn.ops import as_flag, as_number, check_count
from minicnn.threads import chunks

Self = TypeVar("Self", bound="Layer")
Rng = Any  # a seed, a numpy.random.Generator, or None for one that is drawn from the system


class DropoutMasks:
    """The dropout masks of one forward pass, drawn for (seed, step): the dropout layers take a stream each, in the
    order in which they are called. seed: an int below 2^64; step: an int or an array of one (ops.dropout)."""

    def __init__(self, seed: int, step: Any = 0) -> None:
        self.seed, self.step, self._streams = seed, step, itertools.count()

    def drop(self, x: Tensor, rate: float) -> Tensor:
        """x under the next mask: each element 0 with probability `rate`, else multiplied by 1 / (1 - rate)."""
        return ops.dropout(x, rate=rate, seed=self.seed, layer=next(self._streams), step=self.step)


class Layer:
    """A function of a Tensor; its parameters are its Tensors and those of its sub-layers, found by attribute. Raises
    ValueError for an attribute of the name of one of the methods here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(Layer):
            raise ValueError(f"{name!r} is a name of Layer's own: give the attribute of {type(self).__name__} another")
        super().__setattr__(name, value)

    def __call__(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        raise NotImplementedError

    def _attributes(self) -> dict[str, Any]:
        kind: Any = type(self)
        if not (slots := _slots(kind)):
            return dict(vars(self))
        return {name: getattr(self, name) for name in slots if hasattr(self, name)} | vars(self)

    def parameters(self) -> dict[str, Tensor]:
        """Name -> Tensor, in the order of the attributes, __slots__ first; "LAYER_NAME" for those of a sub-layer,
        "LIST_0", "DICT_KEY" for those in a list, tuple, deque or mapping. A Tensor under two names has the first. One
        that does not require a gradient is saved, loaded and moved, not trained. Raises ValueError where two have the
        same name, for one that was computed from others, which no training would reach, for one that belongs to the
        class, and for one in a set or the key of a mapping, which has no name.
        """
        found: dict[str, Tensor] = {}
        names: dict[Tensor, str] = {}
        for name, tensor in _named_tensors(self, "", []):
            if name in found and found[name] is not tensor:
                raise ValueError(f"two parameters are both named {name!r}: rename a layer or an attribute")
            if tensor.edges:
                raise ValueError(f"{name} was computed from other Tensors: use Tensor(..., requires_grad=True)")
            if names.setdefault(tensor, name) == name:
                found[name] = tensor
        return found

    @property
    def backend(self) -> backends.Backend:
        """Where the parameters are; "cpu" for a layer that has none. Raises ValueError where they are in two places."""
        return _backend_of(self.parameters())

    @property
    def device(self) -> str:
        """The name of the backend where the parameters are."""
        return self.backend.name

    @property
    def dtype(self) -> np.dtype:
        """That of the parameters; float32 for a layer that has none. Raises ValueError where they have two."""
        return _dtype_of(self.parameters())

    def to(self: Self, device: str) -> Self:
        """Move the parameters to the device "cpu" or "cuda", in place; returns self. Raises DeviceError."""
        target = backends.get(device)
        for parameter in self.parameters().values():
            moved = target.asarray(parameter.data)
            if moved is not parameter.data:
                parameter.version += 1
                parameter.data = moved
            parameter.grad = None
        return self

    @reprlib.recursive_repr("...")
    def __repr__(self) -> str:
        settings, inner, shapes = [], [], []
        for name, value in self._attributes().items():
            if isinstance(value, Tensor):
                shapes.append(f", {name} {value.shape}")
            elif isinstance(value, Layer) or any(_named_tensors(value, name, [self])):
                inner.append(f"\n  {name}: " + repr(value).replace("\n", "\n  "))
            else:
                settings.append(f"{name}={value!r}")
        body = ", ".join(settings) + "".join(inner) + ("\n" if inner else "")
        return f"{type(self).__name__}({body})" + "".join(shapes)


def _backend_of(parameters: Mapping[str, Tensor]) -> backends.Backend:
    found = {place.name: place for place in (backends.of(p.data) for p in parameters.values())}
    if len(found) > 1:
        raise ValueError(f"parameters lie on {' and '.join(sorted(found))}: move the network with .to(device)")
    return next(iter(found.values()), backends.get("cpu"))


def _dtype_of(parameters: Mapping[str, Tensor]) -> np.dtype:
    found = {p.dtype for p in parameters.values()}
    if len(found) > 1:
        raise ValueError(f"parameters are {' and '.join(sorted(d.name for d in found))}: give all the same dtype")
    return next(iter(found), np.dtype(np.float32))


def backend_and_dtype(network: Any) -> tuple[backends.Backend, np.dtype]:
    """Both of a network, where the parameters are looked for once, unless it says one of them otherwise."""
    kind: Any = type(network)
    if getattr(kind, "backend", None) is not Layer.backend or getattr(kind, "dtype", None) is not Layer.dtype:
        return network.backend, network.dtype
    parameters = network.parameters()
    return _backend_of(parameters), _dtype_of(parameters)


@functools.cache
def _slots(kind: type) -> list[str]:
    """What __slots__ of a class and those that it comes from name."""
    members = [item for base in reversed(kind.__mro__) for item in vars(base).items()]
    return [name for name, member in members if isinstance(member, types.MemberDescriptorType)]


# Most attributes, and told from the others in no time.
PLAIN = frozenset((types.FunctionType, str, bool, int, float, type(None)))
COLLECTIONS = (list, tuple, collections.deque, collections.UserList, Mapping, Set)


def _named_tensors(value: Any, name: str, within: list[Layer]) -> Iterator[tuple[str, Tensor]]:
    """Every Tensor in an attribute and its name: itself, a layer's, or those of a list or mapping of them."""
    if type(value) in PLAIN:
        return
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Layer):
        if any(value is layer for layer in within):  # a layer may know the one that it is part of
            return
        attributes = value._attributes()
        for kind in type(value).__mro__:
            if kind in Layer.__mro__:
                continue
            for key, shared in vars(kind).items():
                if type(shared) not in PLAIN and key not in attributes and any(_named_tensors(shared, key, [])):
                    raise ValueError(f"{kind.__name__}.{key} is shared by all layers of the class: make it in __init__")
        for key, attribute in attributes.items():
            if type(attribute) not in PLAIN:
                yield from _named_tensors(attribute, f"{name}_{key}" if name else key, [*within, value])
    elif isinstance(value, COLLECTIONS):
        nameless: Any = value if isinstance(value, (Mapping, Set)) else ()
        if any(True for item in nameless for _ in _named_tensors(item, name, within)):
            raise ValueError(f"{name} has a Tensor in a set or as a key, where it has no name: use a list or a dict")
        items: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _named_tensors(item, f"{name}_{key}", within)


def glorot_uniform(rng: Rng, shape: tuple[int, ...], fan_in: int, fan_out: int, dtype: Any = np.float32) -> Tensor:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010), as Lasagne initialises weights."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    return Tensor(np.random.default_rng(rng).uniform(-bound, bound, shape).astype(dtype), requires_grad=True)


class Conv2D(Layer):
    """`filters` filters of size x size over `channels` channels, stride 1; W (filters, channels, size, size), b. Raises
    ValueError for a number of them that is no integer above 0."""

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int,
        padding: str = "valid",
        relu: bool = True,
        rng: Rng = None,
        dtype: Any = np.float32,
    ) -> None:
        channels, filters = check_count("channels", channels), check_count("filters", filters)
        size = check_count("the size of a filter", size)
        area = size * size
        self.W = glorot_uniform(rng, (filters, channels, size, size), channels * area, filters * area, dtype)
        self.b = Tensor(np.zeros(filters, dtype), requires_grad=True)
        self.padding, self.relu = padding, as_flag("relu", relu)

    def __call__(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        return ops.conv2d(x, self.W, self.b, padding=self.padding, relu=self.relu)


class Dense(Layer):
    """Fully connected: x W + b, W (inputs, units). Raises ValueError for a number of them that is no integer above
    0."""

    def __init__(self, inputs: int, units: int, relu: bool = False, rng: Rng = None, dtype: Any = np.float32) -> None:
        inputs, units = check_count("inputs", inputs), check_count("units", units)
        self.W = glorot_uniform(rng, (inputs, units), inputs, units, dtype)
        self.b = Tensor(np.zeros(units, dtype), requires_grad=True)
        self.relu = as_flag("relu", relu)

    def __call__(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        return ops.dense(x, self.W, self.b, relu=self.relu)


class MaxPool2D(Layer):
    """Maximum over size x size windows; ties "first" or "all" says where the gradient of equal maxima goes."""

    def __init__(self, size: int = 2, ties: str = "first") -> None:
        self.size, self.ties = check_count("pool size", size), ties

    def __call__(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        return ops.max_pool2d(x, size=self.size, ties=self.ties)


class Dropout(Layer):
    """Inverted dropout at `rate`; the identity outside training, where there are no masks."""

    def __init__(self, rate: float = 0.5) -> None:
        self.rate = as_number("the dropout rate", rate)

    def __call__(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        return x if masks is None else masks.drop(x, self.rate)


class Flatten(Layer):
    """(N, C, H, W) -> (N, C H W), in logical order."""

    def __call__(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        return ops.flatten(x)


class TemperatureSoftmax(Layer):
    """Equation (2) of the paper: softmax(z / T), T > 0. Logits (N, K) -> probabilities (N, K)."""

    def __init__(self, T: float) -> None:
        self.T = ops.check_temperature(T)

    def __call__(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        return ops.softmax(x, T=self.T)


class Sequential(Layer):
    """Named layers one after the other: Sequential(conv1=Conv2D(...), pool1=MaxPool2D(), ...). A Conv2D and the
    MaxPool2D after it, unless they are subclasses, are not called but done together, by ops.conv2d_max_pool2d."""

    def __init__(self, /, **layers: Layer) -> None:
        self.layers = layers

    def _attributes(self) -> dict[str, Any]:
        own = {name: value for name, value in super()._attributes().items() if name != "layers"}  # of a subclass
        if twice := sorted(set(own) & set(self.layers)):
            raise ValueError(f"{twice[0]!r} is the name of a layer and of an attribute: rename one of them")
        return self.layers | own

    def __call__(self, x: Tensor, masks: DropoutMasks | None = None) -> Tensor:
        waiting = collections.deque(self.layers.items())
        while waiting:
            name, layer = waiting.popleft()
            after, pool = waiting[0] if waiting else ("", None)
            try:
                if type(layer) is Conv2D and type(pool) is MaxPool2D:
                    waiting.popleft()
                    name = f"{name}, {after}"
                    filters = layer.W, layer.b, layer.padding, layer.relu
                    x = ops.conv2d_max_pool2d(x, *filters, size=pool.size, ties=pool.ties)
                else:
                    x = layer(x, masks)
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
                raise ValueError(f"{name}: {error}") from error
        return x


def over_images(
    network: Layer, device: backends.Backend, job: Callable[[slice], Any], count: int, chunk: int
) -> list[Any]:
    """[job(slice of images)] over `count` images, `chunk` of them at a time; one job where there are none. device: the
    network's backend, which the caller has looked up already.

    The threads of the CPU share them where all layers are those of this module, which keep nothing between calls: a
    layer of one's own may, and is never called twice at the same time.
    """
    if _keeps_nothing(network):
        return device.functions.in_parallel(job, device.functions.shares(count, chunk))
    return [job(part) for part in chunks(count, chunk)]


def _keeps_nothing(layer: Layer) -> bool:
    inner = layer.layers.values() if isinstance(layer, Sequential) else ()
    return type(layer).__module__ == __name__ and all(map(_keeps_nothing, inner))
