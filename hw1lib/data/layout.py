"""The course's folder layout: which files there are, with which labels.

Everything countable (images, classes, sizes) is read here from the data; the Earth sample has
the same layout, so both run through the same code. Nothing is decoded.
"""

import dataclasses
import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hw1lib import files
from hw1lib.data import listing
from hw1lib.data.csv_rows import HINT, read_labels, read_rows
from hw1lib.errors import UserError

SPLIT = "split.json"  # beside p2_data where data split made it: what it is
GROUPS = "groups.csv"  # beside p1_data and p2_data, may be absent: which images are of one place
PARTS = ("mini", "mini/train", "office", "office/train", "office/val", "train", "validation")


@dataclass(frozen=True)
class Split:
    """Images of Problem 1: a folder, its files, and class numbers 0…C-1 where there are any."""

    folder: Path
    files: tuple[str, ...]
    labels: np.ndarray | None = None  # (N,) int64
    classes: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()  # each class's label in the CSV, where labels may have gaps
    groups: np.ndarray | None = None  # (N,) int64: which images are of one place; None: not known
    decoded: Path | None = None  # folder of decoded images; None: they are decoded where they are used
    whole: "Split | None" = None  # what this is a part of, decoded with it, and which rows of it this is
    rows: np.ndarray | None = None

    def __len__(self):
        return len(self.files)

    def __repr__(self):
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        return f"Split({len(self):,} images{classes} in {self.folder})"

    @property
    def paths(self):
        return [self.folder / name for name in self.files]

    def counts(self):
        """Number of images of each class, by name; empty without labels."""
        if self.labels is None:
            return {}
        return dict(zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)).tolist()))

    def take(self, limit):
        """The split with at most `limit` files, evenly over it; 0 keeps all."""
        if not limit or limit >= len(self):
            return self
        return self.part(np.linspace(0, len(self) - 1, limit).round().astype(int))

    def without(self, other):
        """The split without the files of another part of it."""
        left = set(other.files)
        return self.part([i for i, name in enumerate(self.files) if name not in left])

    def part(self, chosen):
        chosen = np.asarray(chosen, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        groups = None if self.groups is None else self.groups[chosen]
        files = tuple(self.files[i] for i in chosen)
        part = dataclasses.replace(self, files=files, labels=labels, groups=groups)
        if self.decoded is None:
            return part
        rows = chosen if self.rows is None else self.rows[chosen]
        return dataclasses.replace(part, whole=self if self.whole is None else self.whole, rows=rows)


@dataclass(frozen=True)
class Tiles:
    """Satellite tiles of Problem 2: NNNN_sat.jpg with NNNN_mask.png."""

    folder: Path
    numbers: tuple[str, ...]
    decoded: Path | None = None  # as in Split
    groups: np.ndarray | None = None  # (N,) int64, as in Split
    odd: dict = dataclasses.field(default_factory=dict)  # usual name -> the file's own, such as 0001_SAT.JPG

    def __len__(self):
        return len(self.numbers)

    def __repr__(self):
        return f"Tiles({len(self):,} in {self.folder})"

    def sat(self, number):
        return self._path(number, listing.SATELLITE)

    def mask(self, number):
        return self._path(number, listing.MASK)

    def _path(self, number, end):
        return self.folder / self.odd.get(f"{number}{end}", f"{number}{end}")

    @property
    def paths(self):
        return [path for n in self.numbers for path in (self.sat(n), self.mask(n))]

    def take(self, limit):
        """The first `limit` tiles; 0 keeps all."""
        groups = None if self.groups is None else self.groups[: limit or None]
        return dataclasses.replace(self, numbers=self.numbers[: limit or None], groups=groups)

    def index(self, number, setting):
        """Where a tile stands; `setting` is the one that names it, for the error."""
        if number not in self.numbers:
            used = f"{len(self)} tiles in use of {self.folder} ({self.numbers[0]} … {self.numbers[-1]})"
            raise UserError(f"{setting} names {number!r}, none of the {used}. Name others with --set {setting}=…,…,…")
        return self.numbers.index(number)


@dataclass(frozen=True)
class Problem1:
    """Mini-ImageNet (or the Earth sample's Americas) and Office-Home (the other continents)."""

    pool: Split
    train: Split
    val: Split
    supervised_backbone: Path | None

    @property
    def classes(self):
        return self.train.classes


@dataclass(frozen=True)
class Problem2:
    """Tiles with masks."""

    train: Tiles
    validation: Tiles


@dataclass(frozen=True)
class Layout:
    """What a data root holds; a problem that is not there is None."""

    root: Path
    problem1: Problem1 | None
    problem2: Problem2 | None

    @property
    def has(self):
        """Which of the two problems there is: dict from 1, 2 to bool."""
        return {1: self.problem1 is not None, 2: self.problem2 is not None}


def find(root, limits, only="", decoded=None):
    """Reads the layout under `root`.

    Args:
        root: folder that holds p1_data/, p2_data/ or both.
        limits: settings.Data, how much of it to use.
        only: problem1 or problem2: the other one is not looked at, as if it were not there.
        decoded: folder that keeps decoded images; None: none are kept.

    Raises:
        UserError: neither problem is there, or one is incomplete.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no data folder {root}. {HINT}")
    problems, groups = [], _groups(root)
    for name, read in (("1", _problem1), ("2", _problem2)):
        folder, wanted = root / f"p{name}_data", only in ("", f"problem{name}")
        problems.append(read(folder, limits, decoded, groups) if wanted and folder.is_dir() else None)
    if not any(problems):
        absent = f"no p{only[-1]}_data/" if only else "neither p1_data/ nor p2_data/"
        raise UserError(f"{root} holds {absent}. {HINT} Give the folder above them with --data-root (make: DATA=…).")
    return Layout(root, *problems)


def _problem1(root, limits, decoded, groups):
    folder, backbone = root / "mini" / "train", root / "pretrain_model_SL.pt"
    has_table = folder.with_suffix(".csv").is_file()
    pool = _labelled(folder) if has_table else Split(folder, _names(folder, ".jpg"))
    train, val = _labelled(root / "office" / "train"), _labelled(root / "office" / "val")
    if train.classes != val.classes:
        odd = ", ".join((sorted(set(train.classes) ^ set(val.classes)) or train.classes)[:8])
        text = f"train.csv and val.csv do not name the same classes in the same order; they differ in {odd}"
        raise UserError(f"{root}/office: {text}. Every class needs images and one number in both.")
    train, val = (_grouped(split, split.files, root.parent, groups) for split in (train, val))
    limited = ((pool, limits.pool_limit), (train, limits.office_limit), (val, limits.office_limit))
    used = (dataclasses.replace(split.take(limit), decoded=decoded) for split, limit in limited)
    return Problem1(*used, backbone if backbone.is_file() else None)


def _problem2(root, limits, decoded, groups):
    found = (_tiles(root / split) for split in ("train", "validation"))
    known = (_grouped(tiles, [tiles.sat(n).name for n in tiles.numbers], root.parent, groups) for tiles in found)
    return Problem2(*(dataclasses.replace(tiles.take(limits.tile_limit), decoded=decoded) for tiles in known))


def _groups(root):
    """The groups of groups.csv (split, filename, group), where that is there: {(split, file name): number}."""
    if not (table := root / GROUPS).is_file():
        return {}
    rows = read_rows(table, "split", "filename", "group")
    places = zip(rows["split"], rows["filename"])
    return dict(zip(places, np.unique(rows["group"], return_inverse=True)[1].tolist()))


def _grouped(split, names, root, groups):
    """A split with the groups of its files, if they are known of all."""
    place = split.folder.relative_to(root).as_posix()
    found = [groups.get((place, name)) for name in names]
    return split if None in found else dataclasses.replace(split, groups=np.array(found, dtype=np.int64))


def _names(folder, end):
    """Names of a folder's files that end so, sorted; a folder that may not be read is not called empty."""
    if not (names := listing.ending(listing.files(folder), end)):
        raise UserError(f"{folder} has no *{end} files. {HINT}")
    _refuse_outside(folder, names, folder)
    return tuple(names)


def leaves(folder, name):
    """Whether the name of a file, such as one from a CSV, leads out of its folder."""
    if os.path.basename(name) != name or "\0" in name:
        return True
    path = os.path.join(folder, name)
    # Not Path.resolve(), which fails where links go round in a loop.
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _refuse_outside(folder, names, source):
    if outside := [name for name in names if leaves(folder, name)]:
        remedy = "Copy such files into it; the folder itself may be a link."
        raise UserError(f"{source}: {outside[0]!r} is a link out of {folder} or no plain file name. {remedy}")


def _tiles(folder):
    tiles, twice = listing.numbered(_names(folder, listing.SATELLITE), listing.SATELLITE)
    masks, others = listing.numbered(listing.files(folder), listing.MASK)
    if twice := twice + [name for number, name in others if number in tiles]:
        remedy = "Remove one of the two."
        raise UserError(f"{folder}: {twice[0][1]} differs from another file only in upper and lower case. {remedy}")
    if bare := [number for number in tiles if number not in masks]:
        remedy = f"Add the masks or take those {listing.SATELLITE} files away."
        raise UserError(f"{folder}: {len(bare)} tiles have no mask, first {bare[0]}{listing.MASK}. {remedy}")
    used = {
        number + end: names[number]
        for end, names in ((listing.SATELLITE, tiles), (listing.MASK, masks))
        for number in tiles
    }
    _refuse_outside(folder, [masks[number] for number in tiles], folder)
    return Tiles(folder, tuple(tiles), odd={usual: name for usual, name in used.items() if usual != name})


def _labelled(folder):
    """A split from the CSV beside its folder; its files must all be there."""
    table = folder.with_suffix(".csv")
    rows = read_labels(table)
    if folder.is_dir():
        os.scandir(folder).close()  # what may not be read is not called absent
    _refuse_outside(folder, rows["filename"], table)
    if absent := [name for name in rows["filename"] if not os.path.isfile(folder / name)]:
        where = f"{len(absent)} files that {folder} does not have, first {absent[0]}"
        raise UserError(f"{table} names {where}. Add them or take their rows away.")
    return labelled(folder, rows)


def labelled(folder, rows):
    """A split from rows with filename and label; labels may have gaps."""
    numbers, classes = np.unique(rows["label"], return_inverse=True)
    names = [_class_name(n, rows["filename"][classes == i]) for i, n in enumerate(numbers)]
    if len(set(names)) < len(names):  # letters that say nothing, as in img001.jpg
        names = [str(n) for n in numbers]
    return Split(folder, tuple(rows["filename"]), classes.astype(np.int64), tuple(names), tuple(numbers.tolist()))


def _class_name(number, files):
    """The leading letters that a label's files share, else its number."""
    shared, *others = {re.match(r"[A-Za-z_]*", name).group() for name in files}
    return str(number) if others or not shared else shared


def fingerprint(split):
    """A hash of a split's file names, contents and labels, as hex."""
    total = hashlib.sha256()
    for path in split.paths:
        total.update(os.fsencode(path.name) + b"\0" + digest(path))
    if (labels := getattr(split, "labels", None)) is not None:
        total.update("\0".join(split.classes).encode() + labels.tobytes())
    return total.hexdigest()


def folder_fingerprint(folder):
    """A hash of everything in a folder but weights: names and contents, as hex."""
    total = hashlib.sha256()
    folder = Path(folder)
    for part in PARTS:  # these alone, so that no link leads round in circles or elsewhere
        for path in sorted((folder / part).iterdir()) if (folder / part).is_dir() else ():
            if path.suffix != ".pt" and path.is_file():
                total.update(os.fsencode(path.relative_to(folder)) + b"\0" + digest(path))
    return total.hexdigest()


def digest(path):
    """SHA-256 of a file, as bytes; computed anew only when its size or date changes."""
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _digest_of(path, size, date):
    return bytes.fromhex(files.digest(path))
