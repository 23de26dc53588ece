"""BYOL: the learner is the package's own, called as the report says."""

import copy
import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F
from byol_pytorch import BYOL
from torch import nn

from hw1lib import profiles
from hw1lib.loops import augment
from hw1lib.models import byol

SIDE = 16


class Backbone(nn.Module):
    """As little as the call needs: a layer named avgpool under another one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 10)

    def forward(self, images):
        return self.fc(torch.flatten(self.avgpool(F.relu(self.norm(self.conv(images)))), 1))


def backbone():
    torch.manual_seed(0)
    return Backbone()


def settings(**changes):
    small = dict(projection_size=8, projection_hidden_size=16)
    return profiles.Pretrain(**{**small, **changes})


def images(count=6):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def loss_of(learner, batch):
    """The loss with the same draws each time; the package's own augmentation uses `random`."""
    random.seed(3)
    torch.manual_seed(3)
    return learner(batch)


def shapes(learner):
    return {name: tuple(value.shape) for name, value in learner.state_dict().items()}


# --- the call


def test_the_learner_is_the_reports_literal_call():
    """The same weights and draws, the same loss, for the seed profile's own settings."""
    chosen = profiles.get("seed").pretrain
    model = backbone()
    literal = BYOL(
        model,
        image_size=SIDE,  # 128 in the report
        hidden_layer="avgpool",
        use_momentum=False,
        use_simplicial_embeddings=False,  # came later, and would be on
    )
    ours = byol.learner(backbone(), SIDE, chosen)
    ours.load_state_dict(literal.state_dict())  # strict: the same modules
    assert torch.equal(loss_of(ours, images()), loss_of(literal, images()))
    ours.eval(), literal.eval()
    assert torch.equal(loss_of(ours, images()), loss_of(literal, images()))


@pytest.mark.parametrize("momentum", [True, False])
def test_given_views_replace_the_packages_own(momentum):
    views = augment.Views(SIDE, augment.BYOL_VIEW)
    ours = byol.learner(backbone(), SIDE, settings(use_momentum=momentum), views)
    literal = BYOL(
        backbone(), SIDE, hidden_layer="avgpool", projection_size=8, projection_hidden_size=16,
        use_momentum=momentum, use_simplicial_embeddings=False, augment_fn=views,
    )
    literal.load_state_dict(ours.state_dict())
    pixels = (images() * 255).to(torch.uint8)
    assert torch.equal(loss_of(ours, pixels), loss_of(literal, pixels))


def test_the_two_views_are_drawn_separately():
    seen = []

    class Noted(nn.Module):
        def forward(self, batch):
            seen.append(batch + torch.rand_like(batch))
            return seen[-1]

    byol.learner(backbone(), SIDE, settings(), Noted())(images())
    assert len(seen) == 2 and not torch.equal(*seen)


def test_the_loss_is_the_papers():
    """Grill et al. 2020, eq. 2, both ways round; no gradient through the targets."""
    learner = byol.learner(backbone(), SIDE, settings(use_momentum=True), nn.Identity())
    with torch.no_grad():
        for parameter in learner.target_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # as after some steps
    both = torch.cat([images(), images()])
    prediction = learner.online_predictor(learner.online_encoder(both)[0])
    target = copy.deepcopy(learner.target_encoder)(both)[0].flip(0).detach()
    # The views are equal here, so either half is the other's target.
    cosine = F.cosine_similarity(prediction, target.flip(0), dim=1)
    torch.testing.assert_close(learner(images()), 2 * (2 - 2 * cosine).mean())
    assert 0 <= learner(images()).item() <= 8


# --- the target network


def test_the_target_gets_no_gradient():
    learner = byol.learner(backbone(), SIDE, settings(use_momentum=True), nn.Identity())
    loss_of(learner, images()).backward()
    assert all(p.grad is None and not p.requires_grad for p in learner.target_encoder.parameters())
    trained = dict(learner.online_encoder.named_parameters())
    without = {n for n, p in trained.items() if p.grad is None}
    assert without == {"net.fc.weight", "net.fc.bias"}  # above the layer that is read
    assert all(p.grad is not None for p in learner.online_predictor.parameters())


def test_without_momentum_the_gradient_stops_at_the_target():
    """Then both are one network, and only its online side may be pulled."""
    learner = byol.learner(backbone(), SIDE, settings(use_momentum=False), nn.Identity())
    loss_of(learner, images()).backward()
    found = learner.net.conv.weight.grad.clone()
    learner.zero_grad()
    both = torch.cat([images(), images()])
    projection = learner.online_encoder(both)[0]
    prediction = learner.online_predictor(projection)
    cosine = F.cosine_similarity(prediction, projection.detach(), dim=1)
    (2 * (2 - 2 * cosine).mean()).backward()
    torch.testing.assert_close(learner.net.conv.weight.grad, found, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_the_target_follows_by_its_moving_average(decay):
    chosen = settings(use_momentum=True, moving_average_decay=decay)
    learner = byol.learner(backbone(), SIDE, chosen, nn.Identity())
    before = [p.clone() for p in learner.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in learner.online_encoder.parameters():
            parameter.add_(1.0)
    learner.update_moving_average()
    for old, new, online in zip(
        before, learner.target_encoder.parameters(), learner.online_encoder.parameters()
    ):
        torch.testing.assert_close(new, decay * old + (1 - decay) * online)


def test_the_backbone_that_is_trained_is_the_one_that_was_given():
    model = backbone()
    learner = byol.learner(model, SIDE, settings(), nn.Identity())
    assert any(p is model.conv.weight for p in learner.parameters())


# --- the printed call


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_the_printed_call_is_the_real_one(name):
    """It runs as it stands, and builds what the profile trains."""
    chosen = profiles.get(name).pretrain
    text = byol.call_text(SIDE, chosen)
    views = augment.Views(SIDE, augment.BYOL_VIEW) if chosen.augmentation == "batched" else None
    scope = {"BYOL": BYOL, "model": backbone(), "views": views}
    exec(text, scope)
    printed, ours = scope["learner"], byol.learner(backbone(), SIDE, chosen, views)
    assert shapes(printed) == shapes(ours)
    assert printed.use_momentum == ours.use_momentum == chosen.use_momentum
    assert printed.target_ema_updater.beta == ours.target_ema_updater.beta
    printed.load_state_dict(ours.state_dict())
    batch = images() if views is None else (images() * 255).to(torch.uint8)
    assert torch.equal(loss_of(printed, batch), loss_of(ours, batch))


@pytest.mark.parametrize(
    "change",
    [{"use_momentum": True}, {"moving_average_decay": 0.5}, {"projection_size": 32},
     {"projection_hidden_size": 64}],
)
def test_every_setting_shows_in_the_printed_call(change):
    plain = profiles.get("seed").pretrain
    scope = {"BYOL": lambda model, **options: options, "model": None}
    exec(byol.call_text(SIDE, plain), scope)
    before = scope["learner"]
    exec(byol.call_text(SIDE, dataclasses.replace(plain, **change)), scope)
    defaults = {"use_momentum": True}  # the package's own, which are left out
    assert (defaults | scope["learner"]) == (defaults | before | change)


def test_the_seed_prints_the_originals_call():
    """Letter by letter, but for the argument that came with byol-pytorch 0.8."""
    assert byol.call_text(128, profiles.get("seed").pretrain) == (
        "learner = BYOL(\n"
        "    model,\n"
        "    image_size = 128,\n"
        "    hidden_layer = 'avgpool',\n"
        "    use_momentum = False,\n"
        "    use_simplicial_embeddings = False,\n"
        ")"
    )
