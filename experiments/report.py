"""The table of the paper's claims: what it says, what the author's logs say, what is measured here, and a verdict in
one sentence that is computed from the measured intervals. As Markdown and as one self-contained HTML page."""

import base64
import html
import math
from typing import NamedTuple

from minicnn.attacks import wilson_interval

# The paper's own statements (abstract, section 3.1, Appendix A) and what the author's released logs hold.
PAPER = {"algorithm_1": 0.72, "algorithms_2_and_3": 0.95, "gradient_log10": 10, "success_factor": 10}
APPENDIX_A = {"index": 2659, "mean": "-2.2915e-08", "max": "9.78318e-05", "moves": 12}
LOGS = {
    "accuracy": "T = 20: 99.34 %, distilled: 99.07 %",
    "algorithm_1": "14 of 28 images",
    "gradient": "26 of 28 maps exactly 0",
    "author_attack": "39.0 % and 1.3 % (distilled); 35.7 % and 0.8 % (T = 20)",
}


class Rate(NamedTuple):
    """Successes of trials, over all seeds together; by_seed: the rate of each."""

    successes: int
    trials: int
    by_seed: tuple = ()

    @property
    def share(self):
        return self.successes / self.trials if self.trials else math.nan

    @property
    def interval(self):
        return wilson_interval(self.successes, self.trials)

    def __str__(self):
        if not self.trials:
            return "no samples"
        low, high = self.interval
        text = f"{self.share:.1%} ({low:.1%} to {high:.1%}, n = {self.trials})"
        if len(self.by_seed) > 1:
            mean = sum(self.by_seed) / len(self.by_seed)
            spread = math.sqrt(sum((r - mean) ** 2 for r in self.by_seed) / (len(self.by_seed) - 1))
            text += f", {len(self.by_seed)} seeds: {mean:.1%} +- {spread:.1%}"
        return text


class Row(NamedTuple):
    """One claim of the paper. Cells are text; a verdict is a sentence."""

    claim: str
    paper: str
    logs: str
    plain: str
    scaled: str
    verdict: str


COLUMNS = ("claim", "paper", "author's logs", "plain, as the author computed", "scaled", "verdict")


def rate(runs, network, algorithm, arithmetic):
    """The Rate of an attack over all seeds, or None where it was not run."""
    figures = [run["networks"][network]["attacks"].get(algorithm, {}).get(arithmetic) for run in runs]
    if any(f is None for f in figures):
        return None
    shares = tuple(f["succeeded"] / f["attacked"] for f in figures if f["attacked"])
    return Rate(sum(f["succeeded"] for f in figures), sum(f["attacked"] for f in figures), shares)


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


def against(claimed, measured):
    """How a claimed share stands to a measured Rate: "below", "in line with" or "above" it."""
    low, high = measured.interval
    return "above" if claimed > high else "below" if claimed < low else "in line with"


def _success_verdict(claimed, plain, scaled, at_least=False):
    relation = against(claimed, plain)
    if at_least and relation == "below":
        relation = "in line with"
    told = f"The paper's {'more than ' if at_least else ''}{claimed:.0%} is {relation} what plain arithmetic gives here"
    differ = compare(scaled, plain)
    if differ > 0:
        return f"{told}; without underflow the same attack succeeds more often, so part of its failures was arithmetic."
    if differ < 0:
        return f"{told}; without underflow it succeeds less often."
    return f"{told}; without underflow the rate is the same within its uncertainty."


def _factor_verdict(standard, temperature):
    """standard, temperature: (plain, scaled) Rates of Algorithm 1 on the two networks."""
    plain, scaled = compare(standard[0], temperature[0]), compare(standard[1], temperature[1])
    seen = {
        1: "In plain float32 the T = 20 network looks robust",
        0: "In plain float32 the two networks do not differ",
        -1: "In plain float32 the T = 20 network is the weaker one",
    }[plain]
    truth = {
        1: "and without underflow it still is the more robust one: temperature helps here.",
        0: "and without underflow the two do not differ" + (": the robustness is underflow." if plain > 0 else "."),
        -1: "but without underflow it is the weaker one" + (": the robustness is underflow." if plain > 0 else "."),
    }[scaled]
    return f"{seen}, {truth}"


def _distillation_verdict(temperature, distilled):
    words = {1: "succeeds more often", 0: "does no better and no worse", -1: "succeeds less often"}
    plain, scaled = compare(distilled[0], temperature[0]), compare(distilled[1], temperature[1])
    same = "distillation adds nothing measurable" if plain == scaled == 0 else "the two differ"
    return (
        f"Against the distilled network Algorithm 1 {words[plain]} than against T = 20 on hard labels in plain "
        f"arithmetic, and {words[scaled]} in scaled: {same}."
    )


def _accuracy_verdict(standard, temperature, distilled):
    words = {1: "more accurate than", 0: "as accurate as", -1: "less accurate than"}
    return (
        f"The T = 20 network is {words[compare(temperature, distilled)]} the distilled one and "
        f"{words[compare(temperature, standard)]} the standard one, within 95 % intervals."
    )


def _gradient_verdict(median_ratio, zero_share):
    claimed, told = PAPER["gradient_log10"], "The median map of the T = 20 network is smaller by"
    as_claimed = abs(-median_ratio - claimed) < 1
    told += f" about the paper's 10^{claimed}" if as_claimed else f" 10^{-median_ratio:.0f}, not 10^{claimed}"
    if zero_share > 0.5:
        return f"{told}; float32 cannot hold it, and shows exactly 0 for most images."
    return f"{told}; float32 shows exactly 0 for {zero_share:.0%} of the images."


def _pair(runs, network, algorithm):
    return rate(runs, network, algorithm, "plain"), rate(runs, network, algorithm, "scaled")


def _success_row(runs, claim, algorithm, claimed, logs, at_least=False):
    plain, scaled = _pair(runs, "standard", algorithm)
    paper = f"{'more than ' if at_least else ''}{claimed:.0%}"
    return Row(claim, paper, logs, str(plain), str(scaled), _success_verdict(claimed, plain, scaled, at_least))


def _times(a, b):
    return f"{a.share / b.share:.1f}" if b.successes else f"more than {a.share / b.interval[1]:.0f}"


def rows(results):
    """The Rows of results: {"runs": [{"networks": {name: figures}} for each seed], "appendix_a": dict or reason}."""
    runs = results["runs"]
    standard, temperature, distilled = (_pair(runs, n, "1") for n in ("standard", "temperature", "distilled"))
    correct = [accuracy(runs, n) for n in ("standard", "temperature", "distilled")]
    gradients = [run["networks"]["temperature"]["gradient"] for run in runs]
    ratio = sum(g["log10_ratio_median"] for g in gradients) / len(gradients)
    zero_share = sum(g["plain_zero_share"] for g in gradients) / len(gradients)
    author = {n: _pair(runs, n, "author") for n in ("standard", "temperature", "distilled")}
    table = [
        Row(
            "Accuracy: temperature beats distillation",
            "T = 20 without distillation is the more accurate",
            LOGS["accuracy"],
            "; ".join(f"{n}: {a}" for n, a in zip(("T = 1", "T = 20", "distilled"), correct, strict=True)),
            "the same decisions",
            _accuracy_verdict(*correct),
        ),
        _success_row(
            runs, "Algorithm 1 succeeds on the standard network", "1", PAPER["algorithm_1"], LOGS["algorithm_1"]
        ),
        *(
            _success_row(
                runs,
                f"Algorithm {a} succeeds on the standard network",
                a,
                PAPER["algorithms_2_and_3"],
                "not released",
                at_least=True,
            )
            for a in "23"
        ),
        Row(
            "T = 20 reduces the adversarial gradient",
            "by 10^10",
            LOGS["gradient"],
            f"{zero_share:.1%} of maps exactly 0",
            f"median 10^{ratio:.1f} times the standard network's (10 % to 90 %: "
            f"10^{gradients[0]['log10_ratio_low']:.0f} to 10^{gradients[0]['log10_ratio_high']:.0f})",
            _gradient_verdict(ratio, zero_share),
        ),
        Row(
            "T = 20 reduces the success rate",
            "by a factor of 10",
            LOGS["author_attack"],
            f"Algorithm 1: {standard[0]} against {temperature[0]}: factor {_times(standard[0], temperature[0])}",
            f"Algorithm 1: {standard[1]} against {temperature[1]}: factor {_times(standard[1], temperature[1])}",
            _factor_verdict(standard, temperature),
        ),
        Row(
            "... with the attack behind the author's logs",
            "by a factor of 10",
            LOGS["author_attack"],
            "; ".join(f"{n}: {pair[0]}" for n, pair in author.items()),
            "; ".join(f"{n}: {pair[1]}" for n, pair in author.items()),
            _factor_verdict(author["standard"], author["temperature"]),
        ),
        Row(
            "Temperature, not distillation, makes robust",
            "T = 20 alone is the more robust",
            LOGS["author_attack"],
            f"T = 20: {temperature[0]}; distilled: {distilled[0]}",
            f"T = 20: {temperature[1]}; distilled: {distilled[1]}",
            _distillation_verdict(temperature, distilled),
        ),
        _refresh_row(runs),
        _appendix_row(results["appendix_a"]),
        Row(
            "Figures 1 and 2: samples and adversarial samples",
            "four of each",
            "none",
            "figures_1_and_2_plain.png",
            "figures_1_and_2_scaled.png",
            "Drawn from this run: the figures below.",
        ),
    ]
    return table


def _refresh_row(runs):
    cells, relations = [], []
    for arithmetic in ("plain", "scaled"):
        two, four = (rate(runs, "standard", a, arithmetic) for a in ("2 on 4's images", "4"))
        moves = [run["networks"]["standard"]["attacks"] for run in runs]
        means = [
            [m[a][arithmetic]["mean_moves_of_successes"] for m in moves if m[a][arithmetic]["succeeded"]]
            for a in ("2 on 4's images", "4")
        ]
        text = "; ".join(
            f"Algorithm {a}: {r}" + (f", {sum(m) / len(m):.1f} moves" if m else "")
            for a, r, m in zip("24", (two, four), means, strict=True)
        )
        cells.append(text)
        relations.append(compare(four, two))
    words = {1: "more often", 0: "no more and no less often, within its uncertainty,", -1: "less often"}
    verdict = (
        f"On the same images Algorithm 4 succeeds {words[relations[0]]} than Algorithm 2 in plain arithmetic and "
        f"{words[relations[1]]} in scaled."
    )
    return Row("Algorithm 4 is more effective than 2", "no figure", "not released", *cells, verdict)


def _appendix_row(found):
    claim, paper = "Appendix A: a saliency map", f"mean {APPENDIX_A['mean']}, max {APPENDIX_A['max']}, 12 moves"
    if isinstance(found, str):
        return Row(claim, paper, "none", found, found, found)
    plain, scaled = found["plain"], found["scaled"]
    same = f"{plain['mean']:.4e}" == APPENDIX_A["mean"] and f"{plain['max']:.5e}" == APPENDIX_A["max"]
    same = same and plain["moves"] == APPENDIX_A["moves"] and plain["succeeded"]
    return Row(
        claim,
        paper,
        "none",
        f"test image 2659: mean {plain['mean']:.4e}, max {plain['max']:.5e}, {plain['moves']} moves",
        f"largest gradient 10^{scaled['log10_max']:.3f}, {scaled['moves']} moves",
        "It is test image 2659 on the author's standard network, to every digit printed."
        if same
        else "The map that is printed does not come out here.",
    )


def markdown(table):
    """The table as GitHub Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join(lines) + "\n"


def terminal(table):
    """The table as plain text for a terminal, a block a claim."""
    labels = ("", "paper", "logs", "plain", "scaled", "verdict")
    width = max(map(len, labels))
    blocks = []
    for row in table:
        lines = [row.claim] + [f"  {n:{width}}  {c}" for n, c in zip(labels[1:], row[1:], strict=True)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border: 1px solid #ccc; padding: .4rem .5rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
td:first-child, td:last-child { font-weight: 600; }
figure { margin: 2rem 0; break-inside: avoid; }
img { max-width: 100%; }
figcaption, footer { color: #555; font-size: 13px; }
@media print { body { margin: 0; font-size: 11px; } table { font-size: 9px; } tr { break-inside: avoid; } }
"""


def page(title, introduction, table, figures, footer):
    """One self-contained HTML page. figures: list of (caption, PNG bytes)."""
    text = html.escape
    head = "".join(f"<th>{text(c)}</th>" for c in COLUMNS)
    body = "\n".join("<tr>" + "".join(f"<td>{text(c)}</td>" for c in row) + "</tr>" for row in table)
    pictures = "\n".join(
        f'<figure><img alt="{text(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for caption, png in figures
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{text(title)}</title><style>{STYLE}</style></head>
<body><h1>{text(title)}</h1><p>{text(introduction)}</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
{pictures}
<footer>{text(footer)}</footer></body></html>
"""
