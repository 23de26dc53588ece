"""Scene leakage: validation tiles that continue a training tile across a border.

The facing outermost lines of two tiles are compared, both as they are and in their fine detail. The null repeats this
with one of the two lines reversed, which shows how many pairs fit by chance.

The table shows how many of the validation tiles that touch a training tile are found, open sea included: three draws of
520 tiles of the Blue Marble (208 for tiles of 128 of its pixels), cut as scenes of 4 × 4 (2 × 2 where not enlarged from
64) and split at random. In `separate`, no scene is in both splits, so that any tile found is a false alarm.

    pixels of the Earth → tile   JPEG     found        null       separate   its null
     64 →  64                     95     247 of 347   0 of 360   0 of 124   0
     64 →  64                     75     169 of 347   0 of 360   1 of 124   1
     64 → 128 (the sample's)      95     313 of 364   1 of 366   2 of 266   1
     64 → 128                     75     277 of 364   3 of 366   0 of 266   0
    128 → 128                     75     115 of 142   0 of 144   0 of  99   0
    128 → 512                     75     132 of 142   0 of 144   0 of  99   0
     64 → 256, bicubic            75     347 of 364   0 of 366   2 of 266   0
     64 → 512, bicubic            75     350 of 364   0 of 366   2 of 266   0

All but three of the tiles found are matched with a tile that they touch. The Earth sample has 0 of 120, and 2 with
borders reversed.
"""

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter1d

LINE = 128  # samples along a border, whatever the tile's size
WINDOW = 17  # samples: fine detail is the difference from their mean
NOISE = 1.0  # gray levels of detail that count as noise
MIN_DETAIL = 0.5  # 0…1: borders with less detail, such as open sea, are not compared
SHORTEST = 32  # pixels: shorter sides are not compared
MIN_MUTUAL_FIT = 0.05  # sufficient if each border is the other's best match
CLEAR = 0.2  # strength above which a link is almost never chance
FITTING = 0.4  # product of two concordances, of lines and of their detail
FACING = ((0, 1), (1, 0), (2, 3), (3, 2))  # one tile's top continues another's bottom, and so on


def borders(image):
    """Return the outermost lines of a tile.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (4, LINE, 3) uint8: top, bottom, left, right, from left to right or top to bottom; None if a side is shorter
        than SHORTEST.
    """
    if min(image.shape[:2]) < SHORTEST:
        return None
    lines = [Image.fromarray(line[None]) for line in (image[0], image[-1], image[:, 0], image[:, -1])]
    return np.stack([np.asarray(line.resize((LINE, 1), Image.Resampling.BOX))[0] for line in lines])


def leaks(train, validation):
    """Find validation tiles that continue a training tile.

    Args:
        train, validation: (N, 4, LINE, 3) uint8, as returned by `borders`.

    Returns:
        Dict from the index of a leaking validation tile to that of the training tile that fits it best, and the number
        of tiles that would leak with all their borders reversed (the null).
    """
    if not len(train) or not len(validation):
        return {}, 0
    lines, detail, informative = _prepare(validation)
    train = _prepare(train)
    fit = _fit((lines, detail, informative), train)
    null = _fit((lines[:, :, ::-1], detail[:, :, ::-1], informative), train)
    leaking = np.flatnonzero(fit.max(axis=1) > FITTING)
    partners = dict(zip(leaking.tolist(), fit[leaking].argmax(axis=1).tolist()))
    return partners, int((null.max(axis=1) > FITTING).sum())


def is_significant(tiles, of, null):
    """Return whether more tiles leak than chance explains: two above the null, and over twice the null plus 1 %.

    Args:
        tiles: number of leaking validation tiles.
        of: number of validation tiles.
        null: number of tiles that would leak with all their borders reversed.
    """
    return tiles - null >= 2 and tiles > 2 * null + 0.01 * of


def links(borders):
    """Find pairs of tiles that probably continue each other.

    Two borders that are each other's most similar among all ("best buddies", Pomeranz et al. 2011) are linked by how
    much more similar they are than the next best, so faint borders are found, too. Borders that are each other's best
    fit are linked by half their fit.

    Args:
        borders: (N, 4, LINE, 3) uint8, as returned by `borders`.

    Returns:
        List of (strength in 0…1, index, index); above CLEAR almost none is chance.
    """
    prepared, flat, pairs = _prepare(borders), borders.reshape(len(borders), 4, -1).astype(np.float32), []
    for side, facing in FACING[::2]:  # each border once
        lines, others = flat[:, side], flat[:, facing]
        distance = np.maximum(_squares(lines)[:, None] + _squares(others)[None] - 2 * lines @ others.T, 0)
        distance = NOISE + np.sqrt(distance / lines.shape[1])  # gray levels
        one, two = _mutual_nearest(distance)
        nearest, distance[one, two] = distance[one, two], np.inf
        next_best = np.minimum(distance[one].min(axis=1), distance[:, two].min(axis=0))
        pairs += zip((1 - nearest / next_best).tolist(), one.tolist(), two.tolist())
        fit = _border_fit(prepared, prepared, side, facing)
        one, two = _mutual_nearest(-fit)
        enough = fit[one, two] > MIN_MUTUAL_FIT
        pairs += zip((fit[one, two][enough] / 2).tolist(), one[enough].tolist(), two[enough].tolist())
    return pairs


def _mutual_nearest(distance):
    """Return rows and columns of a square matrix that are each other's nearest; sets its diagonal to infinity."""
    np.fill_diagonal(distance, np.inf)  # no tile continues itself
    one, two = np.arange(len(distance)), distance.argmin(axis=1)
    mutual = (distance.argmin(axis=0)[two] == one) & (one != two)
    return one[mutual], two[mutual]


def _prepare(borders):
    """Prepare (N, 4, LINE, 3) uint8 borders for comparison.

    Returns:
        The lines minus 128, and their fine detail divided by its local strength, so that one coast does not outweigh
        all else: both (N, 4, LINE, 3) float32. Then whether a line has enough detail: (N, 4) bool.
    """
    lines = borders.astype(np.float32) - 128
    detail = lines - uniform_filter1d(lines, WINDOW, axis=2, mode="mirror")
    strength = uniform_filter1d((detail**2).mean(axis=3, keepdims=True), WINDOW, axis=2, mode="mirror")
    detail /= np.sqrt(np.maximum(strength, 0)) + NOISE  # rounding may give less than 0
    return lines, detail, np.sqrt((detail**2).mean(axis=(2, 3))) >= MIN_DETAIL


def _fit(tiles, others):
    """Return how well M tiles continue N others at the best of the four borders: (M, N), as `_border_fit`."""
    return np.maximum.reduce([_border_fit(tiles, others, *sides) for sides in FACING])


def _border_fit(tiles, others, side, facing):
    """Return how well one side of M tiles continues the facing side of N others: (M, N) in 0…1.

    The fit is the concordance of the lines times that of their detail; -1 where a border has too little detail.

    Args:
        tiles, others: as returned by `_prepare`.
        side, facing: indices of the two sides.
    """
    coarse, fine = (_concordance(tiles[kind][:, side], others[kind][:, facing]) for kind in (0, 1))
    informative = tiles[2][:, side, None] & others[2][None, :, facing]
    return np.where(informative, np.maximum(coarse, 0) * np.maximum(fine, 0), np.float32(-1))


def _concordance(lines, others):
    """Return Lin's concordance of all pairs of (M, LINE, 3) and (N, LINE, 3) lines: (M, N) in -1…1.

    It is a correlation that is lower if means or spreads differ.
    """
    (lines, mean), (others, other_mean) = _centre(lines), _centre(others)
    distance = _squares(mean)[:, None] + _squares(other_mean)[None] - 2 * mean @ other_mean.T
    spread = _squares(lines)[:, None] + _squares(others)[None]
    return 2 * (lines @ others.T) / (spread + LINE * np.maximum(distance, 0) + 1e-6)


def _centre(lines):
    means = lines.mean(axis=1)
    return (lines - means[:, None]).reshape(len(lines), -1), means


def _squares(rows):
    return (rows**2).sum(axis=1)
