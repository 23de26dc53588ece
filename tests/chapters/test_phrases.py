"""Numbers, lists and tables in words: rounding, the side of the level, and text that stays text."""

import itertools
import string

import numpy as np
import pandas as pd
import pypandoc
import pytest
from scipy import stats

from hw1lib.chapters import phrases
from hw1lib.report.notes import MARKDOWN
from tests.chapters.made import NASTY, Page


def test_no_p_that_there_may_be_is_printed_on_the_wrong_side():
    """Every p-value of up to 419 images that differ, as many as the course's validation has."""
    for count in range(1, 420):
        tails = 2 * stats.binom.cdf(np.arange(count // 2 + 1), count, 0.5)
        for p in tails[np.abs(tails - phrases.LEVEL) < 0.01]:
            printed = float(phrases.p_number(p).removeprefix("<"))
            assert (printed < phrases.LEVEL) == (p < phrases.LEVEL), (count, p)


@pytest.mark.parametrize(
    ("p", "said"),
    [(1e-300, "< 0.001"), (9.99e-4, "< 0.001"), (1e-3, "= 0.001"), (0.0123, "= 0.012"), (0.04996, "= 0.04996"),
     (0.05, "= 0.050"), (0.0501, "= 0.0501"), (1.0, "= 1.000")],
)  # fmt: skip
def test_p_with_and_without_its_letter_say_the_same(p, said):
    assert phrases.p_number(p) == said.removeprefix("= ") and phrases.p_value(p) == f"p {said}"


def test_lists_are_read_aloud():
    for items, text in (("A", "A"), ("AB", "A and B"), ("ABC", "A, B and C"), (("x",), "x")):
        assert phrases.listed(items) == phrases.listed(iter(items)) == text


# --- tables


def test_cells_have_the_form_of_their_column():
    counts = pd.array([1234567, None], "Int64")
    table = {"model": ["a", None], "miou": [0.5, np.nan], "parameters": counts, "asa": [1, 0.25], "epoch": 3}
    assert phrases.markdown(pd.DataFrame(table)).splitlines() == [
        "| model | mIoU | parameters | ASA | epoch |",
        "| :--- | ---: | ---: | ---: | ---: |",
        "| a | 0.500 | 1,234,567 | 1.000 | 3 |",
        "| – | – | – | 0.250 | 3 |",
    ]
    table = {"accuracy_last": [0.5], "pixel_accuracy": [0.5], "urban": [0.5], "seconds": [0.25], "my_own": ["x"]}
    head, _, row = phrases.markdown(pd.DataFrame(table)).splitlines()
    assert head == "| last epoch | pixel accuracy | urban | seconds | my own |"
    assert row == "| 50.0 % | 0.500 | 0.500 | 0.2 | x |"
    empty = pd.DataFrame({"a": [], "b": []}, dtype=object)  # it has a heading
    assert phrases.markdown(empty).splitlines() == ["| a | b |", "| :--- | :--- |"]


def shown(table, kind=MARKDOWN):
    """The page that a browser sees of a DataFrame, and its cells, a line each."""
    options = {"verify_format": False, "extra_args": ["--columns=10000"]}
    page = Page(pypandoc.convert_text(phrases.markdown(table), "html5", format=kind, **options))
    return page, [" ".join(line.split()) for line in page.text.splitlines() if line.strip()][1:]


def test_a_table_shows_every_pair_of_signs_and_nasty_names_as_they_stand():
    signs = ["".join(pair) for pair in itertools.product(string.punctuation, repeat=2)]
    texts = [*signs, *(f"a{pair}b" for pair in signs), *(sign * 3 for sign in string.punctuation), *NASTY]
    page, cells = shown(pd.DataFrame({"name": texts}))
    assert cells == [" ".join(text.split()) for text in texts]
    assert set(page.tags()) <= {"table", "colgroup", "col", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("kind", ["gfm", "commonmark"])
def test_a_code_host_and_a_notebook_see_no_element_in_a_name(kind):
    """Both have rules of their own; bare addresses may become links there."""
    page, _ = shown(pd.DataFrame({"name": NASTY}), kind)
    page.assert_harmless(also=["a"])
    assert "<script>alert(1)</script>" in page.words


def test_words_in_a_column_that_usually_holds_numbers_stay_words():
    table = phrases.markdown(pd.DataFrame({"first": ["A", None], "accuracy": ["none", 0.5]}))
    assert table.splitlines()[2:] == ["| A | none |", "| – | 50.0 % |"]
