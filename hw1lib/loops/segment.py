"""Land-cover segmentation: training of one model, and the colour control."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from hw1lib.data import images as image_files
from hw1lib.data.landcover import CLASSES, UNKNOWN
from hw1lib.loops import augment, training
from hw1lib.loops.batches import ArrayBatches
from hw1lib.models import segmenters
from hw1lib.results import metrics

STAGES = ("early", "middle", "final")
LEVELS = 16  # of each channel in the colour control's table


def run(draft, problem2, profile, name, device):
    """Steps `segment-fcn32s`, `segment-lraspp` and `segment-deeplabv3`."""
    settings = getattr(profile, name)
    wanted = [
        problem2.validation.index(n, "segmentation.stage_images")
        for n in profile.segmentation.stage_images
    ]
    images, masks, stray = image_files.load_tiles(problem2.train)
    val_images, val_masks, val_stray = image_files.load_tiles(problem2.validation)
    training.seed_everything(profile.seed, 0)
    network = segmenters.build(
        name, profile.model_scale, settings.pretrained, settings.norm_momentum
    )
    network.to(device, memory_format=torch.channels_last)
    stages = stage_epochs(settings.epochs)

    def evaluate(epoch):
        predicted = predict(network, val_images, device, settings.batch_size)
        for stage, at in stages.items():
            if at == epoch:
                draft.array(f"stage_{stage}", predicted[wanted])
        if epoch == settings.epochs:
            draft.array("predictions", predicted)
        matrix = metrics.confusion(val_masks, predicted)
        return {"miou": metrics.miou(matrix), "confusion": matrix.tolist()}

    history = training.train(
        network,
        lambda images, masks: loss(segmenters.scores(network, images), masks),
        _batches(images, masks, profile, settings, device),
        settings,
        device,
        seed=profile.seed,
        name=draft.step,
        evaluate=evaluate,
        checkpoint=draft.checkpoint,
        checkpoint_every=profile.checkpoint_every,
        watch=draft.watch,
    )
    draft.weights(network)
    draft.history(history)
    draft.metrics(summary(history, stray + val_stray) | {"stages": stages})


def stage_epochs(epochs):
    """The epochs of the early, middle and final stage: first, middle and last."""
    return {"early": 1, "middle": (epochs + 1) // 2, "final": epochs}


def loss(scores, masks):
    """Mean cross-entropy over the known pixels.

    Args:
        scores: (B, 7, H, W) float32.
        masks: (B, H, W) classes; unknown never contributes.

    Returns:
        Scalar; 0 where no pixel is known.
    """
    masks = masks.long()
    total = F.cross_entropy(scores, masks, ignore_index=UNKNOWN, reduction="sum")
    return total / (masks != UNKNOWN).sum().clamp_min(1)


@torch.no_grad()
def predict(network, images, device, batch=8):
    """Predicted classes without augmentation: (N, 3, H, W) uint8 -> (N, H, W) uint8.

    Unknown is no answer: the highest of the six scored classes is taken.
    """
    parts = []
    for part in torch.from_numpy(images).split(batch):
        scores = segmenters.scores(network, augment.normalise(part.to(device)))
        parts.append(scores[:, :UNKNOWN].argmax(dim=1).to(torch.uint8).cpu())
    return torch.cat(parts).numpy()


def summary(history, stray):
    """Best and last epoch of a segmentation run as plain numbers; nan becomes None."""
    scores = [row["miou"] for row in history]
    best = int(np.nanargmax(scores))
    matrix = np.array(history[best]["confusion"])
    return {
        "miou": scores[best],
        "miou_last": scores[-1],
        "epoch": history[best]["epoch"],
        "iou": _by_class(matrix),
        "iou_last": _by_class(np.array(history[-1]["confusion"])),
        "pixel_accuracy": metrics.pixel_accuracy(matrix),
        "confusion": history[best]["confusion"],
        "confusion_last": history[-1]["confusion"],
        "stray_pixels": stray,
    }


def _by_class(matrix):
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(CLASSES, metrics.iou(matrix))
    }


def _batches(images, masks, profile, settings, device):
    size = settings.crop or images.shape[-1]
    least, most = settings.crop_scale, 1.0
    if settings.crop:  # a crop keeps the tile's resolution
        least = most = (size / images.shape[-1]) ** 2
    recipe = dataclasses.replace(augment.TILE, crop_scale=least, crop_most=most)
    square = images.shape[-1] == images.shape[-2]  # only squares can take a quarter turn

    def prepare(images, masks):
        if settings.augmentation == "none" or not square:
            return augment.normalise(images), masks
        theta = augment.geometry(len(images), recipe)
        images = augment.warp(images.float() / 255, theta, size)
        moved = augment.warp(masks[:, None].float(), theta, size, mode="nearest")
        return augment.normalise(augment.recolour(images, recipe)), moved[:, 0].to(masks.dtype)

    tensors = [torch.from_numpy(images), torch.from_numpy(masks)]
    return ArrayBatches(tensors, settings.batch_size, profile.seed, device, prepare)


def colour(draft, problem2):
    """Step `segment-colour`: each colour gets the class that it most often has in training."""
    images, masks, stray = image_files.load_tiles(problem2.train)
    val_images, val_masks, val_stray = image_files.load_tiles(problem2.validation)
    known = masks != UNKNOWN
    counts = np.zeros((LEVELS**3, UNKNOWN), dtype=np.int64)
    np.add.at(counts, (_bins(images)[known], masks[known]), 1)
    table = counts.argmax(axis=1).astype(np.uint8)
    table[counts.sum(axis=1) == 0] = counts.sum(axis=0).argmax()  # colours never seen
    predicted = table[_bins(val_images)]
    matrix = metrics.confusion(val_masks, predicted)
    row = {"epoch": 0, "miou": metrics.miou(matrix), "confusion": matrix.tolist()}
    draft.array("predictions", predicted)
    draft.history([row])
    draft.metrics(summary([row], stray + val_stray))


def _bins(images):
    """(N, 3, H, W) uint8 -> (N, H, W) number of the colour's bin."""
    red, green, blue = (images // (256 // LEVELS)).astype(np.int64).transpose(1, 0, 2, 3)
    return (red * LEVELS + green) * LEVELS + blue
