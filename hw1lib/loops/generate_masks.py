"""Step `everything`: generate masks of validation tiles with each method, and measure them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from hw1lib import cpus, progress
from hw1lib.data import images as image_files
from hw1lib.metrics import iou, partitions
from hw1lib.metrics.statistics import bootstrap
from hw1lib.models import sam, superpixels

CLASSICAL = {"slic": superpixels.slic, "felzenszwalb": superpixels.felzenszwalb}
NOT_SAM = ("images", "segments", "refine", "compare")  # settings of this step; Meta's generator has all others


def run(draft, problem2, profile, predictions, sam_path, device):
    """Measure the masks of a few tiles, and refine the model's predictions of all tiles by a vote in each mask.

    Args:
        draft: store.Draft that receives the results.
        problem2: layout.Problem2.
        profile: settings.Profile.
        predictions: (N, H, W) uint8 classes of all validation tiles, as predicted by the improved model.
        sam_path: SAM's weights, or None; then SAM is not measured.
        device: torch.device for SAM.
    """
    settings, tiles = profile.everything, problem2.validation
    indices = [tiles.index(number, "everything.images") for number in settings.images]
    images, masks = image_files.load_tiles(tiles)
    images = images.transpose(0, 2, 3, 1)  # (N, H, W, 3)
    network = sam.load(sam_path).to(device) if sam_path else None
    chosen = refinement_method(settings.refine, network is not None, device)
    rows = []
    for number, index in zip(settings.images, indices):
        count = 0
        for method in (*(["sam"] if network else []), *CLASSICAL):
            result = _generate(method, images[index], network, settings, count)
            if method == "sam":
                count = max(len(result), 2)  # the baselines get as many segments as SAM found
            labels = superpixels.partition(result.masks)
            voted = partitions.vote(labels, predictions[index])
            row = _measure(result, labels, masks[index], predictions[index], voted)
            rows.append({"method": method, "image": number, **row})
            _save(draft, f"{method}_{number}", result, labels, voted)
            progress.say(draft.label, f"{number}  {method}  {len(result)} masks", "  ")
    refined = {}
    for method in dict.fromkeys((chosen, *(CLASSICAL if settings.compare else ()))):
        voted, count = _refine(method, images, predictions, network, settings)
        row = iou.history_row(0, masks, voted)
        change = _change_interval(masks, predictions, voted, tiles.groups)
        refined[method] = iou.summarise([row]) | {"segments": count, "change": change}
        progress.say(draft.label, f"all tiles  {method}  mIoU after the vote {row['miou']:.3f}", "  ")
        if method == chosen:
            draft.array("predictions_vote", voted)
    draft.history([])
    metrics = {"sam": sam_path.name if sam_path else None, "rows": rows, "refine": chosen, "refined": refined}
    draft.metrics(metrics | {"model_miou": iou.miou(iou.confusion(masks, predictions))})


def _change_interval(masks, predictions, voted, groups):
    """Return the 95 % bootstrap interval of the vote's change in mIoU, over tiles or over whole groups of them."""
    classes = {"model": predictions, "vote": voted}
    counts = {name: np.array([iou.confusion(*tile) for tile in zip(masks, of)]) for name, of in classes.items()}
    return bootstrap(counts, iou.miou, groups)["vote", "model"]


def refinement_method(requested, has_sam, device):
    """Return the method whose masks vote on all tiles: for `auto` SAM if it runs on a GPU, Felzenszwalb otherwise."""
    if requested == "auto":
        return "sam" if has_sam and device.type != "cpu" else "felzenszwalb"
    return requested


def _generate(method, image, network, settings, count=0):
    """Return the Masks of one (H, W, 3) image.

    The classical methods are asked for `settings.segments`, else `count`, else half the longer side.
    """
    image = np.ascontiguousarray(image)
    if method == "sam":
        options = {name: value for name, value in vars(settings).items() if name not in NOT_SAM}
        return sam.sam_everything(image, network, **options)
    return CLASSICAL[method](image, settings.segments or count or max(image.shape[:2]) // 2)


def _refine(method, images, predictions, network, settings):
    """Return the (N, H, W) predictions after a majority vote in each segment, and the mean number of segments."""

    def vote(image, predicted):
        labels = superpixels.partition(_generate(method, image, network, settings).masks)
        return partitions.vote(labels, predicted), labels.max() + 1

    with ThreadPoolExecutor(1 if method == "sam" else cpus.available()) as pool:
        votes = pool.map(vote, images, predictions)
        voted, counts = zip(*tqdm(votes, f"vote {method}", len(images), leave=False, disable=None, ncols=80))
    return np.stack(voted), float(np.mean(counts))


def _measure(masks, labels, truth, prediction, voted):
    """Return one row of everything.csv; `asa` is an upper bound, and `oracle_miou` almost one."""
    recall, precision = partitions.boundary_recall_precision(labels, truth)

    def miou(predicted):
        return iou.miou(iou.confusion(truth, predicted))

    row = {
        "masks": len(masks),
        "coverage": partitions.coverage(masks.masks),
        "asa": partitions.asa(labels, truth),
        "oracle_miou": miou(partitions.oracle(labels, truth)),
        "vote_miou": miou(voted),
        "model_miou": miou(prediction),
        "boundary_recall": recall,
        "boundary_precision": precision,
    }
    return {name: None if np.isnan(value) else value for name, value in row.items()}  # JSON has no NaN


def _save(draft, name, masks, labels, voted):
    draft.array(f"{name}_masks", np.packbits(masks.masks, axis=-1))
    draft.array(f"{name}_labels", labels.astype(np.int32))
    draft.array(f"{name}_vote", voted.astype(np.uint8))
    draft.array(f"{name}_points", masks.points_xy)
    draft.array(f"{name}_grid", masks.grid_xy)
