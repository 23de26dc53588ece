"""The original report's numbers, to stand beside ours where they compare."""

import functools
import tomllib

import pandas as pd

from hw1lib import paths
from hw1lib.data import layout


@functools.cache
def numbers():
    """The original report's numbers and the course's baselines, from report/original.toml."""
    return tomllib.loads(paths.ORIGINAL.read_text(encoding="utf-8"))


def beside(data, problem):
    """The original's accuracies (problem 1) or mIoUs (2) where this data has the course's counts, else nothing: a dict.

    Args:
        data: layout.Layout.
        problem: 1 or 2.
    """
    original = numbers()[f"problem{problem}"]
    counts = original["course_data"]
    if problem == 1:
        here = len(data.problem1.val), len(data.problem1.classes)
        return original["accuracy"] if here == (counts["validation"], counts["classes"]) else {}
    dealt_anew = (data.root / layout.SPLIT).is_file()
    return original["miou"] if len(data.problem2.validation) == counts["validation"] and not dealt_anew else {}


def compare(data, problem, things, baselines, form):
    """Whether the original's numbers may stand beside ours: a sentence.

    Args:
        data: layout.Layout.
        problem: 1 or 2.
        things: what was validated on, such as tiles.
        baselines: what the course's baselines are called.
        form: function from a baseline to text.
    """
    if not beside(data, problem):
        return f"These {things} are not the course's, so the original's numbers, listed at the end, do not compare."
    baseline = numbers()[f"problem{problem}"]["baseline"]
    return (
        f"The column *original* holds the original report's numbers on the same validation {things}; the course's "
        f"{baselines} are {form(baseline['simple'])} (simple) and {form(baseline['strong'])} (strong)."
    )


def table(problem, column, value, names=None):
    """The original's numbers as a DataFrame with two columns; `names` says how its rows are called."""
    found = numbers()[f"problem{problem}"][value]
    return pd.DataFrame([{column: (names or {}).get(name, name), value: number} for name, number in found.items()])
