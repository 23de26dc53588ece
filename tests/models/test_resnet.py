"""The backbone and the one head: torchvision's features, the original's layers."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, resnet50

from hw1lib.models import fast_conv, resnet
from tests import processes


def network(scale=0.125):
    torch.manual_seed(0)
    made = resnet.backbone(scale)
    made(torch.randn(4, 3, 32, 32))  # running statistics that are not the default
    return made


@pytest.mark.parametrize("scale", [0.125, 0.5])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_features_are_torchvisions_forward_without_fc(mode, scale):
    made = getattr(network(scale), mode)()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        found = resnet.features(made, images)
        made.fc = nn.Identity()
        assert torch.equal(found, made(images))
    assert found.shape == (3, resnet.FEATURES)


@pytest.mark.slow
@processes.float64()
def test_the_real_backbone_is_resnet50():
    """In text, names, numbers, and weights drawn from the same seed; a copy, as of byol-pytorch, is independent."""
    torch.manual_seed(0)
    plain = resnet50()
    torch.manual_seed(0)
    ours = resnet.backbone()
    assert {type(m) for m in ours.modules() if isinstance(m, nn.Conv2d)} == {fast_conv.Conv2d}
    assert str(ours) == str(plain) and list(ours.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(*pair) for pair in zip(ours.state_dict().values(), plain.state_dict().values()))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for mode in ("eval", "train"):  # in train BatchNorm takes the batch's own statistics
        twin = copy.deepcopy(ours)
        with torch.no_grad():
            found, expected = (getattr(made, mode)()(images) for made in (twin, plain))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
        assert type(twin.conv1) is fast_conv.Conv2d and twin.conv1.weight is not ours.conv1.weight


def test_blocks_may_begin_as_identity():
    """The last BatchNorm of each starts at zero: only the way past the block is left, and nothing else changes."""
    states = []
    for zeroed in (True, False):
        torch.manual_seed(0)
        network = resnet.backbone(0.125, zeroed)
        states.append(network.state_dict())
        for block in (m for m in network.modules() if isinstance(m, Bottleneck)):
            x = torch.randn(4, block.conv1.in_channels, 4, 4)
            assert torch.equal(block(x), block.downsample(x).relu()) == zeroed
    differ = {name for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    assert {name for name in differ if name.endswith(".weight")} == {f"layer{n}.0.bn3.weight" for n in range(1, 5)}


@pytest.mark.parametrize("mode", [True, False])
def test_the_head_is_the_four_printed_layers(mode):
    """nn.Conv1d(2048, 256, 1, stride=1), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 65)."""
    head = resnet.Head(65).train(mode)
    printed = nn.Conv1d(2048, 256, 1, stride=1), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 65)
    assert [str(m) for m in head.children()] == [str(m) for m in printed]
    reference = nn.Sequential(*printed[:3], nn.Flatten(), printed[3]).train(mode)
    reference[0].load_state_dict(head.conv.state_dict())
    reference[4].load_state_dict(head.linear.state_dict())
    features, found = torch.randn(5, 2048), []
    for forward in (head, lambda x: reference(x.unsqueeze(-1)), lambda x: head.linear(head.activations(x))):
        torch.manual_seed(1)
        found.append(forward(features))
    torch.testing.assert_close(found[0], found[1])
    assert torch.equal(found[0], found[2])


# --- standardising


@processes.float64()
def test_features_are_standardised_by_the_training_ones():
    """Which are not, until it is asked for; nearly constant ones are not blown up."""
    torch.manual_seed(0)
    features = torch.randn(500, 20) * torch.linspace(1, 3, 20) + torch.linspace(-50, 50, 20)
    head = resnet.Head(3, inputs=20, hidden=20).eval()
    nn.init.eye_(head.conv.weight.data[..., 0])  # so that `activations` are what the first layer gets
    nn.init.zeros_(head.conv.bias)
    head.relu = nn.Identity()
    assert torch.equal(head.activations(features), features)
    head.standardise_by(features)
    inside, other = head.activations(features), head.activations(2 * features)
    torch.testing.assert_close(inside.mean(0), torch.zeros(20), atol=1e-9, rtol=0)
    torch.testing.assert_close(inside.std(0), torch.ones(20), atol=1e-9, rtol=0)
    torch.testing.assert_close(other, (2 * features - features.mean(0)) / features.std(0))

    features[:, 3] = 7 + 1e-6 * torch.randn(500)
    head.standardise_by(features)
    assert torch.isclose(head.deviation[3], 0.1 * features.std(0).mean())
    head.standardise_by(torch.zeros(100, 20))
    assert head.activations(torch.zeros(1, 20)).isfinite().all()
    # Mean and deviation travel with the weights, and are not trained.
    assert {"mean", "deviation"} == head.state_dict().keys() - dict(head.named_parameters()).keys()


# --- the whole


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_stays_in_eval_mode_and_gets_no_gradient(frozen):
    """Else BatchNorm's running statistics would drift."""
    model = resnet.Classifier(network(), resnet.Head(3, hidden=4), frozen)
    assert not [n for n in model.state_dict() if n.startswith("backbone.fc")]  # unused, so it is gone
    for mode in (True, False, True):
        model.train(mode)
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {m.training for m in norms} == {mode and not frozen} and model.head.training is mode
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    found = model(images)
    torch.manual_seed(1)
    torch.testing.assert_close(found, model.head(resnet.features(model.backbone, images)))
    found.square().sum().backward()
    assert {p.grad is None for p in model.backbone.parameters()} == {frozen}
    assert {p.requires_grad for p in model.backbone.parameters()} == {not frozen}
    assert all(p.grad is not None for p in model.head.parameters())


def test_the_last_layer_is_in_float32_wherever_the_others_run():
    head = resnet.Head(5).eval()
    features = torch.randn(4, resnet.FEATURES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        activations, scores = head.activations(features), head(features)
    assert (activations.dtype, scores.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(scores, head.linear(activations.float()))
