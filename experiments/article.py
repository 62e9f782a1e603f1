"""The report of reproduce as a paper: the finding, the claim, the method, what is exact, the result, why, limits, and
after them the tables. What its sentences say follows from the figures."""

import json
import statistics

from experiments import adversarial_samples, claims, common, replay, sweep
from experiments.report import Parts, Picture, Section, Table
from minicnn.files import read_file
from minicnn.paper.networks import PAPER_NETWORKS
from minicnn.paper.saliency import ARITHMETICS

PAPER = (
    "Song (2017), Temperature of Output Layer rather than Distillation Technique Determines the Robustness of "
    "Convolutional Neural Networks against Adversarial Perturbations"
)
EPOCHS = 50  # of training, in the paper
THEIRS = "the author's "  # what the names of his networks begin with
IN_TEXT = ("arithmetics", "control", "stronger_attacks")  # parts of experiments.masking; others are among the tables


def article(results, judged, rates, pictures, folder, studied=()):
    """What report.write takes: title, Sections, footer.

    results: what is written as results.json; judged: of claims.judge; rates: name of a network -> of what -> Rate;
    pictures: name -> Picture; studied: heading -> part of experiments.masking -> its Section, first of these networks,
    then of others. Beside these it shows what other experiments have left in the folder. What is more of a Section
    stands among the tables.
    """
    trained_at, studied = f"T = {results['temperature']:g}", dict(studied)
    left, rows = dict(beside(folder, results["dataset"])), {name: found.row for name, found in judged.items()}

    def shown(*names):
        return [pictures[name] for name in names if name in pictures]

    def left_by(experiment):
        return [left[experiment]] if experiment in left else []

    main = [
        Section("The finding", Parts([finding(judged["factor"], rates, trained_at), *shown("finding")])),
        Section("The claim", Parts(claim(trained_at))),
        Section("The method", Parts([method(results)])),
        Section("What is exact", Parts(exactness(rates, rows["appendix_a"]))),
        *left_by("replay"),
        Section("The result", Parts(result(rows, trained_at, shown))),
        Section("Why", Parts(reason(results, rows["gradient"], trained_at))),
        *in_text(studied),
        *left_by("sweep"),
        *left_by("adversarial_samples"),
        Section("Limits", Parts([limits(results, bool(studied))])),
    ]
    samples = Parts(shown(*(name for prefix in ("", "temperature_", "author_") for name in of_arithmetics(prefix))))
    maps = Parts(shown(*(f"saliency_{name}" for name in PAPER_NETWORKS)))
    tables = [
        ("The paper's claims, one by one", Parts([claims.as_table(found.row for found in judged.values())])),
        ("The networks, over their seeds", Parts([means(rates), *shown(*results["runs"][0]["networks"])])),
        *((heading, found) for heading, found in (("Figures 1 and 2", samples), ("Saliency maps", maps)) if found),
        *among_tables(studied),
        *((section.heading, section.more) for section in left.values()),
    ]
    after = [
        Section("Figures and tables", Parts()),
        *(Section(*table, level=3, folded=True) for table in tables),
        Section("Settings", Parts([settings(results)])),
    ]
    machine = results["machine"]
    footer = (
        f"{results['command']}, {results['date']}, minicnn {results['versions']['minicnn']}, {machine['processor']}, "
        f"{machine['cores']} cores, {machine.get('gpu', machine['device'])}"
    )
    return f"Temperature and robustness on {results['dataset']}: the paper beside the truth", main + after, footer


SECTIONS = {"replay": replay.section, "sweep": sweep.section, "adversarial_samples": adversarial_samples.section}


def beside(folder, dataset):
    """(name of the experiment, its Section) of what others have left in the folder of this data set."""
    for name, section in SECTIONS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        try:
            found = json.loads(read_file(path).decode())
            if found["dataset"] != dataset:
                continue
            shown = section(found, folder)
            shown = shown._replace(more=Parts([*shown.more, f"{found['command']}, {found['date']}"]))
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
            shown = None
        if shown and all(map(is_there, shown.whole())):
            yield name, shown
        else:
            common.note(f"{path} is incomplete or was written by another version: it is left out of the report")


def is_there(part):
    """Whether a part of a Section can be shown: a Picture has its file, a Table its rows."""
    if isinstance(part, Picture):
        return part.path.is_file()
    return bool(part.rows) if isinstance(part, Table) else True


def of_arithmetics(prefix):
    return (f"figures_1_and_2_{prefix}{arithmetic}" for arithmetic in ARITHMETICS)


def in_text(studied):
    """The Section of what `studied` has of these networks, and in a sentence of others; none where it is empty."""
    for heading, ours in list(studied.items())[:1]:
        parts = Parts()
        for name in (part for part in IN_TEXT if part in ours):
            sentence, picture = ours[name].parts
            theirs = ((whose, found[name].parts[0]) for whose, found in studied.items() if whose != heading)
            parts += [sentence, *(f"{whose}: {told[0].lower()}{told[1:]}" for whose, told in theirs), picture]
        yield Section(heading, parts, level=3)


def among_tables(studied):
    """(heading, Parts) of what is not in_text."""
    for i, (heading, parts) in enumerate(studied.items()):
        for name, section in parts.items():
            yield f"{heading}: {section.heading}", section.more if i == 0 and name in IN_TEXT else section.whole()


def finding(factor, rates, trained_at):
    """The one sentence."""
    of = [
        rates[name][f"Algorithm 1, {arithmetic}"] for name in ("temperature", "standard") for arithmetic in ARITHMETICS
    ]
    if not all(rate.trials for rate in of):
        return "Not judged: no samples."
    truth, underflow = claims.robustness(*factor.comparisons.values(), trained_at)
    plain, scaled, standard_plain, standard_scaled = (rate.mean for rate in of)
    return (
        f"Against the network trained at {trained_at}, Algorithm 1 succeeds on {plain:.1%} of the images in float32 as "
        f"the paper's author computed, and on {scaled:.1%} in float32 that does not underflow; against the standard "
        f"network on {standard_plain:.1%} and {standard_scaled:.1%}. Without underflow {truth}{underflow}."
    )


def claim(trained_at):
    return [
        f"{PAPER}, trains one convolutional network in three ways: standard; at temperature, softmax(z / T) with "
        "T = 20 on hard labels; and distilled (Papernot et al. 2016), at T = 20 on the probabilities that the second "
        "one gives. All three are attacked at T = 1, one pixel a move. The abstract says that T = 20 reduces the "
        f"gradient by a factor of 10^{claims.GRADIENT} and the success of the attacks by a factor of {claims.FACTOR}, "
        "and that temperature does this, not distillation.",
        "Algorithm 1 raises the pixels with the largest gradients of the loss, one after the other. Algorithm 3 takes "
        "the largest absolute ones and raises or lowers by their sign. Algorithm 2 takes the loss difference of each "
        "move in place of the gradient, Algorithm 4 does so again after every move.",
        f"Here the networks called temperature and distilled are trained at {trained_at}. The paper does not have "
        "standard-distilled, at T = 1 on the probabilities of standard: it tells distillation from temperature.",
    ]


def method(results):
    epochs = sorted({n for run in results["runs"] for n in run["epochs"].values()})
    seeds, sample = len(results["runs"]), results["sample"]
    drawn = "the first ones" if sample["seed"] is None else f"drawn by seed {sample['seed']}"
    return (
        f"The networks are our own, {' to '.join(map(str, epochs))} epochs on {results['dataset']}, {seeds} "
        f"seed{'s' * (seeds > 1)}, and attacked on up to {sample['count']:,} test images, {drawn}. Everything is "
        "computed twice. Plain is the author's arithmetic: float32, p - y from a softmax that rounds to 0 and 1. "
        "Scaled is float32 too, with the same adjoint divided by 1 - p_k, the logarithm of which is carried beside the "
        "map: the same order and the same signs of the entries, and nothing underflows. Networks, images and decisions "
        "are the same in both."
    )


def exactness(rates, appendix):
    found = [f"{name} {of['accuracy'].share:.2%}" for name, of in rates.items() if name.startswith(THEIRS)]
    yield f"Appendix A of the paper prints one saliency map: {appendix.paper}. {appendix.verdict}"
    if found:
        yield f"Accuracy of the networks that he released, on all test images: {', '.join(found)}."


def result(told, trained_at, shown):
    standard = [told[f"algorithm_{algorithm}"] for algorithm in (1, 2, 3)]
    yield (
        f"Success of Algorithm 1 against the standard network and against the one trained at {trained_at}, on the same "
        f"images: {told['factor'].plain} as the author computed; {told['factor'].scaled} without underflow. Of the "
        f"attack that the author's logs come from: {told['author_factor'].plain}; without underflow "
        f"{told['author_factor'].scaled}."
    )
    yield from shown("success")
    yield "Against the standard network, beside what the paper says:"
    yield [f"{row.claim}. Paper: {row.paper}; plain: {row.plain}; scaled: {row.scaled}" for row in standard]
    yield (
        f"Temperature or distillation? Under Algorithm 1 {told['distillation'].plain} in plain arithmetic, "
        f"{told['distillation'].scaled} in scaled. {told['distillation'].verdict}"
    )
    yield f"Accuracy: {told['accuracy'].plain}. {told['accuracy'].verdict}"
    if told["refreshed"].plain:
        yield f"Scores refreshed after every move: {told['refreshed'].plain}; scaled: {told['refreshed'].scaled}."


def reason(results, gradient, trained_at):
    """What the gradient is made of, means over the seeds."""
    budgets = [run["networks"]["temperature"]["gradient"] for run in results["runs"]]
    zeros = statistics.fmean(b["plain"]["zero_share"] for b in budgets)
    terms = {t: statistics.fmean(b["terms"][t] for b in budgets) for t in ("temperature", "jacobian", "saturation")}
    return [
        "The gradient of the loss reaches the pixels through p - y. Where a network is so sure at T = 1 that p_k "
        "rounds to 1 in float32, p_k - 1 to 0, and the other p_j to 0 as well, the map is 0 everywhere: on the network "
        f"trained at {trained_at} that of {zeros:.1%} of the images. Algorithm 1 then takes the first pixel, the "
        "second, the third, and paints the top rows. A gradient that is small, but not 0, would not stop it: only the "
        "order of the entries counts.",
        f"{gradient.verdict} Of log10 of this ratio, on average 1/T contributes {terms['temperature']:+.1f}, the "
        f"Jacobian of the logits {terms['jacobian']:+.1f}, and saturation, 1 - p_k, {terms['saturation']:+.1f}.",
    ]


def limits(results, stronger):
    """What the figures do not say, as points."""
    seeds, images = len(results["runs"]), results["setting"]["images"]
    epochs = max(n for run in results["runs"] for n in run["epochs"].values())
    found = [
        f"{seeds} seeds of each network: what is said of training rests on {seeds} differences, and only what is large "
        "beside their spread is significant."
        if seeds > 1
        else "One seed: what is said of networks is true of these, not of a way of training.",
        "Algorithms 1 to 3 follow one map of the unchanged image. Their success is a lower bound of what can be found"
        + ("; stronger attacks are told of above." if stronger else "; --masking adds stronger attacks."),
        f"Algorithm 2 was run on {images['2']:,} images and Algorithm 4 on {images['4']:,}, Algorithms 1 and 3 on "
        f"{images['1']:,}.",
        "What the paper's 72 % and more than 95 % were measured on is not released.",
    ]
    if results["dataset"] != "mnist":
        found.append("The digits are 1,797 images of 8 x 8 pixels, enlarged; the paper's figures are of MNIST.")
    if epochs < EPOCHS:
        found.append(f"At most {epochs} epochs of training, where the paper has {EPOCHS}.")
    return found


def mean(rate):
    """Of a Rate, as text."""
    if not rate.trials:
        return "no samples"
    return f"{rate.mean:.2%}" + f" +- {rate.spread:.2%}" * (len(rate.by_seed) > 1)


def means(rates):
    """Means and, of several seeds, standard deviations, as a Table."""
    return Table([{"network": name} | {of: mean(rate) for of, rate in row.items()} for name, row in rates.items()])


def settings(results):
    setting = results["setting"]
    names = {"author": "the author's own attack"} | {a: f"Algorithm {a}" for a in "1234"}
    counts = ", ".join(f"{setting['images'][a]} for {name}" for a, name in sorted(names.items()))
    compared = sum(map(len, results["comparisons"].values()))
    return [
        f"Attacks make at most {setting['limit']} moves, to 0 or {setting['maximum']:g}, against the loss at "
        f"T = {setting['T']:g}; equal maxima of a max-pool: gradient to {setting['ties']}.",
        f"Test images: {counts}. The denominator of success rates: {common.DENOMINATORS[results['denominator']]}.",
        "Two networks or attacks are compared on the images that count for both, by McNemar's exact test; two ways of "
        "training by Student's t of the differences of their seeds, where there are several. All p are adjusted for "
        f"the {compared} comparisons of the table of claims (Holm). Intervals are 95 %: Wilson's of a rate, wider by "
        "as much as its seeds differ more than samples do, Newcombe's of a difference, Bonett and Price's of a factor.",
    ]
