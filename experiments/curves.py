"""Attacks as curves of success against moves: the paper's, stronger ones, and those that need no gradient."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments import common
from experiments.report import Parts, Table
from minicnn.paper import attacks, masking
from minicnn.paper.attacks import pixels_to_success
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.sparse_rs import generator, sparse_rs

BUDGETS = (10, 20, 50)  # moves after which success is told, beside the limit
TRIES = 50  # of the random search, an image
PART = 20  # images that a kill may lose: some ten seconds of an attack
NOTE = (
    "A move that changes nothing counts for Algorithms 1 to 3, refreshed or not; the other attacks make none. "
    "Sparse-RS is run with each of these numbers of pixels: its median, and that of the best attack for each image, is "
    "at most as shown. Algorithm 4 is left out: it takes longer than the others together."
)


class Attack(NamedTuple):
    """An attack: its name, how its curve is drawn, and how many moves success takes.

    moves(study, network, source) -> (N,) on the study's sample, infinite for no success. study: a masking.Study;
    source: another network, for what transfers.
    """

    label: str
    color: str
    style: str | tuple
    marker: str
    moves: Callable | None


def algorithm(which, arithmetic="scaled", **changes):
    """Attack.moves of an Algorithm that may move every pixel."""

    def moves(study, network, source):
        told = {"arithmetic": arithmetic, "limit": common.PIXELS} | changes
        return moves_of(study.attack(network, which, part=PART, **told))

    return moves


def moves_of(result):
    """How many moves success took in an AttackResult, (N,), infinite for none."""
    return np.where(result.succeeded, result.moves, np.inf)


def by_jsma(study, network, source):
    return pixels_to_success(study.sample.images, study.attack(network, "jsma", PART))


def by_sparse_rs(study, network, source):
    budgets = [*(k for k in BUDGETS if k < study.setting.limit), study.setting.limit]
    results = (study.attack(network, "sparse-rs", PART, limit=k) for k in budgets)
    return pixels_to_success(study.sample.images, *results)


def by_random_search(study, network, source):
    """As many random pixels as the limit, TRIES times: the first query of Sparse-RS."""

    def run(x, y):
        seeds = range(study.seed, study.seed + TRIES)
        return pixels_to_success(x, *(sparse_rs(network, x, y, study.setting, queries=1, seed=seed) for seed in seeds))

    return study.moves(network, run, attack="random search", seed=study.seed, setting=vars(study.setting))


def follow(study, network, attack, maps_of, maps):
    """Algorithm 3's moves on maps(images, labels) of something else, which maps_of tells from another."""
    setting = dataclasses.replace(study.setting, arithmetic="scaled", limit=common.PIXELS)

    def run(x, y):
        return moves_of(attacks.attack(network, x, y, "3", setting, maps=maps))

    return study.moves(network, run, attack=attack, maps_of=maps_of, setting=vars(setting))


def by_transfer(study, network, source):
    def maps(x, y):
        return saliency_maps(source, x, y, study.setting.T).maps

    return follow(study, network, "transfer", common.network_key(source), maps)


def at_random(study, network, source):
    def maps(x, y):
        return np.stack([generator(study.seed, image).uniform(-1, 1, image.shape) for image in x])

    return follow(study, network, "random moves", study.seed, maps)


ATTACKS = {
    "algorithm_1_plain": Attack("Algorithm 1, plain", "tab:red", "-", "o", algorithm("1", "plain")),
    "algorithm_1_scaled": Attack("Algorithm 1, scaled", "tab:blue", "-", "s", algorithm("1")),
    "algorithm_2_plain": Attack("Algorithm 2, plain", "tab:pink", "-", "<", algorithm("2", "plain")),
    "algorithm_2_scaled": Attack("Algorithm 2, scaled", "tab:olive", "-", ">", algorithm("2")),
    "algorithm_3_plain": Attack("Algorithm 3, plain", "tab:orange", "--", "^", algorithm("3", "plain")),
    "algorithm_3_scaled": Attack("Algorithm 3, scaled", "tab:cyan", "--", "v", algorithm("3")),
    "iterative_plain": Attack("3 refreshed, plain", "tab:brown", "-.", "P", algorithm(masking.ITERATIVE, "plain")),
    "iterative_scaled": Attack("3 refreshed, scaled", "tab:purple", "-.", "X", algorithm(masking.ITERATIVE)),
    "margin": Attack("margin refreshed", "tab:gray", ":", "D", algorithm("margin", skip_unchanged=True)),
    "jsma": Attack("JSMA", "tab:pink", "-", "<", by_jsma),
    "sparse_rs": Attack("Sparse-RS", "tab:green", (0, (6, 2)), "d", by_sparse_rs),
    "best": Attack("best for each image", "black", "-", "*", None),
    "transfer": Attack("3 on another network's map", "tab:green", ":", "P", by_transfer),
    "random": Attack("random moves", "0.4", "-.", "x", at_random),
    "random_search": Attack("random search", "0.4", "-.", "x", by_random_search),
}
ONE_MAP = ("algorithm_1_plain", "algorithm_1_scaled", "algorithm_3_plain", "algorithm_3_scaled", "transfer", "random")
STRONGER = tuple(ATTACKS)[: list(ATTACKS).index("best")]
DRAWN = (*STRONGER[STRONGER.index("algorithm_3_plain") :], "best")  # of these: a picture holds no more curves


def moves_to_success(names, networks, study):
    """network -> name of ATTACKS -> the moves that success took on the images that the network is right about.

    networks: name -> network. What transfers to a network is the first other's; without one it is left out.
    """
    found = {}
    for name, network in networks.items():
        right = study.right(network)
        source = next((other for other in networks.values() if other is not network), None)
        possible = [attack for attack in names if source or attack != "transfer"]
        found[name] = {attack: ATTACKS[attack].moves(study, network, source)[right] for attack in possible}
    return found


def describe(figures, shown, note=""):
    """A table for each network. figures: network -> name of ATTACKS -> masking.success_curve; shown: after how many
    moves, and at the end."""
    parts = []
    for network, found in figures.items():
        rows = []
        for name, curve in found.items():
            last, median = len(curve["succeeded"]) - 1, curve["median"]
            rates = {str(n): f"{curve['succeeded'][n] / curve['attacked']:.1%}" for n in [*shown, last] if n <= last}
            median = "none" if median is None else f"{median:g}"
            rows.append({f"{network}, moves:": ATTACKS[name].label} | rates | {"median": median})
        parts.append(Table(rows))
    return Parts(parts + [note] * bool(note))


def draw(path, figures, names, scale="linear"):
    """Success against moves, a panel for each network and a curve for each of the names of ATTACKS."""
    fig, (panels,) = common.figure(1, len(figures), width=3.9, height=3.8)
    for panel, (network, found) in zip(panels, figures.items(), strict=True):
        for name in (name for name in names if name in found):
            attack, rate = ATTACKS[name], 100 * np.array(found[name]["succeeded"]) / found[name]["attacked"]
            marks = [n for n in (0, *BUDGETS, 100, 300, common.PIXELS) if n < len(rate)]
            style = {"color": attack.color, "ls": attack.style, "marker": attack.marker, "markevery": marks}
            panel.plot(rate, drawstyle="steps-post", label=attack.label, lw=1.3, ms=5, clip_on=False, **style)
        panel.set_xscale(scale, **({"linthresh": 10} if scale == "symlog" else {}))
        panel.set_xticks(marks, [str(n) for n in marks])
        panel.minorticks_off()
        panel.set(title=network, xlabel="moves", ylim=(0, 103), xlim=(0, len(rate) - 1))
    panels[0].set_ylabel("success (% of attacked)")
    labelled = max((panel.get_legend_handles_labels() for panel in panels), key=lambda found: len(found[1]))
    fig.legend(*labelled, loc="outside right center")
    common.save_figure(path, fig)


def tell_one_map(figures):
    return f"Success of attacks that follow one map, up to all {common.PIXELS} pixels."


def tell_stronger(figures):
    best = {network: of["best"] for network, of in figures.items()}
    moves = min(20, *(len(curve["succeeded"]) - 1 for curve in best.values()))
    found = (f"{network} {curve['succeeded'][moves] / curve['attacked']:.1%}" for network, curve in best.items())
    within = f"{moves} move{'s' * (moves > 1)}"
    return f"Within {within} the best of all finds, of the images attacked: {', '.join(found)}."
