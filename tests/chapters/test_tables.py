"""Tables as Markdown: formats by column, and text that stays text."""

import itertools
import string

import numpy as np
import pandas as pd
import pypandoc
import pytest

from hw1lib import paths
from hw1lib.chapters import tables
from hw1lib.report.notes import MARKDOWN
from tests.chapters.made import NASTY, Page


def test_cells_have_the_format_of_their_column():
    counts = pd.array([1234567, None], "Int64")
    table = {"model": ["a", None], "miou": [0.5, np.nan], "parameters": counts, "asa": [1, 0.25], "epoch": 3}
    assert tables.markdown(pd.DataFrame(table)).splitlines() == [
        "| model | mIoU | parameters | ASA | epoch |",
        "| :--- | ---: | ---: | ---: | ---: |",
        "| a | 0.500 | 1,234,567 | 1.000 | 3 |",
        "| – | – | – | 0.250 | 3 |",
    ]
    table = {"accuracy_last": [0.5, "none"], "ci_low": [0.25, np.nan], "ci_high": [0.75, np.nan], "my_own": "x"}
    assert tables.markdown(pd.DataFrame(table)).splitlines()[2:] == [
        "| 50.0 % | 25.0 to 75.0 | x |", "| none | no interval: one place | x |",
    ]  # fmt: skip
    empty = pd.DataFrame({"a": [], "b": []}, dtype=object)
    assert tables.markdown(empty).splitlines() == ["| a | b |", "| :--- | :--- |"]


def test_published_tables_are_readable():
    """A row per row, and missing cells are dashes."""
    for path in (paths.REPORT / "demo" / "tables").glob("*.csv"):
        table = pd.read_csv(path)
        text = tables.markdown(table)
        assert len(text.splitlines()) == len(table) + 2 and "nan" not in text and "NaN" not in text, path


def rendered(table, kind=MARKDOWN):
    """The page that a browser shows of a DataFrame, and its cells, a line each."""
    options = {"verify_format": False, "extra_args": ["--columns=10000"]}
    page = Page(pypandoc.convert_text(tables.markdown(table), "html5", format=kind, **options))
    return page, [" ".join(line.split()) for line in page.text.splitlines() if line.strip()][1:]


def test_pairs_of_signs_and_nasty_names_are_shown_as_they_are():
    signs = ["".join(pair) for pair in itertools.product(string.punctuation, repeat=2)]
    texts = [*signs, *(f"a{pair}b" for pair in signs), *(sign * 3 for sign in string.punctuation), *NASTY]
    page, cells = rendered(pd.DataFrame({"name": texts}))
    assert cells == [" ".join(text.split()) for text in texts]
    assert set(page.tags()) <= {"table", "colgroup", "col", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("kind", ["gfm", "commonmark"])
def test_other_markdown_renderers_see_no_element_in_a_name(kind):
    """They have rules of their own; bare addresses may become links there."""
    page, _ = rendered(pd.DataFrame({"name": NASTY}), kind)
    page.assert_harmless(also=["a"])
    assert "<script>alert(1)</script>" in page.words
