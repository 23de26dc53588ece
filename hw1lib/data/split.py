"""Another split of Problem 2's tiles: those that continue one another on the ground stay on one side.

The course's validation tiles mostly continue training tiles, so its numbers say little of new scenes. Here tiles are
grouped by their borders (leakage.links), the clearest first, and whole groups are dealt out again.

On scenes of the Blue Marble that do not touch, of 3 × 3 tiles of 64 of its pixels, none of 156 touching pairs comes
into two groups where tiles are enlarged to 128 pixels (JPEG 90 and 75), 3 where they are not; of 2 × 2 tiles 16 to 20
of 160.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from hw1lib import files
from hw1lib.data import layout
from hw1lib.data.check import evidence, leakage
from hw1lib.data.groups import GROUPS
from hw1lib.errors import UserError
from hw1lib.settings import Data

LARGEST = 0.1  # of all tiles: no group is larger; where one would be, it is cut where the evidence is weakest
DEALS = 500  # random deals of the groups, of which the one with the likest classes is taken


def by_scene(root, target, progress=True):
    """Writes a layout of the same tiles split by scene, always the same one: as hard links, or copies on another disk.

    Args:
        root: data root with p2_data.
        target: folder that is made; it must not be there, nor lie in the data.

    Returns:
        Numbers about it, as in its split.json.

    Raises:
        UserError: there are no tiles, one cannot be read, or the layout cannot be written.
    """
    root, target = Path(root), Path(target)
    if target.exists():
        raise UserError(f"{target} is there already. Name a folder that is not, or delete it.")
    for data in (root / "p1_data", root / "p2_data"):
        if target.resolve().is_relative_to(data.resolve()):
            raise UserError(f"--out {target} lies in {data}, which the new split is made of. Name a folder outside.")
    tiles = layout.find(root, Data(), "problem2").problem2
    splits = [tiles.train, tiles.validation]
    names = [(split, number) for split in splits for number in split.numbers]
    looks = evidence.read([split.sat(number) for split, number in names], evidence.tile, "tiles", progress)
    masks = evidence.read([split.mask(number) for split, number in names], evidence.mask, "masks", progress)
    if bad := next((look for look in looks + masks if look.fault), None):
        raise UserError(
            f"{root}: {bad.name} cannot be decoded ({bad.fault}). Mend it first: data check says what is wrong."
        )
    classes = np.stack([look.counts for look in masks])  # (N, 7) pixels
    links = leakage.links(_sides(looks))
    links += [(2.0, *pair) for copies in (evidence.exact(looks), evidence.near(looks)) for pair in copies.items()]
    groups, cut = grouped(len(names), links)
    first = len(tiles.train)
    held_out = dealt(groups, classes, len(tiles.validation), classes[first:].sum(axis=0))
    torn = [(one, two) for strength, one, two in cut if strength > leakage.CLEAR and held_out[one] != held_out[two]]
    left_out = {two if held_out[one] else one for one, two in torn}  # the one in training

    chosen = {"train": [], "validation": []}
    for at, name in enumerate(names):
        if at not in left_out:
            chosen["validation" if held_out[at] else "train"].append((at, *name))
    if not all(chosen.values()):
        raise UserError(
            f"{root}: its {len(names):,} tiles fall into {len(set(groups))} groups that continue one another, too few "
            "for a training and a validation side. Such a split needs tiles of more places."
        )
    leaking, null = leakage.leaks(*(_sides(looks[at] for at, *_ in of) for of in chosen.values()))
    counts = [classes[mask].sum(axis=0) for mask in (np.arange(len(names)) >= first, held_out)]
    shares = [count / max(count.sum(), 1) for count in counts]
    facts = {
        "by": "scene", "of": str(root.resolve()), "groups": len(set(groups)), "largest": int(np.bincount(groups).max()),
        "cut": len(cut), "left_out": len(left_out), "train": len(chosen["train"]),
        "validation": len(chosen["validation"]), "leaking": len(leaking), "null": null,
        "leaking_before": len(leakage.leaks(*(_sides(looks[of]) for of in (slice(first), slice(first, None))))[0]),
        "classes_moved": float(np.abs(shares[0] - shares[1]).sum() / 2),
    }  # fmt: skip
    _write(target, chosen, groups, facts)
    return facts


def _sides(looks):
    return np.stack([leakage.blank() if look.sides is None else look.sides for look in looks])


def grouped(count, links):
    """Puts tiles that are linked into groups, the strongest link first.

    Args:
        count: of tiles.
        links: list of (strength, one, two); above 1 they are copies, and never cut.

    Returns:
        (count,) numbers of groups from 0, and the links that were cut as their group would be too large.
    """
    most = max(2, int(LARGEST * count))
    groups, members, cut = np.arange(count), {at: [at] for at in range(count)}, []
    for strength, one, two in sorted(links, reverse=True):
        mine, other = groups[one], groups[two]
        if mine == other:
            continue
        if strength <= 1 and len(members[mine]) + len(members[other]) > most:
            cut.append((strength, one, two))
            continue
        groups[members[other]] = mine
        members[mine] += members.pop(other)
    return np.unique(groups, return_inverse=True)[1], [link for link in cut if groups[link[1]] != groups[link[2]]]


def dealt(groups, classes, wanted, pixels):
    """Which tiles are held out: whole groups, about as many tiles as wanted, with classes like those wanted.

    Args:
        groups: (N,) numbers of groups.
        classes: (N, 7) pixels of each class.
        wanted: number of tiles.
        pixels: (7,) of each class that the held-out tiles should resemble in their shares.

    Returns:
        (N,) bool.
    """
    sizes = np.bincount(groups)
    counts = np.stack([np.bincount(groups, of, len(sizes)) for of in classes.T], axis=1)  # (groups, 7)
    random, best = np.random.default_rng(0), (np.inf, None)
    for _ in range(DEALS):
        order, total, held_out = random.permutation(len(sizes)), 0, np.zeros(len(sizes), bool)
        for group in order:
            if total + sizes[group] <= wanted:
                held_out[group], total = True, total + sizes[group]
        found = counts[held_out].sum(axis=0)
        apart = np.abs(found / max(found.sum(), 1) - pixels / max(pixels.sum(), 1)).sum() + (wanted - total) / wanted
        best = min(best, (apart, held_out), key=lambda deal: deal[0])
    return best[1][groups]


def _link_or_copy(source, target):
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, another owner's file, or a file system without links
        shutil.copyfile(source, target)


def _write(target, chosen, groups, facts):
    """Builds beside the target and puts it there at the end, so that the layout is whole or absent."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    rows = []
    with files.write_errors(target):
        for split, tiles in chosen.items():
            folder = part / "p2_data" / split
            folder.mkdir(parents=True)
            for number, (at, origin, old) in enumerate(tiles):
                for path in (origin.sat(old), origin.mask(old)):
                    link = folder / f"{number:04d}{path.name.removeprefix(old)}"
                    _link_or_copy(path, link)
                    rows.append((f"p2_data/{split}", link.name, int(groups[at]), f"{origin.folder.name}/{path.name}"))
        table = pd.DataFrame(rows, columns=["split", "filename", "group", "origin"])
        table.to_csv(part / GROUPS, index=False)
        (part / layout.SPLIT).write_text(json.dumps(facts, indent=1) + "\n")
        part.rename(target)
