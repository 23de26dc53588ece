"""Notebook 04: what the three networks are, counted from their modules, drawn, and said."""

import numpy as np
import pandas as pd
from matplotlib.patches import FancyBboxPatch, Patch

from hw1lib.chapters.phrases import fraction
from hw1lib.chapters.style import INK, bare, canvas
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS

PART_COLOURS = {"input": "#d5d8dc", "backbone": "#8fb8de", "head": "#f5b971", "upsampling": "#9fd8a5"}


def table(side, enlarge, metrics):
    """What the networks cost and consist of, counted from their modules: a row a model, as tables/networks.csv.

    Args:
        side: of a tile in pixels.
        enlarge: dict from model to how many times tiles are enlarged before it sees them.
        metrics: dict from model to the metrics of its step, with the ceiling of its output stride.
    """
    rows = []
    for model, values in metrics.items():
        adds = segmenters.multiply_adds(model, side * enlarge[model])
        costs = {"model": model, "parameters": segmenters.parameters(model), "multiply_adds": adds}
        limits = {"stride": segmenters.stride(model, enlarge[model]), "ceiling": values["ceiling"]}
        rows.append(costs | limits | segmenters.anatomy(model))
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace(" ", "_"))


def readable(table):
    """The same with a column a model, as there are few models and many counts."""
    forms = {  # name and form, where they differ from the table's
        "parameters": ("parameters", "{:,}".format),
        "multiply_adds": ("multiply-adds for one tile", lambda count: f"{count / 1e9:.3g} billion"),
        "stride": ("output stride in the tile", "{} pixels".format),
        "ceiling": ("ceiling of the mIoU there", fraction),
    }
    rows = []
    for quantity in table.columns.drop("model"):
        name, form = forms.get(quantity, (quantity.replace("_", " "), str))
        rows.append((name, *map(form, table[quantity])))
    return pd.DataFrame(rows, columns=["", *(SEGMENTERS[model].full for model in table["model"])])


def architecture(blocks, title):
    """A network as boxes: taller is larger in space, wider has more channels.

    Args:
        blocks: list of dicts with label, part and shape (channels, height, width), as of segmenters.outline.
        title: of the picture.
    """
    figure, (axis,) = canvas(1, 1, (7.2, 2.9))
    style = {"edgecolor": INK, "linewidth": 0.8, "boxstyle": "round,pad=0,rounding_size=0.05"}
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 1}
    text = {"fontsize": 6.5, "color": INK}
    top = max(block["shape"][1] for block in blocks)
    left, gap = 0.0, 0.55
    for block in blocks:
        if left:
            axis.annotate("", (left, 0), (left - gap, 0), arrowprops=arrow)
        channels, height, _ = block["shape"]
        tall = 0.4 + 2.6 * np.log2(1 + height) / np.log2(1 + top)
        wide = 0.18 + 0.085 * np.log2(channels)
        axis.add_patch(FancyBboxPatch((left, -tall / 2), wide, tall, facecolor=PART_COLOURS[block["part"]], **style))
        above, below = (left + wide / 2, tall / 2 + 0.1), (left + wide / 2 + 0.1, -tall / 2 - 0.12)
        axis.text(*above, f"{channels}\n{height}²", ha="center", va="bottom", **text)
        axis.text(*below, block["label"], ha="right", va="top", rotation=38, rotation_mode="anchor", **text)
        left += wide + gap
    axis.set(xlim=(-1.0, left), ylim=(-3.0, 2.4), title=title)
    bare(axis)
    handles = [Patch(facecolor=colour, edgecolor=INK, label=part) for part, colour in PART_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def in_words(table, improved):
    """What the networks are, and how they differ, counted from the modules themselves.

    Args:
        table: as of `table`.
        improved: the improved model's name.
    """
    rows = {row["model"]: row for row in table.to_dict("records")}
    base, small, large = (rows[model] for model in ("fcn32s", "lraspp", "deeplabv3"))
    gated = segmenters.real("lraspp").classifier.cbr[0].out_channels

    def against(row):
        quantities = (("parameters", "parameters"), ("multiply_adds", "multiply-adds"))
        return " and ".join(f"{100 * row[q] / base[q]:.3g} % of the {name}" for q, name in quantities)

    return "\n\n".join(
        (
            f"**{SEGMENTERS['fcn32s'].full}** (Long et al. 2015, on VGG16 of Simonyan and Zisserman 2015) is one plain "
            f"chain of {base['convolutions']} convolutions with {base['BatchNorm_layers']} BatchNorm layers and no "
            f"skip connection. Its {base['poolings']} poolings shrink the image {SEGMENTERS['fcn32s'].stride} times; "
            "one transposed convolution enlarges the scores as many times in a single step, so nothing finer than such "
            "a block can be told apart.",
            f"**{SEGMENTERS['lraspp'].full}** (Howard et al. 2019) has {against(small)} of FCN32s. *Backbone:* "
            f"{small['inverted_residuals']} inverted residuals (Sandler et al. 2018), which widen a thin map, filter "
            f"each channel by itself and thin it again: {small['depthwise_convolutions']} of its "
            f"{small['convolutions']} convolutions are depthwise, {small['of_these_with_a_skip_connection']} blocks "
            f"have a skip connection, {small['squeeze-and-excite_blocks']} weigh their channels by squeeze-and-excite "
            f"(Hu et al. 2018), {small['BatchNorm_layers']} BatchNorm layers keep it trainable from scratch. "
            f"{small['dilated_convolutions']} convolutions are dilated instead of strided. *Head:* {gated} channels, "
            "multiplied with a gate from global pooling. *Upsampling:* bilinear, in two steps, with scores of an "
            f"earlier layer added in between, at a stride of {SEGMENTERS['lraspp'].stride} pixels.",
            f"**{SEGMENTERS['deeplabv3'].full}** (Chen et al. 2017, on ResNet101 of He et al. 2016) has "
            f"{against(large)} of FCN32s. *Backbone:* {large['residual_bottlenecks']} residual bottlenecks with "
            f"{large['BatchNorm_layers']} BatchNorm layers; {large['dilated_convolutions']} convolutions are dilated, "
            f"so the last two stages stay at a stride of {SEGMENTERS['deeplabv3'].stride}. *Head:* atrous spatial "
            f"pyramid pooling, {large['branches_of_the_ASPP']} branches that look at several scales at once. "
            "*Upsampling:* bilinear, in one step.",
            f"The improved model of this report is {SEGMENTERS[improved].full}. The original's text describes LR-ASPP "
            "while its table lists DeepLabV3; both were trained here.",
        )
    )
