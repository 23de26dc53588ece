"""Decoding: every kind of file becomes RGB, damage is named, sizes are those of torchvision."""

import dataclasses
import re
from unittest.mock import Mock

import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image, ImageOps
from torchvision import transforms

from hw1lib import evaluate
from hw1lib.data import hashes, images, landcover, layout
from hw1lib.data.check import doctor
from hw1lib.errors import UserError
from tests.conftest import write_tile


def noise(size, seed=0):
    """An image with detail at every scale but the finest."""
    small = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3))
    return Image.fromarray(small.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


# --- square


@pytest.mark.parametrize(("width", "height", "size"), [(32, 32, 32), (64, 96, 32), (30, 20, 40), (500, 375, 60)])
def test_square_is_torchvisions_resize_and_centre_crop(width, height, size):
    """At these sizes both meet whole pixels; elsewhere torchvision rounds the long side down."""
    image = noise((width, height))
    resize = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    square, expected = images.square(image, size), np.asarray(resize(image)).transpose(2, 0, 1)
    assert square.shape == (3, size, size) and square.dtype == np.uint8
    assert np.abs(square.astype(int) - expected).max() <= (0 if (width, height) == (size, size) else 1)


# --- kinds of files

PIXELS = np.asarray(noise((40, 24)))
GRAY, LEVELS = PIXELS[..., 0], np.asarray(noise((40, 24), 1).convert("RGB"))[..., 1]
CLEAR, SPOTTED = (np.dstack([PIXELS, np.where(least < LEVELS, 255, 9).astype(np.uint8)]) for least in (-1, 60))


def pil(pixels, name="a.png", mode=None, **options):
    """A function that saves pixels with Pillow, converted to a mode."""
    return name, lambda path: (i := Image.fromarray(pixels)).convert(mode or i.mode).save(path, **options)


def tiff(pixels, **options):
    """A function that saves pixels as a TIFF of any bands and bits."""
    return "a.tif", lambda path: tifffile.imwrite(path, pixels, **{"planarconfig": "contig"} | options)


def exif(orientation, kind):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return pil(PIXELS, f"a.{kind}", exif=tags, **({"quality": 95} if kind == "jpg" else {}))


SHARP = PIXELS // 128 * 255  # colours of the web palette
DEEP = CLEAR.astype(np.uint16) * 257
OTHER = {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}
SAME = {  # files equal to an 8-bit RGB image: how they are written, and its pixels
    "gray": (pil(GRAY), GRAY), "opaque": (pil(CLEAR), PIXELS), "palette": (pil(SHARP, mode="P"), SHARP),
    "unused transparent colour": (pil(GRAY, transparency=int(np.setdiff1d(range(256), GRAY)[0])), GRAY),
    "16 bits": (pil(GRAY.astype(np.uint16) * 257), GRAY), "16 bits, black": (pil(GRAY.astype(np.uint16) * 0), GRAY * 0),
    "16 bits, big-endian": (tiff(GRAY.astype(">u2") * 257, byteorder=">"), GRAY),
    "16 bits, three bands": (tiff(DEEP[..., :3], photometric="rgb"), PIXELS),
    "16 bits, four bands": (tiff(DEEP, photometric="rgb", extrasamples=["unassalpha"]), PIXELS),
    "one frame": (pil(GRAY, "a.gif"), GRAY),
    "damaged EXIF": (pil(PIXELS, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0"), PIXELS),
    **{f"turned {kind}": (exif(n, kind), None) for kind, n in (("png", 6), ("jpg", 5), ("tif", 8), ("webp", 3))},
}  # fmt: skip
REFUSED = {  # ambiguous files: how they are written, and words of the message
    "32 bits": (pil(GRAY.astype(np.int32) * 40, "a.tif"), "32 bits per band .mode I.*save it"),
    "floats": (tiff((GRAY / 255).astype(np.float32)), "32 bits per band .mode F"),
    "8 bits in 16": (pil(GRAY.astype(np.uint16)), "no value above 255"),
    "transparent": (pil(SPOTTED), "transparent pixels .mode RGBA.*save it"),
    "transparent palette": (pil(PIXELS, mode="P", transparency=bytes(200)), "transparent pixels .mode P"),
    "two frames": (pil(PIXELS, "a.gif", **OTHER), "2 pages or frames"),
    "two pages": (pil(PIXELS, "a.tif", **OTHER), "2 pages or frames"),
    "near infrared": (tiff(CLEAR, photometric="rgb", extrasamples=["unspecified"]), "4 bands: save"),
    "two bands": (tiff(CLEAR[..., :2], photometric="minisblack"), "not an image in a supported format"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")  # a warning would be a library's text
@pytest.mark.parametrize("kind", SAME)
def test_equal_images_decode_equally(tmp_path, kind):
    """Upright, in 8 bits, for training, the data check and their size alike."""
    (name, save), pixels = SAME[kind]
    save(path := tmp_path / name)
    opened = np.asarray(images.open_rgb(path))
    if pixels is None:
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(opened, np.broadcast_to(pixels.reshape(*opened.shape[:2], -1), opened.shape))
    summary = doctor.summarise(path, "image")
    Image.fromarray(opened).save(tmp_path / "plain.png")
    assert summary.pixel_hash == doctor.summarise(tmp_path / "plain.png", "image").pixel_hash
    assert summary.size == opened.shape[1::-1]
    resized = images.Resized(layout.Split(tmp_path, (name,)), 12)[0]
    assert resized.size == transforms.Resize(12)(Image.fromarray(opened)).size


@pytest.mark.parametrize("kind", REFUSED)
def test_ambiguous_images_are_refused_by_name(tmp_path, kind):
    """By training and by the data check, in the same words."""
    (name, save), words = REFUSED[kind]
    save(path := tmp_path / name)
    with pytest.raises(images.Unreadable, match=f"{name} .*{words}") as refused:
        images.open_rgb(path)
    assert doctor.summarise(path, "image").fault == doctor.summarise(path, "mask").fault == refused.value.reason


def test_files_that_are_not_images_are_named(tmp_path, monkeypatch):
    """Truncated files (more of them in test_fuzz), text, a folder, no file, and a possible decompression bomb."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    for name in ("whole.jpg", "whole.png"):
        noise((64, 64)).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"half-{name}").write_bytes(content[: len(content) // 2])
    for name in ("folder.png", "nothing.png", "text.jpg", "half-whole.jpg", "half-whole.png"):
        with pytest.raises(UserError, match=name):
            images.open_rgb(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"whole.jpg .*too large to decode: cut it into tiles"):
        images.open_rgb(tmp_path / "whole.jpg")


# --- masks

CLASSES = np.random.default_rng(1).integers(0, 7, (12, 10)).astype(np.uint8)
COLOURS, BLACK_OR_WHITE = landcover.encode(CLASSES), np.where(CLASSES > 2, 255, 0).astype(np.uint8)
WHITE = np.where(CLASSES > 2, landcover.CLASSES.index("barren"), landcover.UNKNOWN)
IGNORE = np.where(CLASSES == 6, 255, CLASSES).astype(np.uint8)
RED = np.array((1, 0, 0), np.uint8)
VOC = np.array([(i & 1, i >> 1 & 1, i >> 2) for i in range(7)], np.uint8) * 128  # a palette of other data


def palette(colours):
    image = Image.fromarray(CLASSES)
    image.putpalette(colours.ravel().tolist())
    return "a.png", image.save


MASKS = {  # how masks are written, their classes, and how many pixels are not exactly of a colour
    "course": (pil(COLOURS), CLASSES, 0), "palette": (palette(landcover.PALETTE), CLASSES, 0),
    "opaque": (pil(COLOURS, mode="RGBA"), CLASSES, 0), "black and white": (pil(BLACK_OR_WHITE), WHITE, 0),
    "254": (pil(np.minimum(COLOURS, 254)), CLASSES, (CLASSES < 6).sum()),
    "254 in gray": (pil(np.minimum(BLACK_OR_WHITE, 254)), WHITE, (CLASSES > 2).sum()),
    "faint": (pil((COLOURS // 255 * 28 + 100).astype(np.uint8)), CLASSES, CLASSES.size),
    "red": (pil(COLOURS * RED), np.full_like(CLASSES, 6), (COLOURS[..., 0] > 0).sum()),
}  # fmt: skip
NO_MASKS = {  # images without colours: how they are written, and words of the message
    "class numbers": (pil(CLASSES), "class numbers or gray levels such as 1, 2, 3 .*mode L"),
    "class numbers, 255 for unknown": (pil(IGNORE), "such as 1, 2, 3"),
    "class numbers in RGB": (pil(CLASSES, mode="RGB"), "such as 1, 2, 3 .*mode RGB"),
    "class numbers with other colours": (palette(VOC), "such as 128 .*mode P"),
    "colours in 16 bits": (tiff(COLOURS.astype(np.uint16) * 257, photometric="rgb"), "16 bits .*mode RGB;16"),
    "one bit": (pil(BLACK_OR_WHITE > 0), "1 bit per pixel .mode 1"),
    "0 and 1 for 0 and 255": (pil(COLOURS // 255), "such as 1 .*mode RGB"),
    "transparent": (pil(np.dstack([COLOURS, BLACK_OR_WHITE])), "transparent pixels .mode RGBA"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MASKS | NO_MASKS)
def test_a_mask_is_read_by_one_rule_everywhere_or_refused(tmp_path, kind):
    """By training, the data check and `evaluate`, for the truth and the prediction."""
    (_, save), *expected = (MASKS | NO_MASKS)[kind]
    folders = [tmp_path / "odd", tmp_path / "true"]
    for folder in folders:
        folder.mkdir()
        Image.new("RGB", CLASSES.shape[::-1]).save(folder / "1_sat.jpg")
        Image.fromarray(COLOURS).save(folder / "1_mask.png")
    save(folders[0] / "1_mask.png")
    tiles, summary = layout.Tiles(folders[0], ("1",)), doctor.summarise(folders[0] / "1_mask.png", "mask")
    if kind in NO_MASKS:
        assert re.search(expected[0], summary.fault) and "save it" in summary.fault
        for read, arguments in (
            (images.load_tiles, [tiles]),
            (evaluate.score_segmentation, folders),
            (evaluate.score_segmentation, folders[::-1]),
        ):
            with pytest.raises(UserError, match=f"1_mask.png.*{expected[0]}"):
                read(*arguments)
        return
    classes, inexact = expected
    assert np.array_equal(images.load_tiles(tiles)[1][0], classes) and images.load_tile(tiles, "1")[2] == inexact
    assert summary.inexact == inexact and np.array_equal(summary.counts, np.bincount(classes.ravel(), minlength=7))
    for (prediction, truth), name in ((folders, "predicted"), (folders[::-1], "true")):
        if name == "predicted" or (classes < 6).any():
            scores, problems = evaluate.score_segmentation(prediction, truth)
            assert (f"{inexact} {name} {evaluate.INEXACT}" in scores["coverage"]) == (inexact > 0) and problems == []
            same = np.mean((classes == CLASSES)[(CLASSES if name == "predicted" else classes) < 6])
            assert scores["pixel_accuracy"] == pytest.approx(same)


# --- whole splits


def test_tiles_and_masks_stay_together_upright_and_of_one_size(tmp_path):
    classes = dict(zip(("0002", "0001"), np.random.default_rng(0).integers(0, 6, (2, 16, 24), dtype=np.uint8)))
    for number, each in classes.items():
        write_tile(tmp_path, number, each)
    upright, tags = Image.open(tmp_path / "0002_sat.jpg").convert("RGB"), Image.Exif()
    tags[0x0112] = 8
    upright.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "0002_sat.jpg", "PNG", exif=tags)
    tiles = layout.Tiles(tmp_path, tuple(classes))
    pixels, masks = images.load_tiles(tiles)
    assert pixels.shape == (2, 3, 16, 24) and pixels.dtype == masks.dtype == np.uint8
    assert np.array_equal(masks, list(classes.values())) and np.array_equal(pixels[0].transpose(1, 2, 0), upright)
    assert np.array_equal(pixels[1].transpose(1, 2, 0), images.open_rgb(tmp_path / "0001_sat.jpg"))

    write_tile(tmp_path, "0003", np.zeros((8, 16), dtype=np.uint8))
    with pytest.raises(UserError, match=r"0003_sat\.jpg is 16 × 8 .* 24 × 16"):
        images.load_tiles(layout.Tiles(tmp_path, ("0001", "0003")))
    Image.new("RGB", (8, 16)).save(tmp_path / "0001_mask.png")
    with pytest.raises(UserError, match=r"0001_sat\.jpg is 24 × 16 .* 8 × 16"):
        images.load_tile(tiles, "0001")


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
    """The cached array equals a fresh decoding; a part is rows of the whole, in its own order."""
    fresh = np.stack([images.square(images.open_rgb(path, at_least=12), 8) for path in split.paths])
    assert np.array_equal(images.load(dataclasses.replace(split, decoded=None), 8), fresh)
    opened.clear()
    whole = images.load(split, 8)
    assert np.array_equal(whole, fresh) and isinstance(whole, np.memmap) and len(opened) == 6
    part = split.without(split.take(2)).take(3)
    assert np.array_equal(images.load(part, 8), fresh[[split.files.index(name) for name in part.files]])
    assert np.array_equal(images.load(split, 8), fresh) and len(opened) == 6
    assert images.load(split, 16).shape == (6, 3, 16, 16) and len(opened) == 12  # another size is another array
    whole[:] = 0
    assert np.array_equal(images.load(split, 8), fresh)  # a process only writes to its own copy


def test_tiles_are_decoded_once(tmp_path, opened):
    for number in ("0001", "0002"):
        write_tile(tmp_path, number, np.full((8, 8), int(number) % 6, dtype=np.uint8))
    tiles = layout.Tiles(tmp_path, ("0001", "0002"), tmp_path / "decoded")
    first, second = images.load_tiles(tiles), images.load_tiles(tiles)
    assert all(np.array_equal(one, two) for one, two in zip(first, second)) and len(opened) == 2


def test_large_jpegs_are_decoded_at_a_part_of_their_size(split):
    """On average within two of 256 levels of the fully decoded image; smaller images are equal."""
    large = Image.fromarray(skimage.data.astronaut())
    for name, side in (("0.jpg", 512), ("1.jpg", 150)):
        large.resize((side, side)).save(split.folder / name, quality=95)
    loaded = images.load(split, 64)[:2]
    whole = [images.square(images.open_rgb(path), 64) for path in split.paths[:2]]
    off = np.abs(loaded.astype(int) - whole).mean(axis=(1, 2, 3))
    assert 0 < off[0] < 2 and off[1] == 0


def test_changed_data_is_decoded_again_and_a_failure_leaves_nothing(split, monkeypatch):
    before = images.load(split, 8).copy()
    noise((30, 30), 9).save(split.paths[2])
    assert not np.array_equal(images.load(split, 8)[2], before[2])
    split.paths[3].write_bytes(b"no image")
    files = set(split.decoded.glob("*.npy"))
    with pytest.raises(UserError, match=r"3\.jpg"):
        images.load(split, 8)
    split.paths[3].write_bytes(split.paths[2].read_bytes())
    monkeypatch.setattr(hashes, "fingerprint", Mock(side_effect=["before", "after"]))
    with pytest.raises(UserError, match="changed while"):
        images.load(split, 8)
    assert set(split.decoded.glob("*.npy")) == files and not list(split.decoded.glob(".*.npy.*"))


def test_resized_images_are_torchvisions_to_the_bit_and_keep_their_shape(split):
    resized, resize = images.Resized(split, 12), transforms.Resize(12)
    for at, path in enumerate(split.paths):
        expected = resize(images.open_rgb(path))
        assert resized[at].size == expected.size and np.array_equal(resized[at], expected)
        assert np.array_equal(resize(resized[at]), expected)  # the original's Resize changes nothing more
