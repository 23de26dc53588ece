"""Notebook 01: views, training curves, collapse, and nearest neighbours in feature space."""

import numpy as np
import pandas as pd
import torch

from hw1lib.chapters.phrases import sentences
from hw1lib.chapters.style import MUTED, PALETTE, canvas, curve, evenly, image_grid
from hw1lib.metrics.collapse import spectrum


def views(images, *augmented):
    """Draw images above their views.

    Args:
        images: (B, 3, S, S) uint8 tensor.
        augmented: (B, 3, S, S) float tensors with values in [0, 1], one per view.
    """
    rows = {f"view {number}": _pictures(view) for number, view in enumerate(augmented, start=1)}
    return image_grid({"image": _pictures(images)} | rows)


def _pictures(images):
    """Turn a (B, 3, S, S) tensor, uint8 or float in [0, 1], into a list of (S, S, 3) uint8 arrays."""
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    return list(images.permute(0, 2, 3, 1).numpy())


def augmentations(*views):
    """Return a DataFrame of the augmentations of each view, with probabilities and strengths.

    Args:
        views: augment.Views that differ in probabilities only. Other transforms, such as the original's, are listed by
            their repr.
    """
    if not all(hasattr(view, "recipe") for view in views):
        return pd.DataFrame({"augmentation": [str(step) for step in getattr(views[0], "transforms", views[0])]})
    recipe = views[0].recipe
    jitter = zip(("brightness", "contrast", "saturation", "hue"), recipe.jitter)
    aspect = f"aspect ratio {1 / recipe.aspect:.2f} to {recipe.aspect:.2f}"
    strengths = {
        "random resized crop": f"area {recipe.crop_scale:g} to 1, {aspect}",
        "horizontal flip": "–",
        "rotation": "90, 180 or 270 degrees",
        "colour jitter": ", ".join(f"{name} {strength:g}" for name, strength in jitter),
        "grayscale": "–",
        "Gaussian blur": "standard deviation 0.1 to 2 pixels",
        "solarisation": "values above 0.5 are inverted",
    }
    table = {"augmentation": list(strengths)}
    for number, view in enumerate(views, start=1):
        recipe = view.recipe
        rotation_p = 0.75 if recipe.overhead else 0
        probabilities = (1, 0.5, rotation_p, recipe.jitter_p, recipe.grayscale_p, recipe.blur_p, recipe.solarize_p)
        table[f"probability in view {number}" if len(views) > 1 else "probability"] = [f"{p:g}" for p in probabilities]
    return pd.DataFrame(table | {"strength": list(strengths.values())})


def curves(history, before, supervised=None):
    """Draw loss, k-NN accuracy, measures of collapse and learning rate by epoch, one panel each.

    Args:
        history: DataFrame with epoch, loss, lr, deviation, effective_rank and, where the pool has labels, knn.
        before: dict of knn, deviation and effective_rank of the random backbone, before training.
        supervised: DataFrame with epoch and loss; None if the supervised backbone was not trained in this run.
    """
    titles = {
        "loss": "self-supervised loss (0…8)",
        "knn": "k-NN accuracy in the pool",
        "deviation": "standard deviation × √d",
        "effective_rank": "effective rank",
        "lr": "learning rate",
    }
    panels = [(history, column, title, PALETTE[2]) for column, title in titles.items() if column in history]
    if supervised is not None:
        panels.append((supervised, "loss", "supervised loss", PALETTE[0]))
    figure, axes = canvas(2, 3, (7.2, 4.2))
    for axis, (table, column, title, colour) in zip(axes, panels):
        curve(axis, table, column, title, color=colour, marker="o", markersize=3)
        if column in before:
            axis.axhline(before[column], color=MUTED, linestyle=":", label="before training")
            axis.legend(fontsize=7)
        axis.set_ylim(bottom=0)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def spectra(features):
    """Draw the singular values of centred features as shares of their sum, on logarithmic axes.

    Args:
        features: dict from a name to (N, D) features.
    """
    figure, (axis,) = canvas(1, 1, (5.6, 2.8))
    for name, values in features.items():
        singular_values = spectrum(np.asarray(values))
        axis.loglog(np.arange(1, len(singular_values) + 1), singular_values / singular_values.sum(), label=name)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="rank of the singular value", ylabel="share of their sum", ylim=(1e-5, None))
    axis.legend()
    return figure


def queries(split, count):
    """Return up to `count` indices of a layout.Split: one per class if it has labels, else evenly spaced."""
    if split.labels is None:
        return evenly(len(split), count).tolist()
    classes = np.unique(split.labels[split.labels >= 0])
    return [int((split.labels == classes[index]).argmax()) for index in evenly(len(classes), count)]


def nearest(features, queries, count):
    """Return the nearest neighbours of some images by cosine similarity.

    Args:
        features: (N, D).
        queries: (Q,) rows of `features`.
        count: number of neighbours, reduced to N - 1 if larger.

    Returns:
        (Q, K) rows of `features`, the most similar first, without the query itself.
    """
    unit = torch.nn.functional.normalize(torch.as_tensor(features))  # (N, D)
    similarity = unit[torch.as_tensor(queries)] @ unit.T  # (Q, N)
    similarity[torch.arange(len(queries)), torch.as_tensor(queries)] = -2.0
    return similarity.topk(min(count, len(features) - 1)).indices.numpy()


def neighbours(images, queries, nearest_of):
    """Draw query images beside their nearest neighbours, one row per query and network.

    Args:
        images: (N, 3, S, S) uint8 tensor.
        queries: (Q,) rows of `images`.
        nearest_of: dict from a network's name to (Q, K) rows of `images`.
    """
    rows = {}
    for index, query in enumerate(queries):
        for name, neighbours in nearest_of.items():
            rows[f"{name} ({index + 1})"] = _pictures(images[[query, *neighbours[index].tolist()]])
    return image_grid(rows)


def forward(settings):
    """Return a paragraph on the forward pass and the target network; `settings` is a settings.Pretrain."""
    return sentences("forward", settings=settings)


def collapse(metrics):
    """Return a paragraph on loss, collapse and k-NN accuracy; `metrics` are those of step pretrain."""
    return sentences("collapse", metrics=metrics)


def supervised(metrics):
    """Return a sentence on the origin of B and D's backbone; `metrics` are those of step pretrain-supervised."""
    return sentences("supervised", metrics=metrics)
