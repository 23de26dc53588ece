"""Losses of land-cover segmentation; unknown pixels never contribute."""

import torch
import torch.nn.functional as F

from hw1lib.data.landcover import UNKNOWN

FOCUS = 2.0  # focal loss: gamma, as in its paper


def segmentation(scores, masks, kind="cross_entropy", weights=None):
    """The loss of a batch over its known pixels.

    Args:
        scores: (B, 7, H, W) float32.
        masks: (B, H, W) classes 0…6.
        kind: cross_entropy, focal, dice or lovasz; the last two are added to cross-entropy.
        weights: (7,) weight of each class in cross-entropy and focal loss; None: all 1.

    Returns:
        Scalar; 0 where no pixel is known.
    """
    known = masks != UNKNOWN
    labels = masks[known].long()  # (P,)
    pixels = scores.permute(0, 2, 3, 1)[known]  # (P, 7)
    if not len(labels):
        return pixels.sum()  # of nothing: 0, with gradients of 0
    if kind == "focal":
        return focal(pixels, labels, weights)
    total = F.cross_entropy(pixels, labels, weights, reduction="sum") / len(labels)
    if kind == "cross_entropy":
        return total
    shares = pixels.softmax(dim=1)
    return total + {"dice": dice, "lovasz": lovasz}[kind](shares, labels)


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
    share = counts / counts.sum().clamp_min(1)
    weights = torch.where(share > 0, share.clamp_min(1e-12) ** -balance, 0)
    return (weights / (share * weights).sum().clamp_min(1e-12)).float()


def focal(pixels, labels, weights=None):
    """Cross-entropy that counts pixels the less, the surer they are (Lin et al. 2017, eq. 5).

    Args:
        pixels: (P, C) scores.
        labels: (P,) classes.
        weights: (C,) or None.
    """
    entropy = F.cross_entropy(pixels, labels, reduction="none")
    hard = (1 - torch.exp(-entropy)) ** FOCUS
    return (hard * entropy * (1 if weights is None else weights[labels])).mean()


def dice(shares, labels):
    """1 - the soft Dice coefficient, averaged over the classes that occur (Milletari et al. 2016).

    Args:
        shares: (P, C) probabilities.
        labels: (P,) classes.

    Returns:
        Scalar in [0, 1].
    """
    truth = F.one_hot(labels, shares.shape[1]).to(shares.dtype)
    there = truth.sum(dim=0)
    coefficient = 2 * (shares * truth).sum(dim=0) / (shares.sum(dim=0) + there)
    return 1 - coefficient[there > 0].mean()


def lovasz(shares, labels):
    """The Lovász-Softmax loss, a surrogate of 1 - IoU (Berman et al. 2018, eqs. 8 and 9).

    Args:
        shares: (P, C) probabilities.
        labels: (P,) classes.

    Returns:
        Scalar in [0, 1]: the mean over the classes that occur.
    """
    losses = []
    for number in labels.unique():
        truth = (labels == number).to(shares.dtype)
        errors, order = (truth - shares[:, number]).abs().sort(descending=True)
        truth = truth[order]
        left = truth.sum() - truth.cumsum(dim=0)  # intersection after so many errors
        union = truth.sum() + (1 - truth).cumsum(dim=0)
        jaccard = 1 - left / union
        steps = jaccard.diff(prepend=jaccard.new_zeros(1))  # the extension's gradient
        losses.append((errors * steps).sum())  # @ would leave float32 under autocast
    return torch.stack(losses).mean()
