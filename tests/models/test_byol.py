"""BYOL: the learner is the package's own, called as the report says; our loss is its loss."""

import copy
import dataclasses
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from byol_pytorch import BYOL
from torch import nn

from hw1lib import profiles
from hw1lib.loops import augment
from hw1lib.models import byol, classifier
from hw1lib.settings import Pretrain

SIDE = 16
PLAIN = (nn.Identity(), nn.Identity())  # views that change nothing


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
    return Pretrain(**{**small, **changes})


def images(count=6):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def pixels(count=6, side=SIDE):
    """A batch as pre-training has it: bytes."""
    drawn = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return (drawn * 255).to(torch.uint8)


def loss_of(learner, batch, forward=None):
    """The loss with the same draws each time; the package's own augmentation uses `random`."""
    random.seed(3)
    torch.manual_seed(3)
    return learner(batch) if forward is None else forward(learner, batch)


def moved(learner):
    """The learner with a target network away from the online one, as after some steps."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.target_encoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.2 * parameter.abs().mean() * noise
    return learner


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
    views = augment.two_views(SIDE, settings(), overhead=False)
    ours = byol.learner(backbone(), SIDE, settings(use_momentum=momentum), views)
    literal = BYOL(
        backbone(), SIDE, hidden_layer="avgpool", projection_size=8, projection_hidden_size=16,
        use_momentum=momentum, use_simplicial_embeddings=False,
        augment_fn=views[0], augment_fn2=views[1],
    )
    literal.load_state_dict(ours.state_dict())
    assert torch.equal(loss_of(ours, pixels()), loss_of(literal, pixels()))


class Brighter(nn.Module):
    """A view that can be told from another, and notes each one it gave."""

    def __init__(self, amount):
        super().__init__()
        self.amount, self.given = amount, []

    def forward(self, batch):
        self.given.append(batch + self.amount + torch.rand_like(batch))
        return self.given[-1]


@pytest.mark.parametrize("forward", [None, byol.loss])
def test_each_view_is_drawn_once_by_its_own_module(forward):
    """Their recipes differ; a fault in the order would show one of them twice."""
    views = Brighter(1), Brighter(5)
    learner = byol.learner(backbone(), SIDE, settings(), views)
    seen = []
    learner.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss_of(learner, images(), forward)
    (first,), (second,) = (view.given for view in views)
    assert (first < 3).all() and (second > 3).all() and not torch.equal(first + 4, second)
    assert all(torch.equal(batch, torch.cat([first, second])) for batch in seen)


# --- the loss


@pytest.mark.parametrize("forward", [None, byol.loss])
def test_the_loss_is_the_papers(forward):
    """Grill et al. 2020, eq. 2, both ways round; each view predicts the other one's target."""
    views = Brighter(0), Brighter(0.5)
    learner = moved(byol.learner(backbone(), SIDE, settings(use_momentum=True), views))
    found = loss_of(learner, images(), forward)
    both = torch.cat([view.given[-1] for view in views])
    one, two = learner.online_predictor(learner.online_encoder(both)[0]).chunk(2)
    target_one, target_two = copy.deepcopy(learner.target_encoder)(both)[0].chunk(2)
    there, back = F.cosine_similarity(one, target_two), F.cosine_similarity(two, target_one)
    torch.testing.assert_close(found, (2 - 2 * there + 2 - 2 * back).mean())
    assert 0 <= found <= 8


def real(momentum):
    """A ResNet as pre-training has it, only shrunk, under a small projector."""
    torch.manual_seed(0)
    chosen = settings(projection_size=16, projection_hidden_size=32, use_momentum=momentum)
    views = augment.two_views(32, chosen, overhead=True)
    learner = byol.learner(classifier.backbone(0.25), 32, chosen, views)
    return moved(learner) if momentum else learner


def step(momentum, forward):
    """Loss, gradients by name, and how often BatchNorm's running statistics were updated."""
    learner = real(momentum)
    before = learner.net.bn1.num_batches_tracked.item()
    value = loss_of(learner, pixels(side=32), forward)
    value.backward()
    gradients = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
    return value, gradients, learner.net.bn1.num_batches_tracked.item() - before


@pytest.mark.parametrize("momentum", [True, False])
def test_one_pass_is_the_packages_loss_and_so_is_every_gradient(momentum):
    """Same weights, same draws. A parameter's error is held against its largest gradient.

    NOTE: biases under a BatchNorm have gradients of rounding errors, hence the least scale.
    """
    value, found, passes = step(momentum, byol.loss)
    reference, expected, passes_of_package = step(momentum, None)
    torch.testing.assert_close(value, reference, atol=1e-5, rtol=0)
    assert found.keys() == expected.keys() and len(found) > 60
    for name, gradient in expected.items():
        scale = max(gradient.abs().max().item(), 1e-2)
        assert (found[name] - gradient).abs().max() <= 1e-5 * scale, name
    assert max(g.abs().max() for g in expected.values()) > 0.1  # there is something to compare
    # The only difference: without momentum the package sends the views through twice.
    assert (passes, passes_of_package) == (1, 1 if momentum else 2)


def test_one_pass_takes_the_packages_own_augmentation_too():
    learner = byol.learner(backbone(), SIDE, settings())
    found, expected = (loss_of(learner, images(), forward) for forward in (byol.loss, None))
    torch.testing.assert_close(found, expected)


def test_perfect_predictions_cost_nothing_and_opposite_ones_eight():
    target = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    assert byol.regression(target, target).item() == pytest.approx(0, abs=1e-5)
    assert byol.regression(-target, target).item() == pytest.approx(8, abs=1e-5)
    across = torch.stack([-target[:, 1], target[:, 0]], dim=1)  # at a right angle
    assert byol.regression(across, target[:, :2]).item() == pytest.approx(4, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_loss_is_in_range_whatever_the_scale(scale):
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(50, 8, generator=generator) for _ in range(2))
    found = byol.regression(scale * prediction, target)
    torch.testing.assert_close(found, byol.regression(prediction, target))
    for row in range(50):  # of a single image, too
        one = byol.regression(scale * prediction[row : row + 1], target[row : row + 1])
        assert -1e-5 <= one <= 8 + 1e-5


def test_cosines_are_float32_under_autocast():
    """Near 1 bfloat16 has steps of 1/128 or more; a converging loss would not be seen to fall."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 256, generator=generator)
    near = (target + 0.05 * torch.randn(64, 256, generator=generator)).bfloat16()
    target = target.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = byol.regression(near, target)
    exact = 4 * (1 - F.cosine_similarity(near.double(), target.double())).mean()
    assert found.dtype == torch.float32 and 0 < exact < 0.01
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize("momentum", [True, False])
def test_the_loss_under_autocast_is_nearly_that_of_float32(momentum):
    """The networks run in bfloat16, the loss does not."""
    expected = loss_of(real(momentum), pixels(16, 32), byol.loss)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(real(momentum), pixels(16, 32), byol.loss)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), abs=0.1)


# --- the target network


@pytest.mark.parametrize("forward", [None, byol.loss])
def test_the_target_gets_no_gradient(forward):
    learner = byol.learner(backbone(), SIDE, settings(use_momentum=True), PLAIN)
    loss_of(learner, images(), forward).backward()
    assert all(p.grad is None and not p.requires_grad for p in learner.target_encoder.parameters())
    trained = dict(learner.online_encoder.named_parameters())
    without = {n for n, p in trained.items() if p.grad is None}
    assert without == {"net.fc.weight", "net.fc.bias"}  # above the layer that is read
    assert all(p.grad is not None for p in learner.online_predictor.parameters())


@pytest.mark.parametrize("forward", [None, byol.loss])
def test_without_momentum_the_gradient_stops_at_the_target(forward):
    """Then both are one network, and only its online side may be pulled."""
    learner = byol.learner(backbone(), SIDE, settings(use_momentum=False), PLAIN)
    loss_of(learner, images(), forward).backward()
    found = learner.net.conv.weight.grad.clone()
    learner.zero_grad()
    both = torch.cat([images(), images()])
    projection = learner.online_encoder(both)[0]
    prediction = learner.online_predictor(projection)
    cosine = F.cosine_similarity(prediction, projection.detach(), dim=1)
    (2 * (2 - 2 * cosine).mean()).backward()
    torch.testing.assert_close(learner.net.conv.weight.grad, found, atol=1e-6, rtol=1e-4)


def test_the_decay_rises_from_its_base_to_one():
    """Grill et al. 2020, section 3.3: 1 - (1 - base) · (cos(π · share) + 1) / 2."""
    for base in (0.0, 0.5, 0.99, 0.996):
        assert byol.decay(base, 0) == pytest.approx(base, abs=1e-12)
        assert byol.decay(base, 1) == pytest.approx(1, abs=1e-12)
        assert byol.decay(base, 0.5) == pytest.approx((1 + base) / 2)
        assert byol.decay(base, 1 / 3) == pytest.approx(1 - 0.75 * (1 - base))  # cos 60° = 1/2
        values = [byol.decay(base, i / 50) for i in range(51)]
        assert all(later > sooner for sooner, later in itertools.pairwise(values))
    assert {byol.decay(1.0, i / 50) for i in range(51)} == {1.0}


@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_the_packages_moving_average_is_the_decay_it_was_given(decay):
    chosen = settings(use_momentum=True, moving_average_decay=decay)
    learner = byol.learner(backbone(), SIDE, chosen, PLAIN)
    before = [p.clone() for p in learner.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in learner.online_encoder.parameters():
            parameter.add_(1.0)
    learner.update_moving_average()
    for old, new, online in zip(
        before, learner.target_encoder.parameters(), learner.online_encoder.parameters()
    ):
        torch.testing.assert_close(new, decay * old + (1 - decay) * online)


def apart():
    """A learner whose online network went away from its target in everything it holds."""
    learner = byol.learner(backbone(), SIDE, settings(use_momentum=True), PLAIN)
    generator = torch.Generator().manual_seed(4)
    for value in learner.online_encoder.state_dict().values():
        if value.is_floating_point():
            value += torch.rand(value.shape, generator=generator) + 0.1
        else:
            value += 7
    return learner


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99, 1.0])
def test_the_target_follows_in_parameters_and_statistics(decay):
    """Counters cannot be averaged: they are the online network's. The online network stays."""
    learner = apart()
    target, online = copied(learner.target_encoder), copied(learner.online_encoder)
    byol.follow(learner, decay)
    after = learner.target_encoder.state_dict()
    kinds = {True: 0, False: 0}
    for name, value in after.items():
        kinds[value.is_floating_point()] += 1
        if not value.is_floating_point() or decay == 0:
            assert torch.equal(value, online[name]), name
        elif decay == 1:
            assert torch.equal(value, target[name]), name
        else:
            expected = decay * target[name] + (1 - decay) * online[name]
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert kinds[False] == 2 and any("running_var" in name for name in after)
    assert all(torch.equal(online[n], v) for n, v in learner.online_encoder.state_dict().items())
    assert not any(p.requires_grad for p in learner.target_encoder.parameters())


def test_on_parameters_our_average_is_the_packages():
    """At its constant decay; statistics are where the two differ."""
    ours, package = apart(), apart()
    byol.follow(ours, 0.99)  # the profile's default, which `apart` trains with
    package.update_moving_average()
    expected = dict(package.target_encoder.named_parameters())
    for name, parameter in ours.target_encoder.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=1e-5)
    name = "net.norm.running_mean"
    still = package.target_encoder.state_dict()[name]
    assert not torch.allclose(ours.target_encoder.state_dict()[name], still)


def test_the_backbone_that_is_trained_is_the_one_that_was_given():
    model = backbone()
    learner = byol.learner(model, SIDE, settings(), PLAIN)
    assert any(p is model.conv.weight for p in learner.parameters())


# --- the printed call


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_the_printed_call_is_the_real_one(name):
    """It runs as it stands, and builds what the profile trains."""
    chosen = profiles.get(name).pretrain
    text = byol.call_text(SIDE, chosen)
    batched = chosen.augmentation == "batched"
    views = augment.two_views(SIDE, chosen, overhead=True) if batched else None
    scope = {"BYOL": BYOL, "model": backbone(), "views": views}
    exec(text, scope)
    printed, ours = scope["learner"], byol.learner(backbone(), SIDE, chosen, views)
    assert shapes(printed) == shapes(ours)
    assert printed.use_momentum == ours.use_momentum == chosen.use_momentum
    assert printed.target_ema_updater.beta == ours.target_ema_updater.beta
    printed.load_state_dict(ours.state_dict())
    batch = images() if views is None else pixels()
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
