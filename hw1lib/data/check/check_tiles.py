"""What the data doctor looks for in p2_data: pairs, sizes, colours, classes and leakage."""

import collections
from pathlib import Path

import numpy as np

from hw1lib.data import landcover, layout
from hw1lib.data.check import findings, leakage, survey
from hw1lib.data.check.findings import count, some

RARE = 0.01  # of the pixels: a land-cover class with less is a warning
REMEDY = "Replace them, or take both files of those tiles away."


def problem2(folder, progress=True):
    """Examines p2_data: training and validation tiles with their masks.

    Returns:
        Diagnosis; nothing is raised for bad data.
    """
    folder = Path(folder)
    notes = findings.Notes(folder)
    places = {name: folder / name for name in ("train", "validation")}
    paired = {name: _pairs(notes, place) for name, place in places.items()}
    notes.facts["pairs"] = {name: len(masks) for name, (_, masks) in paired.items()}
    looks, masks = {}, {}
    with findings.bar(folder, sum(len(a) + len(b) for a, b in paired.values()), progress) as bar:
        for name, place in places.items():
            of_tiles, of_masks = ([place / file for file in files] for files in paired[name])
            read = survey.read(survey.tile, of_tiles, bar)
            looks[name], facts = findings.readable(notes, place, read, "tile", REMEDY)
            notes.facts[name] = {"tiles": len(read), **facts}
            read = survey.read(survey.mask, of_masks, bar)
            masks[name], facts = findings.readable(notes, place, read, "mask", REMEDY)
            notes.facts[name]["masks"] = facts
            _sizes(notes, place, looks[name], masks[name])
    _same_size(notes, folder)
    notes.facts |= _stray(notes, folder, masks)
    for name, place in places.items():
        notes.facts[name] |= _cover(notes, place, masks[name])
        notes.facts[name] |= findings.copies(notes, place, looks[name], "tile")
    _unlearnt(notes, folder, masks)
    both = places["validation"], places["train"]
    notes.facts["validation"]["in_train"] = findings.shared(
        notes, both, looks["validation"], looks["train"], "tile", "The validation IoU is too high for new scenes."
    )
    notes.facts["leakage"] = _leakage(notes, folder, looks["train"], looks["validation"])
    return notes.diagnosis()


def _pairs(notes, place):
    """Names of a split's tiles, and of the masks that belong to one."""
    there = findings.listing(notes, place)
    where = notes.shown(place)
    tiles = findings.ending(there, "_sat.jpg")
    wanted = [name.removesuffix("_sat.jpg") + "_mask.png" for name in tiles]
    masks = [name for name in wanted if name in there]
    if not tiles:
        notes.error(f"{where} has no *_sat.jpg files. {layout.HINT}")
    bare = [name for name in wanted if name not in there]
    if bare:
        notes.error(
            f"{where}: {count(len(bare), 'tile')} without a mask; missing are {some(bare)}. Add "
            "the masks or take those _sat.jpg files away."
        )
    findings.refuse_links(notes, place, tiles + masks)
    extra = findings.unused(there, tiles + masks)
    if extra:
        notes.warn(f"{where}: {count(len(extra), 'file')} without a tile NNNN_sat.jpg, so not used: {some(extra)}.")
    return tiles, masks


def _sizes(notes, place, tiles, masks):
    """Tiles of a split are of one size, and so is each one's mask."""
    where = notes.shown(place)
    sizes = collections.Counter(look.size for look in tiles)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        odd = [f"{look.name} ({_by(look.size)})" for look in tiles if look.size != usual]
        notes.error(
            f"{where}: {count(len(odd), 'tile')} not {_by(usual)} pixels as the others: "
            f"{some(odd)}. All tiles of a split must be of one size."
        )
    of_tile = {look.name.removesuffix("_sat.jpg"): look.size for look in tiles}
    odd = []
    for look in masks:
        size = of_tile.get(look.name.removesuffix("_mask.png"), look.size)
        if size != look.size:
            odd.append(f"{look.name} ({_by(look.size)}, its tile {_by(size)})")
    if odd:
        notes.error(
            f"{where}: {count(len(odd), 'mask')} of another size than the tile: {some(odd)}. Replace one of the two."
        )
    notes.facts[place.name]["mask_of_other_size"] = len(odd)


def _same_size(notes, folder):
    sizes = [notes.facts[name]["largest"] for name in ("train", "validation")]
    if None not in sizes and sizes[0] != sizes[1]:
        notes.warn(
            f"{notes.shown(folder)}: training tiles are {_by(sizes[0])} pixels, validation tiles {_by(sizes[1])}."
        )


def _by(size):
    return f"{size[0]} × {size[1]}"


def _stray(notes, folder, masks):
    """Mask pixels whose colour is no class: facts, and a warning for both splits."""
    odd = [(f"{name}/{look.name}", look.stray) for name, looks in masks.items() for look in looks if look.stray]
    pixels = sum(number for _, number in odd)
    if odd:
        notes.warn(
            f"{notes.shown(folder)}: {count(pixels, 'pixel')} of {count(len(odd), 'mask')} have a "
            f"colour that is no class and count as unknown: "
            f"{some(f'{name} ({number:,})' for name, number in odd)}."
        )
    return {"stray_pixels": pixels, "stray_files": [name for name, _ in odd]}


def _cover(notes, place, masks):
    """Share of each class; a split without any scored class is an error."""
    where, shares = notes.shown(place), findings.shares(masks)
    if masks and not shares[: landcover.UNKNOWN].any():
        notes.error(
            f"{where}: no mask shows any class, all pixels are unknown. Masks need the course's "
            "colours, such as cyan (0, 255, 255) for urban."
        )
    by_name = dict(zip(landcover.CLASSES, shares.round(6).tolist()))
    rare = [f"{name} ({share:.2%})" for name, share in zip(landcover.SCORED, shares) if 0 < share < RARE]
    if rare:
        notes.warn(f"{where}: less than {RARE:.0%} of all pixels are of {some(rare, 6)}: little to learn or to score.")
    return {"classes": by_name}


def _unlearnt(notes, folder, masks):
    """Classes that no mask shows, or only those of validation."""
    shown = {}
    for name, looks in masks.items():
        shown[name] = {c for c, n in zip(landcover.CLASSES, findings.shares(looks)) if n}
    if not shown["train"] or not shown["validation"]:
        return  # said already
    unlearnt = [c for c in landcover.SCORED if c in shown["validation"] - shown["train"]]
    if unlearnt:
        notes.warn(
            f"{notes.shown(folder)}: {some(unlearnt, 6)} occurs in validation, but in no training "
            "mask: its IoU will be 0."
        )
    absent = [c for c in landcover.SCORED if c not in shown["validation"]]
    if absent:
        notes.warn(
            f"{notes.shown(folder)}: no validation mask shows {some(absent, 6)}: the mIoU is over the other classes."
        )


def _leakage(notes, folder, train, validation):
    """Validation tiles that continue a training tile: facts, and a warning beyond the null."""
    kept = [[look for look in looks if look.sides is not None] for looks in (train, validation)]
    found = leakage.find(*(np.stack([k.sides for k in looks]) if looks else () for looks in kept))
    tiles, of = len(found.partners), len(kept[1])
    if leakage.is_clear(tiles, of, found.null):
        first = [f"{kept[1][i].name} at {kept[0][j].name}" for i, j in found.partners.items()]
        notes.warn(
            f"{notes.shown(folder)}: {tiles:,} of {of:,} validation tiles continue a training tile "
            f"across a border ({found.null:,} with borders reversed): {some(first)}. The "
            "validation IoU is too high for new scenes."
        )
    return {"tiles": tiles, "of": of, "null": found.null}
