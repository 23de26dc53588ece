"""Notebook 04: the three networks, counted from their modules, drawn, and described."""

import numpy as np
import pandas as pd
from matplotlib.patches import FancyBboxPatch, Patch

from hw1lib.chapters.style import INK, bare, canvas
from hw1lib.chapters.tables import cell, heading
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS

PART_COLOURS = {"input": "#d5d8dc", "backbone": "#8fb8de", "head": "#f5b971", "upsampling": "#9fd8a5"}
DESCRIPTION = """\
**{fcn32s[name]}** (Long et al. 2015, on VGG16 of Simonyan and Zisserman 2015) is a plain chain of
{fcn32s[convolutions]} convolutions with {fcn32s[BatchNorm_layers]} BatchNorm layers and no skip connection. Its
{fcn32s[poolings]} poolings reduce the resolution {strides[fcn32s]} times, and one transposed convolution upsamples the
scores by the same factor in a single step, so finer details are lost.

**{lraspp[name]}** (Howard et al. 2019) has {lraspp[relative]} of {fcn32s[name]}. *Backbone:*
{lraspp[inverted_residuals]} inverted residuals (Sandler et al. 2018), which expand a narrow feature map, filter each
channel separately and project it back: {lraspp[depthwise_convolutions]} of its {lraspp[convolutions]} convolutions are
depthwise, {lraspp[of_these_with_a_skip_connection]} blocks have a skip connection,
{lraspp[squeeze-and-excite_blocks]} use squeeze-and-excite (Hu et al. 2018), and {lraspp[BatchNorm_layers]} BatchNorm
layers stabilise training from scratch. {lraspp[dilated_convolutions]} convolutions are dilated instead of strided.
*Head:* {gated} channels, multiplied by a gate from global pooling. *Upsampling:* bilinear, in two steps; in between,
scores of an earlier layer at stride {strides[lraspp]} are added.

**{deeplabv3[name]}** (Chen et al. 2017, on ResNet101 of He et al. 2016) has {deeplabv3[relative]} of {fcn32s[name]}.
*Backbone:* {deeplabv3[residual_bottlenecks]} residual bottlenecks with {deeplabv3[BatchNorm_layers]} BatchNorm layers;
{deeplabv3[dilated_convolutions]} dilated convolutions keep the last two stages at stride {strides[deeplabv3]}. *Head:*
atrous spatial pyramid pooling (ASPP), {deeplabv3[branches_of_the_ASPP]} branches that cover several scales.
*Upsampling:* bilinear, in one step.

The improved model of this report is {improved}. The original's text describes LR-ASPP, but its table lists DeepLabV3;
both were trained here."""


def table(side, enlarge, metrics):
    """Return the cost and the building blocks of each network, with the columns of tables/networks.csv.

    Args:
        side: side of a tile in pixels.
        enlarge: dict from model to the factor by which its input is enlarged.
        metrics: dict from model to the metrics of its step, which hold the ceiling of its output stride.
    """
    rows = []
    for model, values in metrics.items():
        adds = segmenters.multiply_adds(model, side * enlarge[model])
        costs = {"model": model, "parameters": segmenters.parameters(model), "multiply_adds": adds}
        limits = {"stride": segmenters.stride(model, enlarge[model]), "ceiling": values["ceiling"]}
        rows.append(costs | limits | segmenters.anatomy(model))
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace(" ", "_"))


def readable(table):
    """Return the table with a row per quantity and a column per model."""
    rows = [(heading(name), *(cell(name, value) for value in table[name])) for name in table.columns.drop("model")]
    return pd.DataFrame(rows, columns=["", *(SEGMENTERS[model].full for model in table["model"])])


def diagram(blocks, title):
    """Draw a network as boxes; the height grows with the resolution, the width with the number of channels.

    Args:
        blocks: list of dicts with label, part and shape (channels, height, width), as returned by segmenters.outline.
        title: title of the figure.
    """
    figure, (axis,) = canvas(1, 1, (7.2, 2.9))
    style = {"edgecolor": INK, "linewidth": 0.8, "boxstyle": "round,pad=0,rounding_size=0.05"}
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 1}
    text = {"fontsize": 6.5, "color": INK}
    largest = max(block["shape"][1] for block in blocks)
    left, gap = 0.0, 0.55
    for block in blocks:
        if left:
            axis.annotate("", (left, 0), (left - gap, 0), arrowprops=arrow)
        channels, side, _ = block["shape"]
        height = 0.4 + 2.6 * np.log2(1 + side) / np.log2(1 + largest)
        width = 0.18 + 0.085 * np.log2(channels)
        axis.add_patch(FancyBboxPatch((left, -height / 2), width, height, fc=PART_COLOURS[block["part"]], **style))
        above, below = (left + width / 2, height / 2 + 0.1), (left + width / 2 + 0.1, -height / 2 - 0.12)
        axis.text(*above, f"{channels}\n{side}²", ha="center", va="bottom", **text)
        axis.text(*below, block["label"], ha="right", va="top", rotation=38, rotation_mode="anchor", **text)
        left += width + gap
    axis.set(xlim=(-1.0, left), ylim=(-3.0, 2.4), title=title)
    bare(axis)
    handles = [Patch(facecolor=colour, edgecolor=INK, label=part) for part, colour in PART_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def in_words(table, improved):
    """Return DESCRIPTION with the counts of a table.

    Args:
        table: table returned by `table`.
        improved: name of the improved model.
    """
    rows = table.set_index("model", drop=False).to_dict("index")
    for name, row in rows.items():
        shares = (f"{100 * row[column] / rows['fcn32s'][column]:.3g} %" for column in ("parameters", "multiply_adds"))
        row |= {
            "name": SEGMENTERS[name].full,
            "relative": "{} of the parameters and {} of the multiply-adds".format(*shares),
        }
    gated = segmenters.real("lraspp").classifier.cbr[0].out_channels
    strides = {name: segmenter.stride for name, segmenter in SEGMENTERS.items()}
    text = DESCRIPTION.format(**rows, gated=gated, strides=strides, improved=SEGMENTERS[improved].full)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
