"""How long minicnn takes, and PyTorch beside it, measured in turn in one run with the same number of threads.

    training step   forward, backward and update of the paper's network, dropout on, 128 images
    forward         logits of 128 images
    saliency        128 saliency maps
    --attacks       images a second of Algorithms 1 to 4 (of 4 the first moves), on a trained network

--against torch adds PyTorch eager in its default layout and channels_last, and the ratios minicnn / PyTorch: below 1,
minicnn is faster. Each time is the median of --repeats.

--device cuda measures minicnn with and without a captured graph, PyTorch eager and with a captured CUDA graph, each
with TF32 off and on; the maps of 10,000 images too, one whole training (--dataset mnist, 50 epochs, is the paper's),
and with --attacks Algorithms 1 and 2.
"""

import functools
import statistics

import numpy as np

from experiments import common
from experiments.timing import BATCH, LEARNING_RATE, measure, training_step
from minicnn import attacks, cpu, networks
from minicnn.saliency import saliency_maps

ATTACK_REPEATS = 3
ATTACKED = {"cpu": (256, 32, 256, 16), "cuda": (10000, 1000)}
ROUNDS_OF_4 = 5  # its every move costs as much as all of Algorithm 2


def our_functions(images, labels):
    """Name of a measurement -> a function of no arguments."""
    network = networks.paper_cnn()
    batch, targets = images[:BATCH], labels[:BATCH]
    return {
        "train_step": training_step(networks.paper_cnn(), images, labels),
        "forward": lambda: networks.predict(network, batch, chunk=BATCH),
        "saliency": lambda: saliency_maps(network, batch, targets, chunk=BATCH),
    }


def torch_functions(torch, images, labels, memory_format):
    """The same measurements in PyTorch."""
    from experiments import torch_reference

    images, labels = torch.from_numpy(images), torch.from_numpy(labels).long()
    trained = torch_reference.paper_cnn(networks.paper_cnn(), memory_format=memory_format).train()
    model = torch_reference.paper_cnn(networks.paper_cnn(), memory_format=memory_format).eval()
    optimiser = torch_reference.optimiser(trained, LEARNING_RATE)
    batch, targets = images[:BATCH].contiguous(memory_format=memory_format), labels[:BATCH]
    order = torch.arange(len(images))

    def step():
        chosen = order[:BATCH]
        torch_reference.training_step(
            trained, optimiser, images[chosen].contiguous(memory_format=memory_format), labels[chosen]
        )

    def forward():
        with torch.inference_mode():
            model(batch)

    return {
        "train_step": step,
        "forward": forward,
        "saliency": lambda: torch_reference.saliency_maps(model, batch, targets),
    }


def compare(options, torch):
    """Seconds and ratios of the training step, the forward pass and the maps."""
    rng = np.random.default_rng(options.seed)
    images = rng.random((8 * BATCH, 1, 28, 28), np.float32)
    labels = rng.integers(0, 10, len(images), np.int32)
    sides = {"minicnn": our_functions(images, labels)}
    if torch:
        for layout, memory_format in ("default", torch.contiguous_format), ("channels_last", torch.channels_last):
            sides[layout] = torch_functions(torch, images, labels, memory_format)
    ratios, seconds = {}, {}
    for task in sides["minicnn"]:
        times = measure({side: functions[task] for side, functions in sides.items()}, options.repeats)
        seconds[task] = {side: {"median": statistics.median(t), "minimum": min(t)} for side, t in times.items()}
        medians = {side: figures["median"] for side, figures in seconds[task].items()}
        ratios[task] = {f"vs_{side}": medians["minicnn"] / m for side, m in medians.items() if side != "minicnn"}
        print(f"{task:12}", *(f"{side} {1000 * m:.1f} ms" for side, m in medians.items()), sep="  ", end="")
        print(*("", *(f"{name} {ratio:.2f}" for name, ratio in ratios[task].items())), sep="  ", flush=True)
    return (ratios if torch else {}) | {"seconds": seconds}


def compare_attacks(options, torch):
    """Images a second of each algorithm, on the first --images test images that the network gets right."""
    dataset = common.load_data(options)
    network = common.load_network(common.find_weights(options), options)
    right = networks.predict(network, dataset.test_images).argmax(axis=1) == dataset.test_labels
    results = {}
    for algorithm, count in zip("1234", options.images, strict=True):
        limit = min(options.limit, ROUNDS_OF_4) if algorithm == "4" else options.limit
        setting = attacks.Setting(limit=limit)
        images, labels = dataset.test_images[right][:count], dataset.test_labels[right][:count]
        contestants = {"minicnn": functools.partial(attacks.attack, network, images, labels, algorithm, setting)}
        if torch:
            from experiments import torch_reference

            model = torch_reference.paper_cnn(network)
            given = torch.from_numpy(images), torch.from_numpy(labels).long()
            contestants["torch"] = functools.partial(torch_reference.attack, model, *given, algorithm, limit)
        seconds = measure(contestants, ATTACK_REPEATS, warm_up=0)
        figures = {side: len(images) / statistics.median(t) for side, t in seconds.items()}
        if torch:
            figures["ratio"] = figures["torch"] / figures["minicnn"]
        results[algorithm] = figures | {"images": len(images), "limit": limit}
        print(f"Algorithm {algorithm}, {len(images)} images, images/s:", *(f"{k} {v:.3g}" for k, v in figures.items()))
    return {"attacks": results}


def main(options):
    torch = None
    if options.against == "torch":
        try:
            import torch
        except ImportError:
            raise common.UsageError("--against torch needs PyTorch: pip install torch") from None
        torch.set_num_threads(options.threads)
    cpu.set_threads(options.threads)
    if options.images and not options.attacks:
        raise common.UsageError("--images is of the attacks: add --attacks")
    if options.attacks:
        common.load_network(common.find_weights(options), options)  # a mistake is said before minutes of measurements
    options.images = options.images or ATTACKED[options.device]
    if options.device == "cuda":
        from experiments import benchmark_cuda

        results = benchmark_cuda.compare(options, torch)
    else:
        print(f"{options.threads} threads on each side, medians of {options.repeats}")
        results = compare(options, torch)
        if options.attacks:
            results |= compare_attacks(options, torch)
    environment = common.environment(options)
    if torch:
        environment["versions"]["torch"] = torch.__version__
    common.write_json(options.json, results | environment | {"threads": options.threads, "repeats": options.repeats})


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
    parser.add_argument("--ties", choices=("first", "all"), default="first", help="max-pool gradient; default: first")
    parser.add_argument("--epochs", type=common.positive(int), default=50, help="of training on a GPU; default: 50")
    common.run(main, parser)
