"""Notebook 02: tables and figures of the five settings and their controls; for the tests see `significance`."""

import numpy as np
import pandas as pd
import seaborn

from hw1lib.chapters.phrases import percent
from hw1lib.chapters.style import INK, MUTED, PALETTE, bare, bars, canvas, image_grid, show, training_curves
from hw1lib.data import images as image_files
from hw1lib.variants import ROWS, SETTINGS

COLOURS = dict(zip(SETTINGS, (PALETTE[7], PALETTE[0], PALETTE[2], PALETTE[9], PALETTE[1]), strict=True))
COLUMNS = ["setting", "pretraining", "finetuning", "accuracy", "correct", "total", "ci_low", "ci_high", "epoch"]
ORIGIN = {  # of the backbone of B and D
    "file": "supervised (the data's file)",
    "pool": "supervised (trained here)",
    "imagenet": "supervised (ImageNet weights, which the course forbids)",
}


# --- tables


def accuracies(metrics, source):
    """Return the table of settings and controls, with the columns of tables/finetune.csv.

    Args:
        metrics: dict from setting or control to the metrics of its step.
        source: origin of the supervised backbone of B and D: file, pool or imagenet.

    Returns:
        DataFrame. `accuracy` and `epoch` are those of the best epoch, selected on validation; `accuracy_last`,
        `correct` and the 95 % interval are those of the last epoch. The interval is nan if all validation images show
        one place.
    """
    origins = {None: "none (random weights)", "pretrain": "self-supervised", "pretrain-supervised": ORIGIN[source]}
    rows = []
    for name, values in metrics.items():
        low, high = values["interval_last"]
        pretraining = "none" if name in ("colour", "simple") else origins[ROWS[name].pretraining]
        columns = {"setting": name, "pretraining": pretraining, "finetuning": values.get("model", ROWS[name].trained)}
        rows.append(columns | values | {"correct": values["correct_last"], "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows)[[*COLUMNS, "accuracy_last"]].astype({"ci_low": float, "ci_high": float})


def readable(table, published=None):
    """Return the table of accuracies for the report: the last epoch with its interval, then the best epoch.

    Args:
        table: table returned by `accuracies`.
        published: dict from setting to the original's accuracy; empty if it is not comparable.
    """
    report = table[["setting", "pretraining", "finetuning", "accuracy_last", "ci_low", "ci_high"]].copy()
    report["correct"] = [f"{correct} / {total}" for correct, total in zip(table["correct"], table["total"])]
    best = zip(table["accuracy"], table["epoch"])
    report["best epoch"] = [f"{percent(accuracy)} (epoch {epoch})" if epoch else "–" for accuracy, epoch in best]
    if published:
        report["original"] = [percent(published[s]) if s in published else None for s in table["setting"]]
    return report


def accuracies_by_seed(metrics):
    """Return the accuracies by setting and seed, with the columns of tables/finetune_seeds.csv.

    Args:
        metrics: dict from seed to a dict from setting or control to the metrics of its step.
    """
    rows = [{"setting": s, "seed": seed} | values for seed, runs in metrics.items() for s, values in runs.items()]
    table = pd.DataFrame(rows)[["setting", "seed", "accuracy", "accuracy_last"]]
    return table.sort_values("setting", key=lambda names: names.map(list(ROWS).index), kind="stable")


def mean_over_seeds(table):
    """Return mean ± sample standard deviation over seeds, without the deviation where all values agree.

    Args:
        table: table returned by `accuracies_by_seed`.
    """

    def summary(values):
        deviation = f" ± {100 * values.std():.1f}" if values.nunique() > 1 else ""
        return f"{100 * values.mean():.1f}{deviation} %"

    columns = {"seeds": ("seed", "size"), "best epoch": ("accuracy", summary), "last epoch": ("accuracy_last", summary)}
    return table.groupby("setting", sort=False).agg(**columns).reset_index()


def trainable_parameters(models):
    """Return the trainable parameters of backbone and head; `models` is a dict from setting to resnet.Classifier."""
    rows = []
    for name, model in models.items():
        parts = {"backbone": model.backbone, "head": model.head}
        counts = {k: sum(p.numel() for p in part.parameters() if p.requires_grad) for k, part in parts.items()}
        share = sum(counts.values()) / sum(p.numel() for p in model.parameters())
        rows.append({"setting": name} | {k: f"{v:,}" for k, v in counts.items()} | {"share of all": percent(share)})
    return pd.DataFrame(rows)


def confused_classes(matrix, pairs, classes):
    """Return how often each of two confused classes is predicted as the other.

    Args:
        matrix: (C, C) confusion matrix, one row per true class.
        pairs: list of (i, j), as returned by iou.confused_pairs.
        classes: names of the classes.
    """
    rows = []
    for i, j in pairs:
        counts = (f"{matrix[true, other]} of {matrix[true].sum()}" for true, other in ((i, j), (j, i)))
        rows.append((f"{classes[i]} – {classes[j]}", *counts))
    return pd.DataFrame(rows, columns=["classes", "first predicted as second", "second predicted as first"])


# --- figures


def accuracy_bars(table):
    """Draw the accuracies of the last epoch with 95 % intervals; `table` is the one returned by `accuracies`."""
    figure, (axis,) = canvas(1, 1, (6.4, 0.32 * len(table) + 0.9))
    names = table["setting"]
    bars(axis, names, table["accuracy_last"], [COLOURS.get(name, MUTED) for name in names], alpha=0.85)
    axis.hlines(names, table["ci_low"], table["ci_high"], color=INK, linewidth=1.5, label="95 % interval")
    diamonds = {"color": "white", "markeredgecolor": MUTED, "markersize": 4}
    axis.plot(table["accuracy"], names, "D", label="best epoch, selected on validation", **diamonds)
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.set_xlabel("validation accuracy (bar: last epoch)")
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    return figure


def curves(histories):
    """Draw training loss and validation accuracy.

    Args:
        histories: dict from setting to DataFrame with epoch, loss and accuracy.
    """
    lines = {s: {"color": COLOURS[s], "label": s, "linestyle": "--" if ROWS[s].frozen else "-"} for s in histories}
    figure, axis = training_curves(histories, "accuracy", lines, "{x:.0%}")
    axis.legend(title="dashed: frozen", ncols=2, fontsize=8, title_fontsize=8)
    return figure


def confusion(matrix, classes, title=""):
    """Draw a confusion matrix, each row divided by its sum.

    Args:
        matrix: (C, C) counts, one row per true class.
        classes: names of the classes.
        title: title of the figure.
    """
    figure, (axis,) = canvas(1, 1, (5.2, 4.4))
    frequencies = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(classes) <= 12
    seaborn.heatmap(
        frequencies, ax=axis, cmap="Blues", vmin=0, vmax=1, annot=few, fmt=".2f", cbar=not few,
        annot_kws={"fontsize": 7}, xticklabels=classes, yticklabels=classes, square=True,
    )  # fmt: skip
    axis.set(xlabel="predicted", ylabel="true", title=title)
    axis.tick_params(labelsize=7 if few else 4, length=0)
    return figure


def confused_images(split, predicted, pairs, size, columns=8):
    """Draw images of the most confused pairs of classes, one row per direction.

    Args:
        split: layout.Split of the N validation images.
        predicted: (N,) predicted classes.
        pairs: list of (i, j).
        size: side of the images in pixels.
        columns: maximum number of images per row.
    """
    rows = {}
    for true, other in (direction for pair in pairs for direction in (pair, pair[::-1])):
        confused = np.flatnonzero((split.labels == true) & (predicted == other))
        if len(confused):
            label = f"{split.classes[true]}\npredicted as {split.classes[other]}: {len(confused)}"
            rows[label] = _load(split, confused[:columns], size)
    rows = rows or {"no image is\nmisclassified": []}
    return image_grid(rows, columns, (7.2, 0.66 * len(rows)), title_size=7)


def mistakes(split, predicted, size, page=1, columns=6):
    """Draw one page of misclassified images, each titled with its true and its predicted class.

    Args:
        split, predicted, size: as in `confused_images`.
        page: number of the page, from 1; a page has two rows.
        columns: number of images per row.
    """
    wrong = np.flatnonzero(split.labels != predicted)[2 * columns * (page - 1) : 2 * columns * page]
    figure, axes = canvas(2, columns, (7.2, 3))
    for axis in axes:
        bare(axis)
    for axis, index, image in zip(axes, wrong, _load(split, wrong, size)):
        show(axis, image, f"{split.classes[split.labels[index]]}\n→ {split.classes[predicted[index]]}", 7)
    return figure


def _load(split, rows, size):
    """Return some images of a split: a list of (size, size, 3) uint8."""
    return list(image_files.load(split.part(rows), size).transpose(0, 2, 3, 1))
