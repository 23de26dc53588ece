"""What the data doctor looks for in the folders of both problems, and how it says so.

An error makes a run impossible or meaningless; it says what to do. A warning weakens numbers, and the
report shows it next to them. Every sentence names its folder or file.
"""

import collections
import json
from pathlib import Path

import numpy as np

from hw1lib.data import csv_rows, landcover, layout, listing
from hw1lib.data.check import evidence, leakage
from hw1lib.data.check.evidence import by
from hw1lib.data.csv_rows import quoted, shortened
from hw1lib.data.groups import Groups
from hw1lib.errors import UserError, visible

TINY = 16  # pixels: images with a shorter side are a warning
IMBALANCE = 10  # times as many images in the largest class as in the smallest: a warning
FEW = 10  # pool images: with fewer there is no k-NN probe, a warning
NEAR = "As in the course's score, a channel counts as 255 from 128 on, and pure red as unknown."
RARE = 0.01  # of the pixels: a land-cover class with less is a warning
PLURAL = {"is": "are", "repeats": "repeat"}


def problem1(folder, progress=True):
    """The Diagnosis of p1_data: the pool, and Office's training and validation images. Bad data raises nothing."""
    whole = Diagnosis(Path(folder))
    places = {"pool": "mini/train", "train": "office/train", "val": "office/val"}
    pool, train, val = parts = [Diagnosis(whole.folder / place, "image", whole) for place in places.values()]
    whole.facts = {name: part.facts for name, part in zip(places, parts)}
    for part in parts:
        _files(part, required=part is not pool)
        _labels(part, strict=part is not pool)
    _same_classes(whole, train.split, val.split)
    few = len(pool.files)
    pool.error("one image, but pre-training needs two. Add images." if few == 1 else "")
    pool.warn(f"only {few} images: measures of pre-training, such as collapse, mean little." if 1 < few < FEW else "")
    whole.warnings += Groups(whole.root).notes({part.folder: part.files for part in (train, val)})
    for part in parts:
        _read(part, evidence.picture, progress)
    for part in parts:
        _copies(part)
    val.facts["in_train"] = _shared(val, train, "The accuracy is too high for new images.")
    val.facts["in_pool"] = _shared(val, pool, "Pre-training has seen them.")
    return whole.printable()


def problem2(folder, progress=True):
    """The Diagnosis of p2_data: training and validation tiles with their masks. Bad data raises nothing."""
    whole = Diagnosis(Path(folder))
    train, validation = parts = [Diagnosis(whole.folder / split, "tile", whole) for split in ("train", "validation")]
    for part in parts:
        part.masks = Diagnosis(part.folder, "mask", whole)
        _pairs(part)
    whole.facts["pairs"] = {part.folder.name: len(part.masks.files) for part in parts}
    whole.warnings += Groups(whole.root).notes({part.folder: part.files for part in parts})
    for part in parts:
        part.facts["tiles"] = len(part.files)
        _read(part, evidence.tile, progress)
        _read(part.masks, evidence.mask, progress)
        part.facts["masks"] = part.masks.facts
        _sizes(part)
        whole.facts[part.folder.name] = part.facts
    size, other = (part.facts["largest"] for part in parts)
    if size and other and size != other:
        whole.warn(f"training tiles are {by(size)} pixels, validation tiles {by(other)}.")

    _strays(whole, parts)
    for part in parts:
        _classes(part)
        _copies(part)
    _unlearnt(whole, train, validation)
    effect = "The validation IoU is too high for new scenes."
    validation.facts["in_train"] = _shared(validation, train, effect)
    _leakage(whole, train, validation, effect)
    return whole.printable()


class Diagnosis:
    """What is found in a problem's folder, or in a part of it.

    Attributes:
        errors, warnings: lists of sentences, of all parts together.
        facts: plain JSON.
        word: what its files are, as in "image".
        files: names of those in use.
        looks: evidence.Look of those that can be decoded.
        split: layout.Split, where there are labels.
        masks: the Diagnosis of its masks, where they are tiles.
    """

    def __init__(self, folder, word="", whole=None):
        self.folder, self.word, self.root = folder, word, (whole.folder if whole else folder).parent
        self.where = folder.relative_to(self.root).as_posix()  # reports do not depend on where the data is
        self.errors, self.warnings = (whole.errors, whole.warnings) if whole else ([], [])
        self.facts, self.files, self.looks, self.split, self.masks = {}, [], [], None, None

    def error(self, text, ending=""):
        """Says what is wrong with the folder, or a file called like it with an ending; nothing for no text."""
        self.errors += [visible(f"{self.where}{ending}: {text}")] if text else []

    def warn(self, text, ending=""):
        """Says what weakens the numbers."""
        self.warnings += [visible(f"{self.where}{ending}: {text}")] if text else []

    def printable(self):
        """Itself, with file names in its facts that can be printed and written, too."""
        self.facts = json.loads(json.dumps(self.facts, ensure_ascii=False).encode(errors="replace"))
        return self


def _naming(names, words, what, then="", differ=0):
    """A sentence: how many there are, what of them, and their first names; then another one. Empty without names."""
    odd = f"; {differ:,} of them with different labels" if differ else ""
    return f"{_count(len(names), words)} {what}: {shortened(names)}{odd}. {then}".rstrip() if names else ""


def _count(number, words):
    """How many there are, with a noun and its verb: 1 image is, 2 images are."""
    noun, _, verb = words.partition(" ")
    return f"{number:,} {words}" if number == 1 else f"{number:,} {noun}s {PLURAL.get(verb, '')}".rstrip()


def _listing(part):
    """Names of the visible files in a folder: a list, empty where it cannot be read."""
    try:
        return listing.files(part.folder)
    except OSError as error:
        part.error(f"cannot be read: {error.strerror}. Mend that folder.")
        return []


def _ending(part, names, end):
    """Those of the names that end so, as in layout."""
    files = listing.ending(names, end)
    part.error("" if files else f"no *{end} files. {csv_rows.HINT}")
    return files


def _in_use(part, names, used, word, why):
    """Says which files in use are links out of the folder, and which image files are not used; returns the latter."""
    outside = [name for name in used if layout.leaves(part.folder, name)]
    part.error(_naming(outside, "link", "to files outside of the folder", "Copy such files into the folder."))
    unused = sorted({*listing.images(names)} - {*used})
    part.warn(_naming(unused, word, f"{why}, so not used"))
    return unused


def _read(part, measure, progress):
    """Looks at a part's files; names those that cannot be decoded, are of another mode than RGB, or tiny."""
    looks = evidence.read([part.folder / name for name in part.files], measure, f"check {part.where}", progress)
    part.looks = [look for look in looks if not look.fault]
    broken = [f"{look.name} ({look.fault})" for look in looks if look.fault]
    them = "them and their rows" if part.word == "image" else "both files of those tiles"
    part.error(_naming(broken, part.word, "cannot be decoded", f"Replace them, or take {them} away."))

    modes = dict(sorted(collections.Counter(look.mode for look in part.looks).items()))
    if odd := [look.name for look in part.looks if look.mode != "RGB"]:
        named = ", ".join(f"{mode}: {number:,}" for mode, number in modes.items() if mode != "RGB")
        part.warn(f"{_count(len(odd), part.word)} of another mode than RGB ({named}; first {odd[0]}), converted.")
    tiny = [look.name for look in part.looks if min(look.size) < TINY]
    part.warn(_naming(tiny, part.word, f"less than {TINY} pixels wide or high"))

    sizes = sorted({look.size for look in part.looks}, key=lambda size: (size[0] * size[1], size))
    part.facts |= {"undecodable": [look.name for look in looks if look.fault], "modes": modes, "sizes": len(sizes)}
    part.facts |= {"smallest": sizes[0] if sizes else None, "largest": sizes[-1] if sizes else None}


def _copies(part):
    """Warns of duplicates within a split."""
    looks, known = part.looks, part.split and part.split.labelled()
    labels = dict(zip(known.files, known.labels)) if known else {}
    same, alike = evidence.exact(looks), evidence.near(looks)
    for found, how in ((same, "exactly"), (alike, "almost (re-encoded, resized or brighter)")):
        pairs = [(looks[i].name, looks[j].name) for i, j in found.items()]
        differ = sum(len({labels[name] for name in pair if name in labels}) > 1 for pair in pairs)
        part.warn(
            _naming([f"{a} = {b}" for a, b in pairs], f"{part.word} repeats", f"another one {how}", differ=differ)
        )
    part.facts |= {"exact": len(same), "near": len(alike)}


def _shared(part, other, effect):
    """Warns of images in two splits, with their effect on the numbers; returns facts."""
    same, alike = evidence.exact(part.looks, other.looks), evidence.near(part.looks, other.looks)
    pairs = [f"{part.looks[i].name} = {other.looks[j].name}" for i, j in sorted((same | alike).items())]
    there = f"also in {other.where} ({len(same):,} exactly, {len(alike):,} almost)"
    part.warn(_naming(pairs, f"{part.word} is", there, effect))
    return {"exact": len(same), "near": len(alike)}


# --- Problem 1: tables, files and labels


def _files(part, required):
    """Find the files of a split, and what is wrong with them; `required`: it must come with a CSV of labels."""
    facts = ("images", "rows", "without_file", "without_row", "duplicate_ids", "listed_twice")
    there, rows, note, table = _listing(part), None, "", part.folder.with_suffix(".csv")
    try:
        rows, note = csv_rows.listed(part.folder, required) if required or table.is_file() else (None, "")
    except UserError as error:
        part.errors.append(visible(str(error).replace(f"{part.root}/", "")))
    part.warnings += [visible(note.replace(f"{part.root}/", ""))] if note else []
    if rows is not None:
        outside, absent = rows["given"][rows["outside"]].map(quoted).tolist(), csv_rows.absent_files(rows)
        where, then = f"leading out of {part.where}", "Copy the files there and write their names alone."
        part.error(_naming(outside, "name", where, then), ".csv")
        tell, then = (part.error, "Add them or take their rows away.") if required else (part.warn, "")
        tell(_naming(absent, "file", f"that {part.where} lacks", then), ".csv")
        inside = rows[rows["filename"].notna() & ~rows["outside"]]
    if rows is None or (inside.empty and not required):
        part.files = _ending(part, there, ".jpg")
        _in_use(part, there, part.files, "image", "not called *.jpg")
        part.facts |= dict.fromkeys(facts) | {"images": len(part.files)}
        return

    ids = list(rows["id"][rows["id"].duplicated() & (rows["id"] != "")]) if "id" in rows else []
    part.warn(_naming(ids, "row repeats", "an id"), ".csv")
    names = inside["filename"]
    twice = names[names.duplicated()].unique().tolist()
    differ = int((inside.groupby("filename")["label"].nunique() > 1).sum())
    part.warn(_naming(twice, "file", "listed more than once", differ=differ), ".csv")

    part.files = names.unique().tolist()
    part.split = None if inside.empty else layout.labelled(part.folder, inside)
    unused = _in_use(part, there, part.files, "image", "without a row in its CSV")
    part.facts |= zip(facts, (len(part.files), len(rows), outside + absent, unused, len(ids), twice))


def _labels(part, strict):
    """Facts of a split's labels; `strict`: gaps and negative labels are worth a warning."""
    facts = ("lowest_label", "highest_label", "left_out_labels", "classes")
    if part.split is None or part.split.labels is None:
        part.facts |= dict.fromkeys(facts)
        return
    numbers, counts = part.split.numbers, part.split.counts()
    if isinstance(numbers[0], str):  # names, which count in their order
        numbers = range(len(numbers))
    left_out = numbers[-1] - numbers[0] + 1 - len(numbers)
    if left_out and strict:
        gaps = f"{_count(left_out, 'number')}, first {next(n + 1 for n in numbers if n + 1 not in numbers)}"
        part.warn(f"labels run from {numbers[0]} to {numbers[-1]} but leave out {gaps}.", ".csv")
    if numbers[0] < 0 and strict:
        part.warn(f"there are negative labels, down to {numbers[0]}; each is a class.", ".csv")

    small, *_, large = sorted(counts, key=counts.get) * 2  # one class is both
    if counts[large] > IMBALANCE * counts[small]:
        text = f"class {large} has {counts[large]:,} images, class {small} only {counts[small]:,}"
        part.warn(f"{text}: accuracy tells little of small classes.", ".csv")
    if len(counts) == 1 and not strict:  # of Office it is an error
        text = f"all labels are of one class, {large}: the k-NN probe and supervised pre-training mean nothing."
        part.warn(text, ".csv")
    part.facts |= zip(facts, (numbers[0], numbers[-1], left_out, counts))


def _same_classes(whole, train, val):
    """Both splits of Office have the same labels, and call their files alike."""
    if train is None or val is None:
        return
    fault = layout.disagreement(train, val)
    whole.error(fault, "/office")
    pairs = zip(train.numbers, train.classes, val.classes)
    odd = [f"{n} ({a} and {b})" for n, a, b in pairs if a != b and str(n) not in (a, b)]
    if odd and not fault:
        text = f"files of one label are called differently in train.csv and val.csv: {shortened(odd)}"
        whole.warn(f"{text}. The label counts; give each class the same one in both.", "/office")


# --- Problem 2: pairs, sizes, colours, classes and leakage


def _pairs(part):
    """Finds a split's tiles, and the masks that belong to them."""
    there = _listing(part)
    (tiles, twice), (masks, others) = (listing.numbered(there, end) for end in (listing.SATELLITE, listing.MASK))
    _ending(part, there, listing.SATELLITE)
    part.files, part.masks.files = [*tiles.values()], [masks[number] for number in tiles if number in masks]
    bare = [number + listing.MASK for number in tiles if number not in masks]
    part.error(_naming(bare, "tile", "without a mask", f"Add the masks or take those {listing.SATELLITE} files away."))
    twice = [name for number, name in twice + others if number in tiles]
    part.error(_naming(twice, "file", "called like another but for upper and lower case", "Remove one of the two."))
    _in_use(part, there, part.files + part.masks.files + twice, "file", "without a tile NNNN_sat.jpg")


def _sizes(part):
    """Tiles of a split are of one size, and so is each one's mask."""
    sizes = collections.Counter(look.size for look in part.looks)
    usual = max(sizes, key=sizes.get, default=(0, 0))
    odd = [f"{look.name} ({by(look.size)})" for look in part.looks if look.size != usual]
    part.error(_naming(odd, "tile", f"not {by(usual)} pixels as the others", "A split's tiles must be of one size."))

    of_tile = {look.name.rpartition("_")[0]: look.size for look in part.looks}
    pairs = [(look, of_tile.get(look.name.rpartition("_")[0], look.size)) for look in part.masks.looks]
    odd = [f"{look.name} ({by(look.size)}, its tile {by(size)})" for look, size in pairs if look.size != size]
    part.error(_naming(odd, "mask", "of another size than the tile", "Replace one of the two."))
    part.facts["mask_of_other_size"] = len(odd)


def _strays(whole, parts):
    """Mask pixels whose colour is not exactly a class's."""
    found = {f"{part.folder.name}/{look.name}": look.stray for part in parts for look in part.masks.looks if look.stray}
    pixels, named = sum(found.values()), [f"{name} ({number:,})" for name, number in found.items()]
    whole.warn(_naming(named, "mask", f"with {_count(pixels, 'pixel')} not exactly of a class's colour", NEAR))
    whole.facts |= {"stray_pixels": pixels, "stray_files": list(found)}


def _frequencies(part):
    """How often each class occurs in the pixels of a split's masks: (7,) float, zeros without any."""
    total = sum((look.counts for look in part.masks.looks), np.zeros(len(landcover.CLASSES)))
    return total / max(total.sum(), 1)


def _classes(part):
    """Classes that are rare in the masks of a split, or none at all."""
    frequencies = _frequencies(part)
    part.facts["classes"] = dict(zip(landcover.CLASSES, frequencies.round(6).tolist()))
    scored = dict(zip(landcover.SCORED, frequencies))
    if part.masks.looks and not any(scored.values()):
        part.error(
            "no mask shows any class, all is unknown: use the course's colours, such as cyan (0, 255, 255) for urban."
        )
    if rare := [f"{name} ({often:.2%})" for name, often in scored.items() if 0 < often < RARE]:
        part.warn(f"less than {RARE:.0%} of all pixels are of {', '.join(rare)}: little to learn or to score.")


def _unlearnt(whole, train, validation):
    """Classes that no mask shows, or only those of validation."""
    learnt, asked = _frequencies(train), _frequencies(validation)
    if not learnt.any() or not asked.any():
        return  # said already
    scored = list(zip(landcover.SCORED, learnt, asked))
    if unlearnt := ", ".join(name for name, in_train, in_validation in scored if in_validation and not in_train):
        whole.warn(f"{unlearnt} occurs in validation, but in no training mask: its IoU will be 0.")
    if absent := ", ".join(name for name, _, in_validation in scored if not in_validation):
        whole.warn(f"no validation mask shows {absent}: the mIoU is over the other classes.")


def _leakage(whole, train, validation, effect):
    """Validation tiles that continue a training tile; a warning where they are more than chance."""
    train, validation = ([look for look in part.looks if look.sides is not None] for part in (train, validation))
    partners, null = leakage.leaks(*(np.array([look.sides for look in looks]) for looks in (train, validation)))
    tiles, of = len(partners), len(validation)
    if leakage.is_clear(tiles, of, null):
        named = shortened([f"{validation[i].name} at {train[j].name}" for i, j in partners.items()])
        text = f"continue a training tile across a border ({null:,} with borders reversed): {named}."
        whole.warn(f"{tiles:,} of {of:,} validation tiles {text} {effect}")
    whole.facts["leakage"] = {"tiles": tiles, "of": of, "null": null}
