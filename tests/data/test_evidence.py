"""What the data doctor finds by comparing images: real copies, and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from hw1lib.data.check import evidence
from tests.data.test_leakage import land


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


@pytest.mark.parametrize(("measure", "name"), [(evidence.tile, "sides"), (evidence.mask, "landcover")])
def test_a_fault_of_the_check_itself_is_not_called_damage_of_the_file(tmp_path, monkeypatch, measure, name):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(evidence, name, None)
    with pytest.raises((TypeError, AttributeError)):
        evidence.look(tmp_path / "a.png", measure)
