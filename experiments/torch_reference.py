"""What the benchmark measures against: the paper's network, its training, its saliency maps and Algorithms 1 to 4 in
straightforward batched PyTorch."""

import functools
import itertools

import torch
from torch.nn import functional

from minicnn import backend
from minicnn.paper import networks
from minicnn.paper.attacks import ALGORITHMS


def paper_cnn(network, device="cpu", memory_format=torch.contiguous_format):
    """The paper's network with the weights of a minicnn one, as a torch.nn.Sequential up to the logits."""
    nn = torch.nn
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(1024, 200), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(200, 200), nn.ReLU(), nn.Dropout(0.5), nn.Linear(200, 10)),
    )
    with torch.no_grad():
        for theirs, ours in zip(model.parameters(), network.parameters().values(), strict=True):
            values = torch.from_numpy(backend.to_host(ours.data).copy())
            theirs.copy_(values.T if values.ndim == 2 else values)
    return model.to(device, memory_format=memory_format)


def optimiser(model, recipe):
    """The Nesterov SGD of a Recipe, its penalty on the last weight matrix (the gradient of l2 w^2 is 2 l2 w)."""
    *others, last_weights, last_bias = model.parameters()
    penalised = {"params": [last_weights], "weight_decay": 2 * recipe.l2[f"{networks.LAST_LAYER}_W"]}
    groups = [{"params": [*others, last_bias]}, penalised]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)


def training_step(model, optimiser, images, labels):
    """One step on a batch, dropout on."""
    optimiser.zero_grad(set_to_none=True)
    functional.cross_entropy(model(images), labels).backward()
    optimiser.step()


def saliency_maps(model, images, labels):
    """Gradient of the cross-entropy by the pixels; no gradient of a weight is computed."""
    images = images.detach().requires_grad_()
    (maps,) = torch.autograd.grad(functional.cross_entropy(model(images), labels, reduction="sum"), images)
    return maps


def _log_odds_against(logits, labels):
    """log((1 - p) / p) of the labels; the loss is its softplus, which does not underflow as 1 - p does."""
    own = functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]


def _gradient_scores(model, images, labels, algorithm):
    """Score of each pixel, (N, P), and the value its move sets."""
    images = images.detach().requires_grad_()
    (maps,) = torch.autograd.grad(_log_odds_against(model(images), labels).sum(), images)
    maps = maps.flatten(1)
    return (maps.abs(), (maps > 0).to(maps.dtype)) if algorithm.absolute else (maps, torch.ones_like(maps))


@torch.no_grad()
def _loss_difference_scores(model, images, labels, batch):
    """As _gradient_scores, by a full forward pass for every move that changes something."""
    pixels = images.flatten(1)
    before = functional.softplus(_log_odds_against(model(images), labels))
    scores = torch.zeros(2, *pixels.shape, device=images.device)
    for raises in (0, 1):
        for image, pixel in zip(*(i.split(batch) for i in torch.nonzero(pixels != raises, as_tuple=True)), strict=True):
            changed = images[image]
            changed.flatten(1)[torch.arange(len(image)), pixel] = raises
            after = functional.softplus(_log_odds_against(model(changed), labels[image]))
            scores[raises, image, pixel] = (after - before[image]).abs()
    best = scores.max(0)
    return best.values, torch.where(scores[0] == scores[1], 1.0, best.indices.to(scores.dtype))


def attack(model, images, labels, algorithm, limit=100, batch=256):
    """Algorithm "1" to "4" on the correctly classified images, all at once.

    images (N, 1, H, W), labels (N,) on the model's device. Returns (succeeded, moves), each (N,).
    """
    algorithm = ALGORITHMS[algorithm]

    def score(images, labels):
        if algorithm.score == "gradient":
            return _gradient_scores(model, images, labels, algorithm)
        return _loss_difference_scores(model, images, labels, batch)

    model.eval()
    with torch.no_grad():
        active = torch.nonzero(model(images).argmax(1) == labels)[:, 0]
    images, pixels = images[active], images[active].flatten(1)
    succeeded = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    moves = torch.zeros_like(succeeded, dtype=torch.int)
    scores, values = score(images, labels[active])
    used = torch.zeros_like(scores, dtype=torch.bool)
    for move in range(limit):
        if move and algorithm.refresh:
            scores, values = score(images, labels[active])
        pixel = scores.masked_fill(used, -torch.inf).argmax(1, keepdim=True)
        used.scatter_(1, pixel, True)
        pixels = images.flatten(1).scatter(1, pixel, values.gather(1, pixel))
        images = pixels.view_as(images)
        moves[active] += 1
        with torch.no_grad():
            fallen = model(images).argmax(1) != labels[active]
        succeeded[active[fallen]] = True
        active, images, scores, values, used = (a[~fallen] for a in (active, images, scores, values, used))
        if len(active) == 0:
            break
    return succeeded, moves


def captured(function):
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

    def replay(tensors=function):  # the graph knows only where they lie: they must live as long
        graph.replay()

    return replay


def _with_tf32(on, function):
    """The function, run with TF32 on or off; a captured graph keeps what it was captured with."""

    def run():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
        return function()

    return run


def _host_tensors(*arrays):
    return [torch.from_numpy(a).long() if a.dtype.kind in "iu" else torch.from_numpy(a) for a in arrays]


def _functions(network, images, labels, recipe, maps, chunk, layout=torch.contiguous_format):
    """Name of a measurement -> a function of no arguments. A training step has one fixed batch."""
    images, labels = (a.to(network.device) for a in _host_tensors(images, labels))
    trained = paper_cnn(networks.paper_cnn(), network.device, layout).train()
    model = paper_cnn(network, network.device, layout).eval().requires_grad_(False)
    batch, targets = images[: recipe.batch].contiguous(memory_format=layout).clone(), labels[: recipe.batch].clone()

    def forward():
        with torch.no_grad():
            return model(batch)

    def all_maps(count):
        parts = zip(images[:count].split(chunk), labels[:count].split(chunk), strict=True)
        maps = [saliency_maps(model, x.contiguous(memory_format=layout), y) for x, y in parts]
        return [of_part.cpu() for of_part in maps]  # only now, as ours

    step = functools.partial(training_step, trained, optimiser(trained, recipe), batch, targets)
    measured = {"train_step": step, "forward": forward}
    return measured | {task: functools.partial(all_maps, count) for task, count in maps.items()}


def sides(network, images, labels, recipe, maps, chunk):
    """What benchmark.compare measures: side -> name of a measurement -> a function of no arguments.

    network: a minicnn paper_cnn, on the CPU for the default layout and channels_last, on a GPU for eager and captured,
    each with TF32 off and on. maps: name of a measurement -> number of maps, computed `chunk` at a time, which come to
    the host at the end.
    """
    functions = functools.partial(_functions, network, images, labels, recipe, maps, chunk)
    if network.device == "cpu":
        return {"default": functions(), "channels_last": functions(torch.channels_last)}
    found = {}
    for tf32, graph in itertools.product((False, True), repeat=2):
        measured = functions()
        if graph:
            captures = {task: functools.partial(captured, measured[task]) for task in ("train_step", "forward")}
            measured = {task: _with_tf32(tf32, capture)() for task, capture in captures.items()}
        name = f"torch{' graph' if graph else ''}{', TF32' if tf32 else ''}"
        found[name] = {task: _with_tf32(tf32, function) for task, function in measured.items()}
    return found


def _train(dataset, recipe):
    """What training.fit does, with a captured step: every epoch in a new order, then the test set. Returns accuracy."""
    images, labels, test_images, test_labels = (
        a.cuda()
        for a in _host_tensors(dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    )
    model = paper_cnn(networks.paper_cnn(seed=recipe.seed), "cuda").train()
    batch, targets = images[: recipe.batch].clone(), labels[: recipe.batch].clone()
    step = captured(functools.partial(training_step, model, optimiser(model, recipe), batch, targets))
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(images), device="cuda").split(recipe.batch):
            if len(chosen) == recipe.batch:
                torch.index_select(images, 0, chosen, out=batch)
                torch.index_select(labels, 0, chosen, out=targets)
                step()
        model.eval()
        with torch.no_grad():
            tested = zip(test_images.split(1000), test_labels.split(1000), strict=True)
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in tested)
        model.train()
    return right / len(test_labels)


def trainings(dataset, recipe):
    """What benchmark.compare_training measures: side -> a function that trains and returns the test accuracy."""
    train = functools.partial(_train, dataset, recipe)
    return {"torch graph": _with_tf32(False, train), "torch graph, TF32": _with_tf32(True, train)}


def attacks(network, images, labels, algorithm, limit, batch):
    """What benchmark.compare_attacks measures: side -> a function that makes the attack on the network's device."""
    case = [a.to(network.device) for a in _host_tensors(images, labels)]

    def run(layout=torch.contiguous_format):
        return functools.partial(attack, paper_cnn(network, network.device, layout), *case, algorithm, limit, batch)

    if network.device == "cpu":
        return {"default": run(), "channels_last": run(torch.channels_last)}
    return {"torch": _with_tf32(False, run()), "torch, TF32": _with_tf32(True, run())}
