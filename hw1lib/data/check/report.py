"""The data check of a whole data root, as JSON or as text."""

import textwrap

import pandas as pd

from hw1lib.data import layout
from hw1lib.data.check import doctor
from hw1lib.errors import UserError

WIDTH = 80  # columns of a terminal
SPLITS = {"p1": ("pool", "train", "val"), "p2": ("train", "validation")}
LABELS = {  # for facts whose names are not clear enough
    "undecodable": "cannot be decoded", "without_file": "rows without a file", "without_row": "images without a row",
    "duplicate_ids": "rows with a repeated id", "listed_twice": "files listed twice",
    "left_out_labels": "gaps in labels", "sizes": "different sizes", "mask_of_other_size": "masks unlike their tile",
    "exact": "exact copies", "near": "near copies", "in_train": "also in train", "in_pool": "also in the pool",
    "leakage": "continue a training tile", "null": "with borders reversed",
}  # fmt: skip


def examine(root, progress=True):
    """Check a data root.

    Args:
        root: folder that holds p1_data/, p2_data/ or both.
        progress: show a bar on standard error if that is a terminal.

    Returns:
        Plain JSON: lists of errors and warnings, and the facts of "p1" and "p2", or None for a missing problem.
    """
    report = {"errors": [], "warnings": [], "p1": None, "p2": None}
    try:
        with layout.read_errors():
            for number, folder in layout.problem_folders(root).items():
                scan = {1: doctor.problem1, 2: doctor.problem2}[number](folder, progress)
                report[f"p{number}"] = scan.facts
                report["errors"] += [f"Problem {number}: {text}" for text in scan.errors]
                report["warnings"] += [f"Problem {number}: {text}" for text in scan.warnings]
    except UserError as error:
        report["errors"].append(str(error))
    return report


def table(report):
    """Format a report of `examine` as text of at most 80 columns: a table per problem, errors and warnings."""
    lines = []
    for problem, splits in SPLITS.items():
        if facts := report[problem]:
            if problem == "p2":
                leaks = {"leakage": facts["leakage"]["tiles"], "null": facts["leakage"]["null"]}
                facts = facts | {"validation": facts["validation"] | leaks}
            frame = pd.DataFrame({split: dict(_rows(facts[split])) for split in splits}).fillna("–")
            lines += [frame.rename_axis(columns=f"Problem {problem[1]}").to_string(col_space=12), ""]
    for word in ("errors", "warnings"):
        lines.append(word.capitalize() if report[word] else f"No {word}.")
        for text in report[word]:
            lines += textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _rows(facts, prefix=""):
    """Yield the name and the text of each fact; lists of files and Problem 1's classes are counted."""
    for name, value in facts.items():
        label = prefix + LABELS.get(name, name.replace("_", " "))
        if name == "classes" and value and min(value.values()) >= 1:
            yield label, f"{len(value):,}"
            yield "images of a class", f"{min(value.values()):,} … {max(value.values()):,}"
        elif isinstance(value, dict):
            yield from _rows(value, f"{label}: ")
        elif name in ("smallest", "largest") and value:
            yield label, doctor.size_text(value)
        elif value is not None:
            value = len(value) if isinstance(value, list) else value
            yield label, f"{value:.2%}" if isinstance(value, float) else f"{value:,}"
