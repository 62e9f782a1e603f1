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
from minicnn import attacks, networks


def other_weights(options):
    """The weight file of --other, a file or a network's name. Raises UsageError where it is needed and not there."""
    if options.other is None:
        raise common.UsageError("--denominator common needs --other: the network that must be right on an image too")
    return common.find_weights(options, options.other) if options.other in common.NETWORKS else options.other


def results_name(options):
    """The JSON file of one attack: another for every network, algorithm and arithmetic."""
    network = Path(options.weights).stem if options.weights else options.network
    return f"attack_{network}_{options.algorithm}_{options.arithmetic}.json"


def main(options):
    path = common.find_weights(options)
    other = common.load_network(other_weights(options), options) if options.denominator == "common" else None
    dataset = common.load_data(options)
    network = common.load_network(path, options)
    count = options.images or common.PROTOCOL[options.dataset]["images"]
    images, labels = dataset.test_images[:count], dataset.test_labels[:count]
    setting = common.setting(options, options.arithmetic)
    result = common.attack(network, images, labels, options.algorithm, setting, common.Store(options.out / "parts"))
    correct = {"attacked": result.attacked}
    if other is not None:
        correct["other"] = networks.predict(other, images).argmax(axis=1) == labels
    figures = attacks.summary(result, common.counted(options.denominator, correct, "attacked", len(images)))
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
    common.write_json(
        options.json,
        common.environment(options)
        | {"weights": str(path), "algorithm": options.algorithm, "setting": vars(setting), "ties": options.ties}
        | {"denominator": options.denominator}
        | figures
        | {
            "moves_by_image": result.moves,
            "succeeded_by_image": result.succeeded,
            "attacked_by_image": result.attacked,
        },
    )


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.network_arguments(parser)
    parser.add_argument("--algorithm", choices=list(attacks.ALGORITHMS), default="1", help="default: 1")
    parser.add_argument(
        "--arithmetic", choices=("plain", "scaled"), default="scaled", help="of the scores; default: scaled"
    )
    common.attack_arguments(parser)
    common.denominator_argument(parser)
    parser.add_argument("--other", metavar="NAME|FILE.npz", help="the second network of --denominator common")
    common.run(main, parser, results_name)
