"""Superpixels by SLIC and Felzenszwalb, the baselines of SAM's everything mode, and partitions from masks."""

from dataclasses import dataclass

import numpy as np
import skimage.measure
import skimage.segmentation
import skimage.util


@dataclass(frozen=True)
class Masks:
    """All M masks of one image by one method.

    Attributes:
        masks: (M, H, W) bool. SAM's may overlap and leave gaps; superpixels cover each pixel once.
        scores: (M,) float32 predicted IoU; NaN for superpixels.
        stability: (M,) float32 stability score, 0…1; NaN for superpixels.
        points_xy: (M, 2) float prompt point (SAM) or centroid of each mask.
        grid_xy: (P, 2) float all prompt points (SAM) or the seed grid (SLIC); (0, 2) for Felzenszwalb.
    """

    masks: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    points_xy: np.ndarray
    grid_xy: np.ndarray

    def __len__(self):
        return len(self.masks)


def slic(image, segments, *, tries=6):
    """Compute SLIC superpixels (Achanta et al. 2012) with scikit-image's defaults.

    SLIC merges small superpixels and so returns fewer than requested. The requested number is adjusted until the result
    has `segments`, and the closest result is returned.

    Args:
        image: (H, W, 3) uint8.
        segments: number of superpixels to aim at.
        tries: maximum number of runs.

    Returns:
        Masks that cover every pixel once; grid_xy holds the seeds that SLIC starts from.
    """
    height, width = image.shape[:2]
    requested, results = segments, {}
    while len(results) < tries and requested not in results:
        results[requested] = labels = skimage.segmentation.slic(image, n_segments=requested, start_label=0)
        requested = min(max(1, round(requested * segments / (labels.max() + 1))), height * width)
    requested = min(results, key=lambda number: abs(results[number].max() + 1 - segments))
    rows, columns = skimage.util.regular_grid((1, height, width), requested)[1:]
    x, y = np.meshgrid(np.arange(width)[columns], np.arange(height)[rows])
    return _from_labels(results[requested], np.stack([x.ravel(), y.ravel()], axis=-1).astype(float))


def felzenszwalb(image, segments, *, tries=12):
    """Compute graph-based segments (Felzenszwalb and Huttenlocher 2004), about `segments` of them.

    The method takes a scale, of which the number of segments is roughly a power. The secant method on logarithms, with
    bisection as a safeguard, searches for a scale that gives the number within 5 %; if none does, the closest result
    is returned.

    Args:
        image: (H, W, 3) uint8.
        segments: number of segments to aim at.
        tries: maximum number of runs.

    Returns:
        Masks that cover every pixel once.
    """
    # With scikit-image's minimum of 20 pixels per segment, very many segments would not fit.
    smallest = min(20, max(1, image[..., 0].size // (4 * segments)))
    low, high = (np.log(1e-2), np.inf), (np.log(1e6), -np.inf)  # logarithms of the scale and of number / segments
    scale, nearest = np.log(1e2), None
    for _ in range(tries):
        labels = skimage.segmentation.felzenszwalb(image, scale=np.exp(scale), min_size=smallest)
        excess = np.log((labels.max() + 1) / segments)
        if nearest is None or abs(excess) < abs(nearest[0]):
            nearest = excess, labels
        if abs(excess) <= 0.05:
            break
        low, high = ((scale, excess), high) if excess > 0 else (low, (scale, excess))
        power = (low[1] - high[1]) / (high[0] - low[0]) if np.isfinite(low[1] - high[1]) else 0.9
        scale += excess / power
        if not low[0] < scale < high[0]:
            scale = (low[0] + high[0]) / 2
    return _from_labels(nearest[1], np.zeros((0, 2)))


def _from_labels(labels, grid_xy):
    """Turn (H, W) labels 0…M-1, each present, into Masks."""
    count = labels.max() + 1
    masks = labels == np.arange(count)[:, None, None]  # (M, H, W)
    y, x = np.indices(labels.shape)
    sizes = np.bincount(labels.ravel())
    sums = [np.bincount(labels.ravel(), weights=axis.ravel()) for axis in (x, y)]
    unknown = np.full(count, np.nan, dtype=np.float32)
    return Masks(masks, unknown, unknown, (sums / sizes).T, grid_xy)


def partition(masks):
    """Turn overlapping masks into segments that cover every pixel once.

    Larger masks are painted first, so that smaller ones, or the later of two equal ones, lie on top. Each 4-connected
    component that no mask covers becomes a segment, too.

    Args:
        masks: (M, H, W) bool; M may be 0.

    Returns:
        (H, W) int labels 0…K-1, each present. Masks that are painted over completely have no label.
    """
    labels = np.full(masks.shape[1:], -1)
    for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        labels[masks[index]] = index
    rest = skimage.measure.label(labels < 0, connectivity=1)
    labels = np.where(labels < 0, len(masks) + rest, labels)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
