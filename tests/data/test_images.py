"""Decoding: every kind of file becomes RGB, damage is named, sizes are as torchvision's."""

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from hw1lib.data import images, layout
from hw1lib.errors import UserError
from tests.conftest import picture, write_tile


def noise(size, seed=0):
    """An image with detail at every scale but the finest."""
    small = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3))
    return Image.fromarray(small.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def reference(image, size):
    resize = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    return np.asarray(resize(image)).transpose(2, 0, 1)


# --- square


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(64, 64, 32), (96, 64, 32), (64, 96, 32), (128, 32, 16), (100, 60, 30), (20, 20, 32),
     (30, 20, 40), (32, 32, 32), (48, 32, 32), (500, 375, 60)],
)
def test_square_is_torchvisions_resize_and_centre_crop(width, height, size):
    """At these sizes both meet whole pixels; elsewhere torchvision rounds the long side down."""
    image = noise((width, height))
    ours, theirs = images.square(image, size), reference(image, size)
    assert ours.shape == (3, size, size) and ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("width", range(33, 64, 3))
@pytest.mark.parametrize("height", [32, 41])
def test_square_of_any_size_is_off_by_a_pixel_at_most(width, height):
    """A ramp of a grey level a pixel tells where each pixel came from."""
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(width) * 4, np.arange(height)[:, None] * 4
    ours, theirs = (f(Image.fromarray(ramp), 16).astype(int) for f in (images.square, reference))
    pixel = 4 * min(width, height) / 16  # one pixel of the result, in grey levels
    assert np.abs(ours - theirs).max() <= pixel + 1


def test_a_square_image_of_the_right_size_is_untouched():
    image = noise((32, 32))
    assert np.array_equal(images.square(image, 32).transpose(1, 2, 0), np.asarray(image))


# --- kinds of files


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = picture(0).convert("L").convert("I;16") if mode == "I;16" else picture(0).convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    opened = images.open_rgb(path)
    assert opened.mode == "RGB" and opened.size == image.size


def test_grayscale_and_cmyk_jpegs_keep_their_look(tmp_path):
    plain = picture(3)
    plain.convert("L").save(tmp_path / "gray.jpg", quality=95)
    plain.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    gray = np.asarray(images.open_rgb(tmp_path / "gray.jpg")).astype(int)
    assert (gray == gray[..., :1]).all()
    assert np.abs(gray[..., 0] - np.asarray(plain.convert("L"))).mean() < 3
    cmyk = np.asarray(images.open_rgb(tmp_path / "cmyk.jpg")).astype(int)
    assert np.abs(cmyk - np.asarray(plain)).mean() < 3  # neither inverted nor pale


def test_the_content_counts_not_the_name(tmp_path):
    picture(0).save(tmp_path / "really_png.jpg", format="PNG")
    assert np.array_equal(images.open_rgb(tmp_path / "really_png.jpg"), picture(0))


# --- damage


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, kind, share):
    path = tmp_path / f"Couch00001.{kind}"
    noise((64, 64)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=f"Couch00001.{kind}"):
        images.open_rgb(path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x00" * 300])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "Couch00001.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match="Couch00001.jpg"):
        images.open_rgb(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(UserError, match=path.name):
            images.open_rgb(path)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_damage_anywhere_ends_in_an_image_or_a_clear_error(tmp_path, kind):
    """A hundred files with a few wrong bytes each: never another exception."""
    path = tmp_path / f"image.{kind}"
    noise((32, 32)).save(path)
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = content.copy()
        places = random.integers(0, len(content), 3)
        damaged[places] ^= random.integers(1, 256, 3).astype(np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            assert images.open_rgb(path).mode == "RGB"
        except UserError as error:
            refused += str(path) in str(error)
    assert refused > 0


def test_an_enormous_image_is_a_clear_error(tmp_path, monkeypatch):
    """Pillow refuses it as a possible decompression bomb."""
    picture(0).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="huge.png"):
        images.open_rgb(tmp_path / "huge.png")


# --- whole splits


def test_load_keeps_the_order_of_the_split(tmp_path):
    files = tuple(f"{number}.png" for number in (3, 1, 2))
    for number in (1, 2, 3):
        Image.new("RGB", (10 + number, 10), (number, 0, 255 - number)).save(
            tmp_path / f"{number}.png"
        )
    loaded = images.load(layout.Split(tmp_path, files), 8)
    assert loaded.shape == (3, 3, 8, 8) and loaded.dtype == np.uint8
    assert loaded[:, 0, 4, 4].tolist() == [3, 1, 2]
    assert loaded[:, 2, 0, 0].tolist() == [252, 254, 253]


def test_load_names_the_one_damaged_file(tmp_path):
    files = tuple(f"{number}.jpg" for number in range(6))
    for name in files:
        picture(0).save(tmp_path / name)
    (tmp_path / "4.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"4\.jpg"):
        images.load(layout.Split(tmp_path, files), 8)


def tiles(folder, *numbers):
    return layout.Tiles(folder, numbers)


def test_tiles_and_masks_stay_together(tmp_path):
    classes = {}
    for number, seed in (("0002", 2), ("0001", 1)):
        classes[number] = np.random.default_rng(seed).integers(0, 7, (16, 24)).astype(np.uint8)
        write_tile(tmp_path, number, classes[number])
    pixels, masks, stray = images.load_tiles(tiles(tmp_path, "0002", "0001"))
    assert pixels.shape == (2, 3, 16, 24) and pixels.dtype == masks.dtype == np.uint8
    assert np.array_equal(masks, [classes["0002"], classes["0001"]]) and stray == 0


def test_stray_mask_pixels_are_counted_over_the_split(tmp_path):
    for number in ("0001", "0002"):
        write_tile(tmp_path, number, np.zeros((8, 8), dtype=np.uint8))
        with Image.open(tmp_path / f"{number}_mask.png") as mask:
            mask = mask.copy()
        mask.putpixel((3, 5), (12, 34, 56))
        mask.save(tmp_path / f"{number}_mask.png")
    _, masks, stray = images.load_tiles(tiles(tmp_path, "0001", "0002"))
    assert stray == 2 and masks[0, 5, 3] == 6 and (masks == 6).sum() == 2


def test_a_mask_of_another_size_is_named(tmp_path):
    write_tile(tmp_path, "0001", np.zeros((8, 8), dtype=np.uint8))
    Image.new("RGB", (8, 16)).save(tmp_path / "0001_mask.png")
    with pytest.raises(UserError, match=r"0001_sat\.jpg is 8 × 8 .* 8 × 16"):
        images.load_tile(tiles(tmp_path, "0001"), "0001")


def test_a_tile_of_another_size_is_named(tmp_path):
    write_tile(tmp_path, "0001", np.zeros((8, 8), dtype=np.uint8))
    write_tile(tmp_path, "0002", np.zeros((8, 16), dtype=np.uint8))
    with pytest.raises(UserError, match=r"0002_sat\.jpg is 16 × 8 .* 8 × 8"):
        images.load_tiles(tiles(tmp_path, "0001", "0002"))
