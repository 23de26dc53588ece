"""Numbers, comparisons and lists in words: rounding, direction, and no claim that an interval does not support."""

import numpy as np
import pytest
from scipy import stats

from hw1lib.chapters import phrases


def test_no_p_value_is_printed_on_the_wrong_side_of_the_level():
    """Every p-value of up to 419 images that differ, as many as the course's validation has."""
    for count in range(1, 420):
        tails = 2 * stats.binom.cdf(np.arange(count // 2 + 1), count, 0.5)
        for p in tails[np.abs(tails - phrases.LEVEL) < 0.01]:
            printed = float(phrases.p_number(p).removeprefix("<"))
            assert (printed < phrases.LEVEL) == (p < phrases.LEVEL), (count, p)


@pytest.mark.parametrize(
    ("p", "text"),
    [(1e-300, "< 0.001"), (9.99e-4, "< 0.001"), (1e-3, "= 0.001"), (0.0123, "= 0.012"), (0.04996, "= 0.04996"),
     (0.05, "= 0.050"), (0.0501, "= 0.0501"), (1.0, "= 1.000")],
)  # fmt: skip
def test_p_values(p, text):
    assert phrases.p_number(p) == text.removeprefix("= ") and phrases.p_value(p) == f"p {text}"


@pytest.mark.parametrize(
    ("difference", "low", "high", "text"),
    [
        (1.2, -4.9, 7.2, "is 1.2 points above B (95 % interval −4.9 to 7.2), which is not significant"),
        (-1.2, -7.2, 4.9, "is 1.2 points below B (95 % interval −4.9 to 7.2), which is not significant"),
        (-2.0, -3.0, -1.0, "is 2.0 points below B (95 % interval 1.0 to 3.0)"),
        (2.0, 0.0, 3.0, "is 2.0 points above B (95 % interval 0.0 to 3.0), which is not significant"),
        (0.0, -1.0, 1.0, "is level with B (95 % interval −1.0 to 1.0), which is not significant"),
        (2.0, np.nan, np.nan, "is 2.0 points above B (no interval)"),
    ],
)
def test_comparisons(difference, low, high, text):
    assert phrases.comparison(difference, low, high, "B", ".1f", " points", "no interval") == text


def test_changes_are_signed():
    assert phrases.change(0.006, 0.002, 0.008) == "+0.006 (95 % interval +0.002 to +0.008)"
    assert phrases.change(-0.006, -0.02, 0.01).endswith("(95 % interval −0.020 to +0.010), which is not significant")
    assert phrases.change(-0.006, np.nan, np.nan) == "−0.006 (no interval: one place)"


def test_lists_and_capitals():
    for items, text in (("A", "A"), ("AB", "A and B"), ("ABC", "A, B and C"), (("x",), "x")):
        assert phrases.listed(items) == phrases.listed(iter(items)) == text
    assert phrases.capital("the head") == "The head" and phrases.capital("k-NN on") == "k-NN on"
