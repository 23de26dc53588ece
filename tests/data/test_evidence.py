"""What the data doctor finds by comparing images: real copies, real neighbours, and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from hw1lib.data.check import evidence

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


# --- duplicates


def look(image, path, **options):
    image.save(path, **options)
    found = evidence.look(path, evidence.picture)
    assert not found.fault
    return found


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(land(seed, 128)) for seed in range(12)]


@pytest.fixture
def looks(pictures, tmp_path):
    return [look(p, tmp_path / f"{i}.png") for i, p in enumerate(pictures)]


def saved(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def test_altered_copies_are_near_duplicates(pictures, looks, tmp_path):
    """Encoded again, smaller, larger, brighter."""
    original = pictures[5]
    for copy in (
        saved(original, 60),
        original.resize((64, 64), Image.Resampling.BICUBIC),
        saved(original.resize((200, 200)), 80),
        ImageEnhance.Brightness(original).enhance(1.1),
    ):
        found = look(copy, tmp_path / "copy.png")
        assert evidence.near([*looks, found]) == {12: 5} and evidence.near([found], looks) == {0: 5}
        assert evidence.exact([*looks, found]) == evidence.exact([found], looks) == {}


def test_equal_pixels_are_exact_whatever_the_bytes(pictures, looks, tmp_path):
    """A copy that is exact is not a near one, too; the first of all is named; nothing has no duplicates."""
    copies = [look(pictures[3], tmp_path / f"{level}.png", compress_level=level) for level in (1, 9)]
    assert evidence.exact([*looks, *copies]) == {12: 3, 13: 3} and evidence.near([*looks, *copies]) == {}
    assert evidence.exact(copies, looks) == {0: 3, 1: 3} and evidence.near(copies, looks) == {}
    for found in (evidence.near, evidence.exact):
        assert found([]) == found([], looks) == found(looks, []) == {}


def test_what_only_resembles_is_no_copy(pictures, looks, tmp_path):
    """Distinct pictures, the same drawing in other colours, and the same pixels in another shape."""
    assert evidence.near(looks) == evidence.exact(looks) == evidence.near(looks[:6], looks[6:]) == {}
    darker = Image.fromarray((np.asarray(pictures[0]) * 0.6).astype(np.uint8))
    assert evidence.near([look(darker, tmp_path / "d.png")], looks) == {}
    wide, high = (look(Image.new("RGB", size, "red"), tmp_path / "a.png") for size in ((20, 10), (10, 20)))
    assert evidence.exact([wide, high]) == {}


def test_flat_pictures_have_only_exact_copies(tmp_path):
    random = np.random.default_rng(0)
    waters = [(random.integers(0, 3, (64, 64, 3)) + (20, 60, 120)).astype(np.uint8) for _ in range(4)]
    assert evidence.near([look(Image.fromarray(water), tmp_path / "sea.png") for water in waters]) == {}


def test_the_most_similar_one_is_named_whatever_the_blocks(pictures, looks, tmp_path, monkeypatch):
    copies = [look(saved(p, 70), tmp_path / f"c{i}.png") for i, p in enumerate(pictures)]
    better = look(saved(pictures[2], 98), tmp_path / "better.png")
    for block in (evidence.COMPARED, 5):
        monkeypatch.setattr(evidence, "COMPARED", block)
        assert evidence.near(looks + copies) == {12 + i: i for i in range(12)}
        assert evidence.near(copies, looks) == {i: i for i in range(12)}
        assert evidence.near([better], [copies[2], *looks]) == {0: 3}
        assert evidence.near([better], [looks[2], copies[2]]) == {0: 0}


# --- leakage


def sides(images):
    return np.stack([evidence.sides(image) for image in images])


@pytest.fixture(scope="module")
def scenes():
    """Ten scenes of 2 × 2 tiles: (10, 4, 64, 64, 3), in reading order."""
    big = np.stack([land(seed, 2 * SIDE) for seed in range(10)])
    return big.reshape(10, 2, SIDE, 2, SIDE, 3).swapaxes(2, 3).reshape(10, 4, SIDE, SIDE, 3)


def test_neighbours_in_another_split_are_found(scenes):
    """To the right (1) and below (2), in both directions; not those that meet at a corner (3) or nowhere."""
    first, right, below, corner = (sides(scenes[:, place]) for place in range(4))
    larger = sides(scenes[:, 1].repeat(2, 1).repeat(2, 2))  # whatever their sizes
    for train, validation in ((first, right), (right, first), (first, below), (below, first), (first, larger)):
        partners, null = evidence.leaks(train, validation)
        assert partners == {i: i for i in range(10)} and null == 0 and evidence.is_clear(10, 10, null)
    for train, validation in ((first, corner), (first[:5], right[5:]), ((), first), (first, ())):
        assert evidence.leaks(train, validation) == ({}, 0)


def test_reversed_borders_are_the_null(scenes):
    """Mirrored tiles continue nothing; only reversing them again makes them fit."""
    assert evidence.leaks(sides(scenes[:, 0]), sides(scenes[:, 1][:, ::-1])) == ({}, 10)


@pytest.mark.parametrize("shape", [(64, 64, 3), (100, 300, 3), (512, 512, 3)])
def test_flat_tiles_and_smooth_gradients_tell_nothing(shape):
    random = np.random.default_rng(0)
    sea = (random.integers(0, 2, (4, *shape)) + (20, 60, 120)).astype(np.uint8)
    slope = np.linspace(40, 200, shape[1]).astype(np.uint8)[None, :, None].repeat(shape[0], 0)
    for tiles in (sea, np.stack([slope.repeat(3, 2)] * 4)):
        assert evidence.leaks(sides(tiles), sides(tiles)) == ({}, 0)


def test_sides_are_the_outermost_lines():
    image = np.zeros((evidence.LINE, evidence.LINE, 3), dtype=np.uint8)
    image[0], image[-1], image[1:-1, 0], image[1:-1, -1] = 1, 2, 3, 4
    assert [side[5:-5].mean() for side in evidence.sides(image)] == [1, 2, 3, 4]
    assert evidence.sides(image[:31]) is None  # too short to tell anything


@pytest.mark.parametrize(
    ("tiles", "of", "null", "clear"),
    [(0, 120, 0, 0), (1, 8, 0, 0), (2, 8, 0, 1), (2, 257, 0, 0), (3, 257, 0, 1), (5, 120, 3, 0), (20, 120, 3, 1)],
)
def test_a_warning_needs_more_than_chance(tiles, of, null, clear):
    assert evidence.is_clear(tiles, of, null) == bool(clear)
