"""Land-cover segmentation: training of one network, and the colour control."""

import numpy as np
import torch

from hw1lib.data import images as image_files
from hw1lib.data.landcover import CLASSES, UNKNOWN
from hw1lib.errors import UserError
from hw1lib.loops import augment, distributed, loop, losses
from hw1lib.loops.batches import ArrayBatches
from hw1lib.loops.checkpoint import Checkpoint
from hw1lib.loops.device import to_device
from hw1lib.loops.seeds import seed_everything
from hw1lib.metrics import iou
from hw1lib.models import segmenters
from hw1lib.models.ema import Averaged

LEVELS = 16  # of each channel in the colour control's table


def run(draft, problem2, profile, device, *, name):
    """Run step `segment-fcn32s`, `segment-lraspp` or `segment-deeplabv3`.

    Args:
        draft: store.Draft of the step.
        problem2: layout.Problem2.
        profile: settings.Profile.
        device: torch device.
        name: fcn32s, lraspp or deeplabv3, also the name of its group of settings.
    """
    settings, validation = getattr(profile, name), problem2.validation
    stage_rows = [validation.index(n, "segmentation.stage_images") for n in profile.segmentation.stage_images]
    images, masks, val_images, val_masks = _load(problem2)
    seen = [number for number in range(UNKNOWN) if any((mask == number).any() for mask in masks)]

    seed_everything(profile.seed, 0)
    network = segmenters.build(name, profile.model_scale, settings.pretrained, settings.norm_momentum)
    network = Averaged(network, settings.average) if settings.average else network
    network.to(device, memory_format=torch.channels_last)
    names = [problem2.train.sat(number).name for number in problem2.train.numbers]
    batches = training_batches(images, masks, profile, settings, device, names)
    weights = losses.class_weights(masks, settings.balance).to(device)
    stages = stage_epochs(settings.epochs)

    def loss(network, images, masks):
        scores = segmenters.scores(network, images, settings.enlarge)
        if settings.loss == "lovasz":  # not a mean over images, so every rank needs the whole batch
            scores, masks = (distributed.all_gather(part, batches.batch_size) for part in (scores, masks))
        return losses.segmentation(scores, masks, settings.loss, weights)

    def update_average(epoch, step, steps):
        if settings.average:
            network.follow((epoch - 1) * steps + step)

    def evaluate(epoch):
        predicted = predict(network, val_images, device, settings, seen=seen)
        row = iou.history_row(epoch, val_masks, predicted)
        for stage, stage_epoch in stages.items():
            if epoch == stage_epoch:
                draft.array(f"stage_{stage}", predicted[stage_rows])
        if epoch == settings.epochs:
            draft.array("predictions", predicted)
            if settings.tta:
                predicted = predict(network, val_images, device, settings, tta=True, seen=seen)
                draft.array("predictions_tta", predicted)
                row["tta"] = iou.history_row(epoch, val_masks, predicted)
        return row

    checkpoint = Checkpoint(draft, profile.checkpoint_every)
    history = loop.train(network, loss, batches, settings, device, checkpoint, evaluate, update_average)
    draft.weights(network.average if settings.average else network)
    draft.history(history)
    ceiling = iou.ceiling(val_masks, segmenters.stride(name, settings.enlarge))
    metrics = iou.summarise(history) | {"stages": stages, "seen": seen, "ceiling": ceiling}
    if settings.tta:
        metrics["tta"] = iou.summarise([history[-1]["tta"]])
    draft.metrics(metrics)


def _load(problem2):
    """Return training images and masks, then validation images and masks.

    Raises:
        UserError: all masks of a split are unknown, so there is nothing to learn or to score.
    """
    arrays = []
    for tiles in (problem2.train, problem2.validation):
        images, masks = image_files.load_tiles(tiles)
        if all((mask == UNKNOWN).all() for mask in masks):
            problem = f"No mask of the {len(tiles)} tiles used from {tiles.folder} shows a known class."
            raise UserError(f"{problem} Use more tiles (data.tile_limit) or other masks.")
        arrays += [images, masks]
    return arrays


def stage_epochs(epochs):
    """Return the epochs of the early, middle and final stage: first, middle and last."""
    return {"early": 1, "middle": (epochs + 1) // 2, "final": epochs}


@torch.no_grad()
def predict(network, images, device, settings, tta=False, seen=range(UNKNOWN)):
    """Return predicted classes of tiles: (N, 3, H, W) uint8 -> (N, H, W) uint8, both NumPy.

    "Unknown" and classes absent from training are never predicted.

    Args:
        network: segmentation network in eval mode.
        images: NumPy array.
        settings: settings.Segment, for the batch size and the factor by which tiles are enlarged.
        tta: whether to average probabilities over the eight symmetries of each tile.
        seen: numbers of the classes that occur in training.
    """
    seen = torch.tensor(list(seen), device=device)
    classes = seen.to(torch.uint8)  # an eighth of the bytes
    scores = tta_scores if tta else segmenters.scores

    def predict_shard(images):
        parts = []
        for part in images.split(settings.micro_batch):
            part_scores = scores(network, augment.normalise(to_device(part, device)), settings.enlarge)
            best = part_scores.index_select(1, seen).max(dim=1).indices  # far faster than argmax on CPUs
            parts.append(classes[best])
        return torch.cat(parts).cpu()

    return distributed.map_shards(predict_shard, torch.from_numpy(images)).numpy()


def tta_scores(network, images, enlarge=1):
    """Return probabilities averaged over the eight symmetries of a square (test-time augmentation).

    Args:
        network: segmentation network in eval mode.
        images: (B, 3, H, W) float, normalised.
        enlarge: see segmenters.scores.

    Returns:
        (B, 6, H, W) float32, without the class "unknown".
    """
    total = torch.zeros(len(images), UNKNOWN, *images.shape[2:], device=images.device)
    for turns in range(4):
        turned = images.rot90(turns, (2, 3))
        for flip in ((), (3,)):
            scores = segmenters.scores(network, turned.flip(flip), enlarge)[:, :UNKNOWN]
            total += scores.softmax(dim=1).flip(flip).rot90(-turns, (2, 3))
    return total.div_(8)


def training_batches(images, masks, profile, settings, device, names=()):
    """Return batches of augmented whole tiles or crops: normalised images, (B, 3, H, W), and uint8 masks, (B, H, W)."""
    recipe = augment.tile_recipe(settings)
    tile, side = images.shape[-2:], settings.crop
    size = (side, side) if side else tile
    crop = (size, tile) if side else None  # crops keep the resolution

    def prepare(images, masks):
        if settings.augmentation == "none":
            return augment.normalise(images), masks
        table = augment.draws(len(images), images.device)
        theta = augment.geometry(table, recipe, crop, square=size[0] == size[1])
        images = augment.warp(images.float() / 255, theta, size)
        warped = augment.warp(masks[:, None].float(), theta, size, mode="nearest")
        return augment.normalise(augment.recolour(images, table, recipe)), warped[:, 0].to(masks.dtype)

    tensors = [torch.from_numpy(images), torch.from_numpy(masks)]
    return ArrayBatches(tensors, settings.micro_batch, profile.seed, device, prepare, names)


def colour(draft, problem2):
    """Run step `segment-colour`: each colour gets the class that it most often has in training."""
    images, masks, val_images, val_masks = _load(problem2)
    counts = np.zeros((LEVELS**3, len(CLASSES)), dtype=np.int64)
    for image, mask in zip(images, masks):  # one at a time to save memory
        cells = _colour_bins(image) * len(CLASSES) + mask
        counts += np.bincount(cells.ravel(), minlength=counts.size).reshape(counts.shape)
    counts = counts[:, :UNKNOWN]
    table = counts.argmax(axis=1).astype(np.uint8)
    table[counts.sum(axis=1) == 0] = counts.sum(axis=0).argmax()  # colours that never occur in training
    predicted = np.stack([table[_colour_bins(image)] for image in val_images])
    row = iou.history_row(0, val_masks, predicted)
    draft.array("predictions", predicted)
    draft.history([row])
    draft.metrics(iou.summarise([row]))


def _colour_bins(image):
    """Return the number of each pixel's colour bin: (3, H, W) uint8 -> (H, W)."""
    red, green, blue = (image // (256 // LEVELS)).astype(np.int64)
    return (red * LEVELS + green) * LEVELS + blue
