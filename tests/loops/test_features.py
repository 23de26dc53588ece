"""Frozen features: what they depend on, and neighbours against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from hw1lib.loops import augment, features
from hw1lib.models import classifier

CPU = torch.device("cpu")


@pytest.fixture
def backbone():
    torch.manual_seed(3)
    network = classifier.backbone(0.125)
    network(torch.randn(8, 3, 32, 32))  # its running statistics are not the default
    return network


def pixels(count=7):
    drawn = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return drawn.to(torch.uint8)


# --- extracting them


def test_features_do_not_depend_on_their_batch(backbone):
    whole = features.extract(backbone, pixels(), CPU)
    assert whole.shape == (7, classifier.FEATURES) and whole.dtype == torch.float32
    for batch in (1, 2, 7, 100):
        parts = features.extract(backbone, pixels(), CPU, batch)
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    turned = features.extract(backbone, pixels().flip(0), CPU)
    torch.testing.assert_close(turned.flip(0), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_extracting_leaves_the_network_as_it_was(backbone, mode):
    """Its mode, and BatchNorm's running statistics; the features are those of eval mode."""
    backbone.train(mode)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    found = features.extract(backbone, pixels(), CPU, batch=3)
    assert {module.training for module in backbone.modules()} == {mode}
    assert all(torch.equal(before[n], v) for n, v in backbone.state_dict().items())
    assert not found.requires_grad
    with torch.no_grad():
        expected = classifier.features(backbone.eval(), augment.normalise(pixels()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_autocast_does_not_reach_features(backbone):
    """Pre-training looks at them inside its own, before training and fine-tuning outside of one.

    Rounding to bfloat16 adds directions, which effective ranks would count.
    """
    expected = features.extract(backbone, pixels(), CPU)
    with torch.autocast("cpu", torch.bfloat16):
        found = features.extract(backbone, pixels(), CPU)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- neighbours


def clouds(rows, seed, classes=4, columns=8):
    """Features around one centre a class, of any length."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    centres = np.random.default_rng(99).normal(size=(classes, columns))
    points = centres[labels] + random.normal(size=(rows, columns))
    lengths = random.uniform(1, 9, (rows, 1))
    return torch.tensor(lengths * points, dtype=torch.float32), labels


@pytest.mark.parametrize("neighbours", [1, 3, 20])
def test_neighbours_are_scikit_learns_by_brute_force(neighbours):
    bank, labels = clouds(90, 0)
    queries, truth = clouds(60, 1)
    model = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
    expected = model.fit(bank.double().numpy(), labels).predict(queries.double().numpy())
    found = features.nearest_class(bank, labels, queries, neighbours)
    assert found.tolist() == expected.tolist()
    assert np.mean(found == truth) > 0.4 and not np.all(found == truth)


def test_neighbours_by_hand():
    """Angles count, lengths do not: the longest vector is the nearest by none of them."""
    degrees = np.radians([0, 10, 80, 90, 100])
    lengths = np.array([1, 1, 1, 1000, 1])[:, None]
    bank = torch.tensor(lengths * np.stack([np.cos(degrees), np.sin(degrees)], 1)).float()
    labels = np.array([7, 7, 2, 2, 5])
    asked = np.radians([4.0, 84.0, 99.0])
    queries = torch.tensor(np.stack([np.cos(asked), np.sin(asked)], 1)).float()
    assert features.nearest_class(bank, labels, queries, 1).tolist() == [7, 2, 5]
    assert features.nearest_class(bank, labels, queries, 2).tolist() == [7, 2, 2]
    assert features.nearest_class(bank, labels, queries, 3).tolist() == [7, 2, 2]


def test_more_neighbours_than_there_are_is_all_of_them():
    """Then the commonest class of the bank is everyone's."""
    bank, _ = clouds(5, 0)
    queries, _ = clouds(6, 1)
    labels = np.array([3, 1, 1, 3, 1])
    assert features.nearest_class(bank, labels, queries, 20).tolist() == [1] * 6
    assert features.nearest_class(bank[:1], labels[:1], queries, 20).tolist() == [3] * 6


def test_a_tie_goes_to_the_lowest_number():
    bank, _ = clouds(4, 0)
    queries, _ = clouds(6, 1)
    for labels, lowest in (([5, 5, 2, 2], 2), ([2, 9, 9, 2], 2), ([8, 6, 7, 9], 6)):
        found = features.nearest_class(bank, np.array(labels), queries, 4)
        assert found.tolist() == [lowest] * 6


# --- colours


def test_colour_statistics_by_hand():
    drawn = np.random.default_rng(0).integers(0, 256, (3, 3, 5, 5)).astype(np.uint8)
    found = features.colour_statistics(torch.from_numpy(drawn))
    flat = drawn.reshape(3, 3, 25) / 255
    expected = np.concatenate([flat.mean(2), flat.std(2, ddof=1)], axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_colours_are_read_from_this_image_alone_and_know_no_places():
    image = pixels(2)
    shuffled = image.flatten(2)[:, :, torch.randperm(32 * 32)].view_as(image)
    found = features.colour_statistics(image)
    torch.testing.assert_close(features.colour_statistics(shuffled), found)
    torch.testing.assert_close(features.colour_statistics(image[1:]), found[1:])
    flat = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(features.colour_statistics(flat), torch.tensor([[0, 0.2, 1, 0, 0, 0]]))
