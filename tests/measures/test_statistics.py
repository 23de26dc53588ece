"""Intervals and the paired test, against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from hw1lib.measures.statistics import mcnemar, wilson


@pytest.mark.parametrize("total", [1, 2, 7, 96, 406, 10_000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(total, confidence):
    for correct in {0, 1, total // 3, total // 2, total - 1, total}:
        expected = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
        assert wilson(correct, total, confidence) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("total", [1, 5, 406])
def test_wilson_holds_the_share_and_stays_a_share(total):
    for correct in range(total + 1):
        low, high = wilson(correct, total)
        assert 0 <= low <= correct / total + 1e-12 and correct / total - 1e-12 <= high <= 1
        assert low < high


def test_wilson_is_symmetric_and_narrows():
    low, high = wilson(3, 20)
    assert wilson(17, 20) == pytest.approx((1 - high, 1 - low))
    widths = [np.ptp(wilson(3 * n, 20 * n)) for n in (1, 10, 100)]
    assert widths == sorted(widths, reverse=True)


def rights(only_first, only_second, both=3, neither=2, seed=0):
    """Two vectors with that many images of each kind, shuffled."""
    first = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    order = np.random.default_rng(seed).permutation(len(first))
    return np.array(first, bool)[order], np.array(second, bool)[order]


def by_hand(b, c):
    """Twice the binomial tail of the rarer kind, at most 1."""
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    return min(1.0, 2 * tail)


def test_an_example_by_hand():
    """One against nine: 2 · (1 + 10) / 1024."""
    assert mcnemar(*rights(1, 9)) == pytest.approx(22 / 1024)


@pytest.mark.parametrize("b", [0, 1, 4, 15])
@pytest.mark.parametrize("c", [0, 2, 4, 30])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    first, second = rights(b, c)
    assert mcnemar(first, second) == pytest.approx(by_hand(b, c))
    assert mcnemar(first, second) == mcnemar(second, first)


def test_images_that_both_or_none_got_right_do_not_matter():
    assert mcnemar(*rights(2, 9)) == mcnemar(*rights(2, 9, both=500, neither=90, seed=1))


@pytest.mark.parametrize("value", [True, False])
def test_equal_classifiers_cannot_be_told_apart(value):
    same = np.array([value, True, False])
    assert mcnemar(same, same) == 1.0
