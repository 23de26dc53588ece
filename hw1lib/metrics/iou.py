"""The course's segmentation metrics, from a confusion matrix."""

import numpy as np

from hw1lib.data.landcover import CLASSES, UNKNOWN
from hw1lib.metrics.partitions import oracle

CHUNK = 2**20  # pixels counted at once


def confusion(truth, prediction, classes=len(CLASSES)):
    """Count pixels or images by true class (rows) and predicted class (columns).

    Args:
        truth, prediction: arrays of one shape with classes 0 … classes - 1.

    Returns:
        (classes, classes) int64.
    """
    truth, prediction, counts = truth.ravel(), prediction.ravel(), np.zeros(classes**2, np.int64)
    for start in range(0, truth.size, CHUNK):  # a copy of all pixels as int64 would be large
        chunk = slice(start, start + CHUNK)
        counts += np.bincount(truth[chunk].astype(np.int64) * classes + prediction[chunk], minlength=classes**2)
    return counts.reshape(classes, classes)


def confused_pairs(matrix, count):
    """Find the pairs of classes that are confused most often, in either direction.

    Args:
        matrix: (C, C) confusion matrix.
        count: maximum number of pairs; pairs that are never confused are left out.

    Returns:
        List of (i, j) with i < j, the most confused first; ties in the order of classes.
    """
    both = np.triu(matrix + matrix.T, k=1)
    order = np.argsort(-both, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, both.shape))
    return [(int(i), int(j)) for i, j in pairs if both[i, j] > 0]


def iou(matrix):
    """Compute the IoU of the six scored classes, as the course defines it.

    Counts are pooled over all tiles, and predictions on unknown pixels are false positives.

    Args:
        matrix: (…, 7, 7) confusion matrix.

    Returns:
        (…, 6) float in [0, 1]; NaN for a class in neither labels nor predictions.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(axis=-2) + matrix.sum(axis=-1) - hits
    with np.errstate(invalid="ignore"):
        return (hits / union)[..., :UNKNOWN]


def miou(matrix):
    """Compute the mean IoU over the scored classes that have one.

    Args:
        matrix: (…, 7, 7) confusion matrix.

    Returns:
        (…) array, or a float for one matrix, in [0, 1]; NaN where no class has an IoU.
    """
    values = iou(matrix)
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)
    return mean if mean.ndim else float(mean)


def pixel_accuracy(matrix):
    """Compute the fraction of known pixels whose class is predicted correctly."""
    known = matrix[:UNKNOWN]
    return float(np.trace(known) / max(known.sum(), 1))


def ceiling(masks, stride):
    """Compute the mIoU that an output stride allows: that of true masks that are constant within blocks.

    Each block has the class of most of its known pixels; ties go to the lower number. Models that interpolate their
    scores can be slightly better.

    Args:
        masks: (N, H, W) true classes.
        stride: side of a block in pixels.

    Returns:
        Float in [0, 1].
    """
    height, width = masks.shape[1:]
    columns = -(-width // stride)  # of blocks
    blocks = np.arange(height)[:, None] // stride * columns + np.arange(width) // stride
    return miou(confusion(masks, np.stack([oracle(blocks, mask) for mask in masks])))


def iou_by_class(matrix):
    """Return {class: IoU} of a confusion matrix; None for a class that has no IoU."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(CLASSES, iou(matrix))}


def history_row(epoch, truth, predicted):
    """Return one row of a training history: epoch, mIoU and confusion matrix of (N, H, W) classes."""
    matrix = confusion(truth, predicted)
    return {"epoch": epoch, "miou": miou(matrix), "confusion": matrix.tolist()}


def summarise(history):
    """Return the metrics of the best and the last epoch of a training history, as plain numbers.

    Args:
        history: list of `history_row`.
    """
    scores = [row["miou"] for row in history]
    best = int(np.nanargmax(scores))
    matrix, last = (np.array(history[index]["confusion"]) for index in (best, -1))
    return {
        "miou": scores[best],
        "miou_last": scores[-1],
        "epoch": history[best]["epoch"],
        "iou": iou_by_class(matrix),
        "iou_last": iou_by_class(last),
        "pixel_accuracy": pixel_accuracy(matrix),
        "confusion": history[best]["confusion"],
        "confusion_last": history[-1]["confusion"],
    }
