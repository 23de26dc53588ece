"""Notebook 02: five settings and their controls; tables and pictures. What N images can show is in comparisons.py."""

import itertools

import numpy as np
import pandas as pd
import seaborn

from hw1lib.chapters.data import some
from hw1lib.chapters.style import INK, MUTED, PALETTE, bare, canvas, epochs, show
from hw1lib.chapters.words import percent
from hw1lib.comparison import ROWS, SETTINGS
from hw1lib.measures.statistics import wilson

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
        DataFrame with the columns of tables/finetune.csv: fractions, and Wilson's 95 % interval of the best epoch.
    """
    origins = {None: "none (random weights)", "pretrain": "self-supervised", "pretrain-supervised": ORIGIN[source]}
    rows = []
    for name, values in metrics.items():
        low, high = wilson(values["correct"], values["total"])
        about = {"pretraining": origins[ROWS[name].pretraining], "finetuning": ROWS[name].trained}
        if name == "colour":
            about["pretraining"] = "none"
        rows.append({"setting": name, **about, "ci_low": low, "ci_high": high, **values})
    return pd.DataFrame(rows)[[*COLUMNS, "accuracy_last"]]


def readable(table, original=None):
    """The table of accuracies for reading: the interval in one column.

    Args:
        table: as of `accuracies`.
        original: dict from setting to the original's accuracy, where it compares.
    """
    shown = pd.DataFrame(
        {
            "setting": table["setting"],
            "pre-training": table["pretraining"],
            "trained": table["finetuning"],
            "accuracy": table["accuracy"],
            "95 % interval": [f"{100 * a:.1f} – {100 * b:.1f}" for a, b in zip(table["ci_low"], table["ci_high"])],
            "correct": [f"{c} / {t}" for c, t in zip(table["correct"], table["total"])],
            "epoch": table["epoch"],
            "accuracy_last": table["accuracy_last"],
        }
    )
    if original:
        shown["original"] = [percent(original[s]) if s in original else None for s in table["setting"]]
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
    """Mean ± sample standard deviation over the seeds of each row, for reading; `table` as of `accuracies_of_seeds`."""
    groups = table.groupby("setting", sort=False)

    def spread(values):
        deviation = f" ± {100 * values.std():.1f}" if len(values) > 1 else ""
        return f"{100 * values.mean():.1f}{deviation} %"

    return pd.DataFrame(
        {
            "setting": list(groups.groups),
            "seeds": groups.size().to_numpy(),
            "best epoch": groups["accuracy"].agg(spread).to_numpy(),
            "last epoch": groups["accuracy_last"].agg(spread).to_numpy(),
        }
    )


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
    """Which of the original recipe's known defects this run contains, each read off what ran.

    Args:
        alike: two views, (3, S, S) each, that one batch drew of two copies of an image.
        metrics, history: those of step pretrain.
        before: state dict of the pre-trained backbone.
        after: state dict of the classifier.Classifier of setting E, whose backbone is the same one, frozen.
    """
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    known = {
        "one draw of augmentation for a whole batch": bool((alike[0] == alike[1]).all()),
        "the checkpoint of the lowest self-supervised loss is kept, which rewards collapse":
            metrics["loss"] != history["loss"].iloc[-1],
        "frozen backbones in training mode: BatchNorm statistics drift":
            any(bool((before[name] != after[f"backbone.{name}"]).any()) for name in statistics),
        "frozen features are not standardised": not bool(after["head.mean"].any()),
    }  # fmt: skip
    rows = [{"defect": name, "original": "yes", "this run": "yes" if here else "no"} for name, here in known.items()]
    return pd.DataFrame(rows)


def confused(matrix, pairs, classes):
    """The most confused pairs of classes as a table.

    Args:
        matrix: (C, C) confusion matrix, a row a true class.
        pairs: list of (i, j), as of metrics.confused_pairs.
        classes: their names.
    """
    rows = [
        (f"{classes[i]} – {classes[j]}", *(f"{matrix[a, b]} of {matrix[a].sum()}" for a, b in ((i, j), (j, i))))
        for i, j in pairs
    ]
    return pd.DataFrame(rows, columns=["classes", "taken for the second", "taken for the first"])


# --- pictures


def accuracy_bars(table):
    """Accuracy of settings and controls with 95 % intervals; `table` as of `accuracies`."""
    figure, axes = canvas(1, 1, (6.4, 0.32 * len(table) + 0.9))
    axis = axes[0]
    places = np.arange(len(table))
    for place, row in zip(places, table.itertuples()):
        axis.barh(place, row.accuracy, color=COLOURS.get(row.setting, MUTED), alpha=0.85)
        axis.hlines(place, row.ci_low, row.ci_high, color=INK, linewidth=1.5)
        axis.plot(row.accuracy_last, place, "D", color="white", markeredgecolor=INK, markersize=5)
    axis.plot([], [], "D", color="white", markeredgecolor=INK, label="last epoch")
    axis.hlines([], 0, 0, color=INK, label="Wilson 95 % interval")
    axis.set_yticks(places, table["setting"])
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.set_xlabel("validation accuracy (bar: best epoch)")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    return figure


def curves(histories):
    """Training loss and validation accuracy, from a dict from setting to DataFrame with epoch, loss and accuracy."""
    figure, axes = canvas(1, 2, (7, 2.8))
    for setting, history in histories.items():
        style = {"color": COLOURS[setting], "label": setting, "linestyle": "--" if ROWS[setting].frozen else "-"}
        axes[0].plot(history["epoch"], history["loss"], **style)
        axes[1].plot(history["epoch"], history["accuracy"], **style)
    axes[0].set_title("training loss")
    axes[0].set_ylim(bottom=0)
    axes[1].set_title("validation accuracy")
    axes[1].yaxis.set_major_formatter("{x:.0%}")
    axes[1].legend(title="dashed: frozen", ncols=2, fontsize=8, title_fontsize=8)
    for axis in axes:
        epochs(axis)
    return figure


def confusion(matrix, classes, title=""):
    """A confusion matrix, each row as the frequencies of what its true class is taken for.

    Args:
        matrix: (C, C) counts, a row a true class.
        classes: their names.
    """
    figure, axes = canvas(1, 1, (5.2, 4.4))
    axis = axes[0]
    frequencies = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(classes) <= 12
    seaborn.heatmap(
        frequencies, ax=axis, cmap="Blues", vmin=0, vmax=1, annot=few, fmt=".2f", cbar=not few,
        annot_kws={"fontsize": 7}, xticklabels=classes, yticklabels=classes, square=True,
    )  # fmt: skip
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.tick_params(labelsize=7 if few else 4, length=0)
    axis.set_title(title)
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
    rows = []
    for truth, taken in itertools.chain.from_iterable((pair, pair[::-1]) for pair in pairs):
        chosen = np.flatnonzero((split.labels == truth) & (predicted == taken))
        if len(chosen):
            name = f"{split.classes[truth]}\ntaken for {split.classes[taken]}: {len(chosen)}"
            rows.append((name, some(split, chosen[:columns], size)))
    if not rows:
        figure, axes = canvas(1, 1, (6.4, 0.6))
        bare(axes[0])
        axes[0].text(0.5, 0.5, "no image is taken for another class", ha="center", va="center")
        return figure

    figure, axes = canvas(len(rows), columns, (7.2, 0.66 * len(rows)))
    for axis in axes:
        bare(axis)
    for row, (name, images) in enumerate(rows):
        for column, image in enumerate(images):
            show(axes[row * columns + column], image)
        axes[row * columns].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
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
