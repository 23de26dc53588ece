"""Everything mode: all masks of one image, as plain `Masks`, whatever method found them.

Here are SLIC and Felzenszwalb, the baselines that always run, and what all methods share; SAM's
own generator is in `sam.py`.
"""

from dataclasses import dataclass, field

import numpy as np
import skimage.measure
import skimage.segmentation
import skimage.util


@dataclass(frozen=True)
class Masks:
    """All masks that one method found in one image; M masks, P prompt points.

    Attributes:
        masks: (M, H, W) bool. SAM's may overlap and leave gaps; the classical ones never do.
        scores: (M,) float32 predicted IoU; NaN for the classical methods.
        stability: (M,) float32 stability score, 0…1; NaN for the classical methods.
        boxes_xyxy: (M, 4) int first and last pixel of each mask; zeros for an empty mask.
        points_xy: (M, 2) float the prompt point that gave the mask, or the segment's centroid.
        grid_xy: (P, 2) float all prompt points (SAM), the seed grid (SLIC), or none.
        funnel: how many prompts there were, candidate masks, and masks left after each filter (SAM).
    """

    masks: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    boxes_xyxy: np.ndarray
    points_xy: np.ndarray
    grid_xy: np.ndarray
    funnel: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.masks)

    @property
    def areas(self):
        """(M,) int number of pixels in each mask."""
        return self.masks.sum(axis=(1, 2))


def mask_boxes(masks):
    """(M, 4) int boxes x0, y0, x1, y1: first and last pixel of each of (M, H, W) masks."""
    ranges = []
    for hit in (masks.any(axis=1), masks.any(axis=2)):  # (M, W) columns, (M, H) rows
        last = hit.shape[1] - 1 - hit[:, ::-1].argmax(axis=1)
        ranges.append((hit.argmax(axis=1), last * hit.any(axis=1)))
    (x0, x1), (y0, y1) = ranges
    return np.stack([x0, y0, x1, y1], axis=-1)


def slic(image, segments, *, tries=6):
    """SLIC superpixels (Achanta et al. 2012) with scikit-image's defaults.

    SLIC merges left-overs and so ends below the number it is asked for; it is asked for more until
    the number is met, and the try that came nearest wins.

    Args:
        image: (H, W, 3) uint8.
        segments: the number wished for.
        tries: at most so many.

    Returns:
        Masks that cover every pixel once; grid_xy holds the seeds that SLIC starts from.
    """
    height, width = image.shape[:2]
    asked, found = segments, {}
    while len(found) < tries and asked not in found:
        found[asked] = labels = skimage.segmentation.slic(image, n_segments=asked, start_label=0)
        asked = min(max(1, round(asked * segments / (labels.max() + 1))), height * width)
    asked = min(found, key=lambda number: abs(found[number].max() + 1 - segments))
    rows, columns = skimage.util.regular_grid((1, height, width), asked)[1:]
    x, y = np.meshgrid(np.arange(width)[columns], np.arange(height)[rows])
    return _from_labels(found[asked], np.stack([x.ravel(), y.ravel()], axis=-1).astype(float))


def felzenszwalb(image, segments, *, tries=12):
    """Graph-based segments (Felzenszwalb and Huttenlocher 2004), about as many as asked for.

    The method knows no number, only a scale: the larger, the fewer segments, about as a power of it. That power is
    taken from the tries so far (the secant rule on logarithms, bisection where it leaves its bracket), until the
    number is met within a twentieth; else the try that came nearest wins. It is always the same.

    Args:
        image: (H, W, 3) uint8.
        segments: the number wished for.
        tries: at most so many.

    Returns:
        Masks that cover every pixel once.
    """
    # scikit-image's smallest segment of 20 pixels would forbid very many segments.
    smallest = min(20, max(1, image[..., 0].size // (4 * segments)))
    low, high = (np.log(1e-2), np.inf), (np.log(1e6), -np.inf)  # logarithms of scale and number over the wished one
    scale, nearest = np.log(1e2), None
    for _ in range(tries):
        labels = skimage.segmentation.felzenszwalb(image, scale=np.exp(scale), min_size=smallest)
        off = np.log((labels.max() + 1) / segments)
        if nearest is None or abs(off) < abs(nearest[0]):
            nearest = off, labels
        if abs(off) <= 0.05:
            break
        low, high = ((scale, off), high) if off > 0 else (low, (scale, off))
        power = (low[1] - high[1]) / (high[0] - low[0]) if np.isfinite(low[1] - high[1]) else 0.9
        scale += off / power
        if not low[0] < scale < high[0]:
            scale = (low[0] + high[0]) / 2
    return _from_labels(nearest[1], np.zeros((0, 2)))


def _from_labels(labels, grid_xy):
    """Masks of a partition: (H, W) labels 0…M-1, each present."""
    count = labels.max() + 1
    masks = labels == np.arange(count)[:, None, None]  # (M, H, W)
    y, x = np.indices(labels.shape)
    sizes = np.bincount(labels.ravel())
    sums = [np.bincount(labels.ravel(), weights=axis.ravel()) for axis in (x, y)]
    nothing = np.full(count, np.nan, dtype=np.float32)
    return Masks(masks, nothing, nothing, mask_boxes(masks), (sums / sizes).T, grid_xy)


def partition(masks):
    """Turns overlapping masks into segments that cover every pixel once.

    Larger masks are painted first, so smaller ones lie on top; of two equals the later one does.
    What no mask covers becomes one further segment per connected component (4-connected).

    Args:
        masks: (M, H, W) bool; M may be 0.

    Returns:
        (H, W) int labels 0…K-1, each present. Masks that are painted over leave no label.
    """
    labels = np.full(masks.shape[1:], -1)
    for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        labels[masks[index]] = index
    rest = skimage.measure.label(labels < 0, connectivity=1)
    labels = np.where(labels < 0, len(masks) + rest, labels)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
