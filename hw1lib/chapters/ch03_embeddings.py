"""Notebook 03: figures and measures of the representation after the first and the last epoch of fine-tuning."""

import itertools

import numpy as np
import pandas as pd
import seaborn

from hw1lib.chapters.phrases import sentences
from hw1lib.chapters.style import PALETTE, canvas

MARKERS = "osD^vP*X<>hdp"


def scatter(points, labels, classes):
    """Draw points in the plane, one panel per set, with a colour and marker for each class.

    Coordinates are clipped to their 0.5 % and 99.5 % quantiles.

    Args:
        points: dict from a panel's title to (N, 2) coordinates.
        labels: (N,) class numbers.
        classes: names of the classes.
    """
    few = len(classes) <= 10
    figure, axes = canvas(1, len(points), (7.2, 3.9 if few else 5.6))
    colours = PALETTE if few else seaborn.husl_palette(len(classes), s=0.85, l=0.55).as_hex()
    for axis, (title, xy) in zip(axes, points.items(), strict=True):
        xy = np.clip(xy, *np.quantile(xy, (0.005, 0.995), axis=0))  # outliers would squeeze the rest together
        for number, marker in zip(range(len(classes)), itertools.cycle(MARKERS)):  # similar colours differ in marker
            axis.scatter(
                *xy[labels == number].T, s=14 if few else 7, marker=marker, color=colours[number], linewidths=0,
                alpha=0.8, label=classes[number],
            )  # fmt: skip
        axis.set(title=title, xticks=[], yticks=[])
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8 if few else 4.5, markerscale=1.6,
        ncols=4 if few else 11, handletextpad=0.2,
    )  # fmt: skip
    return figure


def explained_variance(variances, limit=30):
    """Draw the cumulative explained variance of principal components.

    Args:
        variances: dict from a name to the (D,) variances of its components, largest first.
        limit: maximum number of components.
    """
    figure, (axis,) = canvas(1, 1, (5.6, 2.6))
    for name, values in variances.items():
        shares = (np.cumsum(values) / np.sum(values))[:limit]
        axis.plot(np.arange(1, len(shares) + 1), shares, marker="o", markersize=3, label=name)
    axis.set(xlabel="principal components", ylabel="explained variance", ylim=(0, 1))
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.legend()
    return figure


def table(metrics):
    """Return the measures after the first and the last epoch; `metrics` are those of step embed."""
    measures = ("silhouette", "purity", "trustworthiness")
    rows = [{"measure": m} | {epoch: metrics[f"{m}_{epoch}"] for epoch in ("first", "last")} for m in measures]
    return pd.DataFrame(rows).assign(by_chance=[None, metrics["purity_chance"], None])


def in_words(metrics, setting):
    """Return a paragraph on whether classes are better separated after the last epoch than after the first.

    Args:
        metrics: those of step embed; None where a measure was not computed.
        setting: name of the setting whose activations were embedded.
    """
    return sentences("embedding", metrics=metrics, setting=setting)
