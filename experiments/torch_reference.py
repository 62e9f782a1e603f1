"""What the benchmark measures against: the paper's network, its training step, its saliency maps and Algorithms 1 to 4
in straightforward batched PyTorch."""

import torch
from torch.nn import functional

from minicnn.attacks import ALGORITHMS


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
            values = torch.from_numpy(ours.data.copy())
            theirs.copy_(values.T if values.ndim == 2 else values)
    return model.to(device, memory_format=memory_format)


def optimiser(model, learning_rate, momentum=0.5, l2=0.01, **options):
    """The author's Nesterov SGD, its penalty on the last weight matrix (the gradient of l2 w^2 is 2 l2 w)."""
    *others, last_weights, last_bias = model.parameters()
    groups = [{"params": [*others, last_bias]}, {"params": [last_weights], "weight_decay": 2 * l2}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=True, **options)


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


def _margins(logits, labels):
    """log((1 - p) / p) of the labels; the loss is its softplus, which does not underflow as 1 - p does."""
    own = functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]


def _gradient_scores(model, images, labels, algorithm):
    """Score of each pixel, (N, P), and the value its move sets."""
    images = images.detach().requires_grad_()
    (maps,) = torch.autograd.grad(_margins(model(images), labels).sum(), images)
    maps = maps.flatten(1)
    return (maps.abs(), (maps > 0).to(maps.dtype)) if algorithm.absolute else (maps, torch.ones_like(maps))


@torch.no_grad()
def _loss_difference_scores(model, images, labels, batch):
    """As _gradient_scores, by a full forward pass for every move that changes something."""
    pixels = images.flatten(1)
    before = functional.softplus(_margins(model(images), labels))
    scores = torch.zeros(2, *pixels.shape, device=images.device)
    for raises in (0, 1):
        for image, pixel in zip(*(i.split(batch) for i in torch.nonzero(pixels != raises, as_tuple=True)), strict=True):
            changed = images[image]
            changed.flatten(1)[torch.arange(len(image)), pixel] = raises
            after = functional.softplus(_margins(model(changed), labels[image]))
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
