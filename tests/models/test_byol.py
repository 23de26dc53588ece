"""BYOL: the learner is the package's own, called as the report says; our loss is its loss."""

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
FORWARDS = [lambda learner, batch: learner(batch), byol.loss]  # the package's, and ours


class Backbone(nn.Module):
    """As little as the call needs: a layer named avgpool under another one."""

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
    """A batch as pre-training has it: bytes."""
    return (images(*size) * 255).to(torch.uint8)


def loss_of(learner, batch, forward=FORWARDS[0]):
    """The loss with the same draws each time; the package's own augmentation uses `random`."""
    random.seed(3)
    torch.manual_seed(3)
    return forward(learner, batch)


def moved(learner):
    """The learner with a target network away from the online one, in all that it holds."""
    generator = torch.Generator().manual_seed(2)
    for value in learner.target_encoder.state_dict().values():
        value += 0.1 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else 7
    return learner


# --- the call


@pytest.mark.parametrize("drawn", ["package", "given"])
@pytest.mark.parametrize("momentum", [True, False])
def test_the_learner_is_the_reports_literal_call(momentum, drawn):
    """The same modules, draws and loss, with the package's own views and with given ones."""
    chosen = settings(use_momentum=momentum, moving_average_decay=0.7)
    views = augment.two_views(SIDE, chosen, overhead=False) if drawn == "given" else None
    given = dict(zip(("augment_fn", "augment_fn2"), views or ()))
    sizes = {"projection_size": 8, "projection_hidden_size": 16}
    given |= {"use_simplicial_embeddings": False}  # it came later, and would be on
    literal = BYOL(Backbone(), SIDE, "avgpool", **sizes, use_momentum=momentum, moving_average_decay=0.7, **given)
    model = Backbone()
    ours = byol.learner(model, SIDE, chosen, views)
    ours.load_state_dict(literal.state_dict())  # strict: the same modules
    batch = pixels() if views else images()
    assert torch.equal(loss_of(ours, batch), loss_of(literal, batch))
    assert ours.target_ema_updater.beta == literal.target_ema_updater.beta == 0.7
    assert any(p is model.conv.weight for p in ours.parameters())


def test_the_seed_profile_calls_it_as_the_original_did():
    """BYOL(model, image_size, hidden_layer='avgpool', use_momentum=False): the rest are the package's defaults."""
    literal = BYOL(Backbone(), SIDE, hidden_layer="avgpool", use_momentum=False, use_simplicial_embeddings=False)
    ours = byol.learner(Backbone(), SIDE, profiles.get("seed").pretrain)
    ours.load_state_dict(literal.state_dict())
    assert torch.equal(loss_of(ours, images()), loss_of(literal, images()))


# --- the loss


@pytest.mark.parametrize(("forward", "narrow"), [(FORWARDS[0], False), (byol.loss, False), (byol.loss, True)])
def test_the_loss_is_the_papers(forward, narrow):
    """Grill et al. 2020, eq. 2, both ways round; each view, drawn once by its module, predicts the other's.

    Under autocast the networks run in bfloat16, and ours of what they give is still exact: near 1 bfloat16 has
    steps of 1/128 or more, and a converging loss would not be seen to fall.
    """
    views, drawn = (nn.Dropout(0.2), nn.Dropout(0.5)), []
    for view in views:
        view.register_forward_hook(lambda module, _, out: drawn.append((module, out)))
    learner = moved(byol.learner(Backbone(), SIDE, settings(use_momentum=True), views))
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        found = loss_of(learner, images(), forward)
        modules, given = zip(*drawn)
        online, target = (encoder(torch.cat(given))[0] for encoder in (learner.online_encoder, learner.target_encoder))
        online = learner.online_predictor(online)
    assert modules == views and found.dtype == torch.float32
    assert online.dtype == target.dtype == (torch.bfloat16 if narrow else torch.float32)
    (one, two), (target_one, target_two) = (made.double().chunk(2) for made in (online, target))
    there, back = F.cosine_similarity(one, target_two), F.cosine_similarity(two, target_one)
    assert found.item() == pytest.approx((2 - 2 * there + 2 - 2 * back).mean().item(), rel=1e-5)


def step(momentum, forward):
    """Loss, gradients by name, and how often BatchNorm's running statistics were updated, of a small ResNet."""
    chosen = settings(projection_size=16, projection_hidden_size=32, use_momentum=momentum)
    torch.manual_seed(0)
    views = augment.two_views(32, chosen, overhead=True)
    learner = byol.learner(resnet.backbone(0.125), 32, chosen, views)
    learner = moved(learner) if momentum else learner
    before = learner.net.bn1.num_batches_tracked.item()
    value = loss_of(learner, pixels(16, 32), forward)
    value.backward()
    gradients = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
    return value, gradients, learner.net.bn1.num_batches_tracked.item() - before


@pytest.mark.parametrize("momentum", [True, False])
@processes.float64()
def test_one_pass_is_the_packages_loss_and_so_is_every_gradient(momentum):
    """Same weights, same draws. A parameter's error is held against its largest gradient.

    NOTE: biases under a BatchNorm have gradients of rounding errors, hence the least scale.
    """
    reference, expected, passes_of_package = step(momentum, FORWARDS[0])
    value, found, passes = step(momentum, byol.loss)
    torch.testing.assert_close(value, reference, atol=1e-10, rtol=0)
    assert found.keys() == expected.keys() and len(found) > 60
    for name, gradient in expected.items():
        scale = max(gradient.abs().max().item(), 1e-2)
        assert (found[name] - gradient).abs().max() <= 1e-8 * scale, name
    assert max(g.abs().max() for g in expected.values()) > 0.1  # there is something to compare
    # The only difference: without momentum the package sends the views through twice.
    assert (passes, passes_of_package) == (1, 1 if momentum else 2)


# --- the target network


def test_the_decay_rises_from_its_base_to_one():
    """Grill et al. 2020, section 3.3: 1 - (1 - base) · (cos(π · share) + 1) / 2."""
    for base in (0.0, 0.5, 0.99, 0.996):
        found = [byol.decay(base, done) for done in (0, 1 / 3, 0.5, 1)]
        assert found == pytest.approx([base, 1 - 0.75 * (1 - base), (1 + base) / 2, 1])  # cos 60° = 1/2
        assert all(later > sooner for sooner, later in itertools.pairwise(found))


def test_the_target_follows_in_parameters_and_statistics():
    """Parameters as the package moves them; counters cannot be averaged and are the online network's."""
    chosen = settings(use_momentum=True, moving_average_decay=0.3)
    ours, package = (moved(byol.learner(Backbone(), SIDE, chosen, (nn.Identity(),) * 2)) for _ in range(2))
    package.load_state_dict(ours.state_dict())
    target, online = (copy.deepcopy(m.state_dict()) for m in (ours.target_encoder, ours.online_encoder))
    byol.follow(ours, 0.3)
    package.update_moving_average()
    found = ours.target_encoder.state_dict()
    for name, value in online.items():
        expected = torch.lerp(value, target[name], 0.3) if value.is_floating_point() else value
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
    for name, parameter in package.target_encoder.named_parameters():
        torch.testing.assert_close(found[name], parameter, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(online[n], v) for n, v in ours.online_encoder.state_dict().items())
