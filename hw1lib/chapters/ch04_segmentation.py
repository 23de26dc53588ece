"""Notebook 04: from scores to IoU to mIoU, where the errors lie, and three stages of training."""

import numpy as np
import pandas as pd

from hw1lib.chapters.ch00_data import land_cover
from hw1lib.chapters.phrases import capital, ends, fraction, listed
from hw1lib.chapters.style import INK, MUTED, canvas, training_curves
from hw1lib.data import landcover
from hw1lib.data.landcover import SCORED
from hw1lib.metrics import iou as scores
from hw1lib.metrics.statistics import bootstrap, mean_interval
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS
from hw1lib.settings import result_settings

COLUMNS = ["model", "miou", "miou_last", *SCORED, "pixel_accuracy", "parameters", "epoch"]
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
    found = [{"model": f"{m}+{v}" if v else m} | values | values["iou"] for (m, v), values in rows.items()]
    frame = pd.DataFrame(found).reindex(columns=COLUMNS)
    frame["parameters"] = [segmenters.parameters(model) if model in SEGMENTERS else None for model, _ in rows]
    return frame.astype({"parameters": "Int64"} | dict.fromkeys(SCORED, "float64"))


def spread(predictions, masks, groups=None):
    """How far each mIoU, and each difference of two, would move with other tiles: 95 % intervals of a bootstrap.

    Args:
        predictions: dict from (model, variant) to (N, H, W) classes of the validation tiles at the last epoch.
        masks: (N, H, W) true classes.
        groups: (N,) which tiles are of one place, and are drawn together; None: each by itself.

    Returns:
        Dict from (model, variant), and from pairs of them (the first minus the second), to (low, high).
    """
    counts = {name: [scores.confusion(*tile) for tile in zip(masks, found)] for name, found in predictions.items()}
    return bootstrap({name: np.array(each) for name, each in counts.items()}, scores.miou, groups)


def differences(rows, between):
    """The differences of mIoUs that the text speaks of, as tables/segmentation_differences.csv.

    Args:
        rows: dict from (model, variant) to numbers, as of `table`.
        between: as of `spread`.
    """
    models = [name for name in rows if not name[1] and name[0] != "colour"]
    pairs = [(one, two) for place, one in enumerate(models) for two in models[:place]]
    pairs += [(model, ("colour", "")) for model in models]
    pairs += [(name, (name[0], "")) for name in rows if name[1]]
    found = []
    for one, two in pairs:
        gap, (low, high) = rows[one]["miou_last"] - rows[two]["miou_last"], between[one, two]
        found.append({"first": "+".join(filter(None, one)), "second": two[0], "change": gap, "low": low, "high": high})
    return pd.DataFrame(found)


def differences_readable(table):
    """The same for reading."""
    shown = {heading: table[side].map(called) for heading, side in (("model", "first"), ("against", "second"))}
    intervals = [ends(low, high, "…") for low, high in zip(table["low"], table["high"])]
    return pd.DataFrame(shown | {"difference": table["change"].map("{:+.3f}".format), "95 % interval": intervals})


def called(name):
    """The full name of a model, a variant such as lraspp+tta or the control."""
    model, _, variant = name.partition("+")
    full = {name: about.full for name, about in SEGMENTERS.items()} | {"colour": "colour look-up (control)"}
    return full[model] + VARIANTS[variant]


def readable(rows, between, original=None):
    """The same for reading: names in words, intervals, and the ceiling of the output stride beside each model.

    Args:
        rows: as of `table`.
        between: as of `spread`.
        original: dict from model to the original's mIoU, where it compares.
    """
    shown = table(rows).drop(columns="parameters")
    if original:
        shown.insert(1, "original", [fraction(original[m]) if m in original else None for m in shown["model"]])
    ceilings = [None if variant else values.get("ceiling") for (_, variant), values in rows.items()]
    shown.insert(shown.columns.get_loc("miou_last") + 1, "ceiling", ceilings)
    intervals = [ends(*between[name], "–", ".3f") for name in rows]
    shown.insert(shown.columns.get_loc("miou_last") + 1, "95 % interval", intervals)
    return shown.assign(model=shown["model"].map(called))


def settings_table(settings):
    """Training settings of the models side by side: a dict from model to settings.Segment."""
    columns = {SEGMENTERS[m].full: {k: str(v) for k, v in result_settings(s).items()} for m, s in settings.items()}
    return pd.DataFrame(columns).rename_axis("setting").reset_index()


# --- pictures


def curves(histories, control):
    """Training loss and validation mIoU of the models.

    Args:
        histories: dict from model to DataFrame with epoch, loss and miou.
        control: mIoU of the colour look-up table.
    """
    about = {model: SEGMENTERS[model] for model in histories}
    lines = {m: {"color": a.colour, "label": a.full, "marker": "o", "markersize": 3} for m, a in about.items()}
    figure, axis = training_curves(histories, "miou", lines, "{x:.2f}")
    axis.axhline(control, color=MUTED, linestyle=":", linewidth=1.2)
    axis.annotate(
        "colours alone", (1, control), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", fontsize=7, color=MUTED,
    )  # fmt: skip
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def class_iou(values):
    """IoU of each class by model, the colour control as a line: a dict from model or colour to {class: IoU or None}."""
    figure, (axis,) = canvas(1, 1, (6.8, 2.6))
    models = [model for model in values if model in SEGMENTERS]
    classes = [c for c in SCORED if any(found[c] is not None for found in values.values())]
    wide = 0.8 / len(models)
    for place, model in enumerate(models):
        at = np.arange(len(classes)) + (place - (len(models) - 1) / 2) * wide
        ious, about = [values[model][c] for c in classes], SEGMENTERS[model]
        bars = axis.bar(at, [iou or 0 for iou in ious], wide * 0.92, color=about.colour, label=about.full)
        axis.bar_label(bars, ["–" if iou is None else f"{iou:.2f}" for iou in ious], fontsize=6)
    for x, name in enumerate(classes):
        label = "colours alone" if x == 0 else None
        axis.hlines(values["colour"][name] or 0, x - 0.45, x + 0.45, color=INK, linestyle=":", label=label)
    axis.set_xticks(range(len(classes)), classes)
    axis.set(ylabel="IoU", ylim=(0, 1))
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
    part = f"errors: {wrong.sum() / max(scored.sum(), 1):.0%} of the pixels"
    pictures = [image.transpose(1, 2, 0), truth, predicted, where]
    return land_cover(["image", "labels", "prediction", part], [pictures], (7.2, 2.3))


def stages(rows, at):
    """Predicted masks of a few tiles at three stages of training, and the labels.

    Args:
        rows: dict from a tile's number to a dict of image (3, H, W), truth and, by stage, masks of (H, W) classes.
        at: dict from stage to epoch.
    """
    titles = ["image", *(f"{stage} (epoch {epoch})" for stage, epoch in at.items()), "truth"]
    pictures = []
    for parts in rows.values():
        pictures.append([parts["image"].transpose(1, 2, 0), *(parts[stage] for stage in at), parts["truth"]])
    figure = land_cover(titles, pictures, (7, 7 / len(titles) * len(rows) + 0.6), names=rows)

    for axes, parts in zip(np.reshape(figure.axes, (len(rows), -1)), rows.values()):
        for axis, stage in zip(axes[1:], at):
            axis.set_xlabel(f"mIoU {tile_miou(parts['truth'], parts[stage]):.2f}", fontsize=7)
    return figure


def tile_miou(truth, predicted):
    """mIoU of one tile, (H, W) classes both."""
    return scores.miou(scores.confusion(truth, predicted))


# --- sentences


def in_words(rows, improved, between):
    """Which model is best at its last epoch, by how much, and what is hard for it.

    Args:
        rows: dict from (model, variant) to numbers, as of `variants`.
        improved: the improved model's name.
        between: as of `spread`.
    """
    last = {model: values["miou_last"] for (model, variant), values in rows.items() if not variant}
    control = last.pop("colour")
    best, second, *_ = order = sorted(last, key=lambda m: (-last[m], m))

    def beside(one, two, name):
        return against(last[one] - rows[two, ""]["miou_last"], between[(one, ""), (two, "")], name)

    names = {model: SEGMENTERS[model].full for model in order}
    around = ends(*between[best, ""], form=".3f")
    text = f"At the last epoch {names[best]} has the highest mIoU, {last[best]:.3f} ({around}); it "
    text += f"{beside(best, second, names[second])}."
    if improved != "fcn32s" and {improved, "fcn32s"} != {best, second}:
        text += f" The improved model, {names[improved]}, {beside(improved, 'fcn32s', names['fcn32s'])}."
    text += f" A look-up table of colours alone reaches {control:.3f}: "
    text += "; ".join(f"{names[model]} {beside(model, 'colour', 'it')}" for model in order) + "."
    for model in (m for m in order if (m, "tta") in rows):
        change = moved(rows[model, "tta"]["miou_last"] - last[model], between[(model, "tta"), (model, "")])
        text += f" Averaged over eight flips and turns of each tile (TTA), {names[model]} {change}."
    return f"{text} {hardest(rows[best, '']['iou_last'], names[best])}"


def against(gap, interval, other):
    """is 0.012 above B (0.003 to 0.020), or cannot be told from B where the interval of the difference holds zero."""
    low, high = interval
    if not (low > 0 or high < 0):
        return f"cannot be told from {other} on these tiles ({gap:+.3f}, {ends(low, high)})"
    low, high = sorted((abs(low), abs(high)))
    return f"is {abs(gap):.3f} {'above' if gap > 0 else 'below'} {other} ({low:.3f} to {high:.3f})"


def moved(change, interval):
    """gains 0.012 mIoU (0.003 to 0.020), or moves by so much, where the interval of the change holds zero."""
    low, high = interval
    if not (low > 0 or high < 0):
        return f"moves by {change:+.3f} mIoU ({ends(low, high)}), which these tiles cannot tell from zero"
    low, high = sorted((abs(low), abs(high)))
    return f"{'gains' if change > 0 else 'loses'} {abs(change):.3f} mIoU ({low:.3f} to {high:.3f})"


def of_seeds(metrics, model):
    """The mIoU of a model for each seed, as tables/segmentation_seeds.csv.

    Args:
        metrics: dict from seed to the metrics of its step.
        model: its name.
    """
    rows = [(model, seed, found["miou"], found["miou_last"]) for seed, found in metrics.items()]
    return pd.DataFrame(rows, columns=["model", "seed", "miou", "miou_last"])


def seeds(table):
    """How far the improved model's mIoU moves from seed to seed; `table` as of `of_seeds`."""
    last = table["miou_last"]
    name = called(table["model"].iloc[0])
    if len(last) == 1:
        return (
            f"{name} was trained with one seed: how far its mIoU would move with another start was not measured; "
            "`--seeds 3` trains it with two more."
        )
    low, high = mean_interval(last)
    around = ends(low, high, form=".3f", without="none, as all seeds agree")
    return (
        f"Trained with {len(last)} seeds, {name} reaches a mIoU of {last.mean():.3f} at the last epoch on average "
        f"(95 % t interval: {around}), from {last.min():.3f} to {last.max():.3f}."
    )


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
    """The mean of the shown tiles' mIoU at each stage; `rows` and `at` as of `stages`."""
    values = {stage: np.mean([tile_miou(parts["truth"], parts[stage]) for parts in rows.values()]) for stage in at}
    path = ", ".join(f"{value:.3f} ({stage})" for stage, value in values.items())
    return f"Over these images, too few for an interval, the mean mIoU of {name} is {path}."
