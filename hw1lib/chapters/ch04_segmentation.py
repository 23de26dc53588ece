"""Notebooks 04 and 05: IoU and mIoU of the models, their errors, and three stages of training.

Models, variants and the control are named as in tables/segmentation.csv: fcn32s, lraspp+tta, lraspp+vote, colour.
"""

import numpy as np
import pandas as pd

from hw1lib.chapters.phrases import ALL_AGREE, change, comparison, confidence, fraction, interval, sentences
from hw1lib.chapters.style import INK, MUTED, canvas, image_grid, training_curves
from hw1lib.data import landcover
from hw1lib.data.landcover import SCORED
from hw1lib.metrics import iou as scores
from hw1lib.metrics.statistics import bootstrap, mean_interval
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS

COLUMNS = ["model", "miou", "miou_last", *SCORED, "pixel_accuracy", "parameters", "epoch"]


def full_name(name):
    """Return how the report names a model, a variant such as lraspp+tta, or the control."""
    model, _, variant = name.partition("+")
    if model == "colour":
        return "colour look-up (control)"
    return SEGMENTERS[model].full + {"": "", "tta": ", TTA", "vote": ", vote"}[variant]


# --- tables


def variants(metrics, colour, voted=None):
    """Return the metrics of each model, of its variants and of the colour control, by name.

    Args:
        metrics: dict from model to the metrics of its step; their `tta`, if any, becomes a variant.
        colour: metrics of the colour control.
        voted: dict from a variant such as lraspp+vote to its metrics.
    """
    rows = {}
    for model, values in metrics.items():
        rows[model] = values
        if "tta" in values:
            rows[f"{model}+tta"] = values["tta"]
    return rows | (voted or {}) | {"colour": colour}


def table(rows):
    """Return the table of models, with the columns of tables/segmentation.csv; `rows` as returned by `variants`."""
    frame = pd.DataFrame([{"model": name} | values | values["iou"] for name, values in rows.items()])
    frame = frame.reindex(columns=COLUMNS)
    models = [name.partition("+")[0] for name in rows]
    frame["parameters"] = [segmenters.parameters(model) if model in SEGMENTERS else None for model in models]
    return frame.astype({"parameters": "Int64"} | dict.fromkeys(SCORED, "float64"))


def intervals(predictions, masks, groups=None):
    """Return 95 % bootstrap intervals of all mIoUs and of their differences.

    Args:
        predictions: dict from name to (N, H, W) classes of the validation tiles at the last epoch.
        masks: (N, H, W) true classes.
        groups: (N,) place of each tile; tiles of one place are resampled together. None: each tile is its own place.

    Returns:
        Dict from name, and from pairs of names (the first minus the second), to (low, high).
    """
    counts = {name: [scores.confusion(*tile) for tile in zip(masks, classes)] for name, classes in predictions.items()}
    return bootstrap({name: np.array(matrices) for name, matrices in counts.items()}, scores.miou, groups)


def differences(table, intervals):
    """Return the differences of mIoUs at the last epoch, with the columns of tables/segmentation_differences.csv.

    Args:
        table: table returned by `table`.
        intervals: as returned by `intervals`.

    Returns:
        DataFrame with columns first, second, change (first minus second), low and high: models with each other, models
        with the control, and variants with their models.
    """
    last = dict(zip(table["model"], table["miou_last"]))
    models = [name for name in last if name in SEGMENTERS]
    pairs = [(later, earlier) for later in models for earlier in models[: models.index(later)]]
    pairs += [(model, "colour") for model in models]
    pairs += [(name, name.partition("+")[0]) for name in last if "+" in name]
    rows = [(first, second, last[first] - last[second], *intervals[first, second]) for first, second in pairs]
    return pd.DataFrame(rows, columns=["first", "second", "change", "low", "high"])


def readable_differences(differences):
    """Return the table of differences with the names used in the report."""
    return differences.assign(**{side: differences[side].map(full_name) for side in ("first", "second")})


def readable(rows, intervals, original=None):
    """Return the table of models for the report, with intervals and each model's ceiling.

    Args:
        rows: as returned by `variants`.
        intervals: as returned by `intervals`.
        original: dict from model to the original's mIoU; empty if it is not comparable.
    """
    report = table(rows).drop(columns="parameters")
    report["model"] = report["model"].map(full_name)
    position = report.columns.get_loc("miou_last") + 1
    report.insert(position, "ceiling", [values.get("ceiling") for values in rows.values()])
    report.insert(position, "95 % interval", [interval(*intervals[name]) for name in rows])
    if original:
        report.insert(1, "original", [fraction(original[name]) if name in original else None for name in rows])
    return report


def by_seed(metrics, model):
    """Return the mIoU of a model by seed, with the columns of tables/segmentation_seeds.csv.

    Args:
        metrics: dict from seed to the metrics of its step.
        model: name of the model.
    """
    rows = [(model, seed, values["miou"], values["miou_last"]) for seed, values in metrics.items()]
    return pd.DataFrame(rows, columns=["model", "seed", "miou", "miou_last"])


# --- figures


def curves(histories, control):
    """Draw training loss and validation mIoU.

    Args:
        histories: dict from model to DataFrame with epoch, loss and miou.
        control: mIoU of the colour look-up table.
    """
    drawn = {model: SEGMENTERS[model] for model in histories}
    lines = {m: {"color": s.colour, "label": s.full, "marker": "o", "markersize": 3} for m, s in drawn.items()}
    figure, axis = training_curves(histories, "miou", lines, "{x:.2f}")
    axis.axhline(control, color=MUTED, linestyle=":", linewidth=1.2, label=full_name("colour"))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    return figure


def class_iou(values):
    """Draw the IoU of each class, as bars for the models and as a line for the control.

    Args:
        values: dict from model or colour to {class: IoU or None}; classes without any IoU are left out.
    """
    frame = pd.DataFrame(values, dtype=float).dropna(how="all")
    control = frame.pop("colour").fillna(0)
    figure, (axis,) = canvas(1, 1, (6.8, 2.6))
    colours = [SEGMENTERS[model].colour for model in frame]
    frame.rename(columns=full_name).plot.bar(ax=axis, color=colours, width=0.8, rot=0, legend=False)
    for bars, model in zip(axis.containers, frame):
        axis.bar_label(bars, ["–" if iou != iou else f"{iou:.2f}" for iou in frame[model]], fontsize=6)
    centres = np.arange(len(control))
    axis.hlines(control, centres - 0.45, centres + 0.45, color=INK, linestyle=":", label=full_name("colour"))
    axis.set(ylabel="IoU", ylim=(0, 1))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=7.5)
    return figure


def errors(image, truth, predicted):
    """Draw the errors on a tile: wrong pixels in the colour of the predicted class, correct ones pale, unknown grey.

    Args:
        image: (3, H, W) uint8.
        truth, predicted: (H, W) classes; unknown pixels are not scored.
    """
    scored = truth != landcover.UNKNOWN
    wrong = scored & (truth != predicted)
    picture = np.full((*truth.shape, 3), 235, dtype=np.uint8)
    picture[wrong] = landcover.encode(predicted)[wrong]
    picture[~scored] = 160
    share = f"errors: {wrong.sum() / max(scored.sum(), 1):.0%} of the pixels"
    pictures = [image.transpose(1, 2, 0), truth, predicted, picture]
    return image_grid({"": pictures}, size=(7.2, 2.3), titles=["image", "labels", "prediction", share])


def stages(rows, at):
    """Draw the predicted masks of a few tiles at three stages of training, beside the labels.

    Args:
        rows: dict from a tile's number to a dict of image (3, H, W), truth and, by stage, masks of (H, W) classes.
        at: dict from stage to epoch.
    """
    titles = ["image", *(f"{stage} (epoch {epoch})" for stage, epoch in at.items()), "labels"]
    pictures, captions = {}, []
    for number, tile in rows.items():
        pictures[number] = [tile["image"].transpose(1, 2, 0), *(tile[stage] for stage in at), tile["truth"]]
        captions += ["", *(f"mIoU {_tile_miou(tile, stage):.2f}" for stage in at), ""]
    return image_grid(pictures, None, (7, 7 / len(titles) * len(rows) + 0.6), titles, captions)


def _tile_miou(tile, stage):
    return scores.miou(scores.confusion(tile["truth"], tile[stage]))


# --- sentences


def ranked(table):
    """Return the models by descending mIoU of the last epoch, from the table returned by `table`."""
    models = table[table["model"].isin(SEGMENTERS)]
    return models.sort_values(["miou_last", "model"], ascending=[False, True])["model"].tolist()


def in_words(table, intervals, improved):
    """Return a paragraph that compares the models with each other and with the control at the last epoch.

    Args:
        table, intervals: as returned by `table` and `intervals`.
        improved: name of the improved model.
    """
    miou = dict(zip(table["model"], table["miou_last"]))

    def compare(first, second, name=None):
        return comparison(miou[first] - miou[second], *intervals[first, second], name or full_name(second))

    def effect(variant, model):
        return change(miou[variant] - miou[model], *intervals[variant, model])

    order = ranked(table)
    words = {"name": full_name, "compare": compare, "change": effect}
    return sentences("models", order=order, miou=miou, intervals=intervals, improved=improved, **words)


def hardest(iou, name):
    """Return a sentence on the class with the lowest IoU, and one on classes that do not occur.

    Args:
        iou: dict from class to IoU; None for a class in neither labels nor predictions.
        name: name of the model.
    """
    measured = {c: value for c, value in iou.items() if value is not None}
    worst, absent = min(measured, key=measured.get), [c for c in SCORED if c not in measured]
    return sentences("hardest", name=name, worst=worst, iou=measured[worst], absent=absent)


def seeds(table):
    """Return a sentence on the variation of a model's mIoU between seeds; `table` as returned by `by_seed`."""
    miou = table["miou_last"]
    spread = confidence(*mean_interval(miou), missing=ALL_AGREE)
    return sentences("segmentation_seeds", miou=miou, name=full_name(table["model"].iloc[0]), spread=spread)


def stages_in_words(rows, at, name):
    """Return a sentence on the mean mIoU of a few tiles at each stage; `rows` and `at` as in `stages`."""
    means = [f"{np.mean([_tile_miou(tile, stage) for tile in rows.values()]):.3f} ({stage})" for stage in at]
    return sentences("stages", tiles=len(rows), means=means, name=name)
