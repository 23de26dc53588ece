"""The house style of every figure, how figures are saved, and the pictures that both problems use.

A figure is a function from plain results to a matplotlib Figure; none touches a model, a loop or
global state. Files are the same to the byte for the same results and the same matplotlib.
"""

import io

import matplotlib.style
import seaborn
from IPython import get_ipython
from matplotlib.figure import Figure

from hw1lib import files, paths

INK = "#22313f"
MUTED = "#7b8794"
PALETTE = seaborn.color_palette("colorblind", 10).as_hex()
METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


def use():
    """Sets the house style for all figures that follow, and how notebooks show them."""
    matplotlib.style.use(paths.STYLE)
    if get_ipython() is not None:
        get_ipython().display_formatter.formatters["image/png"].for_type(Figure, png)


def save(figure, path, dpi=160):
    """Writes a figure as PNG, PDF or SVG, by the path's ending, without date or version."""
    kind = path.suffix.removeprefix(".")
    if figure.get_layout_engine() is not None:  # laid out once: each saving would move things
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=METADATA[kind])


def png(figure, dpi=100):
    """A figure as the bytes of a PNG."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=dpi, metadata=METADATA["png"])
        return file.getvalue()


def canvas(rows=1, columns=1, size=(6.4, 3.6), **options):
    """A figure in the house style with its axes as a flat list."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def show(axes, image, title="", size=8):
    axes.imshow(image, interpolation="nearest")
    bare(axes)
    axes.spines[:].set(visible=True, linewidth=0.4, edgecolor=MUTED)  # so that white masks end somewhere
    axes.set_title(title, fontsize=size)


def bare(axes):
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def image_grid(rows, columns=None, size=None, title_size=8):
    """Rows of example images.

    Args:
        rows: dict from a row's name to a list of (H, W, 3) uint8 images.
        columns: of the grid; None for as many as the longest row has images.
        size: of the figure in inches; None for one that fits.
        title_size: of the rows' names in points.
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
    """The numbers of a training step so far, a panel each.

    Args:
        step: its name.
        history: list of a dict an epoch, with epoch and any plain numbers.
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
    """Training loss and a score on validation; returns the figure and the axes of the score.

    Args:
        histories: dict from a line's name to DataFrame with epoch, loss and the score.
        score: its column.
        lines: dict from a line's name to how it is drawn.
        form: of the score's numbers.
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
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)


def timing(seconds):
    """Seconds of each step, from a dict."""
    figure, (axis,) = canvas(1, 1, (6.4, min(0.24 * len(seconds) + 0.8, 9)))
    bars = axis.barh(list(seconds), list(seconds.values()), color=PALETTE[0])
    axis.bar_label(bars, fmt=" {:.0f} s", fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.grid(axis="y", visible=False)
    return figure
