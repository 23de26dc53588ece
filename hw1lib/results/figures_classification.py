"""The pictures of Problem 1: data, pre-training, fine-tuning, embeddings."""

import itertools

import numpy as np
import seaborn

from hw1lib.results.figures import INK, MUTED, PALETTE, bare, canvas, epochs, show

SETTING_COLOURS = dict(zip("ABCDE", (PALETTE[7], PALETTE[0], PALETTE[2], PALETTE[9], PALETTE[1])))
MARKERS = "osD^vP*X<>hdp"


def class_counts(counts):
    """Images of each class in each split.

    Args:
        counts: dict from a split's name to a dict from class to number of images.
    """
    classes = list(next(iter(counts.values())))
    figure, axes = canvas(1, len(counts), (7, max(2, 0.17 * len(classes) + 0.9)), sharey=True)
    for axis, (split, values) in zip(axes, counts.items()):
        axis.barh(classes, [values.get(c, 0) for c in classes], color=PALETTE[0])
        axis.set_title(f"{split}: {sum(values.values()):,} images")
        axis.invert_yaxis() if axis is axes[0] else None
        axis.grid(axis="y", visible=False)
    axes[0].tick_params(axis="y", labelsize=8 if len(classes) <= 20 else 5)
    return figure


def pretraining_curves(history, before, supervised=None):
    """What tells whether pre-training learns, epoch by epoch.

    Args:
        history: DataFrame with epoch, loss, lr, deviation, effective_rank and, where the pool has
            labels, knn.
        before: dict of the last three before any training, the random backbone's.
        supervised: DataFrame with epoch and loss, or None where the backbone was not trained here.
    """
    panels = [
        (history, "loss", "self-supervised loss (0…8)"),
        (history, "knn", "k-NN probe inside the pool"),
        (history, "deviation", "embedding deviation × √d"),
        (history, "effective_rank", "effective rank"),
        (history, "lr", "learning rate"),
        (supervised, "loss", "supervised loss"),
    ]
    panels = [p for p in panels if p[0] is not None and p[1] in p[0]]
    figure, axes = canvas(2, 3, (7.2, 4.2))
    for axis in axes[len(panels):]:
        axis.set_visible(False)
    for axis, (table, column, title) in zip(axes, panels):
        colour = PALETTE[0] if table is supervised else PALETTE[2]
        axis.plot(table["epoch"], table[column], color=colour, marker="o", markersize=3)
        axis.set_title(title, fontsize=9)
        if table is history and column in before:
            axis.axhline(before[column], color=MUTED, linestyle=":", label="before training")
            axis.legend(fontsize=7)
        axis.set_ylim(bottom=0)
        if column == "lr":
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        if column == "knn":
            axis.yaxis.set_major_formatter("{x:.0%}")
        epochs(axis)
    return figure


def finetune_curves(histories):
    """Training loss and validation accuracy of all settings.

    Args:
        histories: dict from setting to DataFrame with epoch, loss and accuracy.
    """
    figure, axes = canvas(1, 2, (7, 2.8))
    for setting, history in histories.items():
        style = dict(
            color=SETTING_COLOURS[setting], label=setting,
            linestyle="--" if setting in "DE" else "-",
        )
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


def finetune_accuracy(table):
    """Accuracy of settings and controls with 95 % intervals.

    Args:
        table: DataFrame as in tables/finetune.csv.
    """
    figure, axes = canvas(1, 1, (6.4, 0.32 * len(table) + 0.9))
    axis = axes[0]
    places = np.arange(len(table))
    for place, row in zip(places, table.itertuples()):
        colour = SETTING_COLOURS.get(row.setting, MUTED)
        axis.barh(place, row.accuracy, color=colour, alpha=0.85)
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


def embedding(planes, labels, classes):
    """Planes of points side by side in one frame, one colour and marker for each class.

    Args:
        planes: dict from a panel's title to (N, 2) coordinates.
        labels: (N,) class numbers.
        classes: names of the classes.
    """
    few = len(classes) <= 10
    figure, axes = canvas(1, len(planes), (7.2, 3.9 if few else 5.6), sharex=True, sharey=True)
    colours = PALETTE if few else seaborn.husl_palette(len(classes), s=0.85, l=0.55).as_hex()
    for axis, (title, points) in zip(axes, planes.items()):
        # Neighbours on the colour circle differ in their marker.
        for number, marker in zip(range(len(classes)), itertools.cycle(MARKERS)):
            chosen = labels == number
            axis.scatter(
                points[chosen, 0], points[chosen, 1], s=14 if few else 7, marker=marker,
                color=colours[number], linewidths=0, alpha=0.8, label=classes[number],
            )
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", fontsize=8 if few else 4.5,
        markerscale=1.6, ncols=4 if few else 11, handletextpad=0.2,
    )
    return figure


def confusion(matrix, classes, title=""):
    """A confusion matrix, each row as shares of its true class."""
    figure, axes = canvas(1, 1, (5.2, 4.4))
    axis = axes[0]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(classes) <= 12
    seaborn.heatmap(
        shares, ax=axis, cmap="Blues", vmin=0, vmax=1, annot=few, fmt=".2f", cbar=not few,
        annot_kws={"fontsize": 7}, xticklabels=classes, yticklabels=classes, square=True,
    )
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.tick_params(labelsize=7 if few else 4, length=0)
    axis.set_title(title)
    return figure


def confused_pairs(rows, columns):
    """Example images of classes that are taken for each other, a row for each direction.

    Args:
        rows: list of (true class, predicted class, number of such images, example images).
        columns: examples in a row at most.
    """
    if not rows:
        figure, axes = canvas(1, 1, (6.4, 0.6))
        bare(axes[0])
        axes[0].text(0.5, 0.5, "no image is taken for another class", ha="center", va="center")
        return figure
    figure, axes = canvas(len(rows), columns, (7.2, 0.66 * len(rows)))
    for axis in axes:
        bare(axis)
    for row, (truth, taken, count, images) in enumerate(rows):
        for column, image in enumerate(images):
            show(axes[row * columns + column], image)
        axes[row * columns].set_ylabel(
            f"{truth}\ntaken for {taken}: {count}", rotation=0, ha="right", va="center", fontsize=7
        )
    return figure
