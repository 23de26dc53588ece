"""Notebook 04: three networks, from scores to IoU to mIoU, where the errors lie, and three stages of training."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
from matplotlib.patches import FancyBboxPatch, Patch

from hw1lib.chapters.data import class_legend
from hw1lib.chapters.style import INK, MUTED, bare, canvas, epochs, show
from hw1lib.chapters.words import capital, fraction, listed
from hw1lib.data import landcover
from hw1lib.data.landcover import SCORED
from hw1lib.measures import metrics as scores
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS

COLUMNS = ["model", "miou", "miou_last", *SCORED, "pixel_accuracy", "parameters", "epoch"]
PART_COLOURS = {"input": "#d5d8dc", "backbone": "#8fb8de", "head": "#f5b971", "upsampling": "#9fd8a5"}
VISIBLE = 0.0005  # a smaller change of a mIoU does not show in three digits
VARIANTS = {"": "", "tta": ", TTA", "vote": ", vote"}


# --- numbers


def variants(metrics, colour):
    """The numbers of each model and of its test-time augmentation, where it was asked for.

    Args:
        metrics: dict from model to the metrics of its step.
        colour: metrics of the colour control.

    Returns:
        Dict from (model, variant) to numbers; variant is "" or tta.
    """
    found = {}
    for model, values in metrics.items():
        found[model, ""] = values
        if "tta" in values:
            found[model, "tta"] = values["tta"]
    return found | {("colour", ""): colour}


def table(rows):
    """The table of models, their variants and the colour control.

    Args:
        rows: dict from (model, variant) to numbers, as of `variants`; variant is "", tta or vote.

    Returns:
        DataFrame with the columns of tables/segmentation.csv.
    """
    found = []
    for (model, variant), values in rows.items():
        about = {"model": f"{model}+{variant}" if variant else model}
        if model in SEGMENTERS:
            about["parameters"] = segmenters.parameters(model)
        found.append(about | values | values["iou"])
    frame = pd.DataFrame(found).reindex(columns=COLUMNS)
    return frame.astype({"parameters": "Int64"} | dict.fromkeys(SCORED, "float64"))


def readable(rows, original=None):
    """The same for reading: names in words, and the ceiling of the output stride beside each model.

    Args:
        rows: as of `table`.
        original: dict from model to the original's mIoU, where it compares.
    """
    shown = table(rows).drop(columns="parameters")
    if original:
        shown.insert(1, "original", [fraction(original[m]) if m in original else None for m in shown["model"]])
    ceilings = [None if variant else values.get("ceiling") for (_, variant), values in rows.items()]
    shown.insert(shown.columns.get_loc("miou_last") + 1, "ceiling", ceilings)
    shown["model"] = [
        SEGMENTERS[model].full + VARIANTS[variant] if model in SEGMENTERS else "colour look-up (control)"
        for model, variant in rows
    ]
    return shown


def stride(name, enlarge):
    """How many pixels of a tile, along one side, belong to one of the network's finest scores."""
    return max(1, SEGMENTERS[name].stride // enlarge)


def networks(side, enlarge, metrics):
    """What the networks cost and consist of, counted from their modules: a row a model, as tables/networks.csv.

    Args:
        side: of a tile in pixels.
        enlarge: dict from model to how many times tiles are enlarged before it sees them.
        metrics: dict from model to the metrics of its step, with the ceiling of its output stride.
    """
    rows = [
        {
            "model": model,
            "parameters": segmenters.parameters(model),
            "multiply_adds": segmenters.multiply_adds(model, side * enlarge[model]),
            "stride": stride(model, enlarge[model]),
            "ceiling": metrics[model]["ceiling"],
            **segmenters.anatomy(model),
        }
        for model in metrics
    ]
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace(" ", "_"))


def networks_readable(table):
    """The same with a column a model, as there are few models and many counts."""
    forms = {
        "parameters": "{:,}".format,
        "multiply_adds": lambda count: f"{count / 1e9:.3g} billion",
        "stride": lambda stride: f"{stride} pixels",
        "ceiling": fraction,
    }
    names = {
        "stride": "output stride in the tile", "ceiling": "ceiling of the mIoU there",
        "multiply_adds": "multiply-adds for one tile",
    }  # fmt: skip
    rows = [
        (names.get(quantity, quantity.replace("_", " ")), *map(forms.get(quantity, str), table[quantity]))
        for quantity in table.columns.drop("model")
    ]
    return pd.DataFrame(rows, columns=["", *(SEGMENTERS[model].full for model in table["model"])])


def settings_table(settings):
    """Training settings of the models side by side: a dict from model to settings.Segment."""
    columns = {SEGMENTERS[m].full: {k: str(v) for k, v in dataclasses.asdict(s).items()} for m, s in settings.items()}
    return pd.DataFrame(columns).rename_axis("setting").reset_index()


# --- pictures


def architecture(blocks, title):
    """A network as boxes: taller is larger in space, wider has more channels.

    Args:
        blocks: list of dicts with label, part and shape (channels, height, width), as of segmenters.outline.
        title: of the picture.
    """
    figure, axes = canvas(1, 1, (7.2, 2.9))
    axis = axes[0]
    left, gap, floor = 0.0, 0.55, 0.4
    top = max(block["shape"][1] for block in blocks)
    ends = []
    for block in blocks:
        channels, height, _ = block["shape"]
        tall = floor + 2.6 * np.log2(1 + height) / np.log2(1 + top)
        wide = 0.18 + 0.085 * np.log2(channels)
        box = FancyBboxPatch(
            (left, -tall / 2), wide, tall, boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=PART_COLOURS[block["part"]], edgecolor=INK, linewidth=0.8,
        )  # fmt: skip
        axis.add_patch(box)
        above, below = (left + wide / 2, tall / 2 + 0.1), (left + wide / 2 + 0.1, -tall / 2 - 0.12)
        size = {"fontsize": 6.5, "color": INK}
        axis.text(*above, f"{channels}\n{height}²", ha="center", va="bottom", **size)
        axis.text(*below, block["label"], ha="right", va="top", rotation=38, rotation_mode="anchor", **size)
        ends.append((left, left + wide))
        left += wide + gap
    for (_, end), (start, _) in itertools.pairwise(ends):
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 1}
        axis.annotate("", (start, 0), (end, 0), arrowprops=arrow)
    axis.set_xlim(-1.0, left)
    axis.set_ylim(-3.0, 2.4)
    axis.set_title(title)
    bare(axis)
    handles = [Patch(facecolor=colour, edgecolor=INK, label=part) for part, colour in PART_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def curves(histories, control):
    """Training loss and validation mIoU of the models.

    Args:
        histories: dict from model to DataFrame with epoch, loss and miou.
        control: mIoU of the colour look-up table.
    """
    figure, axes = canvas(1, 2, (7, 2.8))
    for model, history in histories.items():
        about = SEGMENTERS[model]
        style = {"color": about.colour, "label": about.full, "marker": "o", "markersize": 3}
        axes[0].plot(history["epoch"], history["loss"], **style)
        axes[1].plot(history["epoch"], history["miou"], **style)
    axes[1].axhline(control, color=MUTED, linestyle=":", linewidth=1.2)
    axes[1].annotate(
        "colours alone", (1, control), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", fontsize=7, color=MUTED,
    )  # fmt: skip
    axes[0].set_title("training loss")
    axes[0].set_ylim(bottom=0)
    axes[1].set_title("validation mIoU")
    axes[1].yaxis.set_major_formatter("{x:.2f}")
    for axis in axes:
        epochs(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def class_iou(values):
    """IoU of each class by model, the colour control as a line: a dict from model or colour to {class: IoU or None}."""
    figure, axes = canvas(1, 1, (6.8, 2.6))
    axis = axes[0]
    models = [model for model in values if model in SEGMENTERS]
    classes = [c for c in SCORED if any(found[c] is not None for found in values.values())]
    wide = 0.8 / len(models)
    for place, model in enumerate(models):
        at = np.arange(len(classes)) + (place - (len(models) - 1) / 2) * wide
        heights = [values[model][c] or 0 for c in classes]
        axis.bar(at, heights, wide * 0.92, color=SEGMENTERS[model].colour, label=SEGMENTERS[model].full)
        for x, height, name in zip(at, heights, classes, strict=True):
            text = "–" if values[model][name] is None else f"{height:.2f}"
            axis.text(x, height, text, ha="center", va="bottom", fontsize=6)
    for x, name in enumerate(classes):
        label = "colours alone" if x == 0 else None
        axis.hlines(values["colour"][name] or 0, x - 0.45, x + 0.45, color=INK, linestyle=":", label=label)
    axis.set_xticks(range(len(classes)), classes)
    axis.set_ylabel("IoU")
    axis.set_ylim(0, 1)
    axis.grid(axis="x", visible=False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    return figure


def errors(image, truth, predicted):
    """Where the errors lie on a tile: right pixels pale, wrong ones in the colour of what they were taken for.

    Args:
        image: (3, H, W) uint8.
        truth, predicted: (H, W) classes; unknown pixels are not scored.
    """
    scored = truth != landcover.UNKNOWN
    wrong = scored & (truth != predicted)
    where = np.full((*truth.shape, 3), 235, dtype=np.uint8)
    where[wrong] = landcover.encode(predicted)[wrong]
    where[~scored] = 160
    figure, axes = canvas(1, 4, (7.2, 2.3))
    show(axes[0], image.transpose(1, 2, 0), "image")
    show(axes[1], landcover.encode(truth), "labels")
    show(axes[2], landcover.encode(predicted), "prediction")
    show(axes[3], where, f"errors: {wrong.sum() / max(scored.sum(), 1):.0%} of the pixels")
    class_legend(figure, sorted(set(np.unique([truth, predicted]).tolist())))
    return figure


def stages(rows, at):
    """Predicted masks of a few tiles at three stages of training, and the labels.

    Args:
        rows: dict from a tile's number to a dict of image (3, H, W), truth and, by stage, masks of (H, W) classes.
        at: dict from stage to epoch.
    """
    columns = ("image", *at, "truth")
    figure, axes = canvas(len(rows), len(columns), (7, 7 / len(columns) * len(rows) + 0.6))
    seen = set()
    for row, (number, parts) in enumerate(rows.items()):
        for column, name in enumerate(columns):
            axis = axes[row * len(columns) + column]
            title = f"{name} (epoch {at[name]})" if name in at else name
            picture = parts[name].transpose(1, 2, 0) if name == "image" else landcover.encode(parts[name])
            show(axis, picture, title if row == 0 else "")
            if name in at:
                axis.set_xlabel(f"mIoU {tile_miou(parts['truth'], parts[name]):.2f}", fontsize=7)
            if name != "image":
                seen |= set(np.unique(parts[name]).tolist())
        axes[row * len(columns)].set_ylabel(number, fontsize=8)
    class_legend(figure, sorted(seen))
    return figure


def tile_miou(truth, predicted):
    """mIoU of one tile, (H, W) classes both."""
    return scores.miou(scores.confusion(truth, predicted))


# --- sentences


def networks_in_words(table, improved):
    """What the networks are, and how they differ, counted from the modules themselves.

    Args:
        table: as of `networks`.
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


def in_words(rows, improved):
    """Which model is best at its last epoch, by how much, and what is hard for it.

    Args:
        rows: dict from (model, variant) to numbers, as of `variants`.
        improved: the improved model's name.
    """
    last = {model: values["miou_last"] for (model, variant), values in rows.items() if not variant}
    control = last.pop("colour")
    order = sorted(last, key=lambda m: (-last[m], m))
    best, second = order[:2]
    names = {model: SEGMENTERS[model].full for model in order}
    text = (
        f"At the last epoch {names[best]} is best with a mIoU of {last[best]:.3f}, {last[best] - last[second]:.3f} "
        f"ahead of {names[second]}. "
    )
    if improved != "fcn32s":
        gain = last[improved] - last["fcn32s"]
        word = "above" if gain >= 0 else "below"
        text += f"The improved model, {names[improved]}, is {abs(gain):.3f} {word} {names['fcn32s']}. "

    above = [names[m] for m in order if last[m] > control]
    text += f"A look-up table of colours alone reaches {control:.3f}; "
    text += f"above it {'is' if len(above) == 1 else 'are'} {listed(above)}." if above else "no model is above it."
    for model in (m for m in order if (m, "tta") in rows):
        change = rows[model, "tta"]["miou_last"] - last[model]
        text += f" Averaged over eight flips and turns of each tile (TTA), {names[model]} {moved(change)}."
    return f"{text} {hardest(rows[best, '']['iou_last'], names[best])}"


def moved(change):
    """gains 0.012 mIoU, loses 0.012 mIoU or stays as it is."""
    if abs(change) < VISIBLE:
        return "stays as it is"
    return f"{'gains' if change > 0 else 'loses'} {abs(change):.3f} mIoU"


def hardest(iou, name):
    """The class with the lowest IoU, and the classes that do not occur."""
    measured = {c: v for c, v in iou.items() if v is not None}
    worst = min(measured, key=measured.get)
    text = f"The hardest class for {name} is {worst} (IoU {measured[worst]:.3f})."
    absent = [c for c in SCORED if c not in measured]
    if absent:
        occur, are = ("occurs", "is") if len(absent) == 1 else ("occur", "are")
        text += (
            f" {capital(listed(absent))} {occur} neither in these labels nor in its predictions and {are} left out of "
            "its mean."
        )
    return text


def stages_in_words(rows, at, name):
    """How the mean of the shown tiles' mIoU moves from the early to the final stage; `rows` and `at` as of `stages`."""
    values = {stage: np.mean([tile_miou(parts["truth"], parts[stage]) for parts in rows.values()]) for stage in at}
    path = ", ".join(f"{value:.3f} ({stage})" for stage, value in values.items())
    grows = "gains" if values["final"] > values["early"] else "does not gain"
    return f"Over these images the mean mIoU of {name} is {path}: it {grows} from the early to the final stage."
