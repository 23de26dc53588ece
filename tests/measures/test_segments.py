import math

import numpy as np
import pytest

from hw1lib.data.landcover import UNKNOWN
from hw1lib.measures import segments


@pytest.fixture
def random():
    return np.random.default_rng(0)


def random_case(random, side=12, count=9):
    """A partition, a truth with some unknown, and a prediction, all noisy."""
    labels = np.unique(random.integers(0, count, (side, side)), return_inverse=True)[1]
    truth = random.integers(0, UNKNOWN + 1, (side, side)).astype(np.uint8)
    prediction = random.integers(0, UNKNOWN, (side, side)).astype(np.uint8)
    return labels.reshape(side, side), truth, prediction


def test_coverage_counts_each_pixel_once():
    masks = np.zeros((3, 4, 5), dtype=bool)
    masks[0, :2] = masks[1, 1:3] = True
    assert segments.coverage(masks) == 15 / 20
    assert segments.coverage(masks[:0]) == 0
    assert segments.coverage(~masks[2:]) == 1


def test_oracle_and_vote_by_hand():
    labels = np.array([[0, 0, 0, 1, 1, 2]])
    truth = np.array([[3, 3, 1, 6, 4, 6]])
    assert segments.oracle(labels, truth).tolist() == [[3, 3, 3, 4, 4, UNKNOWN]]
    assert segments.asa(labels, truth) == 3 / 4  # three of the four pixels that are scored
    assert segments.vote(labels, np.array([[5, 2, 2, 1, 0, 4]])).tolist() == [[2, 2, 2, 0, 0, 4]]


def test_oracle_vote_and_asa_by_brute_force(random):
    for _ in range(10):
        labels, truth, prediction = random_case(random)
        oracle, vote = segments.oracle(labels, truth), segments.vote(labels, prediction)
        for label in np.unique(labels):
            inside = labels == label
            known = truth[inside & (truth != UNKNOWN)].tolist()
            assert set(oracle[inside]) == {max(range(6), key=known.count) if known else UNKNOWN}
            votes = prediction[inside].tolist()
            assert set(vote[inside]) == {max(range(7), key=votes.count)}
        scored = truth != UNKNOWN
        assert segments.asa(labels, truth) == pytest.approx((oracle == truth)[scored].mean())


def test_no_labelling_of_the_segments_beats_asa(random):
    labels, truth, _ = random_case(random)
    scored = truth != UNKNOWN
    best = segments.asa(labels, truth)
    for _ in range(200):
        guess = random.integers(0, UNKNOWN, labels.max() + 1)[labels]
        assert (guess == truth)[scored].mean() <= best


def test_asa_of_the_finest_and_the_coarsest_partition(random):
    _, truth, _ = random_case(random)
    pixels = np.arange(truth.size).reshape(truth.shape)
    assert segments.asa(pixels, truth) == 1
    known = truth[truth != UNKNOWN]
    one = np.zeros_like(pixels)
    assert segments.asa(one, truth) == pytest.approx(np.bincount(known).max() / known.size)
    assert math.isnan(segments.asa(one, np.full_like(truth, UNKNOWN)))


def test_splitting_a_segment_never_lowers_asa(random):
    labels, truth, _ = random_case(random)
    finer = labels * 2 + random.integers(0, 2, labels.shape)
    assert segments.asa(finer, truth) >= segments.asa(labels, truth)


def test_unknown_pixels_change_no_score(random):
    labels, truth, _ = random_case(random)
    scored = truth != UNKNOWN
    moved = np.where(scored, labels, 0)  # segments differ in unknown areas only
    assert segments.asa(moved, truth) == segments.asa(labels, truth)
    assert np.array_equal(
        segments.oracle(moved, truth)[scored], segments.oracle(labels, truth)[scored]
    )


def test_vote_by_single_pixels_changes_nothing(random):
    _, _, prediction = random_case(random)
    pixels = np.arange(prediction.size).reshape(prediction.shape)
    assert np.array_equal(segments.vote(pixels, prediction), prediction)


def test_tolerance_is_two_pixels_at_512():
    sides = (32, 128, 256, 512, 640, 1024, 2448)
    assert [segments.boundary_tolerance((s, s)) for s in sides] == [1, 1, 1, 2, 3, 4, 10]
    assert segments.boundary_tolerance((100, 512)) == 2


def halves(side, column):
    """A partition of a square into left and right."""
    labels = np.zeros((side, side), dtype=int)
    labels[:, column:] = 1
    return labels


def test_boundaries_within_and_beyond_the_tolerance():
    truth = halves(20, 10)
    for shift, tolerance, met in ((0, 1, 1), (1, 1, 1), (2, 1, 0), (-2, 2, 1), (3, 2, 0)):
        result = segments.boundary_recall_precision(halves(20, 10 + shift), truth, tolerance)
        assert result == (met, met), (shift, tolerance)


def test_more_borders_cost_precision_not_recall():
    truth = halves(40, 20)
    labels = np.repeat(np.arange(4), 10)[None].repeat(40, axis=0)  # borders at 10, 20, 30
    recall, precision = segments.boundary_recall_precision(labels, truth, 1)
    assert (recall, precision) == (1, pytest.approx(1 / 3))
    recall, precision = segments.boundary_recall_precision(truth, labels, 1)
    assert (recall, precision) == (pytest.approx(1 / 3), 1)


def test_borders_at_unknown_areas_count_on_neither_side():
    truth = halves(40, 20)
    truth[:, 30:] = UNKNOWN
    labels = np.digitize(np.arange(40), (20, 30, 35))[None].repeat(40, axis=0)
    # 20 is a class border; 30 is where unknown begins, 35 lies inside it.
    assert segments.boundary_recall_precision(labels, truth, 2) == (1, 1)


def test_boundaries_by_brute_force(random):
    for tolerance in (1, 2):
        coarse = random.integers(0, 4, (4, 4)).repeat(5, axis=0).repeat(5, axis=1)
        truth = random.choice((1, 3, UNKNOWN), (4, 4), p=(0.45, 0.4, 0.15))
        truth = np.roll(truth.repeat(5, axis=0).repeat(5, axis=1), 2, axis=1)
        known = truth != UNKNOWN

        def borders(areas, valid):
            found = []
            for y, x in np.ndindex(20, 20):
                for v, u in ((y + 1, x), (y, x + 1)):
                    inside = v < 20 and u < 20 and valid[y, x] and valid[v, u]
                    if inside and areas[y, x] != areas[v, u]:
                        found.append((y, x))
            return sorted(set(found))

        def near(point, points):
            return any(math.dist(point, other) <= tolerance for other in points)

        unknown = list(zip(*np.nonzero(~known)))
        true_borders = borders(truth, known)
        all_borders = borders(coarse, np.ones_like(known))
        counted = [point for point in all_borders if not near(point, unknown)]
        recall = np.mean([near(point, all_borders) for point in true_borders])
        precision = np.mean([near(point, true_borders) for point in counted])
        assert segments.boundary_recall_precision(coarse, truth, tolerance) == pytest.approx(
            (recall, precision)
        )


def test_nothing_to_count_is_not_measured():
    flat = np.zeros((8, 8), dtype=int)
    recall, precision = segments.boundary_recall_precision(halves(8, 4), flat)
    assert math.isnan(recall) and precision == 0
    recall, precision = segments.boundary_recall_precision(flat, halves(8, 4))
    assert recall == 0 and math.isnan(precision)
