"""Notebook 05: all masks of a tile, what they are worth, and what they make of our own model's prediction."""

import matplotlib.colors
import numpy as np
import pandas as pd

from hw1lib.chapters.ch00_data import land_cover
from hw1lib.chapters.ch04_segmentation import moved
from hw1lib.chapters.phrases import ends, percent
from hw1lib.chapters.style import INK, PALETTE, canvas, show
from hw1lib.data import images as image_files
from hw1lib.models.weights import SAM_HINT

METHODS = {"sam": "SAM", "slic": "SLIC", "felzenszwalb": "Felzenszwalb"}
QUALITY = ["coverage", "asa", "oracle_miou", "vote_miou", "boundary_recall", "boundary_precision"]


def table(metrics, images):
    """The table of everything masks, as tables/everything.csv; SAM's rows are empty where its weights are missing.

    Args:
        metrics: those of step everything.
        images: numbers of the tiles.
    """
    rows = metrics["rows"]
    if not metrics["sam"]:
        rows = [{"method": "sam", "image": image} for image in images] + rows
    return pd.DataFrame(rows, columns=["method", "image", "masks", *QUALITY]).astype({"masks": "Int64"})


def readable(table):
    """The same with methods in words."""
    masks = ["not measured" if pd.isna(number) else str(number) for number in table["masks"]]
    return table.assign(method=table["method"].map(METHODS), masks=masks)


def refinement(metrics):
    """What each method's masks make of the improved model's prediction on all tiles, as tables/refinement.csv."""
    rows, model = [], metrics["model_miou"]
    for method, values in metrics["refined"].items():
        rows.append((method, values["segments"], model, values["miou"], values["miou"] - model, *values["change"]))
    return pd.DataFrame(rows, columns=["method", "segments", "model_miou", "vote_miou", "change", "low", "high"])


def refinement_readable(table):
    """The same for reading."""
    forms = {"segments": "{:.0f}", "model_miou": "{:.3f}", "vote_miou": "{:.3f}", "change": "{:+.3f}"}
    shown = table.assign(method=table["method"].map(METHODS), **{c: table[c].map(f.format) for c, f in forms.items()})
    intervals = [ends(low, high, "…") for low, high in zip(table["low"], table["high"])]
    shown = shown.drop(columns=["low", "high"]).assign(**{"95 % interval": intervals})
    names = {"segments": "segments an image", "model_miou": "mIoU of the model", "vote_miou": "after the vote"}
    return shown.rename(columns=names)


def painted(labels, masks):
    """A partition with -1 where no mask is: (H, W) labels and (M, H, W) masks -> (H, W)."""
    return np.where(masks.any(axis=0), labels, -1)


def outlined(image, labels, seed=0, strength=0.45):
    """SAM's usual overlay: each segment in a random colour, with its outline.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) segment numbers; below zero is left as it is.

    Returns:
        (H, W, 3) float in [0, 1].
    """
    numbers, inverse = np.unique(labels, return_inverse=True)
    hues = np.random.default_rng(seed).permutation(len(numbers)) / len(numbers)
    hsv = np.stack([hues, np.full_like(hues, 0.75), np.full_like(hues, 0.95)], axis=1)
    colours = matplotlib.colors.hsv_to_rgb(hsv)[inverse.reshape(labels.shape)]
    mixed = (1 - strength) * image / 255 + strength * colours
    mixed[labels < 0] = image[labels < 0] / 255

    for axis in (0, 1):  # pixels that differ from the one above, or on the left
        mixed[np.diff(labels, axis=axis, prepend=labels.take([0], axis)) != 0] = 1.0
    return mixed


def gather(result, tiles, numbers, methods, predictions):
    """What `masks_figure` draws, from the arrays of step everything.

    Args:
        result: with array(name) and metrics, as store.Result.
        tiles: layout.Tiles of the validation set.
        numbers: of the tiles that are shown.
        methods: names of the methods.
        predictions: (N, H, W) our model's classes of all validation tiles.
    """
    counts = {(row["method"], row["image"]): row["masks"] for row in result.metrics["rows"]}
    rows = {}
    for number in numbers:
        image, truth, _ = image_files.load_tile(tiles, number)
        predicted = predictions[tiles.index(number, "everything.images")]
        rows[number] = {"image": image.transpose(1, 2, 0), "model": predicted, "truth": truth}
        for method in methods:
            packed = result.array(f"{method}_{number}_masks")
            masks = np.unpackbits(packed, axis=-1, count=truth.shape[1]).astype(bool)
            rows[number][method] = {
                "labels": painted(result.array(f"{method}_{number}_labels"), masks),
                "vote": result.array(f"{method}_{number}_vote"),
                "masks": counts[method, number],
            }
    return rows


def masks_figure(rows, methods):
    """Everything masks of a few tiles, one column a method, with the refined prediction.

    Args:
        rows: dict from a tile's number to a dict of image (H, W, 3), model and truth (H, W) classes and, for each
            method, a dict of labels (H, W), vote (H, W) and masks (their number).
        methods: dict from method to its full name.
    """
    titles = ["image", "model", *(title for name in methods.values() for title in (name, "its vote")), "truth"]
    lines = []
    for parts in rows.values():
        lines.append([parts["image"], parts["model"]])
        for method in methods:
            lines[-1] += [outlined(parts["image"], parts[method]["labels"]), parts[method]["vote"]]
        lines[-1].append(parts["truth"])
    figure = land_cover(titles, lines, (7.2, 7.2 / len(titles) * len(rows) + 0.8), names=rows, title_size=7)

    for axes, parts in zip(np.reshape(figure.axes, (len(rows), -1)), rows.values()):
        for axis, method in zip(axes[2::2], methods):
            axis.set_xlabel(f"{parts[method]['masks']} masks", fontsize=7)
    return figure


def method_figure(image, grid_xy, points_xy, labels, masks, name):
    """How everything mode works: points, points left, masks, cut-outs.

    Args:
        image: (H, W, 3) uint8.
        grid_xy: (P, 2) all starting points.
        points_xy: (M, 2) the points that masks are left of.
        labels: (H, W) the masks as a partition, below zero where there is none.
        masks: (M, H, W) bool.
        name: of the method.
    """
    figure, axes = canvas(1, 4, (7.2, 2.3))
    show(axes[0], image, f"1. {len(grid_xy)} starting points", 8)
    axes[0].scatter(*grid_xy.T, s=3, color="white", edgecolors=INK, linewidths=0.3)
    show(axes[1], image, f"2. {len(points_xy)} points left", 8)
    axes[1].scatter(*points_xy.T, s=5, color=PALETTE[1], edgecolors=INK, linewidths=0.3)
    show(axes[2], outlined(image, labels), f"3. {len(masks)} masks", 8)
    show(axes[3], cut_outs(image, masks), "4. largest cut-outs", 8)
    figure.suptitle(name, fontsize=9, color=INK)
    return figure


def cut_outs(image, masks, side=3):
    """The largest masks cut out of the image, on a white sheet of side × side cells."""
    cell = max(image.shape[:2]) // side
    sheet = np.full((cell * side, cell * side, 3), 255, dtype=np.uint8)
    largest = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")[: side * side]
    for place, number in enumerate(largest):
        rows, columns = np.nonzero(masks[number])
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        piece = np.where(masks[number][box][..., None], image[box], 255)
        step = max(1, int(np.ceil(max(piece.shape[:2]) / (cell - 2))))
        piece = piece[::step, ::step]
        top, left = (place // side) * cell + 1, (place % side) * cell + 1
        sheet[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return sheet


def in_words(metrics):
    """What the everything masks are worth for land cover, method by method; `metrics` are those of step everything."""
    parts = []
    if not metrics["sam"]:
        parts.append(f"**SAM was not measured**, its rows are empty. {SAM_HINT}")
        parts.append("The two classical segmenters need no weights.")
    frame = pd.DataFrame(metrics["rows"]).astype({"vote_miou": float, "model_miou": float, "asa": float})
    for method, mean in frame.groupby("method", sort=False).mean(numeric_only=True).iterrows():
        bound = f"if each took the right class, {percent(mean['asa'])} of the pixels would be right (an upper bound)"
        bound = "no shown image has a pixel of a known class" if pd.isna(mean["asa"]) else bound
        parts.append(
            f"{METHODS[method]} finds {mean['masks']:.0f} masks an image on average; {bound}. With our own model's "
            f"vote inside each mask its mIoU on these images is {mean['vote_miou']:.3f} instead of "
            f"{mean['model_miou']:.3f}."
        )
    return " ".join(parts)


def refinement_in_words(metrics, model, tiles):
    """What a majority vote in each segment makes of a model's prediction on all tiles.

    Args:
        metrics: those of step everything.
        model: full name of the model.
        tiles: number of validation tiles.
    """
    parts = []
    for method, values in metrics["refined"].items():
        effect = moved(values["miou"] - metrics["model_miou"], values["change"])
        parts.append(f"with {METHODS[method]} ({values['segments']:.0f} segments an image) it {effect}")
    return (
        f"On all {tiles} validation tiles, a majority vote in each segment changes {model}'s prediction of the last "
        f"epoch: {'; '.join(parts)}. The row *vote* of the table of models is that of {METHODS[metrics['refine']]}, "
        "which was chosen before anything was measured."
    )
