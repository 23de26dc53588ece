"""BYOL (Grill et al. 2020) and SimSiam (Chen & He 2020) on byol-pytorch's networks.

byol-pytorch builds all networks, and profile `seed` trains through its forward. `loss` has the same value and
gradients, but computes each projection once and cosines in float32.

arXiv:2006.07733 (BYOL), arXiv:2011.10566 (SimSiam).
"""

import math
from unittest import mock

import torch
import torch.nn.functional as F
from byol_pytorch import BYOL, byol_pytorch
from torch import nn

from hw1lib.models import ema


def learner(backbone, image_size, settings, views=None):
    """Build byol-pytorch's learner as the original report did.

    `use_simplicial_embeddings`, on by default since byol-pytorch 0.8, is off: plain BYOL has none.

    Args:
        backbone: ResNet50; its `avgpool` output is the representation.
        image_size: side of the views in pixels.
        settings: settings.Pretrain.
        views: two modules that each draw one augmented view of a batch; None uses the package's augmentation, which is
            drawn once for the whole batch.

    Returns:
        The learner; `learner(images)` is the package's symmetric loss in [0, 8].
    """
    # With several processes the package would use nn.SyncBatchNorm, which does not run on CPUs; loops.distributed
    # synchronises all BatchNorm layers instead.
    with mock.patch.object(byol_pytorch, "MaybeSyncBatchnorm", lambda *_: nn.BatchNorm1d):
        byol = BYOL(
            backbone, image_size, hidden_layer="avgpool", use_simplicial_embeddings=False,
            projection_size=settings.projection_size, projection_hidden_size=settings.projection_hidden_size,
            use_momentum=settings.use_momentum, moving_average_decay=settings.moving_average_decay,
            augment_fn=nn.Identity() if views is not None else None,
        )  # fmt: skip
    if views is not None:  # after the constructor, which runs the learner on random noise
        byol.augment1, byol.augment2 = views
    return byol


def loss(learner, images):
    """Compute the symmetric loss; its value and gradients equal those of `learner(images)`.

    Without momentum the targets are the online projections without gradient (SimSiam's stop-gradient), which saves the
    package's second pass through the network. BatchNorm's running statistics are then updated once a step, not twice.
    Under autocast the networks run in its dtype, and the cosines in float32.

    Args:
        learner: as returned by `learner`.
        images: (B, 3, H, W) batch, of which two views are drawn.

    Returns:
        Scalar in [0, 8]: eq. 2 of BYOL, symmetrised and averaged over the batch.
    """
    views = torch.cat([learner.augment1(images), learner.augment2(images)])  # (2B, 3, S, S)
    projection, _ = learner.online_encoder(views)  # (2B, D)
    prediction = learner.online_predictor(projection)
    target = projection.detach()
    if learner.use_momentum:
        with torch.no_grad():
            target, _ = learner.target_encoder(views)
    return regression(prediction, target.roll(len(images), dims=0))


def regression(prediction, target):
    """Compute the sum of both views' losses, 2 - 2·cos each, averaged over the batch.

    Args:
        prediction: (2B, D) online predictions of both views, any scale.
        target: (2B, D) target projections of the opposite views; they must not require gradients.

    Returns:
        Scalar in [0, 8].
    """
    cosine = F.cosine_similarity(prediction.float(), target.float(), dim=1)
    return 4 * (1 - cosine).mean()


def decay(base, share):
    """Return the decay of the target network after a fraction `share` of the training.

    It rises from `base` to 1: 1 - (1 - base) · (cos(π · share) + 1) / 2 (BYOL, section 3.3).
    """
    return 1 - (1 - base) * (math.cos(math.pi * share) + 1) / 2


def follow(learner, decay):
    """Update the target network to decay · target + (1 - decay) · online.

    Unlike the package's update, this includes BatchNorm's running statistics.
    """
    ema.follow(learner.target_encoder, learner.online_encoder, decay)
