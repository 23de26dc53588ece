"""What the data doctor looks for in the images of both problems, and how it says so."""

import collections
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hw1lib.data import landcover, layout
from hw1lib.data.check import duplicates

TINY = 16  # pixels: images with a shorter side are a warning
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Diagnosis:
    """What was found in one problem's folder."""

    errors: list[str]
    warnings: list[str]
    facts: dict  # plain JSON


class Notes:
    """Collects what is said of one problem's folder."""

    def __init__(self, folder):
        self.root = Path(folder).parent
        self.errors, self.warnings, self.facts = [], [], {}

    def shown(self, path):
        """A path from the data root on, so that reports do not depend on where that is."""
        return path.relative_to(self.root).as_posix()

    def error(self, text):
        self.errors.append(printable(text))

    def warn(self, text):
        self.warnings.append(printable(text))

    def diagnosis(self):
        """What was found; file names in it can be printed and written, too."""
        facts = json.dumps(self.facts, ensure_ascii=False, allow_nan=False)
        facts = json.loads(facts.encode(errors="replace"))
        return Diagnosis(self.errors, self.warnings, facts)


def printable(text):
    """Text in one line, without control characters and undecodable bytes, as in file names."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def bar(folder, total, progress):
    """A progress bar on standard error, where that is a terminal."""
    return tqdm(
        total=total, desc=f"check {folder.name}", unit="file", leave=False, ncols=80, disable=None if progress else True
    )


def some(names, most=3):
    """The first few names, and how many there are beyond them."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number, word, plural=None):
    """A number with its noun: 1 image, 2 images."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def listing(notes, place):
    """Names of the files in a folder: a set, empty where it cannot be read."""
    try:
        return {name for name in os.listdir(place) if os.path.isfile(os.path.join(place, name))}
    except FileNotFoundError:
        return set()
    except OSError as error:
        notes.error(f"{notes.shown(place)} cannot be read: {error.strerror}. Mend that folder.")
        return set()


def ending(names, end):
    """Those of the names that end so, sorted; as in layout, hidden files are none of them."""
    return sorted(name for name in names if name.endswith(end) and not name.startswith("."))


def refuse_links(notes, place, names):
    """Links to files outside of a folder are no part of the data."""
    outside = [name for name in names if layout.leaves(place, name)]
    if outside:
        notes.error(
            f"{notes.shown(place)}: {count(len(outside), 'link')} to files outside of the folder: "
            f"{some(outside)}. Copy such files into the folder."
        )


def unused(names, used):
    """Image files that a run would not use, sorted; hidden ones are nobody's concern."""
    left = [name for name in set(names) - set(used) if not name.startswith(".")]
    return sorted(name for name in left if Path(name).suffix.lower() in ENDINGS)


def readable(notes, place, looks, word, remedy):
    """Names what cannot be decoded, in another mode than RGB, or tiny.

    Args:
        notes: where it is said.
        place: their folder.
        looks: list of survey.Look.
        word: what they are, as in "image".
        remedy: a sentence for what cannot be decoded.

    Returns:
        The looks that could be decoded, and facts of all.
    """
    where = notes.shown(place)
    broken = [look for look in looks if look.fault]
    good = [look for look in looks if not look.fault]
    if broken:
        named = some(f"{look.name} ({look.fault})" for look in broken)
        notes.error(f"{where}: {count(len(broken), word)} cannot be decoded: {named}. {remedy}")
    modes = collections.Counter(look.mode for look in good)
    others = {mode: number for mode, number in sorted(modes.items()) if mode != "RGB"}
    if others:
        first = next(look.name for look in good if look.mode != "RGB")
        named = ", ".join(f"{mode}: {number:,}" for mode, number in others.items())
        notes.warn(
            f"{where}: {count(sum(others.values()), word)} of another mode than RGB ({named}; "
            f"first {first}), converted."
        )
    tiny = [look.name for look in good if min(look.size) < TINY]
    if tiny:
        notes.warn(f"{where}: {count(len(tiny), word)} less than {TINY} pixels wide or high: {some(tiny)}.")
    areas = sorted((look.size for look in good), key=lambda size: (size[0] * size[1], size))
    return good, {
        "undecodable": [look.name for look in broken],
        "modes": dict(sorted(modes.items())),
        "sizes": len(set(areas)),
        "smallest": list(areas[0]) if areas else None,
        "largest": list(areas[-1]) if areas else None,
    }


def copies(notes, place, looks, word, labels=None):
    """Warns of duplicates within a split; returns their numbers.

    Args:
        notes: where it is said.
        place: the split's folder.
        looks: list of survey.Look, all decodable.
        word: what they are, as in "image".
        labels: label of each file name, where there are any.
    """
    same, alike = duplicates.exact(looks), duplicates.near(looks)
    where = notes.shown(place)
    for found, how in ((same, "exactly"), (alike, "almost (re-encoded, resized or brighter)")):
        pairs = [(looks[i].name, looks[j].name) for i, j in found.items()]
        if pairs:
            notes.warn(
                f"{where}: {count(len(pairs), word + ' repeats', word + 's repeat')} another one "
                f"{how}: {some(f'{a} = {b}' for a, b in pairs)}{_contradicting(pairs, labels)}."
            )
    return {"exact": len(same), "near": len(alike)}


def _contradicting(pairs, labels):
    odd = [a for a, b in pairs if labels and labels.get(a) != labels.get(b)]
    return f"; {len(odd):,} of them with another label" if odd else ""


def shared(notes, places, looks, others, word, effect):
    """Warns of images that two splits share; returns their numbers.

    Args:
        notes: where it is said.
        places: folder of `looks` and folder of `others`.
        looks, others: lists of survey.Look, all decodable.
        word: what they are, as in "image".
        effect: what it does to the numbers: the end of a sentence.
    """
    same, alike = duplicates.exact(looks, others), duplicates.near(looks, others)
    found = dict(sorted((same | alike).items()))
    if found:
        pairs = [f"{looks[i].name} = {others[j].name}" for i, j in found.items()]
        verb = "is" if len(found) == 1 else "are"
        notes.warn(
            f"{notes.shown(places[0])}: {count(len(found), word)} {verb} also in "
            f"{notes.shown(places[1])} ({len(same):,} exactly, {len(alike):,} almost): "
            f"{some(pairs)}. {effect}"
        )
    return {"exact": len(same), "near": len(alike)}


def spread(counts):
    """The largest and the smallest of {name: number}, as two items."""
    ordered = sorted(counts.items(), key=lambda item: item[1])
    return ordered[-1], ordered[0]


def shares(looks):
    """Share of each class in the pixels of masks: (7,) float, zeros without any."""
    total = sum((look.counts for look in looks), np.zeros(len(landcover.CLASSES)))
    return total / max(total.sum(), 1)
