"""The course's folder layout: which files there are, with which labels.

Everything countable (images, classes, sizes) is read here from the data; the Earth sample has
the same layout, so both run through the same code. Nothing is decoded.
"""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hw1lib.data import listing
from hw1lib.data.csv_rows import HINT, absent_files, leaves, listed, quoted, shortened
from hw1lib.data.groups import Groups
from hw1lib.errors import UserError

SPLIT = "split.json"  # beside p2_data where data split made it: what it is


@dataclass(frozen=True)
class Split:
    """Images of Problem 1: a folder, its files, and class numbers 0…C-1 where there are any."""

    folder: Path
    files: tuple[str, ...]
    labels: np.ndarray | None = None  # (N,) int64; -1: an image of the pool without a label
    classes: tuple[str, ...] = ()  # captions of the classes
    numbers: tuple[int, ...] | tuple[str, ...] = ()  # each class's label in the CSV, a number or a name
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
        known = self.labels[self.labels >= 0]
        return dict(zip(self.classes, np.bincount(known, minlength=len(self.classes)).tolist()))

    def labelled(self):
        """The part of the split that has labels; None without any."""
        if self.labels is None or (self.labels >= 0).all():
            return None if self.labels is None else self
        return self.part(np.flatnonzero(self.labels >= 0))

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
    group_notes: tuple[str, ...] = ()  # what of groups.csv is not used: sentences

    @property
    def classes(self):
        return self.train.classes


@dataclass(frozen=True)
class Problem2:
    """Tiles with masks."""

    train: Tiles
    validation: Tiles
    group_notes: tuple[str, ...] = ()  # as in Problem1


@dataclass(frozen=True)
class Layout:
    """What a data root holds; a problem that is not there is None."""

    root: Path
    problem1: Problem1 | None
    problem2: Problem2 | None
    decoded: Path | None = None  # as in Split

    @property
    def has(self):
        """Which of the two problems there is: dict from 1, 2 to bool."""
        return {1: self.problem1 is not None, 2: self.problem2 is not None}

    def group_notes(self, problem):
        """Sentences about what of groups.csv is not used in Problem 1 or 2."""
        return getattr(self, f"problem{problem}").group_notes


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
    problems, groups = [], Groups(root)
    for name, read in (("1", _problem1), ("2", _problem2)):
        folder, wanted = root / f"p{name}_data", only in ("", f"problem{name}")
        problems.append(read(folder, limits, decoded, groups) if wanted and folder.is_dir() else None)
    if not any(problems):
        absent = f"no p{only[-1]}_data/" if only else "neither p1_data/ nor p2_data/"
        raise UserError(f"{root} holds {absent}. {HINT} Give the folder above them with --data-root (make: DATA=…).")
    return Layout(root, *problems, decoded)


def _problem1(root, limits, decoded, groups):
    pool, backbone = _pool(root / "mini" / "train"), root / "pretrain_model_SL.pt"
    train, val = (_labelled(root / "office" / split) for split in ("train", "val"))
    if fault := disagreement(train, val):
        raise UserError(f"{root}/office: {fault}")
    val = dataclasses.replace(val, classes=train.classes)
    notes = groups.notes({split.folder: split.files for split in (train, val)})
    train, val = (dataclasses.replace(split, groups=groups.of(split.folder, split.files)) for split in (train, val))
    limited = ((pool, limits.pool_limit), (train, limits.office_limit), (val, limits.office_limit))
    used = [dataclasses.replace(split.take(limit), decoded=decoded) for split, limit in limited]
    for split, setting, need in zip(used, ("pool", "office"), ("two images", "images of two classes")):
        if len(split) < 2 or (setting == "office" and len(np.unique(split.labels)) < 2):
            few = f"{len(split)} in use, but training needs {need}"
            raise UserError(f"{split.folder}: {few}. Add images or raise data.{setting}_limit.")
    return Problem1(*used, backbone if backbone.is_file() else None, notes)


def disagreement(train, val):
    """Say why networks cannot be trained on one split and scored on the other; empty where they can.

    Labels identify classes; how their files are called does not matter.
    """
    of = {**dict(zip(val.numbers, val.classes)), **dict(zip(train.numbers, train.classes))}
    kinds = [type(split.numbers[0]) for split in (train, val)]
    if kinds[0] != kinds[1]:
        first = [quoted(str(split.numbers[0])) for split in (train, val)]
        return (
            f"train.csv and val.csv have labels of two kinds, such as {first[0]} and {first[1]}. Use numbers or names."
        )
    if odd := sorted(set(train.numbers) ^ set(val.numbers)):
        named = ", ".join(_called(label, of[label]) for label in odd[:8]) + (" …" if len(odd) > 8 else "")
        text = f"train.csv and val.csv do not have the same labels; only one of them has {named}"
        return f"{text}. Every class needs training and validation images, with one label in both."
    if len(of) == 1:
        return f"all images are of one class, {_called(*of.popitem())}. Training and scoring need at least two classes."
    return ""


def _called(label, caption):
    return str(label) if str(label) == caption else f"{label} ({caption})"


def _problem2(root, limits, decoded, groups):
    parts = [_tiles(root / split) for split in ("train", "validation")]
    names = [[tiles.sat(n).name for n in tiles.numbers] for tiles in parts]
    known = [dataclasses.replace(tiles, groups=groups.of(tiles.folder, of)) for tiles, of in zip(parts, names)]
    used = (dataclasses.replace(tiles.take(limits.tile_limit), decoded=decoded) for tiles in known)
    return Problem2(*used, groups.notes({tiles.folder: of for tiles, of in zip(parts, names)}))


def _names(folder, end):
    """Names of a folder's files that end so, sorted; a folder that may not be read is not called empty."""
    if not (names := listing.ending(listing.files(folder), end)):
        raise UserError(f"{folder} has no *{end} files. {HINT}")
    _refuse_outside(folder, names, folder)
    return tuple(names)


def _refuse_outside(folder, names, source):
    if outside := [name for name in names if leaves(folder, name)]:
        remedy = "Copy such files into it; the folder itself may be a link."
        raise UserError(f"{source}: {quoted(outside[0])} leads out of {folder}. {remedy}")


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
    rows, _ = listed(folder)
    _refuse_outside(folder, rows["given"][rows["outside"]], folder.with_suffix(".csv"))
    if absent := absent_files(rows):
        where = f"files that {folder} lacks: {shortened(absent)}"
        raise UserError(f"{folder.with_suffix('.csv')} names {where}. Add them or take their rows away.")
    return labelled(folder, rows)


def _pool(folder):
    """The pool: what its CSV lists of the files that are there, or all images where no CSV can be used."""
    rows, table = None, folder.with_suffix(".csv")
    if table.is_file():
        rows, _ = listed(folder, required=False)
    if rows is not None:
        _refuse_outside(folder, rows["given"][rows["outside"]], table)
        rows = rows[rows["filename"].notna()]
    return Split(folder, _names(folder, ".jpg")) if rows is None or rows.empty else labelled(folder, rows)


def labelled(folder, rows):
    """A split from rows with filename and label, numbers with or without gaps, or names; None: no label."""
    files, labels = tuple(rows["filename"]), rows["label"].tolist()
    numbers = sorted(set(labels) - {None})
    if not numbers:
        return Split(folder, files)
    places = {None: -1} | {label: place for place, label in enumerate(numbers)}
    prefixes = {label: Counter() for label in numbers}
    for name, label in zip(files, labels):
        if label is not None:
            prefixes[label][re.match(r"[A-Za-z_]*", name).group()] += 1
    classes = [label if isinstance(label, str) else _caption(label, prefixes[label]) for label in numbers]
    if len(set(classes)) < len(classes):  # letters that say nothing, as in img001.jpg
        classes = list(map(str, numbers))
    return Split(folder, files, np.array([places[label] for label in labels], np.int64), tuple(classes), tuple(numbers))


def _caption(label, prefixes):
    """The leading letters that most of a label's files share, else its number."""
    prefix, count = prefixes.most_common(1)[0]
    return prefix if prefix and 2 * count > prefixes.total() else str(label)
