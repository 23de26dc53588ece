"""Frozen features: what they depend on, and neighbours against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hw1lib.loops import augment, features
from hw1lib.models import resnet

CPU = torch.device("cpu")


@pytest.fixture
def backbone():
    torch.manual_seed(3)
    network = resnet.backbone(0.125)
    network(torch.randn(8, 3, 32, 32))  # its running statistics are not the default
    return network


def pixels(count=7):
    drawn = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return drawn.to(torch.uint8)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_features_are_those_of_eval_mode_and_leave_the_network_as_it_was(backbone, mode, batch):
    """Batch by batch, and outside of autocast: rounding to bfloat16 adds directions, which effective ranks would count.

    Pre-training looks at them inside its own, before training and fine-tuning outside of one.
    """
    backbone.train(mode)
    with torch.autocast("cpu", torch.bfloat16):
        found = features.extract(backbone, pixels(), CPU, batch)
    assert {module.training for module in backbone.modules()} == {mode}
    assert found.shape == (7, resnet.FEATURES) and found.dtype == torch.float32 and not found.requires_grad
    with torch.no_grad():
        expected = resnet.features(backbone.eval(), augment.normalise(pixels()))
    # float32 rounds features to about 1e-6 of the largest one, bfloat16 to 1e-2.
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_calibration_is_the_mean_over_mixed_batches_of_one_size():
    """Images lie class by class; no batch may be left with a single one, whose map of one pixel has no spread."""
    backbone = resnet.backbone(0.25)
    images = pixels(9).sort(dim=0).values
    features.calibrate(backbone, images, CPU, batch=4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).split(3)
    with torch.no_grad():
        maps = [backbone.conv1(augment.normalise(images[rows])) for rows in order]
    expected = torch.stack([part.mean(dim=(0, 2, 3)) for part in maps]).mean(dim=0)
    torch.testing.assert_close(backbone.bn1.running_mean, expected, atol=1e-5, rtol=1e-4)
    assert backbone.training and backbone.bn1.momentum == 0.1


# --- neighbours


def clouds(rows, seed):
    """Features around one centre for each of four classes, of any length."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, rows)
    points = np.random.default_rng(99).normal(size=(4, 8))[labels] + random.normal(size=(rows, 8))
    return torch.tensor(random.uniform(1, 9, (rows, 1)) * points, dtype=torch.float32), labels


@pytest.mark.parametrize("neighbours", [1, 3, 20])
def test_neighbours_are_those_of_the_smallest_angle(neighbours):
    """Whatever their lengths; the commonest class of them, and of equals the lower one."""
    (bank, labels), (queries, truth) = clouds(90, 0), clouds(60, 1)
    near = np.argsort(-F.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2).numpy())
    expected = [np.bincount(found).argmax() for found in labels[near[:, :neighbours]]]
    found = features.nearest_class(bank, labels, queries, neighbours)
    assert found.tolist() == expected and 0.4 < np.mean(found == truth) < 1


@pytest.mark.parametrize(("labels", "lowest"), [([5, 5, 2, 2], 2), ([8, 6, 7, 9], 6), ([1, 3, 3], 3), ([4], 4)])
def test_a_tie_goes_to_the_lower_class_and_all_there_are_are_asked(labels, lowest):
    """More neighbours than there are is all of them: then the commonest class of the bank is everyone's."""
    found = features.nearest_class(clouds(len(labels), 0)[0], np.array(labels), clouds(6, 1)[0], 4)
    assert found.tolist() == [lowest] * 6


def test_colour_statistics_by_hand():
    found = features.colour_statistics(pixels(3))
    flat = pixels(3).numpy().reshape(3, 3, -1) / 255
    np.testing.assert_allclose(found, np.concatenate([flat.mean(2), flat.std(2, ddof=1)], axis=1), rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("work", [features.extract, features.calibrate])
def test_an_interrupt_leaves_the_backbone_in_its_mode(monkeypatch, work, training):
    """And BatchNorm with its momentum, wherever in the pass it comes."""
    backbone = resnet.backbone(0.125).train(training)
    momentum = {name: m.momentum for name, m in backbone.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    calls = iter([features.resnet.features, None])
    real = features.resnet.features

    def interrupted(*words):
        if next(calls) is None:
            raise KeyboardInterrupt
        return real(*words)

    monkeypatch.setattr(features.resnet, "features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(backbone, torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.device("cpu"), batch=2)
    assert backbone.training == training and all(m.training == training for m in backbone.modules())
    modules = dict(backbone.named_modules())
    assert {name: modules[name].momentum for name in momentum} == momentum
