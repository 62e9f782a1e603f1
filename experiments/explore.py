"""Write explore.html: one page to open in a browser, offline, that shows where the gradient goes to zero.

It shows one test image, its saliency map and Algorithm 1 on the network trained at T = 20, in plain and in scaled
float32; then the image's ten logits under sliders for T and for the scale of the logits, with p - y in float32 beside
the exact one; and equations (2) to (5) of the paper, printed and corrected, at the values of the sliders.

The image is the one of finding.png, which reproduce draws: of the test images in the order of the seed the first that
the T = 20 network sees correctly and whose plain map is exactly zero. The JSON holds what the page holds: the image,
the maps, the moves of the attacks and what the network sees after each, and the logits and their Jacobian of both
networks.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from experiments import common
from minicnn import predict
from minicnn.files import write_atomically
from minicnn.paper import attacks
from minicnn.paper.networks import TEMPERATURE, rescaled
from minicnn.paper.proof1_measured import logits_and_jacobian
from minicnn.paper.saliency import saliency_maps

TEMPLATE = Path(__file__).with_suffix(".html")
DATA = "{{data}}"  # where the template takes the values
SEARCHED = 300  # images for one that shows the finding
TITLES = {"standard": "the standard network, trained at T = 1", "temperature": "the network trained at T = {:g}"}


def choose(network, sample, T):
    """One image, as a common.Sample: of the first SEARCHED of another, the first that the network classifies correctly
    and whose plain map is exactly zero; where there is none, the first that it classifies correctly."""
    searched = sample.part(slice(SEARCHED))
    plain = saliency_maps(network, searched.images, searched.labels, T, "plain")
    right = plain.logits.argmax(axis=1) == searched.labels
    return sample.part([np.argmax(2 * right + (plain.zeros == plain.maps[0].size))])


def embed(networks, sample, setting, trained_T=TEMPERATURE):
    """What the page shows, as plain values.

    networks: "standard" and "temperature" -> paper_cnn, the second trained at trained_T; sample: the common.Sample to
    choose the image from; setting: of Algorithm 1, its arithmetic ignored.
    """
    network = networks["temperature"]
    image, label, index, _ = choose(network, sample, setting.T)
    return {
        "index": int(index[0]),
        "label": int(label[0]),
        "shape": list(image.shape[2:]),
        "image": _decimals(image),
        "attack": {
            "trained_T": trained_T,
            "T": setting.T,
            "limit": setting.limit,
            "arithmetics": {a: _attacked(network, image, label, setting, a) for a in attacks.ARITHMETICS},
        },
        "networks": {
            name: {"title": title.format(trained_T), **_linear(networks[name], image)} for name, title in TITLES.items()
        },
    }


def _decimals(array):
    """The entries of a float32 array in order, each as the shortest decimal that rounds to it."""
    return [float(str(value)) for value in np.asarray(array, np.float32).reshape(-1)]


def _attacked(network, image, label, setting, arithmetic):
    """The map of one image (1, 1, H, W) and Algorithm 1 on it: pixels in the order of the moves, decisions before the
    first move and after each."""
    setting = dataclasses.replace(setting, arithmetic=arithmetic)
    found = saliency_maps(network, image, label, setting.T, arithmetic)
    result = attacks.attack(network, image, label, "1", setting)
    ranked = np.argsort(-found.maps.reshape(-1), kind="stable")
    if setting.skip_unchanged:
        ranked = ranked[image.reshape(-1)[ranked] < setting.maximum]
    pixels = ranked[: result.moves[0]]
    states = np.repeat(image, len(pixels) + 1, axis=0)
    for move, pixel in enumerate(pixels, 1):
        states.reshape(len(states), -1)[move:, pixel] = setting.maximum
    size = found.log10_size()[0]
    return {
        "map": _decimals(found.maps),
        "log10_size": float(size) if np.isfinite(size) else None,
        "pixels": pixels.tolist(),
        "decisions": predict(network, states).argmax(axis=1).tolist(),
        "succeeded": bool(result.succeeded[0]),
    }


def _linear(network, image):
    """The logits of one image (1, 1, H, W) as the network computes them, and their Jacobian from float64, a row a
    class."""
    _, jacobian = logits_and_jacobian(rescaled(network, dtype=np.float64), image[0].astype(np.float64))
    return {"logits": _decimals(predict(network, image)), "jacobian": [_decimals(row) for row in jacobian]}


def write(path, values):
    """Write the page. values: what embed returns, and of common.environment what its footer tells."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    write_atomically(path, TEMPLATE.read_text("utf-8").replace(DATA, text).encode())


def main(options):
    paths, networks = {}, {}
    for name, T in ("standard", 1.0), ("temperature", TEMPERATURE):
        if options.trained:
            paths[name] = options.trained / f"{common.of_seed(name, options.seed)}.npz"
        else:
            paths[name] = common.weights_of(name, options, "--trained DIR")
        networks[name] = common.load_chosen(paths[name], options, T=T)
    dataset = common.load_data(options.dataset)
    sample = common.sample(dataset, min(SEARCHED, len(dataset.test_labels)), options.seed)
    values = common.environment(options) | embed(networks, sample, attacks.Setting())
    values |= {"weights": {name: str(path) for name, path in paths.items()}, "ties": options.ties}
    common.write_json(options.json, values)
    page = common.beside(options, "explore.html")
    write(page, values)
    print(f"test image {values['index']}, label {values['label']}: the page is {page}, the values in it {options.json}")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument(
        "--trained",
        type=common.named(Path),
        metavar="DIR",
        help="take standard.npz and temperature.npz from this folder; default: the folder of results, else those that "
        "come with the project",
    )
    common.ties_argument(parser)
    common.run(main, parser, resumes=False)
