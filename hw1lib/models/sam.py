"""SAM's everything mode: a grid of prompts, and of their masks the good, distinct ones.

`sam_everything` follows Meta's SamAutomaticMaskGenerator (segment-anything 1.0) step by step,
crops and cleaning included; tests hold it against that package.
"""

import collections
import itertools
import math

import numpy as np
import skimage.measure
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import batched_nms

from hw1lib.models.superpixels import Masks, mask_boxes

PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, as SAM was trained
PIXEL_STD = (58.395, 57.12, 57.375)
NEAR_EDGE = 20  # pixels: a box that comes this near to a crop's inner edge may be cut off there


@torch.inference_mode()
def sam_everything(
    image,
    network,
    *,
    points_per_side=32,
    points_per_batch=64,
    pred_iou_thresh=0.88,
    stability_score_thresh=0.95,
    stability_score_offset=1.0,
    box_nms_thresh=0.7,
    crop_n_layers=0,
    crop_overlap_ratio=512 / 1500,
    crop_n_points_downscale_factor=1,
    crop_nms_thresh=0.7,
    min_mask_region_area=0,
):
    """Prompts SAM with a grid of points and keeps the good, distinct masks.

    The settings have the names and defaults of Meta's generator (Kirillov et al. 2023,
    appendix B).

    Args:
        image: (H, W, 3) uint8 RGB image of any size.
        network: a transformers SamModel in eval mode, on any device.
        points_per_side: the grid has this many points along each side.
        points_per_batch: points decoded at once; it changes memory and speed, not the masks.
        pred_iou_thresh: masks must have a higher predicted IoU; 0 keeps all.
        stability_score_thresh: masks must have at least this stability score; 0 keeps all.
        stability_score_offset: logits by which the cut-off is shifted to measure stability.
        box_nms_thresh: of two masks whose boxes have a higher IoU, the better one stays.
        crop_n_layers: after the whole image, layer 1, 2, … looks at 4, 16, … crops, enlarged.
        crop_overlap_ratio: share of the image's shorter side by which crops of layer 1 overlap;
            it halves with each further layer.
        crop_n_points_downscale_factor: each layer's grids have this many times fewer points
            along each side than those of the layer before.
        crop_nms_thresh: box_nms_thresh between crops, where the smaller crop's mask stays.
        min_mask_region_area: smaller islands are removed and smaller holes filled; 0 leaves them.

    Returns:
        Masks; those of smaller crops come first, and within a crop the best predicted IoU (with
        min_mask_region_area those that needed no cleaning come before all others). There may be
        none at all.
    """
    height, width = image.shape[:2]
    grids, found, funnel = [], [], collections.Counter()
    thresholds = (pred_iou_thresh, stability_score_thresh, stability_score_offset)
    for (x0, y0, x1, y1), layer in crops(height, width, crop_n_layers, crop_overlap_ratio):
        # Meta's code stops with an error where a layer has no point left.
        side = max(1, int(points_per_side / crop_n_points_downscale_factor**layer))
        grid_xy = point_grid(side) * (x1 - x0, y1 - y0)
        part = _candidates(image[y0:y1, x0:x1], network, grid_xy, points_per_batch, *thresholds, funnel)
        boxes = mask_boxes(part[0]) + (x0, y0, x0, y0)
        part = _pick(part, ~near_inner_edge(boxes, (x0, y0, x1, y1), (0, 0, width, height)))
        funnel["away from the crop's edges"] += len(part[0])
        masks, scores, stability, points_xy = _pick(part, _distinct(*part[:2], box_nms_thresh))
        funnel["distinct by box NMS"] += len(masks)
        # Only what is left grows to the image's size: there can be very many crops.
        masks = np.pad(masks, ((0, 0), (y0, height - y1), (x0, width - x1)))
        crop_areas = np.full(len(masks), (x1 - x0) * (y1 - y0))
        found.append((masks, scores, stability, points_xy + (x0, y0), crop_areas))
        grids.append(grid_xy + (x0, y0))

    *found, crop_areas = (np.concatenate(parts) for parts in zip(*found))
    if crop_n_layers > 0:
        smallness = 1 / crop_areas.astype(np.float32)
        found = _pick(found, _distinct(found[0], smallness, crop_nms_thresh))
        funnel["distinct between crops"] = len(found[0])
    if min_mask_region_area > 0 and len(found[0]):
        cleaned, changed = zip(*(without_small_regions(mask, min_mask_region_area) for mask in found[0]))
        # Cleaning can make two masks alike; then the one that needed none stays.
        found[0], untouched = np.stack(cleaned), 1 - np.array(changed, dtype=np.float32)
        # The larger threshold is Meta's choice, without crops, too.
        found = _pick(found, _distinct(found[0], untouched, max(box_nms_thresh, crop_nms_thresh)))
        funnel["distinct after cleaning"] = len(found[0])
    masks, scores, stability, points_xy = found
    return Masks(masks, scores, stability, mask_boxes(masks), points_xy, np.concatenate(grids), dict(funnel))


def untrained(seed=0, side=256):
    """A small SAM with random weights: its masks mean nothing, but every stage of the generator runs on them.

    Args:
        seed: whole number.
        side: of the square that it reads, in pixels.
    """
    from transformers import SamConfig, SamModel

    prompts = {"hidden_size": 32, "image_size": side, "patch_size": 16}
    vision = {
        "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_dim": 64,
        "image_size": side, "patch_size": 16, "window_size": 5, "global_attn_indexes": [1], "num_pos_feats": 16,
    }  # fmt: skip
    decoder = {"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 2, "iou_head_hidden_dim": 48}
    torch.manual_seed(seed)
    network = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    with torch.no_grad():
        for parameter in network.parameters():  # else all masks are faint and alike
            parameter += 0.3 * torch.randn(parameter.shape)
    return network.eval()


def crops(height, width, layers, overlap_ratio):
    """The whole image as layer 0, then overlapping crops, 2 along each side, 4, 8, …

    Args:
        height: of the image, in pixels.
        width: of the image.
        layers: how many layers of crops; 0 gives the whole image alone.
        overlap_ratio: share of the shorter side by which crops of layer 1 overlap.

    Returns:
        Pairs of a box (x0, y0, x1, y1), x1 and y1 excluded, and its layer; column by column.
    """
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        w, h = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        for column, row in itertools.product(range(count), repeat=2):
            x0, y0 = column * (w - overlap), row * (h - overlap)
            # Rounding up can push the last crops of a tiny image out of it; Meta's code then fails.
            if x0 < width and y0 < height:
                boxes.append(((x0, y0, min(x0 + w, width), min(y0 + h, height)), layer))
    return boxes


def near_inner_edge(boxes, crop, whole):
    """(M,) bool: whether a box comes near to an edge of its crop that is no edge of the image.

    Args:
        boxes: (M, 4) boxes x0, y0, x1, y1 in image coordinates.
        crop: the crop's box.
        whole: the image's box.
    """
    near_crop, near_whole = (np.abs(boxes - edges) <= NEAR_EDGE for edges in (crop, whole))
    return (near_crop & ~near_whole).any(axis=1)


def _candidates(crop, network, grid_xy, points_per_batch, pred_iou_thresh, stability_score_thresh, offset, funnel):
    """Masks of one crop that pass both thresholds, alike ones included.

    Args:
        crop: (h, w, 3) uint8.
        network: SAM.
        grid_xy: (P, 2) prompt points in the crop's pixels.
        points_per_batch: this and the thresholds as for `sam_everything`.
        funnel: Counter that takes how many points and masks there are after each stage.

    Returns:
        A tuple: (N, h, w) bool masks, (N,) predicted IoU, (N,) stability, (N, 2) points.
    """
    side = network.config.vision_config.image_size
    height, width = crop.shape[:2]
    pixels, filled = prepare(crop, side)
    embedding = network.get_image_embeddings(pixels.to(network.device))
    scale_xy = (filled[1] / width, filled[0] / height)
    found = []
    for start in range(0, len(grid_xy), points_per_batch):
        points_xy = grid_xy[start : start + points_per_batch]
        logits, scores = _decode(points_xy * scale_xy, network, embedding)
        funnel["points"] += len(points_xy)
        funnel["candidate masks"] += len(scores)
        prompts = torch.arange(len(scores), device=scores.device) // (len(scores) // len(points_xy))  # whose mask it is
        # NOTE: Meta enlarges all masks and then drops most. To drop first leaves the same masks
        # and saves nearly all the memory.
        if pred_iou_thresh > 0:
            logits, scores, prompts = _pick((logits, scores, prompts), scores > pred_iou_thresh)
        funnel["predicted IoU high enough"] += len(scores)
        logits = _enlarge(logits, side, filled, (height, width))
        stability = stability_scores(logits, offset)
        part = (logits > 0, scores, stability, prompts)
        if stability_score_thresh > 0:
            part = _pick(part, stability >= stability_score_thresh)
        *part, prompts = (tensor.cpu().numpy() for tensor in part)
        funnel["stable"] += len(prompts)
        found.append((*part, points_xy[prompts]))
    return tuple(np.concatenate(parts) for parts in zip(*found))


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


def _decode(points_xy, network, embedding):
    """Three masks for each of (N, 2) points, given in pixels of the model's input.

    Returns:
        (3N, side / 4, side / 4) logits and (3N,) predicted IoU.
    """
    points = torch.as_tensor(points_xy, dtype=torch.float32, device=network.device)
    output = network(image_embeddings=embedding, input_points=points[None, :, None])  # (1, N, 1, 2)
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


def _pick(arrays, keep):
    """The same rows, by index or by bool, of each of several arrays."""
    return [array[keep] for array in arrays]


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
