"""Intervals and the paired test, against formulas written out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from hw1lib.measures.statistics import mcnemar, wilson


@pytest.mark.parametrize("total", [1, 2, 7, 96, 406])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_his_formula(total, confidence):
    z = stats.norm.ppf((1 + confidence) / 2)
    for correct in range(total + 1):
        low, high = wilson(correct, total, confidence)
        p, scale = correct / total, 1 + z**2 / total
        half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / scale
        middle = (p + z**2 / (2 * total)) / scale
        assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert wilson(1, total) == wilson(1, total, 0.95)


def rights(only_first, only_second, both=3, neither=2, seed=0):
    """Two vectors with that many images of each kind, shuffled."""
    first = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    order = np.random.default_rng(seed).permutation(len(first))
    return np.array(first, bool)[order], np.array(second, bool)[order]


@pytest.mark.parametrize("b", [0, 1, 4, 15])
@pytest.mark.parametrize("c", [0, 2, 4, 9, 30])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    """Twice the tail of the rarer kind, at most 1; who is first, and what both or none got right, do not matter."""
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    first, second = rights(b, c)
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(*rights(b, c, both=500, neither=90, seed=1)) == mcnemar(first, second)
