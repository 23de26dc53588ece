"""The probe of pre-training: what it may look at, and that its numbers mean what they say."""

import dataclasses

import numpy as np
import pytest
import torch

from hw1lib.data import images
from hw1lib.data.layout import Split
from hw1lib.loops import features, probe
from hw1lib.measures import representation
from hw1lib.models import classifier
from tests.conftest import picture

CPU = torch.device("cpu")
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220))
KEYS = {"deviation", "effective_rank", "knn"}


def make_pool(folder, count=30, labelled=True):
    """Images whose colour is their class; in no order of classes."""
    folder.mkdir()
    labels = np.random.default_rng(0).permutation(np.arange(count) % 3)
    names = tuple(f"{number:05d}.jpg" for number in range(count))
    for number, (name, label) in enumerate(zip(names, labels)):
        picture(number, colour=COLOURS[label]).save(folder / name, quality=95)
    classes = ("red", "green", "blue")
    return Split(folder, names, labels, classes) if labelled else Split(folder, names)


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path / "pool")


@pytest.fixture
def by_colour(monkeypatch):
    """Features that separate the pool's classes perfectly, whatever the backbone.

    And fewer neighbours than the small pool has images of a class.
    """
    monkeypatch.setattr(probe, "NEIGHBOURS", 5)
    monkeypatch.setattr(features, "extract", lambda backbone, images, device: features.colour_statistics(images)[:, :3])


def backbone():
    torch.manual_seed(0)
    return classifier.backbone(0.125)


# --- which images


@pytest.mark.parametrize("count", [10, 11, 30, 57])
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


@pytest.mark.parametrize("why", ["without labels", "too small"])
def test_without_labels_or_in_a_tiny_pool_only_the_spread_is_watched(tmp_path, why):
    count, labelled = (30, False) if why == "without labels" else (9, True)
    whole = make_pool(tmp_path / "pool", count, labelled)
    made, rest = probe.probe_of(whole, 32, CPU)
    assert rest is whole and not made.asks and made.bank.files == whole.files
    assert made(backbone()).keys() == KEYS - {"knn"}


# --- what it says


def test_features_that_separate_the_classes_are_right_each_time(pool, by_colour):
    made, _ = probe.probe_of(pool, 32, CPU)
    assert made(None)["knn"] == 1.0


def test_labels_that_features_cannot_know_are_guessed(tmp_path, by_colour):
    """Shuffled labels: the probe has no other way to them."""
    pool = make_pool(tmp_path / "pool", 60)
    shuffled = np.random.default_rng(5).permutation(pool.labels)
    made, _ = probe.probe_of(dataclasses.replace(pool, labels=shuffled), 32, CPU)
    assert made(None)["knn"] == pytest.approx(1 / 3, abs=0.2)


def test_the_numbers_are_those_of_the_bank_and_the_queries(pool):
    network = backbone()
    made, rest = probe.probe_of(pool, 32, CPU)
    bank = features.extract(network, torch.from_numpy(images.load(rest, 32)), CPU)
    asked = features.extract(network, torch.from_numpy(images.load(made.held_out, 32)), CPU)
    found = features.nearest_class(bank, rest.labels, asked, probe.NEIGHBOURS)
    assert made(network) == {
        "deviation": pytest.approx(representation.deviation(bank.numpy())),
        "effective_rank": pytest.approx(representation.effective_rank(bank.numpy())),
        "knn": np.mean(found == made.held_out.labels),
    }


def test_looking_changes_nothing_and_says_the_same_again(pool):
    network = backbone()
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made, _ = probe.probe_of(pool, 32, CPU)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert made(network) == made(network)
    assert torch.equal(torch.get_rng_state(), state)  # training draws what it would have drawn
    assert network.training
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())


def test_a_network_that_sees_no_image_is_collapsed(pool):
    network = backbone()
    torch.nn.init.zeros_(network.conv1.weight)
    numbers = probe.probe_of(pool, 32, CPU)[0](network)
    assert representation.collapsed(numbers) and numbers["effective_rank"] == 0
