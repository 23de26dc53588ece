"""The backbone equals torchvision's ResNet50, and the head the original report's classifier."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, resnet50

from hw1lib.models import fast_conv, resnet
from tests import processes


def small_backbone(scale=0.125):
    torch.manual_seed(0)
    network = resnet.backbone(scale)
    network(torch.randn(4, 3, 32, 32))  # so that running statistics are not the default
    return network


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_features_are_torchvisions_forward_without_fc(mode):
    network = getattr(small_backbone(), mode)()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features = resnet.features(network, images)
        network.fc = nn.Identity()
        assert torch.equal(features, network(images))
    assert features.shape == (3, resnet.FEATURES)


@pytest.mark.slow
def test_the_real_backbone_is_resnet50():
    """Its text, names and random weights."""
    torch.manual_seed(0)
    reference = resnet50()
    torch.manual_seed(0)
    network = resnet.backbone()
    assert {type(m) for m in network.modules() if isinstance(m, nn.Conv2d)} == {fast_conv.Conv2d}
    assert str(network) == str(reference) and list(network.state_dict()) == list(reference.state_dict())
    assert all(torch.equal(*pair) for pair in zip(network.state_dict().values(), reference.state_dict().values()))


def test_zero_init_residual_starts_blocks_as_the_identity():
    for zero_init in (True, False):
        network = resnet.backbone(0.125, zero_init)
        for block in (m for m in network.modules() if isinstance(m, Bottleneck)):
            x = torch.randn(4, block.conv1.in_channels, 4, 4)
            assert torch.equal(block(x), block.downsample(x).relu()) == zero_init


@pytest.mark.parametrize("mode", [True, False])
def test_the_head_is_the_original_reports(mode):
    head = resnet.Head(65).train(mode)
    layers = nn.Conv1d(2048, 256, 1, stride=1), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 65)
    assert [str(m) for m in head.children()] == [str(m) for m in layers]
    reference = nn.Sequential(*layers[:3], nn.Flatten(), layers[3]).train(mode)
    reference[0].load_state_dict(head.conv.state_dict())
    reference[4].load_state_dict(head.linear.state_dict())
    features, outputs = torch.randn(5, 2048), []
    for forward in (head, lambda x: reference(x.unsqueeze(-1)), lambda x: head.linear(head.activations(x))):
        torch.manual_seed(1)
        outputs.append(forward(features))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@processes.float64()
def test_features_are_standardised_by_the_training_features():
    torch.manual_seed(0)
    features = torch.randn(500, 20) * torch.linspace(1, 3, 20) + torch.linspace(-50, 50, 20)
    head = resnet.Head(3, inputs=20, hidden=20).eval()
    nn.init.eye_(head.conv.weight.data[..., 0])  # so that `activations` returns the first layer's input
    nn.init.zeros_(head.conv.bias)
    head.relu = nn.Identity()
    assert torch.equal(head.activations(features), features)
    head.standardise_by(features)
    expected = (2 * features - features.mean(0)) / features.std(0)
    torch.testing.assert_close(head.activations(2 * features), expected, atol=1e-9, rtol=1e-9)

    features[:, 3] = 7 + 1e-6 * torch.randn(500)  # nearly constant
    head.standardise_by(features)
    assert torch.isclose(head.deviation[3], 0.1 * features.std(0).mean())
    head.standardise_by(torch.zeros(100, 20))
    assert head.activations(torch.zeros(1, 20)).isfinite().all()
    assert {"mean", "deviation"} == head.state_dict().keys() - dict(head.named_parameters()).keys()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_stays_in_eval_mode_and_gets_no_gradient(frozen):
    model = resnet.Classifier(small_backbone(), resnet.Head(3, hidden=4), frozen)
    assert not [n for n in model.state_dict() if n.startswith("backbone.fc")]
    for mode in (True, False, True):
        model.train(mode)
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {m.training for m in norms} == {mode and not frozen} and model.head.training is mode
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    scores = model(images)
    torch.manual_seed(1)
    torch.testing.assert_close(scores, model.head(resnet.features(model.backbone, images)))
    scores.square().sum().backward()
    assert {p.grad is None for p in model.backbone.parameters()} == {frozen}
    assert {p.requires_grad for p in model.backbone.parameters()} == {not frozen}
    assert all(p.grad is not None for p in model.head.parameters())


def test_the_last_layer_is_in_float32_under_autocast():
    head = resnet.Head(5).eval()
    features = torch.randn(4, resnet.FEATURES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        activations, scores = head.activations(features), head(features)
    assert (activations.dtype, scores.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(scores, head.linear(activations.float()))
