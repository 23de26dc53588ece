"""Normalisation of images with ImageNet's mean and standard deviation, as the course prescribes."""

import functools

import torch

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(images):
    """Standardise each channel: (B, 3, H, W) uint8, or float in [0, 1] -> float32."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    mean, std = _constants(images.device)
    return (images - mean) / std


def denormalise(images):
    """Undo `normalise` for display: (B, 3, H, W) -> float32 in [0, 1]."""
    mean, std = _constants(images.device)
    return (images * std + mean).clamp(0, 1)


@functools.cache  # a copy to a GPU would block in each call
def _constants(device):
    return [torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD)]
