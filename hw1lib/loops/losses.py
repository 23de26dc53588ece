"""Losses of land-cover segmentation, which ignore unknown pixels.

No shape depends on values, so the CPU never waits for a GPU.
"""

import torch
import torch.nn.functional as F

from hw1lib.data.landcover import UNKNOWN
from hw1lib.loops import distributed


def segmentation(scores, masks, kind="cross_entropy", weights=None):
    """Return the mean loss of a batch over its known pixels.

    Args:
        scores: (B, 7, H, W) float32.
        masks: (B, H, W) classes 0…6.
        kind: cross_entropy, or lovasz for cross-entropy plus the Lovász-Softmax loss.
        weights: (7,) class weights of the cross-entropy; None for 1.

    Returns:
        Scalar; 0 if no pixel is known.
    """
    scores = scores.masked_fill((masks == UNKNOWN)[:, None], 0)  # also removes inf and nan
    labels = masks.long()
    total = F.cross_entropy(scores, labels, weights, ignore_index=UNKNOWN, reduction="sum")
    known = (labels != UNKNOWN).sum()
    if kind == "cross_entropy":  # `distributed` averages the losses of all ranks, weighted by their batch fractions
        known = distributed.all_reduce(known) * distributed.batch_fraction(len(masks))
    total = total / known.clamp_min(1)
    return total + lovasz(scores.softmax(dim=1), labels) if kind == "lovasz" else total


def class_weights(masks, balance):
    """Return class weights that grow with rarity: frequency to the power of -balance.

    Args:
        masks: (N, H, W) uint8 classes of all training tiles.
        balance: 0 weights all pixels equally, 1 all classes.

    Returns:
        (7,) float32 with mean 1 over the known pixels; 0 for absent classes.
    """
    counts = sum(torch.bincount(torch.as_tensor(mask).flatten(), minlength=UNKNOWN + 1) for mask in masks).double()
    counts[UNKNOWN] = 0
    frequency = counts / counts.sum().clamp_min(1)
    weights = torch.where(frequency > 0, frequency.clamp_min(1e-12) ** -balance, 0)
    return (weights / (frequency * weights).sum().clamp_min(1e-12)).float()


def lovasz(probabilities, labels):
    """Return the Lovász-Softmax loss, a surrogate of 1 - IoU (Berman et al. 2018, eqs. 8 and 9).

    Args:
        probabilities: (B, 7, H, W), summing to 1 over the classes.
        labels: (B, H, W) classes 0…6.

    Returns:
        Scalar in [0, 1], the mean over the classes that occur in `labels`; 0 if none does.
    """
    labels = labels.flatten()  # (P,)
    truth = torch.stack([labels == number for number in range(UNKNOWN)]).to(probabilities.dtype)  # (6, P)
    errors = (truth - probabilities[:, :UNKNOWN].transpose(0, 1).flatten(1)).abs()
    known = labels != UNKNOWN
    errors, order = errors.masked_fill(~known, 0).sort(dim=1, descending=True)
    truth, other = truth.gather(1, order), ((1 - truth) * known).gather(1, order)
    size = truth.sum(dim=1, keepdim=True)  # (6, 1)
    intersection = size - truth.cumsum(dim=1)  # with the largest errors up to each pixel
    union = (size + other.cumsum(dim=1)).clamp_min(1)
    jaccard = 1 - intersection / union
    gradient = jaccard.diff(dim=1, prepend=jaccard.new_zeros(UNKNOWN, 1))  # of the Lovász extension
    occurs = (size[:, 0] > 0).to(errors.dtype)
    return ((errors * gradient).sum(dim=1) * occurs).sum() / occurs.sum().clamp_min(1)
