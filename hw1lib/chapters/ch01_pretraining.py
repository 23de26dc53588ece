"""Notebook 01: views, training curves, collapse, and nearest neighbours in feature space."""

import numpy as np
import pandas as pd
import torch

from hw1lib.chapters.phrases import percent
from hw1lib.chapters.style import MUTED, PALETTE, canvas, epochs, evenly, image_grid
from hw1lib.metrics.collapse import spectrum


def views(images, *augmented):
    """Draw images above their augmented views.

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
    """Return the augmentations that views draw for each image: a DataFrame with probabilities and strengths.

    Args:
        views: augment.Views that differ in probabilities only. Of other transforms, such as the original's, the table
            has the printed form.
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
        own = view.recipe
        turn = 0.75 if own.overhead else 0
        chances = (1, 0.5, turn, own.jitter_p, own.grayscale_p, own.blur_p, own.solarize_p)
        table[f"probability in view {number}" if len(views) > 1 else "probability"] = [f"{p:g}" for p in chances]
    return pd.DataFrame(table | {"strength": list(strengths.values())})


def curves(history, before, supervised=None):
    """Draw loss, k-NN accuracy, measures of collapse and learning rate by epoch, one panel per measured quantity.

    Args:
        history: DataFrame with epoch, loss, lr, deviation, effective_rank and, where the pool has labels, knn.
        before: dict of knn, deviation and effective_rank of the random backbone, before training.
        supervised: DataFrame with epoch and loss; None where the supervised backbone was not trained here.
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
        measured = table[["epoch", column]].dropna()  # the probe may run in some epochs only
        axis.plot(measured["epoch"], measured[column], color=colour, marker="o", markersize=3)
        axis.set_title(title, fontsize=9)
        if column in before:
            axis.axhline(before[column], color=MUTED, linestyle=":", label="before training")
            axis.legend(fontsize=7)
        axis.set_ylim(bottom=0)
        epochs(axis)
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
    """Return the indices of a few images of a layout.Split: one per class where it has labels, else evenly spaced."""
    if split.labels is None:
        return evenly(len(split), count).tolist()
    classes = np.unique(split.labels[split.labels >= 0])
    return [int((split.labels == classes[index]).argmax()) for index in evenly(len(classes), count)]


def nearest(features, queries, count):
    """Return the nearest neighbours of some images by cosine similarity.

    Args:
        features: (N, D).
        queries: (Q,) rows of `features`.
        count: K, number of neighbours; at most N - 1.

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


def same_class(labels, queries, nearest_of):
    """Return the share of neighbours with the query's own class, a dict from network to a float in [0, 1]."""
    labels = np.asarray(labels)
    return {name: float((labels[rows] == labels[queries][:, None]).mean()) for name, rows in nearest_of.items()}


def forward(settings):
    """Return a paragraph on the forward pass and the target network; `settings` is a settings.Pretrain."""
    if not settings.one_pass:
        return "Training uses byol-pytorch's own forward pass."
    target = "Without momentum the target is the online network itself, without gradient (SimSiam; Chen and He 2020)."
    if settings.use_momentum:
        target = (
            "The target network is a moving average of the online network, including its BatchNorm statistics, with a "
            f"decay that rises from {settings.moving_average_decay:g} to 1 along a cosine."
        )
    return (
        "Training replaces the package's forward pass by one that computes each projection once and the cosines in "
        f"float32; its loss and gradients equal the package's. {target}"
    )


def collapse(metrics):
    """Return a paragraph on whether pre-training learnt and whether its embedding collapsed.

    Args:
        metrics: those of step pretrain.
    """
    before = metrics["before"]
    text = (
        f"The loss of the last epoch is {metrics['loss']:.3f} on a scale of 0 to 8; a low loss alone is no evidence of "
        "learning, as a collapsed network reaches 0. The embedding "
        f"{'**has collapsed**' if metrics['collapsed'] else 'has not collapsed'}: its standard deviation times √d is "
        f"{metrics['deviation']:.2f} ({before['deviation']:.2f} before training; 0 if collapsed), and its effective "
        f"rank is {metrics['effective_rank']:.0f} ({before['effective_rank']:.0f} before training)."
    )
    if "knn" in metrics:
        text += (
            f" A k-NN classifier on the features classifies {percent(metrics['knn'])} of {metrics['queries']} "
            f"pool images correctly ({percent(before['knn'])} before training)."
        )
    return text


def supervised(metrics):
    """Return a sentence on the origin of settings B and D's backbone; `metrics` are those of pretrain-supervised."""
    backbone = "supervised backbone of settings B and D"
    if metrics["source"] == "file":
        return f"The {backbone} comes with the data: {metrics['file']}."
    if metrics["source"] == "imagenet":
        return (
            f"**Not allowed by the course:** the {backbone} is torchvision's {metrics['file']}, trained on ImageNet. "
            "Results of B and D are no answer to the homework."
        )
    return (
        f"The {backbone} was trained here on the pool's {metrics['images']:,} images with labels in "
        f"{metrics['classes']} classes."
    )
