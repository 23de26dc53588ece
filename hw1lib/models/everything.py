"""Everything mode: all masks of one image, by SAM and by two classical segmenters.

`sam_everything` follows Meta's SamAutomaticMaskGenerator (segment-anything 1.0) step by step, for
the whole image without crops; a test holds it against that package. SLIC and Felzenszwalb are the
baselines that always run. All three return the same plain `Masks`.
"""

from dataclasses import dataclass

import numpy as np
import skimage.measure
import skimage.segmentation
import skimage.util
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import batched_nms

PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, as SAM was trained
PIXEL_STD = (58.395, 57.12, 57.375)


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
    """

    masks: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    boxes_xyxy: np.ndarray
    points_xy: np.ndarray
    grid_xy: np.ndarray

    def __len__(self):
        return len(self.masks)

    @property
    def areas(self):
        """(M,) int number of pixels in each mask."""
        return self.masks.sum(axis=(1, 2))


@torch.inference_mode()
def sam_everything(
    image,
    sam,
    *,
    points_per_side=32,
    points_per_batch=64,
    pred_iou_thresh=0.88,
    stability_score_thresh=0.95,
    stability_score_offset=1.0,
    box_nms_thresh=0.7,
    min_mask_region_area=0,
):
    """Prompts SAM with a grid of points and keeps the good, distinct masks.

    The settings have the names and defaults of Meta's generator (Kirillov et al. 2023,
    appendix B).

    Args:
        image: (H, W, 3) uint8 RGB image of any size.
        sam: a transformers SamModel in eval mode, on any device.
        points_per_side: the grid has this many points along each side.
        points_per_batch: points decoded at once; it changes memory and speed, not the masks.
        pred_iou_thresh: masks must have a higher predicted IoU; 0 keeps all.
        stability_score_thresh: masks must have at least this stability score; 0 keeps all.
        stability_score_offset: logits by which the cut-off is shifted to measure stability.
        box_nms_thresh: of two masks whose boxes have a higher IoU, the better one stays.
        min_mask_region_area: smaller islands are removed and smaller holes filled; 0 leaves them.

    Returns:
        Masks, best predicted IoU first (with min_mask_region_area those that needed no cleaning
        come before the others). There may be none at all.
    """
    side = sam.config.vision_config.image_size
    height, width = image.shape[:2]
    grid_xy = point_grid(points_per_side) * (width, height)
    pixels, filled = prepare(image, side)
    embedding = sam.get_image_embeddings(pixels.to(sam.device))
    scale_xy = (filled[1] / width, filled[0] / height)

    found = []
    for start in range(0, len(grid_xy), points_per_batch):
        points_xy = grid_xy[start : start + points_per_batch]
        logits, scores = _decode(points_xy * scale_xy, sam, embedding)
        points_xy = points_xy.repeat(len(scores) // len(points_xy), axis=0)  # (3N, 2)
        # NOTE: Meta enlarges all masks and then drops most. To drop first leaves the same masks
        # and saves nearly all the memory.
        if pred_iou_thresh > 0:
            keep = scores > pred_iou_thresh
            logits, scores, points_xy = logits[keep], scores[keep], points_xy[keep.cpu().numpy()]
        logits = _enlarge(logits, side, filled, (height, width))
        stability = stability_scores(logits, stability_score_offset)
        if stability_score_thresh > 0:
            keep = stability >= stability_score_thresh
            logits, scores, stability = logits[keep], scores[keep], stability[keep]
            points_xy = points_xy[keep.cpu().numpy()]
        tensors = (logits > 0, scores, stability)
        found.append((*(tensor.cpu().numpy() for tensor in tensors), points_xy))

    masks, scores, stability, points_xy = (np.concatenate(parts) for parts in zip(*found))
    keep = _distinct(masks, scores, box_nms_thresh)
    masks, scores, stability, points_xy = (
        part[keep] for part in (masks, scores, stability, points_xy)
    )
    if min_mask_region_area > 0 and len(masks):
        cleaned = [without_small_regions(mask, min_mask_region_area) for mask in masks]
        masks = np.stack([mask for mask, _ in cleaned])
        # Cleaning can make two masks alike; then the one that needed none stays.
        untouched = np.array([not changed for _, changed in cleaned], dtype=np.float32)
        # NOTE: Meta takes the larger of this threshold and that for crops, which is 0.7.
        keep = _distinct(masks, untouched, max(box_nms_thresh, 0.7))
        masks, scores, stability, points_xy = (
            part[keep] for part in (masks, scores, stability, points_xy)
        )
    return Masks(masks, scores, stability, mask_boxes(masks), points_xy, grid_xy)


def point_grid(side):
    """(side², 2) points (x, y) evenly spread over the unit square, row by row."""
    centres = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def prepare(image, size):
    """Resizes the longer side to `size`, normalises, and pads right and below with zeros.

    Args:
        image: (H, W, 3) uint8.
        size: the side of the square that the model reads, 1024 for all released weights.

    Returns:
        (1, 3, size, size) float32, and the (height, width) that the image fills in it.
    """
    scale = size / max(image.shape[:2])
    height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    # Pillow's resize, as in Meta's code: a tensor resize differs by a grey level here and there.
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pixels = (np.asarray(resized) - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    pixels = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, height, width)
    return F.pad(pixels, (0, size - width, 0, size - height)), (height, width)


def _decode(points_xy, sam, embedding):
    """Three masks for each of (N, 2) points, given in pixels of the model's input.

    Returns:
        (3N, side / 4, side / 4) logits and (3N,) predicted IoU.
    """
    points = torch.as_tensor(points_xy, dtype=torch.float32, device=sam.device)
    output = sam(image_embeddings=embedding, input_points=points[None, :, None])  # (1, N, 1, 2)
    return output.pred_masks[0].flatten(0, 1), output.iou_scores[0].flatten()


def _enlarge(logits, side, filled, size):
    """Brings (N, h, w) logits to the image's (H, W) and cuts off the padding on the way."""
    if len(logits) == 0:
        return logits.new_zeros((0, *size))  # interpolate refuses an empty batch
    logits = F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
    logits = logits[..., : filled[0], : filled[1]]
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]


def stability_scores(logits, offset):
    """(N,) IoU of each of (N, H, W) masks cut `offset` above zero with itself cut as far below.

    One always lies within the other, so areas are enough. Where both are empty the score is
    NaN, which no threshold lets through.
    """
    return (logits > offset).sum(dim=(1, 2)) / (logits > -offset).sum(dim=(1, 2))


def _distinct(masks, scores, threshold):
    """Indices of the masks that box NMS keeps, best score first."""
    boxes, scores = torch.from_numpy(mask_boxes(masks)).float(), torch.from_numpy(scores)
    return batched_nms(boxes, scores, torch.zeros(len(scores)), threshold).numpy()  # one category


def mask_boxes(masks):
    """(M, 4) int boxes x0, y0, x1, y1: first and last pixel of each of (M, H, W) masks."""
    ranges = []
    for hit in (masks.any(axis=1), masks.any(axis=2)):  # (M, W) columns, (M, H) rows
        last = hit.shape[1] - 1 - hit[:, ::-1].argmax(axis=1)
        ranges.append((hit.argmax(axis=1), last * hit.any(axis=1)))
    (x0, x1), (y0, y1) = ranges
    return np.stack([x0, y0, x1, y1], axis=-1)


def without_small_regions(mask, min_area):
    """Fills holes, then removes islands, of fewer than `min_area` pixels (8-connected).

    Where all islands are small the largest stays, so that no mask becomes empty.

    Returns:
        The (H, W) mask, and whether it had small holes or islands.
    """
    holes, sizes = _regions(~mask)
    small_holes = 1 + np.flatnonzero(sizes < min_area)
    mask = mask | np.isin(holes, small_holes)
    islands, sizes = _regions(mask)
    large = 1 + np.flatnonzero(sizes >= min_area)
    if len(large) == len(sizes):
        return mask, len(small_holes) > 0
    return np.isin(islands, large if len(large) else 1 + sizes.argmax()), True


def _regions(mask):
    """(H, W) component numbers from 1, with 0 outside the mask, and (C,) sizes."""
    regions = skimage.measure.label(mask, connectivity=2)
    return regions, np.bincount(regions.ravel())[1:]


def slic(image, segments):
    """SLIC superpixels (Achanta et al. 2012) with scikit-image's defaults.

    Args:
        image: (H, W, 3) uint8.
        segments: about how many; SLIC starts from a regular grid and ends near it.

    Returns:
        Masks that cover every pixel once; grid_xy holds the seeds that SLIC starts from.
    """
    labels = skimage.segmentation.slic(image, n_segments=segments, start_label=0)
    height, width = image.shape[:2]
    rows, columns = skimage.util.regular_grid((1, height, width), segments)[1:]
    x, y = np.meshgrid(np.arange(width)[columns], np.arange(height)[rows])
    return _from_labels(labels, np.stack([x.ravel(), y.ravel()], axis=-1).astype(float))


def felzenszwalb(image, segments, *, tries=20):
    """Graph-based segments (Felzenszwalb and Huttenlocher 2004), about as many as asked for.

    The method knows no number, only a scale: the larger, the fewer segments. The scale is
    searched by bisection, and the try that came nearest wins; it is always the same.

    Args:
        image: (H, W, 3) uint8.
        segments: the number wished for.
        tries: bisection steps.

    Returns:
        Masks that cover every pixel once.
    """
    # scikit-image's smallest segment of 20 pixels would forbid very many segments.
    smallest = min(20, max(1, image[..., 0].size // (4 * segments)))
    low, high = 1e-2, 1e6  # bisected by their logarithm
    best = None
    for _ in range(tries):
        scale = (low * high) ** 0.5
        labels = skimage.segmentation.felzenszwalb(image, scale=scale, min_size=smallest)
        count = labels.max() + 1
        if best is None or abs(count - segments) < abs(best.max() + 1 - segments):
            best = labels
        if count == segments:
            break
        low, high = (scale, high) if count > segments else (low, scale)
    return _from_labels(best, np.zeros((0, 2)))


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
