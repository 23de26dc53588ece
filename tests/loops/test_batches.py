"""Batches: every image once an epoch, in an order that follows from seed and epoch alone."""

import random

import numpy as np
import pytest
import torch
from torchvision import transforms

from hw1lib.data import layout
from hw1lib.loops.batches import ArrayBatches, FileBatches
from tests.conftest import picture

CPU = torch.device("cpu")
COUNT = 12


@pytest.fixture
def split(tmp_path):
    """Images whose label is their number."""
    files = tuple(f"{number:02d}.png" for number in range(COUNT))
    for number, name in enumerate(files):
        picture(number, (12, 12)).save(tmp_path / name)
    return layout.Split(tmp_path, files, np.arange(COUNT), files)


def arrays(batch_size=4, seed=0, count=COUNT, **options):
    numbers = torch.arange(count)
    return ArrayBatches([numbers * 10, numbers], batch_size, seed, CPU, **options)


def from_files(split, batch_size=4, seed=0, transform=None, workers=0):
    transform = transform or transforms.ToTensor()
    return FileBatches(split, transform, batch_size, seed, CPU, workers)


@pytest.fixture(params=["arrays", "files"])
def make(request, split):
    """The same twelve images by both ways."""
    if request.param == "arrays":
        return arrays
    return lambda batch_size=4, seed=0: from_files(split, batch_size, seed)


def order(batches, epoch):
    return torch.cat([batch[1] for batch in batches(epoch)]).tolist()


def test_every_image_comes_once_an_epoch(make):
    for epoch in (1, 2, 3):
        assert sorted(order(make(), epoch)) == list(range(COUNT))


def test_the_order_follows_from_seed_and_epoch_alone(make):
    first = order(make(), 2)
    torch.manual_seed(99), torch.rand(3)
    batches = make()
    list(batches(1)), list(batches(7))
    assert order(batches, 2) == first
    others = [order(make(), 1), order(make(), 3), order(make(seed=1), 2), list(range(COUNT))]
    assert first not in others


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5]), (12, [12]), (100, [12]), (1, [1] * 12)])
def test_batches_are_full_ones(make, batch_size, sizes):
    """BatchNorm wants them so; what is left waits for another epoch, unless it is all there is."""
    batches = make(batch_size)
    assert [len(batch[1]) for batch in batches(1)] == sizes
    assert len(batches) == len(sizes)
    assert len(set(order(batches, 1))) == sum(sizes)


def test_what_one_epoch_drops_another_shows(make):
    batches = make(5)
    seen = {image for epoch in range(1, 8) for image in order(batches, epoch)}
    assert seen == set(range(COUNT))


def test_rows_of_all_tensors_stay_together():
    for tens, ones in arrays()(1):
        assert torch.equal(tens, ones * 10)


def test_prepare_makes_the_batch():
    batches = arrays(prepare=lambda tens, ones: (tens + 1, ones, "more"))
    for tens, ones, more in batches(1):
        assert torch.equal(tens, ones * 10 + 1) and more == "more"


def test_files_and_labels_stay_together(split):
    for images, labels in from_files(split)(1):
        for image, label in zip(images, labels):
            expected = transforms.ToTensor()(picture(int(label), (12, 12)))
            assert torch.equal(image, expected)


def test_draws_on_files_follow_from_the_seed(split):
    """The transforms draw from torch's generator, which the loop seeds for each epoch."""
    batches = from_files(
        split,
        transform=transforms.Compose(
            [transforms.RandomCrop(8), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        ),
    )

    def draw(seed):
        torch.manual_seed(seed)
        return torch.cat([images for images, _ in batches(1)])

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_workers_change_neither_order_nor_images(split):
    alone = list(from_files(split)(1))
    crowd = list(FileBatches(split, transforms.ToTensor(), 4, 0, CPU, workers=2)(1))
    for one, two in zip(alone, crowd, strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_a_pool_without_labels_gives_images(split):
    bare = layout.Split(split.folder, split.files)
    assert sum(len(images) for images, _ in from_files(bare)(1)) == COUNT


# --- going on inside of an epoch


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_the_steps_that_are_left_see_what_they_would_have_seen(make, start):
    whole = [batch[1].tolist() for batch in make()(2)]
    assert [batch[1].tolist() for batch in make()(2, start)] == whole[start:]


def test_what_is_left_out_is_not_prepared():
    """It would draw from the generators, whose states the checkpoint has put back."""
    prepared = []
    list(arrays(prepare=lambda tens, ones: prepared.append(ones.tolist()))(1, 2))
    assert prepared == [order(arrays(), 1)[8:]]


class Noisy:
    """Draws from all three generators, as transforms may."""

    def __call__(self, image):
        draws = torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])
        return torch.cat([transforms.ToTensor()(image).flatten(), draws])


@pytest.mark.parametrize("start", [1, 3])
def test_random_transforms_in_workers_go_on_to_the_bit(split, start):
    """Whatever state the generators of the process are in: the workers have their own."""

    def epoch(start):
        batches = from_files(split, 2, transform=Noisy(), workers=2)
        return [images for images, _ in batches(3, start)]

    whole = epoch(0)
    torch.manual_seed(99), torch.rand(5), random.seed(99), np.random.seed(99)
    left = epoch(start)
    assert len(left) == len(whole) - start
    assert all(torch.equal(one, two) for one, two in zip(left, whole[start:], strict=True))
    assert len({float(image[-1]) for images in whole for image in images}) == COUNT


def test_workers_leave_the_generators_of_the_process_alone(split):
    """Else a resumed run would draw other numbers than one that left nothing out."""

    def after(start):
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        list(from_files(split, transform=Noisy(), workers=2)(1, start))
        return random.random(), np.random.rand(), float(torch.rand(()))

    assert after(0) == after(2)


# --- which files a batch has


@pytest.mark.parametrize("workers", [0, 2])
def test_the_files_of_the_last_batch_are_named_in_its_order(split, workers):
    """Of the one that was given, not of those that workers have read ahead."""
    batches = from_files(split, workers=workers)
    assert batches.files() == []
    for start in (0, 1):
        for _, labels in batches(1, start):
            assert batches.files() == [split.files[label] for label in labels]


def test_the_files_behind_rows_are_named_in_their_order():
    names = [f"{number}.png" for number in range(COUNT)]
    batches = arrays(names=names, prepare=lambda tens, ones: (tens, ones.flip(0)))
    assert batches.files() == []
    for start in (0, 1):
        for _, backwards in batches(1, start):
            assert batches.files() == [names[number] for number in backwards.flip(0)]


def test_rows_without_names_have_no_files():
    batches = arrays()
    next(iter(batches(1)))
    assert batches.files() == []


def test_the_last_batch_is_the_one_that_is_worked_on():
    """Also when the epoch is left in its middle, as by a loss that is not finite."""
    batches = arrays(names=[str(number) for number in range(COUNT)])
    for step, (_, numbers) in enumerate(batches(1), 1):
        if step == 2:
            break
    assert batches.files() == [str(int(number)) for number in numbers]
