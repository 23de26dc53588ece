"""Frozen features: eval mode, calibration, and neighbours compared with NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hw1lib.loops import augment, features
from hw1lib.models import resnet

CPU = torch.device("cpu")


def pixels(count=7):
    drawn = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return drawn.to(torch.uint8)


@pytest.mark.parametrize("batch", [3, 100])
def test_features_are_those_of_eval_mode_in_float32(batch):
    """Also inside autocast: rounding to bfloat16 would add directions, which the effective rank counts."""
    torch.manual_seed(3)
    backbone = resnet.backbone(0.125)
    backbone(torch.randn(8, 3, 32, 32))  # running statistics other than the default
    with torch.autocast("cpu", torch.bfloat16):
        extracted = features.extract(backbone, pixels(), CPU, batch)
    assert extracted.shape == (7, resnet.FEATURES) and extracted.dtype == torch.float32 and not extracted.requires_grad
    with torch.no_grad():
        expected = resnet.features(backbone.eval(), augment.normalise(pixels()))
    # float32 rounds features to about 1e-6 of the largest one, bfloat16 to 1e-2.
    torch.testing.assert_close(extracted, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_calibration_is_the_mean_over_shuffled_batches_of_nearly_one_size():
    """A batch of a single image would have no variance in maps of one pixel."""
    backbone, images = resnet.backbone(0.25), pixels(9).sort(dim=0).values
    features.calibrate(backbone, images, CPU, batch=4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).split(3)
    with torch.no_grad():
        maps = [backbone.conv1(augment.normalise(images[rows])) for rows in order]
    expected = torch.stack([part.mean(dim=(0, 2, 3)) for part in maps]).mean(dim=0)
    torch.testing.assert_close(backbone.bn1.running_mean, expected, atol=1e-5, rtol=1e-4)
    assert backbone.training and backbone.bn1.momentum == 0.1


# --- neighbours


def clouds(rows, seed):
    """Features of any length around one centre for each of four classes, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rows)
    points = np.random.default_rng(99).normal(size=(4, 8))[labels] + rng.normal(size=(rows, 8))
    return torch.tensor(rng.uniform(1, 9, (rows, 1)) * points, dtype=torch.float32), labels


@pytest.mark.parametrize("neighbours", [1, 3, 20])
def test_neighbours_are_those_of_the_smallest_angle(neighbours):
    (bank, labels), (queries, truth) = clouds(90, 0), clouds(60, 1)
    near = np.argsort(-F.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2).numpy())
    expected = [np.bincount(row).argmax() for row in labels[near[:, :neighbours]]]
    predicted = features.nearest_class(bank, labels, queries, neighbours)
    assert predicted.tolist() == expected and 0.4 < np.mean(predicted == truth) < 1


def test_colour_statistics_are_numpys():
    flat = pixels(3).numpy().reshape(3, 3, -1) / 255
    expected = np.concatenate([flat.mean(2), flat.std(2, ddof=1)], axis=1)
    np.testing.assert_allclose(features.colour_statistics(pixels(3)), expected, rtol=1e-5)
