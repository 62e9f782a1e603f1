"""Differentiable operations of a CNN: each returns its value and its pullbacks, computed by the pillar of its arrays.

N images, C channels, O filters, H rows, W columns, D inputs, U units, K classes, T > 0 the temperature.
"""

from minicnn import backend
from minicnn.autograd import op


def _kernels(array):
    return backend.of(array).kernels


def check_temperature(T):
    """Raises ValueError unless T > 0, which the paper's Definition 2 leaves unsaid."""
    if not T > 0:
        raise ValueError(f"the temperature T must be positive, got {T}")


def _check_shape(name, array, shape):
    """Compare with a shape in which a string stands for any size. Raises ValueError with both shapes."""
    if len(array.shape) != len(shape) or any(
        isinstance(want, int) and want != have for have, want in zip(array.shape, shape, strict=False)
    ):
        raise ValueError(f"{name} must have shape ({', '.join(map(str, shape))}), got {array.shape}")


def _check_target(z, target):
    _check_shape("logits", z, ("N", "K"))
    if target.ndim == 2:
        _check_shape("soft labels", target, z.shape)
        if target.dtype != z.dtype:
            raise ValueError(f"soft labels must have the logits' dtype {z.dtype}, got {target.dtype}")
    else:
        _check_shape("class labels", target, z.shape[:1])
        if target.dtype.kind not in "iu":
            raise ValueError(f"class labels must be integers, got {target.dtype}")


@op
def _rectified(y):
    """ReLU that the operation before has already applied to its value: only the pullback is left to do."""
    return y, (lambda g: _kernels(y).relu_grad(g, y),)


@op
def _conv2d(x, w, b, padding, relu):
    k = _kernels(x)
    return k.conv2d(x, w, b, padding, relu), (
        lambda g: k.conv2d_input_grad(g, w, x.shape, padding),
        lambda g: k.conv2d_weight_grad(x, g, w.shape, padding),
        lambda g: k.bias_grad(g),
    )


def conv2d(x, w, b, padding="valid", relu=False):
    """Cross-correlation, stride 1: y[n, o, r, c] = b[o] + sum_{k,i,j} w[o, k, i, j] x[n, k, r + i, c + j].

    x (N, C, H, W), w (O, C, kh, kw), b (O,) -> (N, O, H', W'). padding "valid": H' = H - kh + 1; "same": H' = H, for an
    even kernel the extra zeros lie at the bottom and right. relu=True gives max(y, 0). Raises ValueError for other
    shapes, an unknown padding, or a kernel larger than the image.
    """
    _check_shape("images", x, ("N", "C", "H", "W"))
    _check_shape("filters", w, ("O", x.shape[1], "kh", "kw"))
    _check_shape("bias", b, w.shape[:1])
    y = _conv2d(x, w, b, padding, relu)
    return _rectified(y) if relu else y


@op
def _dense(x, w, b, relu):
    k = _kernels(x)
    return k.dense(x, w, b, relu), (
        lambda g: k.dense_input_grad(g, w),
        lambda g: k.dense_weight_grad(x, g),
        lambda g: k.bias_grad(g),
    )


def dense(x, w, b, relu=False):
    """Affine map x w + b. x (N, D), w (D, U), b (U,) -> (N, U). relu=True gives max(y, 0).

    Raises ValueError for other shapes.
    """
    _check_shape("inputs", x, ("N", "D"))
    _check_shape("weights", w, (x.shape[1], "U"))
    _check_shape("bias", b, w.shape[1:])
    y = _dense(x, w, b, relu)
    return _rectified(y) if relu else y


@op
def relu(x):
    """max(x, 0), any shape; the gradient at 0 is 0."""
    k = _kernels(x)
    y = k.relu(x)
    return y, (lambda g: k.relu_grad(g, y),)


@op
def max_pool2d(x, size=2, ties="first"):
    """Maximum over size x size windows with stride size; remaining rows and columns are dropped.

    x (N, C, H, W) -> (N, C, H // size, W // size). The gradient goes to the first maximum in raster order
    (ties="first") or to every element equal to it (ties="all", as Theano does, on which the paper ran).
    Raises ValueError for a size outside 1..16 or larger than the image, and for another tie rule.
    """
    _check_shape("images", x, ("N", "C", "H", "W"))
    if ties not in ("first", "all"):
        raise ValueError(f"ties must be 'first' or 'all', got {ties!r}")
    k = _kernels(x)
    y, winner = k.max_pool2d(x, size)
    return y, (lambda g: k.max_pool2d_grad(g, x, y, winner, size, ties),)


@op
def dropout(x, rate, seed, layer, step):
    """Inverted dropout: each element is 0 with probability `rate`, else multiplied by 1 / (1 - rate).

    x any shape, rate in [0, 1). The mask is that of Philox4x32-10 for (seed, layer, step), the same bits on every
    backend; step is an int or a uint32 array of one that lives on the device. Raises ValueError for another rate.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the dropout rate must be at least 0 and below 1, got {rate}")
    k = _kernels(x)
    return k.dropout(x, rate, seed, layer, step), (lambda g: k.dropout(g, rate, seed, layer, step),)


@op
def softmax(z, T=1.0):
    """Equation (2): exp(z_i / T) / sum_j exp(z_j / T). z (N, K) -> (N, K). Raises ValueError unless T > 0."""
    check_temperature(T)
    _check_shape("logits", z, ("N", "K"))
    k = _kernels(z)
    p = k.softmax(z, T)
    return p, (lambda g: k.softmax_grad(g, p, T),)


@op
def log_softmax(z, T=1.0):
    """Logarithm of equation (2), which does not underflow. z (N, K) -> (N, K). Raises ValueError unless T > 0."""
    check_temperature(T)
    _check_shape("logits", z, ("N", "K"))
    k = _kernels(z)
    log_p = k.log_softmax(z, T)
    return log_p, (lambda g: k.log_softmax_grad(g, log_p, T),)


@op
def cross_entropy(z, target, T=1.0):
    """The loss of every sample, -sum_k target_k log softmax(z / T)_k, through log-softmax; take .mean() for the batch.

    z (N, K); target integers (N,) in 0..K-1, or soft labels (N, K) of z's dtype, as a raw array: labels are constants
    -> (N,). Raises ValueError unless T > 0, for other shapes, and (on the CPU) for labels out of range.
    """
    check_temperature(T)
    _check_target(z, target)
    k = _kernels(z)
    return k.cross_entropy(z, target, T), (lambda g: k.cross_entropy_grad(g, z, target, T),)
