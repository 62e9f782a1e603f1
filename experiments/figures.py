"""The pictures that experiments share: the paper's Figures 1 and 2, saliency maps, the finding, success rates."""

import numpy as np

from experiments import common

MAP_COLOURS = "RdBu_r"
BAR_COLOURS = {"plain": "#a50f15", "scaled": "#6baed6"}  # in all pictures plain is reddish, scaled is bluish
SMALL = 8  # points, of the titles of images


def show_image(axes, image, title="", lowest=0, largest=1, colours=None):
    """Draw an image (H, W), by default in [0, 1] and dark on light."""
    axes.imshow(image, cmap=colours, vmin=lowest, vmax=largest)
    axes.set_title(title, fontsize=SMALL)
    axes.axis("off")


def show_map(axes, saliency_map, title=""):
    """Draw a saliency map (H, W) in the colours of show_colours; the largest entry has the full one."""
    bound = float(np.abs(saliency_map).max()) or 1.0
    show_image(axes, saliency_map, title, -bound, bound, MAP_COLOURS)


def largest_gradient(found):
    """The size of a map, in words; found: the SaliencyMaps of one image alone."""
    if found.zeros[0] == found.maps[0].size:
        return "exactly 0 everywhere"
    return f"largest gradient $10^{{{found.log10_size()[0]:.0f}}}$"


def show_colours(fig, axes):
    """Say below the axes (an array) what the colours of their maps mean: a pixel that is raised does that."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(-1, 1), MAP_COLOURS)
    bar = fig.colorbar(scale, ax=axes, location="bottom", shrink=min(0.9, 4 / fig.get_figwidth()), aspect=40, pad=0.02)
    bar.set_ticks([-0.8, 0, 0.8], labels=["lowers the loss", "0", "raises the loss"])


def show_moves(axes, image, adversarial, title=""):
    """Draw an adversarial sample (H, W), the pixels that were moved in red."""
    show_image(axes, adversarial, title)
    moved = np.argwhere(image != adversarial)
    axes.scatter(moved[:, 1], moved[:, 0], s=4, color="tab:red")


def draw_samples(path, images, labels, result, decisions, title):
    """Figure 1 above Figure 2: samples, and what an attack made of them (red: changed pixels).

    images (N, 1, H, W), labels (N,); result: the AttackResult; decisions (N,): of the network on result.adversarial.
    """
    fig, axes = common.figure(2, len(images), width=1.3, height=1.6)
    for i, (top, bottom) in enumerate(axes.T):
        outcome = f"seen as {decisions[i]}" if result.succeeded[i] else "failed"
        show_image(top, images[i, 0], f"label {labels[i]}")
        show_moves(bottom, images[i, 0], result.adversarial[i, 0], f"{outcome}\n{result.moves[i]} moves")
    common.head(fig, title)
    common.save_figure(path, fig)


def draw_maps(path, images, rows):
    """Images (N, 1, H, W) above their maps: rows is a list of (title, SaliencyMaps)."""
    fig, axes = common.figure(1 + len(rows), len(images), width=1.4, height=1.6)
    for i in range(len(images)):
        show_image(axes[0, i], images[i, 0])
        for line, (title, found) in zip(axes[1:], rows, strict=True):
            size = "all zero" if found.zeros[i] == found.maps[i].size else f"$10^{{{found.log10_size()[i]:.1f}}}$"
            show_map(line[i], found.maps[i, 0], f"{title}\n{size}" if i == 0 else size)
    show_colours(fig, axes)
    common.save_figure(path, fig)


def draw_finding(path, image, title, rows):
    """The finding in one picture: the same image (1, H, W), its map and Algorithm 1, in one arithmetic a row.

    title: of the image; rows: (arithmetic, SaliencyMaps, AttackResult, decision), each of this image alone.
    """
    fig, axes = common.figure(len(rows), 3, width=2.2, height=2.6)
    for (original, map_, moved), (arithmetic, found, result, decision) in zip(axes, rows, strict=True):
        outcome = f"sees {decision}" if result.succeeded[0] else f"still sees {decision}"
        show_image(original, image[0], title)
        show_map(map_, found.maps[0, 0], f"saliency map, {arithmetic} float32:\n{largest_gradient(found)}")
        show_moves(moved, image[0], result.adversarial[0, 0], f"Algorithm 1, {result.moves[0]} moves:\n{outcome}")
    show_colours(fig, axes)
    common.save_figure(path, fig)


def bars(axes, at, rates, width, **style):
    """Draw rates as bars with whiskers at these places. rates (3, N): in percent, and the bounds of their intervals."""
    rate, low, high = rates
    axes.bar(at, rate, width, yerr=np.maximum([rate - low, high - rate], 0), **style)


def draw_rates(path, panels, names):
    """Success rates as bars with 95 % intervals. panels: title -> arithmetic -> Rates, one for each of the names."""
    fig, axes = common.figure(1, len(panels), width=4.2)
    for panel, (title, arithmetics) in zip(axes[0], panels.items(), strict=True):
        for offset, (arithmetic, rates) in zip((-0.2, 0.2), arithmetics.items(), strict=True):
            percents, at = 100 * np.array([(r.share, *r.interval) for r in rates]).T, np.arange(len(names)) + offset
            bars(panel, at, percents, 0.4, color=BAR_COLOURS[arithmetic], label=f"{arithmetic} float32")
        panel.set_xticks(range(len(names)), names)
        panel.set(title=title, ylim=(0, 105))
        panel.grid(visible=False, axis="x")
    axes[0, 0].set_ylabel("adversarial samples found (%)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    common.save_figure(path, fig)
