"""Attack one network with one algorithm, the paper's or a stronger one, and say how often it succeeds.

    1          raise the pixels of the largest gradient                    one backward pass
    2          raise or lower by the largest |loss difference|             every pixel tried once
    3          raise or lower by the largest |gradient|                    one backward pass
    4          as 2, the differences computed again after every move
    author     raise by the largest signed loss difference, the attack behind the author's logs
    margin     as 3, of the margin between two logits, computed again after every move, none of which is wasted
    jsma       Papernot et al. (2016): the best pair of pixels towards each class, computed again after every pair
    sparse-rs  Croce et al. (2022): a random search for --limit pixels, 1,000 forward passes, no gradient

--arithmetic plain is the author's float32, which underflows; scaled is float32 that does not. The last three depend on
neither that nor --attack-temperature.

Writes attack_NETWORK_ALGORITHM_ARITHMETIC.json, or --json, and beside it the samples as .npz (np.load), arrays over all
images N: index (of the test image), images and adversarial (N, 1, 28, 28), labels, decisions (of the network, after the
attack), attacked, succeeded, moves, changed (N, 1, 28, 28; which pixels are not what they were) and pixels_changed.
--show I draws test image I: before, its saliency map where the algorithm has one, and after.
"""

import dataclasses

import numpy as np

from experiments import common, figures
from minicnn import correct, predict
from minicnn.paper import attacks
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.statistics import summary
from minicnn.weights import save_npz


def file_name(options):
    """Of the files of one attack: another for every network, algorithm and, of the paper's, arithmetic."""
    arithmetic = f"_{options.arithmetic}" if options.algorithm in attacks.ALGORITHMS else ""
    return f"attack_{common.chosen_name(options)}_{options.algorithm}{arithmetic}"


def samples(sample, result, decisions):
    """What an attack made of a common.Sample, as the arrays of its .npz: name -> array over all N images.

    result: the AttackResult; decisions (N,): of the network on result.adversarial.
    """
    changed = attacks.changed_pixels(sample.images, result)
    return {
        "index": sample.indices,
        "images": sample.images,
        "labels": sample.labels,
        "adversarial": result.adversarial,
        "decisions": decisions,
        "attacked": result.attacked,
        "succeeded": result.succeeded,
        "moves": result.moves,
        "changed": changed.reshape(sample.images.shape),
        "pixels_changed": changed.sum(axis=1),
    }


def outcome(made):
    """What became of one image, as two lines. made: samples of this image alone."""
    moves, pixels, decision = (made[name][0] for name in ("moves", "pixels_changed", "decisions"))
    if not made["attacked"][0]:
        return f"not attacked: misclassified before,\nseen as {decision}"
    still = "" if made["succeeded"][0] else "still "
    return f"{moves} moves, {pixels} pixels changed,\n{still}seen as {decision}"


def draw(path, made, found, title):
    """One image before and after, the changed pixels in red, and between the two its map unless found is None.

    made: samples of this image alone; found: its SaliencyMaps.
    """
    fig, ((before, *between, after),) = common.figure(1, 2 if found is None else 3, width=2.4, height=3.7)
    image, adversarial = made["images"][0, 0], made["adversarial"][0, 0]
    figures.show_image(before, image, f"test image {made['index'][0]},\nlabel {made['labels'][0]}")
    for axes in between:
        figures.show_map(axes, found.maps[0, 0], f"saliency map,\n{figures.largest_gradient(found)}")
    figures.show_moves(after, image, adversarial, outcome(made))
    if between:
        figures.show_colours(fig, np.array([before, *between, after]))
    common.head(fig, title)
    common.save_figure(path, fig)


def figures_of(found, pixels, limit, denominator, algorithm):
    """The figures of an attack, label -> text. found: its summary; pixels: changed by each success that is counted;
    limit: of moves."""
    told = {"misclassified before, left out": found["misclassified"], "attacked": found["attacked"]}
    if denominator != "correct":
        told[f"counted ({denominator})"] = found["counted"]
    if found["counted"]:
        low, high = found["success_interval"]
        rate = f"{found['success_rate']:.1%}  (95 %: {low:.1%} to {high:.1%})"
        told[f"succeeded within {limit} moves"] = f"{found['succeeded']} = {rate}"
    if len(pixels):
        median = f"{np.median(pixels):g} in the median"
        told["pixels changed by a success"] = f"{median}, {pixels.min()} to {pixels.max()}"
    if found["zero_score_share"] is not None and algorithm in attacks.ALGORITHMS:
        told["all scores exactly zero"] = f"{found['zero_score_share']:.1%}"
    told["moves that changed nothing"] = f"{found['unchanged_moves']} of {found['moves']}"
    return told | {"passes": f"{found['forwards']} forward, {found['backwards']} backward"}


def tell(figures):
    """Print label -> text in two columns."""
    for label, text in figures.items():
        print(f"  {label:33}{text}")


def main(options):
    if (options.denominator == "common") != (options.other is not None):
        raise common.UsageError(
            "--denominator common and --other, the network that must be right on an image too, go together"
        )
    stronger = options.algorithm not in attacks.ALGORITHMS
    if stronger and (options.arithmetic != "scaled" or options.attack_temperature != 1):
        raise common.UsageError(
            f"{options.algorithm} depends on neither --arithmetic nor --attack-temperature: leave them out"
        )
    path = common.chosen_weights(options)
    other = options.other and common.weights_of(options.other, options, "--other FILE.npz")
    network, dataset = common.load_chosen(path, options), common.load_data(options.dataset)
    shown = None if options.show is None else common.one_image("--show", options.show, dataset)
    sample = common.chosen_sample(options, dataset)
    setting, store = common.setting(options, options.arithmetic), common.Store(options.out / "parts")
    if stronger:
        setting = dataclasses.replace(setting, skip_unchanged=True)

    def run(sample):
        images, labels, seed = sample.images, sample.labels, options.seed
        result = common.attack(network, images, labels, options.algorithm, setting, store, seed=seed)
        return result, samples(sample, result, predict(network, result.adversarial).argmax(axis=1))

    told = common.about_network(path, options) | {"sample": sample.taken(), "algorithm": options.algorithm}
    told |= {"setting": vars(setting), "denominator": options.denominator}
    right = {}
    if other:
        told["other"] = str(other)
        right["other"] = correct(common.load_chosen(other, options), sample.images, sample.labels)
    result, made = run(sample)
    right["attacked"] = result.attacked
    counted = common.counted(options.denominator, right, "attacked", len(sample.labels))
    found = summary(result, counted)
    pixels = made["pixels_changed"][result.succeeded & counted]
    by_image = {
        "median_pixels_of_successes": np.median(pixels) if len(pixels) else None,
        "moves_by_image": result.moves,
        "pixels_changed_by_image": made["pixels_changed"],
        "succeeded_by_image": result.succeeded,
        "attacked_by_image": result.attacked,
    }
    common.write_results(options, told | found | by_image, inputs=("seed", *told))
    kept = common.beside(options, f"{file_name(options)}.npz")
    save_npz(kept, made)
    title = common.attack_name(options.algorithm, options.arithmetic)
    print(f"{path}\n{title}, {sample}")
    summed_up = figures_of(found, pixels, setting.limit, options.denominator, options.algorithm)
    tell(summed_up | {"figures": options.json, "samples": kept})
    if shown:
        _, one = run(shown)
        maps = None
        if not stronger and attacks.ALGORITHMS[options.algorithm].score == "gradient":
            maps = saliency_maps(network, shown.images, shown.labels, setting.T, setting.arithmetic)
        picture = kept.with_name(f"{kept.stem}_{options.show}.png")
        draw(picture, one, maps, f"{common.chosen_name(options)}: {title}")
        tell({f"test image {options.show}": " ".join(outcome(one).split()), "drawn": picture})


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.network_arguments(parser)
    common.choice(parser, "--algorithm", common.ATTACKS, "1", "of the paper, the author's own, or a stronger one")
    common.choice(parser, "--arithmetic", attacks.ARITHMETICS, "scaled", "of the scores")
    parser.add_argument("--show", type=int, metavar="I", help="draw one test image, from 0, and what is made of it")
    common.attack_arguments(parser)
    common.denominator_argument(parser)
    meaning = "the second network of --denominator common"
    parser.add_argument("--other", type=common.file_or_name, metavar="NAME|FILE.npz", help=meaning)
    common.run(main, parser, lambda options: f"{file_name(options)}.json")
