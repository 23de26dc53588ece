"""Notebook 02: five settings and their controls; tables and pictures. What N images can show is in comparisons.py."""

import numpy as np
import pandas as pd
import seaborn

from hw1lib.chapters import original
from hw1lib.chapters.ch00_data import some
from hw1lib.chapters.phrases import ends, percent
from hw1lib.chapters.style import INK, MUTED, PALETTE, bare, canvas, image_grid, show, training_curves
from hw1lib.variants import ROWS, SETTINGS

COLOURS = dict(zip(SETTINGS, (PALETTE[7], PALETTE[0], PALETTE[2], PALETTE[9], PALETTE[1]), strict=True))
COLUMNS = ["setting", "pretraining", "finetuning", "accuracy", "correct", "total", "ci_low", "ci_high", "epoch"]
ORIGIN = {  # where the supervised backbone comes from
    "file": "supervised (the data's file)",
    "pool": "supervised (trained here)",
    "imagenet": "supervised (ImageNet weights, which the course forbids)",
}


# --- numbers


def accuracies(metrics, source):
    """The table of settings and controls.

    Args:
        metrics: dict from row, A … E or a control, to the metrics of its step.
        source: file, pool or imagenet: where the supervised backbone of B and D comes from.

    Returns:
        DataFrame with the columns of tables/finetune.csv. `accuracy` and `epoch` are those of the best epoch, which
        validation chose; `accuracy_last`, `correct` and the 95 % interval those of the last one. The interval is nan
        where all validation images show one place.
    """
    origins = {None: "none (random weights)", "pretrain": "self-supervised", "pretrain-supervised": ORIGIN[source]}
    rows = []
    for name, values in metrics.items():
        low, high = values["interval_last"]
        row = ROWS[name]
        pretraining = "none" if name in ("colour", "simple") else origins.get(row.pretraining, row.pretraining)
        about = {"setting": name, "pretraining": pretraining, "finetuning": values.get("model", row.trained)}
        rows.append(about | values | {"correct": values["correct_last"], "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows)[[*COLUMNS, "accuracy_last"]].astype({"ci_low": float, "ci_high": float})


def readable(table, published=None):
    """The table of accuracies for reading: the last epoch with its interval, then the best one.

    Args:
        table: as of `accuracies`.
        published: dict from setting to the original's accuracy, where it compares.
    """
    shown = table[["setting", "pretraining", "finetuning", "accuracy_last"]]
    shown = shown.rename(columns={"pretraining": "pre-training", "finetuning": "trained"})
    intervals = [ends(low, high, "–", ".1f") for low, high in zip(100 * table["ci_low"], 100 * table["ci_high"])]
    correct = [f"{c} / {t}" for c, t in zip(table["correct"], table["total"])]
    best = [f"{percent(share)} (epoch {at})" if at else "–" for share, at in zip(table["accuracy"], table["epoch"])]
    shown = shown.assign(**{"95 % interval": intervals, "correct": correct, "best epoch": best})
    if published:
        shown["original"] = [percent(published[s]) if s in published else None for s in table["setting"]]
    return shown


def accuracies_of_seeds(metrics):
    """Accuracy of each row for each seed, the columns of tables/finetune_seeds.csv.

    Args:
        metrics: dict from seed to a dict from row to the metrics of its step.
    """
    rows = [
        {"setting": row, "seed": seed, **values} for seed, found in metrics.items() for row, values in found.items()
    ]
    table = pd.DataFrame(rows)[["setting", "seed", "accuracy", "accuracy_last"]]
    return table.sort_values("setting", key=lambda names: names.map(list(ROWS).index), kind="stable")


def over_seeds(table):
    """Mean ± sample standard deviation over the seeds of each row, for reading; `table` as of `accuracies_of_seeds`.

    What does not depend on the seed has no deviation.
    """

    def spread(values):
        deviation = f" ± {100 * values.std():.1f}" if values.nunique() > 1 else ""
        return f"{100 * values.mean():.1f}{deviation} %"

    columns = {"seeds": ("seed", "size"), "best epoch": ("accuracy", spread), "last epoch": ("accuracy_last", spread)}
    return table.groupby("setting", sort=False).agg(**columns).reset_index()


def learning(models):
    """Which parameters learn, counted from the modules: a dict from setting to classifier.Classifier."""
    rows = []
    for name, model in models.items():
        parts = {"backbone": model.backbone, "head": model.head}
        counts = {k: sum(p.numel() for p in part.parameters() if p.requires_grad) for k, part in parts.items()}
        total = sum(p.numel() for p in model.parameters())
        rows.append({"setting": name, **counts, "learn": percent(sum(counts.values()) / total)})
    table = pd.DataFrame(rows)
    return table.assign(**{part: table[part].map("{:,}".format) for part in ("backbone", "head")})


def defects(alike, metrics, history, before, after):
    """Return the original recipe's known defects, and which of them this run contains, each checked on what ran.

    Whether the original states them or they are assumed stands in report/original.toml.

    Args:
        alike: two views, (3, S, S) each, that one batch drew of two copies of an image.
        metrics, history: those of step pretrain.
        before: state dict of the pre-trained backbone.
        after: state dict of the classifier.Classifier of setting E, whose backbone is the same one, frozen.
    """
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    drifted = any((before[name] != after[f"backbone.{name}"]).any() for name in statistics)
    lowest = metrics["loss"] != history["loss"].iloc[-1]
    known = {
        "one draw of augmentation for a whole batch": (alike[0] == alike[1]).all(),
        "the checkpoint of the lowest self-supervised loss is kept, which rewards collapse": lowest,
        "frozen backbones in training mode: BatchNorm statistics drift": drifted,
        "frozen features are not standardised": not after["head.mean"].any(),
    }
    words = original.numbers()["defects"]
    stated = [f"yes ({'stated' if words[name] else 'assumed'})" for name in known]
    occurs = ["yes" if holds else "no" for holds in known.values()]
    return pd.DataFrame({"defect": list(known), "original": stated, "this run": occurs})


def confused(matrix, pairs, classes):
    """The most confused pairs of classes as a table.

    Args:
        matrix: (C, C) confusion matrix, a row a true class.
        pairs: list of (i, j), as of metrics.confused_pairs.
        classes: their names.
    """
    rows = []
    for i, j in pairs:
        second, first = (f"{matrix[a, b]} of {matrix[a].sum()}" for a, b in ((i, j), (j, i)))
        rows.append((f"{classes[i]} – {classes[j]}", second, first))
    return pd.DataFrame(rows, columns=["classes", "taken for the second", "taken for the first"])


# --- pictures


def accuracy_bars(table):
    """Accuracy at the last epoch of settings and controls with 95 % intervals; `table` as of `accuracies`."""
    figure, (axis,) = canvas(1, 1, (6.4, 0.32 * len(table) + 0.9))
    for place, row in enumerate(table.itertuples()):
        axis.barh(place, row.accuracy_last, color=COLOURS.get(row.setting, MUTED), alpha=0.85)
        axis.hlines(place, row.ci_low, row.ci_high, color=INK, linewidth=1.5)
        axis.plot(row.accuracy, place, "D", color="white", markeredgecolor=MUTED, markersize=4)
    axis.hlines([], 0, 0, color=INK, label="its 95 % interval")
    axis.plot([], [], "D", color="white", markeredgecolor=MUTED, label="best epoch, chosen on validation")
    axis.set_yticks(range(len(table)), table["setting"])
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.set_xlabel("validation accuracy (bar: last epoch)")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    return figure


def curves(histories):
    """Training loss and validation accuracy, from a dict from setting to DataFrame with epoch, loss and accuracy."""
    lines = {s: {"color": COLOURS[s], "label": s, "linestyle": "--" if ROWS[s].frozen else "-"} for s in histories}
    figure, axis = training_curves(histories, "accuracy", lines, "{x:.0%}")
    axis.legend(title="dashed: frozen", ncols=2, fontsize=8, title_fontsize=8)
    return figure


def confusion(matrix, classes, title=""):
    """A confusion matrix, each row as the frequencies of what its true class is taken for.

    Args:
        matrix: (C, C) counts, a row a true class.
        classes: their names.
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
    """Images of the most confused pairs of classes, a row for each direction.

    Args:
        split: layout.Split of the N validation images.
        predicted: (N,) predicted classes.
        pairs: list of (i, j).
        size: side of the images in pixels.
        columns: images in a row at most.
    """
    rows = {}
    for truth, taken in (direction for pair in pairs for direction in (pair, pair[::-1])):
        chosen = np.flatnonzero((split.labels == truth) & (predicted == taken))
        if len(chosen):
            name = f"{split.classes[truth]}\ntaken for {split.classes[taken]}: {len(chosen)}"
            rows[name] = some(split, chosen[:columns], size)
    if rows:
        return image_grid(rows, columns, (7.2, 0.66 * len(rows)), title_size=7)
    figure, (axis,) = canvas(1, 1, (6.4, 0.6))
    bare(axis)
    axis.text(0.5, 0.5, "no image is taken for another class", ha="center", va="center")
    return figure


def mistakes(split, predicted, size, page=1, columns=6):
    """A page of misclassified images: what each is, and what it was taken for; arguments as of `confused_images`."""
    wrong = np.flatnonzero(split.labels != predicted)[2 * columns * (page - 1) : 2 * columns * page]
    figure, axes = canvas(2, columns, (7.2, 3))
    for axis in axes:
        bare(axis)
    for axis, place, image in zip(axes, wrong, some(split, wrong, size)):
        show(axis, image, f"{split.classes[split.labels[place]]}\n→ {split.classes[predicted[place]]}", 7)
    return figure
