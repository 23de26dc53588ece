"""Figure style, saving, and the drawing functions that several chapters share.

Drawing functions take plain results and return a matplotlib Figure; they use no model and no global state. Saved files
are byte-identical for the same results and the same version of matplotlib.
"""

import io

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hw1lib import files, paths
from hw1lib.data import landcover

INK = "#22313f"
MUTED = "#7b8794"
PALETTE = seaborn.color_palette("colorblind", 10).as_hex()
METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}


def use():
    """Set matplotlib's style to figures.mplstyle, and make notebooks show figures as PNG."""
    matplotlib.style.use(paths.STYLE)
    if get_ipython() is not None:
        get_ipython().display_formatter.formatters["image/png"].for_type(Figure, png)


def save(figure, path, dpi=160):
    """Write a figure as PNG or PDF, by the suffix of `path`, without date or version in its metadata."""
    kind = path.suffix.removeprefix(".")
    if figure.get_layout_engine() is not None:  # otherwise each save would shift the axes slightly
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
    """Return a new figure and a flat list of its axes; `options` go to Figure.subplots."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def show(axes, image, title="", size=8):
    """Draw an (H, W, 3) image without ticks, in a thin frame."""
    axes.imshow(image, interpolation="nearest")
    bare(axes)
    axes.spines[:].set(visible=True, linewidth=0.4, edgecolor=MUTED)  # so that white areas have an edge
    axes.set_title(title, fontsize=size)


def bare(axes):
    """Remove ticks, grid and spines from axes."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def image_grid(rows, columns=None, size=None, titles=(), captions=(), title_size=8):
    """Draw a grid of pictures, with a legend of the classes that occur in masks.

    Args:
        rows: dict from a row's label to a list of pictures, (H, W, 3) uint8 colours or (H, W) land-cover classes.
        columns: number of columns; None: the length of the longest row.
        size: figure size in inches; None: derived from the grid.
        titles: titles of the columns.
        captions: texts below the pictures, row by row.
        title_size: font size of labels and titles in points.
    """
    columns = columns or max(map(len, rows.values()))
    figure, axes = canvas(len(rows), columns, size or (min(0.85 * columns + 1.6, 7.2), 0.82 * len(rows)))
    classes = set()
    for axis in axes:
        bare(axis)
    for start, (label, pictures) in zip(range(0, len(axes), columns), rows.items()):
        axes[start].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=title_size)
        for axis, picture in zip(axes[start:], pictures):
            classes |= set(np.unique(picture)) if picture.ndim == 2 else set()
            show(axis, landcover.encode(picture) if picture.ndim == 2 else picture)
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=title_size)
    for axis, caption in zip(axes, captions):
        axis.set_xlabel(caption, fontsize=7)
    if classes:
        class_legend(figure, sorted(classes))
    return figure


def progress(step, history):
    """Draw the history of a training step so far, one panel per quantity.

    Args:
        step: name of the step.
        history: list of one dict per epoch, of epoch and floats; the learning rate is left out.
    """
    history = pd.DataFrame(history)
    names = history.select_dtypes(float).columns.drop("lr", errors="ignore")
    figure, axes = canvas(1, len(names), (1.9 * len(names) + 0.6, 1.9))
    for axis, name in zip(axes, names):
        curve(axis, history, name, name, marker="o", ms=3)
    figure.suptitle(step, fontsize=9, color=INK)
    return figure


def training_curves(histories, score, lines, form):
    """Draw training loss and validation score by epoch; return the figure and the axes of the score.

    Args:
        histories: dict from a run's name to DataFrame with epoch, loss and the score.
        score: column of the score.
        lines: dict from a run's name to keyword arguments of `plot`.
        form: tick format of the score.
    """
    figure, axes = canvas(1, 2, (7, 2.8))
    titles = {"loss": "training loss", score: "validation mIoU" if score == "miou" else f"validation {score}"}
    for axis, (column, title) in zip(axes, titles.items()):
        for name, history in histories.items():
            curve(axis, history, column, title, **lines[name])
    axes[0].set_ylim(bottom=0)
    axes[1].yaxis.set_major_formatter(form)
    return figure, axes[1]


def curve(axis, history, column, title, **line):
    """Draw a column of a history by epoch, skipping epochs in which it was not measured."""
    measured = history[["epoch", column]].dropna()
    axis.plot(measured["epoch"], measured[column], **line)
    axis.set(title=title, xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)


def timing(seconds):
    """Draw the run time of each step as a bar; `seconds` is a dict from step to seconds."""
    figure, (axis,) = canvas(1, 1, (6.4, min(0.24 * len(seconds) + 0.8, 9)))
    axis.bar_label(bars(axis, list(seconds), list(seconds.values())), fmt=" {:.0f} s", fontsize=7)
    axis.set_xlabel("seconds")
    return figure


def bars(axis, names, values, colours=PALETTE[0], **options):
    """Draw horizontal bars from top to bottom; return them."""
    axis.yaxis.set_inverted(True)
    axis.grid(axis="y", visible=False)
    return axis.barh(names, values, color=colours, **options)


def class_legend(figure, classes):
    """Draw a legend of land-cover classes, given by their numbers, below a figure."""
    colours = {landcover.CLASSES[number]: landcover.PALETTE[number] / 255 for number in classes}
    colour_legend(figure, colours, ncols=7)


def colour_legend(figure, colours, **options):
    """Draw a legend below a figure; `colours` is a dict from label to colour."""
    handles = [Patch(facecolor=colour, edgecolor=MUTED, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", fontsize=8, handlelength=1.2, **options)


def evenly(count, wanted):
    """Return up to `wanted` indices, evenly spaced over 0 … count - 1."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))
