"""The probe of pre-training: what it may look at, and that its numbers mean what they say."""

import numpy as np
import pytest
import torch

from hw1lib.data import images
from hw1lib.data.layout import Split
from hw1lib.errors import UserError
from hw1lib.loops import features, probe
from hw1lib.metrics import collapse
from hw1lib.models import resnet
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


def backbone():
    torch.manual_seed(0)
    return resnet.backbone(0.125)


@pytest.mark.parametrize(("count", "limit"), [(10, 500), (11, 500), (57, 500), (57, 2)])
def test_no_image_is_both_asked_for_and_known_and_the_others_are_trained_on(tmp_path, monkeypatch, count, limit):
    """Its nearest neighbour would be itself. Of a large pool a part is the bank."""
    monkeypatch.setattr(probe, "QUERIES", limit)
    monkeypatch.setattr(probe, "BANK", 6 * limit)
    whole = make_pool(tmp_path / "pool", count)
    made, rest = probe.probe_of(whole, 32, CPU)
    assert sorted(made.held_out.files + rest.files) == sorted(whole.files)
    assert set(made.bank.files) <= set(rest.files)
    assert (len(made.held_out), len(made.bank)) == (min(limit, count // 10), min(6 * limit, len(rest)))
    assert torch.equal(made.queries, torch.from_numpy(images.load(made.held_out, 32)))
    assert torch.equal(made.images, torch.from_numpy(images.load(made.bank, 32)))


@pytest.mark.parametrize(("count", "labelled"), [(30, False), (9, True)])
def test_without_labels_or_in_a_tiny_pool_only_the_spread_is_watched(tmp_path, count, labelled):
    whole = make_pool(tmp_path / "pool", count, labelled)
    made, rest = probe.probe_of(whole, 32, CPU)
    assert rest is whole and not made.asks and made.bank.files == whole.files
    assert made(backbone()).keys() == {"deviation", "effective_rank"}


def test_the_numbers_are_those_of_the_bank_and_the_queries(tmp_path, monkeypatch):
    """Looking draws nothing: training goes on as it would have."""
    monkeypatch.setattr(probe, "NEIGHBOURS", 1)
    network, (made, rest) = backbone(), probe.probe_of(make_pool(tmp_path / "pool"), 32, CPU)
    bank, asked = (features.extract(network, torch.from_numpy(images.load(s, 32)), CPU) for s in (rest, made.held_out))
    found = features.nearest_class(bank, rest.labels, asked, 1)
    state = torch.get_rng_state()
    assert made(network) == {
        "deviation": pytest.approx(collapse.deviation(bank.numpy())),
        "effective_rank": pytest.approx(collapse.effective_rank(bank.numpy())),
        "knn": np.mean(found == made.held_out.labels),
    }
    assert torch.equal(torch.get_rng_state(), state) and np.mean(found == made.held_out.labels) > 0.5


def test_a_network_that_sees_no_image_is_collapsed_and_a_broken_one_an_error(tmp_path):
    network, (made, _) = backbone(), probe.probe_of(make_pool(tmp_path / "pool"), 32, CPU)
    torch.nn.init.zeros_(network.conv1.weight)
    numbers = made(network)
    assert collapse.collapsed(numbers) and numbers["effective_rank"] == 0
    torch.nn.init.constant_(network.conv1.weight, float("nan"))
    with pytest.raises(UserError, match=r"diverged.*pretrain\.lr"):
        made(network)
