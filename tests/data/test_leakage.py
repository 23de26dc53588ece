"""Scene leakage: real neighbours in another split are found, and nothing else."""

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


def borders(images):
    return np.stack([leakage.borders(image) for image in images])


@pytest.fixture(scope="module")
def scenes():
    """Ten scenes of 2 × 2 tiles: (10, 4, 64, 64, 3), in reading order."""
    big = np.stack([land(seed, 2 * SIDE) for seed in range(10)])
    return big.reshape(10, 2, SIDE, 2, SIDE, 3).swapaxes(2, 3).reshape(10, 4, SIDE, SIDE, 3)


def test_only_neighbours_that_share_a_border_are_found(scenes):
    """To the right (1) and below (2), in both directions and at any size; not at a corner (3)."""
    first, right, below, corner = (borders(scenes[:, place]) for place in range(4))
    larger = borders(scenes[:, 1].repeat(2, 1).repeat(2, 2))
    for train, validation in ((first, right), (right, first), (first, below), (below, first), (first, larger)):
        partners, null = leakage.leaks(train, validation)
        assert partners == {i: i for i in range(10)} and null == 0 and leakage.is_significant(10, 10, null)
    for train, validation in ((first, corner), (first[:5], right[5:]), ((), first), (first, ())):
        assert leakage.leaks(train, validation) == ({}, 0)


def test_reversed_borders_are_the_null(scenes):
    """Mirrored tiles continue nothing until they are reversed again."""
    assert leakage.leaks(borders(scenes[:, 0]), borders(scenes[:, 1][:, ::-1])) == ({}, 10)


@pytest.mark.parametrize("shape", [(64, 64, 3), (100, 300, 3), (512, 512, 3)])
def test_flat_tiles_and_smooth_gradients_are_not_compared(shape):
    random = np.random.default_rng(0)
    sea = (random.integers(0, 2, (4, *shape)) + (20, 60, 120)).astype(np.uint8)
    slope = np.linspace(40, 200, shape[1]).astype(np.uint8)[None, :, None].repeat(shape[0], 0)
    for tiles in (sea, np.stack([slope.repeat(3, 2)] * 4)):
        assert leakage.leaks(borders(tiles), borders(tiles)) == ({}, 0)


def test_borders_are_the_outermost_lines():
    image = np.zeros((leakage.LINE, leakage.LINE, 3), dtype=np.uint8)
    image[0], image[-1], image[1:-1, 0], image[1:-1, -1] = 1, 2, 3, 4
    assert [line[5:-5].mean() for line in leakage.borders(image)] == [1, 2, 3, 4]
    assert leakage.borders(image[:31]) is None


@pytest.mark.parametrize(
    ("tiles", "of", "null", "significant"),
    [(0, 120, 0, 0), (1, 8, 0, 0), (2, 8, 0, 1), (2, 257, 0, 0), (3, 257, 0, 1), (5, 120, 3, 0), (20, 120, 3, 1)],
)
def test_a_warning_needs_more_than_chance(tiles, of, null, significant):
    assert leakage.is_significant(tiles, of, null) == bool(significant)
