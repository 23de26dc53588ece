"""Notebook 04: tables, diagrams and descriptions of the three networks, derived from their modules."""

import numpy as np
import pandas as pd

from hw1lib.chapters.phrases import sentences
from hw1lib.chapters.style import INK, bare, canvas, colour_legend
from hw1lib.chapters.tables import cell, heading
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS

PART_COLOURS = {"input": "#d5d8dc", "backbone": "#8fb8de", "head": "#f5b971", "upsampling": "#9fd8a5"}


def table(side, enlarge, metrics):
    """Return the cost and the components of each network, with the columns of tables/networks.csv.

    Args:
        side: side of a tile in pixels.
        enlarge: dict from model to the factor by which its input is enlarged.
        metrics: dict from model to the metrics of its step, of which `ceiling` is used.
    """
    rows = []
    for model, values in metrics.items():
        adds = segmenters.multiply_adds(model, side * enlarge[model])
        costs = {"model": model, "parameters": segmenters.parameters(model), "multiply_adds": adds}
        limits = {"stride": segmenters.stride(model, enlarge[model]), "ceiling": values["ceiling"]}
        rows.append(costs | limits | segmenters.anatomy(model))
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace(" ", "_"))


def readable(table):
    """Transpose a table for the report: one row per quantity, one column per model."""
    rows = [(heading(name), *(cell(name, value) for value in table[name])) for name in table.columns.drop("model")]
    return pd.DataFrame(rows, columns=["", *(SEGMENTERS[model].full for model in table["model"])])


def diagram(blocks, title):
    """Draw a network as boxes whose height grows with the resolution and whose width grows with the number of channels.

    Args:
        blocks: list of dicts with label, part and shape (channels, height, width), as returned by segmenters.outline.
        title: title of the figure.
    """
    figure, (axis,) = canvas(1, 1, (7.2, 2.9))
    channels, sides = np.array([block["shape"][:2] for block in blocks]).T
    heights = 0.4 + 2.6 * np.log2(1 + sides) / np.log2(1 + sides.max())
    widths, gap = 0.18 + 0.085 * np.log2(channels), 0.55
    left = np.cumsum(widths + gap) - widths - gap
    right = left + widths

    colours = [PART_COLOURS[block["part"]] for block in blocks]
    boxes = {"align": "edge", "color": colours, "edgecolor": INK, "linewidth": 0.8}
    bars = axis.bar(left, heights, widths, -heights / 2, **boxes)
    axis.bar_label(bars, [f"{count}\n{side}²" for count, side in zip(channels, sides)], fontsize=6.5, padding=2)
    for block, x, y in zip(blocks, (left + right) / 2 + 0.1, -heights / 2 - 0.12):
        axis.text(x, y, block["label"], ha="right", va="top", rotation=38, rotation_mode="anchor", fontsize=6.5)
    for start, end in zip(right[:-1], left[1:]):
        axis.annotate("", (end, 0), (start, 0), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 0.8})
    axis.set(xlim=(-1.0, right[-1] + gap), ylim=(-3.0, 2.4), title=title)
    bare(axis)
    colour_legend(figure, PART_COLOURS, ncols=4)
    return figure


def in_words(table, improved):
    """Return a paragraph on each network.

    Args:
        table: table returned by `table`.
        improved: name of the improved model.
    """
    networks = table.set_index("model", drop=False).to_dict("index")
    for name, counts in networks.items():
        counts |= {"name": SEGMENTERS[name].full, "finest_stride": SEGMENTERS[name].stride}
    networks["lraspp"]["gated"] = segmenters.real("lraspp").classifier.cbr[0].out_channels
    macros = ("network_fcn32s", "network_lraspp", "network_deeplabv3", "network_improved")
    return "\n\n".join(sentences(macro, networks=networks, improved=improved) for macro in macros)
