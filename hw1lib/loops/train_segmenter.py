"""Land-cover segmentation: training of one model, and the colour control."""

import numpy as np
import torch

from hw1lib.data import images as image_files
from hw1lib.data.landcover import CLASSES, UNKNOWN
from hw1lib.errors import UserError
from hw1lib.loops import augment, distributed, loop, losses
from hw1lib.loops.batches import ArrayBatches
from hw1lib.loops.device import Arriving, send
from hw1lib.metrics import iou
from hw1lib.models import segmenters
from hw1lib.models.ema import Averaged

LEVELS = 16  # of each channel in the colour control's table


def run(draft, problem2, profile, device, *, name):
    """Steps `segment-fcn32s`, `segment-lraspp` and `segment-deeplabv3`."""
    settings = getattr(profile, name)
    shown = [problem2.validation.index(n, "segmentation.stage_images") for n in profile.segmentation.stage_images]
    images, masks = image_files.load_tiles(problem2.train)
    val_images, val_masks = image_files.load_tiles(problem2.validation)
    _refuse_unlabelled(problem2, masks, val_masks)
    seen = [number for number in range(UNKNOWN) if any((mask == number).any() for mask in masks)]

    loop.seed_everything(profile.seed, 0)
    network = segmenters.build(name, profile.model_scale, settings.pretrained, settings.norm_momentum)
    network = Averaged(network, settings.average) if settings.average else network
    network.to(device, memory_format=torch.channels_last)
    names = [problem2.train.sat(number).name for number in problem2.train.numbers]
    batches = batches_of(images, masks, profile, settings, device, names)
    weights = losses.class_weights(masks, settings.balance).to(device)
    stages = stage_epochs(settings.epochs)

    def loss(network, images, masks):
        scores = segmenters.scores(network, images, settings.enlarge)
        if settings.loss == "lovasz":  # no mean of parts: each process has the scores of all
            scores, masks = (distributed.joined(part, batches.batch_size) for part in (scores, masks))
        return losses.segmentation(scores, masks, settings.loss, weights)

    def score(epoch, tta=False):
        predicted = predict(network, val_images, device, settings, tta, seen)
        return predicted, scored(epoch, val_masks, predicted)

    def evaluate(epoch):
        predicted, row = score(epoch)
        for stage, at in stages.items():
            if at == epoch:
                draft.array(f"stage_{stage}", predicted[shown])
        if epoch == settings.epochs:
            draft.array("predictions", predicted)
            if settings.tta:
                predicted, row["tta"] = score(epoch, tta=True)
                draft.array("predictions_tta", predicted)
        return row

    def follow(done):
        network.follow(round(done * settings.epochs * loop.steps_of(batches, settings)[0]))

    after, step = follow if settings.average else None, loop.for_step(draft, profile)
    history = loop.train(network, loss, batches, settings, device, evaluate=evaluate, after_step=after, **step)
    draft.weights(network.average if settings.average else network)
    draft.history(history)
    ceiling = iou.ceiling(val_masks, segmenters.stride(name, settings.enlarge))
    more = {"stages": stages, "seen": seen, "ceiling": ceiling}
    if settings.tta:
        more["tta"] = summary([history[-1]["tta"]])
    draft.metrics(summary(history) | more)


def _refuse_unlabelled(problem2, masks, val_masks):
    """Raises a UserError where the tiles in use show nothing to learn or to score."""
    for tiles, of in ((problem2.train, masks), (problem2.validation, val_masks)):
        if all((mask == UNKNOWN).all() for mask in of):
            nothing = f"No mask of the {len(tiles)} tiles in use of {tiles.folder} shows a class."
            raise UserError(f"{nothing} Use more of them (data.tile_limit) or other masks.")


def stage_epochs(epochs):
    """The epochs of the early, middle and final stage: first, middle and last."""
    return {"early": 1, "middle": (epochs + 1) // 2, "final": epochs}


@torch.no_grad()
def predict(network, images, device, settings, tta=False, seen=range(UNKNOWN)):
    """Predicted classes of tiles: (N, 3, H, W) uint8 -> (N, H, W) uint8.

    Unknown is no answer, and neither is a class that no training pixel has: of the others the one
    with the highest score is taken.

    Args:
        network: a segmentation network in eval mode.
        images: NumPy array.
        settings: settings.Segment, for the size of batches and how far tiles are enlarged.
        tta: average the probabilities over eight flips and quarter turns of each tile.
        seen: numbers of the classes that occur in training.
    """
    seen = torch.tensor(list(seen), device=device)
    numbers = seen.to(torch.uint8)  # an eighth to copy back
    scores = turned_scores if tta else segmenters.scores

    def classes(images):
        parts = []
        for part in images.split(settings.micro_batch):
            found = scores(network, augment.normalise(send(part, device)), settings.enlarge)
            best = found.index_select(1, seen).max(dim=1).indices  # argmax takes as long as the network, on CPUs
            parts.append(Arriving(numbers[best]))
        return torch.cat([part.get() for part in parts])

    return distributed.sharded(classes, torch.from_numpy(images)).numpy()


def turned_scores(network, images, enlarge=1):
    """Test-time augmentation: probabilities averaged over the eight symmetries of a square.

    Args:
        network: a segmentation network in eval mode.
        images: (B, 3, H, W) float, normalised.
        enlarge: see segmenters.scores.

    Returns:
        (B, 6, H, W) float32: unknown is no answer.
    """
    total = torch.zeros(len(images), UNKNOWN, *images.shape[2:], device=images.device)
    for turns in range(4):
        turned = images.rot90(turns, (2, 3))
        for flip in ((), (3,)):
            scores = segmenters.scores(network, turned.flip(flip), enlarge)[:, :UNKNOWN]
            total += scores.softmax(dim=1).flip(flip).rot90(-turns, (2, 3))
    return total.div_(8)


def scored(epoch, truth, predicted):
    """One row of a history: what predicted masks are worth, (N, H, W) classes against the truth."""
    matrix = iou.confusion(truth, predicted)
    return {"epoch": epoch, "miou": iou.miou(matrix), "confusion": matrix.tolist()}


def summary(history):
    """Best and last epoch of a segmentation run as plain numbers; nan becomes None."""
    scores = [row["miou"] for row in history]
    best = int(np.nanargmax(scores))
    matrix, last = (np.array(history[at]["confusion"]) for at in (best, -1))
    return {
        "miou": scores[best],
        "miou_last": scores[-1],
        "epoch": history[best]["epoch"],
        "iou": by_class(matrix),
        "iou_last": by_class(last),
        "pixel_accuracy": iou.pixel_accuracy(matrix),
        "confusion": history[best]["confusion"],
        "confusion_last": history[-1]["confusion"],
    }


def by_class(matrix):
    """{class: IoU of a confusion matrix, None where the class is absent}."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(CLASSES, iou.iou(matrix))}


def batches_of(images, masks, profile, settings, device, names=()):
    """Augmented training batches: (B, 3, H, W) normalised images and (B, H, W) uint8 masks, whole tiles or crops."""
    recipe = augment.tile_recipe(settings)
    height, width = images.shape[-2:]
    side = settings.crop
    size = (side, side) if side else (height, width)
    crop = (size, (height, width)) if side else None  # crops keep the resolution
    square = size[0] == size[1]

    def prepare(images, masks):
        if settings.augmentation == "none":
            return augment.normalise(images), masks
        table = augment.draws(len(images), images.device)
        theta = augment.geometry(table, recipe, crop, square)
        images = augment.warp(images.float() / 255, theta, size)
        moved = augment.warp(masks[:, None].float(), theta, size, mode="nearest")
        return augment.normalise(augment.recolour(images, table, recipe)), moved[:, 0].to(masks.dtype)

    tensors = [torch.from_numpy(images), torch.from_numpy(masks)]
    return ArrayBatches(tensors, settings.micro_batch, profile.seed, device, prepare, names)


def colour(draft, problem2):
    """Step `segment-colour`: each colour gets the class that it most often has in training."""
    images, masks = image_files.load_tiles(problem2.train)
    val_images, val_masks = image_files.load_tiles(problem2.validation)
    _refuse_unlabelled(problem2, masks, val_masks)
    counts = np.zeros((LEVELS**3, len(CLASSES)), dtype=np.int64)
    for image, mask in zip(images, masks):  # one by one: all bins at once would not fit
        places = _bins(image) * len(CLASSES) + mask
        counts += np.bincount(places.ravel(), minlength=counts.size).reshape(counts.shape)
    counts = counts[:, :UNKNOWN]
    table = counts.argmax(axis=1).astype(np.uint8)
    table[counts.sum(axis=1) == 0] = counts.sum(axis=0).argmax()  # colours never seen
    predicted = np.stack([table[_bins(image)] for image in val_images])
    row = scored(0, val_masks, predicted)
    draft.array("predictions", predicted)
    draft.history([row])
    draft.metrics(summary([row]))


def _bins(image):
    """(3, H, W) uint8 -> (H, W) number of the colour's bin."""
    red, green, blue = (image // (256 // LEVELS)).astype(np.int64)
    return (red * LEVELS + green) * LEVELS + blue
