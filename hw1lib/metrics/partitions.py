"""How well the segments of one image fit its land cover, whatever made them.

All functions take plain numpy arrays. `labels` is a partition: (H, W) int, one number from 0 per
segment. `truth` is (H, W) class numbers; pixels of class unknown are never scored. Measures that
read the truth to label the segments are upper bounds: no model can know the truth.
"""

import numpy as np
import skimage.morphology

from hw1lib.data.landcover import CLASSES, UNKNOWN


def coverage(masks):
    """Share of all pixels inside any mask.

    Args:
        masks: (M, H, W) bool; M may be 0.

    Returns:
        Float in [0, 1].
    """
    return float(masks.any(axis=0).mean())


def asa(labels, truth):
    """Achievable segmentation accuracy, an upper bound: the pixel accuracy of `oracle`.

    After Liu et al. 2011 (entropy rate superpixels, eq. 12), with the land-cover classes as the
    true segments and without the pixels of class unknown.

    Args:
        labels: (H, W) partition.
        truth: (H, W) class numbers.

    Returns:
        Float in [0, 1]; NaN where every pixel is unknown.
    """
    scored = truth != UNKNOWN
    if not scored.any():
        return float("nan")
    return float(_votes(labels[scored], truth[scored]).max(axis=1).sum() / scored.sum())


def oracle(labels, truth):
    """Gives every segment the class that most of its scored pixels truly have.

    An upper bound of the accuracy, and close to one of the mIoU, which majorities do not aim at.

    Args:
        labels: (H, W) partition.
        truth: (H, W) class numbers.

    Returns:
        (H, W) uint8 class numbers. A tie goes to the lower number. A segment without any scored
        pixel becomes unknown.
    """
    scored = truth != UNKNOWN
    votes = _votes(labels[scored], truth[scored], segments=labels.max() + 1)
    winners = np.where(votes.any(axis=1), votes.argmax(axis=1), UNKNOWN)
    return winners.astype(np.uint8)[labels]


def vote(labels, prediction):
    """Gives every segment the class that the model predicts for most of its pixels.

    No ground truth is used: this is a prediction like any other.

    Args:
        labels: (H, W) partition.
        prediction: (H, W) class numbers that a model predicted.

    Returns:
        (H, W) uint8 class numbers; a tie goes to the lower number.
    """
    return _votes(labels, prediction).argmax(axis=1).astype(np.uint8)[labels]


def boundary_tolerance(shape):
    """Pixels by which a boundary may be off: 2 where the longer side is 512, in proportion
    elsewhere, rounded half up, at least 1 (so 1 at 128)."""
    return max(1, int(2 * max(shape) / 512 + 0.5))


def boundary_recall_precision(labels, truth, tolerance_px=None):
    """How well the borders of segments meet the borders between land-cover classes.

    A border pixel is one whose right or lower neighbour is another segment (class). A border
    counts as met where one of the other kind lies at most `tolerance_px` away (Euclidean). Recall
    is the share of class borders met by segment borders, precision the share of segment borders
    met by class borders. After Martin et al. 2004 and, for superpixels, Stutz et al. 2018; any
    number of border pixels may meet the same one.

    Borders of unknown areas are no class borders, and segment borders inside unknown areas or
    within the tolerance of one are not counted.

    Args:
        labels: (H, W) partition.
        truth: (H, W) class numbers.
        tolerance_px: whole pixels; None takes `boundary_tolerance`.

    Returns:
        Recall and precision in [0, 1]; NaN where there is no border to count.
    """
    if tolerance_px is None:
        tolerance_px = boundary_tolerance(truth.shape)
    unknown = truth == UNKNOWN
    true_borders = _borders(truth, ignore=unknown)
    borders = _borders(labels)
    near_truth = skimage.morphology.isotropic_dilation(true_borders, tolerance_px)
    near_segments = skimage.morphology.isotropic_dilation(borders, tolerance_px)
    counted = borders & ~skimage.morphology.isotropic_dilation(unknown, tolerance_px)
    return _share(near_segments, true_borders), _share(near_truth, counted)


def _votes(labels, classes, segments=None):
    """(K, 7) counts: how many pixels of segment k have class c; any shapes that agree."""
    segments = labels.max() + 1 if segments is None else segments
    pairs = labels.astype(np.int64).ravel() * len(CLASSES) + classes.ravel()
    counts = np.bincount(pairs, minlength=segments * len(CLASSES))
    return counts.reshape(segments, len(CLASSES))


def _borders(areas, ignore=None):
    """(H, W) bool: the right or lower neighbour differs and neither pixel is to be ignored."""
    borders = np.zeros(areas.shape, dtype=bool)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differs = areas[here] != areas[there]
        if ignore is not None:
            differs &= ~(ignore[here] | ignore[there])
        borders[here] |= differs
    return borders


def _share(hit, counted):
    """Share of the counted pixels that are hit; NaN where none is counted."""
    return float(hit[counted].mean()) if counted.any() else float("nan")
