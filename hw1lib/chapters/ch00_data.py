"""Notebook 00: what the two problems learn from, and whether it can be trusted."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from hw1lib.chapters.phrases import escape
from hw1lib.chapters.style import MUTED, PALETTE, canvas, image_grid, show
from hw1lib.data import images as image_files
from hw1lib.data import landcover, layout


def counts(data, image_size, is_sample):
    """What the data holds, counted: a sentence a problem.

    Args:
        data: layout.Layout.
        image_size: side of Problem 1's images in pixels, as training sees them.
        is_sample: whether it is the Earth sample.
    """
    parts, one, two = [], data.problem1, data.problem2
    if one:
        pool, target = domains(is_sample)
        labelled = "with labels" if one.pool.labels is not None else "without labels"
        images = f"{len(one.train):,} training and {len(one.val):,} validation images of {target}"
        parts.append(
            f"Problem 1 pre-trains on {len(one.pool):,} images of {pool} ({labelled}) and fine-tunes on {images} in "
            f"{len(one.classes)} classes, at {image_size} × {image_size} pixels."
        )
    if two:
        parts.append(f"Problem 2 has {len(two.train):,} training and {len(two.validation):,} validation tiles.")
    return " ".join(parts)


def domains(is_sample):
    """What Problem 1 pre-trains on and what it fine-tunes on, in words."""
    return ("the Americas", "the other continents") if is_sample else ("Mini-ImageNet", "Office-Home")


def findings(checks):
    """What the check of the data counted, as a table to filter.

    Args:
        checks: dict from problem (1, 2) to the metrics of its check.

    Returns:
        DataFrame with columns problem, split, finding and count; lists of files are counted.
    """
    rows = []
    for problem, facts in checks.items():
        for split, values in facts.items():
            if isinstance(values, dict):
                rows += [(problem, split, *found) for found in _counted(values)]
    return pd.DataFrame(rows, columns=["problem", "split", "finding", "count"])


def _counted(values, above=""):
    """Pairs of a finding and its number; groups of findings are flattened, lists counted."""
    for name, value in values.items():
        name = above + name.replace("_", " ")
        if isinstance(value, dict):
            yield from _counted(value, f"{name}: ")
        elif value is not None:
            yield name, len(value) if isinstance(value, list) else value


def weaknesses(warnings, problem):
    """What the check found that weakens a problem's numbers, as Markdown; `warnings` are its sentences."""
    if not warnings:
        return f"The check of Problem {problem}'s data found nothing that weakens its numbers."
    head = f"**What weakens the numbers of Problem {problem}**, by the check of its data:\n"
    return "\n".join([head, *(f"- {escape(line)}" for line in warnings)])


def split(root):
    """On which split of the tiles the numbers stand: a sentence.

    Args:
        root: the data root.
    """
    if not (note := Path(root) / layout.SPLIT).is_file():
        return "All numbers stand on the data's own split of the tiles."
    facts = json.loads(note.read_text())
    return (
        "**The split is not the data's own**: `data split --by scene` dealt the tiles out again in "
        f"{facts['groups']:,} groups of tiles that continue one another on the ground, {facts['left_out']:,} left out. "
        f"{facts['leaking']:,} of {facts['validation']:,} validation tiles seem to continue a training tile "
        f"({facts['null']:,} by chance); of the data's own split {facts['leaking_before']:,} do. Numbers of the two "
        "splits are of other tiles and do not compare one by one."
    )


def strays(pixels):
    """How many pixels of the masks are not exactly of a class's colour: a sentence."""
    if not pixels:
        return "Every pixel of the masks has the colour of a class."
    return (
        f"{pixels:,} pixels of the masks do not have exactly a class's colour; as in the course's score, a channel "
        "counts as 255 from 128 on, and pure red as unknown."
    )


def examples(split, size, classes=8, images=8):
    """Example images, one row a class.

    Args:
        split: layout.Split with labels.
        size: side of the images in pixels.
        classes: rows at most, evenly over the classes.
        images: images of each class at most, evenly over the split.
    """
    rows = {}
    for label in spread(len(split.classes), classes):
        of_class = np.flatnonzero(split.labels == label)
        rows[split.classes[label]] = some(split, of_class[spread(len(of_class), images)], size)
    return image_grid(rows)


def some(split, places, size):
    """The images at some places of a split as training sees them: a list of (size, size, 3) uint8."""
    opened = (image_files.open_rgb(split.paths[place]) for place in places)
    return [image_files.square(image, size).transpose(1, 2, 0) for image in opened]


def spread(count, wanted):
    """Up to `wanted` whole numbers, evenly over 0 … count - 1."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def class_counts(splits):
    """Bars: images of each class in each split, from a dict of layout.Split."""
    classes = next(iter(splits.values())).classes
    figure, axes = canvas(1, len(splits), (7, max(2, 0.17 * len(classes) + 0.9)), sharey=True)
    for axis, (name, split) in zip(axes, splits.items(), strict=True):
        counted = split.counts()
        axis.barh(classes, [counted.get(c, 0) for c in classes], color=PALETTE[0])
        axis.set_title(f"{name}: {len(split):,} images")
        axis.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    axes[0].tick_params(axis="y", labelsize=8 if len(classes) <= 20 else 5)
    return figure


def layers(image, classes):
    """A tile and its mask, decoded colour by colour.

    Args:
        image: (3, H, W) uint8.
        classes: (H, W) uint8 class numbers.
    """
    there = np.unique(classes)
    figure, axes = canvas(1, len(there) + 2, (7.4, 7.4 / (len(there) + 2) + 0.5))
    show(axes[0], image.transpose(1, 2, 0), "image")
    show(axes[1], landcover.encode(classes), "mask")
    for axis, number in zip(axes[2:], there, strict=True):
        only = np.where((classes == number)[..., None], landcover.encode(classes), 235).astype(np.uint8)
        show(axis, only, f"{landcover.CLASSES[number]} {np.mean(classes == number):.0%}")
    return figure


def tiles(split, count=6):
    """Satellite tiles of a layout.Tiles above their masks, evenly over the split."""
    numbers = [split.numbers[place] for place in spread(len(split), count)]
    loaded = [image_files.load_tile(split, number) for number in numbers]
    images, masks = [image.transpose(1, 2, 0) for image, _, _ in loaded], [classes for _, classes, _ in loaded]
    return land_cover(numbers, [images, masks], size=(7, 7 / len(numbers) * 2 + 0.5))


def land_cover(titles, rows, size, names=(), title_size=8):
    """Rows of tiles and masks, and below them the colours of the masks' classes.

    Args:
        titles: of the columns.
        rows: lists of pictures, (H, W, 3) colours or (H, W) classes.
        size: of the figure in inches.
        names: of the rows.
        title_size: of the titles in points.
    """
    figure, axes = canvas(len(rows), len(titles), size)
    pictures = list(itertools.chain(*rows))
    for axis, picture, title in itertools.zip_longest(axes, pictures, titles, fillvalue=""):  # titles: the first row's
        show(axis, landcover.encode(picture) if picture.ndim == 2 else picture, title, title_size)
    for axis, name in zip(axes[:: len(titles)], names):
        axis.set_ylabel(name, fontsize=8)
    class_legend(figure, np.unique(np.concatenate([p.ravel() for p in pictures if p.ndim == 2])))
    return figure


def pixel_frequencies(split):
    """How often each class occurs in the pixels of a layout.Tiles: (7,) float that sums to 1."""
    count = len(landcover.CLASSES)
    counted = sum(np.bincount(image_files.load_tile(split, n)[1].ravel(), minlength=count) for n in split.numbers)
    return counted / counted.sum()


def frequency_bars(frequencies):
    """One bar a split, divided by class: a dict from its name to (7,) frequencies."""
    figure, (axis,) = canvas(1, 1, (6.4, 1.6))
    for row, values in enumerate(frequencies.values()):
        left = 0.0
        for number, value in enumerate(values):
            axis.barh(row, value, left=left, color=landcover.PALETTE[number] / 255, edgecolor=MUTED, linewidth=0.5)
            if value > 0.04:
                ink = "white" if landcover.CLASSES[number] in ("water", "unknown") else "black"
                axis.text(left + value / 2, row, f"{value:.0%}", ha="center", va="center", fontsize=7, color=ink)
            left += value
    axis.set_yticks(range(len(frequencies)), list(frequencies))
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.grid(False)
    class_legend(figure, range(len(landcover.CLASSES)))
    return figure


def class_legend(figure, classes):
    """The colours of some land-cover classes, by number, below a figure."""
    colours = {landcover.CLASSES[number]: landcover.PALETTE[number] / 255 for number in classes}
    handles = [Patch(facecolor=colour, edgecolor=MUTED, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8, handlelength=1.2)
