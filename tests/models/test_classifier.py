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


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_features_are_torchvisions_forward_without_fc(mode):
    made = getattr(network(), mode)()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        found = classifier.features(made, images)
        made.fc = nn.Identity()
        expected = made(images)
    assert found.shape == (3, classifier.FEATURES)
    assert torch.equal(found, expected)


def test_any_scale_gives_as_many_features():
    for scale in (0.125, 0.25, 0.5):
        made = network(scale).eval()
        assert made.fc.in_features == classifier.FEATURES
        with torch.no_grad():
            shape = classifier.features(made, torch.randn(1, 3, 32, 32)).shape
        assert tuple(shape) == (1, classifier.FEATURES)


def test_the_real_backbone_is_resnet50():
    with torch.device("meta"):
        made = classifier.backbone()
    assert sum(p.numel() for p in made.parameters()) == 25_557_032
    assert [len(getattr(made, f"layer{i}")) for i in (1, 2, 3, 4)] == [3, 4, 6, 3]


@pytest.mark.parametrize("scale", [0.125, 1.0])
def test_blocks_may_begin_as_identity(scale):
    """The last BatchNorm of each starts at zero: only the way past the block is left."""
    torch.manual_seed(0)
    made = classifier.backbone(scale, zero_init_residual=True)
    blocks = [m for m in made.modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == (16 if scale == 1 else 4)
    assert all((block.bn3.weight == 0).all() for block in blocks)
    block = next((b for b in blocks if b.downsample is None), blocks[0])
    x = torch.randn(4, block.conv1.in_channels, 4, 4)
    for mode in (True, False):
        block.train(mode)
        past = x if block.downsample is None else block.downsample(x)
        torch.testing.assert_close(block(x), past.relu(), atol=0, rtol=0)


def test_else_the_weights_are_those_that_torchvision_draws():
    """The same from the same seed, but for the zeros where they are asked for."""
    states = []
    for made in (resnet50, classifier.backbone, lambda: classifier.backbone(1.0, True)):
        torch.manual_seed(0)
        states.append(made().state_dict())
    expected, plain, zeroed = states
    assert list(expected) == list(plain) == list(zeroed)
    differ = {name for name, v in zeroed.items() if not torch.equal(v, expected[name])}
    assert all(torch.equal(v, expected[name]) for name, v in plain.items())
    assert len(differ) == 16 and all(name.endswith(".bn3.weight") for name in differ)


def test_the_head_is_the_four_printed_layers():
    """nn.Conv1d(2048, 256, 1, stride=1), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 65)."""
    torch.manual_seed(0)
    head = classifier.Head(65)
    reference = nn.Sequential(
        nn.Conv1d(2048, 256, 1, stride=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(256, 65),
    )
    own = [str(m) for m in head.children()]
    assert own == [str(m) for m in reference if not isinstance(m, nn.Flatten)]
    reference[0].load_state_dict(head.conv.state_dict())
    reference[4].load_state_dict(head.linear.state_dict())
    features = torch.randn(5, 2048)
    for mode in (True, False):
        head.train(mode), reference.train(mode)
        torch.manual_seed(1)
        found = head(features)
        torch.manual_seed(1)
        torch.testing.assert_close(found, reference(features.unsqueeze(-1)))


def test_activations_are_what_enters_the_last_layer():
    head = classifier.Head(7, inputs=20, hidden=9)
    features = torch.randn(5, 20)
    for mode in (True, False):
        head.train(mode)
        torch.manual_seed(1)
        activations = head.activations(features)
        torch.manual_seed(1)
        assert activations.shape == (5, 9)
        assert torch.equal(head(features), head.linear(activations))


# --- standardising


def entering(head, features):
    """What the head's first layer gets."""
    seen = []
    handle = head.conv.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    head(features)
    handle.remove()
    return seen[0].squeeze(-1)


def test_training_features_get_zero_mean_and_unit_deviation():
    torch.manual_seed(0)
    features = torch.randn(500, 20) * torch.linspace(1, 3, 20) + torch.linspace(-50, 50, 20)
    head = classifier.Head(3, inputs=20, hidden=4)
    assert torch.equal(entering(head, features), features)  # until it is asked for
    head.standardise_by(features)
    inside = entering(head, features)
    torch.testing.assert_close(inside.mean(0), torch.zeros(20), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.std(0), torch.ones(20), atol=1e-4, rtol=0)


def test_other_features_are_measured_by_the_training_ones():
    head = classifier.Head(3, inputs=2, hidden=4)
    head.standardise_by(torch.tensor([[0.0, 10.0], [2.0, 14.0]]))  # deviations √2 and 2√2
    expected = torch.tensor([[(5 - 1) / 2**0.5, (12 - 12) / 8**0.5]])
    torch.testing.assert_close(entering(head, torch.tensor([[5.0, 12.0]])), expected)


def test_constant_features_are_not_blown_up():
    torch.manual_seed(0)
    features = torch.randn(100, 20)
    features[:, 3] = 7
    features[:, 4] = 1 + 1e-6 * torch.randn(100)
    head = classifier.Head(3, inputs=20, hidden=4)
    head.standardise_by(features)
    assert entering(head, features).abs().max() < 10
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
def test_frozen_keeps_the_backbone_in_eval_mode(frozen):
    model = classifier.Classifier(network(), classifier.Head(3, hidden=4), frozen)
    for mode in (True, False, True):
        model.train(mode)
        assert model.head.training is mode
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {m.training for m in norms} == {mode and not frozen}


def test_a_classifier_is_its_head_on_its_backbones_features():
    model = classifier.Classifier(network(), classifier.Head(3, hidden=4)).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model.head(classifier.features(model.backbone, images))
    torch.testing.assert_close(model(images), expected)


def test_the_unused_last_layer_is_gone():
    """Else it would count as a parameter of ours and be kept with the weights."""
    model = classifier.Classifier(network(), classifier.Head(3, hidden=4))
    assert not [n for n in model.state_dict() if n.startswith("backbone.fc")]
