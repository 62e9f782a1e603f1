"""The table of the paper's claims: what it says, what the author's logs say, what is measured here, and a verdict in
one sentence that is computed from the measured intervals. As Markdown and as one self-contained HTML page."""

import base64
import html
import math
import statistics
from typing import NamedTuple

from minicnn.attacks import wilson_interval

# The paper's own statements (abstract, section 3.1, Appendix A) and what the author's released logs hold.
PAPER = {"algorithm_1": 0.72, "algorithms_2_and_3": 0.95, "gradient_log10": 10, "success_factor": 10}
APPENDIX_A = {"index": 2659, "mean": "-2.2915e-08", "max": "9.78318e-05", "moves": 12}
LOGS = {
    "accuracy": "T = 20: 99.34 %, distilled: 99.07 %",
    "algorithm_1": "14 of 28 images",
    "gradient": "26 of 28 maps exactly 0",
    "algorithm_1_on_both": "14 of 28 images; on the other network 26 of 28 maps exactly 0",
    "author_attack": "39.0 % and 1.3 % (distilled); 35.7 % and 0.8 % (T = 20)",
    "distillation": "1.3 % (distilled), 0.8 % (T = 20)",
}


def standard_deviation(values):
    """Of a sample, 0 for less than two values."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


class Rate(NamedTuple):
    """Successes of trials, over all seeds together; by_seed: the rate of each.

    Every seed's network meets the same images, so seeds add no samples: the interval is that of one mean seed, of as
    many trials fewer as the rates of the seeds vary more than rates of such trials do.
    """

    successes: int
    trials: int
    by_seed: tuple = ()

    @property
    def share(self):
        return self.successes / self.trials if self.trials else math.nan

    @property
    def interval(self):
        trials = self.trials / max(1, len(self.by_seed))
        binomial_variance = self.share * (1 - self.share) / trials if trials else 0
        if binomial_variance:
            trials /= max(1, self.spread**2 / binomial_variance)
        return wilson_interval(self.share * trials if trials else 0, trials)

    @property
    def spread(self):
        """Standard deviation of the seeds' rates; 0 for one seed."""
        return standard_deviation(self.by_seed)

    def __str__(self):
        if not self.trials:
            return "no samples"
        low, high = self.interval
        text = f"{self.share:.1%} ({low:.1%} to {high:.1%}, n = {self.trials})"
        if len(self.by_seed) > 1:
            mean = sum(self.by_seed) / len(self.by_seed)
            text += f", {len(self.by_seed)} seeds: {mean:.1%} +- {self.spread:.1%}"
        return text


class Row(NamedTuple):
    """One claim of the paper. Cells are text; a verdict is a sentence. author: what their released networks give."""

    claim: str
    paper: str
    logs: str
    author: str
    plain: str
    scaled: str
    verdict: str


COLUMNS = ("claim", "paper", "author's logs", "author's networks", "plain, as the author computed", "scaled", "verdict")
ON_THE_SAME_IMAGES = "2 on 4's images"  # Algorithm 2 over the few images that Algorithm 4 is run on
OF_A_RATE = ("counted", "succeeded", "success_rate", "success_interval", "mean_moves_of_successes")


def rate(runs, network, algorithm, arithmetic):
    """The Rate of an attack over all seeds, or None where it was not run."""
    figures = [run["networks"][network]["attacks"].get(algorithm, {}).get(arithmetic) for run in runs]
    if any(f is None for f in figures):
        return None
    shares = tuple(f["succeeded"] / f["counted"] for f in figures if f["counted"])
    return Rate(sum(f["succeeded"] for f in figures), sum(f["counted"] for f in figures), shares)


def accuracy(runs, network):
    """The Rate of correct decisions on the test set over all seeds."""
    figures = [run["networks"][network] for run in runs]
    shares = tuple(f["correct"] / f["tested"] for f in figures)
    return Rate(sum(f["correct"] for f in figures), sum(f["tested"] for f in figures), shares)


def compare(a, b):
    """-1, 0 or 1: whether Rate a lies below, within the uncertainty of, or above Rate b (95 % intervals apart)."""
    if a.interval[1] < b.interval[0]:
        return -1
    return int(a.interval[0] > b.interval[1])


def against(claimed, interval):
    """How a claimed figure stands to a measured interval (low, high): "below", "in line with" or "above" it."""
    low, high = interval
    return "above" if claimed > high else "below" if claimed < low else "in line with"


def factor_interval(a, b):
    """Bounds of the ratio of two Rates, from the bounds of both; the upper one is infinite where b's lower is 0."""
    (a_low, a_high), (b_low, b_high) = a.interval, b.interval
    return a_low / b_high, a_high / b_low if b_low else math.inf


NO_SAMPLES = "Not judged: no samples."


def _lack_samples(*rates):
    return not all(rate.trials for rate in rates)


def _success_verdict(claimed, plain, scaled, at_least=False):
    if _lack_samples(plain, scaled):
        return NO_SAMPLES
    relation = against(claimed, plain.interval)
    if at_least and relation == "below":
        relation = "in line with"
    told = f"The paper's {'more than ' if at_least else ''}{claimed:.0%} is {relation} what plain arithmetic gives here"
    differ = compare(scaled, plain)
    if differ > 0:
        return f"{told}; without underflow the same attack succeeds more often, so part of its failures was arithmetic."
    if differ < 0:
        return f"{told}; without underflow it succeeds less often."
    return f"{told}; without underflow no other rate is measurable."


def _factor_verdict(standard, temperature, hot):
    """standard, temperature: (plain, scaled) Rates of an attack on the two networks; hot: the second's T, "T = 20"."""
    if _lack_samples(*standard, *temperature):
        return NO_SAMPLES
    plain, scaled = (factor_interval(a, b) for a, b in zip(standard, temperature, strict=True))
    truth, underflow = {
        1: (f"the {hot} network is the more robust one", "the rest was underflow"),
        0: ("no difference between the networks is measurable", "the robustness was underflow"),
        -1: (f"the {hot} network is the weaker one", "the robustness was underflow"),
    }[compare(standard[1], temperature[1])]
    masked = compare(standard[0], temperature[0]) > 0 and scaled[1] < plain[0]
    return (
        f"The paper's factor of {PAPER['success_factor']} is {against(PAPER['success_factor'], plain)} what plain "
        f"arithmetic gives here; without underflow {truth}{f': {underflow}' * masked}."
    )


def _distillation_verdict(temperature, distilled, hot, algorithm):
    if _lack_samples(*temperature, *distilled):
        return NO_SAMPLES
    words = {1: "succeeds more often", 0: "succeeds no more and no less often, measurably,", -1: "succeeds less often"}
    plain, scaled = compare(distilled[0], temperature[0]), compare(distilled[1], temperature[1])
    if scaled:
        conclusion = f"the {'distilled' if scaled < 0 else hot} network is the more robust one"
    elif plain:
        conclusion = "they differ in where float32 ends, and not measurably in robustness"
    else:
        conclusion = "distillation changes nothing measurable"
    return (
        f"Against the distilled network {algorithm} {words[plain]} than against {hot} on hard labels in plain "
        f"arithmetic, and {words[scaled]} in scaled: {conclusion}."
    )


def _accuracy_verdict(standard, temperature, distilled, hot):
    words = {1: "more accurate than", 0: "not measurably more or less accurate than", -1: "less accurate than"}
    return (
        f"The {hot} network is {words[compare(temperature, distilled)]} the distilled one and "
        f"{words[compare(temperature, standard)]} the standard one."
    )


def _gradient_verdict(median, interval, zero_share, hot):
    """median: log10 of the ratio of the maps' sizes, with its interval (low, high)."""
    claimed, (low, high) = PAPER["gradient_log10"], interval
    if low <= 0 <= high:
        told = f"The median map of the {hot} network is not measurably smaller or larger"
    else:
        told = (
            f"The median map of the {hot} network is 10^{abs(median):.1f} times {'smaller' if median < 0 else 'larger'}"
        )
    agrees = against(claimed, (-high, -low)) == "in line with"
    told += ", as the paper says" if agrees else f", where the paper says 10^{claimed} times smaller"
    return f"{told}; float32 shows exactly 0 for {zero_share:.0%} of the images."


def _pair(runs, network, algorithm):
    return rate(runs, network, algorithm, "plain"), rate(runs, network, algorithm, "scaled")


def _factor(a, b):
    """The ratio of two Rates with its bounds, as text."""
    low, high = factor_interval(a, b)
    if not b.successes:
        return f"factor at least {low:.1f}"
    return f"factor {a.share / b.share:.1f} ({low:.1f} to {high:.1f})"


def _names(runs):
    return runs[0]["networks"]


def _accuracy_cells(runs):
    return "; ".join(f"{name}: {accuracy(runs, name)}" for name in _names(runs)), "the same decisions"


def _success_cells(algorithm):
    return lambda runs: tuple(map(str, _pair(runs, "standard", algorithm)))


def _gradient(runs, figure):
    """Mean over the seeds of a figure of the temperature network's gradient budget (masking.gradient_budget)."""
    return statistics.fmean(figure(run["networks"]["temperature"]["gradient"]) for run in runs)


def _median(budget):
    return budget["median"]


def _zero_share(budget):
    return budget["plain"]["zero_share"]


def _gradient_interval(runs):
    """Mean bounds of the median, further apart where the medians of the seeds vary more."""
    low = _gradient(runs, lambda budget: budget["median_interval"][0])
    high = _gradient(runs, lambda budget: budget["median_interval"][1])
    median = _gradient(runs, _median)
    spread = 2 * standard_deviation([_median(run["networks"]["temperature"]["gradient"]) for run in runs])
    return min(low, median - spread), max(high, median + spread)


def _gradient_cells(runs):
    (low, high), median = _gradient_interval(runs), _gradient(runs, _median)
    first, last = _gradient(runs, lambda b: b["quantiles"]["5"]), _gradient(runs, lambda b: b["quantiles"]["95"])
    return (
        f"{_gradient(runs, _zero_share):.1%} of maps exactly 0",
        f"median 10^{median:.1f} (10^{low:.1f} to 10^{high:.1f}) times the standard network's; 5 % to 95 % of images: "
        f"10^{first:.0f} to 10^{last:.0f}",
    )


def _factor_cells(algorithm):
    def cells(runs):
        standard, temperature = _pair(runs, "standard", algorithm), _pair(runs, "temperature", algorithm)
        return tuple(f"{a} against {b}: {_factor(a, b)}" for a, b in zip(standard, temperature, strict=True))

    return cells


def _distillation_cells(algorithm):
    def cells(runs):
        pairs = {name: _pair(runs, name, algorithm) for name in _names(runs) if name != "standard"}
        return tuple("; ".join(f"{name}: {pair[i]}" for name, pair in pairs.items()) for i in (0, 1))

    return cells


def _mean_moves(runs, algorithm, arithmetic):
    figures = [run["networks"]["standard"]["attacks"][algorithm][arithmetic] for run in runs]
    means = [f["mean_moves_of_successes"] for f in figures if f["succeeded"]]
    return f", {sum(means) / len(means):.1f} moves" if means else ""


def _refresh_cells(runs):
    return tuple(
        "; ".join(
            f"Algorithm {algorithm[0]}: {rate(runs, 'standard', algorithm, arithmetic)}"
            + _mean_moves(runs, algorithm, arithmetic)
            for algorithm in (ON_THE_SAME_IMAGES, "4")
        )
        for arithmetic in ("plain", "scaled")
    )


def _refresh_verdict(runs):
    two, four = _pair(runs, "standard", ON_THE_SAME_IMAGES), _pair(runs, "standard", "4")
    words = {1: "more often", 0: "no more and no less often, measurably,", -1: "less often"}
    if _lack_samples(*two, *four):
        return NO_SAMPLES
    plain, scaled = (words[compare(b, a)] for a, b in zip(two, four, strict=True))
    return (
        f"On the same images Algorithm 4 succeeds {plain} than Algorithm 2 in plain arithmetic and {scaled} in scaled."
    )


def _refresh_row(row, runs):
    told = "Algorithm 4 is more effective than 2", "no figure", "not released"
    if rate(runs, "standard", "4", "plain") is None:
        reason = "not run: --refreshed 10 runs it on 10 images"
        return Row(*told, *3 * (reason,), f"Not judged: {reason}.")
    return row(*told, _refresh_cells, _refresh_verdict(runs))


def rows(results):
    """The Rows of results: {"runs": [{"networks": {name: figures}} for each seed], "temperature": T of the networks
    trained at one, "author": as a run, for the author's own networks, "appendix_a": a dict}; of the last two, a
    sentence that says which file is missing."""
    runs, author, hot = results["runs"], results["author"], f"T = {results['temperature']:g}"

    def row(claim, paper, logs, cells, verdict):
        theirs = author if isinstance(author, str) else "plain: {}; scaled: {}".format(*cells([author]))
        return Row(claim, paper, logs, theirs, *cells(runs), verdict)

    def success_row(algorithm, claimed, logs, at_least=False):
        claim = f"Algorithm {algorithm} succeeds on the standard network"
        paper = f"{'more than ' if at_least else ''}{claimed:.0%}"
        verdict = _success_verdict(claimed, *_pair(runs, "standard", algorithm), at_least)
        return row(claim, paper, logs, _success_cells(algorithm), verdict)

    def distillation_verdict(algorithm, name):
        return _distillation_verdict(
            _pair(runs, "temperature", algorithm), _pair(runs, "distilled", algorithm), hot, name
        )

    def factor_verdict(algorithm):
        return _factor_verdict(_pair(runs, "standard", algorithm), _pair(runs, "temperature", algorithm), hot)

    return [
        row(
            "Accuracy: temperature beats distillation",
            "T = 20 without distillation is the more accurate",
            LOGS["accuracy"],
            _accuracy_cells,
            _accuracy_verdict(*(accuracy(runs, name) for name in ("standard", "temperature", "distilled")), hot),
        ),
        success_row("1", PAPER["algorithm_1"], LOGS["algorithm_1"]),
        success_row("2", PAPER["algorithms_2_and_3"], "not released", at_least=True),
        success_row("3", PAPER["algorithms_2_and_3"], "not released", at_least=True),
        row(
            "T = 20 reduces the adversarial gradient",
            "by 10^10",
            LOGS["gradient"],
            _gradient_cells,
            _gradient_verdict(
                _gradient(runs, _median),
                _gradient_interval(runs),
                _gradient(runs, _zero_share),
                hot,
            ),
        ),
        row(
            "T = 20 reduces the success rate of Algorithm 1",
            "by a factor of 10",
            LOGS["algorithm_1_on_both"],
            _factor_cells("1"),
            factor_verdict("1"),
        ),
        row(
            "... and of the attack behind the author's logs",
            "by a factor of 10",
            LOGS["author_attack"],
            _factor_cells("author"),
            factor_verdict("author"),
        ),
        row(
            "Temperature, not distillation, makes robust",
            "T = 20 alone is the more robust",
            "no attack with Algorithm 1 on both",
            _distillation_cells("1"),
            distillation_verdict("1", "Algorithm 1"),
        ),
        row(
            "... under the attack behind the author's logs",
            "T = 20 alone is the more robust",
            LOGS["distillation"],
            _distillation_cells("author"),
            distillation_verdict("author", "the author's attack"),
        ),
        _refresh_row(row, runs),
        _appendix_row(results["appendix_a"]),
        Row(
            "Figures 1 and 2: samples and adversarial samples",
            "four of each",
            "none",
            author if isinstance(author, str) else "figures_1_and_2_author_plain.png and _scaled.png",
            "figures_1_and_2_plain.png",
            "figures_1_and_2_scaled.png",
            "Drawn from this run: the figures below.",
        ),
    ]


def _appendix_row(found):
    claim, paper = "Appendix A: a saliency map", f"mean {APPENDIX_A['mean']}, max {APPENDIX_A['max']}, 12 moves"
    if isinstance(found, str):
        return Row(claim, paper, "none", found, found, found, f"Not judged: it {found}.")
    plain, scaled = found["plain"], found["scaled"]
    same = f"{plain['mean']:.4e}" == APPENDIX_A["mean"] and f"{plain['max']:.5e}" == APPENDIX_A["max"]
    same = same and plain["moves"] == APPENDIX_A["moves"] and plain["succeeded"]
    return Row(
        claim,
        paper,
        "none",
        "their standard network, test image 2659",
        f"mean {plain['mean']:.4e}, max {plain['max']:.5e}, {plain['moves']} moves",
        f"largest gradient 10^{scaled['log10_max']:.3f}, {scaled['moves']} moves",
        "Mean, maximum and moves come out as printed: it is test image 2659 on the author's standard network."
        if same
        else "The map that is printed does not come out here.",
    )


class Text(NamedTuple):
    """What stands around the table."""

    title: str
    introduction: str
    footer: str


class Section(NamedTuple):
    """What follows the table: preformatted text, and pictures as (caption, path of a PNG)."""

    heading: str
    text: str
    pictures: list


def _in_lines(cell, escape):
    """A cell of a table, its figures, which semicolons part, a line each; a verdict is a sentence and stays one."""
    return "<br>".join(map(escape, [cell] if cell.endswith(".") else cell.split("; ")))


def markdown(text, table, sections, folder):
    """The report as GitHub Markdown, to be kept in `folder`, to which the pictures' paths are relative."""
    lines = [f"# {text.title}\n", f"{text.introduction}\n"]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += [
        "| " + " | ".join(_in_lines(cell, lambda part: part.replace("|", "\\|")) for cell in row) + " |"
        for row in table
    ]
    for section in sections:
        lines.append(f"\n## {section.heading}\n")
        lines += [f"```\n{section.text}\n```\n"] if section.text else []
        lines += [f"![{caption}]({path.relative_to(folder)})\n\n{caption}\n" for caption, path in section.pictures]
    return "\n".join([*lines, f"\n{text.footer}\n"])


def terminal(table):
    """The table as plain text for a terminal, a block a claim."""
    labels = ("", "paper", "author's logs", "author's networks", "plain", "scaled", "verdict")
    width = max(map(len, labels))
    blocks = []
    for row in table:
        lines = [row.claim] + [f"  {n:{width}}  {c}" for n, c in zip(labels[1:], row[1:], strict=True)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 84rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border: 1px solid #ccc; padding: .4rem .5rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
td:first-child { font-weight: 600; }
td:last-child { min-width: 15rem; background: #fafafa; }
pre { font-size: 11px; overflow-x: auto; }
figure { margin: 2rem 0; break-inside: avoid; }
img { max-width: 100%; }
figcaption, footer { color: #555; font-size: 13px; }
@media print { body { margin: 0; font-size: 11px; } table { font-size: 9px; } tr { break-inside: avoid; } }
"""


def page(text, table, sections):
    """The report as one self-contained HTML page, the pictures in it."""
    escape = html.escape
    head = "".join(f"<th>{escape(c)}</th>" for c in COLUMNS)
    body = "\n".join("<tr>" + "".join(f"<td>{_in_lines(c, escape)}</td>" for c in row) + "</tr>" for row in table)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(text.title)}</title><style>{STYLE}</style></head>
<body><h1>{escape(text.title)}</h1><p>{escape(text.introduction)}</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
{"".join(map(_html_section, sections))}
<footer>{escape(text.footer)}</footer></body></html>
"""


def _html_section(section):
    pictures = [(html.escape(c), base64.b64encode(path.read_bytes()).decode()) for c, path in section.pictures]
    figures = "\n".join(
        f'<figure><img alt="{caption}" src="data:image/png;base64,{png}"><figcaption>{caption}</figcaption></figure>'
        for caption, png in pictures
    )
    text = f"<pre>{html.escape(section.text)}</pre>\n" if section.text else ""
    return f"<h2>{html.escape(section.heading)}</h2>\n{text}{figures}\n"
