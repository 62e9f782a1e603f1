"""Why temperature seemed to work: is it robustness, or does float32 hide the gradient (gradient masking)?

Seven parts, each a function from networks, images and options to plain numbers:

    arithmetics        the same weights under plain float32, plain float64, scaled float32, and the loss at z / T
    control            the last layer times s: the same decisions, another scale of the logits
    gradient_budget    the size of the gradient split into 1/T, Jacobian and saturation, beside the paper's 10^10
    two_by_two_by_two  {training T} x {distilled or not} x {T of the attacked loss}
    success_by_pixels  success against moved pixels, up to all, beside random moves and transfer from `standard`
    verdict            the published signs of gradient masking, pass or fail
    cost               passes counted per algorithm, beside the paper's O(N), O(N + M), O(N^2)

Networks come from the results folder, are trained where they are missing, or are named with --weights. Attacks take
the first 100 digits or 300 images of MNIST and gradient_budget all test images, unless --images says otherwise. Every
attack is kept in DIR/parts: a run that was stopped goes on from there. Writes masking.json, masking_budget.csv and PNG
figures.
"""

import argparse
import dataclasses
import math

import numpy as np

from experiments import common, masking_show
from minicnn import attacks, networks, training
from minicnn.layers import MaxPool2D
from minicnn.saliency import saliency_maps

SCALES = (1, 2, 5, 10, 15, 20, 50)
PAPER_LOG10_RATIO = -10.0  # abstract: the gradient falls "by a factor of 10^10 at T = 20"

# The networks of the 2 x 2 x 2 table: (trained at temperature, on a teacher's labels).
TABLE = {
    "standard": (False, False),
    "standard-distilled": (False, True),
    "temperature": (True, False),
    "distilled": (True, True),
}
PAPER_NETWORKS = ("standard", "temperature", "distilled")

ATTACKED = {"digits": 100, "mnist": 300}  # images of the parts that attack
COST_IMAGES = 2

# The attack behind the verdict, and the same with its map computed again after every move.
ONE_STEP = "3"
ITERATIVE = dataclasses.replace(attacks.ALGORITHMS[ONE_STEP], refresh=True)

# Passes of an algorithm as printed, for N pixels and M moves: forward, backward, and what the paper says they are.
COSTS = {
    "1": (lambda N, M: M + 1, 1, "O(N)"),
    "2": (lambda N, M: 2 * N + 1 + M, 0, "O(N + M)"),
    "3": (lambda N, M: M + 1, 1, "O(N)"),
    "4": (lambda N, M: M * (2 * N + 2), 0, "O(N^2)"),
}


# What the parts share


def rescaled(network, scale=1.0, dtype=None, ties=None):
    """A copy of a paper_cnn with logits `scale` times as large (dense3's weights and biases); dtype and tie rule are
    its own unless others are given."""
    first = next(iter(network.parameters().values()))
    ties = ties or next(layer.ties for layer in network.layers.values() if isinstance(layer, MaxPool2D))
    weights = networks.get_weights(network)
    for name in ("dense3_W", "dense3_b"):
        weights[name] = weights[name] * weights[name].dtype.type(scale)
    copy = networks.paper_cnn(ties=ties, dtype=dtype or first.dtype).to(common.network_device(network))
    return networks.set_weights(copy, weights)


def _kept(options, network, images, labels, what, compute):
    """The arrays of compute(), from the store where they are there; `what` says, beside network and images, which."""
    key = {
        "masking": what,
        "weights": common.digest(*networks.get_weights(network).values()),
        "device": common.network_device(network),
        "ties": [layer.ties for layer in network.layers.values() if isinstance(layer, MaxPool2D)],
        "images": common.digest(images, labels),
        "code": common.digest_of_sources(__file__),
    }
    return common.Store(options.out / "parts").get(key, compute)


def _attack(network, images, labels, algorithm, setting, options):
    return common.attack(network, images, labels, algorithm, setting, common.Store(options.out / "parts"))


def painted_raster_order(images, result, algorithm, setting):
    """Failed attacks that did no more than paint the image from its first pixel on, (N,) bool.

    A map of zeros has no largest entry: Algorithm 1 then raises, Algorithm 3 lowers, the first `limit` pixels in raster
    order. images (N, 1, H, W) are those attacked, in `result` is what was left of them.
    """
    value = setting.minimum if attacks.ALGORITHMS[algorithm].lowers else setting.maximum
    before, after = images.reshape(len(images), -1), result.adversarial.reshape(len(images), -1)
    counted = before != value if setting.skip_unchanged else np.ones(before.shape, bool)
    painted = np.where(np.cumsum(counted, axis=1) <= setting.limit, before.dtype.type(value), before)
    seen = result.zero_scores | (before != after).any(axis=1)
    return result.attacked & ~result.succeeded & seen & (after == painted).all(axis=1)


def outcome(network, images, labels, algorithm, setting, options):
    """Run an attack (or take it from the store): attacks.summary, and how its failures came about."""
    result = _attack(network, images, labels, algorithm, setting, options)
    failed = result.attacked & ~result.succeeded
    return attacks.summary(result) | {
        "failed": int(failed.sum()),
        "failed_with_a_map_of_zeros": int((failed & result.zero_scores).sum()),
        "failed_painting_raster_order": int(painted_raster_order(images, result, algorithm, setting).sum()),
    }


# The parts. images (N, 1, H, W) and labels (N,) are host arrays; options are those of this module's command line.


def arithmetics(network, images, labels, options):
    """Algorithms 1 and 3 on the same weights, their map computed four ways: algorithm -> variant -> outcome."""
    plain, scaled = common.setting(options, "plain"), common.setting(options, "scaled")
    variants = {
        "plain_float32": (network, plain),
        "plain_float64": (rescaled(network, dtype=np.float64), plain),
        "scaled_float32": (network, scaled),
        "plain_float32_at_T": (network, dataclasses.replace(plain, T=options.temperature)),
    }
    return {
        algorithm: {
            name: outcome(attacked, images, labels, algorithm, setting, options)
            for name, (attacked, setting) in variants.items()
        }
        for algorithm in ("1", "3")
    }


def control(network, images, labels, options, tested=None):
    """Algorithm 1 on the network with logits s times as large, one row per s.

    Multiplying all logits by s > 0 changes no decision and, in exact arithmetic, hardly the map's order; what changes
    is where float32 ends. `tested`: images on which decisions are compared, default `images`. closest_call: among the
    decisions that differ, the largest gap between first and second logit at s = 1 relative to the first, None for none;
    a tie to rounding is near 1e-7.
    """
    tested = images if tested is None else tested
    logits = networks.predict(network, tested)
    rows = []
    for s in SCALES:
        copy = rescaled(network, s)
        differ = networks.predict(copy, tested).argmax(axis=1) != logits.argmax(axis=1)
        second, first = np.sort(logits[differ], axis=1)[:, -2:].T
        rows.append(
            {
                "s": s,
                "decisions_compared": len(tested),
                "decisions_that_differ": int(differ.sum()),
                "closest_call": float(((first - second) / np.abs(first)).max()) if differ.any() else None,
            }
            | {
                arithmetic: outcome(copy, images, labels, "1", common.setting(options, arithmetic), options)
                for arithmetic in ("plain", "scaled")
            }
        )
    return rows


def map_sizes(network, images, labels, T, options):
    """log10 of the size of each image's map and its three terms, a dict of arrays (N,).

    The size is max |dL/dpixel|. With a the adjoint of scaled arithmetic, the map is (1 / T) (1 - p_k) J^T a, so

        log10 size = temperature + saturation + jacobian = -log10 T + log10(1 - p_k) + log10 max |J^T a|

    plain_size: log10 of what plain float32 sees, -inf for a map of zeros. logits: (N, K).
    """

    def compute():
        found = saliency_maps(network, images, labels, T, "scaled")
        return {
            "temperature": np.full(len(images), -math.log10(T)),
            "saturation": found.log10_scale.astype(np.float64) + math.log10(T),
            "jacobian": np.log10(np.abs(found.maps).max(axis=(1, 2)).astype(np.float64)),
            "size": found.log10_size(),
            "plain_size": saliency_maps(network, images, labels, T, "plain").log10_size(),
            "logits": found.logits,
        }

    return _kept(options, network, images, labels, {"map_sizes": T}, compute)


def median_interval(values):
    """A 95 % interval of the median, from the order of the values alone (Conover 1999, section 3.2): (low, high)."""
    ordered, n = np.sort(values), len(values)
    reach = 1.959963984540054 * math.sqrt(n) / 2
    return float(ordered[max(0, math.floor(n / 2 - reach))]), float(ordered[min(n - 1, math.ceil(n / 2 + reach))])


def log10_mean(exponents):
    """log10 of the mean of 10^exponents, which may be far below the smallest float; -inf where all are."""
    largest = np.max(exponents)
    return float(largest + np.log10(np.mean(10.0 ** (exponents - largest)))) if np.isfinite(largest) else -math.inf


def _correlation(a, b):
    """Pearson's, or None where one of the two does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else None


def _difference(a, b):
    """a - b of two exponents, or None where both are those of zeros."""
    return None if a == b == -math.inf else float(a - b)


def log10_predicted(logits, labels, T):
    """log10 of T exp(-(T - 1) m), m the margin u_k - max_{j != k} u_j of u = z / T, z the T-trained network's logits.

    What the gradient is expected to be at test (T = 1), relative to that of a T = 1 network whose logits were u.
    """
    rows = np.arange(len(logits))
    others = logits.astype(np.float64)
    others[rows, labels] = -np.inf
    m = (logits[rows, labels] - others.max(axis=1)) / T
    return math.log10(T) - (T - 1) * m / math.log(10)


def gradient_budget(network, reference, images, labels, options, T=None):
    """By how much `network`'s gradient is smaller than `reference`'s, image by image, and what makes it smaller.

    network is attacked at T (default: the attack temperature), reference at the attack temperature, both on the images
    that both classify correctly. All ratios are log10(size on network / size on reference), sizes as in map_sizes.
    terms: mean of each term's difference; they sum to mean_of_log10. by_image: the arrays that all of it is from.
    measured: against plain float64 maps, on the images where those have digits (1 - p_k above 10^-8 in both).
    prediction: T_training exp(-(T_training - 1) m) against the same network's loss at z / T_training, and `reference`.
    Raises UsageError where no image is left.
    """
    base = options.attack_temperature
    T = base if T is None else T
    ours, theirs = (map_sizes(n, images, labels, t, options) for n, t in ((network, T), (reference, base)))
    both = (ours["logits"].argmax(axis=1) == labels) & (theirs["logits"].argmax(axis=1) == labels)
    difference = {name: (ours[name] - theirs[name])[both] for name in ("size", "temperature", "saturation", "jacobian")}
    if not both.any():
        raise common.UsageError(
            f"gradients cannot be compared: of {len(images)} images both networks see none correctly"
        )
    ratio = difference["size"]
    with np.errstate(invalid="ignore"):
        seen = (ours["plain_size"] - theirs["plain_size"])[both]
    seen = seen[np.isfinite(seen)]
    figures = {
        "T": T,
        "reference_T": base,
        "images": int(both.sum()),
        "terms": {name: float(difference[name].mean()) for name in ("temperature", "jacobian", "saturation")},
        "largest_residual": float(np.abs(ratio - sum(v for k, v in difference.items() if k != "size")).max()),
        "mean_of_log10": float(ratio.mean()),
        "median": float(np.median(ratio)),
        "median_interval": median_interval(ratio),
        "log10_of_mean": log10_mean(ratio),
        "log10_of_ratio_of_means": log10_mean(ours["size"][both]) - log10_mean(theirs["size"][both]),
        "quantiles": {str(q): float(np.quantile(ratio, q / 100)) for q in (0, 5, 25, 50, 75, 95, 100)},
        "share_smaller_than_the_paper_says": float((ratio < PAPER_LOG10_RATIO).mean()),
        "plain": {
            "zero_share": float((ours["plain_size"][both] == -np.inf).mean()),
            "reference_zero_share": float((theirs["plain_size"][both] == -np.inf).mean()),
            "log10_of_ratio_of_means": _difference(
                log10_mean(ours["plain_size"][both]), log10_mean(theirs["plain_size"][both])
            ),
            "median": _difference(np.median(ours["plain_size"][both]), np.median(theirs["plain_size"][both])),
            "median_where_not_zero": float(np.median(seen)) if len(seen) else None,
        },
        "measured": _measured_in_float64(network, reference, images, labels, T, base, both, ours, theirs),
        "by_image": {"image": np.flatnonzero(both), "ratio": ratio}
        | {name: difference[name] for name in ("temperature", "jacobian", "saturation")},
    }
    if T == 1 and base == 1:
        trained_T = options.temperature
        predicted = log10_predicted(ours["logits"], labels, trained_T)[both]
        at_T = map_sizes(network, images, labels, trained_T, options)
        same = (ours["size"] - at_T["size"])[both]
        figures["by_image"] |= {"predicted": predicted, "same_network": same}
        figures["prediction"] = {
            "T": trained_T,
            "median": float(np.median(predicted)),
            "same_network_median": float(np.median(same)),
            "same_network_median_difference": float(np.median(np.abs(same - predicted))),
            "same_network_largest_difference": float(np.abs(same - predicted).max()),
            "reference_median_difference": float(np.median(np.abs(ratio - predicted))),
            "reference_correlation": _correlation(ratio, predicted),
        }
    return figures


def _measured_in_float64(network, reference, images, labels, T, base, both, ours, theirs):
    """The ratio without the split: from plain maps in float64, on the images where p_k - 1 keeps its digits there."""
    visible = both & (ours["saturation"] > -8) & (theirs["saturation"] > -8)
    if not visible.any():
        return {"images": 0, "median_difference": None, "largest_difference": None}
    sizes = [
        saliency_maps(rescaled(n, dtype=np.float64), images[visible], labels[visible], t, "plain").log10_size()
        for n, t in ((network, T), (reference, base))
    ]
    off = np.abs(sizes[0] - sizes[1] - (ours["size"] - theirs["size"])[visible])
    return {
        "images": int(visible.sum()),
        "median_difference": float(np.median(off)),
        "largest_difference": float(off.max()),
    }


def two_by_two_by_two(trained, images, labels, options):
    """Algorithm 1 on every network of TABLE that is in `trained` (name -> network), its loss at T = 1 and at T."""
    rows = []
    for name, (at_T, distilled) in TABLE.items():
        if name not in trained:
            continue
        for test_T in (1.0, options.temperature):
            settings = {
                arithmetic: dataclasses.replace(common.setting(options, arithmetic), T=test_T)
                for arithmetic in ("plain", "scaled")
            }
            rows.append(
                {
                    "network": name,
                    "train_T": options.temperature if at_T else 1.0,
                    "distilled": distilled,
                    "test_T": test_T,
                }
                | {
                    arithmetic: outcome(trained[name], images, labels, "1", setting, options)
                    for arithmetic, setting in settings.items()
                }
            )
    return rows


def move_in_order(network, images, labels, order, values, setting):
    """Set pixels to values in an order found elsewhere, until the decision differs: an attack without maps of its own.

    order (N, P): pixels in raster numbers, values (N, P): what each is set to. Returns attacked (N,), classified
    correctly before, and moves (N,), how many it took, 0 where setting.limit were not enough.
    """
    moved = np.array(images, order="C")
    pixels = moved.reshape(len(images), -1)
    attacked = networks.predict(network, images).argmax(axis=1) == labels
    moves = np.zeros(len(images), int)
    active = np.flatnonzero(attacked)
    for move in range(min(setting.limit, order.shape[1])):
        if len(active) == 0:
            break
        chosen, value = order[active, move], values[active, move].astype(pixels.dtype)
        changed = pixels[active, chosen] != value
        pixels[active, chosen] = value
        tried = active[changed]
        if len(tried):
            fell = networks.predict(network, moved[tried]).argmax(axis=1) != labels[tried]
            moves[tried[fell]] = move + 1
            active = active[moves[active] == 0]
    return {"attacked": attacked, "moves": moves}


def moves_of_algorithm_3(maps, images, setting):
    """Order and values (N, P) of the moves that Algorithm 3 makes on saliency maps (N, P)."""
    values, best = np.where(maps > 0, setting.maximum, setting.minimum), np.abs(maps)
    if setting.skip_unchanged:
        best = np.where(images.reshape(best.shape) == values.astype(images.dtype), -np.inf, best)
    order = np.argsort(-best, axis=1, kind="stable")
    return order, np.take_along_axis(values, order, axis=1)


def _curve(attacked, moves, pixels):
    """Of how many attacks, how many have succeeded after 0, 1, ... `pixels` moves; moves is 0 for a failed one."""
    counts = np.bincount(moves[moves > 0], minlength=pixels + 1)
    return {"attacked": int(attacked.sum()), "succeeded": np.cumsum(counts).tolist()}


def success_by_pixels(network, reference, images, labels, options, pixels=None):
    """Successes after 0 to `pixels` moves, all of an image by default: name -> {attacked, succeeded: a list of counts}.

    algorithm_1_plain, algorithm_1_scaled, algorithm_3_plain, algorithm_3_scaled: on the network itself. Beside them, to
    be compared with Algorithm 3: random, pixels in an order drawn from the seed, each raised or lowered by a coin;
    transfer, the moves of Algorithm 3 (scaled) on `reference`, which knows nothing of the network; absent where both
    are the same. The decision is looked at after every move in all.
    """
    pixels = images[0].size if pixels is None else pixels
    curves = {}
    for algorithm in ("1", "3"):
        for arithmetic in ("plain", "scaled"):
            setting = dataclasses.replace(common.setting(options, arithmetic), limit=pixels)
            result = _attack(network, images, labels, algorithm, setting, options)
            moves = np.where(result.succeeded, result.moves, 0)
            curves[f"algorithm_{algorithm}_{arithmetic}"] = _curve(result.attacked, moves, pixels)
    setting = dataclasses.replace(common.setting(options, "scaled"), limit=pixels)
    rng = np.random.default_rng(options.seed)
    maps = {"random": lambda: rng.uniform(-1, 1, (len(images), images[0].size))}
    if reference is not network:
        maps["transfer"] = lambda: saliency_maps(reference, images, labels, setting.T).maps.reshape(len(images), -1)
    for name, found_maps in maps.items():
        source = options.seed if name == "random" else common.digest(*networks.get_weights(reference).values())

        def compute(found_maps=found_maps):
            order, values = moves_of_algorithm_3(found_maps(), images, setting)
            return move_in_order(network, images, labels, order, values, setting)

        found = _kept(options, network, images, labels, {name: source, "setting": vars(setting)}, compute)
        curves[name] = _curve(found["attacked"], found["moves"], pixels)
    return curves


def iterated(network, images, labels, setting, options):
    """ITERATIVE on the images: (succeeded, attacked)."""
    progress = common.Progress(f"iterative, {setting.arithmetic}", setting.limit)

    def compute():
        attack = attacks.attack(
            network, images, labels, ITERATIVE, setting, lambda move, limit, active: progress(move, f"({active} left)")
        )
        return vars(attack)

    found = _kept(options, network, images, labels, {"attack": vars(ITERATIVE), "setting": vars(setting)}, compute)
    progress.close()
    return int(found["succeeded"].sum()), int(found["attacked"].sum())


def verdict(network, reference, images, labels, options):
    """The published signs of gradient masking, for plain and for scaled arithmetic: arithmetic -> judge()."""
    curves = success_by_pixels(network, reference, images, labels, options)

    def at(name, move):
        return curves[name]["succeeded"][min(move, images[0].size)], curves[name]["attacked"]

    found = {}
    for arithmetic in ("plain", "scaled"):
        own = f"algorithm_{ONE_STEP}_{arithmetic}"
        found[arithmetic] = judge(
            one_step=at(own, options.limit),
            iterative=iterated(network, images, labels, common.setting(options, arithmetic), options),
            transfer=at("transfer", options.limit) if "transfer" in curves else None,
            random=at("random", options.limit),
            unbounded=at(own, images[0].size),
        )
    return found


def judge(one_step, iterative, transfer, random, unbounded):
    """What pairs (succeeded, attacked) say of gradient masking, after Athalye, Carlini and Wagner (2018, section 3.1)
    and Carlini et al. (2019, section 4).

    Against a network whose gradients are useful an iterative attack beats one step, an attack with the gradient beats
    transfer and random moves, and an unlimited budget always succeeds. Each is a check. It passes where the figures
    show it: Wilson 95 % intervals apart, or nothing left to succeed on; otherwise it fails, and contradicts useful
    gradients where the figures show the reverse. transfer may be None. All attacked counts are above 0. Their fifth
    sign, success that does not grow with the budget, cannot occur where successes are counted cumulatively; and with
    every pixel moved little of the digit is left, so that the check of an unlimited budget is easily passed.
    """
    checks = [
        _above("iterative against one step", "iterative", iterative, "one step", one_step),
        _above("white box against transfer", "white box", one_step, "transfer", transfer) if transfer else None,
        _above("gradient against random moves", "gradient", one_step, "random moves", random),
        {
            "check": "unlimited budget",
            "passed": unbounded[0] == unbounded[1],
            "contradicts": unbounded[0] < unbounded[1],
            "figures": {"every pixel": _rate(unbounded)},
            "ground": f"every pixel may move: {_share(unbounded)}",
        },
    ]
    checks = [check for check in checks if check]
    failed = [check for check in checks if not check["passed"]]
    against = [check["check"] for check in failed if check["contradicts"]]
    success = f"Algorithm {ONE_STEP}'s success rate of {one_step[0] / one_step[1]:.1%}"
    if against:
        contradict = "contradicts" if len(against) == 1 else "contradict"
        sentence = (
            f"{len(against)} of {len(checks)} checks {contradict} useful gradients ({'; '.join(against)}): {success} "
            "measures no robustness."
        )
    elif failed:
        names = "; ".join(check["check"] for check in failed)
        sentence = (
            f"{len(failed)} of {len(checks)} checks show nothing on so few images ({names}): {success} is not shown to "
            "measure robustness."
        )
    else:
        sentence = f"All {len(checks)} checks pass: no sign of gradient masking behind {success}."
    return {"checks": checks, "failed": len(failed), "sentence": sentence}


ENOUGH = 0.9  # where all attacks succeed, the lower bound of their rate that leaves nothing to be better at


def _above(title, name, ours, other_name, others):
    """The check that `ours` succeeds more often than `others`."""
    (low, high), (other_low, other_high) = attacks.wilson_interval(*ours), attacks.wilson_interval(*others)
    if low > other_high:
        relation = "above"
    elif high < other_low:
        relation = "below"
    elif ours[1] == ours[0] and low > ENOUGH:
        relation = "as high as can be beside"
    else:
        relation = "not told apart from"
    return {
        "check": title,
        "passed": relation in ("above", "as high as can be beside"),
        "contradicts": relation == "below",
        "figures": {name: _rate(ours), other_name: _rate(others)},
        "ground": f"{name} {_share(ours)}, {relation} {other_name} {_share(others)}",
    }


def _rate(pair):
    return {"succeeded": pair[0], "attacked": pair[1], "interval": attacks.wilson_interval(*pair)}


def _share(pair):
    low, high = attacks.wilson_interval(*pair)
    return f"{pair[0]} of {pair[1]} ({low:.1%} to {high:.1%})"


def cost(network, images, labels, options):
    """Passes that each algorithm spends on an image, counted and at most: algorithm -> figures.

    On the first COST_IMAGES that the network classifies correctly, in scaled arithmetic, which succeeds early. Not
    counted: the pass that finds out whether a sample is classified correctly (Definition 1). A move that changes
    nothing, such as lowering a black pixel, is known to change nothing and costs no pass: counted is less than at most.
    """
    right = np.flatnonzero(networks.predict(network, images).argmax(axis=1) == labels)[:COST_IMAGES]
    setting = common.setting(options, "scaled")
    N, M = images[0].size, options.limit
    figures = {}
    for algorithm, (forwards, backwards, claim) in COSTS.items():
        found = attacks.summary(_attack(network, images[right], labels[right], algorithm, setting, options))
        figures[algorithm] = {
            "images": len(right),
            "mean_moves": found["moves"] / len(right),
            "forwards": found["forwards"] / len(right) - 1,
            "backwards": found["backwards"] / len(right),
            "forwards_at_most": forwards(N, M),
            "backwards_at_most": backwards,
            "paper": claim,
        }
    return figures


# The command


NEEDED = {"control": ("standard",), "cost": ("standard",), "two_by_two_by_two": tuple(TABLE)}  # others PAPER_NETWORKS
PARTS = ("arithmetics", "control", "gradient_budget", "two_by_two_by_two", "success_by_pixels", "verdict", "cost")


def run_part(part, trained, dataset, options):
    """One of PARTS on name -> network and the first test images: the dict or list that its function returns, by network
    where it is about one. Attacks take options.images or ATTACKED images, gradient_budget options.images or all.

    Raises UsageError where one of the networks is right on no image: there is nothing to attack.
    """
    count = options.images or ATTACKED[options.dataset]
    images, labels = dataset.test_images[:count], dataset.test_labels[:count]
    for name, network in trained.items():
        if not (networks.predict(network, images).argmax(axis=1) == labels).any():
            raise common.UsageError(
                f"{name} classifies none of the first {len(images)} test images correctly: train it"
            )
    standard = trained["standard"]
    paper = {name: trained[name] for name in PAPER_NETWORKS if name in trained}
    others = {name: network for name, network in paper.items() if name != "standard"}
    if part == "arithmetics":
        return {name: arithmetics(network, images, labels, options) for name, network in paper.items()}
    if part == "control":
        return control(standard, images, labels, options, dataset.test_images)
    if part == "gradient_budget":
        if not others:
            raise common.UsageError("gradient_budget compares with standard: name temperature or distilled beside it")
        every = dataset.test_images[: options.images], dataset.test_labels[: options.images]
        return {
            name: {
                f"test_T_{T:g}": gradient_budget(network, standard, *every, options, T)
                for T in dict.fromkeys((options.attack_temperature, options.temperature))
            }
            for name, network in others.items()
        }
    if part == "two_by_two_by_two":
        return two_by_two_by_two(trained, images, labels, options)
    if part == "success_by_pixels":
        return {name: success_by_pixels(network, standard, images, labels, options) for name, network in paper.items()}
    if part == "verdict":
        return {name: verdict(network, standard, images, labels, options) for name, network in paper.items()}
    return cost(standard, images, labels, options)


def study(parts, trained, dataset, options):
    """Run, print and draw each part; yields (part, its figures) as it is done."""
    for part in parts:
        figures = run_part(part, trained, dataset, options)
        masking_show.show(part, figures, options)
        yield part, figures


def find_or_train(parts, options, dataset):
    """Name -> network: those of TABLE that the parts need, found in the results folder or trained there."""
    found, needed = {}, {name for part in parts for name in NEEDED.get(part, PAPER_NETWORKS)}
    for name in (name for name in TABLE if name in needed):
        try:
            path = common.find_weights(options, name)
            print(f"{name}: {path}", flush=True)
        except common.UsageError:
            path = options.out / f"{name}.npz"
            print(f"{name}: to be trained, {common.recipe('distilled', options).epochs} epochs", flush=True)
            if name in common.NETWORKS:
                common.train(name, options, dataset)
            else:
                networks.save_weights(train_standard_distilled(found["standard"], options, dataset), path)
        found[name] = common.load_network(path, options)
    return found


def train_standard_distilled(teacher, options, dataset):
    """The network that the paper has not: `distilled` with T = 1 throughout, on the labels of `standard`."""
    name = "standard-distilled"
    recipe = dataclasses.replace(common.recipe("distilled", options), temperature=1.0)
    dropout = options.seed if options.teacher_dropout == "on" else None
    labels = training.distilled_labels(teacher, dataset.train_images, recipe.temperature, dropout)
    network = networks.paper_cnn(seed=options.seed).to(options.device)
    progress = common.Progress(f"{name}, T = 1, epochs", recipe.epochs)
    training.fit(
        network,
        dataset.train_images,
        labels,
        recipe,
        {"test": (dataset.test_images, dataset.test_labels)},
        checkpoint=options.out / f"{name}.checkpoint.npz",
        on_epoch=lambda row: progress(row["epoch"], f"test {row['test_accuracy']:.2%}"),
        graph=not options.no_graph,
    )
    progress.close()
    return network


def named_weights(text):
    """NAME=FILE as (name, path)."""
    name, _, path = text.partition("=")
    if name not in TABLE or not path:
        raise argparse.ArgumentTypeError(f"must be NAME=FILE.npz with NAME one of {', '.join(TABLE)}, got {text!r}")
    return name, path


def main(options):
    if options.weights and "standard" not in dict(options.weights):
        raise common.UsageError("--weights must name standard=FILE.npz: the other networks are measured against it")
    dataset = common.load_data(options)
    if options.weights:
        trained = {name: common.load_network(path, options) for name, path in options.weights}
    else:
        trained = find_or_train(options.parts, options, dataset)
    results = common.environment(options) | {
        "weights": {name: common.digest(*networks.get_weights(n).values()) for name, n in trained.items()},
        "ties": options.ties,
        "limit": options.limit,
    }
    for part, figures in study(options.parts, trained, dataset, options):
        results[part] = figures
        common.write_json(options.json, masking_show.without_images(results))


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="default: all seven")
    parser.add_argument(
        "--weights", nargs="+", type=named_weights, metavar="NAME=FILE.npz", help="these networks and no others"
    )
    common.training_arguments(parser)
    common.attack_arguments(parser, "100 of digits, 300 of mnist; all for gradient_budget")
    parser.set_defaults(network=None)
    common.run(main, parser)
