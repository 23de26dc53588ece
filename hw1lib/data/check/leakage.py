"""Scene leakage: validation tiles that continue a training tile across a border.

The outermost lines of two tiles that face each other are compared, as they are and in
their fine detail. The null is the same with one of the two reversed: what chance finds. Measured on
the Blue Marble, three draws of 520 tiles (of 208 for tiles of 128 of its pixels), cut as scenes of
4 × 4 (2 × 2 where not enlarged from 64) and dealt out to both splits at random: how many of the
validation tiles that touch a training tile are found, open sea included. `clean` is the same
scenes, each in one split as a whole.

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

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter1d

LINE = 128  # samples along a border, whatever the tile's size
WINDOW = 17  # samples: fine detail is what differs from their mean
QUIET = 1.0  # gray levels of detail that count as noise
LEAST = 0.5  # of detail along a border, at most 1: with less, such as open sea, it tells nothing
SHORTEST = 32  # pixels: a shorter side tells nothing
FAINT = 0.05  # where two borders fit each other best of all, less is enough
CLEAR = 0.2  # of 1, from which on such a link is nearly never chance
FITTING = 0.4  # a product of two concordances, of lines and of their detail
FACING = ((0, 1), (1, 0), (2, 3), (3, 2))  # a tile's top continues another's bottom, and so on


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
    lines = [Image.fromarray(line[None]) for line in (image[0], image[-1], image[:, 0], image[:, -1])]
    return np.stack([np.asarray(line.resize((LINE, 1), Image.Resampling.BOX))[0] for line in lines])


def blank():
    """The sides of a tile that is too small to tell anything."""
    return np.zeros((4, LINE, 3), np.uint8)


def leaks(train, validation):
    """Looks for validation tiles that go on where a training tile ends.

    Args:
        train, validation: (N, 4, LINE, 3) uint8, as of `sides`.

    Returns:
        {leaking validation tile: training tile that it fits best}, by index, and how many tiles
        would leak if all their borders were reversed: the null.
    """
    if not len(train) or not len(validation):
        return {}, 0
    lines, detail, telling = _prepared(validation)
    train = _prepared(train)
    fit = _fit((lines, detail, telling), train)
    null = _fit((lines[:, :, ::-1], detail[:, :, ::-1], telling), train)
    leaking = np.flatnonzero(fit.max(axis=1) > FITTING)
    partners = dict(zip(leaking.tolist(), fit[leaking].argmax(axis=1).tolist()))
    return partners, int((null.max(axis=1) > FITTING).sum())


def links(sides):
    """Pairs of tiles that continue each other, which need not all do so.

    Where two borders are each other's likest among all ("best buddies", Pomeranz et al. 2011), they count by how much
    liker they are than the next; so a faint border is found, too. Those that are each other's best fit count by half.

    Args:
        sides: (N, 4, LINE, 3) uint8, as of `sides`.

    Returns:
        List of (strength in 0…1, one, two) by index; above CLEAR nearly none is chance.
    """
    prepared, flat, found = _prepared(sides), sides.reshape(len(sides), 4, -1).astype(np.float32), []
    for mine, facing in FACING[::2]:  # each border once
        ours, theirs = flat[:, mine], flat[:, facing]
        apart = np.maximum(_squares(ours)[:, None] + _squares(theirs)[None] - 2 * ours @ theirs.T, 0)
        apart = QUIET + np.sqrt(apart / ours.shape[1])  # gray levels
        one, two = _buddies(apart)
        near, apart[one, two] = apart[one, two], np.inf
        next_one = np.minimum(apart[one].min(axis=1), apart[:, two].min(axis=0))
        found += zip((1 - near / next_one).tolist(), one.tolist(), two.tolist())
        fit = _border(prepared, prepared, mine, facing)
        one, two = _buddies(-fit)
        seen = fit[one, two] > FAINT
        found += zip((fit[one, two][seen] / 2).tolist(), one[seen].tolist(), two[seen].tolist())
    return found


def _buddies(apart):
    """Rows and columns of a square matrix that are each other's nearest; its diagonal is set to infinity."""
    np.fill_diagonal(apart, np.inf)  # no tile continues itself
    one, two = np.arange(len(apart)), apart.argmin(axis=1)
    mutual = (apart.argmin(axis=0)[two] == one) & (one != two)
    return one[mutual], two[mutual]


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
    detail = lines - uniform_filter1d(lines, WINDOW, axis=2, mode="mirror")
    strength = uniform_filter1d((detail**2).mean(axis=3, keepdims=True), WINDOW, axis=2, mode="mirror")
    detail /= np.sqrt(np.maximum(strength, 0)) + QUIET  # rounding may go below 0
    return lines, detail, np.sqrt((detail**2).mean(axis=(2, 3))) >= LEAST


def _fit(ours, theirs):
    """How well tiles continue each other: the best of the four borders, (M, N), as of `_border`."""
    return np.maximum.reduce([_border(ours, theirs, *sides) for sides in FACING])


def _border(ours, theirs, mine, facing):
    """How well one side of tiles goes on in a side of others: the concordance of lines times that of their detail.

    Args:
        ours, theirs: of M and of N tiles, as of `_prepared`.
        mine, facing: number of the side of ours and of theirs.

    Returns:
        (M, N), at most 1; -1 where a border tells nothing.
    """
    coarse, fine = (_concordance(ours[part][:, mine], theirs[part][:, facing]) for part in (0, 1))
    telling = ours[2][:, mine, None] & theirs[2][None, :, facing]
    return np.where(telling, np.maximum(coarse, 0) * np.maximum(fine, 0), np.float32(-1))


def _concordance(ours, theirs):
    """Lin's concordance of all pairs of lines: as a correlation, less for other means or spreads.

    Args:
        ours, theirs: (M, LINE, 3) and (N, LINE, 3).

    Returns:
        (M, N) in -1…1.
    """
    (ours, our_mean), (theirs, their_mean) = _centred(ours), _centred(theirs)
    apart = _squares(our_mean)[:, None] + _squares(their_mean)[None] - 2 * our_mean @ their_mean.T
    spread = _squares(ours)[:, None] + _squares(theirs)[None]
    return 2 * (ours @ theirs.T) / (spread + LINE * np.maximum(apart, 0) + 1e-6)


def _centred(lines):
    means = lines.mean(axis=1)
    return (lines - means[:, None]).reshape(len(lines), -1), means


def _squares(rows):
    return (rows**2).sum(axis=1)
