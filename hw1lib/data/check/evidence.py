"""What the data doctor keeps of each image, and the copies that it finds by comparing them.

Every file is read once; little of it is kept (a Look).

Near duplicates have almost the same gray thumbnail of 16 × 16 pixels and almost the same mean
colour. The thresholds were set on the Blue Marble (400 tiles of 128 pixels, 600 of 512, 5,977
windows of 32, at most 300 of each altered): of copies saved again as JPEG of quality 60, halved or
doubled in size, or 10 % brighter, at least 99.5 % of the tiles' correlate by more than 0.97. The
most similar of the distinct images reach 0.94 (tiles) and 0.952 (windows, which overlap). In
windows of 32 pixels JPEG's noise is so strong that only about half of the copies are found.
Cropped copies are not found. Flat images, such as open sea, only have exact copies.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from hw1lib import cpus
from hw1lib.data import images, landcover
from hw1lib.data.check.leakage import sides

THUMBNAIL = 16  # pixels
SIMILAR = 0.97  # correlation of gray thumbnails
COLOUR = 24.0  # gray levels that the mean colours of two copies may differ by
FLATTEST = 3.0  # gray levels: a thumbnail that varies less, such as open sea, has only exact copies
COMPARED = 128  # images compared at once with all others


# --- reading


@dataclass(frozen=True)
class Look:
    """What is kept of one image."""

    name: str
    fault: str = ""  # why it cannot be decoded; then nothing else is known
    mode: str = ""
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    pixel_hash: bytes = b""  # of the decoded RGB pixels and their size
    thumbnail: np.ndarray | None = None  # (16, 16, 3) uint8
    sides: np.ndarray | None = None  # tiles: (4, LINE, 3) uint8
    counts: np.ndarray | None = None  # masks: (7,) pixels of each class
    stray: int = 0  # masks: pixels whose colour is not exactly a class's


def by(size):
    """Width and height in words; None stays None."""
    return size and f"{size[0]} × {size[1]}"


def read(paths, measure, title, progress=True):
    """Looks at files in threads; no more images are in memory than there are threads.

    Args:
        paths: the files.
        measure: picture, tile or mask.
        title: of a bar on standard error, where that is a terminal; `progress` False: no bar.

    Returns:
        A Look for each file, in their order.
    """
    bar = {"desc": title, "leave": False, "ncols": 80, "unit": "file", "disable": None if progress else True}
    return thread_map(functools.partial(look, measure=measure), paths, max_workers=cpus.available(), **bar)


def look(path, measure):
    """Looks at one file; `measure` is picture, tile or mask."""
    try:
        return Look(path.name, **measure(path))
    except images.Unreadable as error:
        return Look(path.name, fault=error.reason)


def picture(path, more=lambda pixels: {}):
    """The fields of a Look that finding an image's duplicates needs, and what a function of its pixels adds."""
    rgb, mode = images.read(path)
    digest = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).digest()
    small = np.asarray(rgb.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    fields = {"mode": mode, "size": rgb.size, "pixel_hash": digest, "thumbnail": small}
    return fields | more(np.asarray(rgb))


def tile(path):
    """The same of a satellite tile, and its borders."""
    return picture(path, lambda pixels: {"sides": sides(pixels)})


def mask(path):
    """The classes of a mask."""
    classes, stray, mode = images.read_mask(path)
    counts = np.bincount(classes.ravel(), minlength=len(landcover.CLASSES))
    return {"mode": mode, "size": classes.shape[::-1], "counts": counts, "stray": stray}


# --- duplicates


def exact(looks, others=None):
    """Images of the same decoded pixels as another one.

    Args:
        looks: list of Look.
        others: list in which to search; without it, among those that come earlier in `looks`.

    Returns:
        {index: index of the first one that is the same}.
    """
    first = {}
    for index, other in enumerate(looks if others is None else others):
        first.setdefault(other.pixel_hash, index)
    same = {index: first[look.pixel_hash] for index, look in enumerate(looks) if look.pixel_hash in first}
    return {i: j for i, j in same.items() if j < i} if others is None else same


def near(looks, others=None):
    """Images that are another one re-encoded, resized or made slightly brighter.

    Args:
        looks: list of Look.
        others: list in which to search; without it, among those that come earlier in `looks`.

    Returns:
        {index: index of the most similar one}; exact duplicates are not among them.
    """
    within = others is None
    if not looks or not (within or others):
        return {}
    gray, colour = _thumbnails(looks)
    gray[list(exact(looks, others))] = 0  # they resemble nothing
    other_gray, other_colour = (gray, colour) if within else _thumbnails(others)

    found = {}
    for start in range(0, len(looks), COMPARED):
        before = start + COMPARED if within else len(other_gray)
        likeness = gray[start : start + COMPARED] @ other_gray[:before].T
        row, column = np.nonzero(likeness > SIMILAR)
        close = np.abs(colour[start + row] - other_colour[column]).max(axis=1) < COLOUR
        if within:
            close &= column < start + row
        row, column = row[close], column[close]
        order = np.argsort(likeness[row, column], kind="stable")  # the most similar one comes last and stays
        found |= dict(zip((start + row[order]).tolist(), column[order].tolist()))
    return dict(sorted(found.items()))


def _thumbnails(looks):
    """Gray thumbnails (N, 256) of mean 0 and norm 1, all 0 where flat, and mean colours (N, 3)."""
    small = np.stack([look.thumbnail for look in looks])
    gray = small.mean(axis=3, dtype=np.float32).reshape(len(small), -1)
    gray -= gray.mean(axis=1, keepdims=True)
    flat = gray.std(axis=1) < FLATTEST
    gray /= np.maximum(np.linalg.norm(gray, axis=1, keepdims=True), 1e-6)
    gray[flat] = 0
    return gray, small.mean(axis=(1, 2), dtype=np.float32)
