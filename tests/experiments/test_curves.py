"""experiments/curves.py: each attack is the one that its name says, and its curve is drawn and told as it is."""

import numpy as np
import pytest

from experiments import common, curves, report
from minicnn.paper import attacks, masking
from minicnn.paper.networks import paper_cnn, rescaled
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.sparse_rs import sparse_rs
from tests.experiments.conftest import IMAGES, PNG


def moves(result):
    return np.where(result.succeeded, result.moves, np.inf)


@pytest.fixture
def found(base, dataset, told):
    """A function: what an attack finds on a saturated network, of two images, in six moves; another network beside."""
    sample = dataset.test_images[:2], dataset.test_labels[:2]
    two = dataset._replace(test_images=sample[0], test_labels=sample[1])
    networks = {"standard": rescaled(base, 30), "temperature": paper_cnn(seed=1, ties="all")}

    def find(name, limit=6):
        study = told(two, first=True, limit=limit)
        return curves.ATTACKS[name].moves(study, *networks.values()), networks, sample, study.setting

    return find


@pytest.mark.parametrize("arithmetic", attacks.ARITHMETICS)
@pytest.mark.parametrize("algorithm", ["algorithm_1", "algorithm_3", "iterative"])
def test_algorithms_may_move_every_pixel(found, monkeypatch, algorithm, arithmetic):
    monkeypatch.setattr(common, "PIXELS", 40)
    took, networks, sample, _ = found(f"{algorithm}_{arithmetic}")
    which = {"algorithm_1": "1", "algorithm_3": "3", "iterative": masking.ITERATIVE}[algorithm]
    direct = attacks.attack(networks["standard"], *sample, which, attacks.Setting(arithmetic, limit=40))
    assert np.array_equal(took, moves(direct))
    assert (took > 6).any()


def test_margin_makes_no_move_that_changes_nothing(found, monkeypatch):
    monkeypatch.setattr(common, "PIXELS", 40)
    took, networks, sample, _ = found("margin")
    setting = attacks.Setting(limit=40, skip_unchanged=True)
    assert np.array_equal(took, moves(attacks.attack(networks["standard"], *sample, "margin", setting)))


def test_sparse_rs_tells_the_fewest_pixels_of_its_budgets(found, monkeypatch):
    monkeypatch.setattr(curves, "BUDGETS", (4, 30, 60))
    took, networks, sample, setting = found("sparse_rs", limit=40)
    expected = np.full(2, np.inf)
    for k in (40, 30, 4):
        result = sparse_rs(networks["standard"], *sample, attacks.Setting(limit=k))
        expected = np.where(result.succeeded, k, expected)
    assert np.array_equal(took, expected) and np.isfinite(took).any()


def test_random_search_is_the_best_of_its_tries(found, monkeypatch):
    limit, tries = 300, 4
    monkeypatch.setattr(curves, "TRIES", tries)
    took, networks, (images, labels), setting = found("random_search", limit=limit)
    fell = np.zeros(2, bool)
    for seed in range(tries):
        one = sparse_rs(networks["standard"], images, labels, setting, queries=1, seed=seed)
        assert ((one.adversarial != images).sum(axis=(1, 2, 3)) == limit).all()
        fell |= one.succeeded
    assert np.array_equal(took, np.where(fell, limit, np.inf)) and fell.any()


def test_transfer_follows_the_map_of_the_other_network(found, monkeypatch):
    monkeypatch.setattr(common, "PIXELS", 300)
    took, networks, (images, labels), _ = found("transfer")
    maps = saliency_maps(networks["temperature"], images, labels).maps
    setting = attacks.Setting(limit=300)
    direct = attacks.attack(networks["standard"], images, labels, "3", setting, maps=lambda *_: maps)
    assert np.array_equal(took, moves(direct)) and np.isfinite(took).any()


def test_random_moves_do_not_depend_on_the_other_images(found, base, dataset, told, monkeypatch):
    monkeypatch.setattr(common, "PIXELS", 300)
    took, networks, (images, labels), _ = found("random")
    second = dataset._replace(test_images=images[1:], test_labels=labels[1:])
    alone = curves.at_random(told(second, limit=6), networks["standard"], None)
    assert np.array_equal(alone, took[1:])


def test_moves_to_success_counts_images_that_the_network_is_right_about(base, dataset, told, monkeypatch):
    sources = []

    def count(study, network, source):
        sources.append(source)
        return np.arange(len(study.sample.labels), dtype=float)

    for name in ("random", "transfer"):
        monkeypatch.setitem(curves.ATTACKS, name, curves.ATTACKS[name]._replace(moves=count))
    labels = dataset.test_labels.copy()
    labels[0] = (labels[0] + 1) % 10
    networks = {"standard": base, "temperature": rescaled(base, 2)}
    study = told(dataset._replace(test_labels=labels), first=True)
    found = curves.moves_to_success(["random", "transfer"], networks, study)
    for name in networks:
        assert {attack: m.tolist() for attack, m in found[name].items()} == {
            "random": [*range(1, IMAGES)],
            "transfer": [*range(1, IMAGES)],
        }
    assert sources[1] is networks["temperature"] and sources[3] is networks["standard"]
    alone = curves.moves_to_success(["random", "transfer"], {"standard": base}, study)
    assert list(alone["standard"]) == ["random"]


FIGURES = {
    network: {name: masking.success_curve(np.array([3.0, 12, 60, np.inf])[: 4 - i], 100) for name in ("margin", "best")}
    for i, network in enumerate(("standard", "temperature"))
}


def test_describe_curves_tells_success_and_median():
    text = str(curves.describe(FIGURES, (1, 10, 50), "A note."))
    lines = [line.split() for line in text.splitlines()]
    assert ["margin", "refreshed", "0.0%", "25.0%", "50.0%", "75.0%", "36"] in lines
    assert ["margin", "refreshed", "0.0%", "33.3%", "66.7%", "100.0%", "12"] in lines
    assert text.endswith("A note.") and max(map(len, text.splitlines())) <= report.WIDTH
    none = {"standard": {"margin": masking.success_curve(np.array([np.inf]), 5)}}
    assert str(curves.describe(none, (10,))).splitlines()[-1].split() == ["margin", "refreshed", "0.0%", "none"]


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_draw_curves_has_its_legend_beside_the_axes(tmp_path, monkeypatch, scale):
    saved, save = [], common.save_figure
    monkeypatch.setattr(common, "save_figure", lambda path, fig: saved.append(fig) or save(path, fig))
    curves.draw(tmp_path / "curves.png", FIGURES, ["margin", "best", "transfer"], scale)
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    (fig,) = saved
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["margin refreshed", "best for each image"]
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in fig.axes)
    for axes in fig.axes:
        assert axes.get_ylim()[1] > 100
        assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == len(axes.lines) == 2
        assert axes.lines[0].get_ydata()[-1] == (75 if axes is fig.axes[0] else 100)


def test_curves_of_one_picture_differ_without_colour():
    for names in (curves.ONE_MAP, curves.DRAWN):
        assert len({(curves.ATTACKS[name].style, curves.ATTACKS[name].marker) for name in names}) == len(names)
