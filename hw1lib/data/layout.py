"""The course's folder layout: find the images, labels and tiles of a data root, and everything wrong with them.

`find` raises the first error; the data check (check/doctor.py) lists all of them. Nothing is decoded. Classes and
counts come from the data, so the course's data and the Earth sample run through the same code.
"""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from hw1lib.data import csv_rows, listing
from hw1lib.data.csv_rows import HINT, Groups, quoted, shortened
from hw1lib.data.listing import MASK, SATELLITE
from hw1lib.data.splits import Layout, Problem1, Problem2, Split, Tiles
from hw1lib.errors import UserError, remedy, visible

SPLIT = "split.json"  # beside p2_data where `data split` wrote it: facts about the new split


def find(root, limits, only="", decoded=None):
    """Find the splits of a data root.

    Args:
        root: folder that holds p1_data/, p2_data/ or both.
        limits: settings.Data, how many images and tiles to use.
        only: problem1 or problem2, to leave the other one out.
        decoded: folder that caches decoded images; None: no cache.

    Returns:
        Layout.

    Raises:
        UserError: neither problem is present, or one is incomplete.
    """
    problems, groups = {1: None, 2: None}, Groups(root)
    with read_errors():
        for number, folder in problem_folders(root, only).items():
            scan = {1: scan_problem1, 2: scan_problem2}[number](folder, groups, limits, decoded)
            if scan.errors:
                raise UserError(scan.errors[0])
            problems[number] = scan.problem
    return Layout(Path(root), *problems.values(), decoded)


@contextlib.contextmanager
def read_errors():
    """Re-raise the system's errors about reading files, such as missing permissions, as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}. {remedy(error)}") from error


def problem_folders(root, only=""):
    """Return the folders p1_data and p2_data that exist, by the problem's number.

    Raises:
        UserError: there is neither, or not the one in `only`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no data folder {root}. {HINT}")
    folders = {number: root / f"p{number}_data" for number in (1, 2) if only in ("", f"problem{number}")}
    present = {number: folder for number, folder in folders.items() if folder.is_dir()}
    if not present:
        absent = f"no p{only[-1]}_data/" if only else "neither p1_data/ nor p2_data/"
        raise UserError(f"{root} holds {absent}. {HINT} Give the folder above them with --data-root (make: DATA=…).")
    return present


@dataclass
class Part:
    """One folder of images or tiles.

    Attributes:
        folder: the folder.
        word: image or tile, for messages.
        listing: names of its visible files.
        files, masks: names of the images and masks in use.
        rows: rows of its CSV whose files exist, with filename and label; None without such rows.
        missing: names in its CSV that are no files of the folder.
        split: Split or Tiles; None where files are missing.
        facts: what the data check counts.
        images, decoded_masks: the data check's Summary of each file that can be decoded.
    """

    folder: Path
    word: str
    listing: list = field(default_factory=list)
    files: list = field(default_factory=list)
    masks: list = field(default_factory=list)
    rows: pd.DataFrame | None = None
    missing: list = field(default_factory=list)
    split: Split | Tiles | None = None
    facts: dict = field(default_factory=dict)
    images: list = field(default_factory=list)
    decoded_masks: list = field(default_factory=list)

    @property
    def table(self):
        """Path of the CSV of its images."""
        return self.folder.with_suffix(".csv")


@dataclass
class Scan:
    """The contents of a problem's folder, and the errors and warnings about them.

    Attributes:
        folder: p1_data or p2_data.
        parts: list of Part.
        errors: sentences about what stops a run, and what to do about it.
        warnings: sentences about what weakens the numbers or is not used.
        problem: Problem1 or Problem2, limited; None if there are errors.
        facts: what the data check counts, plain JSON.
    """

    folder: Path
    parts: list
    errors: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    problem: Problem1 | Problem2 | None = None
    facts: dict = field(default_factory=dict)

    def error(self, path, text):
        """Add an error about a file or folder; nothing if the text is empty."""
        self.errors += [visible(f"{path}: {text}")] if text else []

    def warn(self, path, text):
        """Add a warning about a file or folder; nothing if the text is empty."""
        self.warnings += [visible(f"{path}: {text}")] if text else []


def describe(names, noun, verb, rest, advice=""):
    """Return a sentence such as "2 images are tiny: a.jpg, b.jpg." and the advice; "" without names.

    Args:
        names: the files or cells concerned.
        noun: what they are, in the singular.
        verb: singular and plural, such as "is|are", or one word for both.
        rest: the words after the verb.
        advice: another sentence.
    """
    one, _, many = verb.partition("|")
    verb = one if len(names) == 1 else many or one
    return f"{plural(len(names), noun)} {verb} {rest}: {shortened(names)}. {advice}".rstrip() if names else ""


def plural(number, noun):
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- Problem 1


def scan_problem1(folder, groups, limits, decoded=None):
    """Find the images and labels in p1_data, and everything wrong with them; arguments as in `find`."""
    scan = Scan(folder, [Part(folder / place, "image") for place in ("mini/train", "office/train", "office/val")])
    pool, train, val = scan.parts
    for part in scan.parts:
        _find_images(scan, part, required=part is not pool)
    if train.split and val.split:
        scan.error(folder / "office", disagreement(train.split, val.split))
    notes = _assign_groups(scan, groups, [(), *(part.split.files if part.split else () for part in (train, val))])
    if scan.errors:
        return scan

    splits = []
    for part, limit in zip(scan.parts, (limits.pool_limit, limits.office_limit, limits.office_limit)):
        classes = part.split.classes if part is pool else train.split.classes
        split = dataclasses.replace(part.split, classes=classes).take(limit)
        splits.append(dataclasses.replace(split, decoded=decoded))
        setting, need = ("pool", "two images") if part is pool else ("office", "images of two classes")
        if len(split if part is pool else np.unique(split.labels)) < 2:
            few = f"{plural(len(split), 'image')} in use, but training needs {need}"
            scan.error(part.folder, f"{few}. Add images or raise data.{setting}_limit.")
    if not scan.errors:
        backbone = folder / "pretrain_model_SL.pt"
        scan.problem = Problem1(*splits, backbone if backbone.is_file() else None, notes)
    return scan


def disagreement(train, val):
    """Return why `train` cannot be trained on and `val` scored with its classes; "" if they can."""
    captions = {**dict(zip(val.numbers, val.classes)), **dict(zip(train.numbers, train.classes))}
    named = {label: caption if str(label) == caption else f"{label} ({caption})" for label, caption in captions.items()}
    if unpaired := [named[label] for label in sorted(set(train.numbers) ^ set(val.numbers), key=str)]:
        text = f"train.csv and val.csv do not have the same labels; only one of them has {shortened(unpaired, 8)}"
        return f"{text}. Every class needs training and validation images, with the same label in both."
    if len(named) == 1:
        (caption,) = named.values()
        return f"all images are of one class, {caption}. Training and scoring need at least two classes."
    return ""


def _find_images(scan, part, required):
    """Find a split's images: those in its CSV, or all *.jpg if it needs no labels and no row can be used."""
    part.listing = listing.files(part.folder)
    try:
        _match_rows(scan, part, required)
    except UserError as error:
        scan.errors.append(f"{error}{'' if part.table.exists() else f' {HINT}'}")
    if part.rows is not None:
        part.split = labelled_split(part.folder, part.rows)
        part.files = list(dict.fromkeys(part.split.files))
        return
    part.files = listing.ending(part.listing, ".jpg")
    if not required:
        scan.error(part.folder, "" if part.files else f"no *.jpg files. {HINT}")
        _refuse_outside(scan, part.folder, part, dict.fromkeys(part.files))
        part.split = Split(part.folder, tuple(part.files))


def _match_rows(scan, part, required):
    """Read the CSV of a split's images, if it is required or exists, and match its rows with files."""
    if not required and not part.table.is_file():
        return
    rows, note = (csv_rows.read_labelled(part.table), "") if required else csv_rows.read_pool(part.table)
    scan.warnings += [note] if note else []
    if rows is None:
        return
    matches = listing.match(part.folder, rows["filename"])
    outside = _refuse_outside(scan, part.table, part, matches)
    matches |= dict.fromkeys(outside)
    files = pd.Series([matches[name] for name in rows["filename"]], rows.index, dtype=object)
    missing = rows["filename"][files.isna()]
    part.missing = missing.tolist()
    missing = [f"{quoted(name)} in row {row}" for row, name in missing.items() if name not in outside]
    report = scan.error if required else scan.warn
    advice = "Add them or remove their rows."
    report(part.table, describe(missing, "file", "is|are", f"missing from {part.folder}", advice))
    if files.notna().any():
        part.rows = rows.assign(filename=files)[files.notna()]


def labelled_split(folder, rows):
    """Build a Split from rows with filename and label: numbers with or without gaps, names, or None."""
    files, labels = tuple(rows["filename"]), rows["label"].tolist()
    numbers = sorted(set(labels) - {None})
    if not numbers:
        return Split(folder, files)
    prefixes = rows["filename"].str.extract("^([A-Za-z_]*)", expand=False)
    of_label = {label: prefixes[rows["label"] == label] for label in numbers}
    classes = [label if isinstance(label, str) else _caption(label, of_label[label]) for label in numbers]
    if len(set(classes)) < len(classes):  # prefixes that say nothing, as in img001.jpg
        classes = list(map(str, numbers))
    indices = {None: -1} | {label: index for index, label in enumerate(numbers)}
    indices = np.array([indices[label] for label in labels], np.int64)
    return Split(folder, files, indices, tuple(classes), tuple(numbers))


def _caption(label, prefixes):
    """Return the leading letters that most of a label's files share, or else the label."""
    prefix = prefixes.mode()[0]
    return prefix if prefix and (prefixes == prefix).mean() > 0.5 else str(label)


# --- Problem 2


def scan_problem2(folder, groups, limits, decoded=None):
    """Find the tiles and masks in p2_data, and everything wrong with them; arguments as in `find`."""
    scan = Scan(folder, [Part(folder / place, "tile") for place in ("train", "validation")])
    for part in scan.parts:
        _find_tiles(scan, part)
    notes = _assign_groups(scan, groups, [part.files for part in scan.parts])
    if not scan.errors:
        splits = [dataclasses.replace(part.split.take(limits.tile_limit), decoded=decoded) for part in scan.parts]
        scan.problem = Problem2(*splits, notes)
    return scan


def _find_tiles(scan, part):
    """Find a split's tiles and masks."""
    folder, part.listing = part.folder, listing.files(part.folder)
    (tiles, twice), (masks, others) = (listing.numbered(part.listing, end) for end in (SATELLITE, MASK))
    part.files, part.masks = list(tiles.values()), [masks[number] for number in tiles if number in masks]
    scan.error(folder, "" if tiles else f"no *{SATELLITE} files. {HINT}")
    missing = [number + MASK for number in tiles if number not in masks]
    advice = f"Add the masks or remove those {SATELLITE} files."
    scan.error(folder, describe(missing, "tile", "has|have", "no mask", advice))
    twice = [name for number, name in twice + others if number in tiles]
    what = "from another file only in upper and lower case"
    scan.error(folder, describe(twice, "name", "differs|differ", what, "Remove one of the two."))
    _refuse_outside(scan, folder, part, dict.fromkeys(part.files + part.masks))
    names = {number + SATELLITE: name for number, name in tiles.items()}
    names |= {number + MASK: name for number, name in masks.items()}
    part.split = Tiles(folder, tuple(tiles), names=names)


# --- both


def _refuse_outside(scan, path, part, matches):
    """Report names that lead out of a part's folder by their path or as a link, and return them.

    Args:
        path: the file or folder that holds the names.
        matches: dict from name to the matching file, or None.
    """
    outside = [name for name, file in matches.items() if listing.escapes(part.folder, file or name)]
    advice = "Copy such files into it, and name them alone; the folder itself may be a link."
    names = list(map(quoted, outside))
    scan.error(path, describe(names, "name", "leads|lead", f"out of {part.folder}", advice))
    return outside


def _assign_groups(scan, groups, names):
    """Set the groups of each part's split; add notes about unused rows to the warnings, and return them.

    Args:
        names: the files of each part, or () where no groups are needed.
    """
    # Unknown splits are reported once, with the first problem of the data root.
    first = scan.folder.name == "p1_data" or not (groups.root / "p1_data").is_dir()
    notes = [groups.unknown] if groups.unknown and first else []
    for part, files in zip(scan.parts, names):
        numbers, more = groups.of(part.folder, files)
        notes += more
        if part.split is not None:
            part.split = dataclasses.replace(part.split, groups=numbers)
    scan.warnings += notes
    return tuple(notes)
