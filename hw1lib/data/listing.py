"""File names: the images, tiles and masks in a folder, and the file that matches a name in a CSV."""

import os
import posixpath
import unicodedata
from pathlib import Path

from hw1lib.errors import UserError

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
IMAGES += (".jp2", ".j2k", ".jpx", ".pgm", ".ppm", ".avif", ".heic", ".heif", ".jxl")  # Pillow lacks the last three
SATELLITE, MASK = "_sat.jpg", "_mask.png"  # NNNN_sat.jpg belongs to NNNN_mask.png, in upper or lower case


def visible(folder):
    """Return the sorted names in a folder without hidden ones such as ._0001_sat.jpg; empty if there is no folder."""
    return sorted(name for name in os.listdir(folder) if name[0] != ".") if os.path.isdir(folder) else []


def files(folder):
    """Return the visible names that are files or links to files."""
    return [name for name in visible(folder) if os.path.isfile(os.path.join(folder, name))]


def images(names):
    """Return the names with the extension of an image format."""
    return [name for name in names if os.path.splitext(name)[1].lower() in IMAGES]


def images_in(folder):
    """Return the visible names of a folder with the extension of an image format.

    Raises:
        UserError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"There is no folder {folder}.")
    return images(visible(folder))


def image_folders(folder):
    """Return the sorted names of visible folders in a folder that hold images; empty if there is no folder."""
    if not os.path.isdir(folder):
        return []
    folders = [entry for entry in os.scandir(folder) if entry.name[0] != "." and entry.is_dir()]
    return sorted(entry.name for entry in folders if images(visible(entry.path)))


def ending(names, end):
    """Return the names that end with `end`, in upper or lower case."""
    return [name for name in names if name.lower().endswith(end)]


def numbered(names, end):
    """Return the tiles or masks among some names.

    Returns:
        Dict from number to name, such as {"0001": "0001_sat.jpg"}, and a list of (number, name) of further files with a
        number that is already taken.
    """
    first, others = {}, []
    for name in ending(names, end):
        number = name[: -len(end)]
        if first.setdefault(number, name) != name:
            others.append((number, name))
    return first, others


def match(folder, names):
    """Match names from a CSV with the files of a folder.

    A name may have spaces around it, differ from the file's in Unicode normal form or letter case, or begin with the
    folder's own path (office\\train\\x.jpg), as long as exactly one file fits.

    Returns:
        Dict from each name to that of a file in the folder itself, or None.
    """
    own, existing, by_key = os.path.abspath(folder), set(), {}
    if os.path.isdir(folder):
        existing = {entry.name for entry in os.scandir(folder) if os.path.isfile(entry)}
    for file in existing:
        by_key.setdefault(_key(file), []).append(file)

    def find(name):
        if name in existing:
            return name
        above, last = posixpath.split(_absolute(own, name))
        below_own = above.removeprefix(own)
        if below_own and not (above.startswith(f"{own}/") and own.casefold().endswith(below_own.casefold())):
            return None
        fitting = by_key.get(_key(last), [])
        return fitting[0] if len(fitting) == 1 else None

    return {name: find(name) for name in names}


def escapes(folder, name):
    """Return whether a file name leads out of its folder, by its path or as a link."""
    own = os.path.abspath(folder)
    if not f"{_absolute(own, name)}/".startswith(f"{own}/"):
        return True
    path = os.path.join(folder, name)
    # Path.resolve() fails where links form a loop.
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _key(name):
    return unicodedata.normalize("NFC", name).casefold()


def _absolute(own, name):
    return posixpath.normpath(posixpath.join(own, name.strip().replace("\\", "/")))
