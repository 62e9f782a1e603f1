"""Draw the paper's Figures 1 and 2 (samples, and their adversarial versions by Algorithm 1) and saliency maps as in
Appendix A: of one network, for the first test images, or for one image with --index.

With --index the JSON holds the map itself: index, label, mean, max (of the map as written), log10_max (of the largest
true gradient; null where no entry is above zero), map (28 x 28) and log10_scale (the true gradient is map x
10^log10_scale; 0 for plain). Appendix A is
  python -m experiments.saliency_maps --dataset mnist --weights standard.npz --index 2659 --ties all --arithmetic plain
with the author's own network.
"""

import math

import numpy as np

from experiments import common
from minicnn import attacks
from minicnn.saliency import saliency_maps


def describe(found, i, index, label):
    """Map i of SaliencyMaps as the dict that --index writes."""
    saliency_map = found.maps[i]
    largest = float(saliency_map.max())
    return {
        "index": int(index),
        "label": int(label),
        "mean": float(saliency_map.mean(dtype=np.float64)),
        "max": largest,
        "log10_max": math.log10(largest) + float(found.log10_scale[i]) if largest > 0 else None,
        "log10_scale": float(found.log10_scale[i]),
        "zeros": int(found.zeros[i]),
        "map": saliency_map,
    }


def show_image(axes, image, title=""):
    """Draw a (28, 28) image in [0, 1], dark on light."""
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(title, fontsize=8)
    axes.axis("off")


def show_map(axes, saliency_map, title=""):
    """Draw a saliency map: red raises the loss, blue lowers it; white is zero."""
    bound = float(np.abs(saliency_map).max()) or 1.0
    axes.imshow(saliency_map, cmap="RdBu_r", vmin=-bound, vmax=bound)
    axes.set_title(title, fontsize=8)
    axes.axis("off")


def show_moves(axes, image, adversarial):
    """Draw an adversarial sample, the pixels that were moved in red."""
    show_image(axes, adversarial)
    moved = np.argwhere(image != adversarial)
    axes.scatter(moved[:, 1], moved[:, 0], s=4, color="tab:red")


def draw_samples(path, images, labels, result, decisions, title):
    """Figure 1 above Figure 2: samples, and what Algorithm 1 made of them (red: changed pixels)."""
    fig, axes = common.figure(2, len(images), width=1.3, height=1.6)
    for i, (top, bottom) in enumerate(axes.T):
        show_image(top, images[i, 0], f"label {labels[i]}")
        show_moves(bottom, images[i, 0], result.adversarial[i, 0])
        outcome = f"seen as {decisions[i]}" if result.succeeded[i] else "failed"
        bottom.set_title(f"{outcome}\n{result.moves[i]} moves", fontsize=8)
    fig.suptitle(title, fontsize=10)
    common.save_figure(path, fig)


def draw_maps(path, images, rows):
    """Images above their maps: rows is a list of (title, SaliencyMaps)."""
    fig, axes = common.figure(1 + len(rows), len(images), width=1.4, height=1.6)
    for i in range(len(images)):
        show_image(axes[0, i], images[i, 0])
        for line, (title, found) in zip(axes[1:], rows, strict=True):
            entry = describe(found, i, 0, 0)
            size = "all zero" if entry["zeros"] == found.maps[i].size else f"$10^{{{found.log10_size()[i]:.1f}}}$"
            show_map(line[i], found.maps[i], f"{title}\n{size}" if i == 0 else size)
    common.save_figure(path, fig)


def main(options):
    path = common.find_weights(options)
    dataset = common.load_data(options)
    network = common.load_network(path, options)
    tested = len(dataset.test_labels)
    if options.index is not None:
        if options.images is not None:
            raise common.UsageError("--index is one image and --images the first ones: choose one of the two")
        if not 0 <= options.index < tested:
            raise common.UsageError(f"--index {options.index}: {options.dataset} has test images 0 to {tested - 1}")
        chosen = np.array([options.index])
    else:
        chosen = np.arange(min(options.images or 8, tested))
    images, labels = dataset.test_images[chosen], dataset.test_labels[chosen]
    T = options.attack_temperature
    found = {a: saliency_maps(network, images, labels, T, a) for a in ("plain", "scaled")}
    setting = common.setting(options, options.arithmetic)
    result = attacks.attack(network, images, labels, "1", setting)
    decisions = common.networks.predict(network, result.adversarial).argmax(axis=1)

    run = common.environment(options) | {"weights": str(path), "ties": options.ties, "arithmetic": options.arithmetic}
    maps = [describe(found[options.arithmetic], i, index, labels[i]) for i, index in enumerate(chosen)]
    for entry, moves, succeeded in zip(maps, result.moves, result.succeeded, strict=True):
        entry["algorithm_1"] = {"succeeded": bool(succeeded), "moves": int(moves)}
        outcome = f"succeeds at move {moves}" if succeeded else f"fails after {moves} moves"
        size = "no entry above 0" if entry["log10_max"] is None else f"largest gradient 10^{entry['log10_max']:.2f}"
        print(
            f"test image {entry['index']}, label {entry['label']}, {options.arithmetic}: mean {entry['mean']:.5g}, "
            f"max {entry['max']:.6g}, {size}, {entry['zeros']} zeros; Algorithm 1 {outcome}"
        )
    common.write_json(options.json, run | (maps[0] if options.index is not None else {"maps": maps}))
    title = f"{path}: Algorithm 1, {options.arithmetic}, at most {setting.limit} moves"
    draw_samples(options.out / "figures_1_and_2.png", images, labels, result, decisions, title)
    draw_maps(options.out / "saliency_maps.png", images, list(found.items()))


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.network_arguments(parser)
    parser.add_argument("--index", type=int, metavar="I", help="one test image, from 0, instead of the first ones")
    parser.add_argument(
        "--arithmetic", choices=("plain", "scaled"), default="plain", help="of the map that is written; default: plain"
    )
    common.attack_arguments(parser, "8")
    common.run(main, parser)
