"""CSV files of file names, labels and groups, in whatever dialect they were saved."""

import codecs
import csv
import io
import posixpath
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd

from hw1lib.data import listing
from hw1lib.errors import UserError, remedy

HINT = "data/README.md shows the folders and files that are expected."
SEPARATORS = ",;\t|"
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>"}  # texts of missing labels, in any letter case
GROUPS = "groups.csv"  # beside p1_data and p2_data: which images show the same place
SPLITS = ("p1_data/mini/train", "p1_data/office/train", "p1_data/office/val", "p2_data/train", "p2_data/validation")


def read_text(path):
    """Return the text of a file in UTF-8, or in UTF-16 with a byte-order mark.

    Raises:
        UserError: the file cannot be read, or has another encoding.
    """
    try:
        content = Path(path).read_bytes()
        wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {remedy(error)}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 text in line {line}. Save it as UTF-8.") from error


def read_rows(table, *columns):
    """Read a CSV as text, each cell as it is written.

    Cells are separated by commas, semicolons, tabs or |, whichever the first row has most of. Column names may have
    other letter case and spaces around them. Empty rows, and empty cells at the end of a row, are dropped.

    Args:
        table: path.
        columns: lower-case names of required columns.

    Returns:
        DataFrame with lower-case column names; its index is the number of each row's last line in an editor.

    Raises:
        UserError: the file cannot be read, lacks a column or has it twice, or a row has more cells than the first.
    """
    text = re.sub(r"^sep=.(?=\s)", "", read_text(table))  # Excel's first line; rows keep their numbers
    first_line = next(iter(text.strip("\r\n").splitlines()), "")
    separator = max(SEPARATORS, key=first_line.count)
    spaces = re.search(rf'{re.escape(separator)} +"', text) is not None  # before a quoted cell
    reader = csv.reader(io.StringIO(text, ""), delimiter=separator, skipinitialspace=spaces, strict=True)
    rows = {}
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                rows[reader.line_num] = cells
    except csv.Error as error:
        reason = f"a quotation mark is out of place, or a cell has more than {csv.field_size_limit():,} characters"
        raise UserError(f"{table}, row {reader.line_num}, cannot be read as CSV: {reason}. {HINT}") from error

    header = [name.strip().casefold() for name in rows.pop(min(rows, default=0), [])]
    present = f"its columns are {shortened(list(map(quoted, header)), 12)}" if header else "it is empty"
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"The CSV file {table} lacks the column {' and '.join(missing)}; {present}. {HINT}")
    if repeated := [name for name in columns if header.count(name) > 1]:
        raise UserError(f"{table} has more than one column {repeated[0]}; {present}. Remove one of them.")
    width = len(header)
    for number, cells in rows.items():
        if any(map(str.strip, cells[width:])):
            reason = f"it has {len(cells)} cells, the first row {width}. Quote cells that contain a separator"
            raise UserError(f"{table}, row {number}, cannot be read as CSV: {reason}.")
    cells = [(cells + [""] * width)[:width] for cells in rows.values()]
    frame = pd.DataFrame(cells, index=list(rows), columns=header, dtype=object)
    return frame.loc[:, ~frame.columns.duplicated()]


def quoted(text):
    """Return a cell in quotation marks, cut to 80 characters, for messages."""
    return f'"{text if len(text) <= 80 else text[:79] + "…"}"'


def shortened(names, most=3):
    """Return the first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


# --- labels


def parse_label(text):
    """Return a label: an int (64 bits), a float for any other number, None if it is missing, else its text."""
    text = unicodedata.normalize("NFC", text.strip())
    if text.casefold() in MISSING:
        return None
    whole = re.fullmatch(r"([+-]?[0-9]{1,19})(\.0*)?", text)  # 3.0 is a whole number, too
    if whole and -(2**63) <= int(whole[1]) < 2**63:
        return int(whole[1])
    try:
        return float(text)
    except ValueError:
        return text


def parse_labels(table, rows):
    """Return the labels of a CSV, as returned by `read_rows`: all int or all str, None where one is missing.

    Raises:
        UserError: a number is not whole, or some labels are numbers and others names.
    """
    labels, first = [], {}
    for number, text in rows["label"].items():
        labels.append(label := parse_label(text))
        if isinstance(label, float):
            raise UserError(f"{table}, row {number}: the label {quoted(text)} is not a whole number of 64 bits.")
        if label is not None:
            first.setdefault(type(label), f"{quoted(text)} in row {number}")
    if len(first) > 1:
        kinds = f"the name {first[str]} and the number {first[int]}"
        raise UserError(f"{table} has labels of two kinds: {kinds}. Use either names or numbers.")
    return labels


def read_labelled(table):
    """Read a CSV in which every row has a file name and a label.

    Returns:
        DataFrame as returned by `read_rows`, with parsed labels.

    Raises:
        UserError: the CSV cannot be read, has no rows, or a row lacks one of the two or has a label of another kind.
    """
    rows = read_rows(table, "filename", "label")
    labels, rule = parse_labels(table, rows), f"every row must have a filename and a label. {HINT}"
    for row, name, label, text in zip(rows.index, rows["filename"], labels, rows["label"]):
        if not name.strip() or label is None:
            fault = f"the label is {quoted(text)}" if name.strip() else "the filename is empty"
            raise UserError(f"{table}, row {row}: {fault}; {rule}")
    if rows.empty:
        raise UserError(f"{table} has no rows; {rule}")
    return rows.assign(label=pd.Series(labels, rows.index, dtype=object))


def read_pool(table):
    """Read a CSV of images that need no labels.

    Returns:
        DataFrame as returned by `read_labelled`, in which labels that cannot be used are None, and a sentence about
        unexpected labels, or "". The DataFrame is None if the CSV has no readable file names.
    """
    try:
        rows = read_rows(table, "filename")
    except UserError as error:
        return None, f"{error} The images count as unlabelled."
    if "label" not in rows:
        return rows.assign(label=None), f"{table} has no column label, so the images count as unlabelled."
    labels = [None if isinstance(label, float) else label for label in map(parse_label, rows["label"])]
    notes = []
    if any(isinstance(label, str) for label in labels):
        labels = [None if label is None else str(label) for label in labels]
        names = sorted(set(labels) - {None})
        notes.append(f"labels are names, such as {quoted(names[0])}, numbered 0 to {len(names) - 1} in sorted order")
    if unusable := _cells(rows["label"][[label is None for label in labels]]):
        count = f"{len(unusable):,} of {len(rows):,} labels cannot be used ({unusable[0]})"
        notes.append(f"{count}, so these images count as unlabelled")
    rows = rows.assign(label=pd.Series(labels, rows.index, dtype=object))
    return rows, f"{table}: {'; '.join(notes)}." if notes else ""


# --- groups.csv


class Groups:
    """The groups of a data root, from a groups.csv that may be absent or name only some files.

    Splits may be written as office\\train, file names as in any other CSV.

    Args:
        root: the data root.

    Attributes:
        unknown: a sentence about splits that do not exist, or "".

    Raises:
        UserError: groups.csv cannot be read, or lacks a column.
    """

    def __init__(self, root):
        self.root, self.rows, self.unknown = Path(root), None, ""
        if not (table := self.root / GROUPS).is_file():
            return
        rows = read_rows(table, "split", "filename", "group")
        numbers = np.unique([text.strip() for text in rows["group"]], return_inverse=True)[1]
        self.rows = rows.assign(number=numbers, place=rows["split"].map(_split))
        if names := _cells(self.rows["split"][self.rows["place"] == ""].drop_duplicates()):
            self.unknown = f"{GROUPS}: the split is none of {', '.join(SPLITS)}: {shortened(names)}."

    def of(self, folder, names=()):
        """Return the groups of a split's files.

        Args:
            folder: the split's folder.
            names: its files; may be empty, to ask only for rows without a file.

        Returns:
            (N,) int64, or None unless every file has exactly one group, and sentences about rows that are not used.
        """
        if self.rows is None:
            return None, []
        place, notes = folder.relative_to(self.root).as_posix(), []
        rows = self.rows[self.rows["place"] == place]
        rows = rows.assign(file=rows["filename"].map(listing.match(folder, rows["filename"])))
        if absent := _cells(rows["filename"][rows["file"].isna()]):
            notes.append(f"{GROUPS}: rows without a file in {place}: {shortened(absent)}.")
        grouped = rows[rows["group"].str.strip() != ""].drop_duplicates(["file", "number"])
        numbers = grouped.drop_duplicates("file", keep=False).set_index("file")["number"]
        ungrouped = [name for name in names if name not in numbers]
        if ungrouped and grouped["file"].notna().any():
            count = f"of {len(names)} files of {place}, {len(ungrouped)} have no group or two"
            text = f"{count} ({shortened(ungrouped)}), so its groups are not used. Give each file one group."
            notes.append(f"{GROUPS}: {text}")
        usable = names and not ungrouped
        return numbers.loc[list(names)].to_numpy(np.int64) if usable else None, notes


def _cells(column):
    """Return the cells of a column, each in quotation marks with its row, for messages."""
    return [f"{quoted(text)} in row {row}" for row, text in column.items()]


def _split(text):
    """Return the one of SPLITS that matches a text such as office\\train, or "" if none or several do."""
    path = posixpath.normpath(text.strip().replace("\\", "/")).casefold()
    fitting = [split for split in SPLITS if f"/{split}".endswith(f"/{path}") or path.endswith(f"/{split}")]
    return fitting[0] if len(fitting) == 1 else ""
