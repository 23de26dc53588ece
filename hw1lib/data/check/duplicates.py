"""Exact and near duplicates among images.

Near duplicates have almost the same gray thumbnail of 16 × 16 pixels and almost the same mean
colour. The thresholds were set on the Blue Marble (400 tiles of 128 pixels, 600 of 512, 5,977
windows of 32, at most 300 of each altered): of copies saved again as JPEG of quality 60, halved or
doubled in size, or 10 % brighter, at least 99.5 % of the tiles' correlate by more than 0.97. The
most similar of the distinct images reach 0.94 (tiles) and 0.952 (windows, which overlap). In
windows of 32 pixels JPEG's noise is so strong that only about half of the copies are found.
Cropped copies are not found. Flat images, such as open sea, only have exact copies.
"""

import numpy as np

SIMILAR = 0.97  # correlation of gray thumbnails
COLOUR = 24.0  # gray levels that the mean colours of two copies may differ by
FLATTEST = 3.0  # gray levels: a thumbnail that varies less, such as open sea, has only exact copies
BLOCK = 128  # images compared at once with all others


def exact(looks, others=None):
    """Images with the same bytes or the same decoded pixels as another one.

    Args:
        looks: list of survey.Look.
        others: list in which to search; without it, among those that come earlier in `looks`.

    Returns:
        {index: index of the first one that is the same}.
    """
    seen, found = {}, {}
    for index, look in enumerate(others or ()):
        for key in (look.file_hash, look.pixel_hash):
            seen.setdefault(key, index)
    for index, look in enumerate(looks):
        keys = (look.file_hash, look.pixel_hash)
        earlier = [seen[key] for key in keys if key in seen]
        if earlier:
            found[index] = min(earlier)
        elif others is None:
            seen |= dict.fromkeys(keys, index)
    return found


def near(looks, others=None):
    """Images that are another one re-encoded, resized or made slightly brighter.

    Args:
        looks: list of survey.Look.
        others: list in which to search; without it, among those that come earlier in `looks`.

    Returns:
        {index: index of the most similar one}; exact duplicates are not among them.
    """
    same = exact(looks, others)
    mine, within = _prepared(looks), others is None
    theirs = mine if within else _prepared(others)
    left = np.array([i not in same for i in range(len(looks))], dtype=bool) & mine[2]
    wanted = np.flatnonzero(left)
    there = wanted if within else np.flatnonzero(theirs[2])
    found = {}
    if not len(there):
        return found
    for start in range(0, len(wanted), BLOCK):
        rows = wanted[start : start + BLOCK]
        columns = there[: start + BLOCK] if within else there
        likeness = mine[0][rows] @ theirs[0][columns].T
        if within:  # only with those before it
            likeness[rows[:, None] <= columns[None]] = -1
        row, column = np.nonzero(likeness > SIMILAR)
        apart = np.abs(mine[1][rows[row]] - theirs[1][columns[column]]).max(axis=1)
        close = apart < COLOUR
        row, column = row[close], column[close]
        order = np.argsort(likeness[row, column], kind="stable")
        found |= dict(zip(rows[row[order]].tolist(), columns[column[order]].tolist()))
    return dict(sorted(found.items()))


def _prepared(looks):
    """Standardised gray thumbnails (N, 256), mean colours (N, 3), whether not flat (N,)."""
    if not looks:
        return np.zeros((0, 0), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, bool)
    small = np.stack([look.thumbnail for look in looks])
    colours = small.mean(axis=(1, 2), dtype=np.float32)
    gray = small.mean(axis=3, dtype=np.float32).reshape(len(small), -1)
    gray -= gray.mean(axis=1, keepdims=True)
    spread = gray.std(axis=1)
    gray /= np.maximum(np.linalg.norm(gray, axis=1, keepdims=True), 1e-6)
    return gray, colours, spread >= FLATTEST
