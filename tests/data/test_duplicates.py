"""Exact and near duplicates: real copies are found, similar pictures are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from hw1lib.data.check import duplicates, survey
from tests.data.test_leakage import land


def look(image, path, **options):
    image.save(path, **options)
    found = survey.image(path)
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
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


CHANGES = {
    "re-encoded": lambda image: saved(image, 60),
    "smaller": lambda image: image.resize((64, 64), Image.Resampling.BICUBIC),
    "larger": lambda image: saved(image.resize((200, 200)), 80),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_altered_copies_are_near_duplicates(pictures, looks, tmp_path, change):
    copy = look(CHANGES[change](pictures[5]), tmp_path / "copy.png")
    assert duplicates.near([*looks, copy]) == {12: 5}
    assert duplicates.near([copy], looks) == {0: 5}
    assert duplicates.exact([*looks, copy]) == duplicates.exact([copy], looks) == {}


def test_distinct_pictures_are_none(looks):
    assert duplicates.near(looks) == duplicates.exact(looks) == {}
    assert duplicates.near(looks[:6], looks[6:]) == {}


def test_equal_bytes_and_equal_pixels_are_exact(pictures, looks, tmp_path):
    """A copy that is exact is not a near one, too; the first of all is named."""
    same = look(pictures[3], tmp_path / "same.png")
    other_bytes = look(pictures[3], tmp_path / "bytes.png", compress_level=1)
    assert same.file_hash == looks[3].file_hash != other_bytes.file_hash
    assert duplicates.exact([*looks, same, other_bytes]) == {12: 3, 13: 3}
    assert duplicates.near([*looks, same, other_bytes]) == {}
    assert duplicates.exact([same], looks) == {0: 3} and duplicates.near([same], looks) == {}


def test_the_same_pixels_in_another_shape_are_no_copy(tmp_path):
    wide = look(Image.new("RGB", (20, 10), "red"), tmp_path / "a.png")
    high = look(Image.new("RGB", (10, 20), "red"), tmp_path / "b.png")
    assert duplicates.exact([wide, high]) == {}


def test_flat_pictures_have_only_exact_copies(tmp_path):
    random = np.random.default_rng(0)
    seas = []
    for i in range(4):
        water = (random.integers(0, 3, (64, 64, 3)) + (20, 60, 120)).astype(np.uint8)
        seas.append(look(Image.fromarray(water), tmp_path / f"{i}.png"))
    assert duplicates.near(seas) == {}


def test_the_same_drawing_in_other_colours_is_none(pictures, looks, tmp_path):
    darker = Image.fromarray((np.asarray(pictures[0]) * 0.6).astype(np.uint8))
    assert duplicates.near([look(darker, tmp_path / "d.png")], looks) == {}


def test_blocks_change_nothing(pictures, looks, tmp_path, monkeypatch):
    copies = [look(saved(p, 70), tmp_path / f"c{i}.png") for i, p in enumerate(pictures)]
    whole = duplicates.near(looks + copies)
    assert whole == {12 + i: i for i in range(12)}
    monkeypatch.setattr(duplicates, "BLOCK", 5)
    assert duplicates.near(looks + copies) == whole
    assert duplicates.near(copies, looks) == {i: i for i in range(12)}


def test_nothing_has_no_duplicates(looks):
    assert duplicates.near([]) == duplicates.near([], looks) == duplicates.near(looks, []) == {}
    assert duplicates.exact([]) == duplicates.exact(looks, []) == {}
