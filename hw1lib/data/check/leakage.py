"""Scene leakage: validation tiles that continue a training tile across a border.

The outermost lines of two tiles that face each other are compared, as they are and in their fine
detail. The null is the same with one of the two reversed: what chance finds.

Measured on the Blue Marble, three draws of 520 tiles (of 208 for tiles of 128 of its pixels), cut
as scenes of 4 × 4 (2 × 2 where not enlarged from 64) and dealt out to both splits at random: how
many of the validation tiles that touch a training tile are found, open sea included. `clean` is
the same scenes, each in one split as a whole.

    pixels of the Earth → tile   JPEG     found        null       clean     its null
     64 →  64                     95     247 of 347   0 of 360   0 of 124   0
     64 →  64                     75     169 of 347   0 of 360   1 of 124   1
     64 → 128 (the sample's)      95     313 of 364   1 of 366   2 of 266   1
     64 → 128                     75     277 of 364   3 of 366   0 of 266   0
    128 → 128                     75     115 of 142   0 of 144   0 of  99   0
    128 → 512                     75     132 of 142   0 of 144   0 of  99   0
     64 → 256, bicubic            75     347 of 364   0 of 366   2 of 266   0
     64 → 512, bicubic            75     350 of 364   0 of 366   2 of 266   0

All but three of those found are found at a tile that they touch. The Earth sample has 0 of 120,
and 2 with borders reversed.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

LINE = 128  # samples along a border, whatever the tile's size
WINDOW = 17  # samples: fine detail is what differs from their mean
QUIET = 1.0  # gray levels of detail that count as noise
LEAST = 0.5  # of detail along a border, at most 1: with less, such as open sea, it tells nothing
SHORTEST = 32  # pixels: a shorter side tells nothing
THRESHOLD = 0.4
BLOCK = 512  # validation tiles that are compared at once with all training tiles
FACING = ((0, 1), (1, 0), (2, 3), (3, 2))  # a tile's top continues another's bottom, and so on


class Leakage(NamedTuple):
    """What was found; `partners` maps validation tiles to the training tiles they continue."""

    partners: dict
    null: int


def sides(image):
    """The outermost lines of a tile.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (4, LINE, 3) uint8: top, bottom, left, right, all from left to right or top to bottom;
        None where a side is shorter than SHORTEST.
    """
    if min(image.shape[:2]) < SHORTEST:
        return None
    lines = (image[0], image[-1], image[:, 0], image[:, -1])
    return np.stack([_resampled(line) for line in lines])


def _resampled(line):
    return np.asarray(Image.fromarray(line[None]).resize((LINE, 1), Image.Resampling.BOX))[0]


def find(train, validation):
    """Looks for validation tiles that go on where a training tile ends.

    Args:
        train, validation: (N, 4, LINE, 3) uint8, as of `sides`.

    Returns:
        Leakage: for each leaking validation tile (its index) the training tile it fits best, and
        how many tiles would leak if all their borders were reversed.
    """
    if not len(train) or not len(validation):
        return Leakage({}, 0)
    train, partners, null = _prepared(train), {}, 0
    for start in range(0, len(validation), BLOCK):
        block = _prepared(validation[start : start + BLOCK])
        best, partner = _best(train, block)
        partners |= {start + int(i): int(partner[i]) for i in np.flatnonzero(best > THRESHOLD)}
        best, _ = _best(train, [block[0][:, :, ::-1], block[1][:, :, ::-1], block[2]])
        null += int((best > THRESHOLD).sum())
    return Leakage(partners, null)


def is_clear(tiles, of, null):
    """Whether so many leaking tiles are more than chance: beyond twice the null and 1 %, and two.

    Args:
        tiles: leaking validation tiles.
        of: all validation tiles.
        null: how many would leak if all their borders were reversed.
    """
    return tiles - null >= 2 and tiles > 2 * null + 0.01 * of


def _prepared(sides):
    """Lines as they are compared.

    Args:
        sides: (N, 4, LINE, 3) uint8.

    Returns:
        The lines less 128, and their fine detail, divided by its own strength nearby, so that one
        coast does not outweigh all else: both (N, 4, LINE, 3) float32. Then whether a line has
        detail enough: (N, 4) bool.
    """
    lines = sides.astype(np.float32) - 128
    detail = lines - _smooth(lines)
    strength = _smooth((detail**2).mean(axis=3, keepdims=True))
    detail /= np.sqrt(np.maximum(strength, 0)) + QUIET  # rounding may go below 0
    telling = np.sqrt((detail**2).mean(axis=(2, 3))) >= LEAST
    return lines, detail, telling


def _smooth(lines):
    """Mean over WINDOW samples along axis 2."""
    pad = ((0, 0), (0, 0), (WINDOW // 2 + 1, WINDOW // 2), (0, 0))
    sums = np.cumsum(np.pad(lines, pad, "reflect"), axis=2, dtype=np.float64)
    return ((sums[:, :, WINDOW:] - sums[:, :, :-WINDOW]) / WINDOW).astype(np.float32)


def _best(train, validation):
    """Each validation tile's best fit and the training tile that it is of: two (N,) arrays."""
    best = np.full(len(validation[0]), -1.0, dtype=np.float32)
    partner = np.zeros(len(best), dtype=np.int64)
    for mine, facing in FACING:
        fit = _fit([part[:, mine] for part in validation], [part[:, facing] for part in train])
        found = fit.argmax(axis=1)
        value = fit[np.arange(len(fit)), found]
        partner = np.where(value > best, found, partner)
        best = np.maximum(value, best)
    return best, partner


def _fit(ours, theirs):
    """How well lines fit: the concordance of the lines times that of their fine detail.

    Args:
        ours, theirs: lines, detail and whether it is enough, of one side of M and N tiles.

    Returns:
        (M, N), at most 1; -1 where one of the two tells nothing.
    """
    coarse, fine = _concordance(ours[0], theirs[0]), _concordance(ours[1], theirs[1])
    fit = np.maximum(coarse, 0) * np.maximum(fine, 0)
    fit[~(ours[2][:, None] & theirs[2][None])] = -1
    return fit


def _concordance(ours, theirs):
    """Lin's concordance of all pairs of lines: as a correlation, less for other means or spreads.

    Args:
        ours, theirs: (M, LINE, 3) and (N, LINE, 3).

    Returns:
        (M, N) in -1…1.
    """
    ours, our_mean = _centred(ours)
    theirs, their_mean = _centred(theirs)
    apart = _squares(our_mean)[:, None] + _squares(their_mean)[None] - 2 * our_mean @ their_mean.T
    spread = _squares(ours)[:, None] + _squares(theirs)[None]
    return 2 * (ours @ theirs.T) / (spread + LINE * np.maximum(apart, 0) + 1e-6)


def _centred(lines):
    means = lines.mean(axis=1)
    return (lines - means[:, None]).reshape(len(lines), -1), means


def _squares(rows):
    return (rows**2).sum(axis=1)
