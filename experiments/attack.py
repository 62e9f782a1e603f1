"""Attack one network with one algorithm of the paper and say how often it succeeds.

    1       raise the pixels of the largest gradient                    one backward pass
    2       raise or lower by the largest |loss difference|             every pixel tried once
    3       raise or lower by the largest |gradient|                    one backward pass
    4       as 2, the differences computed again after every move
    author  raise by the largest signed loss difference, the attack behind the author's logs

--arithmetic plain is the author's float32, which underflows; scaled is float32 that does not.

Writes attack_NETWORK_ALGORITHM_ARITHMETIC.json.
"""

from pathlib import Path

from experiments import common
from minicnn import correct
from minicnn.paper import attacks
from minicnn.weights import trained_at


def results_name(options):
    """The JSON file of one attack: another for every network, algorithm and arithmetic."""
    return f"attack_{common.chosen_name(options)}_{options.algorithm}_{options.arithmetic}.json"


def file_or_name(text):
    """An argparse type: a weight file as a Path, or the name of a network."""
    return Path(text) if text.endswith(".npz") else common.network_name(text)


def main(options):
    path, other = common.chosen_weights(options), None
    if (options.denominator == "common") != (options.other is not None):
        raise common.UsageError(
            "--denominator common and --other, the network that must be right on an image too, go together"
        )
    if options.other is not None:
        file = options.other
        if not isinstance(file, Path):
            file = common.find_weights(common.of_seed(file, options.seed), options.dataset, options.out)
        other = common.load_network(file, options.device, options.ties)
    T = trained_at(path)
    dataset = common.load_data(options.dataset)
    network = common.load_network(path, options.device, options.ties)
    count = options.images or common.DATASET_DEFAULTS[options.dataset]["images"]
    images, labels = common.first_images(dataset, count)
    setting = common.setting(options, options.arithmetic)
    result = common.attack(network, images, labels, options.algorithm, setting, common.Store(options.out / "parts"))
    right = {"attacked": result.attacked}
    if other is not None:
        right["other"] = correct(other, images, labels)
    figures = attacks.summary(result, common.counted(options.denominator, right, "attacked", len(images)))
    common.write_json(
        options.json,
        common.environment(options)
        | {"weights": str(path), "trained_at": T, "ties": options.ties}
        | {"algorithm": options.algorithm, "setting": vars(setting), "denominator": options.denominator}
        | figures
        | {
            "moves_by_image": result.moves,
            "succeeded_by_image": result.succeeded,
            "attacked_by_image": result.attacked,
        },
    )
    low, high = figures["success_interval"]
    print(f"{path}, Algorithm {options.algorithm}, {options.arithmetic}, first {len(images)} test images")
    print(f"  misclassified before, left out   {figures['misclassified']}")
    print(f"  attacked                         {figures['attacked']}")
    if options.denominator != "correct":
        print(f"  counted ({options.denominator:6})                 {figures['counted']}")
    if figures["counted"]:
        print(f"  succeeded within {setting.limit:3} moves        {figures['succeeded']} = ", end="")
        print(f"{figures['success_rate']:.1%}  (95 %: {low:.1%} to {high:.1%})")
    if figures["zero_score_share"] is not None:
        print(f"  maps exactly zero                {figures['zero_score_share']:.1%}")
    print(f"  moves that changed nothing       {figures['unchanged_moves']} of {figures['moves']}")
    print(f"  passes                           {figures['forwards']} forward, {figures['backwards']} backward")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.network_arguments(parser)
    common.choice(parser, "--algorithm", attacks.ALGORITHMS, "1", "of the paper, or the author's own")
    common.choice(parser, "--arithmetic", attacks.ARITHMETICS, "scaled", "of the scores")
    common.attack_arguments(parser)
    common.denominator_argument(parser)
    meaning = "the second network of --denominator common"
    parser.add_argument("--other", type=file_or_name, metavar="NAME|FILE.npz", help=meaning)
    common.run(main, parser, results_name)
