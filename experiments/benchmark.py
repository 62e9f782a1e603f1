"""How long minicnn takes, and PyTorch beside it, measured in turn in one run with the same number of threads.

    training step   forward, backward and update of the paper's network, dropout on, 128 images
    forward         logits of 128 images
    saliency        128 saliency maps
    --attacks       images a second of Algorithms 1 to 4 (of 4 the first moves), on a trained network
    --scaling       cost against work, as a table and a picture: the first three for 1 to 512 images at a time, with one
                    thread and with --threads; with --attacks, Algorithms 1 to 3 on 10 to 1,000 images too

--against torch adds PyTorch eager in its default layout and channels_last, and the ratios minicnn / PyTorch: below 1,
minicnn is faster. Each time is the median of --repeats. Images are those of the data set, and forward passes and maps
those of a network that has been trained on them for a moment: what is 0 costs less, as it does in use. A training step
on the CPU is compared with its floor as well, the time of its products at the rate of NumPy's own (sgemm), measured in
the same run; and on Linux processes that train tell how much memory they had at most, their libraries included.

What is measured is kept in the folder of results; the same command goes on from there on the same day.

--device cuda measures minicnn with and without a captured graph, PyTorch eager and with a captured CUDA graph, each
with TF32 off and on (minicnn's kernels compute in float32 throughout); the maps of 10,000 images too, one whole
training (--dataset mnist, 50 epochs, is the paper's), and with --attacks Algorithms 1 and 2.
"""

import dataclasses
import functools
import math
import os
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import common
from experiments.executors import executor
from minicnn import Recipe, Tensor, backend, compiled, correct, cpu, fit, kernels_c, no_grad, predict
from minicnn.paper import attacks
from minicnn.paper.networks import PENALTY, paper_cnn
from minicnn.paper.saliency import saliency_maps
from minicnn.training import Run

RECIPE = Recipe(l2=PENALTY)  # the paper's
BATCH = RECIPE.batch
SHORT = 2.0  # seconds
MOVES_OF_4 = 5  # its every move costs as much as all of Algorithm 2
TASKS = {"train_step": "training step", "forward": "forward", "saliency": "saliency maps"}
FEW_STEPS = 50
MEMORY_STEPS = 10  # by which a process that trains has nearly all that it will take
SGEMM = 768  # rows and columns of the products whose rate is the floor's
LOSS_DIFFERENCES = 100  # images at most, for PyTorch takes minutes for more
MOST_THREADS = 1024
STATUS = Path("/proc/self/status")  # of a process, on Linux
PARTNERS = {  # what has influence only with another option
    "attacks": ("network", "weights", "images", "limit", "counts"),
    "scaling": ("batches", "counts"),
}
DEFAULTS = {"limit": 100, "batches": [1, 4, 8, 32, 128, 512], "counts": [10, 100, 1000]}
STYLES = {  # told apart in grey too
    "minicnn": {"color": "C0", "linestyle": "-"},
    "PyTorch": {"color": "C1", "linestyle": "--", "markerfacecolor": "none"},
}


class Plan(NamedTuple):
    """What is measured on a device. maps: name of a measurement -> number of maps; attacked, attack_repeats: images for
    Algorithm 1, 2, ... and how often."""

    maps: dict
    warm_up: int
    attacked: tuple
    attack_repeats: tuple


PLANS = {
    "cpu": Plan({"saliency": BATCH}, 2, (256, 32, 256, 16), (3, 1, 3, 1)),
    "cuda": Plan({"saliency_128": BATCH, "saliency_10000": 10000}, 5, (10000, 1000), (1, 1)),
}


def measure(contestants, repeats, warm_up=2, wait=lambda: None):
    """Call every function in turn, `repeats` times round after the rounds to warm up. Returns name -> list of seconds.

    wait() returns when a device has finished. The short rest lets the threads of the one before stop spinning. After it
    cores and caches are cold, which those of a training or an attack are not: a call that takes less than SHORT seconds
    is made twice, and the second one counts.
    """

    def timed(function):
        start = time.perf_counter()
        function()
        wait()
        return time.perf_counter() - start

    seconds = {name: [] for name in contestants}
    for round_ in range(warm_up + repeats):
        for name, function in contestants.items():
            time.sleep(0.005)
            wait()
            taken = timed(function)
            if taken < SHORT:
                taken = timed(function)
            if round_ >= warm_up:
                seconds[name].append(taken)
    return seconds


class Parts:
    """Measurements, each kept as soon as it is made: measured() makes it only once a day on one machine.

    store: where; computers: the machine and who_computes, as plain values; dataset: what is measured on; reference: the
    module torch_reference, or None for minicnn alone; total: how many measurements.
    """

    def __init__(self, store, computers, dataset, device, seed, reference, total):
        self.store, self.dataset, self.device, self.seed, self.reference = store, dataset, device, seed, reference
        sources = [__file__, reference.__file__] if reference else [__file__]
        self.key = {
            "benchmark": common.digest_of_sources(*sources),
            "day": str(date.today()),
            "computers": computers,
            "device": device,
            "dataset": dataset.name,
            "seed": seed,
        }
        self.wait = backend.get("cuda").xp.cuda.Device().synchronize if device == "cuda" else lambda: None
        self.done, self.progress = 0, common.Progress("measured", total)

    @functools.cached_property
    def network(self):
        """What forward passes and maps are those of: trained for a moment, for how much of what a ReLU gives is 0, and
        costs less, hangs on the weights as on the images."""
        network, few = paper_cnn(seed=self.seed).to(self.device), slice(FEW_STEPS * BATCH)
        images, labels = self.dataset.train_images[few], self.dataset.train_labels[few]
        fit(network, images, labels, dataclasses.replace(RECIPE, epochs=1))
        return network

    def measured(self, key, contestants, repeats, warm_up=None):
        """Side -> median and minimum of seconds. contestants(): side -> function; key: what tells them from others."""
        warm_up = PLANS[self.device].warm_up if warm_up is None else warm_up
        key = key | {"repeats": repeats}
        part = self.kept(key, lambda: measure(contestants(), repeats, warm_up, self.wait))
        return {side: {"median": statistics.median(t), "minimum": float(min(t))} for side, t in part.items()}

    def kept(self, key, compute):
        """What compute() returns, side -> numbers."""
        part = self.store.get(self.key | key | {"threads": cpu.threads()}, compute)
        self.done += 1
        self.progress(self.done)
        return part


def our_functions(network, images, labels, recipe, maps, chunk, graph=False):
    """Name of a measurement -> a function of no arguments. graph: captured, and without the maps, which come to the
    host as saliency_maps returns them. Logits stay on a GPU; on the CPU they are what predict returns."""
    x = network.backend.asarray(images[: recipe.batch])

    def forward():
        with no_grad():
            return network(Tensor(x)).data

    step = Run(paper_cnn().to(network.device), images, labels, recipe, graph=graph).step
    if graph:
        return {"train_step": step, "forward": network.backend.functions.capture(forward)}
    if network.device == "cpu":
        forward = functools.partial(predict, network, x, chunk=recipe.batch)
    return {"train_step": step, "forward": forward} | {
        task: functools.partial(saliency_maps, network, images[:count], labels[:count], chunk=chunk)
        for task, count in maps.items()
    }


def sides(parts, batch, maps):
    """Side -> name of a measurement -> a function of no arguments, on images of the data set, which begins anew where
    it has too few."""
    some = np.arange(max(8 * batch, *maps.values())) % len(parts.dataset.train_labels)
    recipe, chunk = dataclasses.replace(RECIPE, batch=batch), max(batch, backend.get(parts.device).functions.CHUNK)
    given = parts.dataset.train_images[some], parts.dataset.train_labels[some], recipe, maps, chunk
    found = {"minicnn": our_functions(parts.network, *given)}
    if parts.device == "cuda":
        found["minicnn graph"] = our_functions(parts.network, *given, graph=True)
    return found | (parts.reference.sides(parts.network, *given) if parts.reference else {})


def compare(parts, batch, maps, repeats):
    """Seconds of the training step, the forward pass and the maps: task -> side -> median and minimum."""
    made = functools.cache(lambda: sides(parts, batch, maps))
    return {
        task: parts.measured(
            {"task": task, "batch": batch},
            lambda task=task: {side: functions[task] for side, functions in made().items() if task in functions},
            repeats,
        )
        for task in ("train_step", "forward", *maps)
    }


def ratios(seconds):
    """What compare found, as task -> "vs_SIDE" -> median of minicnn over median of that side."""
    return {
        task: {f"vs_{s}": of["minicnn"]["median"] / of[s]["median"] for s in of if s != "minicnn"}
        for task, of in seconds.items()
    }


def products(batch):
    """Floating-point operations in the products of a training step of the paper's network: two a multiply-add, forward,
    by the weights and, but for the first layer, by the inputs."""
    x, forward = Tensor(np.zeros((1, 1, 28, 28), np.float32)), []
    with no_grad():
        for layer in paper_cnn().layers.values():
            x = layer(x)
            if hasattr(layer, "W"):
                forward.append(2 * batch * layer.W.data.size * math.prod(x.shape[2:]))
    return 3 * sum(forward) - forward[0]


def floor(parts, step, repeats):
    """What the products of a training step would take at the rate of sgemm, and how many times that a step takes.

    step: its seconds. Every thread multiplies square matrices of its own, with one thread of BLAS each.
    """
    a = np.random.default_rng(parts.seed).random((SGEMM, SGEMM), np.float32)
    jobs = [np.empty_like(a) for _ in range(4 * cpu.threads())]

    def multiply():
        cpu.in_parallel(lambda out: np.matmul(a, a, out=out), jobs)

    key = {"task": "sgemm", "size": SGEMM}
    seconds = parts.measured(key, lambda: {"sgemm": multiply}, repeats)["sgemm"]["median"]
    rate = 2 * SGEMM**3 * len(jobs) / seconds
    found = {"operations": products(BATCH), "sgemm_per_second": rate, "seconds": products(BATCH) / rate}
    return found | {"ratio": step / found["seconds"]}


def peak_memory(parts):
    """Bytes that a process which trains has at most, its libraries included: side -> bytes."""
    few = slice(8 * BATCH)
    given = parts.dataset.train_images[few], parts.dataset.train_labels[few], parts.seed, cpu.threads()

    def peaks():
        found = {}
        for side in ("minicnn", *(("default", "channels_last") if parts.reference else ())):
            with executor(None, 1) as process:
                found[side] = process.submit(_peak_of_training, side, *given).result()
        return found

    return {side: int(peak) for side, peak in parts.kept({"task": "memory"}, peaks).items()}


def _peak_of_training(side, images, labels, seed, threads):
    """Bytes that this process has had at most, after MEMORY_STEPS steps."""
    network = paper_cnn(seed=seed)
    if side == "minicnn":
        cpu.set_threads(threads)
        step = Run(network, images, labels, RECIPE).step
    else:
        from experiments import torch_reference

        torch_reference.torch.set_num_threads(threads)
        step = torch_reference.sides(network, images, labels, RECIPE, {}, BATCH)[side]["train_step"]
    for _ in range(MEMORY_STEPS):
        step()
    return _peak()


def _peak():
    """Bytes that this process has had at most; None where the system does not say."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else ()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def compare_scaling(parts, batches, repeats, most_threads, set_threads):
    """The cost of so many images at a time, with one thread and with all: a row with batch, threads and what compare
    found. Large batches are repeated a quarter as often."""
    rows = []
    for threads in sorted({1, most_threads}):
        set_threads(threads)
        for batch in batches:
            often = repeats if batch <= BATCH else max(1, repeats // 4)
            found = compare(parts, batch, {"saliency": batch}, often)
            rows.append({"batch": batch, "threads": threads, "seconds": found})
    set_threads(most_threads)
    return rows


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
    return results


def compare_attacks(parts, network, cases, most_moves):
    """Attacks on the images that a trained network classifies correctly: a row for each of the cases, (algorithm, how
    many images, repeats). A row has the algorithm, images, limit of moves, images a second of every side and, beside
    PyTorch, the ratio of the rate of its better layout to ours."""
    images, labels = parts.dataset.test_images, parts.dataset.test_labels
    right = correct(network, images, labels)
    images, labels = images[right], labels[right]
    known = common.network_key(network) | {"images": common.digest(images), "task": "attack"}
    chunk, reference = network.backend.functions.CHUNK, parts.reference

    def contestants(x, y, algorithm, limit):
        ours = functools.partial(attacks.attack, network, x, y, algorithm, attacks.Setting(limit=limit, chunk=chunk))
        return {"minicnn": ours} | (reference.attacks(network, x, y, algorithm, limit, chunk) if reference else {})

    rows = []
    for algorithm, count, repeats in cases:
        limit = min(most_moves, MOVES_OF_4) if algorithm == "4" else most_moves
        case = images[:count], labels[:count], algorithm, limit
        key = known | {"algorithm": algorithm, "count": count, "limit": limit}
        seconds = parts.measured(key, functools.partial(contestants, *case), repeats, warm_up=0)
        rates = {side: len(case[0]) / of["median"] for side, of in seconds.items()}
        if reference:
            rates["ratio"] = max(_torch(rates)) / rates["minicnn"]
        rows.append({"algorithm": algorithm} | rates | {"images": len(case[0]), "limit": limit})
    return rows


def who_computes(torch=None):
    """Whose code the CPU runs on either side: our convolutions, NumPy's BLAS kernels, PyTorch's instruction set."""
    from threadpoolctl import threadpool_info

    pools = (pool for pool in threadpool_info() if pool["user_api"] == "blas")
    blas = {f"{pool['internal_api']} {pool.get('architecture', '')}".strip() for pool in pools}
    told = {"convolutions": cpu.convolutions(), "blas": sorted(blas)}
    if chosen := os.environ.get("OPENBLAS_CORETYPE"):
        told["OPENBLAS_CORETYPE"] = chosen
        common.note(f"OPENBLAS_CORETYPE={chosen} is set: NumPy's products may be slower than the machine allows")
    if torch:
        told["torch"] = torch.backends.cpu.get_cpu_capability()
    return told


def seconds_to_compile(parts):
    """What the C kernels cost at first use; None where NumPy does their work."""
    if cpu.convolutions() != "compiled":
        return None

    def compile_anew():
        with tempfile.TemporaryDirectory() as folder:
            compiled.load(kernels_c.sources(), Path(folder))

    return parts.measured({"task": "compile"}, lambda: {"minicnn": compile_anew}, 1, warm_up=0)["minicnn"]["median"]


def lines(results):
    """What the results come to, as lines of text."""
    yield f"{results['threads']} threads on each side, medians of {results['repeats']}"
    for name, told in results["who_computes"].items():
        yield f"{name}: {told if isinstance(told, str) else ', '.join(told)}"
    if results["compile_seconds"]:
        yield f"the C kernels are compiled in {results['compile_seconds']:.1f} s, once on a machine"
    for task, of in results["seconds"].items():
        yield f"\n{TASKS.get(task, task)}, {BATCH} images" if task in TASKS else f"\n{task}"
        for side, figures in of.items():
            ratio = f"  ratio {of['minicnn']['median'] / figures['median']:.2f}" if side != "minicnn" else ""
            yield f"  {side:20} {1000 * figures['median']:8.4g} ms{ratio}"
    if "floor" in results:
        found = results["floor"]
        yield (
            f"\nthe products of a training step, {found['operations'] / 1e9:.1f} GFLOP, take "
            f"{1000 * found['seconds']:.1f} ms at sgemm's\n{found['sgemm_per_second'] / 1e9:.0f} GFLOP/s: "
            f"the step takes {found['ratio']:.2f} times its floor"
        )
    if "peak_memory" in results:
        peaks = results["peak_memory"]
        yield "\nmemory of a process that trains, at most"
        for side, peak in peaks.items():
            ratio = f"  ratio {peaks['minicnn'] / peak:.2f}" if side != "minicnn" else ""
            yield f"  {side:20} {peak / 2**20:8.4g} MB{ratio}"
    for side, found in results.get("training", {}).items():
        yield f"whole training, {side}: {found['seconds']:.2f} s, accuracy {found['accuracy']:.2%}"
    for algorithm, figures in results.get("attacks", {}).items():
        yield from _attack_lines(algorithm, figures)
    if "scaling" in results:
        yield "\nms a call, and the ratio to PyTorch's better layout"
        yield f"threads images {'training step':>18} {'forward':>18} {'saliency maps':>18}"
        for row in results["scaling"]:
            cells = (f"{_cell(row['seconds'][task]):>18}" for task in TASKS)
            yield f"{row['threads']:7} {row['batch']:6} {' '.join(cells)}"
    for figures in results.get("attack_scaling", []):
        yield from _attack_lines(figures["algorithm"], figures)


def _attack_lines(algorithm, figures):
    rates = "".join(f"\n  {side:20} {rate:8.3g} images/s" for side, rate in _rates(figures).items())
    ratio = f"  ratio {figures['ratio']:.2f}" if "ratio" in figures else ""
    yield f"\nAlgorithm {algorithm}, {figures['images']} images, {figures['limit']} moves{rates}{ratio}"


def _rates(figures):
    """Side -> images a second, of a row of compare_attacks."""
    return {side: rate for side, rate in figures.items() if side not in ("algorithm", "images", "limit", "ratio")}


def _cell(of):
    ours, theirs = of["minicnn"]["median"], [figures["median"] for figures in _torch(of)]
    return f"{1000 * ours:.2f}" + (f" ({ours / min(theirs):.2f})" if theirs else "")


def draw_scaling(path, results):
    """Cost against work: milliseconds an image against images at a time; of attacks against images attacked."""
    attacked = results.get("attack_scaling", [])
    fig, (panels,) = common.figure(1, len(TASKS) + bool(attacked), width=3.2, height=3.8)
    for panel, (task, title) in zip(panels, TASKS.items(), strict=False):
        for threads, marker in zip(sorted({row["threads"] for row in results["scaling"]}), "os", strict=False):
            rows = [row for row in results["scaling"] if row["threads"] == threads]
            seconds = {
                row["batch"]: {side: of["median"] / row["batch"] for side, of in row["seconds"][task].items()}
                for row in rows
            }
            _plot(panel, seconds, f"{threads} thread{'s' * (threads > 1)}", marker)
        _logarithmic(panel, [row["batch"] for row in results["scaling"]], title, "images at a time")
    panels[0].set_ylabel("ms an image")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    if attacked:
        for algorithm, marker in zip("123", "v^D", strict=True):
            rows = [row for row in attacked if row["algorithm"] == algorithm]
            seconds = {row["images"]: {side: 1 / rate for side, rate in _rates(row).items()} for row in rows}
            _plot(panels[-1], seconds, f"Algorithm {algorithm}", marker)
        _logarithmic(panels[-1], [row["images"] for row in attacked], "attacks", "images attacked")
        fig.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    common.save_figure(path, fig)


def _plot(panel, seconds, label, marker):
    """Milliseconds an image of minicnn and of the better layout of PyTorch. seconds: number of images -> side -> of an
    image."""
    best = {"minicnn": [of["minicnn"] for of in seconds.values()]}
    if all(map(_torch, seconds.values())):
        best["PyTorch"] = [min(_torch(of)) for of in seconds.values()]
    for side, of_image in best.items():
        panel.plot(seconds.keys(), 1000 * np.array(of_image), **STYLES[side], marker=marker, label=f"{side}, {label}")


def _torch(of):
    """What belongs to the sides of PyTorch in side -> figures."""
    return [figures for side, figures in of.items() if side != "minicnn"]


def _logarithmic(panel, ticks, title, label):
    common.plain_numbers(panel.xaxis, sorted(set(ticks)))
    common.plain_numbers(panel.yaxis)
    panel.set(title=title, xlabel=label)


def cases_of_scaling(plan, counts):
    """(algorithm, images, repeats) of each attack whose cost is measured against work."""
    return [
        (algorithm, count, repeats if count <= plan.attacked[0] else 1)
        for algorithm, repeats in zip("123", plan.attack_repeats, strict=False)
        for count in dict.fromkeys(min(n, LOSS_DIFFERENCES) if algorithm == "2" else n for n in counts)
    ]


def check(options):
    """Raises UsageError for more threads than there can be, and for options without influence."""
    if options.threads > MOST_THREADS:
        raise common.UsageError(f"--threads {options.threads}: at most {MOST_THREADS}")
    for switch, names in PARTNERS.items():
        given = [f"--{name}" for name in names if getattr(options, name) is not None]
        if given and not getattr(options, switch):
            raise common.UsageError(f"{', '.join(given)}: of the {switch}, add --{switch}")
    if options.scaling and options.device == "cuda":
        raise common.UsageError("--scaling is of the CPU: leave out --device cuda")


def main(options):
    reference = torch = None
    if options.against == "torch":
        try:
            import torch
        except ImportError:
            raise common.UsageError("--against torch needs PyTorch: pip install torch") from None
        from experiments import torch_reference as reference

    check(options)
    asked = max([*(options.images or ()), *(options.counts or ())], default=0)
    for name, value in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)

    def set_threads(count):
        cpu.set_threads(count)
        if torch:
            torch.set_num_threads(count)

    set_threads(options.threads)
    if options.attacks:  # a mistake is said before minutes of measurements
        network = common.load_chosen(common.chosen_weights(options), options)

    plan, computes = PLANS[options.device], who_computes(torch)
    attacked = list(zip("1234", options.images or plan.attacked, plan.attack_repeats, strict=False))
    scaled = cases_of_scaling(plan, options.counts) if options.scaling else []
    measures_memory = options.device == "cpu" and _peak() is not None
    total = 2 + len(plan.maps) + (options.device == "cpu") + (cpu.convolutions() == "compiled") + measures_memory
    total += options.scaling * len({1, options.threads}) * len(options.batches) * len(TASKS)
    total += options.attacks * len(attacked + scaled)
    dataset = common.load_data(options.dataset)
    if asked > len(dataset.test_labels):
        common.note(f"{dataset.name} has {len(dataset.test_labels)} test images: no more are taken")
    machine = common.environment(options)["machine"]
    computers = [machine["processor"], machine.get("gpu"), computes]
    store = common.Store(options.out / "parts")
    parts = Parts(store, computers, dataset, options.device, options.seed, reference, total)

    seconds = compare(parts, BATCH, plan.maps, options.repeats)
    results = {"seconds": seconds, "compile_seconds": seconds_to_compile(parts)}
    if options.device == "cpu":
        results |= ratios(seconds) if reference else {}
        results["floor"] = floor(parts, seconds["train_step"]["minicnn"]["median"], options.repeats)
    if measures_memory:
        results["peak_memory"] = peak_memory(parts)
    if options.scaling:
        results["scaling"] = compare_scaling(parts, options.batches, options.repeats, options.threads, set_threads)
    if options.device == "cuda":
        recipe = dataclasses.replace(RECIPE, epochs=options.epochs, seed=options.seed)
        results["training"] = compare_training(dataset, recipe, reference)
    if options.attacks:
        rows = compare_attacks(parts, network, attacked + scaled, options.limit)
        results["attacks"] = {row.pop("algorithm"): row for row in rows[: len(attacked)]}
        if options.scaling:
            results["attack_scaling"] = rows[len(attacked) :]
    parts.progress.close()
    environment = common.environment(options)
    if reference:
        environment["versions"]["torch"] = torch.__version__
    results |= environment | {"threads": options.threads, "repeats": options.repeats, "who_computes": computes}
    common.write_json(options.json, results)
    print(*lines(results), sep="\n")
    if options.scaling:
        path = common.beside(options, "benchmark.png")
        draw_scaling(path, results)
        print(f"\ncost against work: {path}")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--against", choices=("torch",), help="measure this beside minicnn")
    parser.add_argument(
        "--threads", type=common.positive(int), default=cpu.threads(), help="of each side; default: one a core"
    )
    parser.add_argument("--repeats", type=common.positive(int), default=20, help="default: %(default)s")
    parser.add_argument("--attacks", action="store_true", help="measure Algorithms 1 to 4 too, on a trained network")
    common.network_arguments(parser)
    parser.add_argument(
        "--images",
        type=common.positive(int),
        nargs=4,
        metavar=("N1", "N2", "N3", "N4"),
        help="attacked by Algorithms 1 to 4; default: 256 32 256 16, on a GPU 10000 and 1000 by 1 and 2",
    )
    parser.add_argument("--limit", type=common.positive(int), help=f"moves an image; default: {DEFAULTS['limit']}")
    parser.add_argument("--scaling", action="store_true", help="measure cost against work too")
    parser.add_argument(
        "--batches",
        type=common.positive(int),
        nargs="+",
        metavar="N",
        help=f"images at a time, of --scaling; default: {' '.join(map(str, DEFAULTS['batches']))}",
    )
    parser.add_argument(
        "--counts",
        type=common.positive(int),
        nargs="+",
        metavar="N",
        help=f"images attacked, of --scaling (by Algorithm 2 at most {LOSS_DIFFERENCES}); "
        f"default: {' '.join(map(str, DEFAULTS['counts']))}",
    )
    common.ties_argument(parser, default="first")
    parser.add_argument(
        "--epochs", type=common.positive(int), default=50, help="of training on a GPU; default: %(default)s"
    )
    common.run(main, parser)
