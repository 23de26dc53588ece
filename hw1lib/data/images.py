"""Decodes images once, into uint8 arrays that lie on disk and are shared by all steps, seeds and processes."""

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import filelock
import numpy as np
from PIL import Image
from torchvision import transforms

from hw1lib import files
from hw1lib.data import hashes, landcover
from hw1lib.errors import UserError

TOGETHER = 32  # images that a thread is given at once: so little is done in vain after an error
VERSION = 2  # raised when images are decoded or resized otherwise


def open_rgb(path, at_least=None):
    """Opens any image as RGB.

    Args:
        path: of the file.
        at_least: sides in pixels that are enough: JPEG is then decoded at a half, quarter or eighth of its size.

    Raises:
        UserError: the file is missing, damaged or no image.
    """
    with _opened(path) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        return image.convert("RGB")


def _size(path):
    """Width and height, from the file's first bytes."""
    with _opened(path) as image:
        return image.size


@contextlib.contextmanager
def _opened(path):
    try:
        with Image.open(path) as image:
            yield image
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
    """All images of a split: (N, 3, size, size) uint8; large JPEGs are decoded at a part of their size."""
    if split.whole is not None:
        return load(split.whole, size)[split.rows]

    def write(array, at, path):
        array[at] = square(open_rgb(path, at_least=size * 3 // 2), size)

    return _kept(split, f"square {size}", (len(split), 3, size, size), write, split.paths)


def load_tile(tiles, number):
    """One tile: (3, H, W) uint8 image, (H, W) uint8 classes, number of stray mask pixels."""
    image = np.asarray(open_rgb(tiles.sat(number)))
    classes, stray = landcover.decode(np.asarray(open_rgb(tiles.mask(number))))
    _same_size(tiles.sat(number), image.shape[:2], "its mask", classes.shape)
    return image.transpose(2, 0, 1), classes, stray


def load_tiles(tiles):
    """All tiles of a split, which must be of one size.

    Returns:
        (N, 3, H, W) uint8 images, (N, H, W) uint8 classes.
    """
    width, height = _size(tiles.sat(tiles.numbers[0]))

    def write(array, at, number):
        image, classes, _ = load_tile(tiles, number)
        _same_size(tiles.sat(number), classes.shape, "the first tile of its split", (height, width))
        array[at, :3], array[at, 3] = image, classes

    array = _kept(tiles, "tiles", (len(tiles), 4, height, width), write, tiles.numbers)
    return array[:, :3], array[:, 3]


class Resized:
    """Images of a split with their shorter side resized, as torchvision does it; index -> PIL image.

    Args:
        split: layout.Split.
        size: the shorter side in pixels.
    """

    def __init__(self, split, size):
        shapes = _each(lambda at, path: _resized_shape(path, size), split.paths)
        self.shapes = np.array(shapes)  # (N, 2) height and width
        self.ends = self.shapes.prod(axis=1).cumsum()
        self.starts = self.ends - self.shapes.prod(axis=1)

        def write(array, at, path):
            image = transforms.functional.resize(open_rgb(path), size)
            array[self.starts[at] : self.ends[at]] = np.asarray(image).reshape(-1, 3)

        self.pixels = _kept(split, f"resized {size}", (int(self.ends[-1]), 3), write, split.paths)

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        pixels = self.pixels[self.starts[index] : self.ends[index]]
        return Image.fromarray(pixels.reshape(*self.shapes[index], 3))


def _resized_shape(path, size):
    """Height and width after torchvision's Resize."""
    width, height = _size(path)
    longer = int(size * max(width, height) / min(width, height))
    return (size, longer) if width > height else (longer, size)


def _each(function, items):
    """What function(place, item) gives for each item, in a thread a CPU: Pillow lets others work while it decodes."""

    def some(first):
        return [function(place, item) for place, item in enumerate(items[first : first + TOGETHER], first)]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # more threads wait for each other
        return [found for part in pool.map(some, range(0, len(items), TOGETHER)) for found in part]


def _kept(split, kind, shape, write, items):
    """A uint8 array that is made once: on disk, mapped into memory, where the split has a folder for it.

    Args:
        split: layout.Split or layout.Tiles.
        kind: what the array holds of it.
        shape: of the array.
        write: function(array, place, item) that writes one of the items.
        items: paths or numbers.
    """
    if split.decoded is None:
        _each(partial(write, array := np.empty(shape, np.uint8)), items)
        return array
    made_of = hashes.fingerprint(split)
    path = split.decoded / f"{hashlib.sha256(f'{VERSION} {kind} {made_of}'.encode()).hexdigest()[:16]}.npy"
    with files.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):  # a second process waits and finds it done
        if not path.exists():
            with files.replacing(path) as temporary:
                array = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                _each(partial(write, array), items)
                array.flush()
            if hashes.fingerprint(split) != made_of:
                path.unlink()
                raise UserError(f"{split.folder} changed while its images were decoded. Run the same command again.")
    return np.load(path, mmap_mode="c")  # pages that nobody writes are shared by all processes


def _same_size(path, size, other, other_size):
    """Refuses a tile whose (height, width) is not that of another image."""
    if size != other_size:
        shown = [f"{width} × {height}" for height, width in (size, other_size)]
        raise UserError(f"{path} is {shown[0]} pixels, {other} {shown[1]}; they must be of one size. Replace one.")
