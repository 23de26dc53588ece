"""Batches: each image once an epoch; order and draws depend only on seed, epoch and step."""

import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision import transforms

from hw1lib import cpus
from hw1lib.data import layout
from hw1lib.data.images import Resized
from hw1lib.errors import UserError
from hw1lib.loops.batches import ArrayBatches, FileBatches, worker_count
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


def array_batches(batch_size=4, seed=0, **options):
    numbers = torch.arange(COUNT)
    return ArrayBatches([numbers * 10, numbers], batch_size, seed, CPU, **{"names": NAMES, **options})


def file_batches(split, batch_size=4, seed=0, transform=None, workers=0):
    images, transform = Resized(split, 12), transform or transforms.ToTensor()
    return FileBatches(images, split, transform, batch_size, seed, CPU, workers)


@pytest.fixture(params=["arrays", "files"])
def make(request, split):
    """Batches of the same twelve images by either class."""
    if request.param == "arrays":
        return array_batches
    return lambda batch_size=4, seed=0: file_batches(split, batch_size, seed)


def order(batches, epoch, start=0):
    return [number for batch in batches(epoch, start) for number in batch[1].tolist()]


def test_the_order_depends_on_seed_and_epoch_alone(make):
    first, batches = order(make(), 2), make()
    torch.manual_seed(99)
    list(batches(7))
    assert order(batches, 2) == first and sorted(first) == list(range(COUNT))
    assert first not in [order(make(), 1), order(make(), 3), order(make(seed=1), 2), list(range(COUNT))]


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5]), (12, [12]), (100, [12])])
def test_batches_are_full_and_can_be_skipped(make, batch_size, sizes):
    """Rows left over in one epoch occur in another."""
    batches = make(batch_size)
    assert [len(batch[1]) for batch in batches(1)] == sizes and len(batches) == len(sizes)
    assert {image for epoch in range(1, 8) for image in order(batches, epoch)} == set(range(COUNT))
    for start in range(len(sizes)):
        assert order(make(batch_size), 2, start) == order(batches, 2)[sizes[0] * start :]


def test_prepare_gets_one_batch_at_a_time():
    seen = []

    def prepare(tens, ones):
        seen.extend(ones.tolist())
        return tens + 1, ones.flip(0), "more"

    batches = array_batches(prepare=prepare)
    for step, (tens, ones, more) in enumerate(batches(1, 1), 2):
        assert torch.equal(tens, ones.flip(0) * 10 + 1) and more == "more" and len(seen) == 4 * (step - 1)
        assert batches.files(1, step) == [NAMES[number] for number in seen[-4:]]
    part = array_batches(2, rows=[7, 3, 11, 5], names=())
    assert sorted(order(part, 1)) == [3, 5, 7, 11] and len(part) == 2 and part.files(1, 1) == []


def test_images_of_files_match_their_labels_and_names(split):
    batches = file_batches(split)
    for step, (images, labels) in enumerate(batches(1, 1), 2):
        assert batches.files(1, step) == [split.files[label] for label in labels]
        expected = [transforms.ToTensor()(picture(int(label), (12, 12))) for label in labels]
        assert torch.equal(images, torch.stack(expected))
    unlabelled = layout.Split(split.folder, split.files)
    assert sum(len(images) for images, _ in file_batches(unlabelled)(1)) == COUNT


def test_an_unreadable_image_is_reported_before_workers_start(split):
    (split.folder / NAMES[3]).write_bytes(b"no image")
    with pytest.raises(UserError, match=NAMES[3]):
        file_batches(split)


def test_each_step_has_its_own_draws(make):
    """Whether or not steps before it were skipped, and however much they drew."""

    def draws(start=0, more=0, **options):
        rows = []
        for _ in make(**options)(2, start):
            rows.append((random.random(), np.random.rand(), float(torch.rand(()))))
            torch.rand(more)
        return rows

    whole = draws()
    assert draws(1, more=3) == whole[1:] and len(set(sum(whole + draws(seed=1), ()))) == 2 * 3 * 3


def noisy(image):
    """The pixels of an image, with draws from all three generators."""
    draws = torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])
    return torch.cat([transforms.ToTensor()(image).flatten(), draws])


@pytest.mark.slow
def test_random_transforms_do_not_depend_on_workers_or_skipped_batches(split):
    def epoch(start=0, workers=0, number=3):
        torch.manual_seed(start), random.seed(start), np.random.seed(start)
        batches = file_batches(split, 2, transform=noisy, workers=workers)
        return torch.cat([images for images, _ in batches(number, start)])

    whole = epoch()
    assert torch.equal(epoch(3, workers=2), whole[6:]) and torch.equal(epoch(workers=None), whole)
    assert len(torch.cat([whole, epoch(number=4)])[:, -3:].unique()) == 2 * 3 * COUNT


@pytest.mark.parametrize(
    ("kind", "share", "free", "expected"),
    [("cpu", 1, 1e9, 0), ("cpu", 64, 1e9, 2), ("cuda", 8, 1e9, 8), ("cuda", 64, 1e9, 16), ("cuda", 8, 64e6, 3)],
)
def test_workers_fit_the_cpus_and_the_shared_memory(monkeypatch, kind, share, free, expected):
    """Each may fill 10 MB, and half of the memory stays free."""
    monkeypatch.setattr(cpus, "available", lambda **_: share)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert worker_count(torch.device(kind), bytes_ahead=10e6) == expected
