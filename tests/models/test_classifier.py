"""The backbone and the one head: torchvision's features, the original's layers."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, resnet50

from hw1lib.models import classifier


def network(scale=0.125):
    torch.manual_seed(0)
    made = classifier.backbone(scale)
    made(torch.randn(4, 3, 32, 32))  # running statistics that are not the default
    return made


@pytest.mark.parametrize("scale", [0.125, 0.5])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_features_are_torchvisions_forward_without_fc(mode, scale):
    made = getattr(network(scale), mode)()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        found = classifier.features(made, images)
        made.fc = nn.Identity()
        assert torch.equal(found, made(images))
    assert found.shape == (3, classifier.FEATURES)


def test_the_real_backbone_is_resnet50():
    """Its weights are those that torchvision draws from the same seed, but for zeros where they are asked for."""
    states = []
    for made in (resnet50, classifier.backbone, lambda: classifier.backbone(1.0, True)):
        torch.manual_seed(0)
        states.append(made().state_dict())
    expected, plain, zeroed = states
    assert list(expected) == list(plain) == list(zeroed)
    differ = {name for name, v in zeroed.items() if not torch.equal(v, expected[name])}
    assert all(torch.equal(v, expected[name]) for name, v in plain.items())
    assert len(differ) == 16 and all(name.endswith(".bn3.weight") for name in differ)


def test_blocks_may_begin_as_identity():
    """The last BatchNorm of each starts at zero: only the way past the block is left."""
    torch.manual_seed(0)
    blocks = [m for m in classifier.backbone(0.125, True).modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == 4
    for block in blocks:
        x = torch.randn(4, block.conv1.in_channels, 4, 4)
        torch.testing.assert_close(block(x), block.downsample(x).relu(), atol=0, rtol=0)


@pytest.mark.parametrize("mode", [True, False])
def test_the_head_is_the_four_printed_layers(mode):
    """nn.Conv1d(2048, 256, 1, stride=1), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 65)."""
    head = classifier.Head(65).train(mode)
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


def entering(head, features):
    """What the head's first layer gets."""
    seen = []
    handle = head.conv.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    head(features)
    handle.remove()
    return seen[0].squeeze(-1)


def test_features_are_standardised_by_the_training_ones():
    """Which are not, until it is asked for; nearly constant ones are not blown up."""
    torch.manual_seed(0)
    features = torch.randn(500, 20) * torch.linspace(1, 3, 20) + torch.linspace(-50, 50, 20)
    head = classifier.Head(3, inputs=20, hidden=4)
    assert torch.equal(entering(head, features), features)
    head.standardise_by(features)
    inside, other = entering(head, features), entering(head, 2 * features)
    torch.testing.assert_close(inside.mean(0), torch.zeros(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.std(0), torch.ones(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(other, (2 * features - features.mean(0)) / features.std(0), atol=1e-3, rtol=1e-4)

    features[:, 3] = 7 + 1e-6 * torch.randn(500)
    head.standardise_by(features)
    assert torch.isclose(head.deviation[3], 0.1 * features.std(0).mean())
    head.standardise_by(torch.zeros(100, 20))
    assert entering(head, torch.zeros(1, 20)).isfinite().all()


def test_mean_and_deviation_travel_with_the_weights_and_are_not_trained():
    head, other = (classifier.Head(3, inputs=20, hidden=4) for _ in range(2))
    features = torch.randn(50, 20) * 5 + 1
    head.standardise_by(features)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head.eval()(features), other.eval()(features))
    assert {"mean", "deviation"}.isdisjoint(name for name, _ in head.named_parameters())


# --- the whole


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_stays_in_eval_mode_and_gets_no_gradient(frozen):
    """Else BatchNorm's running statistics would drift."""
    model = classifier.Classifier(network(), classifier.Head(3, hidden=4), frozen)
    assert not [n for n in model.state_dict() if n.startswith("backbone.fc")]  # unused, so it is gone
    for mode in (True, False, True):
        model.train(mode)
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {m.training for m in norms} == {mode and not frozen} and model.head.training is mode
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    found = model(images)
    torch.manual_seed(1)
    torch.testing.assert_close(found, model.head(classifier.features(model.backbone, images)))
    found.square().sum().backward()
    assert {p.grad is None for p in model.backbone.parameters()} == {frozen}
    assert {p.requires_grad for p in model.backbone.parameters()} == {not frozen}
    assert all(p.grad is not None for p in model.head.parameters())
