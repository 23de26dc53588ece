"""BYOL (Grill et al. 2020) and SimSiam (Chen & He 2020) on byol-pytorch's networks.

The package's learner stays the reference: it builds every network, and the profile `seed` trains
through its own forward. `loss` is the same loss with the same gradients, each projection computed
once and the cosines taken in float32; `follow` moves the target network.

arXiv:2006.07733 (BYOL), arXiv:2011.10566 (SimSiam).
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from byol_pytorch import BYOL, byol_pytorch
from torch import nn

from hw1lib.models import ema


@contextlib.contextmanager
def _plain_batchnorm():
    """Let the package build nn.BatchNorm1d meanwhile.

    Where several processes run it takes SyncBatchNorm, which refuses CPUs; `parallel.synchronise` does it for both.
    """
    package = byol_pytorch.MaybeSyncBatchnorm
    byol_pytorch.MaybeSyncBatchnorm = lambda *_: nn.BatchNorm1d
    try:
        yield
    finally:
        byol_pytorch.MaybeSyncBatchnorm = package


def learner(backbone, image_size, settings, views=None):
    """The report's own call of byol-pytorch.

    NOTE: `use_simplicial_embeddings` is on by default since byol-pytorch 0.8; plain BYOL, and the
    call that the original report made, need it off.

    Args:
        backbone: ResNet50; its `avgpool` output is the representation.
        image_size: side of the views in pixels.
        settings: settings.Pretrain.
        views: two modules that each draw one augmented view of a batch; None takes the package's
            own, which draws one augmentation for the whole batch.

    Returns:
        The learner; `learner(images)` is the package's symmetric loss in [0, 8].
    """
    with _plain_batchnorm():
        byol = BYOL(
            backbone, image_size, hidden_layer="avgpool", use_simplicial_embeddings=False,
            projection_size=settings.projection_size, projection_hidden_size=settings.projection_hidden_size,
            use_momentum=settings.use_momentum, moving_average_decay=settings.moving_average_decay,
            augment_fn=nn.Identity() if views is not None else None,
        )  # fmt: skip
    if views is not None:  # set afterwards: the constructor tries the learner on random noise
        byol.augment1, byol.augment2 = views
    return byol


def loss(learner, images):
    """The symmetric loss in one pass: equal to `learner(images)`, and so are its gradients.

    Without momentum the target's projections are the online ones without gradient (the stop
    gradient of SimSiam), so the package's second pass through the same network is spared. Its
    BatchNorm statistics are then updated once a step, not twice. Under autocast the networks run
    in its type, the cosines in float32.

    Args:
        learner: what `learner()` gave.
        images: a batch, as its two views take it.

    Returns:
        Scalar in [0, 8]: eq. 2 of BYOL, both ways round, averaged over the batch.
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
    """Four times the mean of 1 - cos: the loss of both views together, each 2 - 2·cos.

    Args:
        prediction: (2B, D) online predictions of both views, any scale.
        target: (2B, D) target projections of the other view each; no gradient flows into them.
    """
    cosine = F.cosine_similarity(prediction.float(), target.float(), dim=1)
    return 4 * (1 - cosine).mean()


def decay(base, share):
    """The target's decay after `share` of the training: `base`, raised to 1 along a cosine.

    BYOL, section 3.3: 1 - (1 - base) · (cos(π · share) + 1) / 2.
    """
    return 1 - (1 - base) * (math.cos(math.pi * share) + 1) / 2


def follow(learner, decay):
    """Moves the target network: decay · target + (1 - decay) · online.

    NOTE: BatchNorm's running statistics follow, too; the package moves parameters only.
    """
    ema.follow(learner.target_encoder, learner.online_encoder, decay)
