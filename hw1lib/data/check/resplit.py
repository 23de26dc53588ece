"""Split Problem 2's tiles again, so that tiles that continue one another on the ground stay on one side.

Most of the course's validation tiles continue training tiles, so its scores say little about new scenes. This split
groups tiles by their borders (leakage.links), the strongest link first, and keeps groups whole.

Measured on scenes of the Blue Marble that do not touch: with scenes of 3 × 3 tiles of 64 of its pixels, no touching
pair of 156 falls into two groups if tiles are enlarged to 128 pixels (JPEG 90 and 75), and 3 do if they are not; with
scenes of 2 × 2 tiles, 16 to 20 of 160.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from hw1lib import files
from hw1lib.data import layout
from hw1lib.data.check import doctor, duplicates, leakage
from hw1lib.data.csv_rows import GROUPS
from hw1lib.errors import UserError

LARGEST = 0.1  # of all tiles: the weakest links of a larger group are cut
DRAWS = 500  # random choices of groups; that with the most similar class frequencies is used


def by_scene(root, target, progress=True):
    """Write a layout of the same tiles split by scene, as hard links, or copies on another disk; deterministic.

    Args:
        root: data root with p2_data.
        target: folder to create, outside of p1_data and p2_data.

    Returns:
        Facts about the split, as in its split.json.

    Raises:
        UserError: there are no tiles, one cannot be read, or the layout cannot be written.
    """
    root, target = Path(root), Path(target)
    if target.exists():
        raise UserError(f"{target} already exists. Name another folder, or delete it.")
    if {(root / "p1_data").resolve(), (root / "p2_data").resolve()} & {target.resolve(), *target.resolve().parents}:
        raise UserError(f"--out {target} is inside p1_data or p2_data of {root}. Choose a folder outside.")
    (folder,) = layout.problem_folders(root, "problem2").values()
    scan = doctor.problem2(folder, progress)
    if scan.errors:
        raise UserError(f"{root}: {scan.errors[0]}")
    tiles = [(part.split, number) for part in scan.parts for number in part.split.numbers]
    images = [image for part in scan.parts for image in part.images]
    blank = np.zeros((4, leakage.LINE, 3), np.uint8)  # of tiles that are too small to compare
    borders = np.stack([blank if image.borders is None else image.borders for image in images])
    copies = [(2.0, *pair) for pair in (duplicates.exact(images) | duplicates.near(images)).items()]
    groups, cut = group_tiles(len(tiles), leakage.links(borders) + copies)
    count = len(scan.parts[0].images)
    classes = np.stack([mask.counts for part in scan.parts for mask in part.decoded_masks])  # (N, 7) pixels
    held_out = choose_validation(groups, classes, len(tiles) - count, classes[count:].sum(axis=0))
    # Of two tiles with a clear link that was cut, the one in training is left out.
    torn = [(one, two) for strength, one, two in cut if strength > leakage.CLEAR and held_out[one] != held_out[two]]
    left_out = {two if held_out[one] else one for one, two in torn}
    train = [index for index in np.flatnonzero(~held_out).tolist() if index not in left_out]
    sides = {"train": train, "validation": np.flatnonzero(held_out).tolist()}
    if not all(sides.values()):
        raise UserError(
            f"{root}: its {len(tiles):,} tiles fall into {len(set(groups))} groups that continue one another, too few "
            "for a training and a validation side. Such a split needs tiles of more places."
        )
    leaking, null = leakage.leaks(*(borders[indices] for indices in sides.values()))
    before, after = (_fractions(classes[rows].sum(axis=0)) for rows in (slice(count, None), held_out))
    facts = {
        "by": "scene", "of": str(root.resolve()), "groups": len(set(groups)), "largest": int(np.bincount(groups).max()),
        "cut": len(cut), "left_out": len(left_out), "train": len(sides["train"]),
        "validation": len(sides["validation"]), "leaking": len(leaking), "null": null,
        "leaking_before": scan.facts["leakage"]["tiles"],
        "classes_moved": float(np.abs(before - after).sum() / 2),
    }  # fmt: skip
    _write(target, tiles, sides, groups, facts)
    return facts


def group_tiles(count, links):
    """Group linked tiles, the strongest link first.

    Args:
        count: number of tiles.
        links: list of (strength, index, index); above 1 they are copies, and never cut.

    Returns:
        (count,) group numbers from 0, and the links that were cut because their group would be too large.
    """
    largest = max(2, int(LARGEST * count))
    groups, members, cut = np.arange(count), {index: [index] for index in range(count)}, []
    for strength, one, two in sorted(links, reverse=True):
        kept, merged = groups[one], groups[two]
        if kept == merged:
            continue
        if strength <= 1 and len(members[kept]) + len(members[merged]) > largest:
            cut.append((strength, one, two))
            continue
        groups[members[merged]] = kept
        members[kept] += members.pop(merged)
    return np.unique(groups, return_inverse=True)[1], [link for link in cut if groups[link[1]] != groups[link[2]]]


def choose_validation(groups, classes, size, pixels):
    """Choose validation tiles: whole groups, at most `size` tiles, with similar class frequencies.

    Args:
        groups: (N,) group numbers.
        classes: (N, 7) pixels of each class.
        size: number of tiles wanted.
        pixels: (7,) pixels of each class, whose frequencies the validation tiles should match.

    Returns:
        (N,) bool.
    """
    sizes = np.bincount(groups)
    counts = np.stack([np.bincount(groups, column, len(sizes)) for column in classes.T], axis=1)  # (groups, 7)
    random, best, smallest = np.random.default_rng(0), None, np.inf
    for _ in range(DRAWS):
        total, chosen = 0, np.zeros(len(sizes), bool)
        for group in random.permutation(len(sizes)):
            if total + sizes[group] <= size:
                chosen[group], total = True, total + sizes[group]
        sums = counts[chosen].sum(axis=0)
        difference = np.abs(_fractions(sums) - _fractions(pixels)).sum() + (size - total) / size
        if difference < smallest:
            best, smallest = chosen, difference
    return best[groups]


def _fractions(pixels):
    return pixels / max(pixels.sum(), 1)


def _write(target, tiles, sides, groups, facts):
    """Write the layout to a temporary folder beside the target and rename it at the end."""
    part, rows = target.with_name(f".{target.name}.part"), []
    shutil.rmtree(part, ignore_errors=True)
    with files.write_errors(target):
        for side, indices in sides.items():
            folder = part / "p2_data" / side
            folder.mkdir(parents=True)
            for number, index in enumerate(indices):
                split, old = tiles[index]
                for path in (split.sat(old), split.mask(old)):
                    link = folder / f"{number:04d}{path.name.removeprefix(old)}"
                    _link_or_copy(path, link)
                    rows.append((f"p2_data/{side}", link.name, groups[index], f"{split.folder.name}/{path.name}"))
        table = pd.DataFrame(rows, columns=["split", "filename", "group", "origin"])
        table.to_csv(part / GROUPS, index=False)
        (part / layout.SPLIT).write_text(json.dumps(facts, indent=1) + "\n")
        part.rename(target)


def _link_or_copy(source, target):
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, another owner's file, or a file system without links
        shutil.copyfile(source, target)
