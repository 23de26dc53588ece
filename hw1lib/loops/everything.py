"""Step `everything`: all masks of a few validation tiles by each method, measured."""

import numpy as np

from hw1lib.data import images as image_files
from hw1lib.data.landcover import CLASSES
from hw1lib.loops.training import say
from hw1lib.models import everything, weights
from hw1lib.results import metrics, segments

METHODS = ("sam", "slic", "felzenszwalb")


def run(draft, problem2, profile, predictions, sam_path, device):
    """Segments each image by every method that can run here, and measures the masks.

    Args:
        predictions: (N, H, W) uint8, the improved model's classes of all validation tiles.
        sam_path: SAM's weights, or None: then its rows are not measured.
    """
    settings = profile.everything
    tiles = problem2.validation
    sam = weights.load_sam(sam_path).to(device) if sam_path else None
    rows = []
    for number in settings.images:
        index = tiles.index(number, "everything.images")
        image, truth, _ = image_files.load_tile(tiles, number)
        image = np.ascontiguousarray(image.transpose(1, 2, 0))  # (H, W, 3)
        found = {}
        if sam is not None:
            found["sam"] = _sam(image, sam, settings)
        wanted = settings.segments or max(image.shape[:2]) // 2
        if "sam" in found and not settings.segments:
            wanted = max(len(found["sam"]), 2)  # the baselines get as many segments as SAM found
        found["slic"] = everything.slic(image, wanted)
        found["felzenszwalb"] = everything.felzenszwalb(image, wanted)
        for method, masks in found.items():
            labels = everything.partition(masks.masks)
            voted = segments.vote(labels, predictions[index])
            measured = _measure(masks, labels, truth, predictions[index], voted)
            rows.append({"method": method, "image": number, **measured})
            _save(draft, f"{method}_{number}", masks, labels, voted)
            say(f"everything  {number}  {method}  {len(masks)} masks")
    draft.history([])
    draft.metrics({"sam": sam_path.name if sam_path else None, "rows": rows})


def _sam(image, sam, settings):
    return everything.sam_everything(
        image,
        sam,
        points_per_side=settings.points_per_side,
        points_per_batch=settings.points_per_batch,
        pred_iou_thresh=settings.pred_iou_thresh,
        stability_score_thresh=settings.stability_score_thresh,
        box_nms_thresh=settings.box_nms_thresh,
    )


def _measure(masks, labels, truth, prediction, voted):
    """One row of everything.csv; `asa` and `oracle_miou` are upper bounds."""
    recall, precision = segments.boundary_recall_precision(labels, truth)

    def miou(predicted):
        return metrics.miou(metrics.confusion(truth, predicted, len(CLASSES)))

    measured = {
        "masks": len(masks),
        "coverage": segments.coverage(masks.masks),
        "asa": segments.asa(labels, truth),
        "oracle_miou": miou(segments.oracle(labels, truth)),
        "vote_miou": miou(voted),
        "model_miou": miou(prediction),
        "boundary_recall": recall,
        "boundary_precision": precision,
    }
    return {k: None if np.isnan(v) else v for k, v in measured.items()}  # nan: nothing to count


def _save(draft, name, masks, labels, voted):
    draft.array(f"{name}_masks", np.packbits(masks.masks, axis=-1))
    draft.array(f"{name}_labels", labels.astype(np.int32))
    draft.array(f"{name}_vote", voted.astype(np.uint8))
    draft.array(f"{name}_points", masks.points_xy)
    draft.array(f"{name}_grid", masks.grid_xy)
