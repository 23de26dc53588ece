"""Numbers, comparisons and lists in words: rounding, direction, and no claim that an interval does not support."""

import numpy as np
import pytest
from scipy import stats

from hw1lib import paths
from hw1lib.chapters import phrases
from hw1lib.errors import UserError


def test_no_p_value_is_printed_on_the_wrong_side_of_the_level():
    """Every p-value of up to 419 images that differ, as many as the course's validation has."""
    for count in range(1, 420):
        tails = 2 * stats.binom.cdf(np.arange(count // 2 + 1), count, 0.5)
        for p in tails[np.abs(tails - phrases.LEVEL) < 0.01]:
            printed = float(phrases.p_number(p).removeprefix("<"))
            assert (printed < phrases.LEVEL) == (p < phrases.LEVEL), (count, p)


@pytest.mark.parametrize(
    ("p", "text"),
    [(9.99e-4, "< 0.001"), (0.0123, "= 0.012"), (0.04996, "= 0.04996"), (0.05, "= 0.050"), (1.0, "= 1.000")],
)  # fmt: skip
def test_p_values(p, text):
    assert phrases.p_number(p) == text.removeprefix("= ") and phrases.p_value(p) == f"p {text}"


@pytest.mark.parametrize(
    ("difference", "low", "high", "text"),
    [
        (1.2, -4.9, 7.2, "is 1.2 points above B (95 % interval −4.9 to 7.2), which is not significant"),
        (-2.0, -3.0, -1.0, "is 2.0 points below B (95 % interval 1.0 to 3.0)"),
        (2.0, 0.0, 3.0, "is 2.0 points above B (95 % interval 0.0 to 3.0), which is not significant"),
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
    assert [phrases.listed(items) for items in ("A", "AB", (1, 2, 3))] == ["A", "A and B", "1, 2 and 3"]
    assert phrases.capital("the head") == "The head" and phrases.capital("k-NN on") == "k-NN on"


@pytest.mark.parametrize(
    ("text", "message"), [("{% macro one() %}", "line 1 cannot"), ("{% macro one() %}{{ x }}{% endmacro %}", "'x' is")]
)
def test_sentences_that_cannot_be_filled_are_named(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(paths, "SENTENCES", tmp_path / "sentences.j2")
    paths.SENTENCES.write_text(text)
    with pytest.raises(UserError, match=f"sentences.j2.*{message}"):
        phrases.sentences("one")
