"""Losses of land-cover segmentation; unknown pixels never contribute."""

import torch
import torch.nn.functional as F

from hw1lib.data.landcover import UNKNOWN


def segmentation(scores, masks, kind="cross_entropy", weights=None):
    """The loss of a batch over its known pixels.

    Args:
        scores: (B, 7, H, W) float32.
        masks: (B, H, W) classes 0…6.
        kind: cross_entropy, or lovasz: cross-entropy plus the Lovász-Softmax loss.
        weights: (7,) weight of each class in cross-entropy; None: all 1.

    Returns:
        Scalar; 0 where no pixel is known.
    """
    known = masks != UNKNOWN
    labels = masks[known].long()  # (P,)
    pixels = scores.permute(0, 2, 3, 1)[known]  # (P, 7)
    if not len(labels):
        return pixels.sum()  # of nothing: 0, with gradients of 0
    total = F.cross_entropy(pixels, labels, weights, reduction="sum") / len(labels)
    return total + lovasz(pixels.softmax(dim=1), labels) if kind == "lovasz" else total


def class_weights(masks, balance):
    """Weights that are larger for rarer classes: frequency to the power of -balance.

    Args:
        masks: (N, H, W) uint8 classes of all training tiles.
        balance: 0 weighs all pixels alike, 1 all classes.

    Returns:
        (7,) float32 whose mean over the known pixels is 1; 0 for what does not occur.
    """
    counts = torch.bincount(torch.as_tensor(masks).flatten(), minlength=UNKNOWN + 1).double()
    counts[UNKNOWN] = 0
    frequency = counts / counts.sum().clamp_min(1)
    weights = torch.where(frequency > 0, frequency.clamp_min(1e-12) ** -balance, 0)
    return (weights / (frequency * weights).sum().clamp_min(1e-12)).float()


def lovasz(probabilities, labels):
    """The Lovász-Softmax loss, a surrogate of 1 - IoU (Berman et al. 2018, eqs. 8 and 9).

    Args:
        probabilities: (P, C), each row adds up to 1.
        labels: (P,) classes.

    Returns:
        Scalar in [0, 1]: the mean over the classes that occur.
    """
    losses = []
    for number in labels.unique():
        truth = (labels == number).to(probabilities.dtype)
        errors, order = (truth - probabilities[:, number]).abs().sort(descending=True)
        truth = truth[order]
        left = truth.sum() - truth.cumsum(dim=0)  # intersection after so many errors
        union = truth.sum() + (1 - truth).cumsum(dim=0)
        jaccard = 1 - left / union
        steps = jaccard.diff(prepend=jaccard.new_zeros(1))  # the extension's gradient
        losses.append((errors * steps).sum())  # @ would leave float32 under autocast
    return torch.stack(losses).mean()
