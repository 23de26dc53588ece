"""Every figure of the report by name: what it reads from a workbook, and what draws it."""

import numpy as np
import torch

from hw1lib import answers, answers_segmentation, profiles
from hw1lib.data import images as image_files
from hw1lib.data.landcover import CLASSES
from hw1lib.loops import augment, training
from hw1lib.models import segmenters
from hw1lib.results import figures
from hw1lib.results import figures_classification as one
from hw1lib.results import figures_segmentation as two

SHOWN = 8  # example images or classes in a row or column


def _hwc(image):
    return image.transpose(1, 2, 0)


def _images(split, chosen, size):
    """Some images of a split by their places in it, as training sees them."""
    return [
        _hwc(image_files.square(image_files.open_rgb(split.paths[i]), size)) for i in chosen
    ]


def _spread(count, wanted):
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def office_images(book):
    split = book.data.problem1.train
    rows = {}
    for label in _spread(len(split.classes), SHOWN):
        of_class = np.flatnonzero(split.labels == label)
        chosen = of_class[_spread(len(of_class), SHOWN)]
        rows[split.classes[label]] = _images(split, chosen, book.profile.data.image_size)
    return figures.image_grid(rows)


def class_counts(book):
    problem = book.data.problem1
    return one.class_counts(
        {"training": problem.train.counts(), "validation": problem.val.counts()}
    )


def views(book):
    """Two augmented views of the same pool images, as pre-training draws them."""
    profile, pool = book.profile, book.data.problem1.pool.take(SHOWN)
    size = profile.data.image_size
    images = image_files.load(pool, size)
    training.seed_everything(profile.seed)
    if profile.pretrain.augmentation == "original":
        draw = augment.original(size)
        drawn = [
            torch.stack([draw(image_files.open_rgb(path)) for path in pool.paths])
            for _ in range(2)
        ]
    else:
        pair = augment.two_views(size, profile.pretrain, profile.data.overhead)
        drawn = [view(torch.from_numpy(images)) for view in pair]
    rows = {"image": [_hwc(image) for image in images]}
    for number, batch in enumerate(drawn, start=1):
        pixels = (augment.denormalise(batch) * 255).round().to(torch.uint8).numpy()
        rows[f"view {number}"] = [_hwc(image) for image in pixels]
    return figures.image_grid(rows)


def pretraining_curves(book):
    supervised, pretrain = book.result("pretrain-supervised"), book.result("pretrain")
    return one.pretraining_curves(
        pretrain.history,
        pretrain.metrics["before"],
        supervised.history if supervised.metrics["source"] == "pool" else None,
    )


def finetune_curves(book):
    return one.finetune_curves(
        {s: book.result(f"finetune-{s}").history for s in profiles.SETTINGS}
    )


def finetune_accuracy(book):
    return one.finetune_accuracy(answers.finetune(book))


def confusion_best(book):
    """The confusion matrix of the setting with the highest accuracy at the last epoch."""
    best, _, matrix, _ = answers.most_confused(book)
    return one.confusion(matrix, book.data.problem1.classes, f"setting {best}, last epoch")


def confused_pairs(book):
    """Validation images of the most confused pairs of classes, taken for each other."""
    _, predicted, matrix, pairs = answers.most_confused(book)
    val, size = book.data.problem1.val, book.profile.data.image_size
    rows = []
    for pair in pairs:
        for truth, taken in (pair, pair[::-1]):
            chosen = np.flatnonzero((val.labels == truth) & (predicted == taken))[:SHOWN]
            names = val.classes[truth], val.classes[taken]
            if len(chosen):
                images = _images(val, chosen, size)
                rows.append((*names, int(matrix[truth, taken]), images))
    return one.confused_pairs(rows, SHOWN)


def _embedding(method, name):
    def draw(book):
        train, result = book.data.problem1.train, book.result("embed")
        planes = {
            f"{name}, {epoch} epoch": result.array(f"{method}_{epoch}")
            for epoch in ("first", "last")
        }
        return one.embedding(planes, train.labels, train.classes)
    return draw


def tiles(book):
    split = book.data.problem2.validation
    rows = []
    for i in _spread(len(split), 6):
        image, classes, _ = image_files.load_tile(split, split.numbers[i])
        rows.append((split.numbers[i], _hwc(image), classes))
    return two.tiles(rows)


def pixel_shares(book):
    shares = {}
    for name in ("train", "validation"):
        split = getattr(book.data.problem2, name)
        counts = sum(
            np.bincount(image_files.load_tile(split, n)[1].ravel(), minlength=len(CLASSES))
            for n in split.numbers
        )
        shares[f"{name} ({len(split)} tiles)"] = counts / counts.sum()
    return two.pixel_shares(shares)


def _architecture(name):
    def draw(book):
        size = answers_segmentation.tile_side(book) * getattr(book.profile, name).enlarge
        blocks = segmenters.outline(name, size)
        return two.architecture(blocks, f"{segmenters.NAMES[name]}, {size} × {size} input")
    return draw


def segmentation_curves(book):
    histories = {m: book.result(f"segment-{m}").history for m in profiles.SEGMENTERS}
    control = book.metrics("segment-colour")["miou"]
    return two.segmentation_curves(histories, segmenters.NAMES, control)


def class_iou(book):
    """IoU of each class at the last epoch, by model and for colours alone."""
    names = (*profiles.SEGMENTERS, "colour")
    values = {name: book.metrics(f"segment-{name}")["iou_last"] for name in names}
    return two.class_iou(values, segmenters.NAMES)


def confusion_pixels(book):
    """The improved model's confusion of pixels at the last epoch, a row a true class."""
    improved = book.profile.segmentation.improved
    matrix = np.array(book.metrics(f"segment-{improved}")["confusion_last"])
    there = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    names = [CLASSES[number] for number in there]
    title = f"{segmenters.NAMES[improved]}, last epoch"
    return one.confusion(matrix[np.ix_(there, there)], names, title)


def stages(book):
    return two.stages(*answers_segmentation.stage_rows(book))


def _painted(result, method, number, width):
    """The masks as a partition, -1 where there is none, and the (M, H, W) masks themselves."""
    packed = result.array(f"{method}_{number}_masks")
    masks = np.unpackbits(packed, axis=-1, count=width).astype(bool)
    labels = result.array(f"{method}_{number}_labels")
    return np.where(masks.any(axis=0), labels, -1), masks


def everything_masks(book):
    result = book.result("everything")
    measured = result.metrics["rows"]
    tiles = book.data.problem2.validation
    model = book.result(f"segment-{book.profile.segmentation.improved}").array("predictions")
    methods = dict.fromkeys(row["method"] for row in measured)
    rows = []
    for number in book.profile.everything.images:
        image, truth, _ = image_files.load_tile(tiles, number)
        predicted = model[tiles.index(number, "everything.images")]
        row = {"number": number, "image": _hwc(image), "model": predicted, "truth": truth}
        for method in methods:
            count = next(
                r["masks"] for r in measured if (r["method"], r["image"]) == (method, number)
            )
            row[method] = {
                "labels": _painted(result, method, number, truth.shape[1])[0],
                "vote": result.array(f"{method}_{number}_vote"),
                "masks": count,
            }
        rows.append(row)
    return two.everything_masks(rows, {m: answers_segmentation.METHODS[m] for m in methods})


def everything_method(book):
    """SAM's way where its weights are there, else SLIC's, which starts from a grid, too."""
    result = book.result("everything")
    method = "sam" if result.metrics["sam"] else "slic"
    number = book.profile.everything.images[0]
    image, _, _ = image_files.load_tile(book.data.problem2.validation, number)
    labels, masks = _painted(result, method, number, image.shape[-1])
    return two.everything_method(
        _hwc(image),
        result.array(f"{method}_{number}_grid"),
        result.array(f"{method}_{number}_points"),
        labels,
        masks,
        f"{answers_segmentation.METHODS[method]}, {number}_sat.jpg",
    )


PROBLEM1 = {
    "office_images": office_images,
    "class_counts": class_counts,
    "views": views,
    "pretraining_curves": pretraining_curves,
    "finetune_curves": finetune_curves,
    "finetune_accuracy": finetune_accuracy,
    "confusion_best": confusion_best,
    "confused_pairs": confused_pairs,
    "pca": _embedding("pca", "PCA"),
    "tsne": _embedding("tsne", "t-SNE"),
}
PROBLEM2 = {
    "tiles": tiles,
    "pixel_shares": pixel_shares,
    **{f"architecture_{name}": _architecture(name) for name in profiles.SEGMENTERS},
    "segmentation_curves": segmentation_curves,
    "class_iou": class_iou,
    "confusion_pixels": confusion_pixels,
    "stages": stages,
    "everything_method": everything_method,
    "everything_masks": everything_masks,
}
FIGURES = PROBLEM1 | PROBLEM2
