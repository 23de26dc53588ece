"""Notebook 05: masks of everything mode, their quality, and their effect on the improved model's predictions."""

import numpy as np
import pandas as pd
from matplotlib.colors import hsv_to_rgb
from PIL import Image
from skimage.color import label2rgb

from hw1lib.chapters.phrases import change, sentences
from hw1lib.chapters.style import INK, PALETTE, canvas, image_grid, show
from hw1lib.data import images as image_files
from hw1lib.models.weights import SAM_HINT

METHODS = {"sam": "SAM", "slic": "SLIC", "felzenszwalb": "Felzenszwalb"}
COLUMNS = ["method", "image", "masks", "coverage", "asa", "oracle_miou", "vote_miou"]
COLUMNS += ["boundary_recall", "boundary_precision"]


# --- tables


def table(metrics, images):
    """Return the quality of the masks, with the columns of tables/everything.csv.

    Args:
        metrics: those of step everything.
        images: numbers of the tiles; without SAM's weights, each has an empty row for SAM.
    """
    missing = [] if metrics["sam"] else [{"method": "sam", "image": image} for image in images]
    return pd.DataFrame(missing + metrics["rows"], columns=COLUMNS).astype({"masks": "Int64"})


def refinement(metrics):
    """Return the effect of a vote within each mask on the improved model, with the columns of tables/refinement.csv."""
    model = metrics["model_miou"]
    rows = [
        (method, values["segments"], model, values["miou"], values["miou"] - model, *values["change"])
        for method, values in metrics["refined"].items()
    ]
    return pd.DataFrame(rows, columns=["method", "segments", "model_miou", "vote_miou", "change", "low", "high"])


def readable(table):
    """Return a table with the methods' names as the report spells them."""
    return table.assign(method=table["method"].map(METHODS))


# --- figures


def load_masks(result, method, number):
    """Return the masks of a tile from the arrays of step everything.

    Args:
        result: store.Result of the step.
        method: sam, slic or felzenszwalb.
        number: number of the tile.

    Returns:
        (H, W) segment numbers, -1 outside all masks, and (M, H, W) bool masks.
    """
    labels = result.array(f"{method}_{number}_labels")
    masks = np.unpackbits(result.array(f"{method}_{number}_masks"), axis=-1, count=labels.shape[1]).astype(bool)
    return np.where(masks.any(axis=0), labels, -1), masks


def overlay(image, labels, seed=0, strength=0.45):
    """Return an image with its segments in random colours and with white outlines, like SAM's own demo.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) segment numbers; pixels below zero are not coloured.
        seed: seed of the order of the colours.
        strength: opacity of the colours in [0, 1].

    Returns:
        (H, W, 3) float in [0, 1].
    """
    count = max(labels.max() + 1, 1)
    colours = hsv_to_rgb([(hue / count, 0.75, 0.95) for hue in np.random.default_rng(seed).permutation(count)])
    mixed = label2rgb(labels, image, colours, strength, bg_label=-1, bg_color=None, saturation=1)
    for axis in (0, 1):  # outline: the pixel above or on the left has another number
        mixed[np.diff(labels, axis=axis, prepend=labels.take([0], axis)) != 0] = 1.0
    return mixed


def masks_figure(result, tiles, numbers, methods, predictions):
    """Draw the masks of a few tiles beside the prediction of the improved model, before and after the vote.

    Args:
        result: store.Result of step everything.
        tiles: layout.Tiles of the validation set.
        numbers: numbers of the tiles to draw.
        methods: names of the methods.
        predictions: (N, H, W) classes predicted by the improved model for all validation tiles.
    """
    titles = ["image", "model", *(title for method in methods for title in (METHODS[method], "after vote")), "labels"]
    rows, captions = {}, []
    for number in numbers:
        image, truth, _ = image_files.load_tile(tiles, number)
        image = image.transpose(1, 2, 0)
        row = [image, predictions[tiles.index(number, "everything.images")]]
        captions += ["", ""]
        for method in methods:
            labels, masks = load_masks(result, method, number)
            row += [overlay(image, labels), result.array(f"{method}_{number}_vote")]
            captions += [f"{len(masks)} masks", ""]
        rows[number] = [*row, truth]
        captions.append("")
    size = (7.2, 7.2 / len(titles) * len(rows) + 0.8)
    return image_grid(rows, None, size, titles, captions, title_size=7)


def method_figure(image, grid_xy, points_xy, labels, masks, name):
    """Draw everything mode step by step: starting points, remaining points, masks, cut-outs.

    Args:
        image: (H, W, 3) uint8.
        grid_xy: (P, 2) starting points.
        points_xy: (M, 2) points whose masks remain.
        labels: (H, W) segment numbers, below zero outside all masks.
        masks: (M, H, W) bool.
        name: title of the figure.
    """
    figure, axes = canvas(1, 4, (7.2, 2.3))
    show(axes[0], image, f"1. {len(grid_xy)} starting points")
    axes[0].scatter(*grid_xy.T, s=3, color="white", edgecolors=INK, linewidths=0.3)
    show(axes[1], image, f"2. {len(points_xy)} points remain")
    axes[1].scatter(*points_xy.T, s=5, color=PALETTE[1], edgecolors=INK, linewidths=0.3)
    show(axes[2], overlay(image, labels), f"3. {len(masks)} masks")
    show(axes[3], cut_outs(image, masks), "4. largest cut-outs")
    figure.suptitle(name, fontsize=9, color=INK)
    return figure


def cut_outs(image, masks, side=3):
    """Return the largest masks cut out of an image, on a white square of side × side cells: (S, S, 3) uint8."""
    cell = max(image.shape[:2]) // side
    sheet = Image.new("RGB", (cell * side, cell * side), "white")
    largest = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")[: side * side]
    for index, mask in enumerate(masks[largest]):
        piece = Image.fromarray(np.where(mask[..., None], image, np.uint8(255))).crop(Image.fromarray(mask).getbbox())
        piece.thumbnail((cell - 2, cell - 2))
        row, column = divmod(index, side)
        sheet.paste(piece, (column * cell + 1, row * cell + 1))
    return np.asarray(sheet)


# --- sentences


def in_words(metrics):
    """Return a paragraph on the quality of the masks, method by method; `metrics` are those of step everything."""
    rows = pd.DataFrame(metrics["rows"]).astype({"vote_miou": float, "model_miou": float, "asa": float})
    means = rows.groupby("method", sort=False).mean(numeric_only=True)
    methods = [(METHODS[name], mean) for name, mean in means.iterrows()]
    return sentences("masks", methods=methods, sam=metrics["sam"], hint=SAM_HINT)


def refinement_in_words(table, chosen, model, tiles):
    """Return a paragraph on the effect of the vote on all validation tiles.

    Args:
        table: table returned by `refinement`.
        chosen: method that the variant *vote* in the table of models uses.
        model: name of the improved model in the report.
        tiles: number of validation tiles.
    """
    effects = [
        f"with {METHODS[row.method]} ({row.segments:.0f} segments per image) by {change(row.change, row.low, row.high)}"
        for row in table.itertuples()
    ]
    return sentences("refinement", tiles=tiles, model=model, effects=effects, chosen=METHODS[chosen])
