"""Splits of images and tiles, as `layout.find` returns them: files, labels and groups. Nothing is decoded."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hw1lib.data import listing
from hw1lib.errors import UserError


@dataclass(frozen=True)
class Split:
    """Images of Problem 1: a folder, its files, and class numbers 0…C-1 if it has labels."""

    folder: Path
    files: tuple[str, ...]
    labels: np.ndarray | None = None  # (N,) int64; -1: an image of the pool without a label
    classes: tuple[str, ...] = ()  # class names, for plots and tables
    numbers: tuple[int, ...] | tuple[str, ...] = ()  # each class's label in the CSV, a number or a name
    groups: np.ndarray | None = None  # (N,) int64: which images show the same place; None: unknown
    decoded: Path | None = None  # folder that caches decoded images; None: no cache
    whole: "Split | None" = None  # the split that this one is a part of and is cached with
    rows: np.ndarray | None = None  # (N,) int64: which images of the whole these are

    def __len__(self):
        return len(self.files)

    def __repr__(self):
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        return f"Split({len(self):,} images{classes} in {self.folder})"

    @property
    def paths(self):
        return [self.folder / name for name in self.files]

    def counts(self):
        """Return the number of images per class, by caption; empty without labels."""
        if self.labels is None:
            return {}
        known = self.labels[self.labels >= 0]
        return dict(zip(self.classes, np.bincount(known, minlength=len(self.classes)).tolist()))

    def labelled(self):
        """Return the part of the split that has labels; None if none has."""
        if self.labels is None or (self.labels >= 0).all():
            return None if self.labels is None else self
        return self.part(np.flatnonzero(self.labels >= 0))

    def take(self, limit):
        """Return at most `limit` images, spread evenly over the split; 0 keeps all."""
        if not limit or limit >= len(self):
            return self
        return self.part(np.linspace(0, len(self) - 1, limit).round().astype(int))

    def without(self, other):
        """Return the split without the files of `other`, another part of it."""
        excluded = set(other.files)
        return self.part([i for i, name in enumerate(self.files) if name not in excluded])

    def part(self, indices):
        """Return the images at some indices, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        files = tuple(self.files[i] for i in indices)
        fields = {name: getattr(self, name) for name in ("labels", "groups", "rows")}
        fields = {name: None if values is None else values[indices] for name, values in fields.items()}
        if self.decoded is not None and self.whole is None:
            fields |= {"whole": self, "rows": indices}
        return dataclasses.replace(self, files=files, **fields)


@dataclass(frozen=True)
class Tiles:
    """Satellite tiles of Problem 2: NNNN_sat.jpg with NNNN_mask.png."""

    folder: Path
    numbers: tuple[str, ...]
    decoded: Path | None = None  # as in Split
    groups: np.ndarray | None = None  # as in Split
    names: dict = dataclasses.field(default_factory=dict)  # standard name -> actual file name, such as 0001_SAT.JPG

    def __len__(self):
        return len(self.numbers)

    def __repr__(self):
        return f"Tiles({len(self):,} in {self.folder})"

    def sat(self, number):
        """Return the path of a tile's image."""
        return self._path(f"{number}{listing.SATELLITE}")

    def mask(self, number):
        """Return the path of a tile's mask."""
        return self._path(f"{number}{listing.MASK}")

    def _path(self, name):
        return self.folder / self.names.get(name, name)

    @property
    def paths(self):
        return [path for n in self.numbers for path in (self.sat(n), self.mask(n))]

    def take(self, limit):
        """Return the first `limit` tiles; 0 keeps all."""
        groups = None if self.groups is None else self.groups[: limit or None]
        return dataclasses.replace(self, numbers=self.numbers[: limit or None], groups=groups)

    def index(self, number, setting):
        """Return the index of a tile.

        Raises:
            UserError: there is no such tile; the message names `setting`.
        """
        if number not in self.numbers:
            used = f"the {len(self)} tiles in use of {self.folder} ({self.numbers[0]} … {self.numbers[-1]})"
            raise UserError(f"{setting} names {number!r}, none of {used}. Choose others with --set {setting}=…,…,…")
        return self.numbers.index(number)


@dataclass(frozen=True)
class Problem1:
    """Mini-ImageNet and Office-Home, or the Earth sample's Americas and other continents."""

    pool: Split
    train: Split
    val: Split
    supervised_backbone: Path | None
    group_notes: tuple[str, ...] = ()  # sentences about rows of groups.csv that are not used

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
    """The contents of a data root; a problem that it lacks is None."""

    root: Path
    problem1: Problem1 | None
    problem2: Problem2 | None
    decoded: Path | None = None  # as in Split

    @property
    def has(self):
        """Return whether each problem's data is present: {1: bool, 2: bool}."""
        return {1: self.problem1 is not None, 2: self.problem2 is not None}

    def group_notes(self, problem):
        """Return sentences about rows of groups.csv that are not used in Problem 1 or 2."""
        return getattr(self, f"problem{problem}").group_notes
