"""The probe of pre-training: what it may look at, and that its numbers mean what they say."""

import dataclasses

import numpy as np
import pytest
import torch

from hw1lib.data import images
from hw1lib.data.layout import Split
from hw1lib.errors import UserError
from hw1lib.loops import features, probe
from hw1lib.measures import representation
from hw1lib.models import classifier
from tests.conftest import picture

CPU = torch.device("cpu")
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220))


def make_pool(folder, count=30, labelled=True):
    """Images whose colour is their class; in no order of classes."""
    folder.mkdir()
    labels = np.random.default_rng(0).permutation(np.arange(count) % 3)
    names = tuple(f"{number:05d}.jpg" for number in range(count))
    for number, (name, label) in enumerate(zip(names, labels)):
        picture(number, colour=COLOURS[label]).save(folder / name, quality=95)
    return Split(folder, names, labels, ("red", "green", "blue")) if labelled else Split(folder, names)


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path / "pool")


def backbone():
    torch.manual_seed(0)
    return classifier.backbone(0.125)


@pytest.mark.parametrize("count", [10, 11, 57])
def test_no_image_is_both_asked_for_and_known(tmp_path, count):
    """Its nearest neighbour would be itself; nor is one left out."""
    whole = make_pool(tmp_path / "pool", count)
    made, rest = probe.probe_of(whole, 32, CPU)
    asked, bank = set(made.held_out.files), set(made.bank.files)
    assert not asked & bank and bank == set(rest.files)
    assert asked | bank == set(whole.files) and len(asked) == count // 10
    assert torch.equal(made.queries, torch.from_numpy(images.load(made.held_out, 32)))
    assert torch.equal(made.images, torch.from_numpy(images.load(made.bank, 32)))


def test_bank_and_queries_are_limited_but_what_is_left_is_trained_on(pool, monkeypatch):
    monkeypatch.setattr(probe, "BANK", 12)
    monkeypatch.setattr(probe, "QUERIES", 2)
    made, rest = probe.probe_of(pool, 32, CPU)
    assert (len(made.bank), len(made.held_out), len(rest)) == (12, 2, 28)
    assert set(made.bank.files) < set(rest.files)
    assert not set(made.held_out.files) & set(rest.files)


@pytest.mark.parametrize(("count", "labelled"), [(30, False), (9, True)])
def test_without_labels_or_in_a_tiny_pool_only_the_spread_is_watched(tmp_path, count, labelled):
    whole = make_pool(tmp_path / "pool", count, labelled)
    made, rest = probe.probe_of(whole, 32, CPU)
    assert rest is whole and not made.asks and made.bank.files == whole.files
    assert made(backbone()).keys() == {"deviation", "effective_rank"}


@pytest.mark.parametrize(("shuffled", "expected"), [(False, 1.0), (True, 1 / 3)])
def test_features_that_separate_the_classes_are_right_and_unknowable_labels_guessed(
    tmp_path, monkeypatch, shuffled, expected
):
    """With fewer neighbours than the small pool has images of a class."""
    monkeypatch.setattr(probe, "NEIGHBOURS", 5)
    monkeypatch.setattr(features, "extract", lambda backbone, images, device: features.colour_statistics(images)[:, :3])
    pool = make_pool(tmp_path / "pool", 60)
    if shuffled:
        pool = dataclasses.replace(pool, labels=np.random.default_rng(5).permutation(pool.labels))
    made, _ = probe.probe_of(pool, 32, CPU)
    assert made(None)["knn"] == pytest.approx(expected, abs=0.2 * shuffled)


def test_the_numbers_are_those_of_the_bank_and_the_queries(pool):
    """Looking draws nothing: training goes on as it would have."""
    network = backbone()
    made, rest = probe.probe_of(pool, 32, CPU)
    bank = features.extract(network, torch.from_numpy(images.load(rest, 32)), CPU)
    asked = features.extract(network, torch.from_numpy(images.load(made.held_out, 32)), CPU)
    found = features.nearest_class(bank, rest.labels, asked, probe.NEIGHBOURS)
    state = torch.get_rng_state()
    assert made(network) == {
        "deviation": pytest.approx(representation.deviation(bank.numpy())),
        "effective_rank": pytest.approx(representation.effective_rank(bank.numpy())),
        "knn": np.mean(found == made.held_out.labels),
    }
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_network_that_sees_no_image_is_collapsed_and_a_broken_one_an_error(pool, weight):
    network = backbone()
    torch.nn.init.constant_(network.conv1.weight, weight)
    made, _ = probe.probe_of(pool, 32, CPU)
    if weight == 0:
        numbers = made(network)
        assert representation.collapsed(numbers) and numbers["effective_rank"] == 0
    else:
        with pytest.raises(UserError, match=r"diverged.*pretrain\.lr"):
            made(network)
