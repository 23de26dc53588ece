"""The data check: read all data once and list everything wrong with it, before anything trains.

An error stops a run; it says what to do. A warning weakens the numbers, and the report shows it next
to them. Every sentence names its folder or file.
"""

import functools
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
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
IMBALANCE = 10  # a class with so many times as many images as another is a warning
FEW = 10  # pool images: fewer, too few for the k-NN probe, are a warning
RARE = 0.01  # of the pixels: a land-cover class with less is a warning


@dataclass(frozen=True)
class Diagnosis:
    """Everything wrong with a problem's data.

    Attributes:
        errors, warnings: sentences, with paths from the data root.
        facts: plain JSON.
    """

    errors: list
    warnings: list
    facts: dict


def problem1(folder, progress=True):
    """Check p1_data: the pool, and Office's training and validation images; return a Diagnosis."""
    folder = Path(folder).absolute()
    scan = layout.scan_problem1(folder, Groups(folder.parent), Data())
    pool, train, val = scan.parts
    if 1 < len(pool.files) < FEW:
        few = f"only {len(pool.files)} images: measures of pre-training, such as collapse, mean little."
        scan.warn(pool.folder, few)
    for part in scan.parts:
        _check_rows(scan, part)
        _check_labels(scan, part, strict=part is not pool)
        part.images, facts = _decode(scan, part.folder, part.files, "image", progress)
        part.facts |= facts
        _check_duplicates(scan, part)
    _check_captions(scan, train.split, val.split)
    val.facts["in_train"] = _check_overlap(scan, val, train, "The accuracy is too high for new images.")
    val.facts["in_pool"] = _check_overlap(scan, val, pool, "Pre-training has seen them.")
    return _diagnosis(scan, {"pool": pool.facts, "train": train.facts, "val": val.facts})


def problem2(folder, progress=True):
    """Check p2_data: training and validation tiles with their masks; return a Diagnosis."""
    folder = Path(folder).absolute()
    scan = layout.scan_problem2(folder, Groups(folder.parent), Data())
    facts = {"pairs": {part.folder.name: len(part.masks) for part in scan.parts}}
    masks = []
    for part in scan.parts:
        unused = sorted({*listing.images(part.listing)} - {*part.files, *part.masks})
        scan.warn(part.folder, describe(unused, "file", "is|are", "not used (not a tile NNNN_sat.jpg or its mask)"))
        part.images, of_tiles = _decode(scan, part.folder, part.files, "tile", progress)
        of_part, of_masks = _decode(scan, part.folder, part.masks, "mask", progress)
        part.facts |= {"tiles": len(part.files), **of_tiles, "masks": of_masks}
        _check_sizes(scan, part, of_part)
        _check_classes(scan, part, of_part)
        _check_duplicates(scan, part)
        facts[part.folder.name] = part.facts
        masks.append(of_part)
    train, validation = scan.parts
    size, other = (part.facts["largest"] for part in scan.parts)
    if size and other and size != other:
        scan.warn(folder, f"training tiles are {size_text(size)} pixels, validation tiles {size_text(other)}.")
    facts |= _check_colours(scan, masks)
    _check_absent_classes(scan, *map(_frequencies, masks))
    effect = "The validation IoU is too high for new scenes."
    validation.facts["in_train"] = _check_overlap(scan, validation, train, effect)
    facts["leakage"] = _check_leakage(scan, train, validation, effect)
    return _diagnosis(scan, facts)


def _diagnosis(scan, facts):
    root = visible(f"{scan.folder.parent}/")  # a report does not depend on where the data is
    errors, warnings = ([text.replace(root, "") for text in texts] for texts in (scan.errors, scan.warnings))
    # File names that are not valid Unicode cannot be written as JSON.
    return Diagnosis(errors, warnings, json.loads(json.dumps(facts, ensure_ascii=False).encode(errors="replace")))


# --- decoding


def read(paths, kind, title, progress=True):
    """Summarise image files in threads; no more images are in memory than there are threads.

    Args:
        paths: the files.
        kind: image, tile or mask.
        title: of a bar on standard error if that is a terminal.
        progress: False for no bar.

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
    """Return width and height as text; None stays None."""
    return size and f"{size[0]} × {size[1]}"


def _decode(scan, folder, names, word, progress):
    """Decode files; report those that cannot be decoded, have another mode than RGB, or are tiny."""
    title = f"check {folder.relative_to(scan.folder.parent)}"
    summaries = read([folder / name for name in names], word, title, progress)
    decoded = [image for image in summaries if not image.fault]
    broken = [f"{image.name} ({image.fault})" for image in summaries if image.fault]
    remove = "them and their rows" if word == "image" else "both files of those tiles"
    scan.error(folder, describe(broken, word, "cannot", "be decoded", f"Replace them, or remove {remove}."))

    modes = dict(sorted(Counter(image.mode for image in decoded).items()))
    if odd := [image.name for image in decoded if image.mode != "RGB"]:
        listed = ", ".join(f"{mode}: {number:,}" for mode, number in modes.items() if mode != "RGB")
        scan.warn(folder, f"{plural(len(odd), word)} converted to RGB ({listed}; first {odd[0]}).")
    tiny = [image.name for image in decoded if min(image.size) < TINY]
    scan.warn(folder, describe(tiny, word, "is|are", f"less than {TINY} pixels wide or high"))

    sizes = sorted({image.size for image in decoded}, key=lambda size: (size[0] * size[1], size))
    facts = {"undecodable": [image.name for image in summaries if image.fault], "modes": modes, "sizes": len(sizes)}
    facts |= {"smallest": sizes[0] if sizes else None, "largest": sizes[-1] if sizes else None}
    return decoded, facts


# --- duplicates


def _check_duplicates(scan, part):
    """Warn of duplicates within a split."""
    labels = {}
    if isinstance(part.split, layout.Split) and part.split.labels is not None:
        labels = {name: label for name, label in zip(part.split.files, part.split.labels) if label >= 0}
    exact, near = duplicates.exact(part.images), duplicates.near(part.images)
    for pairs, how in ((exact, "exactly"), (near, "almost (re-encoded, resized or brighter)")):
        pairs = [(part.images[i].name, part.images[j].name) for i, j in pairs.items()]
        differ = sum(len({labels[name] for name in pair if name in labels}) > 1 for pair in pairs)
        names, advice = [f"{one} = {other}" for one, other in pairs], _differ(differ)
        scan.warn(part.folder, describe(names, part.word, "repeats|repeat", f"another one {how}", advice))
    part.facts |= {"exact": len(exact), "near": len(near)}


def _differ(count):
    return f"Their labels differ in {plural(count, 'case')}." if count else ""


def _check_overlap(scan, part, other, effect):
    """Warn of images in two splits and say how they affect the numbers; return facts."""
    exact, near = duplicates.exact(part.images, other.images), duplicates.near(part.images, other.images)
    pairs = [f"{part.images[i].name} = {other.images[j].name}" for i, j in sorted((exact | near).items())]
    rest = f"also in {other.folder} ({len(exact):,} exactly, {len(near):,} almost)"
    scan.warn(part.folder, describe(pairs, part.word, "is|are", rest, effect))
    return {"exact": len(exact), "near": len(near)}


# --- Problem 1: tables and labels


def _check_rows(scan, part):
    """Warn of images without a row, and of rows and files that are listed twice."""
    names = ("images", "rows", "without_file", "without_row", "duplicate_ids", "listed_twice")
    table, rows, listed = part.folder.with_suffix(".csv"), part.rows, None
    if rows is not None:
        listed = rows[rows["filename"].notna() & ~rows["outside"]]
    unused = sorted({*listing.images(part.listing)} - {*part.files})
    reason = "not called *.jpg" if rows is None or listed.empty else "no row in the CSV"
    scan.warn(part.folder, describe(unused, part.word, "is|are", f"not used ({reason})"))
    if rows is None or listed.empty:
        part.facts |= dict.fromkeys(names) | {"images": len(part.files)}
        return
    ids = list(rows["id"][rows["id"].duplicated() & (rows["id"] != "")]) if "id" in rows else []
    scan.warn(table, describe(ids, "row", "repeats|repeat", "an id"))
    twice = listed["filename"][listed["filename"].duplicated()].unique().tolist()
    differ = int((listed.groupby("filename")["label"].nunique() > 1).sum())
    scan.warn(table, describe(twice, "file", "is|are", "listed more than once", _differ(differ)))
    missing = rows["given"].drop(listed.index).tolist()
    part.facts |= zip(names, (len(part.files), len(rows), missing, unused, len(ids), twice))


def _check_labels(scan, part, strict):
    """Warn of odd labels; `strict`: also of gaps and negative numbers."""
    names = ("lowest_label", "highest_label", "left_out_labels", "classes")
    if part.split is None or part.split.labels is None:
        part.facts |= dict.fromkeys(names)
        return
    table, numbers, counts = part.folder.with_suffix(".csv"), part.split.numbers, part.split.counts()
    if isinstance(numbers[0], str):  # names are numbered in sorted order
        numbers = range(len(numbers))
    gaps = numbers[-1] - numbers[0] + 1 - len(numbers)
    if gaps and strict:
        first = next(n + 1 for n in numbers if n + 1 not in numbers)
        text = f"labels run from {numbers[0]} to {numbers[-1]} but leave out {plural(gaps, 'number')}, first {first}."
        scan.warn(table, text)
    if numbers[0] < 0 and strict:
        scan.warn(table, f"there are negative labels, down to {numbers[0]}; each is a class.")

    small, *_, large = sorted(counts, key=counts.get) * 2  # one class is both
    if counts[large] > IMBALANCE * counts[small]:
        text = f"class {large} has {counts[large]:,} images, class {small} only {counts[small]:,}"
        scan.warn(table, f"{text}: accuracy says little about small classes.")
    if len(counts) == 1 and not strict:  # in Office it is an error
        text = f"all labels are of one class, {large}: the k-NN probe and supervised pre-training mean nothing."
        scan.warn(table, text)
    part.facts |= zip(names, (numbers[0], numbers[-1], gaps, counts))


def _check_captions(scan, train, val):
    """Warn if files of one label are named differently in Office's two splits."""
    if train and val and train.numbers == val.numbers:
        captions = zip(train.numbers, train.classes, val.classes)
        odd = [f"{n} ({one} and {other})" for n, one, other in captions if one != other and str(n) not in (one, other)]
        if odd:
            text = f"files of one label have different names in train.csv and val.csv: {shortened(odd)}"
            scan.warn(scan.folder / "office", f"{text}. The label counts; give each class the same one in both.")


# --- Problem 2: sizes, colours, classes and leakage


def _check_sizes(scan, part, masks):
    """Report tiles that differ in size from the others, and masks that differ from their tile."""
    sizes = Counter(image.size for image in part.images)
    usual = max(sizes, key=sizes.get, default=(0, 0))
    odd = [f"{image.name} ({size_text(image.size)})" for image in part.images if image.size != usual]
    rest = f"not {size_text(usual)} pixels as the others"
    scan.error(part.folder, describe(odd, "tile", "is|are", rest, "All tiles of a split must have one size."))

    tiles = {image.name.rpartition("_")[0]: image.size for image in part.images}
    pairs = [(mask, tiles.get(mask.name.rpartition("_")[0], mask.size)) for mask in masks]
    odd = [
        f"{mask.name} ({size_text(mask.size)}, its tile {size_text(tile)})" for mask, tile in pairs if mask.size != tile
    ]
    scan.error(part.folder, describe(odd, "mask", "has|have", "another size than the tile", "Replace one of the two."))
    part.facts["mask_of_other_size"] = len(odd)


def _check_colours(scan, masks):
    """Warn of mask pixels that do not have exactly a class's colour; return facts."""
    inexact = {
        f"{part.folder.name}/{mask.name}": mask.inexact
        for part, of_part in zip(scan.parts, masks)
        for mask in of_part
        if mask.inexact
    }
    pixels, names = sum(inexact.values()), [f"{name} ({number:,})" for name, number in inexact.items()]
    rest = f"{plural(pixels, 'pixel')} without exactly a class's colour"
    rule = "As in the course's score, a channel counts as 255 from 128 on, and pure red as unknown."
    scan.warn(scan.folder, describe(names, "mask", "has|have", rest, rule))
    return {"stray_pixels": pixels, "stray_files": list(inexact)}


def _frequencies(masks):
    """Return the fraction of pixels of each class in some masks: (7,) float, zeros without any."""
    total = sum((mask.counts for mask in masks), np.zeros(len(landcover.CLASSES)))
    return total / max(total.sum(), 1)


def _check_classes(scan, part, masks):
    """Report masks without any class, and warn of rare classes."""
    frequencies = _frequencies(masks)
    part.facts["classes"] = dict(zip(landcover.CLASSES, frequencies.round(6).tolist()))
    scored = dict(zip(landcover.SCORED, frequencies))
    if masks and not any(scored.values()):
        text = (
            "no mask shows any class, all is unknown: use the course's colours, such as cyan (0, 255, 255) for urban."
        )
        scan.error(part.folder, text)
    if rare := [f"{name} ({fraction:.2%})" for name, fraction in scored.items() if 0 < fraction < RARE]:
        text = f"less than {RARE:.0%} of all pixels are {', '.join(rare)}: little to learn or to score."
        scan.warn(part.folder, text)


def _check_absent_classes(scan, learnt, asked):
    """Warn of classes that no mask shows, or only validation masks, by the fractions of pixels in both splits."""
    if not learnt.any() or not asked.any():
        return  # already reported as an error
    scored = list(zip(landcover.SCORED, learnt, asked))
    if unlearnt := ", ".join(name for name, in_train, in_validation in scored if in_validation and not in_train):
        scan.warn(scan.folder, f"{unlearnt} occurs in validation, but in no training mask: its IoU will be 0.")
    if absent := ", ".join(name for name, _, in_validation in scored if not in_validation):
        scan.warn(scan.folder, f"no validation mask shows {absent}: the mIoU is over the other classes.")


def _check_leakage(scan, train, validation, effect):
    """Warn of validation tiles that continue a training tile, if they are more than chance; return facts."""
    train, validation = ([tile for tile in part.images if tile.borders is not None] for part in (train, validation))
    partners, null = leakage.leaks(*(np.array([tile.borders for tile in tiles]) for tiles in (train, validation)))
    facts = {"tiles": len(partners), "of": len(validation), "null": null}
    if leakage.is_significant(*facts.values()):
        pairs = shortened([f"{validation[i].name} at {train[j].name}" for i, j in partners.items()])
        text = f"{len(partners):,} of {len(validation):,} validation tiles continue a training tile across a border"
        scan.warn(scan.folder, f"{text} ({null:,} with borders reversed): {pairs}. {effect}")
    return facts
