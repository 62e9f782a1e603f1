"""Draw the paper's Figures 1 and 2 (samples, and their adversarial versions by Algorithm 1) and saliency maps as in
Appendix A: of one network, for some test images, or for one image with --index.

With --index the JSON holds the map itself: index, label, mean, max (of the map as written), log10_max (of the largest
true gradient; null where no entry is above zero), map (28 x 28) and log10_scale (the true gradient is map x
10^log10_scale; 0 for plain). Appendix A, with the author's own network, which experiments.author_networks makes, is
  python -m experiments.saliency_maps --dataset mnist --weights ~/.cache/minicnn/author_networks/standard.npz \\
      --index 2659 --ties all --arithmetic plain
The files are named by network and arithmetic.
"""

import math

import numpy as np

from experiments import common, figures, report
from minicnn import predict
from minicnn.paper import attacks
from minicnn.paper.saliency import saliency_maps

DRAWN = 10  # images in a picture at most, side by side


def describe(found, i, index, label):
    """Map i of one-channel SaliencyMaps as the dict that --index writes."""
    saliency_map = found.maps[i, 0]
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


def row(entry):
    """What is printed of an image. entry: as describe has it, and its algorithm_1."""
    found = entry["algorithm_1"]
    return {
        "test image": str(entry["index"]),
        "label": str(entry["label"]),
        "map: mean": f"{entry['mean']:.5g}",
        "max": f"{entry['max']:.6g}",
        "largest gradient": "none" if entry["log10_max"] is None else f"10^{entry['log10_max']:.2f}",
        "zeros": str(entry["zeros"]),
        "Algorithm 1": f"{'succeeds at' if found['succeeded'] else 'fails after'} {found['moves']}",
    }


def ending(options):
    """What tells the files of one network and arithmetic from those of others."""
    return f"{common.chosen_name(options)}_{options.arithmetic}"


def main(options):
    path = common.chosen_weights(options)
    network, dataset = common.load_chosen(path, options), common.load_data(options.dataset)
    if options.index is None:
        sample = common.chosen_sample(options, dataset, 8)
    elif options.images or options.first:
        raise common.UsageError("--index is one image, --images and --first are several: choose one of the three")
    else:
        sample = common.one_image("--index", options.index, dataset)
    images, labels, T = sample.images, sample.labels, options.attack_temperature
    found = {a: saliency_maps(network, images, labels, T, a) for a in attacks.ARITHMETICS}
    setting = common.setting(options, options.arithmetic)
    result = common.attack(network, images, labels, "1", setting, common.Store(options.out / "parts"))
    decisions = predict(network, result.adversarial).argmax(axis=1)

    maps = [
        describe(found[options.arithmetic], i, index, labels[i])
        | {"algorithm_1": {"succeeded": bool(result.succeeded[i]), "moves": int(result.moves[i])}}
        for i, index in enumerate(sample.indices)
    ]
    told = common.about_network(path, options) | {"arithmetic": options.arithmetic}
    shown = {"maps": maps} if options.index is None else maps[0]
    common.write_results(options, told | shown, inputs=("seed", "weights", "ties"))
    print(f"{path}, {options.arithmetic}\n{report.Table([row(entry) for entry in maps])}")
    title = f"{common.chosen_name(options)}: Algorithm 1, {options.arithmetic}, at most {setting.limit} moves"
    if len(images) > DRAWN:
        common.note(f"the pictures show the first {DRAWN} of the {len(images)} images")
    names = (f"{name}_{ending(options)}.png" for name in ("figures_1_and_2", "saliency_maps"))
    samples, maps = (common.beside(options, name) for name in names)
    figures.draw_samples(samples, images[:DRAWN], labels, result, decisions, title)
    figures.draw_maps(maps, images[:DRAWN], list(found.items()))
    common.written(options.json, samples, maps)


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.network_arguments(parser)
    parser.add_argument("--index", type=int, metavar="I", help="one test image, from 0, instead of several")
    common.choice(parser, "--arithmetic", attacks.ARITHMETICS, "plain", "of the map that is written")
    common.attack_arguments(parser, "8")
    common.run(main, parser, lambda o: f"saliency_maps_{ending(o)}.json")
