"""The data check: read all data once and list everything wrong with it, before anything trains.

An error stops a run; it says what to do. A warning weakens the numbers, and the report shows it next
to them. Every sentence names its folder or file.
"""

import functools
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from hw1lib import cpus
from hw1lib.data import images, landcover, layout, listing
from hw1lib.data.check import duplicates, leakage
from hw1lib.data.check.duplicates import THUMBNAIL, Summary
from hw1lib.data.csv_rows import Groups, shortened
from hw1lib.data.layout import describe, plural
from hw1lib.errors import visible
from hw1lib.settings import Data

TINY = 16  # pixels: a shorter side is a warning
IMBALANCE = 10  # a class with this many times as many images as another is a warning
FEW = 10  # pool images: fewer, too few for the k-NN probe, are a warning
RARE = 0.01  # of the pixels: a land-cover class with less is a warning


def problem1(folder, progress=True):
    """Check p1_data: the pool, and Office's training and validation images.

    Returns:
        layout.Scan whose errors and warnings name paths from the data root.
    """
    folder = Path(folder).absolute()
    scan = layout.scan_problem1(folder, Groups(folder.parent), Data())
    pool, train, val = scan.parts
    if 1 < len(pool.files) < FEW:
        few = f"only {len(pool.files)} images: measures of pre-training, such as collapse, mean little."
        scan.warn(pool.folder, few)
    for part in scan.parts:
        _check_rows(scan, part)
        _check_labels(scan, part)
        part.images, facts = _decode(scan, part, part.files, part.word, progress)
        part.facts |= facts
        _check_duplicates(scan, part)
    _check_captions(scan, train.split, val.split)
    val.facts["in_train"] = _check_overlap(scan, val, train, "The accuracy is too high for new images.")
    val.facts["in_pool"] = _check_overlap(scan, val, pool, "Pre-training has seen them.")
    return _finish(scan, {"pool": pool.facts, "train": train.facts, "val": val.facts})


def problem2(folder, progress=True):
    """Check p2_data: training and validation tiles with their masks; return a layout.Scan as `problem1` does."""
    folder = Path(folder).absolute()
    scan = layout.scan_problem2(folder, Groups(folder.parent), Data())
    for part in scan.parts:
        unused = sorted({*listing.images(part.listing)} - {*part.files, *part.masks})
        scan.warn(part.folder, describe(unused, "file", "is|are", "not used (not a tile NNNN_sat.jpg or its mask)"))
        _check_subfolders(scan, part)
        part.images, of_tiles = _decode(scan, part, part.files, part.word, progress)
        part.decoded_masks, of_masks = _decode(scan, part, part.masks, "mask", progress)
        part.facts = {"tiles": len(part.files), **of_tiles, "masks": of_masks}
        _check_sizes(scan, part)
        _check_classes(scan, part)
        _check_duplicates(scan, part)
    facts = {"pairs": {part.folder.name: len(part.masks) for part in scan.parts}}
    facts |= {part.folder.name: part.facts for part in scan.parts} | _check_colours(scan)
    _check_absent_classes(scan)
    train, validation = scan.parts
    effect = "The validation IoU is too high for new scenes."
    validation.facts["in_train"] = _check_overlap(scan, validation, train, effect)
    facts["leakage"] = _check_leakage(scan, effect)
    return _finish(scan, facts)


def _finish(scan, facts):
    root = visible(f"{scan.folder.parent}/")  # a report does not depend on where the data is
    scan.errors, scan.warnings = ([text.replace(root, "") for text in texts] for texts in (scan.errors, scan.warnings))
    # File names that are not valid Unicode cannot be written as JSON.
    scan.facts = json.loads(json.dumps(facts, ensure_ascii=False).encode(errors="replace"))
    return scan


# --- decoding


def read(paths, kind, title, progress=True):
    """Summarise image files in threads; no more images are in memory than there are threads.

    Args:
        paths: the files.
        kind: image, tile or mask.
        title: title of the progress bar.
        progress: show the bar on standard error if that is a terminal.

    Returns:
        List of Summary, in the order of the files.
    """
    bar = {"desc": title, "leave": False, "ncols": 80, "unit": "file", "disable": None if progress else True}
    return thread_map(functools.partial(summarise, kind=kind), paths, max_workers=cpus.available(), **bar)


def summarise(path, kind):
    """Decode one file and return its Summary; `kind` is image, tile or mask."""
    try:
        if kind == "mask":
            classes, inexact, mode = images.read_mask(path)
        else:
            rgb, mode = images.read(path)
    except images.Unreadable as error:
        return Summary(path.name, fault=error.reason)
    if kind == "mask":
        counts = np.bincount(classes.ravel(), minlength=len(landcover.CLASSES))
        return Summary(path.name, mode=mode, size=classes.shape[::-1], counts=counts, inexact=inexact)
    pixel_hash = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).digest()
    thumbnail = np.asarray(rgb.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    borders = leakage.borders(np.asarray(rgb)) if kind == "tile" else None
    return Summary(path.name, "", mode, rgb.size, pixel_hash, thumbnail, borders)


def size_text(size):
    """Return width and height as text."""
    return f"{size[0]} × {size[1]}"


def _decode(scan, part, names, word, progress):
    """Decode files; report those that cannot be decoded, have another mode than RGB, or are tiny.

    Returns:
        List of Summary of those that can be decoded, and facts.
    """
    title = f"check {part.folder.relative_to(scan.folder.parent)}"
    summaries = read([part.folder / name for name in names], word, title, progress)
    decoded = [image for image in summaries if not image.fault]
    broken = [f"{image.name} ({image.fault})" for image in summaries if image.fault]
    remove = "them and their rows" if word == "image" else "both files of those tiles"
    scan.error(part.folder, describe(broken, word, "cannot", "be decoded", f"Replace them, or remove {remove}."))

    modes = dict(sorted(Counter(image.mode for image in decoded).items()))
    if odd := [image.name for image in decoded if image.mode != "RGB"]:
        listed = ", ".join(f"{mode}: {number:,}" for mode, number in modes.items() if mode != "RGB")
        scan.warn(part.folder, f"{plural(len(odd), word)} converted to RGB ({listed}; first {odd[0]}).")
    tiny = [image.name for image in decoded if min(image.size) < TINY]
    scan.warn(part.folder, describe(tiny, word, "is|are", f"less than {TINY} pixels wide or high"))

    sizes = sorted({image.size for image in decoded}, key=lambda size: (size[0] * size[1], size))
    facts = {"undecodable": [image.name for image in summaries if image.fault], "modes": modes, "sizes": len(sizes)}
    return decoded, facts | dict(zip(("smallest", "largest"), (sizes[0], sizes[-1]) if sizes else (None, None)))


# --- duplicates


def _check_duplicates(scan, part):
    """Warn of duplicates within a split."""
    labels = {} if part.rows is None else dict(zip(part.rows["filename"], part.rows["label"]))
    searches = {"exact": "exactly", "near": "almost (re-encoded, resized or brighter)"}
    for (name, how), find in zip(searches.items(), (duplicates.exact, duplicates.near)):
        pairs = [(part.images[i].name, part.images[j].name) for i, j in find(part.images).items()]
        advice = _label_conflicts(sum(len({labels.get(name) for name in pair} - {None}) > 1 for pair in pairs))
        names = [f"{one} = {other}" for one, other in pairs]
        scan.warn(part.folder, describe(names, part.word, "repeats|repeat", f"another one {how}", advice))
        part.facts[name] = len(pairs)


def _label_conflicts(count):
    return f"Their labels differ in {plural(count, 'case')}." if count else ""


def _check_overlap(scan, part, other, effect):
    """Warn of images in two splits and say how they affect the numbers; return facts."""
    exact, near = duplicates.exact(part.images, other.images), duplicates.near(part.images, other.images)
    pairs = [f"{part.images[i].name} = {other.images[j].name}" for i, j in sorted((exact | near).items())]
    rest = f"also in {other.folder} ({len(exact):,} exactly, {len(near):,} almost)"
    scan.warn(part.folder, describe(pairs, part.word, "is|are", rest, effect))
    return {"exact": len(exact), "near": len(near)}


def _check_subfolders(scan, part):
    """Warn of folders with images inside that of a split."""
    folders = listing.image_folders(part.folder)
    scan.warn(part.folder, describe(folders, "folder", "is|are", "not searched", "Move its images up if they belong."))


# --- Problem 1: tables and labels


def _check_rows(scan, part):
    """Warn of images without a row, and of rows and files that are listed twice."""
    rows, unused = part.rows, sorted({*listing.images(part.listing)} - {*part.files})
    reason = "not called *.jpg" if rows is None else "no row in the CSV"
    scan.warn(part.folder, describe(unused, part.word, "is|are", f"not used ({reason})"))
    _check_subfolders(scan, part)
    part.facts["images"] = len(part.files)
    if rows is None:
        part.facts |= dict.fromkeys(("rows", "without_file", "without_row", "duplicate_ids", "listed_twice"))
        return
    ids = list(rows["id"][rows["id"].duplicated() & (rows["id"] != "")]) if "id" in rows else []
    scan.warn(part.table, describe(ids, "row", "repeats|repeat", "an id"))
    twice = rows["filename"][rows["filename"].duplicated()].unique().tolist()
    conflicts = int((rows.groupby("filename")["label"].nunique() > 1).sum())
    scan.warn(part.table, describe(twice, "file", "is|are", "listed more than once", _label_conflicts(conflicts)))
    part.facts |= {"rows": len(rows) + len(part.missing), "without_file": part.missing, "without_row": unused}
    part.facts |= {"duplicate_ids": len(ids), "listed_twice": twice}


def _check_labels(scan, part):
    """Warn of unbalanced classes, and of a pool with a single class."""
    split = part.split
    if split is None or split.labels is None:
        part.facts |= dict.fromkeys(("lowest_label", "highest_label", "left_out_labels", "classes"))
        return
    counts, numbers = split.counts(), split.numbers
    if isinstance(numbers[0], str):  # names are numbered in sorted order
        numbers = range(len(numbers))
    part.facts |= {"lowest_label": numbers[0], "highest_label": numbers[-1]}
    part.facts |= {"left_out_labels": numbers[-1] - numbers[0] + 1 - len(numbers), "classes": counts}
    small, *_, large = sorted(counts, key=counts.get) * 2  # one class is both
    if counts[large] > IMBALANCE * counts[small]:
        text = f"class {large} has {counts[large]:,} images, class {small} only {counts[small]:,}"
        scan.warn(part.table, f"{text}: accuracy says little about small classes.")
    if len(counts) == 1 and part is scan.parts[0]:  # in Office it is an error
        text = f"all labels are of one class, {large}: the k-NN probe and supervised pre-training mean nothing."
        scan.warn(part.table, text)


def _check_captions(scan, train, val):
    """Warn if files of one label are named differently in Office's two splits."""
    if train and val and train.numbers == val.numbers:
        captions = zip(train.numbers, train.classes, val.classes)
        odd = [f"{n} ({one} and {other})" for n, one, other in captions if one != other and str(n) not in (one, other)]
        if odd:
            text = f"files of one label have different names in train.csv and val.csv: {shortened(odd)}"
            scan.warn(scan.folder / "office", f"{text}. Labels decide: give each class the same one in both.")


# --- Problem 2: sizes, colours, classes and leakage


def _check_sizes(scan, part):
    """Report tiles that differ in size from the others, and masks that differ from their tile."""
    sizes = Counter(image.size for image in part.images)
    usual = max(sizes, key=sizes.get, default=(0, 0))
    odd = [f"{image.name} ({size_text(image.size)})" for image in part.images if image.size != usual]
    rest = f"not {size_text(usual)} pixels like the others"
    scan.error(part.folder, describe(odd, "tile", "is|are", rest, "All tiles of a split must have one size."))

    sizes = {image.name.rpartition("_")[0]: image.size for image in part.images}
    odd = []
    for mask in part.decoded_masks:
        size = sizes.get(mask.name.rpartition("_")[0], mask.size)
        if size != mask.size:
            odd.append(f"{mask.name} ({size_text(mask.size)}, its tile {size_text(size)})")
    scan.error(part.folder, describe(odd, "mask", "has|have", "another size than the tile", "Replace one of the two."))
    part.facts["mask_of_other_size"] = len(odd)


def _check_colours(scan):
    """Warn of mask pixels that do not have exactly a class's colour; return facts."""
    masks = [(part.folder.name, mask) for part in scan.parts for mask in part.decoded_masks]
    inexact = {f"{folder}/{mask.name}": mask.inexact for folder, mask in masks if mask.inexact}
    pixels, names = sum(inexact.values()), [f"{name} ({number:,})" for name, number in inexact.items()]
    rest = f"{plural(pixels, 'pixel')} without exactly a class's colour"
    rule = "As in the course's score, a channel counts as 255 from 128 on, and pure red as unknown."
    scan.warn(scan.folder, describe(names, "mask", "has|have", rest, rule))
    return {"stray_pixels": pixels, "stray_files": list(inexact)}


def _frequencies(part):
    """Return the fraction of a part's mask pixels in each class: (7,) float, zeros without any."""
    total = sum((mask.counts for mask in part.decoded_masks), np.zeros(len(landcover.CLASSES)))
    return total / max(total.sum(), 1)


def _check_classes(scan, part):
    """Report masks without any class, and warn of rare classes."""
    frequencies = _frequencies(part)
    part.facts["classes"] = dict(zip(landcover.CLASSES, frequencies.round(6).tolist()))
    if frequencies[landcover.UNKNOWN] == 1:
        advice = "use the course's colours, such as cyan (0, 255, 255) for urban."
        scan.error(part.folder, f"no mask shows any class, all is unknown: {advice}")
    scored = zip(landcover.SCORED, frequencies)
    if rare := ", ".join(f"{name} ({fraction:.2%})" for name, fraction in scored if 0 < fraction < RARE):
        scan.warn(part.folder, f"less than {RARE:.0%} of all pixels are {rare}: little to learn or to score.")


def _check_absent_classes(scan):
    """Warn of classes that no mask shows, or only validation masks."""
    train, validation = map(_frequencies, scan.parts)
    if not train.any() or not validation.any():
        return  # already reported as an error
    scored = list(zip(landcover.SCORED, train, validation))
    if unlearnt := ", ".join(name for name, in_train, in_validation in scored if in_validation and not in_train):
        scan.warn(scan.folder, f"{unlearnt} occurs in validation, but in no training mask: its IoU will be 0.")
    if absent := ", ".join(name for name, _, in_validation in scored if not in_validation):
        scan.warn(scan.folder, f"no validation mask shows {absent}: the mIoU is over the other classes.")


def _check_leakage(scan, effect):
    """Warn of validation tiles that continue a training tile, if they are more than chance; return facts."""
    train, validation = ([tile for tile in part.images if tile.borders is not None] for part in scan.parts)
    partners, null = leakage.leaks(*(np.array([tile.borders for tile in tiles]) for tiles in (train, validation)))
    facts = {"tiles": len(partners), "of": len(validation), "null": null}
    if leakage.is_significant(*facts.values()):
        pairs = shortened([f"{validation[i].name} at {train[j].name}" for i, j in partners.items()])
        text = f"{len(partners):,} of {len(validation):,} validation tiles continue a training tile across a border"
        scan.warn(scan.folder, f"{text} ({null:,} with borders reversed): {pairs}. {effect}")
    return facts
