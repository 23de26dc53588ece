"""Which files of a folder are images, satellite tiles and masks, by their names alone."""

import os

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
IMAGES += (".jp2", ".j2k", ".jpx", ".pgm", ".ppm", ".avif", ".heic", ".heif", ".jxl")  # the last three are only named
SATELLITE, MASK = "_sat.jpg", "_mask.png"  # NNNN_sat.jpg has NNNN_mask.png; upper or lower case does not matter


def visible(folder):
    """Sorted names of what is in a folder but hidden files, such as ._0001_sat.jpg; none without the folder."""
    return sorted(name for name in os.listdir(folder) if name[0] != ".") if os.path.isdir(folder) else []


def files(folder):
    """Those of the names that are files, or links to files."""
    return [name for name in visible(folder) if os.path.isfile(os.path.join(folder, name))]


def images(names):
    """Those of the names that are called like images, whether or not they can be decoded."""
    return [name for name in names if os.path.splitext(name)[1].lower() in IMAGES]


def ending(names, end):
    """Those of the names that end so, in upper or lower case."""
    return [name for name in names if name.lower().endswith(end)]


def numbered(names, end):
    """Tiles or masks by number.

    Returns:
        {"0001": "0001_sat.jpg"}, and a list of (number, name) of further files of a number.
    """
    first, others = {}, []
    for name in ending(names, end):
        number = name[: -len(end)]
        if first.setdefault(number, name) != name:
            others.append((number, name))
    return first, others
