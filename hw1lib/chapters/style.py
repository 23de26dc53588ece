"""The style of all figures, saving them, and the drawing functions that several chapters share.

A figure is a function from plain results to a matplotlib Figure; none touches a model, a loop or global state. Saved
files are byte-identical for the same results and the same version of matplotlib.
"""

import io
import itertools

import matplotlib.style
import numpy as np
import seaborn
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hw1lib import files, paths
from hw1lib.data import landcover

INK = "#22313f"
MUTED = "#7b8794"
PALETTE = seaborn.color_palette("colorblind", 10).as_hex()
METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


def use():
    """Set the style of all figures that follow, and make notebooks show figures as PNG."""
    matplotlib.style.use(paths.STYLE)
    if get_ipython() is not None:
        get_ipython().display_formatter.formatters["image/png"].for_type(Figure, png)


def save(figure, path, dpi=160):
    """Write a figure as PNG, PDF or SVG, by the suffix of `path`, without date or version."""
    kind = path.suffix.removeprefix(".")
    if figure.get_layout_engine() is not None:  # laid out once: each save would shift the axes
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=METADATA[kind])


def png(figure, dpi=100):
    """Return a figure as the bytes of a PNG."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=dpi, metadata=METADATA["png"])
        return file.getvalue()


def canvas(rows=1, columns=1, size=(6.4, 3.6), **options):
    """Return a new figure and a flat list of its axes."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def show(axes, image, title="", size=8):
    """Draw an (H, W, 3) image without ticks, in a thin frame."""
    axes.imshow(image, interpolation="nearest")
    bare(axes)
    axes.spines[:].set(visible=True, linewidth=0.4, edgecolor=MUTED)  # white masks need an edge
    axes.set_title(title, fontsize=size)


def bare(axes):
    """Remove ticks, grid and spines."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def image_grid(rows, columns=None, size=None, title_size=8):
    """Draw rows of example images.

    Args:
        rows: dict from a row's label to a list of (H, W, 3) uint8 images.
        columns: number of columns; None: the length of the longest row.
        size: figure size in inches; None: as the grid needs.
        title_size: font size of the labels in points.
    """
    columns = columns or max(len(images) for images in rows.values())
    figure, axes = canvas(len(rows), columns, size or (min(0.85 * columns + 1.6, 7.2), 0.82 * len(rows)))
    for axis in axes:
        bare(axis)
    for row, (name, images) in enumerate(rows.items()):
        for column, image in enumerate(images):
            show(axes[row * columns + column], image)
        axes[row * columns].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=title_size)
    return figure


def progress(step, history):
    """Draw the numbers of a training step so far, one panel per number.

    Args:
        step: name of the step.
        history: list with a dict per epoch, with epoch and any floats.
    """
    names = [k for k, v in history[-1].items() if isinstance(v, float) and k != "lr"]
    figure, axes = canvas(1, len(names), (1.9 * len(names) + 0.6, 1.9))
    for axis, name in zip(axes, names):
        axis.plot([r["epoch"] for r in history], [r[name] for r in history], marker="o", ms=3)
        axis.set_title(name)
        epochs(axis)
    figure.suptitle(step, fontsize=9, color=INK)
    return figure


def training_curves(histories, score, lines, form):
    """Draw training loss and validation score; return the figure and the axes of the score.

    Args:
        histories: dict from a run's name to DataFrame with epoch, loss and the score.
        score: column of the score.
        lines: dict from a run's name to keyword arguments of `plot`.
        form: tick format of the score.
    """
    figure, axes = canvas(1, 2, (7, 2.8))
    for axis, column in zip(axes, ("loss", score)):
        for name, history in histories.items():
            axis.plot(history["epoch"], history[column], **lines[name])
        epochs(axis)
    axes[0].set(title="training loss", ylim=(0, None))
    axes[1].set_title("validation mIoU" if score == "miou" else f"validation {score}")
    axes[1].yaxis.set_major_formatter(form)
    return figure, axes[1]


def epochs(axis):
    """Label the x axis "epoch", with whole numbers."""
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)


def timing(seconds):
    """Draw a bar per step, from a dict from step to seconds."""
    figure, (axis,) = canvas(1, 1, (6.4, min(0.24 * len(seconds) + 0.8, 9)))
    bars = axis.barh(list(seconds), list(seconds.values()), color=PALETTE[0])
    axis.bar_label(bars, fmt=" {:.0f} s", fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.grid(axis="y", visible=False)
    return figure


def land_cover(titles, rows, size, names=(), captions=(), title_size=8):
    """Draw rows of tiles and masks above a legend of the classes that the masks show.

    Args:
        titles: titles of the columns.
        rows: lists of pictures, each (H, W, 3) colours or (H, W) classes.
        size: figure size in inches.
        names: labels of the rows.
        captions: texts below the pictures, row by row.
        title_size: font size of the titles in points.
    """
    figure, axes = canvas(len(rows), len(titles), size)
    pictures = list(itertools.chain(*rows))
    cells = itertools.zip_longest(axes, pictures, titles, captions, fillvalue="")  # titles: first row only
    for axis, picture, title, caption in cells:
        show(axis, landcover.encode(picture) if picture.ndim == 2 else picture, title, title_size)
        axis.set_xlabel(caption, fontsize=7)
    for axis, name in zip(axes[:: len(titles)], names):
        axis.set_ylabel(name, fontsize=8)
    class_legend(figure, np.unique(np.concatenate([p.ravel() for p in pictures if p.ndim == 2])))
    return figure


def class_legend(figure, classes):
    """Draw a legend of land-cover classes, given by number, below a figure."""
    colours = {landcover.CLASSES[number]: landcover.PALETTE[number] / 255 for number in classes}
    handles = [Patch(facecolor=colour, edgecolor=MUTED, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8, handlelength=1.2)


def evenly(count, wanted):
    """Return up to `wanted` indices, evenly spaced over 0 … count - 1."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))
