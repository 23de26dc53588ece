"""Decodes images once, into uint8 arrays."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from hw1lib.data import landcover
from hw1lib.errors import UserError


def open_rgb(path):
    """Opens any image as RGB.

    Raises:
        UserError: the file is missing, damaged or no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be decoded ({error}). Replace it, or take it and its row away.") from error


def square(image, size):
    """Resizes the shorter side to `size` and crops the centre; returns (3, size, size) uint8."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size].transpose(2, 0, 1)


def load(split, size):
    """All images of a split: (N, 3, size, size) uint8."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(lambda path: square(open_rgb(path), size), split.paths)))


def load_tile(tiles, number):
    """One tile: (3, H, W) uint8 image, (H, W) uint8 classes, number of stray mask pixels."""
    image = np.asarray(open_rgb(tiles.sat(number)))
    classes, stray = landcover.decode(np.asarray(open_rgb(tiles.mask(number))))
    _same_size(tiles.sat(number), image.shape[:2], "its mask", classes.shape)
    return image.transpose(2, 0, 1), classes, stray


def load_tiles(tiles):
    """All tiles of a split, which must be of one size.

    Returns:
        (N, 3, H, W) uint8 images, (N, H, W) uint8 classes, number of stray mask pixels.
    """
    with ThreadPoolExecutor() as pool:
        images, masks, strays = zip(*pool.map(lambda number: load_tile(tiles, number), tiles.numbers))
    for number, mask in zip(tiles.numbers, masks):
        _same_size(tiles.sat(number), mask.shape, "the first tile of its split", masks[0].shape)
    return np.stack(images), np.stack(masks), sum(strays)


def _same_size(path, size, other, other_size):
    """Refuses a tile whose (height, width) is not that of another image."""
    if size != other_size:
        shown = [f"{width} × {height}" for height, width in (size, other_size)]
        raise UserError(f"{path} is {shown[0]} pixels, {other} {shown[1]}; they must be of one size. Replace one.")
