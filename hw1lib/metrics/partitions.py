"""Metrics of how well the segments of one image fit its land cover.

`labels` is a partition: (H, W) int, one number from 0 for each segment. `truth` is (H, W) class numbers; pixels of
class unknown are never scored. Metrics that use the truth to label segments are upper bounds.
"""

import numpy as np
import skimage.morphology

from hw1lib.data.landcover import CLASSES, UNKNOWN


def coverage(masks):
    """Compute the fraction of pixels inside any mask.

    Args:
        masks: (M, H, W) bool; M may be 0.

    Returns:
        Float in [0, 1].
    """
    return float(masks.any(axis=0).mean())


def asa(labels, truth):
    """Compute the achievable segmentation accuracy (ASA), the pixel accuracy of `oracle`.

    As in Liu et al. 2011 (entropy rate superpixels, eq. 12), with land-cover classes as the true segments and without
    pixels of class unknown.

    Args:
        labels: (H, W) partition.
        truth: (H, W) class numbers.

    Returns:
        Float in [0, 1]; NaN if every pixel is unknown.
    """
    scored = truth != UNKNOWN
    if not scored.any():
        return float("nan")
    return float(_votes(labels[scored], truth[scored]).max(axis=1).sum() / scored.sum())


def oracle(labels, truth):
    """Label every segment with the true class of most of its scored pixels.

    Its pixel accuracy is an upper bound for this partition. Its mIoU is close to one, but majorities do not maximise
    mIoU.

    Args:
        labels: (H, W) partition.
        truth: (H, W) class numbers.

    Returns:
        (H, W) uint8 class numbers; ties go to the lower one, and a segment without scored pixels becomes unknown.
    """
    scored = truth != UNKNOWN
    votes = _votes(labels[scored], truth[scored], segments=labels.max() + 1)
    winners = np.where(votes.any(axis=1), votes.argmax(axis=1), UNKNOWN)
    return winners.astype(np.uint8)[labels]


def vote(labels, prediction):
    """Label every segment with the predicted class of most of its pixels; the truth is not used.

    Args:
        labels: (H, W) partition.
        prediction: (H, W) class numbers as predicted by a model.

    Returns:
        (H, W) uint8 class numbers; ties go to the lower one.
    """
    return _votes(labels, prediction).argmax(axis=1).astype(np.uint8)[labels]


def boundary_tolerance(shape):
    """Return the tolerance of boundaries in pixels: 2 per 512 of the longer side, rounded half up, at least 1."""
    return max(1, int(2 * max(shape) / 512 + 0.5))


def boundary_recall_precision(labels, truth, tolerance_px=None):
    """Compare the borders of segments with the borders between land-cover classes.

    A border pixel is one whose right or lower neighbour is in another segment (class). It is matched if a border pixel
    of the other kind lies within `tolerance_px` (Euclidean). Recall is the fraction of matched class borders,
    precision that of matched segment borders (Martin et al. 2004; for superpixels, Stutz et al. 2018). Several border
    pixels may match the same one.

    Borders of unknown areas are no class borders, and segment borders inside or within the tolerance of unknown areas
    are not counted.

    Args:
        labels: (H, W) partition.
        truth: (H, W) class numbers.
        tolerance_px: whole pixels; None uses `boundary_tolerance`.

    Returns:
        Recall and precision in [0, 1]; NaN without borders to count.
    """
    if tolerance_px is None:
        tolerance_px = boundary_tolerance(truth.shape)
    unknown = truth == UNKNOWN
    true_borders = _borders(truth, ignore=unknown)
    borders = _borders(labels)
    near_truth = skimage.morphology.isotropic_dilation(true_borders, tolerance_px)
    near_segments = skimage.morphology.isotropic_dilation(borders, tolerance_px)
    counted = borders & ~skimage.morphology.isotropic_dilation(unknown, tolerance_px)
    return _mean_inside(near_segments, true_borders), _mean_inside(near_truth, counted)


def _votes(labels, classes, segments=None):
    """Count the pixels of each segment by class, as (K, 7); both arrays have one shape."""
    segments = labels.max() + 1 if segments is None else segments
    pairs = labels.astype(np.int64).ravel() * len(CLASSES) + classes.ravel()
    counts = np.bincount(pairs, minlength=segments * len(CLASSES))
    return counts.reshape(segments, len(CLASSES))


def _borders(areas, ignore=None):
    """Find the pixels that differ from their right or lower neighbour, neither of them ignored, as (H, W) bool."""
    borders = np.zeros(areas.shape, dtype=bool)
    for pixel, neighbour in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differs = areas[pixel] != areas[neighbour]
        if ignore is not None:
            differs &= ~(ignore[pixel] | ignore[neighbour])
        borders[pixel] |= differs
    return borders


def _mean_inside(values, area):
    return float(values[area].mean()) if area.any() else float("nan")
