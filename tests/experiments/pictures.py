"""What can be wrong with a picture, measured: titles and legends that are cut, lie on data or on each other, curves and
bars that need colour to be told apart, powers of ten where numbers would do."""

import itertools

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from matplotlib.text import Text

SLACK = 1.0  # pixels that an edge of a box of text may be off
DISTINCT = 0.1  # least difference of the lightness of bars, black being 0 and white 1


def faults(fig):
    """What is wrong with a figure that was drawn, a sentence each."""
    found = [f"{text.get_text()!r} leaves the picture" for text in _texts(fig) if not _inside(text, fig.bbox)]
    found += [f"{text.get_text()!r} has a backtick" for text in _texts(fig) if "`" in text.get_text()]
    panels = [axes for axes in fig.axes if axes.get_visible()]
    legends = [*fig.legends, *(axes.get_legend() for axes in panels if axes.get_legend())]
    if any(_overlap(one, other) for one, other in itertools.combinations(legends, 2)):
        found.append("two legends lie on each other")
    for legend in legends:
        if not _inside(legend, fig.bbox):
            found.append("a legend leaves the picture")
        if any(_overlap(legend, axes) for axes in panels):
            found.append("a legend lies on an axes")
    titles = [axes.title for axes in panels if axes.get_title()]
    titles += [fig._suptitle] if fig.get_suptitle() else []
    for title in titles:
        others = [axes for axes in panels if axes.title is not title]
        found += [f"{title.get_text()!r} lies on an axes" for axes in others if _overlap(title, axes)]
    for one, other in itertools.combinations(titles, 2):
        if _overlap(one, other):
            found.append(f"{one.get_text()!r} lies on {other.get_text()!r}")
    for axes in panels:
        found += _outside(axes)
    return [*found, *_alike(fig)]


def _texts(fig):
    """All that is written and seen; of ticks only those in their axes."""
    hidden = {text for axes in fig.axes if not axes.axison for text in axes.xaxis.findobj(Text)}
    hidden |= {text for axes in fig.axes if not axes.axison for text in axes.yaxis.findobj(Text)}
    for axes in fig.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


def _inside(artist, box):
    found = artist.get_window_extent()
    low, high = np.array([found.min, found.max])
    return (low >= box.min - SLACK).all() and (high <= box.max + SLACK).all()


def _overlap(one, other):
    return one.get_window_extent().padded(-SLACK).overlaps(other.get_window_extent())


def _outside(axes):
    """Curves whose highest point is above the frame."""
    top = max(axes.get_ylim())
    for line in axes.lines:
        y = np.asarray(line.get_ydata(), float)
        if line.get_transform() == axes.transData and np.isfinite(y).any() and np.nanmax(y) > top:
            yield f"{line.get_label()!r} leaves its frame"


def _alike(fig):
    """Entries of a legend, and bars, that differ in nothing but colour."""
    for legend in [*fig.legends, *(axes.get_legend() for axes in fig.axes if axes.get_legend())]:
        lines = [handle for handle in legend.legend_handles if isinstance(handle, Line2D)]
        for one, other in itertools.combinations(lines, 2):
            if _style(one) == _style(other):
                yield f"{one.get_label()!r} and {other.get_label()!r} differ in colour alone"
    for axes in fig.axes:
        bars = [c.patches[0] for c in axes.containers if isinstance(c, BarContainer)]
        for one, other in itertools.combinations(bars, 2):
            if abs(_lightness(one) - _lightness(other)) < DISTINCT:
                yield "bars differ in colour alone"


def _style(line):
    return line.get_linestyle(), line._unscaled_dash_pattern, line.get_marker(), line.get_fillstyle()


def _lightness(patch):
    return float(np.dot(to_rgb(patch.get_facecolor()), (0.299, 0.587, 0.114)))
