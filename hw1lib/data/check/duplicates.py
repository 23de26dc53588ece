"""Duplicates: images with equal pixels, and near duplicates, which were re-encoded, resized or made brighter.

Near duplicates have almost the same gray thumbnail of 16 × 16 pixels and almost the same mean
colour. The thresholds were set on the Blue Marble (400 tiles of 128 pixels, 600 of 512, 5,977
windows of 32, at most 300 of each altered): of tiles saved again as JPEG of quality 60, halved or
doubled in size, or 10 % brighter, at least 99.5 % correlate by more than 0.97 with the original.
The most similar distinct images reach 0.94 (tiles) and 0.952 (windows, which overlap). In windows
of 32 pixels JPEG noise is so strong that only about half of the copies are found. Cropped copies
are not found. Flat images, such as open sea, only have exact duplicates.
"""

from dataclasses import dataclass

import numpy as np

THUMBNAIL = 16  # pixels
SIMILAR = 0.97  # correlation of gray thumbnails
COLOUR = 24.0  # gray levels by which the mean colours of two copies may differ
FLATTEST = 3.0  # gray levels: a thumbnail with a smaller deviation only has exact duplicates
COMPARED = 128  # images compared at once with all others


@dataclass(frozen=True)
class Summary:
    """Properties of one image file that the data check compares."""

    name: str
    fault: str = ""  # why it cannot be decoded; the other fields are then empty
    mode: str = ""
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    pixel_hash: bytes = b""  # SHA-256 of the RGB pixels and their size
    thumbnail: np.ndarray | None = None  # (16, 16, 3) uint8
    borders: np.ndarray | None = None  # tiles: (4, LINE, 3) uint8, see leakage.borders
    counts: np.ndarray | None = None  # masks: (7,) pixels of each class
    inexact: int = 0  # masks: pixels that do not have exactly a class's colour


def exact(images, others=None):
    """Find images with the same pixels as another one.

    Args:
        images: list of Summary.
        others: list of Summary to search; None: the earlier ones in `images`.

    Returns:
        Dict from index to the index of the first equal image.
    """
    first = {}
    for index, other in enumerate(images if others is None else others):
        first.setdefault(other.pixel_hash, index)
    pairs = {index: first[image.pixel_hash] for index, image in enumerate(images) if image.pixel_hash in first}
    return {i: j for i, j in pairs.items() if j < i} if others is None else pairs


def near(images, others=None):
    """Find images that are another one re-encoded, resized or made slightly brighter.

    Args:
        images, others: as in `exact`.

    Returns:
        Dict from index to the index of the most similar image; exact duplicates are left out.
    """
    within = others is None
    if not images or not (within or others):
        return {}
    gray, colour = _thumbnails(images)
    gray[list(exact(images, others))] = 0  # zeros resemble no image
    other_gray, other_colour = (gray, colour) if within else _thumbnails(others)

    pairs = {}
    for start in range(0, len(images), COMPARED):
        end = start + COMPARED if within else len(other_gray)
        similarity = gray[start : start + COMPARED] @ other_gray[:end].T
        row, column = np.nonzero(similarity > SIMILAR)
        close = np.abs(colour[start + row] - other_colour[column]).max(axis=1) < COLOUR
        if within:
            close &= column < start + row
        row, column = row[close], column[close]
        order = np.argsort(similarity[row, column], kind="stable")  # the most similar comes last and is kept
        pairs |= dict(zip((start + row[order]).tolist(), column[order].tolist()))
    return dict(sorted(pairs.items()))


def _thumbnails(images):
    """Return gray thumbnails (N, 256) of mean 0 and norm 1, all 0 where flat, and mean colours (N, 3)."""
    small = np.stack([image.thumbnail for image in images])
    gray = small.mean(axis=3, dtype=np.float32).reshape(len(small), -1)
    gray -= gray.mean(axis=1, keepdims=True)
    flat = gray.std(axis=1) < FLATTEST
    gray /= np.maximum(np.linalg.norm(gray, axis=1, keepdims=True), 1e-6)
    gray[flat] = 0
    return gray, small.mean(axis=(1, 2), dtype=np.float32)
