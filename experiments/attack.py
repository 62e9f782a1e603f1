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
from minicnn.weights import save_npz, trained_at


def file_name(options):
    """Of the files of one attack: another for every network, algorithm and, of the paper's, arithmetic."""
    arithmetic = f"_{options.arithmetic}" if options.algorithm in attacks.ALGORITHMS else ""
    return f"attack_{common.chosen_name(options)}_{options.algorithm}{arithmetic}"


def samples(index, images, labels, result, decisions):
    """What an attack made of images (N, C, H, W), as the arrays of its .npz: name -> array over all N.

    index (N,): of the test images; result: the AttackResult; decisions (N,): of the network on result.adversarial.
    """
    changed = attacks.changed_pixels(images, result)
    return {
        "index": index,
        "images": images,
        "labels": labels,
        "adversarial": result.adversarial,
        "decisions": decisions,
        "attacked": result.attacked,
        "succeeded": result.succeeded,
        "moves": result.moves,
        "changed": changed.reshape(images.shape),
        "pixels_changed": changed.sum(axis=1),
    }


def outcome(sample):
    """What became of one image, as two lines. sample: samples of this image alone."""
    moves, pixels, decision = (sample[name][0] for name in ("moves", "pixels_changed", "decisions"))
    if not sample["attacked"][0]:
        return f"not attacked: misclassified before,\nseen as {decision}"
    still = "" if sample["succeeded"][0] else "still "
    return f"{moves} moves, {pixels} pixels changed,\n{still}seen as {decision}"


def draw(path, sample, found, title):
    """One image before and after, the changed pixels in red, and between the two its map unless found is None.

    sample: samples of this image alone; found: its SaliencyMaps.
    """
    fig, ((before, *between, after),) = common.figure(1, 2 if found is None else 3, width=2.4, height=3.7)
    image, adversarial = sample["images"][0, 0], sample["adversarial"][0, 0]
    figures.show_image(before, image, f"test image {sample['index'][0]},\nlabel {sample['labels'][0]}")
    for axes in between:
        figures.show_map(axes, found.maps[0, 0], f"saliency map,\n{figures.largest_gradient(found)}")
    figures.show_moves(after, image, adversarial, outcome(sample))
    if between:
        figures.show_colours(fig, np.array([before, *between, after]))
    common.head(fig, title)
    common.save_figure(path, fig)


def main(options):
    path, other = common.chosen_weights(options), None
    if (options.denominator == "common") != (options.other is not None):
        raise common.UsageError(
            "--denominator common and --other, the network that must be right on an image too, go together"
        )
    if options.other is not None:
        file = common.weights_of(options.other, options, "--other FILE.npz")
        other = common.load_chosen(file, options)
    stronger = options.algorithm not in attacks.ALGORITHMS
    if stronger and (options.arithmetic != "scaled" or options.attack_temperature != 1):
        raise common.UsageError(
            f"{options.algorithm} depends on neither --arithmetic nor --attack-temperature: leave them out"
        )
    T = trained_at(path)
    dataset = common.load_data(options.dataset)
    network = common.load_chosen(path, options)
    tested, shown = len(dataset.test_labels), options.show
    if shown is not None and not 0 <= shown < tested:
        raise common.UsageError(f"--show {shown}: {options.dataset} has test images 0 to {tested - 1}")
    sample = common.chosen_sample(options, dataset, common.DATASET_DEFAULTS[options.dataset]["images"])
    setting, store = common.setting(options, options.arithmetic), common.Store(options.out / "parts")
    if stronger:
        setting = dataclasses.replace(setting, skip_unchanged=True)
    told = {"weights": str(path), "trained_at": T, "ties": options.ties, "sample": sample.taken()}
    told |= {"algorithm": options.algorithm, "setting": vars(setting), "denominator": options.denominator}
    if other is not None:
        told["other"] = str(file)
    title = options.algorithm if stronger else f"Algorithm {options.algorithm}, {options.arithmetic}"

    def run(images, labels, indices):
        result = common.attack(network, images, labels, options.algorithm, setting, store, seed=options.seed)
        decisions = predict(network, result.adversarial).argmax(axis=1)
        return result, samples(indices, images, labels, result, decisions)

    result, made = run(sample.images, sample.labels, sample.indices)
    right = {"attacked": result.attacked}
    if other is not None:
        right["other"] = correct(other, sample.images, sample.labels)
    counted = common.counted(options.denominator, right, "attacked", len(sample.labels))
    found = summary(result, counted)
    pixels = made["pixels_changed"][result.succeeded & counted]
    common.tell_replaced(options.json, seed=options.seed, **told)
    common.write_json(
        options.json,
        common.environment(options)
        | told
        | found
        | {
            "median_pixels_of_successes": np.median(pixels) if len(pixels) else None,
            "moves_by_image": result.moves,
            "pixels_changed_by_image": made["pixels_changed"],
            "succeeded_by_image": result.succeeded,
            "attacked_by_image": result.attacked,
        },
    )
    kept = common.beside(options, f"{file_name(options)}.npz")
    save_npz(kept, made)
    low, high = found["success_interval"]
    print(f"{path}\n{title}, {sample}")
    print(f"  misclassified before, left out   {found['misclassified']}")
    print(f"  attacked                         {found['attacked']}")
    if options.denominator != "correct":
        print(f"  counted ({options.denominator:6})                 {found['counted']}")
    if found["counted"]:
        print(f"  succeeded within {setting.limit:3} moves        {found['succeeded']} = ", end="")
        print(f"{found['success_rate']:.1%}  (95 %: {low:.1%} to {high:.1%})")
    if len(pixels):
        print(f"  pixels changed by a success      {np.median(pixels):g} in the median, ", end="")
        print(f"{pixels.min()} to {pixels.max()}")
    if found["zero_score_share"] is not None and not stronger:
        print(f"  all scores exactly zero          {found['zero_score_share']:.1%}")
    print(f"  moves that changed nothing       {found['unchanged_moves']} of {found['moves']}")
    print(f"  passes                           {found['forwards']} forward, {found['backwards']} backward")
    print(f"  figures                          {options.json}")
    print(f"  samples                          {kept}")
    if shown is not None:
        images, labels = dataset.test_images[shown : shown + 1], dataset.test_labels[shown : shown + 1]
        _, one = run(images, labels, np.array([shown]))
        maps = None
        if not stronger and attacks.ALGORITHMS[options.algorithm].score == "gradient":
            maps = saliency_maps(network, images, labels, setting.T, setting.arithmetic)
        picture = kept.with_name(f"{kept.stem}_{shown}.png")
        draw(picture, one, maps, f"{common.chosen_name(options)}: {title}")
        print(f"  test image {shown:<22}{' '.join(outcome(one).split())}")
        print(f"  drawn                            {picture}")


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
