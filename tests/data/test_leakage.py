"""Scene leakage: what continues across a border is found, and nothing else."""

import numpy as np
import pytest
from PIL import Image

from hw1lib.data.check import leakage

SIDE = 64


def land(seed, size):
    """A rough landscape: smooth noise at several scales, (size, size, 3) uint8."""
    random = np.random.default_rng(seed)
    total = np.zeros((size, size, 3))
    for step, strength in ((32, 30), (8, 20), (4, 14), (2, 6)):
        noise = random.integers(0, 256, (size // step, size // step, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        total += (np.asarray(smooth) / 127.5 - 1) * strength
    return (total + 120).clip(0, 255).astype(np.uint8)


def sides(images):
    return np.stack([leakage.sides(image) for image in images])


@pytest.fixture(scope="module")
def scenes():
    """Ten scenes of 2 × 2 tiles: (10, 4, 64, 64, 3), in reading order."""
    big = np.stack([land(seed, 2 * SIDE) for seed in range(10)])
    return big.reshape(10, 2, SIDE, 2, SIDE, 3).swapaxes(2, 3).reshape(10, 4, SIDE, SIDE, 3)


@pytest.mark.parametrize("other", [1, 2])
def test_neighbours_in_another_split_are_found(scenes, other):
    """To the right (1) and below (2), in both directions."""
    first, second = sides(scenes[:, 0]), sides(scenes[:, other])
    for train, validation in ((first, second), (second, first)):
        found = leakage.find(train, validation)
        assert found.partners == {i: i for i in range(10)} and found.null == 0
        assert leakage.is_clear(len(found.partners), 10, found.null)


def test_tiles_that_only_meet_at_a_corner_or_nowhere_are_not(scenes):
    for train, validation in ((scenes[:, 0], scenes[:, 3]), (scenes[:5, 0], scenes[5:, 1])):
        found = leakage.find(sides(train), sides(validation))
        assert found == ({}, 0)


def test_reversed_borders_are_the_null(scenes):
    """Mirrored tiles continue nothing; only reversing them again makes them fit."""
    found = leakage.find(sides(scenes[:, 0]), sides(scenes[:, 1][:, ::-1]))
    assert found == ({}, 10)
    assert not leakage.is_clear(0, 10, 10)


def test_blocks_of_tiles_change_nothing(scenes, monkeypatch):
    train, validation = sides(scenes[:, 0]), sides(scenes[:, 1])
    whole = leakage.find(train, validation)
    monkeypatch.setattr(leakage, "BLOCK", 3)
    assert leakage.find(train, validation) == whole


@pytest.mark.parametrize("shape", [(64, 64, 3), (100, 300, 3), (512, 512, 3)])
def test_flat_tiles_and_smooth_gradients_tell_nothing(shape):
    random = np.random.default_rng(0)
    sea = (random.integers(0, 2, (4, *shape)) + (20, 60, 120)).astype(np.uint8)
    slope = np.linspace(40, 200, shape[1]).astype(np.uint8)[None, :, None].repeat(shape[0], 0)
    slopes = np.stack([slope.repeat(3, 2)] * 4)
    for tiles in (sea, slopes):
        assert leakage.find(sides(tiles), sides(tiles)) == ({}, 0)


def test_sizes_may_differ_and_tiny_tiles_have_no_sides(scenes):
    small = [np.asarray(Image.fromarray(t).resize((48, 48))) for t in scenes[:, 1]]
    assert len(leakage.find(sides(scenes[:, 0]), sides(small)).partners) >= 8
    assert sides(small).shape == (10, 4, leakage.LINE, 3) and sides(small).dtype == np.uint8
    assert leakage.sides(scenes[0, 0][:31]) is None
    assert leakage.find((), sides(small)) == leakage.find(sides(small), ()) == ({}, 0)


def test_sides_are_the_outermost_lines():
    image = np.zeros((leakage.LINE, leakage.LINE, 3), dtype=np.uint8)
    image[0], image[-1], image[1:-1, 0], image[1:-1, -1] = 1, 2, 3, 4
    top, bottom, left, right = leakage.sides(image)
    assert (top == 1).all() and (bottom == 2).all()
    assert (left[1:-1] == 3).all() and (right[1:-1] == 4).all()


@pytest.mark.parametrize(
    ("tiles", "of", "null", "clear"),
    [(0, 120, 0, False), (1, 8, 0, False), (2, 8, 0, True), (2, 257, 0, False), (3, 257, 0, True),
     (5, 120, 3, False), (20, 120, 3, True), (0, 0, 0, False)],
)
def test_a_warning_needs_more_than_chance(tiles, of, null, clear):
    assert leakage.is_clear(tiles, of, null) == clear
