"""Segments against independent counts, pixel by pixel."""

import math

import numpy as np
import pytest

from hw1lib.data.landcover import UNKNOWN
from hw1lib.measures import segments


def case(seed, side=12, count=9):
    """A partition, a truth with some unknown, and a prediction, all noisy."""
    random = np.random.default_rng(seed)
    labels = np.unique(random.integers(0, count, (side, side)), return_inverse=True)[1]
    truth = random.integers(0, UNKNOWN + 1, (side, side)).astype(np.uint8)
    return labels.reshape(side, side), truth, random.integers(0, UNKNOWN, (side, side)).astype(np.uint8)


def test_coverage_counts_each_pixel_once():
    masks = np.zeros((3, 4, 5), dtype=bool)
    masks[0, :2] = masks[1, 1:3] = True
    assert [segments.coverage(m) for m in (masks, masks[:0], ~masks[2:])] == [15 / 20, 0, 1]


def test_oracle_and_vote_by_hand():
    labels, truth = np.array([[0, 0, 0, 1, 1, 2]]), np.array([[3, 3, 1, 6, 4, 6]])
    assert segments.oracle(labels, truth).tolist() == [[3, 3, 3, 4, 4, UNKNOWN]]
    assert segments.asa(labels, truth) == 3 / 4  # three of the four pixels that are scored
    assert segments.vote(labels, np.array([[5, 2, 2, 1, 0, 4]])).tolist() == [[2, 2, 2, 0, 0, 4]]


@pytest.mark.parametrize("seed", range(10))
def test_oracle_vote_and_asa_by_brute_force(seed):
    labels, truth, prediction = case(seed)
    oracle, vote = segments.oracle(labels, truth), segments.vote(labels, prediction)
    assert oracle.dtype == vote.dtype == np.uint8
    for label in np.unique(labels):
        inside = labels == label
        known, votes = truth[inside & (truth != UNKNOWN)].tolist(), prediction[inside].tolist()
        assert set(oracle[inside]) == {max(range(6), key=known.count) if known else UNKNOWN}
        assert set(vote[inside]) == {max(range(7), key=votes.count)}
    scored = truth != UNKNOWN
    assert segments.asa(labels, truth) == pytest.approx((oracle == truth)[scored].mean())
    moved = np.where(scored, labels, 0)  # segments that differ in unknown areas only
    assert segments.asa(moved, truth) == segments.asa(labels, truth)
    assert np.array_equal(segments.oracle(moved, truth)[scored], oracle[scored])


def test_the_finest_and_the_coarsest_partition():
    _, truth, prediction = case(0)
    pixels, one = np.arange(truth.size).reshape(truth.shape), np.zeros(truth.shape, dtype=int)
    assert segments.asa(pixels, truth) == 1 and np.array_equal(segments.vote(pixels, prediction), prediction)
    known = truth[truth != UNKNOWN]
    assert segments.asa(one, truth) == pytest.approx(np.bincount(known).max() / known.size)
    assert math.isnan(segments.asa(one, np.full_like(truth, UNKNOWN)))


# --- boundaries


def test_tolerance_is_two_pixels_at_512():
    sides = (32, 128, 256, 512, 640, 1024, 2448)
    assert [segments.boundary_tolerance((side, side)) for side in sides] == [1, 1, 1, 2, 3, 4, 10]
    assert segments.boundary_tolerance((100, 512)) == 2


def stripes(side, *columns):
    """A partition of a square into upright stripes that begin at these columns."""
    return np.digitize(np.arange(side), columns)[None].repeat(side, axis=0)


@pytest.mark.parametrize(
    ("shift", "tolerance", "met"), [(0, 1, 1), (1, 1, 1), (2, 1, 0), (-2, 2, 1), (3, 2, 0), (2, None, 0)]
)
def test_boundaries_within_and_beyond_the_tolerance(shift, tolerance, met):
    assert segments.boundary_recall_precision(stripes(20, 10 + shift), stripes(20, 10), tolerance) == (met, met)


@pytest.mark.parametrize(
    ("labels", "truth", "expected"),
    [(stripes(40, 10, 20, 30), stripes(40, 20), (1, 1 / 3)), (stripes(40, 20), stripes(40, 10, 20, 30), (1 / 3, 1)),
     (stripes(8, 4), stripes(8), (np.nan, 0)), (stripes(8), stripes(8, 4), (0, np.nan)),
     # 20 is a class border; 30 is where unknown begins, 35 lies inside it.
     (stripes(40, 20, 30, 35), np.where(stripes(40, 30), UNKNOWN, stripes(40, 20)), (1, 1))],
)  # fmt: skip
def test_more_borders_cost_precision_and_missing_ones_recall(labels, truth, expected):
    """Nothing to count is not measured, and borders of unknown areas count on neither side."""
    assert segments.boundary_recall_precision(labels, truth, 1) == pytest.approx(expected, nan_ok=True)


def borders(areas, valid):
    """Pixels whose right or lower neighbour is another, where both are valid."""
    side, found = len(areas), set()
    for y, x in np.ndindex(areas.shape):
        for v, u in ((y + 1, x), (y, x + 1)):
            if v < side and u < side and valid[y, x] and valid[v, u] and areas[y, x] != areas[v, u]:
                found.add((y, x))
    return sorted(found)


@pytest.mark.parametrize("tolerance", [1, 2])
def test_boundaries_by_brute_force(tolerance):
    random = np.random.default_rng(tolerance)
    coarse = random.integers(0, 4, (4, 4)).repeat(5, axis=0).repeat(5, axis=1)
    truth = random.choice((1, 3, UNKNOWN), (4, 4), p=(0.45, 0.4, 0.15)).repeat(5, axis=0).repeat(5, axis=1)
    truth = np.roll(truth, 2, axis=1)

    def near(point, points):
        return any(math.dist(point, other) <= tolerance for other in points)

    unknown = list(zip(*np.nonzero(truth == UNKNOWN)))
    true_borders, all_borders = borders(truth, truth != UNKNOWN), borders(coarse, np.ones((20, 20), bool))
    recall = np.mean([near(point, all_borders) for point in true_borders])
    precision = np.mean([near(point, true_borders) for point in all_borders if not near(point, unknown)])
    assert segments.boundary_recall_precision(coarse, truth, tolerance) == pytest.approx((recall, precision))
