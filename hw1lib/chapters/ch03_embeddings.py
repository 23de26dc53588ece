"""Notebook 03: what fine-tuning does to the representation, as pictures and as numbers."""

import itertools

import numpy as np
import pandas as pd
import seaborn

from hw1lib.chapters.phrases import capital, percent
from hw1lib.chapters.style import PALETTE, canvas

MARKERS = "osD^vP*X<>hdp"


def planes(points, labels, classes):
    """Points in the plane, a panel each, in a frame that they fill; one colour and marker for each class.

    The outermost points, one in a hundred along each axis, are moved to the edge of the rest.

    Args:
        points: dict from a panel's title to (N, 2) coordinates.
        labels: (N,) class numbers.
        classes: names of the classes.
    """
    few = len(classes) <= 10
    figure, axes = canvas(1, len(points), (7.2, 3.9 if few else 5.6))
    colours = PALETTE if few else seaborn.husl_palette(len(classes), s=0.85, l=0.55).as_hex()
    for axis, (title, xy) in zip(axes, points.items(), strict=True):
        xy = np.clip(xy, *np.quantile(xy, (0.005, 0.995), axis=0))  # so that a stray point does not shrink the rest
        # Neighbours on the colour circle differ in their marker.
        for number, marker in zip(range(len(classes)), itertools.cycle(MARKERS)):
            axis.scatter(
                *xy[labels == number].T, s=14 if few else 7, marker=marker, color=colours[number], linewidths=0,
                alpha=0.8, label=classes[number],
            )  # fmt: skip
        axis.set(title=title, xticks=[], yticks=[])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", fontsize=8 if few else 4.5, markerscale=1.6,
        ncols=4 if few else 11, handletextpad=0.2,
    )  # fmt: skip
    return figure


def explained(variances, most=30):
    """How much of the variance the first components hold together.

    Args:
        variances: dict from a name to the (D,) variances of its principal components, largest first.
        most: components that are shown.
    """
    figure, (axis,) = canvas(1, 1, (5.6, 2.6))
    for name, values in variances.items():
        held = np.cumsum(values) / np.sum(values)
        axis.plot(np.arange(1, len(held) + 1)[:most], held[:most], marker="o", markersize=3, label=name)
    axis.set(xlabel="principal components", ylabel="variance that they hold", ylim=(0, 1))
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.legend()
    return figure


def table(metrics):
    """The measures of the first and the last epoch; `metrics` are those of step embed."""
    measures = ("silhouette", "purity", "trustworthiness")
    rows = [{"measure": m} | {e: metrics[f"{m}_{e}"] for e in ("first", "last")} for m in measures]
    return pd.DataFrame(rows).assign(by_chance=[None, metrics["purity_chance"], None])


def in_words(metrics, setting):
    """Whether classes are denser and more separate at the last epoch than at the first; `metrics` of step embed."""
    first, last = metrics["silhouette_first"], metrics["silhouette_last"]
    pure, purer = metrics["purity_first"], metrics["purity_last"]
    trust, variance = [metrics[f"trustworthiness_{epoch}"] for epoch in ("first", "last")], metrics["pca_variance"]
    parts = ["The silhouette was not measured: it needs two classes, and one of them with two images."]
    if None not in (first, last):
        denser = "denser and further apart" if last > first else "not denser or further apart"
        parts = [
            f"From the first to the last epoch of setting {setting} the mean silhouette of the activations goes from "
            f"{first:.3f} to {last:.3f}: the classes are {denser}."
        ]
    if None in (pure, purer, *trust):
        parts.append("There are too few images to look at nearest neighbours.")
    else:
        neighbours = "more" if purer > pure else "fewer" if purer < pure else "as many"
        parts.append(
            f"{capital(neighbours)} of an image's nearest neighbours belong to its own class ({percent(purer)} after "
            f"{percent(pure)}; {percent(metrics['purity_chance'])} by chance)."
        )
    held = "none" if variance is None else percent(variance)
    text = f"PCA, fitted to both epochs together, holds in two axes {held} of the variance; t-SNE, laid out for both"
    kept = (
        "" if None in trust else "keeps neighbourhoods with a trustworthiness of {:.3f} and {:.3f}, but ".format(*trust)
    )
    says = "its distances between clusters mean nothing" if kept else "says nothing of distances between clusters"
    return " ".join([*parts, f"{text} together from there, {kept}{says}."])
