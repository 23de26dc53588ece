"""What a profile costs before it is run: floating-point operations, counted from the networks.

Networks are built without memory (torch's meta device) and run through PyTorch's own FLOP
counter, which counts a multiply-add as two. Optimizers, augmentation and what is no convolution or
matrix product are left out.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hw1lib import profiles
from hw1lib.data import images
from hw1lib.loops import finetune
from hw1lib.models import byol, classifier, segmenters

# What one consumer card sustains: an RTX 4090 trains ResNet50 at 224 pixels in float16 with 1,776
# images a second (tf_cnn_benchmarks, batch 256, server-gear.com 2023), 24.5 GFLOP each: 43 TFLOP/s.
SUSTAINED = 40e12


@dataclass(frozen=True)
class Counts:
    """How much data there is."""

    pool: int
    train: int
    val: int
    tiles_train: int
    tiles_validation: int
    tile_size: int  # pixels a side


def of_course(numbers):
    """The course's counts, from report/original.toml."""
    one, two = (numbers[problem]["course_data"] for problem in ("problem1", "problem2"))
    return Counts(
        one["pool"], one["train"], one["validation"],
        two["train"], two["validation"], two["tile_size"],
    )


def of_data(data):
    """The counts of a layout.Layout; a problem that is not there counts as nothing."""
    one, two = data.problem1, data.problem2
    size = 1
    if two:
        size = images.open_rgb(two.validation.sat(two.validation.numbers[0])).width
    return Counts(
        *((len(one.pool), len(one.train), len(one.val)) if one else (0, 0, 0)),
        *((len(two.train), len(two.validation)) if two else (0, 0)),
        size,
    )


def flops(profile, counts):
    """Operations of each training step, as if the supervised backbone were trained here.

    Args:
        profile: settings.Profile.
        counts: Counts.

    Returns:
        Dict from step to its number of floating-point operations.
    """
    return _problem1(profile, counts) | _problem2(profile, counts)


def _problem1(profile, counts):
    if not counts.pool:
        return {}
    forward = _forward(profile.model_scale, profile.data.image_size)
    costs = {
        "pretrain": profile.pretrain.epochs * counts.pool * _byol(profile),
        "pretrain-supervised": 3 * forward * profile.supervised.epochs * counts.pool,
    }
    for setting in profiles.SETTINGS:
        frozen = finetune.PLAN[setting][1]
        once = frozen and not profile.finetune.augment_frozen
        passes = (1 if frozen else 3) * counts.train + counts.val  # forward; forward and backward
        costs[f"finetune-{setting}"] = forward * passes * (1 if once else profile.finetune.epochs)
    return costs


def _problem2(profile, counts):
    costs = {}
    for name in profiles.SEGMENTERS if counts.tiles_train else ():
        settings, scale = getattr(profile, name), profile.model_scale
        side, crop = counts.tile_size * settings.enlarge, settings.crop * settings.enlarge
        train = 3 * _segmenter(name, scale, crop or side) * counts.tiles_train
        validate = _segmenter(name, scale, side) * counts.tiles_validation
        turns = 8 if settings.tta else 0  # once, after the last epoch
        costs[f"segment-{name}"] = settings.epochs * train + (settings.epochs + turns) * validate
    return costs


def hours(operations):
    """Hours on one consumer card."""
    return operations / SUSTAINED / 3600


def speed(operations, taken):
    """Operations a second of steps that have run, all together; 0 where none has.

    Args:
        operations: dict from step to its operations.
        taken: pairs of a step and the seconds that it took.
    """
    counted = [(operations[step], seconds) for step, seconds in taken if step in operations]
    seconds = sum(seconds for _, seconds in counted)
    return sum(count for count, _ in counted) / seconds if seconds else 0.0


def _count(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _forward(scale, size):
    """Operations of the backbone's forward pass for one image."""
    with torch.device("meta"):
        backbone, image = classifier.backbone(scale).eval(), torch.empty(1, 3, size, size)
        return _count(lambda: classifier.features(backbone, image))


def _byol(profile):
    """Operations of one image's share of a pre-training step: both views, both networks."""
    size, batch = profile.data.image_size, 2  # BatchNorm wants two
    with torch.device("meta"):
        backbone = classifier.backbone(profile.model_scale)
        views = nn.Identity(), nn.Identity()
        learner = byol.learner(backbone, size, profile.pretrain, views)
        batch_of_two = torch.empty(batch, 3, size, size)
        loss = byol.loss if profile.pretrain.one_pass else lambda learner, images: learner(images)
        return _count(lambda: loss(learner, batch_of_two).backward()) / batch


def _segmenter(name, scale, size):
    """Operations of a segmentation network's forward pass for one tile."""
    with torch.device("meta"):
        network = segmenters.build(name, scale).eval()
        return _count(lambda: segmenters.scores(network, torch.empty(1, 3, size, size)))
