"""Decoding: every kind of file becomes RGB, damage is named, sizes are as torchvision's."""

import dataclasses
from unittest.mock import Mock

import numpy as np
import pytest
import skimage.data
from PIL import Image
from torchvision import transforms

from hw1lib.data import hashes, images, landcover, layout
from hw1lib.errors import UserError
from tests.conftest import picture, write_tile


def noise(size, seed=0):
    """An image with detail at every scale but the finest."""
    small = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3))
    return Image.fromarray(small.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


# --- square


SIZES = [(32, 32, 32), (64, 96, 32), (100, 60, 30), (30, 20, 40), (500, 375, 60), (74, 64, 32), (64, 66, 32)]


@pytest.mark.parametrize(("width", "height", "size"), SIZES)
def test_square_is_torchvisions_resize_and_centre_crop(width, height, size):
    """At these sizes both meet whole pixels; elsewhere torchvision rounds the long side down."""
    image = noise((width, height))
    resize = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    ours, theirs = images.square(image, size), np.asarray(resize(image)).transpose(2, 0, 1)
    assert ours.shape == (3, size, size) and ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= (0 if (width, height) == (size, size) else 1)


# --- kinds of files


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_and_the_content_counts_not_the_name(tmp_path, mode):
    image = picture(0).convert("L" if mode == "I;16" else "RGB").convert(mode)
    image.save(tmp_path / "image.png", format="TIFF" if mode == "CMYK" else "PNG")
    opened = images.open_rgb(tmp_path / "image.png")
    assert opened.mode == "RGB" and np.array_equal(opened, image.convert("RGB"))


# --- damage (more of it in test_fuzz)


def test_what_is_no_image_is_named(tmp_path, monkeypatch):
    """Cut files, text, zeros, a folder, nothing at all, and what Pillow refuses as a possible decompression bomb."""
    (tmp_path / "folder.png").mkdir()
    harmed = {"folder.png": None, "nothing.png": None, "text.jpg": b"<html>not found</html>", "zeros.jpg": b"\0" * 300}
    for name in ("whole.jpg", "whole.png"):
        noise((64, 64)).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        harmed |= {f"{part}-{name}": content[: int(part * len(content))] for part in (0.0, 0.1, 0.5, 0.9)}
    for name, content in harmed.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            images.open_rgb(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="whole.jpg"):
        images.open_rgb(tmp_path / "whole.jpg")


# --- whole splits


def test_load_keeps_the_order_of_the_split_and_names_the_one_damaged_file(tmp_path):
    for number in (1, 2, 3):
        Image.new("RGB", (10 + number, 10), (number, 0, 255 - number)).save(tmp_path / f"{number}.png")
    split = layout.Split(tmp_path, ("3.png", "1.png", "2.png"))
    loaded = images.load(split, 8)
    assert loaded.shape == (3, 3, 8, 8) and loaded.dtype == np.uint8
    assert loaded[:, 0, 4, 4].tolist() == [3, 1, 2] and loaded[:, 2, 0, 0].tolist() == [252, 254, 253]
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.png"):
        images.load(split, 8)


def test_tiles_and_masks_stay_together_and_strays_are_counted_over_the_split(tmp_path):
    classes = dict(zip(("0002", "0001"), np.random.default_rng(0).integers(0, 6, (2, 16, 24), dtype=np.uint8)))
    for number, wanted in classes.items():
        write_tile(tmp_path, number, wanted)
        mask = Image.open(tmp_path / f"{number}_mask.png")
        mask.putpixel((3, 5), (12, 34, 56))
        mask.save(tmp_path / f"{number}_mask.png")
        wanted[5, 3] = landcover.UNKNOWN
    tiles = layout.Tiles(tmp_path, tuple(classes))
    pixels, masks = images.load_tiles(tiles)
    assert pixels.shape == (2, 3, 16, 24) and pixels.dtype == masks.dtype == np.uint8
    assert np.array_equal(masks, list(classes.values()))
    assert [images.load_tile(tiles, number)[2] for number in classes] == [1, 1]
    shown = np.asarray(images.open_rgb(tmp_path / "0001_sat.jpg"))
    assert np.array_equal(pixels[1].transpose(1, 2, 0), shown)


def test_a_tile_and_a_mask_of_another_size_are_named(tmp_path):
    write_tile(tmp_path, "0001", np.zeros((8, 8), dtype=np.uint8))
    write_tile(tmp_path, "0002", np.zeros((8, 16), dtype=np.uint8))
    with pytest.raises(UserError, match=r"0002_sat\.jpg is 16 × 8 .* 8 × 8"):
        images.load_tiles(layout.Tiles(tmp_path, ("0001", "0002")))
    Image.new("RGB", (8, 16)).save(tmp_path / "0001_mask.png")
    with pytest.raises(UserError, match=r"0001_sat\.jpg is 8 × 8 .* 8 × 16"):
        images.load_tile(layout.Tiles(tmp_path, ("0001",)), "0001")


# --- decoded once


@pytest.fixture
def split(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        noise((20 + 4 * number, 16 + 3 * number), number).save(folder / f"{number}.jpg")
    names = tuple(f"{number}.jpg" for number in range(6))
    return layout.Split(folder, names, np.arange(6), names, decoded=tmp_path / "decoded")


@pytest.fixture
def opened(monkeypatch):
    """The files that are decoded."""
    seen, real = [], images.open_rgb
    monkeypatch.setattr(images, "open_rgb", lambda path, **how: seen.append(path) or real(path, **how))
    return seen


def test_images_are_decoded_once_for_all_processes_and_parts(split, opened):
    """What lies on disk is what decoding anew gives; a part is rows of the whole, in its own order."""
    fresh = images.load(dataclasses.replace(split, decoded=None), 8)
    opened.clear()
    whole = images.load(split, 8)
    assert np.array_equal(whole, fresh) and isinstance(whole, np.memmap) and len(opened) == 6
    part = split.without(split.take(2)).take(3)
    assert np.array_equal(images.load(part, 8), fresh[[split.files.index(name) for name in part.files]])
    assert np.array_equal(images.load(split, 8), fresh) and len(opened) == 6
    assert images.load(split, 16).shape == (6, 3, 16, 16) and len(opened) == 12  # another size is another array
    whole[:] = 0
    assert np.array_equal(images.load(split, 8), fresh)  # what one process writes into it stays its own


def test_large_jpegs_are_decoded_at_a_part_of_their_size(split):
    """Within two of 256 levels, on average, of what PIL makes of the whole image; smaller ones to the bit."""
    large = Image.fromarray(skimage.data.astronaut())
    for name, side in (("0.jpg", 512), ("1.jpg", 150)):
        large.resize((side, side)).save(split.folder / name, quality=95)
    found = images.load(split, 64)[:2]
    whole = [images.square(images.open_rgb(path), 64) for path in split.paths[:2]]
    off = np.abs(found.astype(int) - whole).mean(axis=(1, 2, 3))
    assert 0 < off[0] < 2 and off[1] == 0


def test_other_data_is_decoded_anew_and_a_failure_leaves_nothing(split, opened):
    before = images.load(split, 8).copy()
    noise((30, 30), 9).save(split.paths[2])
    assert not np.array_equal(images.load(split, 8)[2], before[2])
    split.paths[3].write_bytes(b"no image")
    files = set(split.decoded.glob("*.npy"))
    with pytest.raises(UserError, match=r"3\.jpg"):
        images.load(split, 8)
    assert set(split.decoded.glob("*.npy")) == files and not list(split.decoded.glob(".*.npy.*"))


def test_data_that_changes_while_it_is_decoded_is_refused(split, monkeypatch):
    monkeypatch.setattr(hashes, "fingerprint", Mock(side_effect=["before", "after"]))
    with pytest.raises(UserError, match="changed while"):
        images.load(split, 8)
    assert not list(split.decoded.glob("*.npy"))


def test_resized_images_are_torchvisions_to_the_bit_and_keep_their_shape(split):
    resized, resize = images.Resized(split, 12), transforms.Resize(12)
    for at, path in enumerate(split.paths):
        expected = resize(images.open_rgb(path))
        assert resized[at].size == expected.size and np.array_equal(resized[at], expected)
        assert np.array_equal(resize(resized[at]), expected)  # the original's Resize changes nothing more


def test_tiles_are_decoded_once(tmp_path, opened):
    for number in ("0001", "0002"):
        write_tile(tmp_path, number, np.full((8, 8), int(number) % 6, dtype=np.uint8))
    tiles = layout.Tiles(tmp_path, ("0001", "0002"), tmp_path / "decoded")
    first, opens = images.load_tiles(tiles), len(opened)
    second = images.load_tiles(tiles)
    assert all(np.array_equal(one, two) for one, two in zip(first, second)) and len(opened) == opens
