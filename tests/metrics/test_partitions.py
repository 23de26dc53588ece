"""Metrics of partitions, compared with counts pixel by pixel."""

import math

import numpy as np
import pytest

from hw1lib.data.landcover import UNKNOWN
from hw1lib.metrics import partitions


def case(seed):
    """Draw a partition, a truth whose last segment is unknown, and a prediction."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 9, (12, 12))
    truth = random.integers(0, UNKNOWN + 1, (12, 12)).astype(np.uint8)
    truth[labels == labels.max()] = UNKNOWN
    return labels, truth, random.integers(0, UNKNOWN, (12, 12)).astype(np.uint8)


def test_coverage_counts_each_pixel_once():
    masks = np.zeros((3, 4, 5), dtype=bool)
    masks[0, :2] = masks[1, 1:3] = True
    assert [partitions.coverage(m) for m in (masks, masks[:0], ~masks[2:])] == [15 / 20, 0, 1]


@pytest.mark.parametrize("seed", range(10))
def test_oracle_vote_and_asa_by_brute_force(seed):
    labels, truth, prediction = case(seed)
    oracle, vote = partitions.oracle(labels, truth), partitions.vote(labels, prediction)
    assert oracle.dtype == vote.dtype == np.uint8
    for label in np.unique(labels):
        inside = labels == label
        known, votes = truth[inside & (truth != UNKNOWN)].tolist(), prediction[inside].tolist()
        assert set(oracle[inside]) == {max(range(6), key=known.count) if known else UNKNOWN}
        assert set(vote[inside]) == {max(range(7), key=votes.count)}
    scored = truth != UNKNOWN
    assert partitions.asa(labels, truth) == pytest.approx((oracle == truth)[scored].mean())
    other = np.where(scored, labels, 0)  # differs in unknown areas only
    assert partitions.asa(other, truth) == partitions.asa(labels, truth)
    assert np.array_equal(partitions.oracle(other, truth)[scored], oracle[scored])
    assert math.isnan(partitions.asa(labels, np.full_like(truth, UNKNOWN)))


# --- boundaries


def test_tolerance_is_two_pixels_at_512():
    sides = (32, 128, 256, 512, 640, 1024, 2448)
    assert [partitions.boundary_tolerance((side, side)) for side in sides] == [1, 1, 1, 2, 3, 4, 10]
    assert partitions.boundary_tolerance((100, 512)) == 2


def test_without_borders_recall_and_precision_are_nan():
    whole, halves = np.zeros((8, 8), int), np.repeat([0, 1], 32).reshape(8, 8)
    assert partitions.boundary_recall_precision(halves, whole) == pytest.approx((np.nan, 0), nan_ok=True)
    assert partitions.boundary_recall_precision(whole, halves) == pytest.approx((0, np.nan), nan_ok=True)


def borders(areas, valid):
    """List the pixels that differ from their right or lower neighbour, if both are valid."""
    side, pixels = len(areas), set()
    for y, x in np.ndindex(areas.shape):
        for v, u in ((y + 1, x), (y, x + 1)):
            if v < side and u < side and valid[y, x] and valid[v, u] and areas[y, x] != areas[v, u]:
                pixels.add((y, x))
    return sorted(pixels)


@pytest.mark.parametrize(("given", "tolerance"), [(1, 1), (2, 2), (None, 1)])
def test_boundaries_by_brute_force(given, tolerance):
    """Borders of unknown areas do not count."""
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
    assert partitions.boundary_recall_precision(coarse, truth, given) == pytest.approx((recall, precision))
