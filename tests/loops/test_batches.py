"""Batches: every image once an epoch, in an order that follows from seed and epoch alone."""

import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision import transforms

from hw1lib import cpus
from hw1lib.data import layout
from hw1lib.errors import UserError
from hw1lib.loops.batches import ArrayBatches, FileBatches, loaders
from tests.conftest import picture

CPU = torch.device("cpu")
COUNT = 12
NAMES = tuple(f"{number:02d}.png" for number in range(COUNT))


@pytest.fixture
def split(tmp_path):
    """Images whose label is their number."""
    for number, name in enumerate(NAMES):
        picture(number, (12, 12)).save(tmp_path / name)
    return layout.Split(tmp_path, NAMES, np.arange(COUNT), NAMES)


def arrays(batch_size=4, seed=0, **options):
    numbers = torch.arange(COUNT)
    return ArrayBatches([numbers * 10, numbers], batch_size, seed, CPU, **{"names": NAMES, **options})


def from_files(split, batch_size=4, seed=0, transform=None, workers=0):
    return FileBatches(split, 12, transform or transforms.ToTensor(), batch_size, seed, CPU, workers)


@pytest.fixture(params=["arrays", "files"])
def make(request, split):
    """The same twelve images by both ways."""
    if request.param == "arrays":
        return arrays
    return lambda batch_size=4, seed=0: from_files(split, batch_size, seed)


def order(batches, epoch, start=0):
    return [number for batch in batches(epoch, start) for number in batch[1].tolist()]


def test_the_order_follows_from_seed_and_epoch_alone(make):
    """And has every image once."""
    first, batches = order(make(), 2), make()
    torch.manual_seed(99)
    list(batches(7))
    assert order(batches, 2) == first and sorted(first) == list(range(COUNT))
    assert first not in [order(make(), 1), order(make(), 3), order(make(seed=1), 2), list(range(COUNT))]


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5]), (12, [12]), (100, [12]), (1, [1] * 12)])
def test_batches_are_full_ones(make, batch_size, sizes):
    """BatchNorm wants them so; what is left waits for another epoch, unless it is all there is."""
    batches = make(batch_size)
    assert [len(batch[1]) for batch in batches(1)] == sizes and len(batches) == len(sizes)
    assert {image for epoch in range(1, 8) for image in order(batches, epoch)} == set(range(COUNT))
    for start in range(len(sizes)):  # the steps that are left see what they would have seen
        assert order(make(batch_size), 2, start) == order(batches, 2)[sizes[0] * start :]


def test_prepare_makes_the_batch_of_rows_that_stay_together():
    """One batch at a time, and what is left out not at all; each with draws of its own step."""
    seen = []

    def prepare(tens, ones):
        seen.extend(ones.tolist())
        return tens + 1, ones.flip(0), "more"

    batches = arrays(prepare=prepare)
    for step, (tens, ones, more) in enumerate(batches(1, 1), 2):
        assert torch.equal(tens, ones.flip(0) * 10 + 1) and more == "more"
        assert len(seen) == 4 * (step - 1)  # drawn for one batch at a time
        assert batches.files(1, step) == [NAMES[number] for number in seen[-4:]]  # in its order
    assert seen == order(arrays(), 1)[4:]
    nameless = arrays(names=())
    assert order(nameless, 1) and nameless.files(1, 1) == []


def test_rows_choose_what_is_used_and_its_names():
    batches = arrays(2, rows=[7, 3, 11, 5])
    seen = order(batches, 1)
    assert sorted(seen) == [3, 5, 7, 11] and len(batches) == 2
    assert batches.files(1, 1) + batches.files(1, 2) == [NAMES[number] for number in seen]


@pytest.mark.parametrize("workers", [0, 2])
def test_files_and_labels_stay_together_and_are_named(split, workers):
    """Of the batch that was given, not of those that workers have read ahead."""
    batches = from_files(split, workers=workers)
    for step, (images, labels) in enumerate(batches(1, 1), 2):
        assert batches.files(1, step) == [split.files[label] for label in labels]
        expected = [transforms.ToTensor()(picture(int(label), (12, 12))) for label in labels]
        assert torch.equal(images, torch.stack(expected))
    bare = layout.Split(split.folder, split.files)  # a pool without labels
    assert sum(len(images) for images, _ in from_files(bare)(1)) == COUNT


def test_an_image_that_cannot_be_read_is_one_paragraph(split):
    """All are read before the first batch, not by workers, whose errors come with their whole traceback."""
    (split.folder / NAMES[3]).write_bytes(b"no image")
    with pytest.raises(UserError, match=NAMES[3]):
        from_files(split)


def noisy(image):
    """An image's pixels with draws from all three generators, as transforms may make them."""
    draws = torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])
    return torch.cat([transforms.ToTensor()(image).flatten(), draws])


def test_random_transforms_go_on_to_the_bit(split):
    """Whatever state the generators of the process are in, and however many workers there are."""

    def epoch(start, workers=2, number=3):
        torch.manual_seed(start), random.seed(start), np.random.seed(start)
        batches = from_files(split, 2, transform=noisy, workers=workers)
        return torch.cat([images for images, _ in batches(number, start)])

    whole = epoch(0)
    assert torch.equal(epoch(3), whole[6:]) and torch.equal(epoch(1, workers=0), whole[2:])
    assert len(torch.cat([whole, epoch(0, number=4)])[:, -3:].unique()) == 2 * 3 * COUNT


def test_each_step_has_draws_of_its_own(make):
    """The same ones whether it is the first that is taken or not, and whatever was drawn in the step before."""

    def drawn(start=0, much=0, **options):
        rows = []
        for _ in make(**options)(2, start):
            rows.append((random.random(), np.random.rand(), float(torch.rand(()))))
            torch.rand(much)
        return rows

    whole = drawn()
    assert drawn(1, much=3) == whole[1:] and len(set(sum(whole + drawn(seed=1), ()))) == 2 * 3 * 3


@pytest.mark.slow
def test_any_number_of_loading_processes_gives_the_same_images(split):
    """Draws included; with enough CPUs of a machine, a GPU gets several."""
    transform = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomCrop(8), transforms.ToTensor()])

    def images(workers):
        batches = from_files(split, transform=transform, workers=workers)
        return torch.cat([batch for epoch, start in ((1, 0), (2, 1)) for batch, _ in batches(epoch, start)])

    alone = images(0)
    assert all(torch.equal(images(workers), alone) for workers in (None, 1, 2, 5))


@pytest.mark.parametrize(
    ("kind", "share", "free", "expected"),
    [
        ("cpu", 1, 1e9, 0), ("cpu", 2, 1e9, 1), ("cpu", 64, 1e9, 2), ("cuda", 1, 1e9, 1), ("cuda", 8, 1e9, 8),
        ("cuda", 64, 1e9, 16), ("cuda", 8, 64e6, 3), ("cuda", 8, 5e6, 0), ("cpu", 8, 0, 0), ("cuda", 8, None, 8),
    ],
)  # fmt: skip
def test_loading_processes_fit_the_cpus_and_the_shared_memory(monkeypatch, kind, share, free, expected):
    """10 MB each may be on their way, and half of the memory stays free; without a folder to ask, CPUs decide."""

    def usage(folder):
        if free is None:
            raise FileNotFoundError(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(cpus, "available", lambda **_: share)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert loaders(torch.device(kind), bytes_ahead=10e6) == expected
