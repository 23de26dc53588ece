"""The course's measures, from plain counts."""

import numpy as np

from hw1lib.data.landcover import CLASSES, UNKNOWN

PART = 2**20  # pixels that are counted at once


def confusion(truth, prediction, classes=len(CLASSES)):
    """Counts pixels or images: rows are the truth, columns the prediction.

    Args:
        truth, prediction: whole numbers 0 … classes - 1, arrays of one shape.

    Returns:
        (classes, classes) int64.
    """
    truth, prediction, counts = truth.ravel(), prediction.ravel(), np.zeros(classes**2, np.int64)
    for part in (slice(start, start + PART) for start in range(0, truth.size, PART)):  # int64 of all would be large
        counts += np.bincount(truth[part].astype(np.int64) * classes + prediction[part], minlength=classes**2)
    return counts.reshape(classes, classes)


def confused_pairs(matrix, count):
    """The pairs of classes that are most often taken for each other, in either direction.

    Args:
        matrix: (C, C) confusion matrix.
        count: of pairs at most; pairs that are never confused do not count.

    Returns:
        List of (i, j) with i < j, the most confused first; equally confused ones by number.
    """
    both = np.triu(matrix + matrix.T, k=1)
    order = np.argsort(-both, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, both.shape))
    return [(int(i), int(j)) for i, j in pairs if both[i, j] > 0]


def iou(matrix):
    """IoU of the six scored classes from a confusion matrix over all seven.

    The course's definition: counts are pooled over the whole set; predictions on unknown pixels
    are false positives. A class in neither labels nor prediction has no IoU: nan.

    Args:
        matrix: (…, 7, 7) counts.

    Returns:
        (…, 6) float in [0, 1] or nan.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(axis=-2) + matrix.sum(axis=-1) - hits
    with np.errstate(invalid="ignore"):
        return (hits / union)[..., :UNKNOWN]


def miou(matrix):
    """Mean IoU over the scored classes that have one, in [0, 1]; nan where none has; (…, 7, 7) counts give (…)."""
    values = iou(matrix)
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        found = np.where(there, values, 0).sum(axis=-1) / there.sum(axis=-1)
    return found if found.ndim else float(found)


def pixel_accuracy(matrix):
    """Share of the known pixels that are predicted right, in [0, 1]."""
    known = matrix[:UNKNOWN]
    return float(np.trace(known) / max(known.sum(), 1))


def ceiling(masks, stride):
    """mIoU of the best masks that are constant in blocks: what an output stride allows.

    Each block gets the class that most of its known pixels have, of equals the lower number.
    Models that interpolate between their scores can be a little better than that.

    Args:
        masks: (N, H, W) true classes.
        stride: side of a block in pixels.

    Returns:
        Float in [0, 1].
    """
    count, height, width = masks.shape
    down, right = -height % stride, -width % stride
    padded = np.pad(masks, ((0, 0), (0, down), (0, right)), constant_values=UNKNOWN)
    rows, columns = padded.shape[1] // stride, padded.shape[2] // stride
    blocks = padded.reshape(count, rows, stride, columns, stride)
    votes = np.stack([(blocks == c).sum(axis=(2, 4)) for c in range(UNKNOWN)])  # (6, N, h, w)
    best = np.where(votes.any(axis=0), votes.argmax(axis=0), UNKNOWN)
    best = best.repeat(stride, axis=1).repeat(stride, axis=2)[:, :height, :width]
    return miou(confusion(masks, best))


def iou_by_class(matrix):
    """Return {class: IoU} of a confusion matrix; None for a class that has no IoU."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(CLASSES, iou(matrix))}


def history_row(epoch, truth, predicted):
    """Return one epoch of a segmentation's history: epoch, mIoU and confusion matrix of (N, H, W) classes."""
    matrix = confusion(truth, predicted)
    return {"epoch": epoch, "miou": miou(matrix), "confusion": matrix.tolist()}


def summarise(history):
    """Return the metrics of the best and the last epoch of a segmentation's history, as plain numbers.

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
