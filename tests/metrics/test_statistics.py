"""Intervals and tests, compared with their formulas."""

import math

import numpy as np
import pytest
from scipy import stats

from hw1lib.metrics.statistics import bootstrap, holm, mcnemar, mean_interval, share, wilson


@pytest.mark.parametrize("total", [1, 7, 96])
def test_wilsons_formula(total):
    z = stats.norm.ppf(0.975)
    for correct in range(total + 1):
        low, high = wilson(correct, total)
        p, scale = correct / total, 1 + z**2 / total
        half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / scale
        middle = (p + z**2 / (2 * total)) / scale
        assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-12)


def outcomes(only_first, only_second, both=3, neither=2, seed=0):
    """Return which images two classifiers classify correctly, shuffled."""
    first = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    order = np.random.default_rng(seed).permutation(len(first))
    return np.array(first, bool)[order], np.array(second, bool)[order]


@pytest.mark.parametrize("b", [0, 1, 4, 15])
@pytest.mark.parametrize("c", [0, 2, 4, 9, 30])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    """Twice the tail of the rarer kind, at most 1; the order and concordant images do not matter."""
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    first, second = outcomes(b, c)
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(*outcomes(b, c, both=500, neither=90, seed=1)) == mcnemar(first, second)


@pytest.mark.parametrize("seed", range(8))
def test_holms_p_values_reject_as_his_procedure(seed):
    """It compares p-values, the smallest first, with level / (number left) until one is larger."""
    p_values = np.random.default_rng(seed).random(9) ** 4
    adjusted = holm(p_values)
    for level in (0.001, 0.01, 0.05, 0.3):
        rejected = set()
        for left, number in zip(range(len(p_values), 0, -1), np.argsort(p_values)):
            if p_values[number] > level / left:
                break
            rejected.add(number)
        assert set(np.flatnonzero(adjusted <= level)) == rejected
    assert (adjusted >= p_values).all() and adjusted.max() <= 1 and holm([0.04]).tolist() == [0.04]


def test_the_interval_of_a_mean_is_students():
    values = [0.1, 0.4, 0.25]
    result = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((result.low, result.high))
    assert np.isnan(mean_interval([0.3, 0.1 + 0.2])).all()  # their variance is unknown


def shares(counts):
    return counts[:, 0] / counts.sum(axis=1)


def test_differences_are_paired_and_groups_are_drawn_whole():
    random = np.random.default_rng(1)
    base = np.stack([random.integers(0, 90, 60), np.full(60, 10)], axis=1)
    better = base + [5, 0]
    intervals = bootstrap({"one": better, "two": base}, shares)
    low, high = intervals["one", "two"]
    assert 0 < low < high < intervals["one"][1] - intervals["one"][0]  # pairing narrows the difference
    assert intervals["two", "one"] == pytest.approx((-high, -low))
    groups = np.repeat(np.arange(20), 3)  # copies of tiles add no information
    few = bootstrap({"one": base[:20]}, shares)["one"]
    assert bootstrap({"one": base[:20].repeat(3, axis=0)}, shares, groups)["one"] == pytest.approx(few)
    assert bootstrap({"one": base[:20].repeat(3, axis=0)}, shares)["one"][0] > few[0]
    alone = bootstrap({"one": base, "two": better}, shares, np.zeros(60))
    assert np.isnan(list(alone.values())).all()  # one place


def test_copies_of_images_at_one_place_change_nothing():
    first, second = outcomes(12, 30, both=20, neither=9, seed=2)
    p = mcnemar(first, second)
    assert mcnemar(first.repeat(3), second.repeat(3), np.arange(len(first)).repeat(3)) == pytest.approx(p)
    assert mcnemar(first, second, np.zeros(len(first))) == 1.0


def test_the_sign_flip_test_by_hand():
    """Three places differ by +2, +1 and -1; six of the eight sums are at least 2 from 0."""
    first = np.array([1, 1, 1, 0, 1, 0], bool)
    second = np.array([0, 0, 0, 1, 1, 0], bool)
    assert mcnemar(first, second, [7, 7, 3, 5, 5, 5]) == pytest.approx(6 / 8)


def test_the_interval_of_a_proportion_is_wilsons_or_a_bootstrap_over_places():
    right = np.random.default_rng(3).random(60) < 0.6
    assert share(right) == wilson(int(right.sum()), 60)
    few, many = share(right, np.arange(60)), share(right.repeat(4), np.arange(60).repeat(4))
    assert many == pytest.approx(few) and few == pytest.approx(wilson(int(right.sum()), 60), abs=0.03)
