"""The checks that every picture of the tests passes can fail: each fault, planted, is found and told."""

import matplotlib
import numpy as np
import pytest

from experiments import common
from tests.experiments.pictures import faults


@pytest.fixture
def drawn(tmp_path):
    """A function that draws a sound figure of two panels, changed by what it is given: its faults."""

    def draw(change):
        fig, (panels,) = common.figure(1, 2)
        for panel in panels:
            panel.plot([0, 1], [0, 1], "C0-o", label="one")
            panel.plot([0, 1], [1, 0], "C1--s", label="other")
            panel.set(title="panel", xlabel="x")
        fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center")
        common.head(fig, "all")
        change(fig, panels[0])
        common.save_figure(tmp_path / "picture.png", fig)
        return faults(fig)

    return draw


@pytest.fixture
def no_faulty_picture():
    """Here they are wanted."""


def test_faults_of_a_sound_picture(drawn):
    assert drawn(lambda fig, panel: None) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda fig, panel: fig.suptitle(100 * "long "), "leaves the picture"),
        (lambda fig, panel: panel.set_title("`name`"), "has a backtick"),
        (lambda fig, panel: panel.set_title(30 * "long ").set_in_layout(False), "lies on 'panel'"),
        (lambda fig, panel: fig.suptitle("all", y=0.5), "'all' lies on an axes"),
        (lambda fig, panel: panel.legend(), "a legend lies on an axes"),
        (lambda fig, panel: panel.set_ylim(0, 0.9), "'one' leaves its frame"),
        (lambda fig, panel: fig.legend(["one", "other"], loc="outside lower center"), "lie on each other"),
        (lambda fig, panel: fig.text(0.5, 0.99, "cut").set_in_layout(False), "'cut' leaves the picture"),
    ],
)
def test_faults_are_told(drawn, change, told):
    assert any(told in fault for fault in drawn(change))


def test_faults_of_what_colour_alone_tells_apart(drawn):
    def lines(fig, panel):
        panel.lines[1].set(linestyle="-", marker="o")
        fig.legends.clear()
        fig.legend(*panel.get_legend_handles_labels(), loc="outside lower center")

    def bars(fig, panel):
        panel.bar([0, 1], [1, 1], color="#ff0000")
        panel.bar([2, 3], [1, 1], color="#0000ff")

    assert drawn(lines) == ["'one' and 'other' differ in colour alone"]
    assert drawn(bars) == []
    assert drawn(lambda fig, panel: [panel.bar([0], [1], color=c) for c in ("#ff0000", "#008200")]) == [
        "bars differ in colour alone"
    ]


def test_head_takes_as_many_lines_as_it_needs(drawn):
    assert drawn(lambda fig, panel: common.head(fig, 30 * "long words, " + 300 * "x" + " $not a ^{formula")) == []


def test_figure_has_our_style_whatever_the_user_s_is():
    """Which asks for LaTeX, or for colours of its own."""
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black", "font.size": 40}):
        fig, ((panel,),) = common.figure()
        panel.set_title("a title")
        fig.canvas.draw()
    assert not panel.title.get_usetex() and panel.title.get_size() == 10 and panel.get_facecolor() == (1, 1, 1, 1)


def test_plain_numbers_have_no_powers_of_ten(drawn, tmp_path):
    labels = {}

    def change(fig, panel):
        panel.plot([1, 2, 30], [0.001, 1, 1000], "C2-.^")
        common.plain_numbers(panel.xaxis, [1, 2, 30])
        common.plain_numbers(panel.yaxis)
        fig.draw_without_rendering()
        labels.update({a: [t.get_text() for t in getattr(panel, f"get_{a}ticklabels")()] for a in "xy"})

    assert drawn(change) == []
    assert labels["x"] == ["1", "2", "30"]
    assert {"0.001", "1", "1000"} <= set(labels["y"]) and not any("$" in text for text in labels["y"])


def test_plain_numbers_of_nothing(drawn):
    def change(fig, panel):
        panel.clear()
        common.plain_numbers(panel.yaxis)

    assert np.all([fault is None for fault in drawn(change)])
