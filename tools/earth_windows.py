"""Choose the windows of the Earth sample: geometry and counting only, no files.

The grid is the Blue Marble's: 2700 × 5400 pixels (plate carrée, 1/15° each), from 90° N 180° W.
A window's position alone decides whether it is chosen, for which split and in which order, so every
build chooses the same windows.
"""

import hashlib
import itertools
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hw1lib.data import landcover

WATER = 0  # IGBP class number; data/README.md lists the others

PER_DEGREE = 15  # image pixels
TOP, BOTTOM = 12 * PER_DEGREE, 150 * PER_DEGREE  # 78° N to 60° S
AMERICAS = 12 * PER_DEGREE, 150 * PER_DEGREE  # 168° W to 30° W, the Bering Strait to Brazil
OLD_WORLD = 162 * PER_DEGREE, 360 * PER_DEGREE  # 18° W to 180°, Senegal to the date line

# Problem 1: each class is one IGBP class, which covers at least MAJORITY of its windows.
PATCH_CLASSES = {
    "EvergreenBroadleaf": 2,
    "MixedForest": 5,
    "OpenShrubland": 7,
    "WoodySavanna": 8,
    "Savanna": 9,
    "Grassland": 10,
    "Cropland": 12,
    "Barren": 16,
}
PATCH = 32
MAJORITY, MAX_WATER = 0.6, 0.3
POOL_STRIDE, POOL_CAP = 4, 800  # pool windows may overlap; the cap balances the classes
OFFICE_STRIDE, OFFICE_CAP = 8, 60
OFFICE_BLOCK, OFFICE_SHIFT = 320, (384, 192)  # a chessboard of training and validation blocks

# Problem 2: the course's class of each IGBP number 0…16.
OF_IGBP = (
    "water forest forest forest forest forest rangeland rangeland forest rangeland rangeland water agriculture unknown "
    "agriculture unknown barren"
)
COURSE_CLASS = np.array([landcover.CLASSES.index(name) for name in OF_IGBP.split()], dtype=np.uint8)
TILE = 64
MIN_LAND, MAX_UNKNOWN = 0.3, 0.5
TILE_PERIOD, TILE_SHIFT, TILE_BLOCK = (8, 12), (5, 4), 4  # in tiles, see tiles()
TILES = {"p2_data/train": 400, "p2_data/validation": 120}


class Window(NamedTuple):
    """A square of the grid, `size` pixels wide, and the file that shows it."""

    folder: str
    filename: str
    top: int
    left: int
    size: int
    label: int | None = None  # Problem 1: the class number

    @property
    def area(self):
        return np.s_[self.top : self.top + self.size, self.left : self.left + self.size]


def pool(labels):
    """Choose the pre-training pool: the Americas, at most POOL_CAP windows per class.

    Args:
        labels: (2700, 5400) uint8 IGBP land cover on the image's grid.

    Returns:
        Windows whose order and file names say nothing about their class.
    """
    candidates = _single_class(labels, AMERICAS, POOL_STRIDE)
    chosen = [(*place, label) for label, places in candidates.items() for place in _shuffled(places)[:POOL_CAP]]
    # Not the hash that chose the windows: sorted by that one, rare classes would all come last.
    return [
        Window("p1_data/mini/train", f"{i:08d}.jpg", top, left, PATCH, label)
        for i, (top, left, label) in enumerate(_shuffled(chosen, salt="order"))
    ]


def office(labels):
    """Choose the labelled windows: Africa, Eurasia and Australia, at most OFFICE_CAP per class and split.

    Blocks belong to training or validation like the squares of a chessboard. No two windows share a pixel, and
    validation windows keep one window of distance to the edge of their block, and so to all training windows.

    Args:
        labels: (2700, 5400) uint8 IGBP land cover on the image's grid.

    Returns:
        Windows of both splits, by class; files of a class are numbered across both splits.
    """
    candidates = _single_class(labels, OLD_WORLD, OFFICE_STRIDE)
    taken = np.zeros(labels.shape, dtype=bool)
    chosen = {(split, label): [] for split in ("train", "val") for label in candidates}
    for label in sorted(candidates, key=lambda label: len(candidates[label])):  # the rarest first
        for top, left in candidates[label]:
            row, y = divmod(top + OFFICE_SHIFT[0], OFFICE_BLOCK)
            column, x = divmod(left + OFFICE_SHIFT[1], OFFICE_BLOCK)
            split = ("train", "val")[(row + column) % 2]
            margin = PATCH if split == "val" else 0
            inside = margin <= min(y, x) and max(y, x) + PATCH <= OFFICE_BLOCK - margin
            window = np.s_[top : top + PATCH, left : left + PATCH]
            if inside and not taken[window].any():
                taken[window] = True
                chosen[split, label].append((top, left))
    windows = []
    for label, name in enumerate(PATCH_CLASSES):
        places = [(split, *p) for split in ("train", "val") for p in _shuffled(chosen[split, label])[:OFFICE_CAP]]
        for number, (split, top, left) in enumerate(places):
            windows.append(Window(f"p1_data/office/{split}", f"{name}{number:05d}.jpg", top, left, PATCH, label))
    return windows


def tiles(labels):
    """Choose Problem 2's tiles on a grid of TILE pixels.

    Validation tiles come from blocks of 4 × 4 tiles, one in every 8 × 12 of them; the ring of
    tiles around a block belongs to neither split. Across the date line, which cuts a tile, the
    last column counts as the first one's neighbour: blocks repeat 7 times around the Earth.

    Args:
        labels: (2700, 5400) uint8 IGBP land cover on the image's grid.

    Returns:
        Windows of both splits, without file endings, shuffled: the first few of a split are as varied
        as all of them.
    """
    places = {folder: [] for folder in TILES}
    for row, column in itertools.product(range(-(-TOP // TILE), BOTTOM // TILE), range(labels.shape[1] // TILE)):
        y, x = (row + TILE_SHIFT[0]) % TILE_PERIOD[0], (column + TILE_SHIFT[1]) % TILE_PERIOD[1]
        inside = max(y, x) < TILE_BLOCK
        ring = not inside and all(z <= TILE_BLOCK or z == n - 1 for z, n in zip((y, x), TILE_PERIOD))
        top, left = row * TILE, column * TILE
        if not ring and _is_informative(labels[top : top + TILE, left : left + TILE]):
            places["p2_data/validation" if inside else "p2_data/train"].append((top, left))
    return [
        Window(folder, f"{number:04d}", top, left, TILE)
        for folder, positions in places.items()
        for number, (top, left) in enumerate(_shuffled(positions)[: TILES[folder]])
    ]


def block(window):
    """Return the block of the Earth that a window lies in, as text; windows near each other mostly share one."""
    if window.folder.startswith("p2_data"):
        place, shift, period = (window.top // TILE, window.left // TILE), TILE_SHIFT, TILE_PERIOD
    else:
        place, shift, period = (window.top, window.left), OFFICE_SHIFT, (OFFICE_BLOCK, OFFICE_BLOCK)
    row, column = ((z + s) // n for z, s, n in zip(place, shift, period))
    return f"{window.folder.partition('/')[0]} {row} {column}"


def _is_informative(labels):
    """Return whether a tile has enough land, not too much unknown, and at least two classes."""
    pixels = np.bincount(COURSE_CLASS[labels].ravel(), minlength=len(landcover.CLASSES))
    known = pixels[landcover.UNKNOWN] < MAX_UNKNOWN * labels.size
    return np.mean(labels != WATER) > MIN_LAND and known and np.count_nonzero(pixels[: landcover.UNKNOWN]) >= 2


def _single_class(labels, longitudes, stride):
    """Find all windows of PATCH pixels between two longitudes that show mostly one of PATCH_CLASSES.

    Returns:
        {class number: [(top, left), …]} in reading order.
    """
    area = labels[TOP:BOTTOM, slice(*longitudes)]
    dry = _count(area == WATER, stride) <= MAX_WATER * PATCH**2
    candidates = {}
    for label, igbp in enumerate(PATCH_CLASSES.values()):
        full = _count(area == igbp, stride) >= MAJORITY * PATCH**2
        places = np.argwhere(dry & full) * stride + (TOP, longitudes[0])
        candidates[label] = [tuple(place) for place in places.tolist()]
    return candidates


def _count(mask, stride):
    """Count the True pixels of (H, W) `mask` in each window of PATCH pixels, one window every `stride` pixels."""
    rows, columns = (side // stride for side in mask.shape)
    blocks = mask[: rows * stride, : columns * stride].reshape(rows, stride, columns, stride).sum(axis=(1, 3))
    return sliding_window_view(blocks, (PATCH // stride, PATCH // stride)).sum(axis=(2, 3))


def _shuffled(places, salt=""):
    """Sort by a hash of (top, left): a shuffle that is the same on every machine."""
    return sorted(places, key=lambda place: hashlib.sha256(f"{salt}{place[0]},{place[1]}".encode()).digest())
