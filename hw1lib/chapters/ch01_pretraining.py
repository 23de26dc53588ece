"""Notebook 01: two views, the loss, whether pre-training learns or collapsed, and what its features find alike."""

import numpy as np
import pandas as pd
import torch

from hw1lib.chapters import original
from hw1lib.chapters.ch00_data import spread
from hw1lib.chapters.phrases import percent
from hw1lib.chapters.style import MUTED, PALETTE, canvas, epochs, image_grid
from hw1lib.metrics.collapse import spectrum
from hw1lib.settings import result_settings


def views(images, *drawn):
    """Images above their augmented views.

    Args:
        images: (B, 3, S, S) uint8 tensor.
        drawn: for each view a (B, 3, S, S) float tensor with values in [0, 1].
    """
    rows = {f"view {number}": pictures(view) for number, view in enumerate(drawn, start=1)}
    return image_grid({"image": pictures(images)} | rows)


def pictures(images):
    """(B, 3, S, S) uint8, or float in [0, 1] -> a list of (S, S, 3) uint8."""
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    return list(images.permute(0, 2, 3, 1).numpy())


def settings_table(here, seed, group):
    """Return each setting of this run beside the original's, which is marked where the original does not state it.

    Args:
        here: settings.Profile of this run.
        seed: settings.Profile of the original.
        group: pretrain or finetune.
    """
    columns = {}
    for name, profile in (("this run", here), ("original", seed)):
        shared = {"image_size": profile.data.image_size, "zero_init_residual": profile.zero_init_residual}
        values = shared | result_settings(getattr(profile, group))
        if values["augmentation"] == "original":  # its own transforms leave these unused
            values |= dict.fromkeys({"views", "crop_scale"} & set(values), "–")
        columns[name] = {key: str(value) for key, value in values.items()}
    stated = original.numbers()["stated"][group]
    columns["original"] |= {k: f"{v} (assumed)" for k, v in columns["original"].items() if k not in stated and v != "–"}
    return pd.DataFrame(columns).rename_axis("setting").reset_index()


def curves(history, before, supervised=None):
    """What tells whether pre-training learns, epoch by epoch.

    Args:
        history: DataFrame with epoch, loss, lr, deviation, effective_rank and, where the pool has labels, knn.
        before: dict of the last three before any training, the random backbone's.
        supervised: DataFrame with epoch and loss, or None where the backbone was not trained here.
    """
    panels = [
        (history, "loss", "self-supervised loss (0…8)"),
        (history, "knn", "k-NN probe inside the pool"),
        (history, "deviation", "standard deviation × √d"),
        (history, "effective_rank", "effective rank"),
        (history, "lr", "learning rate"),
        (supervised, "loss", "supervised loss"),
    ]
    panels = [panel for panel in panels if panel[0] is not None and panel[1] in panel[0]]
    figure, axes = canvas(2, 3, (7.2, 4.2))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)

    for axis, (table, column, title) in zip(axes, panels):
        colour = PALETTE[0] if table is supervised else PALETTE[2]
        shown = table[["epoch", column]].dropna()  # the probe may look at some epochs only
        axis.plot(shown["epoch"], shown[column], color=colour, marker="o", markersize=3)
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


def spectra(features):
    """Singular values of centred features, largest first, on logarithmic axes; what effective rank sums up.

    Args:
        features: dict from a name to (N, D) features.
    """
    figure, (axis,) = canvas(1, 1, (5.6, 2.8))
    for name, values in features.items():
        found = spectrum(np.asarray(values))
        axis.loglog(np.arange(1, len(found) + 1), found / found.sum(), label=name)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="singular value, by size", ylabel="part of their sum", ylim=(1e-5, None))
    axis.legend()
    return figure


def queries(split, count):
    """The places of a few images of a layout.Split: of different classes where it has labels, else evenly over it."""
    if split.labels is None:
        return spread(len(split), count).tolist()
    classes = np.unique(split.labels[split.labels >= 0])
    return [int((split.labels == classes[place]).argmax()) for place in spread(len(classes), count)]


def nearest(features, queries, count):
    """The images most alike to some others by the cosine of their features.

    Args:
        features: (N, D).
        queries: (Q,) rows of `features` that are asked for.
        count: neighbours of each, at most; K is lowered where there are fewer others.

    Returns:
        (Q, K) rows of `features`, the most similar first, without the query itself.
    """
    unit = torch.nn.functional.normalize(torch.as_tensor(features))  # (N, D)
    likeness = unit[torch.as_tensor(queries)] @ unit.T  # (Q, N)
    likeness[torch.arange(len(queries)), torch.as_tensor(queries)] = -2.0
    return likeness.topk(min(count, len(features) - 1)).indices.numpy()


def neighbours(images, queries, found):
    """Images beside what two networks find most alike to them.

    Args:
        images: (N, 3, S, S) uint8 tensor.
        queries: (Q,) rows of it.
        found: dict from a network's name to (Q, K) rows of it.
    """
    rows = {}
    for place, query in enumerate(queries):
        for name, rows_of in found.items():
            rows[f"{name} ({place + 1})"] = pictures(images[[query, *rows_of[place].tolist()]])
    return image_grid(rows)


def same_class(labels, queries, found):
    """Which part of the neighbours has the query's own class, by network: a dict of floats in [0, 1]."""
    asked = np.asarray(labels)[queries]  # (Q,)
    return {name: float((np.asarray(labels)[rows] == asked[:, None]).mean()) for name, rows in found.items()}


def forward(settings):
    """Which forward pass trains, and how the target follows; `settings` are settings.Pretrain."""
    if not settings.one_pass:
        return "It is trained through the package's own forward pass."
    target = "Without momentum the target is the online network itself, without gradient (SimSiam; Chen and He 2020)."
    if settings.use_momentum:
        decay = f"with a decay that rises from {settings.moving_average_decay:g} to 1 along a cosine"
        target = f"The target network follows the online one, BatchNorm statistics included, {decay}."
    return (
        "It is trained through a forward pass of our own on the package's networks, which takes each projection "
        f"once and the cosines in float32; loss and gradients equal the package's. {target}"
    )


def collapse(metrics):
    """Whether pre-training learnt something, and whether its embedding collapsed; `metrics` are that step's."""
    verdict = "**has collapsed**" if metrics["collapsed"] else "has not collapsed"
    before = metrics["before"]
    text = (
        f"The loss of the last epoch is {metrics['loss']:.3f} (from 0 to 8; lower is not better by itself, a "
        f"collapsed network reaches 0). The embedding {verdict}: its standard deviation times √d is "
        f"{metrics['deviation']:.2f} (0 for a collapsed one; before training {before['deviation']:.2f}), its "
        f"effective rank {metrics['effective_rank']:.0f} (before training {before['effective_rank']:.0f})."
    )
    if "knn" in metrics:
        right = f"{percent(metrics['knn'])} of {metrics['queries']} images right"
        text += f" The k-NN probe inside the pool gets {right}, before training {percent(before['knn'])}."
    return text


def supervised(metrics):
    """Where the backbone of settings B and D comes from; `metrics` are those of step pretrain-supervised."""
    backbone = "supervised backbone of settings B and D"
    if metrics["source"] == "file":
        return f"The {backbone} is the data's own {metrics['file']}."
    if metrics["source"] == "imagenet":
        forbidden = f"the {backbone} is torchvision's {metrics['file']}, trained on ImageNet"
        return f"**Not allowed by the course:** {forbidden}. Its rows B and D are no answer to the homework."
    pool = f"the pool's {metrics['images']:,} images and their {metrics['classes']} labels"
    return f"The {backbone} was trained here on {pool}."
