"""The course's folder layout: find the images, labels and tiles of a data root, and everything wrong with them.

`find` raises the first error; the data check (check/doctor.py) lists all of them. Nothing is decoded. Classes and
counts come from the data, so the course's data and the Earth sample run through the same code.
"""

import dataclasses
import itertools
import re
from collections import Counter
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
    for number, folder in problem_folders(root, only).items():
        scan = SCANS[number](folder, groups, limits, decoded)
        if scan.errors:
            raise UserError(scan.errors[0])
        problems[number] = scan.problem
    return Layout(Path(root), *problems.values(), decoded)


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
        folder: the folder; the CSV of its images has the same name and ends in .csv.
        word: image or tile, for messages.
        listing: names of its visible files.
        files, masks: names of the images and masks in use.
        rows: rows of its CSV with filename (None where there is no such file), label, given (the name in the CSV) and
            outside (whether that name leads out of the folder); None without a CSV that can be used.
        split: Split or Tiles; None where files are missing.
        facts, images: what the data check counts, and its summary of each decoded image.
    """

    folder: Path
    word: str
    listing: list = field(default_factory=list)
    files: list = field(default_factory=list)
    masks: list = field(default_factory=list)
    rows: pd.DataFrame | None = None
    split: Split | Tiles | None = None
    facts: dict = field(default_factory=dict)
    images: list = field(default_factory=list)


@dataclass
class Scan:
    """What the folder of a problem holds, and what is wrong with it.

    Attributes:
        folder: p1_data or p2_data.
        parts: list of Part.
        errors: sentences about what stops a run, and what to do about it.
        warnings: sentences about what weakens the numbers or is not used.
        problem: Problem1 or Problem2, limited; None if there are errors.
    """

    folder: Path
    parts: list
    errors: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    problem: Problem1 | Problem2 | None = None

    def error(self, path, text):
        """Add an error about a file or folder; nothing if the text is empty."""
        self.errors += [visible(f"{path}: {text}")] if text else []

    def warn(self, path, text):
        """Add a warning about a file or folder; nothing if the text is empty."""
        self.warnings += [visible(f"{path}: {text}")] if text else []


def describe(names, noun, verb, rest, advice=""):
    """Return a sentence such as "2 images are tiny: a.jpg, b.jpg." and the advice; "" without names.

    Args:
        names: the files or cells that it is about.
        noun: in the singular.
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
    named = [() if part is pool or not part.split else part.split.files for part in scan.parts]
    numbers, notes = _assign_groups(groups, scan, named)
    if scan.errors:
        return scan

    splits = []
    for part, limit, of in zip(scan.parts, (limits.pool_limit, *[limits.office_limit] * 2), numbers):
        captions = pool.split.classes if part is pool else train.split.classes
        split = dataclasses.replace(part.split, classes=captions, groups=of).take(limit)
        splits.append(dataclasses.replace(split, decoded=decoded))
        setting, need = ("pool", "two images") if part is pool else ("office", "images of two classes")
        if len(split) < 2 or (part is not pool and len(np.unique(split.labels)) < 2):
            few = f"{plural(len(split), 'image')} in use, but training needs {need}"
            scan.error(part.folder, f"{few}. Add images or raise data.{setting}_limit.")
    if not scan.errors:
        backbone = folder / "pretrain_model_SL.pt"
        scan.problem = Problem1(*splits, backbone if backbone.is_file() else None, notes)
    return scan


def disagreement(train, val):
    """Return why one split cannot be trained on and the other scored; "" if they have the same labels."""
    captions = {**dict(zip(val.numbers, val.classes)), **dict(zip(train.numbers, train.classes))}
    named = {label: caption if str(label) == caption else f"{label} ({caption})" for label, caption in captions.items()}
    first, other = train.numbers[0], val.numbers[0]
    if type(first) is not type(other):
        examples = f"{quoted(str(first))} and {quoted(str(other))}"
        return f"train.csv and val.csv have labels of two kinds, such as {examples}. Use either numbers or names."
    if unpaired := [named[label] for label in sorted(set(train.numbers) ^ set(val.numbers))]:
        text = f"train.csv and val.csv do not have the same labels; only one of them has {shortened(unpaired, 8)}"
        return f"{text}. Every class needs training and validation images, with the same label in both."
    if len(named) == 1:
        return f"all images are of one class, {named[first]}. Training and scoring need at least two classes."
    return ""


def _find_images(scan, part, required):
    """Find a split's images: those in its CSV, or all *.jpg if it needs no labels and no row can be used."""
    folder, table, rows = part.folder, part.folder.with_suffix(".csv"), None
    if not _read_listing(scan, part):
        return
    try:
        if required:
            rows = csv_rows.read_labelled(table)
        elif table.is_file():
            rows, note = csv_rows.read_pool(table)
            scan.warnings += [note] if note else []
    except UserError as error:
        scan.errors.append(f"{error}{'' if table.exists() else f' {HINT}'}")
    part.files = listing.ending(part.listing, ".jpg")
    if rows is not None:
        matches = listing.match(folder, rows["filename"])
        outside = [listing.escapes(folder, matches[name] or name) for name in rows["filename"]]
        files = pd.Series([matches[name] for name in rows["filename"]], rows.index, dtype=object)
        part.rows = rows = rows.assign(given=rows["filename"], filename=files, outside=outside)
        advice = "Copy the files into that folder and list them by their names alone."
        names = [quoted(name) for name in rows["given"][rows["outside"]]]
        scan.error(table, describe(names, "name", "leads|lead", f"out of {folder}", advice))
        missing = rows["given"][rows["filename"].isna() & ~rows["outside"]]
        missing = [f"{quoted(name)} in row {row}" for row, name in missing.items()]
        tell, advice = (scan.error, "Add them or remove their rows.") if required else (scan.warn, "")
        tell(table, describe(missing, "file", "is|are", f"missing from {folder}", advice))
        rows = rows[rows["filename"].notna() & ~rows["outside"]]
    if rows is not None and not rows.empty:
        part.split = labelled_split(folder, rows)
        part.files = list(dict.fromkeys(part.split.files))
    elif not required:
        scan.error(folder, "" if part.files else f"no *.jpg files. {HINT}")
        _refuse_links(scan, folder, part.files)
        part.split = Split(folder, tuple(part.files))


def labelled_split(folder, rows):
    """Make a Split from rows with filename and label: numbers with or without gaps, names, or None without a label."""
    files, labels = tuple(rows["filename"]), rows["label"].tolist()
    numbers = sorted(set(labels) - {None})
    if not numbers:
        return Split(folder, files)
    indices = {None: -1} | {label: index for index, label in enumerate(numbers)}
    prefixes = {label: Counter() for label in indices}
    for name, label in zip(files, labels):
        prefixes[label][re.match(r"[A-Za-z_]*", name).group()] += 1
    classes = [label if isinstance(label, str) else _caption(label, prefixes[label]) for label in numbers]
    if len(set(classes)) < len(classes):  # prefixes that say nothing, as in img001.jpg
        classes = list(map(str, numbers))
    indices = np.array([indices[label] for label in labels], np.int64)
    return Split(folder, files, indices, tuple(classes), tuple(numbers))


def _caption(label, prefixes):
    """Return the leading letters that most of a label's files share, or else the label."""
    prefix, count = prefixes.most_common(1)[0]
    return prefix if prefix and 2 * count > prefixes.total() else str(label)


# --- Problem 2


def scan_problem2(folder, groups, limits, decoded=None):
    """Find the tiles and masks in p2_data, and everything wrong with them; arguments as in `find`."""
    scan = Scan(folder, [Part(folder / place, "tile") for place in ("train", "validation")])
    for part in scan.parts:
        _find_tiles(scan, part)
    numbers, notes = _assign_groups(groups, scan, [part.files for part in scan.parts])
    if not scan.errors:
        splits = [dataclasses.replace(part.split, groups=of, decoded=decoded) for part, of in zip(scan.parts, numbers)]
        scan.problem = Problem2(*(split.take(limits.tile_limit) for split in splits), notes)
    return scan


def _find_tiles(scan, part):
    """Find a split's tiles and masks."""
    if not _read_listing(scan, part):
        return
    folder = part.folder
    (tiles, twice), (masks, others) = (listing.numbered(part.listing, end) for end in (SATELLITE, MASK))
    part.files, part.masks = list(tiles.values()), [masks[number] for number in tiles if number in masks]
    scan.error(folder, "" if tiles else f"no *{SATELLITE} files. {HINT}")
    missing = [number + MASK for number in tiles if number not in masks]
    advice = f"Add the masks or remove those {SATELLITE} files."
    scan.error(folder, describe(missing, "tile", "has|have", "no mask", advice))
    twice = [name for number, name in twice + others if number in tiles]
    what = "from another file only in upper and lower case"
    scan.error(folder, describe(twice, "name", "differs|differ", what, "Remove one of the two."))
    _refuse_links(scan, folder, part.files + part.masks)
    names = {number + SATELLITE: name for number, name in tiles.items()}
    names |= {number + MASK: name for number, name in masks.items()}
    part.split = Tiles(folder, tuple(tiles), names=names)


# --- both


def _read_listing(scan, part):
    """List the files of a part; return False after an error."""
    try:
        part.listing = listing.files(part.folder)
    except OSError as error:
        scan.error(part.folder, f"cannot be read: {error.strerror}. {remedy(error)}")
        return False
    return True


def _refuse_links(scan, folder, names):
    outside = [name for name in names if listing.escapes(folder, name)]
    advice = "Copy such files into the folder; the folder itself may be a link."
    scan.error(folder, describe(outside, "link", "leads|lead", f"out of {folder}", advice))


def _assign_groups(groups, scan, names):
    """Return the groups of each part's files, and a tuple of notes, which are added to the warnings, too."""
    numbers, notes = zip(*(groups.of(part.folder, files) for part, files in zip(scan.parts, names)))
    first = scan.folder.name == "p1_data" or not (groups.root / "p1_data").is_dir()
    notes = [*([groups.unknown] if groups.unknown and first else []), *itertools.chain(*notes)]
    scan.warnings += notes
    return numbers, tuple(notes)


SCANS = {1: scan_problem1, 2: scan_problem2}
