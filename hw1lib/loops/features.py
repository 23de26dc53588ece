"""Frozen features, and what can be told from them without training."""

import contextlib
import math

import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from hw1lib.loops import augment, distributed
from hw1lib.loops.device import autocast, send
from hw1lib.models import resnet


@torch.no_grad()
def extract(backbone, images, device, batch=256):
    """Features in eval mode and float32, without augmentation.

    Args:
        images: (N, 3, S, S) uint8 tensor.

    Returns:
        (N, 2048) float32 on the CPU.
    """

    def part(images):
        parts = (augment.normalise(send(part, device)) for part in images.split(batch))
        return torch.cat([resnet.features(backbone, part).cpu() for part in parts])

    with _mode(backbone, training=False), autocast("float32", device):
        return distributed.sharded(part, images)


@contextlib.contextmanager
def _mode(backbone, training):
    """Switch to training or evaluation mode, and back when the block ends, however it does."""
    before = backbone.training
    try:
        yield backbone.train(training)
    finally:
        backbone.train(before)


@torch.no_grad()
def calibrate(backbone, images, device, batch=256):
    """Sets BatchNorm's statistics by one pass over some images, the mean over its batches; returns the backbone.

    A random network's are 0 and 1 otherwise, which fit no layer: an unfair control. Images often lie class by class,
    so batches are drawn, in a fixed order; they are of nearly one size, as each counts alike.

    Args:
        images: (N, 3, S, S) uint8 tensor, without augmentation.
    """
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    try:
        with _mode(backbone, training=True), autocast("float32", device):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's way to ask for the mean
            for rows in order.tensor_split(math.ceil(len(images) / batch)):
                resnet.features(backbone, augment.normalise(send(images[rows], device)))
    finally:
        for norm, usual in zip(norms, momentum):
            norm.momentum = usual
    return backbone


def nearest_class(bank, labels, queries, neighbours):
    """k-NN by cosine: the commonest class of the nearest; ties go to the lower class.

    Args:
        bank: (N, D) features with labels (N,), whole numbers.
        queries: (M, D) features.
        neighbours: k; lowered to N where there are fewer.

    Returns:
        (M,) predicted classes.
    """
    bank, queries = F.normalize(bank), F.normalize(queries)
    model = KNeighborsClassifier(min(neighbours, len(bank)), metric="cosine", algorithm="brute")
    return model.fit(bank.numpy(), labels).predict(queries.numpy())


def colour_statistics(images):
    """Mean and standard deviation of each channel, in [0, 1]: (N, 3, S, S) uint8 tensor -> (N, 6) float32."""
    pixels = images.float().flatten(2) / 255
    return torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)
