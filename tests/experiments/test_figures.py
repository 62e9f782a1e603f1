"""The shared pictures: what is drawn of arrays whose contents are known."""

import numpy as np
import pytest

from experiments import common, figures
from minicnn.paper.attacks import AttackResult
from minicnn.paper.saliency import SaliencyMaps
from minicnn.paper.statistics import Rate


@pytest.fixture
def drawn(monkeypatch):
    """The (path, figure) pairs that are saved, open to be looked at, closed afterwards."""
    saved, save = [], common.save_figure
    monkeypatch.setattr(common, "save_figure", lambda path, fig: saved.append((path, fig)))
    yield saved
    monkeypatch.undo()
    for path, fig in saved:
        save(path, fig)
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.fixture
def images():
    images = np.zeros((2, 1, 4, 5), np.float32)
    images[:, 0, 1] = 1
    return images


@pytest.fixture
def result(images):
    """The first image is changed in one pixel, row 2, column 3, and succeeds; the second fails."""
    adversarial = images.copy()
    adversarial[0, 0, 2, 3] = 1
    none = np.zeros(2, bool)
    return AttackResult(~none, np.array([True, False]), np.array([7, 100]), np.zeros(2, int), none, adversarial)


@pytest.fixture
def maps():
    """The first map is zero, the largest entry of the second is 10^-30."""
    maps = np.zeros((2, 1, 4, 5), np.float32)
    maps[1, 0, 0, 0] = -10
    return SaliencyMaps(maps, np.array([0, -31.0]), np.zeros((2, 3)))


def titles(fig):
    return [axes.get_title() for axes in fig.axes if axes.get_label() != "<colorbar>"]


def said_of_colours(fig):
    """What stands below the only colour bar, from left to right."""
    (bar,) = (axes for axes in fig.axes if axes.get_label() == "<colorbar>")
    return [label.get_text() for label in bar.get_xticklabels()]


def points(axes):
    """(column, row) of what show_moves marks."""
    return axes.collections[0].get_offsets().tolist()


def test_draw_samples_shows_decisions_and_moves(drawn, images, result, tmp_path):
    figures.draw_samples(tmp_path / "samples.png", images, np.array([3, 8]), result, np.array([5, 8]), "both")
    ((_, fig),) = drawn
    assert titles(fig) == ["label 3", "label 8", "seen as 5\n7 moves", "failed\n100 moves"]
    assert fig.get_suptitle() == "both"
    assert points(fig.axes[2]) == [[3, 2]] and points(fig.axes[3]) == []
    np.testing.assert_array_equal(fig.axes[2].images[0].get_array(), result.adversarial[0, 0])


def test_draw_maps_shows_sizes(drawn, images, maps, tmp_path):
    figures.draw_maps(tmp_path / "maps.png", images, [("plain", maps), ("scaled", maps)])
    ((_, fig),) = drawn
    assert titles(fig)[2:] == ["plain\nall zero", "$10^{-30.0}$", "scaled\nall zero", "$10^{-30.0}$"]
    np.testing.assert_array_equal(fig.axes[3].images[0].get_array(), maps.maps[1, 0])
    assert fig.axes[3].images[0].get_clim() == (-10, 10)
    assert said_of_colours(fig) == ["lowers the loss", "0", "raises the loss"]


def test_draw_finding_has_a_row_an_arithmetic(drawn, images, result, maps, tmp_path):
    def only(i):
        fields = {name: value[i : i + 1] for name, value in vars(result).items() if isinstance(value, np.ndarray)}
        return SaliencyMaps(*(array[i : i + 1] for array in maps)), AttackResult(**fields)

    rows = [("plain", *only(1), 8), ("scaled", *only(0), 5)]
    figures.draw_finding(tmp_path / "finding.png", images[0], "sees 8", rows)
    ((_, fig),) = drawn
    assert titles(fig) == [
        "sees 8",
        "saliency map, plain float32:\nlargest gradient $10^{-30}$",
        "Algorithm 1, 100 moves:\nstill sees 8",
        "sees 8",
        "saliency map, scaled float32:\nexactly 0 everywhere",
        "Algorithm 1, 7 moves:\nsees 5",
    ]
    assert said_of_colours(fig) == ["lowers the loss", "0", "raises the loss"]


def test_show_map_is_red_where_the_loss_rises():
    fig, ((axes,),) = common.figure()
    figures.show_map(axes, np.array([[-2.0, 0, 2]]))
    lowers, nothing, raises = axes.images[0].cmap(axes.images[0].norm([-2.0, 0, 2]))[:, :3]
    assert lowers[2] > lowers[0] and raises[0] > raises[2] and (nothing > 0.9).all()


def test_draw_rates_has_a_bar_with_its_interval_for_every_rate(drawn, tmp_path):
    rates = {"plain": [Rate(1, 10), Rate(5, 10)], "scaled": [Rate(9, 10), Rate(0, 10)]}
    figures.draw_rates(tmp_path / "rates.png", {"Algorithm 1": rates, "Algorithm 3": rates}, ["first", "second"])
    ((_, fig),) = drawn
    assert titles(fig) == ["Algorithm 1", "Algorithm 3"]
    for panel in fig.axes:
        assert [label.get_text() for label in panel.get_xticklabels()] == ["first", "second"]
        assert [bar.get_height() for bar in panel.patches] == pytest.approx([10, 50, 90, 0])
        (whiskers,) = panel.collections[0].get_segments()[:1]
        assert whiskers[:, 1] == pytest.approx([100 * end for end in Rate(1, 10).interval])
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["plain float32", "scaled float32"]
