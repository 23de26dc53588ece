"""Step `everything`: all masks of validation tiles by each method, measured."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from hw1lib import cpus, progress
from hw1lib.data import images as image_files
from hw1lib.metrics import iou, partitions
from hw1lib.metrics.statistics import bootstrap
from hw1lib.models import sam, superpixels, weights

CLASSICAL = {"slic": superpixels.slic, "felzenszwalb": superpixels.felzenszwalb}


def run(draft, problem2, profile, predictions, sam_path, device):
    """Measures the masks of a few images, and what they make of the model's predictions on all.

    Args:
        predictions: (N, H, W) uint8, the improved model's classes of all validation tiles.
        sam_path: SAM's weights, or None: then its rows are not measured.
    """
    settings = profile.everything
    tiles = problem2.validation
    indices = [tiles.index(number, "everything.images") for number in settings.images]
    images, masks = image_files.load_tiles(tiles)
    images = images.transpose(0, 2, 3, 1)  # (N, H, W, 3)
    network = weights.load_sam(sam_path).to(device) if sam_path else None
    chosen = refining(settings.refine, network is not None, device)
    rows = []
    for number, index in zip(settings.images, indices):
        for method, found in _every(np.ascontiguousarray(images[index]), network, settings).items():
            labels = superpixels.partition(found.masks)
            voted = partitions.vote(labels, predictions[index])
            measured = _measure(found, labels, masks[index], predictions[index], voted)
            rows.append({"method": method, "image": number, **measured})
            _save(draft, f"{method}_{number}", found, labels, voted)
            progress.say(draft.label, f"{number}  {method}  {len(found)} masks", "  ")
    refined = {}
    for method in dict.fromkeys((chosen, *(CLASSICAL if settings.compare else ()))):
        voted, count = _refine(method, images, predictions, network, settings)
        row = iou.history_row(0, masks, voted)
        change = _change(masks, predictions, voted, tiles.groups)
        refined[method] = iou.summarise([row]) | {"segments": count, "change": change}
        progress.say(draft.label, f"all tiles  {method}  mIoU after the vote {row['miou']:.3f}", "  ")
        if method == chosen:
            draft.array("predictions_vote", voted)
    draft.history([])
    found = {"sam": sam_path.name if sam_path else None, "rows": rows, "refine": chosen, "refined": refined}
    draft.metrics(found | {"model_miou": iou.miou(iou.confusion(masks, predictions))})


def _change(masks, predictions, voted, groups):
    """The 95 % interval of what the vote changes of the mIoU: a bootstrap over tiles, or over what groups them."""
    both = {"model": predictions, "vote": voted}
    counts = {name: np.array([iou.confusion(*tile) for tile in zip(masks, of)]) for name, of in both.items()}
    return bootstrap(counts, iou.miou, groups)["vote", "model"]


def refining(wish, has_sam, device):
    """Whose masks vote on all tiles: `auto` is SAM where it is quick enough, else Felzenszwalb."""
    if wish == "auto":
        return "sam" if has_sam and device.type != "cpu" else "felzenszwalb"
    return wish


def _every(image, network, settings):
    """The masks of one (H, W, 3) image by every method that can run here."""
    found = {} if network is None else {"sam": _sam(image, network, settings)}
    wanted = _wanted(image, settings)
    if network is not None and not settings.segments:
        wanted = max(len(found["sam"]), 2)  # the baselines get as many segments as SAM found
    return found | {name: method(image, wanted) for name, method in CLASSICAL.items()}


def _wanted(image, settings):
    """How many segments the classical methods are asked for, where SAM gives no number."""
    return settings.segments or max(image.shape[:2]) // 2


def _refine(method, images, predictions, network, settings):
    """The model's predictions after a majority vote in each segment, and segments an image."""

    def one(image, predicted):
        image = np.ascontiguousarray(image)
        if method == "sam":
            found = _sam(image, network, settings)
        else:
            found = CLASSICAL[method](image, _wanted(image, settings))
        labels = superpixels.partition(found.masks)
        return partitions.vote(labels, predicted), labels.max() + 1

    with ThreadPoolExecutor(1 if method == "sam" else cpus.available()) as pool:
        found = pool.map(one, images, predictions)
        voted, counts = zip(*tqdm(found, f"vote {method}", len(images), leave=False, disable=None, ncols=80))
    return np.stack(voted), float(np.mean(counts))


def _sam(image, network, settings):
    ours = ("images", "segments", "refine", "compare")  # the others are named as in Meta's code
    return sam.sam_everything(image, network, **{k: v for k, v in vars(settings).items() if k not in ours})


def _measure(masks, labels, truth, prediction, voted):
    """One row of everything.csv; `asa` is an upper bound, `oracle_miou` nearly one."""
    recall, precision = partitions.boundary_recall_precision(labels, truth)

    def miou(predicted):
        return iou.miou(iou.confusion(truth, predicted))

    measured = {
        "masks": len(masks),
        "coverage": partitions.coverage(masks.masks),
        "asa": partitions.asa(labels, truth),
        "oracle_miou": miou(partitions.oracle(labels, truth)),
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
