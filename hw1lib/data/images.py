"""Decodes images and masks, and keeps whole splits as uint8 arrays on disk for all steps, seeds and processes."""

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

TOGETHER = 32  # images that a thread is given at once: so little is done in vain after an error
VERSION = 3  # raised when images are decoded or resized otherwise
LONGEST = 100  # times the shorter side: longer images are not resized as a whole
TURNS = {  # EXIF orientation -> what puts the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Unreadable(UserError):
    """An image file that is missing, damaged or not clear in what it holds; `reason` says which."""

    def __init__(self, path, reason):
        super().__init__(f"{path} cannot be decoded ({reason}). Replace it, or remove it with its row, tile or mask.")
        self.reason = reason


def read(path, at_least=None):
    """Decode any image file: the one place that does.

    16 bits are scaled by the range of the data type, and EXIF orientation is honoured.

    Args:
        path: of the file.
        at_least: sides in pixels that are enough: JPEG is then decoded at a half, quarter or eighth of its size.

    Returns:
        The upright RGB image, and the mode of the file, such as L, or RGB;16 for 16 bits a band.

    Raises:
        Unreadable: the file is missing or damaged, or it has several pages, transparent pixels or more than 16 bits.
    """
    with _opened(path) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        deep = re.search(r"\b(RGBA?|LA);16", str(image.tile))
        mode, turn = f"{image.mode};16" if deep else image.mode, TURNS.get(_orientation(image))
        image = _to_rgb(image)
        return (image if turn is None else image.transpose(turn)), mode


def open_rgb(path, at_least=None):
    """Decode any image file to an upright RGB image, as `read` does."""
    return read(path, at_least)[0]


def read_mask(path):
    """Decode a mask in the course's colours: the one place that does.

    Returns:
        (H, W) uint8 classes, the number of pixels whose colour is not exactly a class's (see landcover.decode), and the
        mode of the file.

    Raises:
        Unreadable: the file cannot be decoded, or it holds class numbers or gray levels instead of colours.
    """
    image, mode = read(path)
    remedy = f"(mode {mode}): save it in the course's 8-bit colours, such as cyan (0, 255, 255) for urban"
    if ";16" in mode:
        raise Unreadable(path, f"16 bits per channel {remedy}")
    if odd := _levels_of_no_colour(image, mode):
        raise Unreadable(path, f"class numbers or gray levels such as {odd} instead of colours {remedy}")
    return *landcover.decode(np.asarray(image)), mode


def _levels_of_no_colour(image, mode):
    """The first values that show that a mask holds no colours, as text; empty where it does.

    Files with a single band or a palette must be near the course's colours. In RGB gray levels alone are no colours
    where none but 255 (often "ignore") reaches the threshold.
    """
    colours, levels = np.asarray(image), np.flatnonzero(np.reshape(image.histogram(), (3, 256)).any(axis=0))
    single, dark = mode[0] in "1LP", levels[(levels > 0) & (levels < landcover.THRESHOLD)]
    between = levels[(levels > 63) & (levels < 192)]
    odd = between if single else dark[:0]
    if len(dark) and (colours == colours[..., :1]).all() and (single or not set(levels) - {0, 255, *dark}):
        odd = dark
    return ", ".join(map(str, odd[:3]))


def _size(path):
    """Width and height of the upright image, from the file's first bytes."""
    with _opened(path) as image:
        return image.size[::-1] if _orientation(image) >= 5 else image.size


@contextlib.contextmanager
def _opened(path):
    """An open image of one page; only Pillow's work is done in here, so that no fault of ours is called damage."""
    try:
        with Image.open(path) as image:
            if (pages := _pages(image)) > 1:
                raise ValueError(f"{pages} pages or frames: save the one that is meant as a file of its own")
            if 0 in image.size:
                raise ValueError("no pixels")
            if image.format == "TIFF" and 0 in (image.tag_v2.get(338) or ()):  # ExtraSamples that are no transparency
                bands = image.tag_v2.get(277)
                raise ValueError(f"{bands} bands: save the three that are red, green and blue as RGB")
            yield image
    except Exception as error:  # Pillow's decoders raise errors of any kind for damaged files
        raise Unreadable(path, _reason(path, error)) from error


def _pages(image):
    """Pages or frames of an image, without previews of the first one."""
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if count == 1 or image.format != "TIFF":
        return count
    whole = 0
    for page in reversed(range(count)):
        image.seek(page)
        whole += not image.tag_v2.get(254, 0) & 5  # NewSubfileType: smaller copies and transparency masks
    return whole


def _orientation(image):
    """EXIF orientation 1 … 8; Pillow itself turns TIFF, and damaged EXIF says nothing."""
    try:
        return 1 if image.format == "TIFF" else int(image.getexif().get(0x0112, 1))
    except OSError:  # PNG: getexif decodes all
        raise
    except Exception:
        return 1


def _to_rgb(image):
    """An image as 8-bit RGB.

    Raises:
        ValueError: its values have no known range, or pixels are transparent.
    """
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"{kind} (mode {image.mode}), whose range is not known: save it with 8 or 16 bits a band")
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        if 0 < pixels.max() < 256:
            raise ValueError("16 bits (mode I;16), but no value above 255: save it with 8 bits a band")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if image.has_transparency_data:
        mode, image = image.mode, image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise ValueError(
                f"transparent pixels (mode {mode}), whose colour is not known: save it without transparency"
            )
    return image.convert("RGB")


def _reason(path, error):
    """Why a file cannot be decoded: words without its name."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels: cut it into tiles"
    if isinstance(error, MemoryError):
        return "too large for this computer's memory: cut it into tiles"
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, Image.UnidentifiedImageError):
        with open(path, "rb") as file:
            start = file.read(4)
        if start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return "a TIFF of other bands or bits than can be read: save three bands of 8 bits as RGB"
        return "no image that can be read" if start else "an empty file"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def square(image, size):
    """Resizes the shorter side to `size` and crops the centre; returns (3, size, size) uint8."""
    narrow = LONGEST * min(image.size)
    if max(image.size) > narrow:  # the rest would be cut off, but resized before
        left, top = ((side - min(side, narrow)) // 2 for side in image.size)
        image = image.crop((left, top, left + min(image.width, narrow), top + min(image.height, narrow)))
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
    """One tile: (3, H, W) uint8 image, (H, W) uint8 classes, number of mask pixels that are not exactly of a colour."""
    image = np.asarray(open_rgb(tiles.sat(number)))
    classes, inexact, _ = read_mask(tiles.mask(number))
    _same_size(tiles.sat(number), image.shape[:2], "its mask", classes.shape)
    return image.transpose(2, 0, 1), classes, inexact


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
    if max(width, height) > LONGEST * min(width, height):
        raise UserError(f"{path} has {width} × {height} pixels, too long and narrow to be resized. Crop or remove it.")
    longer = int(size * max(width, height) / min(width, height))
    return (size, longer) if width > height else (longer, size)


def _each(function, items):
    """What function(place, item) gives for each item, in a thread a CPU: Pillow lets others work while it decodes."""

    def some(first):
        return [function(place, item) for place, item in enumerate(items[first : first + TOGETHER], first)]

    with ThreadPoolExecutor(cpus.available()) as pool:  # more threads wait for each other
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
    with files.write_errors(path):
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
