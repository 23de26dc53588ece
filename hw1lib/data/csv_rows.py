"""The rows of the course's CSV files: ids, file names and labels, exactly as written."""

import re
import warnings

import pandas as pd

from hw1lib.errors import UserError

HINT = "data/README.md shows the folders and files that are expected."


def read_labels(table):
    """The rows of a CSV with columns id, filename, label: a DataFrame, label as int64.

    Raises:
        UserError: it cannot be read, lacks a filename or label, or has labels of another kind.
    """
    rows = read_rows(table, "filename", "label")
    if rows.empty or (rows[["filename", "label"]] == "").any(axis=None):
        raise UserError(f"{table} must have a filename and a label in every row. {HINT}")
    labels = [whole_number(text) for text in rows["label"]]
    if None in labels:
        raise UserError(f"{table}: a label is not a whole number. Labels are class numbers.")
    return rows.assign(label=labels)


def whole_number(text):
    """A whole number that 64 bits hold, exactly, also from 3.0; None where it is none."""
    found = re.fullmatch(r"\s*([+-]?[0-9]{1,19})(\.0*)?\s*", text)
    return int(found[1]) if found and -(2**63) <= int(found[1]) < 2**63 else None


def read_rows(table, *columns):
    """A CSV's rows as text, exactly as written: a DataFrame.

    Raises:
        UserError: it cannot be read or lacks one of the columns.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row too long is a fault
            rows = pd.read_csv(table, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())  # pandas' may have several lines
        raise UserError(f"{table} cannot be read as a CSV file: {reason}. {HINT}") from error
    if missing := [name for name in columns if name not in rows]:
        raise UserError(f"{table} lacks the column {' and '.join(missing)}. {HINT}")
    return rows
