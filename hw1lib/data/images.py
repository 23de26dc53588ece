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
        raise UserError(
            f"{path} cannot be decoded ({error}). Replace the file, or take it and its row out of the data."
        ) from error


def square(image, size):
    """Resizes the shorter side to `size` and crops the centre; returns (3, size, size) uint8."""
    width, height = image.size
    if min(width, height) != size:
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


def load(split, size):
    """All images of a split: (N, 3, size, size) uint8."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda path: square(open_rgb(path), size), split.paths))
    return np.stack(images)


def load_tile(tiles, number):
    """One tile: (3, H, W) uint8 image, (H, W) uint8 classes, number of stray mask pixels."""
    image = np.asarray(open_rgb(tiles.sat(number)))
    classes, stray = landcover.decode(np.asarray(open_rgb(tiles.mask(number))))
    if image.shape[:2] != classes.shape:
        raise UserError(
            f"{tiles.sat(number)} is {image.shape[1]} × {image.shape[0]} pixels, but its mask is "
            f"{classes.shape[1]} × {classes.shape[0]}. Replace one of the two."
        )
    return image.transpose(2, 0, 1), classes, stray


def load_tiles(tiles):
    """All tiles of a split, which must be of one size.

    Returns:
        (N, 3, H, W) uint8 images, (N, H, W) uint8 classes, number of stray mask pixels.
    """
    with ThreadPoolExecutor() as pool:
        loaded = list(pool.map(lambda number: load_tile(tiles, number), tiles.numbers))
    shapes = [image.shape for image, _, _ in loaded]
    for number, shape in zip(tiles.numbers, shapes):
        if shape != shapes[0]:
            raise UserError(
                f"{tiles.sat(number)} is {shape[2]} × {shape[1]} pixels, the first tile "
                f"{shapes[0][2]} × {shapes[0][1]}. All tiles of a split must be of one size."
            )
    images, masks, strays = zip(*loaded)
    return np.stack(images), np.stack(masks), sum(strays)
