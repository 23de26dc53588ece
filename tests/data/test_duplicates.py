"""Duplicates: real copies are found, and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from hw1lib.data.check import doctor, duplicates
from tests.data.test_leakage import land


def summary(image, path, **options):
    image.save(path, **options)
    return doctor.summarise(path, "image")


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(land(seed, 128)) for seed in range(12)]


@pytest.fixture
def originals(pictures, tmp_path):
    return [summary(picture, tmp_path / f"{i}.png") for i, picture in enumerate(pictures)]


def as_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def test_copies_that_are_encoded_again_resized_or_brighter_are_near_duplicates(pictures, originals, tmp_path):
    picture = pictures[5]
    for copy in (
        as_jpeg(picture, 60),
        picture.resize((64, 64), Image.Resampling.BICUBIC),
        as_jpeg(picture.resize((200, 200)), 80),
        ImageEnhance.Brightness(picture).enhance(1.1),
    ):
        copy = summary(copy, tmp_path / "copy.png")
        assert duplicates.near([*originals, copy]) == {12: 5} and duplicates.near([copy], originals) == {0: 5}
        assert duplicates.exact([*originals, copy]) == duplicates.exact([copy], originals) == {}


def test_equal_pixels_are_exact_duplicates_whatever_the_bytes(pictures, originals, tmp_path):
    """They are not near ones, too; the first image is named; an empty list has no duplicates."""
    copies = [summary(pictures[3], tmp_path / f"{level}.png", compress_level=level) for level in (1, 9)]
    assert duplicates.exact([*originals, *copies]) == {12: 3, 13: 3} and duplicates.near([*originals, *copies]) == {}
    assert duplicates.exact(copies, originals) == {0: 3, 1: 3} and duplicates.near(copies, originals) == {}
    for find in (duplicates.near, duplicates.exact):
        assert find([]) == find([], originals) == find(originals, []) == {}


def test_similar_images_are_not_duplicates(pictures, originals, tmp_path):
    """Distinct pictures, one drawing in other colours, the same pixels in another shape, flat pictures."""
    assert duplicates.near(originals) == duplicates.exact(originals) == {}
    darker = Image.fromarray((np.asarray(pictures[0]) * 0.6).astype(np.uint8))
    assert duplicates.near([summary(darker, tmp_path / "d.png")], originals) == {}
    wide, high = (summary(Image.new("RGB", size, "red"), tmp_path / "a.png") for size in ((20, 10), (10, 20)))
    assert duplicates.exact([wide, high]) == {}
    random = np.random.default_rng(0)
    sea = [Image.fromarray((random.integers(0, 3, (64, 64, 3)) + (20, 60, 120)).astype(np.uint8)) for _ in range(4)]
    assert duplicates.near([summary(image, tmp_path / "sea.png") for image in sea]) == {}


@pytest.mark.parametrize("block", [duplicates.COMPARED, 5])
def test_the_most_similar_image_is_named_whatever_the_blocks(pictures, originals, tmp_path, monkeypatch, block):
    monkeypatch.setattr(duplicates, "COMPARED", block)
    copies = [summary(as_jpeg(picture, 70), tmp_path / f"c{i}.png") for i, picture in enumerate(pictures)]
    better = summary(as_jpeg(pictures[2], 98), tmp_path / "better.png")
    assert duplicates.near(originals + copies) == {12 + i: i for i in range(12)}
    assert duplicates.near(copies, originals) == {i: i for i in range(12)}
    assert duplicates.near([better], [copies[2], *originals]) == {0: 3}
    assert duplicates.near([better], [originals[2], copies[2]]) == {0: 0}


@pytest.mark.parametrize(("kind", "name"), [("tile", "leakage"), ("mask", "landcover")])
def test_a_bug_of_the_check_is_not_called_damage_of_the_file(tmp_path, monkeypatch, kind, name):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(doctor, name, None)
    with pytest.raises(AttributeError):
        doctor.summarise(tmp_path / "a.png", kind)
