"""BYOL: the learner is byol-pytorch's, built as in the original report; our loss equals its loss."""

import copy
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from byol_pytorch import BYOL
from torch import nn

from hw1lib import profiles
from hw1lib.loops import augment
from hw1lib.models import byol, resnet
from hw1lib.settings import Pretrain
from tests import processes

SIDE = 16


class Backbone(nn.Module):
    """The smallest network that the package accepts, with BatchNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 10)

    def forward(self, images):
        return self.fc(torch.flatten(self.avgpool(F.relu(self.norm(self.conv(images)))), 1))


def settings(**changes):
    return Pretrain(**{"projection_size": 8, "projection_hidden_size": 16, **changes})


def images(count=6, side=SIDE):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def pixels(*size):
    return (images(*size) * 255).to(torch.uint8)


def loss_of(learner, batch, forward=nn.Module.__call__):
    """Compute the loss with the same random draws each time; the package's augmentation uses `random`."""
    random.seed(3)
    torch.manual_seed(3)
    return forward(learner, batch)


def perturb_target(learner):
    """Move the target network away from the online network, including its statistics and counters."""
    generator = torch.Generator().manual_seed(2)
    for value in learner.target_encoder.state_dict().values():
        value += 0.1 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else 7
    return learner


@pytest.mark.parametrize("own_views", [True, False])
@pytest.mark.parametrize("momentum", [True, False])
def test_the_learner_is_the_packages(momentum, own_views):
    """The same modules, random draws and loss."""
    chosen = settings(use_momentum=momentum, moving_average_decay=0.7)
    views = augment.two_views(SIDE, chosen, overhead=False) if own_views else None
    options = {"projection_size": 8, "projection_hidden_size": 16, "use_simplicial_embeddings": False}
    options |= dict(zip(("augment_fn", "augment_fn2"), views or ()))
    reference = BYOL(Backbone(), SIDE, "avgpool", use_momentum=momentum, moving_average_decay=0.7, **options)
    backbone = Backbone()
    learner = byol.learner(backbone, SIDE, chosen, views)
    learner.load_state_dict(reference.state_dict())  # strict
    batch = pixels() if views else images()
    assert torch.equal(loss_of(learner, batch), loss_of(reference, batch))
    assert learner.target_ema_updater.beta == reference.target_ema_updater.beta == 0.7
    assert any(parameter is backbone.conv.weight for parameter in learner.parameters())


def test_profile_seed_builds_the_learner_as_the_original_report():
    reference = BYOL(Backbone(), SIDE, hidden_layer="avgpool", use_momentum=False, use_simplicial_embeddings=False)
    learner = byol.learner(Backbone(), SIDE, profiles.get("seed").pretrain)
    learner.load_state_dict(reference.state_dict())
    assert torch.equal(loss_of(learner, images()), loss_of(reference, images()))


@pytest.mark.parametrize("narrow", [False, True])
def test_the_loss_is_the_papers(narrow):
    """Grill et al. 2020, eq. 2, symmetrised. Under autocast, our cosines are still exact."""
    views = nn.Identity(), nn.Softplus()
    learner = perturb_target(byol.learner(Backbone(), SIDE, settings(use_momentum=True), views))
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss = byol.loss(learner, images())
        batch = torch.cat([view(images()) for view in views])
        online, target = (encoder(batch)[0] for encoder in (learner.online_encoder, learner.target_encoder))
        online = learner.online_predictor(online)
    assert online.dtype == target.dtype == (torch.bfloat16 if narrow else torch.float32)
    (one, two), (target_one, target_two) = (embeddings.double().chunk(2) for embeddings in (online, target))
    cosines = F.cosine_similarity(one, target_two) + F.cosine_similarity(two, target_one)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx((4 - 2 * cosines).mean().item(), rel=1e-5)


def step(momentum, forward):
    """Return loss and gradients of a small ResNet, and the number of updates of BatchNorm's running statistics."""
    chosen = settings(projection_size=16, projection_hidden_size=32, use_momentum=momentum)
    torch.manual_seed(0)
    views = augment.two_views(32, chosen, overhead=True)
    learner = byol.learner(resnet.backbone(0.125), 32, chosen, views)
    learner = perturb_target(learner) if momentum else learner
    before = learner.net.bn1.num_batches_tracked.item()
    loss = loss_of(learner, pixels(16, 32), forward)
    loss.backward()
    gradients = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    return loss, gradients, learner.net.bn1.num_batches_tracked.item() - before


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [True, False])
@processes.float64()
def test_our_loss_and_its_gradients_are_the_packages(momentum):
    """Each gradient's error is compared with its largest value; biases before BatchNorm only have rounding errors."""
    reference, expected, reference_passes = step(momentum, nn.Module.__call__)  # the package's own forward
    loss, gradients, passes = step(momentum, byol.loss)
    torch.testing.assert_close(loss, reference, atol=1e-10, rtol=0)
    assert gradients.keys() == expected.keys() and len(gradients) > 60
    for name, gradient in expected.items():
        scale = max(gradient.abs().max().item(), 1e-2)
        assert (gradients[name] - gradient).abs().max() <= 1e-8 * scale, name
    assert max(g.abs().max() for g in expected.values()) > 0.1
    # Without momentum the package computes the projections twice.
    assert (passes, reference_passes) == (1, 1 if momentum else 2)


def test_the_decay_rises_from_its_base_to_one():
    """Grill et al. 2020, section 3.3: 1 - (1 - base) · (cos(π · share) + 1) / 2."""
    for base in (0.0, 0.5, 0.99, 0.996):
        decays = [byol.decay(base, share) for share in (0, 1 / 3, 0.5, 1)]
        assert decays == pytest.approx([base, 1 - 0.75 * (1 - base), (1 + base) / 2, 1])
        assert all(later > earlier for earlier, later in itertools.pairwise(decays))


def test_the_target_follows_in_parameters_and_statistics():
    """Parameters as in the package; counters are copied, as they cannot be averaged."""
    chosen = settings(use_momentum=True, moving_average_decay=0.3)
    ours, reference = (perturb_target(byol.learner(Backbone(), SIDE, chosen, (nn.Identity(),) * 2)) for _ in range(2))
    reference.load_state_dict(ours.state_dict())
    target, online = (copy.deepcopy(m.state_dict()) for m in (ours.target_encoder, ours.online_encoder))
    byol.follow(ours, 0.3)
    reference.update_moving_average()
    state = ours.target_encoder.state_dict()
    for name, value in online.items():
        expected = torch.lerp(value, target[name], 0.3) if value.is_floating_point() else value
        torch.testing.assert_close(state[name], expected, atol=1e-6, rtol=1e-5)
    for name, parameter in reference.target_encoder.named_parameters():
        torch.testing.assert_close(state[name], parameter, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(online[n], v) for n, v in ours.online_encoder.state_dict().items())
