"""Notebook 00: the contents of the data, and the findings of its check."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from hw1lib.chapters.phrases import escape, sentences
from hw1lib.chapters.style import MUTED, bars, canvas, class_legend, evenly, image_grid, show
from hw1lib.data import images as image_files
from hw1lib.data import landcover, layout


def counts(data, image_size, is_sample):
    """Return the number of images, tiles and classes, one sentence per problem.

    Args:
        data: layout.Layout.
        image_size: side in pixels of Problem 1's images in training.
        is_sample: whether the data is the Earth sample.
    """
    pool, target = domains(is_sample)
    return sentences("counts", one=data.problem1, two=data.problem2, size=image_size, pool=pool, target=target)


def domains(is_sample):
    """Return the names of Problem 1's pre-training and fine-tuning domains."""
    return ("the Americas", "the other continents") if is_sample else ("Mini-ImageNet", "Office-Home")


def findings(checks):
    """Return the counts of the data check as a DataFrame with columns problem, split, finding and count.

    Args:
        checks: dict from problem (1, 2) to the metrics of its check; nested dicts are flattened, lists counted.
    """
    rows = []
    for problem, metrics in checks.items():
        for split, values in metrics.items():
            (flat,) = pd.json_normalize(values, sep=": ").to_dict("records") if isinstance(values, dict) else [{}]
            for name, value in flat.items():
                if value is not None:
                    count = len(value) if isinstance(value, list) else value
                    rows.append((problem, split, name.replace("_", " "), count))
    return pd.DataFrame(rows, columns=["problem", "split", "finding", "count"])


def weaknesses(warnings, problem):
    """Return the warnings of the data check as a Markdown list."""
    if not warnings:
        return f"The data check found nothing that weakens the results of Problem {problem}."
    lines = [f"- {escape(warning)}" for warning in warnings]
    return "\n".join([f"**Limitations of Problem {problem}**, found by the data check:\n", *lines])


def split(root):
    """Return a sentence that says whether the split of the tiles is the data's own or one made by `data split`."""
    path = Path(root) / layout.SPLIT
    return sentences("split", facts=json.loads(path.read_text()) if path.is_file() else None)


def strays(pixels):
    """Return a sentence on how many mask pixels do not have the exact colour of a class."""
    return sentences("strays", pixels=pixels)


def examples(split, size, classes=8, images=8):
    """Draw example images, one row per class.

    Args:
        split: layout.Split with labels.
        size: side of the images in pixels.
        classes: maximum number of rows, evenly spaced over the classes.
        images: maximum number of images per class, evenly spaced over the split.
    """
    rows = {}
    for label in evenly(len(split.classes), classes):
        members = np.flatnonzero(split.labels == label)
        chosen = split.part(members[evenly(len(members), images)])
        rows[split.classes[label]] = list(image_files.load(chosen, size).transpose(0, 2, 3, 1))
    return image_grid(rows)


def class_counts(splits):
    """Draw the number of images per class, one panel per split; `splits` is a dict from name to layout.Split."""
    classes = next(iter(splits.values())).classes
    figure, axes = canvas(1, len(splits), (7, max(2, 0.17 * len(classes) + 0.9)), sharey=True)
    for axis, (name, split) in zip(axes, splits.items(), strict=True):
        numbers = split.counts()
        bars(axis, classes, [numbers.get(c, 0) for c in classes])
        axis.set_title(f"{name}: {len(split):,} images")
    axes[0].tick_params(axis="y", labelsize=8 if len(classes) <= 20 else 5)
    return figure


def layers(image, classes):
    """Draw a tile, its mask, and the mask of each class with its share of the pixels.

    Args:
        image: (3, H, W) uint8.
        classes: (H, W) uint8 class numbers.
    """
    present, colours = np.unique(classes), landcover.encode(classes)
    figure, axes = canvas(1, len(present) + 2, (7.4, 7.4 / (len(present) + 2) + 0.5))
    show(axes[0], image.transpose(1, 2, 0), "image")
    show(axes[1], colours, "mask")
    for axis, number in zip(axes[2:], present, strict=True):
        layer = np.where((classes == number)[..., None], colours, np.uint8(235))
        show(axis, layer, f"{landcover.CLASSES[number]} {np.mean(classes == number):.0%}")
    return figure


def tiles(split, count=6):
    """Draw up to `count` tiles of a layout.Tiles, evenly spaced, above their masks."""
    numbers = [split.numbers[index] for index in evenly(len(split), count)]
    pairs = [image_files.load_tile(split, number)[:2] for number in numbers]
    rows = {"image": [image.transpose(1, 2, 0) for image, _ in pairs], "mask": [classes for _, classes in pairs]}
    return image_grid(rows, size=(7, 7 / len(numbers) * 2 + 0.5), titles=numbers)


def pixel_frequencies(split):
    """Return the share of each class in the pixels of a layout.Tiles: (7,) floats that sum to 1."""
    count = len(landcover.CLASSES)
    pixels = sum(np.bincount(image_files.load_tile(split, n)[1].ravel(), minlength=count) for n in split.numbers)
    return pixels / pixels.sum()


def frequency_bars(frequencies):
    """Draw one stacked bar per split; `frequencies` is a dict from its name to the (7,) shares of the classes."""
    figure, (axis,) = canvas(1, 1, (6.4, 1.6))
    frame = pd.DataFrame.from_dict(frequencies, orient="index", columns=landcover.CLASSES)
    bars = {"color": landcover.PALETTE / 255, "edgecolor": MUTED, "linewidth": 0.5, "width": 0.8}
    frame.plot.barh(stacked=True, ax=axis, legend=False, **bars)
    for name, segments in zip(frame, axis.containers):
        labels = [f"{share:.0%}" if share > 0.04 else "" for share in frame[name]]
        ink = "white" if name in ("water", "unknown") else "black"
        axis.bar_label(segments, labels, label_type="center", fontsize=7, color=ink)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.grid(False)
    class_legend(figure, range(len(landcover.CLASSES)))
    return figure
