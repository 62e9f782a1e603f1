"""The part of the benchmark that runs on a GPU: minicnn with and without a captured graph, and PyTorch eager and with a
captured CUDA graph, each with TF32 off and on (minicnn's kernels compute in float32 throughout)."""

import functools
import statistics
import time

import numpy as np

from experiments import common
from experiments.timing import BATCH, LEARNING_RATE, measure, training_step
from minicnn import attacks, backend, networks, training
from minicnn.autograd import Tensor, no_grad
from minicnn.saliency import saliency_maps


def our_functions(device, images, labels, graph):
    """Name of a measurement -> a function of no arguments. Maps come to the host, as saliency_maps returns them."""
    network = networks.paper_cnn().to(device.name)
    batch = device.asarray(images[:BATCH])

    def forward():
        with no_grad():
            return network(Tensor(batch)).data

    step = training_step(networks.paper_cnn().to(device.name), device.asarray(images), device.asarray(labels))
    functions = {
        "train_step": device.kernels.capture(step) if graph else step,
        "forward": device.kernels.capture(forward) if graph else forward,
    }
    if not graph:
        for count in (BATCH, len(images)):
            functions[f"saliency_{count}"] = functools.partial(
                saliency_maps, network, images[:count], labels[:count], chunk=1000
            )
    return functions


def captured(torch, function):
    """A function that replays `function`, captured as a CUDA graph after three calls on a side stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def torch_functions(torch, images, labels, graph):
    """The same in PyTorch. A captured step reads one fixed batch; maps come to the host, 1,000 at a time."""
    from experiments import torch_reference

    images, labels = torch.from_numpy(images).cuda(), torch.from_numpy(labels).long().cuda()
    trained = torch_reference.paper_cnn(networks.paper_cnn(), "cuda").train()
    model = torch_reference.paper_cnn(networks.paper_cnn(), "cuda").eval().requires_grad_(False)
    optimiser = torch_reference.optimiser(trained, LEARNING_RATE)
    batch, targets = images[:BATCH].clone(), labels[:BATCH].clone()

    def forward():
        with torch.no_grad():
            return model(batch)

    def maps(count):
        for x, y in zip(images[:count].split(1000), labels[:count].split(1000), strict=True):
            torch_reference.saliency_maps(model, x, y).cpu()

    step = functools.partial(torch_reference.training_step, trained, optimiser, batch, targets)
    functions = {
        "train_step": captured(torch, step) if graph else step,
        "forward": captured(torch, forward) if graph else forward,
    }
    if not graph:
        for count in (BATCH, len(images)):
            functions[f"saliency_{count}"] = functools.partial(maps, count)
    return functions


def train_torch(torch, dataset, recipe):
    """What training.fit does, in PyTorch with a captured step: every epoch in a new order, then the test set."""
    from experiments import torch_reference

    images, labels = torch.from_numpy(dataset.train_images).cuda(), torch.from_numpy(dataset.train_labels).long().cuda()
    test_images = torch.from_numpy(dataset.test_images).cuda()
    test_labels = torch.from_numpy(dataset.test_labels).long().cuda()
    model = torch_reference.paper_cnn(networks.paper_cnn(seed=recipe.seed), "cuda").train()
    optimiser = torch_reference.optimiser(model, recipe.learning_rate, recipe.momentum, recipe.l2)
    batch, targets = images[: recipe.batch].clone(), labels[: recipe.batch].clone()
    step = captured(torch, functools.partial(torch_reference.training_step, model, optimiser, batch, targets))
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(images), device="cuda").split(recipe.batch):
            if len(chosen) == recipe.batch:
                torch.index_select(images, 0, chosen, out=batch)
                torch.index_select(labels, 0, chosen, out=targets)
                step()
        model.eval()
        with torch.no_grad():
            right = sum(
                int((model(x).argmax(1) == y).sum())
                for x, y in zip(test_images.split(1000), test_labels.split(1000), strict=True)
            )
        model.train()
    return right / len(test_labels)


def _set_tf32(torch, on):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def compare(options, torch):
    """All figures: seconds by task and side, images a second of Algorithms 1 and 2, and one whole training."""
    device = backend.get("cuda")
    rng = np.random.default_rng(options.seed)
    images = rng.random((10000, 1, 28, 28), np.float32)
    labels = rng.integers(0, 10, len(images), np.int32)
    sides = {
        "minicnn": our_functions(device, images, labels, graph=False),
        "minicnn graph": our_functions(device, images, labels, graph=True),
    }
    for tf32 in (False, True) if torch else ():
        for graph in (False, True):
            _set_tf32(torch, tf32)  # a captured graph keeps the setting that it was captured with
            name = f"torch{' graph' if graph else ''}{', TF32' if tf32 else ''}"
            functions = torch_functions(torch, images, labels, graph)
            sides[name] = {task: _with_tf32(torch, tf32, function) for task, function in functions.items()}
    wait = device.xp.cuda.Device().synchronize
    seconds = {}
    for task in sides["minicnn"]:
        contestants = {side: functions[task] for side, functions in sides.items() if task in functions}
        times = measure(contestants, options.repeats, warm_up=5, wait=wait)
        seconds[task] = {side: {"median": statistics.median(t), "minimum": min(t)} for side, t in times.items()}
        print(task, *(f"{side} {1000 * figures['median']:.3f} ms" for side, figures in seconds[task].items()), sep="  ")
    results = {"seconds": seconds, "training": _compare_training(options, torch)}
    return results | ({"attacks": _compare_attacks(options, torch, wait)} if options.attacks else {})


def _with_tf32(torch, tf32, function):
    def run():
        _set_tf32(torch, tf32)
        function()

    return run


def _compare_training(options, torch):
    """Seconds and test accuracy of one whole training: data to the device, steps, and the test set after each epoch."""
    dataset, recipe = common.load_data(options), training.Recipe(epochs=options.epochs, seed=options.seed)
    start = time.perf_counter()
    held_out = {"test": (dataset.test_images, dataset.test_labels)}
    network = networks.paper_cnn(seed=recipe.seed).to("cuda")
    history = training.fit(network, dataset.train_images, dataset.train_labels, recipe, held_out)
    results = {"minicnn graph": {"seconds": time.perf_counter() - start, "accuracy": history[-1]["test_accuracy"]}}
    for tf32 in (False, True) if torch else ():
        _set_tf32(torch, tf32)
        start = time.perf_counter()
        accuracy = train_torch(torch, dataset, recipe)
        results[f"torch graph{', TF32' if tf32 else ''}"] = {
            "seconds": time.perf_counter() - start,
            "accuracy": accuracy,
        }
    print(
        f"{recipe.epochs} epochs:", *(f"{side} {f['seconds']:.2f} s {f['accuracy']:.2%}" for side, f in results.items())
    )
    return results


def _compare_attacks(options, torch, wait):
    """Images a second of Algorithms 1 and 2 on the first test images that the network gets right."""
    dataset = common.load_data(options)
    network = common.load_network(common.find_weights(options), options)
    right = networks.predict(network, dataset.test_images).argmax(axis=1) == dataset.test_labels
    setting = attacks.Setting(limit=options.limit, chunk=1000)
    results = {}
    for algorithm, count in zip("12", options.images, strict=False):
        images, labels = dataset.test_images[right][:count], dataset.test_labels[right][:count]
        contestants = {"minicnn": functools.partial(attacks.attack, network, images, labels, algorithm, setting)}
        if torch:
            from experiments import torch_reference

            model = torch_reference.paper_cnn(network, "cuda")
            given = torch.from_numpy(images).cuda(), torch.from_numpy(labels).long().cuda()
            attack = functools.partial(torch_reference.attack, model, *given, algorithm, options.limit, batch=4096)
            contestants |= {"torch": _with_tf32(torch, False, attack), "torch, TF32": _with_tf32(torch, True, attack)}
        seconds = measure(contestants, 1, warm_up=0, wait=wait)
        results[algorithm] = {side: len(images) / t[0] for side, t in seconds.items()} | {"images": len(images)}
        print(f"Algorithm {algorithm}, images/s:", *(f"{k} {v:.4g}" for k, v in results[algorithm].items()))
    return results
