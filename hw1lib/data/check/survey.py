"""Reads images once and keeps little of each: what the data doctor compares."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hw1lib.data import landcover
from hw1lib.data.check import leakage

THUMBNAIL = 16  # pixels
CHUNK = 256  # files handed to the threads at once: the most that an interruption waits for


@dataclass(frozen=True)
class Look:
    """What is kept of one image."""

    name: str
    fault: str = ""  # why it cannot be decoded; then nothing else is known
    mode: str = ""
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    file_hash: bytes = b""
    pixel_hash: bytes = b""  # of the decoded RGB pixels and their size
    thumbnail: np.ndarray | None = None  # (16, 16, 3) uint8
    sides: np.ndarray | None = None  # (4, L, 3) uint8: see leakage.sides
    counts: np.ndarray | None = None  # masks: (7,) pixels of each class, stray ones as unknown
    stray: int = 0  # masks: pixels whose colour is no class


def image(path):
    """Looks at one image of Problem 1."""
    return _look(path, _picture)


def tile(path):
    """Looks at one satellite tile; keeps its borders, too."""
    return _look(path, lambda rgb: {**_picture(rgb), "sides": leakage.sides(np.asarray(rgb))})


def mask(path):
    """Looks at one mask: counts its classes."""
    return _look(path, _classes)


def read(look, paths, bar):
    """Looks at files in threads.

    Args:
        look: image, tile or mask.
        paths: the files.
        bar: tqdm bar, moved on by one a file.

    Returns:
        A Look for each file, in their order. No more images are in memory than there are threads.
    """
    looks = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), CHUNK):
            for found in pool.map(look, paths[start : start + CHUNK]):
                looks.append(found)
                bar.update()
    return looks


def _look(path, measure):
    data = path.read_bytes()  # what the disk refuses is no damage of the image
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, size = image.mode, image.size
            rgb = image.convert("RGB")
        measured = measure(rgb)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any kind for damaged files
        words = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            words = "no image" if data else "an empty file"
        return Look(path.name, fault=words)
    file_hash = hashlib.sha256(data).digest()
    return Look(path.name, mode=mode, size=size, file_hash=file_hash, **measured)


def _picture(rgb):
    digest = hashlib.sha256(f"{rgb.size}".encode())
    digest.update(rgb.tobytes())
    small = rgb.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return {"pixel_hash": digest.digest(), "thumbnail": np.asarray(small)}


def _classes(rgb):
    classes, stray = landcover.decode(np.asarray(rgb))
    return {"counts": np.bincount(classes.ravel(), minlength=len(landcover.CLASSES)), "stray": stray}
