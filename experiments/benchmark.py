"""How long minicnn takes, and PyTorch beside it, measured in turn in one run with the same number of threads.

    training step   forward, backward and update of the paper's network, dropout on, 128 images
    forward         logits of 128 images
    saliency        128 saliency maps
    --attacks       images a second of Algorithms 1 to 4 (of 4 the first moves), on a trained network

--against torch adds PyTorch eager in its default layout and channels_last, and the ratios minicnn / PyTorch: below 1,
minicnn is faster. Each time is the median of --repeats.

--device cuda measures minicnn with and without a captured graph, PyTorch eager and with a captured CUDA graph, each
with TF32 off and on (minicnn's kernels compute in float32 throughout); the maps of 10,000 images too, one whole
training (--dataset mnist, 50 epochs, is the paper's), and with --attacks Algorithms 1 and 2.
"""

import dataclasses
import functools
import os
import statistics
import time
from typing import NamedTuple

import numpy as np

from experiments import common
from minicnn import DropoutMasks, NesterovSGD, Recipe, Tensor, backend, correct, cpu, fit, no_grad
from minicnn.ops import cross_entropy
from minicnn.paper import attacks
from minicnn.paper.networks import PENALTY, paper_cnn
from minicnn.paper.saliency import saliency_maps

RECIPE = Recipe(l2=PENALTY)  # the paper's
BATCH = RECIPE.batch
MOVES_OF_4 = 5  # its every move costs as much as all of Algorithm 2


class Plan(NamedTuple):
    """What is measured on a device. samples: random images; maps: name of a measurement -> number of maps; attacked:
    images for Algorithm 1, 2, ...; chunk, torch_chunk: images in memory at a time."""

    samples: int
    maps: dict
    warm_up: int
    attacked: tuple
    attack_repeats: int
    chunk: int
    torch_chunk: int


PLANS = {
    "cpu": Plan(8 * BATCH, {"saliency": BATCH}, 2, (256, 32, 256, 16), 3, 256, 256),
    "cuda": Plan(10000, {"saliency_128": BATCH, "saliency_10000": 10000}, 5, (10000, 1000), 1, 1000, 4096),
}


def measure(contestants, repeats, warm_up=2, wait=lambda: None):
    """Call every function in turn, `repeats` times round after the rounds to warm up. Returns name -> list of seconds.

    wait() returns when a device has finished. The short rest lets the threads of the one before stop spinning.
    """
    seconds = {name: [] for name in contestants}
    for round_ in range(warm_up + repeats):
        for name, function in contestants.items():
            time.sleep(0.005)
            wait()
            start = time.perf_counter()
            function()
            wait()
            if round_ >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def waiting(device):
    """A function that returns when the device of that name has finished."""
    return backend.get("cuda").xp.cuda.Device().synchronize if device == "cuda" else lambda: None


def training_step(network, images, labels):
    """A function that makes one step of training.fit, on its next batch of the images."""
    device = network.backend
    functions, xp = device.functions, device.xp
    images, labels = device.asarray(images), device.asarray(labels)
    order, counter = xp.arange(len(images), dtype=np.int32), xp.zeros(1, np.uint32)
    mean = xp.full(BATCH, 1 / BATCH, images.dtype)
    optimiser = NesterovSGD(network.parameters(), xp.full(1, RECIPE.learning_rate, images.dtype), l2=PENALTY)

    def step():
        batch = Tensor(functions.gather(images, order, counter, BATCH))
        target = functions.gather(labels, order, counter, BATCH)
        cross_entropy(network(batch, DropoutMasks(0, counter)), target).backward(mean)
        optimiser.step()
        functions.advance(counter)

    return step


def our_functions(device, images, labels, graph=False):
    """Name of a measurement -> a function of no arguments. graph: captured, and without the maps, which come to the
    host as saliency_maps returns them."""
    plan, network = PLANS[device], paper_cnn().to(device)
    batch, functions = network.backend.asarray(images[:BATCH]), network.backend.functions

    def forward():
        with no_grad():
            return network(Tensor(batch)).data

    step = training_step(paper_cnn().to(device), images, labels)
    if graph:
        return {"train_step": functions.capture(step), "forward": functions.capture(forward)}
    return {"train_step": step, "forward": forward} | {
        task: functools.partial(saliency_maps, network, images[:count], labels[:count], chunk=plan.chunk)
        for task, count in plan.maps.items()
    }


def compare(device, seed, repeats, reference):
    """Seconds of the training step, the forward pass and the maps: task -> side -> median and minimum.

    reference: the module torch_reference, or None for minicnn alone.
    """
    plan, rng = PLANS[device], np.random.default_rng(seed)
    images = rng.random((plan.samples, 1, 28, 28), np.float32)
    labels = rng.integers(0, 10, len(images), np.int32)
    sides = {"minicnn": our_functions(device, images, labels)}
    if device == "cuda":
        sides["minicnn graph"] = our_functions(device, images, labels, graph=True)
    if reference:
        sides |= reference.sides(device, images, labels, RECIPE, plan.maps, plan.chunk)
    seconds = {}
    for task in sides["minicnn"]:
        contestants = {side: functions[task] for side, functions in sides.items() if task in functions}
        times = measure(contestants, repeats, plan.warm_up, waiting(device))
        seconds[task] = {side: {"median": statistics.median(t), "minimum": min(t)} for side, t in times.items()}
        medians = (f"{side} {1000 * figures['median']:.4g} ms" for side, figures in seconds[task].items())
        print(f"{task:12}", *medians, sep="  ", flush=True)
    return seconds


def ratios(seconds):
    """What compare found, as task -> "vs_SIDE" -> median of minicnn over median of that side."""
    return {
        task: {f"vs_{s}": of["minicnn"]["median"] / of[s]["median"] for s in of if s != "minicnn"}
        for task, of in seconds.items()
    }


def compare_training(dataset, recipe, reference):
    """Seconds and test accuracy of one whole training: data to the device, steps, and the test set after each epoch."""

    def ours():
        held_out = {"test": (dataset.test_images, dataset.test_labels)}
        network = paper_cnn(seed=recipe.seed).to("cuda")
        return fit(network, dataset.train_images, dataset.train_labels, recipe, held_out)[-1]["test_accuracy"]

    contestants = {"minicnn graph": ours} | (reference.trainings(dataset, recipe) if reference else {})
    results = {}
    for side, function in contestants.items():
        start = time.perf_counter()
        accuracy = function()
        results[side] = {"seconds": time.perf_counter() - start, "accuracy": accuracy}
    figures = (f"{side} {found['seconds']:.2f} s {found['accuracy']:.2%}" for side, found in results.items())
    print(f"{recipe.epochs} epochs:", *figures)
    return results


def compare_attacks(network, images, labels, counts, limit, reference):
    """Images a second of each algorithm, on the first test images that the network gets right.

    counts: of images for Algorithm 1, 2, ... Returns algorithm -> figures.
    """
    plan = PLANS[network.device]
    right = correct(network, images, labels)
    images, labels = images[right], labels[right]
    results = {}
    for algorithm, count in zip("1234", counts, strict=False):
        moves = min(limit, MOVES_OF_4) if algorithm == "4" else limit
        setting = attacks.Setting(limit=moves, chunk=plan.chunk)
        case = images[:count], labels[:count], algorithm
        contestants = {"minicnn": functools.partial(attacks.attack, network, *case, setting)}
        if reference:
            contestants |= reference.attacks(network, *case, moves, plan.torch_chunk)
        seconds = measure(contestants, plan.attack_repeats, warm_up=0, wait=waiting(network.device))
        figures = {side: len(case[0]) / statistics.median(t) for side, t in seconds.items()}
        if reference:
            figures["ratio"] = figures["torch"] / figures["minicnn"]
        results[algorithm] = figures | {"images": len(case[0]), "limit": moves}
        print(f"Algorithm {algorithm}, {len(case[0])} images, images/s:", *(f"{k} {v:.3g}" for k, v in figures.items()))
    return results


def who_computes(torch=None):
    """Whose code the CPU runs on either side: our convolutions, NumPy's BLAS kernels, PyTorch's instruction set."""
    from threadpoolctl import threadpool_info

    blas = {f"{pool['internal_api']} {pool.get('architecture', '')}".strip() for pool in threadpool_info()}
    told = {"convolutions": cpu.convolutions(), "blas": sorted(blas)}
    if chosen := os.environ.get("OPENBLAS_CORETYPE"):
        told["OPENBLAS_CORETYPE"] = chosen
        common.note(f"OPENBLAS_CORETYPE={chosen} is set: NumPy's products may be slower than the machine allows")
    if torch:
        told["torch"] = torch.backends.cpu.get_cpu_capability()
    return told


def main(options):
    reference = torch = None
    if options.against == "torch":
        try:
            import torch
        except ImportError:
            raise common.UsageError("--against torch needs PyTorch: pip install torch") from None
        from experiments import torch_reference as reference

        torch.set_num_threads(options.threads)
    cpu.set_threads(options.threads)
    if options.images and not options.attacks:
        raise common.UsageError("--images is of the attacks: add --attacks")
    if options.attacks:  # a mistake is said before minutes of measurements
        network = common.load_network(common.chosen_weights(options), options.device, options.ties)

    computes = who_computes(torch)
    print(f"{options.threads} threads on each side, medians of {options.repeats}")
    print("; ".join(f"{name}: {told if isinstance(told, str) else ', '.join(told)}" for name, told in computes.items()))
    seconds = compare(options.device, options.seed, options.repeats, reference)
    results = {"seconds": seconds}
    if reference and options.device == "cpu":
        results = ratios(seconds) | results
        for task in seconds:
            print(f"{task:12}", *(f"{side} {ratio:.2f}" for side, ratio in results[task].items()), sep="  ")
    if options.device == "cuda" or options.attacks:
        dataset = common.load_data(options.dataset)
    if options.device == "cuda":
        recipe = dataclasses.replace(RECIPE, epochs=options.epochs, seed=options.seed)
        results["training"] = compare_training(dataset, recipe, reference)
    if options.attacks:
        case = network, dataset.test_images, dataset.test_labels
        counts = options.images or PLANS[options.device].attacked
        results["attacks"] = compare_attacks(*case, counts, options.limit, reference)
    environment = common.environment(options)
    if reference:
        environment["versions"]["torch"] = torch.__version__
    environment |= {"threads": options.threads, "repeats": options.repeats, "who_computes": computes}
    common.write_json(options.json, results | environment)


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--against", choices=("torch",), help="measure this beside minicnn")
    parser.add_argument(
        "--threads", type=common.positive(int), default=cpu.threads(), help="of each side; default: one a core"
    )
    parser.add_argument("--repeats", type=common.positive(int), default=20, help="default: 20")
    parser.add_argument("--attacks", action="store_true", help="measure Algorithms 1 to 4 too, on a trained network")
    common.network_arguments(parser)
    parser.add_argument(
        "--images",
        type=common.positive(int),
        nargs=4,
        metavar=("N1", "N2", "N3", "N4"),
        help="attacked by Algorithms 1 to 4; default: 256 32 256 16, on a GPU 10000 and 1000 by 1 and 2",
    )
    parser.add_argument("--limit", type=common.positive(int), default=100, help="moves an image; default: 100")
    common.ties_argument(parser, default="first")
    parser.add_argument("--epochs", type=common.positive(int), default=50, help="of training on a GPU; default: 50")
    common.run(main, parser, resumes=False)
