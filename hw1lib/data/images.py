"""Decode images and masks, and cache whole splits as uint8 arrays on disk for all steps, seeds and processes."""

import contextlib
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import filelock
import numpy as np
from PIL import Image
from torchvision import transforms

from hw1lib import cpus, files
from hw1lib.data import hashes, landcover
from hw1lib.errors import UserError

VERSION = 3  # of the cache: raise it when images are decoded or resized differently
TURNS = {  # EXIF orientation -> the operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Unreadable(UserError):
    """An image file that is missing, damaged or ambiguous; `reason` says which."""

    def __init__(self, path, reason):
        super().__init__(f"{path} cannot be decoded ({reason}). Replace it, or remove it with its row, tile or mask.")
        self.reason = reason


def read(path, at_least=None):
    """Decode an image file; everything that decodes images calls this.

    16-bit images are scaled by the range of the data type, and EXIF orientation is applied.

    Args:
        path: the file.
        at_least: sufficient side in pixels; a larger JPEG is decoded at a half, quarter or eighth of its size.

    Returns:
        The upright RGB image, and the mode of the file, such as L, or RGB;16 for 16 bits per band.

    Raises:
        Unreadable: the file is missing or damaged, or has several pages, transparent pixels or more than 16 bits.
    """
    with _open(path) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        mode = image.mode + (";16" if re.search(r"\b(RGBA?|LA);16", str(image.tile)) else "")
        rgb = _to_rgb(image)
        turn = TURNS.get(_orientation(image))  # read last, as a PNG may store EXIF at its end
        return (rgb if turn is None else rgb.transpose(turn)), mode


def open_rgb(path, at_least=None):
    """Decode an image file to an upright RGB image, as `read` does."""
    return read(path, at_least)[0]


def read_mask(path):
    """Decode a mask in the course's colours; everything that decodes masks calls this.

    Returns:
        (H, W) uint8 classes, the number of pixels that do not have exactly a class's colour (see landcover.decode), and
        the mode of the file.

    Raises:
        Unreadable: the file cannot be decoded, or it holds class numbers or gray levels instead of colours.
    """
    image, mode = read(path)
    remedy = f"(mode {mode}): save it in the course's 8-bit colours, such as cyan (0, 255, 255) for urban"
    if ";16" in mode:
        raise Unreadable(path, f"16 bits per channel {remedy}")
    if mode == "1":
        raise Unreadable(path, f"1 bit per pixel {remedy}")
    if odd := _suspect_levels(image, mode):
        raise Unreadable(path, f"class numbers or gray levels such as {odd} instead of colours {remedy}")
    return *landcover.decode(np.asarray(image)), mode


def _suspect_levels(image, mode):
    """Return the first values that show that a mask holds class numbers or gray levels, as text; "" for colours.

    Files with a single band or a palette must be close to the course's colours. In RGB, levels above 0 are suspect if
    none reaches the threshold, and in gray pixels if none but 255 (often "ignore") does.
    """
    colours, levels = np.asarray(image), np.flatnonzero(np.reshape(image.histogram(), (3, 256)).any(axis=0))
    single, dark = mode[0] in "LP", levels[(levels > 0) & (levels < landcover.THRESHOLD)]
    between = levels[(levels > 63) & (levels < 192)]
    odd = between if single else dark[:0]
    gray = (colours == colours[..., :1]).all()
    if len(dark) and (levels[-1] < landcover.THRESHOLD or (gray and (single or not set(levels) - {0, 255, *dark}))):
        odd = dark
    return ", ".join(map(str, odd[:3]))


def _size(path):
    """Return width and height of the upright image, from the file's first bytes."""
    with _open(path) as image:
        return image.size[::-1] if _orientation(image) >= 5 else image.size


@contextlib.contextmanager
def _open(path):
    """Open an image of one page; only Pillow may run in the block, as any exception counts as damage."""
    try:
        with Image.open(path) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # MPO: a photo with its preview
                raise ValueError(f"{pages} pages or frames: save the right one as a separate file")
            if 0 in image.size:
                raise ValueError("no pixels")
            if image.format == "TIFF" and 0 in (image.tag_v2.get(338) or ()):  # ExtraSamples other than transparency
                bands = image.tag_v2.get(277)
                raise ValueError(f"{bands} bands: save the three that are red, green and blue as RGB")
            yield image
    except Exception as error:  # Pillow raises errors of any kind for damaged files
        raise Unreadable(path, _reason(error)) from error


def _orientation(image):
    """Return the EXIF orientation, 1 … 8; 1 for TIFF, which Pillow turns itself, and for damaged EXIF."""
    with contextlib.suppress(Exception):
        return 1 if image.format == "TIFF" else int(image.getexif().get(0x0112, 1))
    return 1


def _to_rgb(image):
    """Convert an image to 8-bit RGB.

    Raises:
        ValueError: the range of its values is unknown, or pixels are transparent.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"32 bits per band (mode {image.mode}), whose range is unknown: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        if 0 < pixels.max() < 256:
            raise ValueError("16 bits (mode I;16), but no value above 255: save it with 8 bits a band")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if image.has_transparency_data:
        mode, image = image.mode, image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise ValueError(f"transparent pixels (mode {mode}), whose colour is unknown: save it without transparency")
    return image.convert("RGB")


def _reason(error):
    """Return why a file cannot be decoded, without its name."""
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return "too large to decode: cut it into tiles"
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a supported format, or an empty file"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def square(image, size):
    """Resize the shorter side to `size` and crop the centre; return (3, size, size) uint8."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size].transpose(2, 0, 1)


def load(split, size):
    """Load all images of a split as (N, 3, size, size) uint8; large JPEGs are decoded at a fraction of their size."""
    if split.whole is not None:
        return load(split.whole, size)[split.rows]

    def write(array, index, path):
        array[index] = square(open_rgb(path, at_least=size * 3 // 2), size)

    return _cached_array(split, f"square {size}", (len(split), 3, size, size), write, split.paths)


def load_tile(tiles, number):
    """Load a tile: (3, H, W) uint8 image, (H, W) uint8 classes, and the number of pixels with an inexact colour."""
    image = np.asarray(open_rgb(tiles.sat(number)))
    classes, inexact, _ = read_mask(tiles.mask(number))
    _check_same_size(tiles.sat(number), image.shape[:2], "its mask", classes.shape)
    return image.transpose(2, 0, 1), classes, inexact


def load_tiles(tiles):
    """Load all tiles of a split, which must have one size.

    Returns:
        (N, 3, H, W) uint8 images, (N, H, W) uint8 classes.
    """
    width, height = _size(tiles.sat(tiles.numbers[0]))

    def write(array, index, number):
        image, classes, _ = load_tile(tiles, number)
        _check_same_size(tiles.sat(number), classes.shape, "the first tile of its split", (height, width))
        array[index, :3], array[index, 3] = image, classes

    array = _cached_array(tiles, "tiles", (len(tiles), 4, height, width), write, tiles.numbers)
    return array[:, :3], array[:, 3]


class Resized:
    """Images of a split with their shorter side resized as by torchvision; indexing returns a PIL image.

    Args:
        split: layout.Split.
        size: the shorter side in pixels.
    """

    def __init__(self, split, size):
        shapes = _map(lambda index, path: _resized_shape(path, size), split.paths)
        self.shapes = np.array(shapes)  # (N, 2) height and width
        self.offsets = np.append(0, self.shapes.prod(axis=1).cumsum())  # where each image's pixels begin, and the total

        def write(array, index, path):
            image = transforms.functional.resize(open_rgb(path), size)
            array[self.offsets[index] : self.offsets[index + 1]] = np.asarray(image).reshape(-1, 3)

        self.pixels = _cached_array(split, f"resized {size}", (int(self.offsets[-1]), 3), write, split.paths)

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        pixels = self.pixels[self.offsets[index] : self.offsets[index + 1]]
        return Image.fromarray(pixels.reshape(*self.shapes[index], 3))


def _resized_shape(path, size):
    """Return height and width after torchvision's Resize."""
    width, height = _size(path)
    longer = int(size * max(width, height) / min(width, height))
    return (size, longer) if width > height else (longer, size)


def _map(function, items):
    """Return function(index, item) for each item, with one thread per CPU; Pillow releases the GIL while it decodes."""
    with ThreadPoolExecutor(cpus.available()) as pool:  # an error cancels what has not begun
        return list(pool.map(function, range(len(items)), items))


def _cached_array(split, kind, shape, write, items):
    """Return a uint8 array of a split; with a cache folder, it is filled once and memory-mapped.

    Args:
        split: layout.Split or layout.Tiles.
        kind: what the array holds, for its file name.
        shape: shape of the array.
        write: function(array, index, item) that writes one item.
        items: paths or numbers of tiles.
    """
    if split.decoded is None:
        _map(partial(write, array := np.empty(shape, np.uint8)), items)
        return array
    fingerprint = hashes.fingerprint(split)
    path = split.decoded / f"{hashlib.sha256(f'{VERSION} {kind} {fingerprint}'.encode()).hexdigest()[:16]}.npy"
    with files.write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):  # a second process waits, then loads the array
        if not path.exists():
            with files.replacing(path) as temporary:
                array = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                _map(partial(write, array), items)
                array.flush()
            if hashes.fingerprint(split) != fingerprint:
                path.unlink()
                raise UserError(f"{split.folder} changed while its images were decoded. Run the same command again.")
    return np.load(path, mmap_mode="c")  # processes share the pages that they do not write


def _check_same_size(path, size, other, other_size):
    """Raise a UserError if a tile and another image differ in (height, width)."""
    if size != other_size:
        sizes = [f"{width} × {height}" for height, width in (size, other_size)]
        raise UserError(f"{path} is {sizes[0]} pixels, {other} {sizes[1]}; they must have the same size. Replace one.")
