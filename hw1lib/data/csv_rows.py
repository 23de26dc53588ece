"""CSV files of file names and labels in whatever dialect: the one reader of all of them."""

import codecs
import csv
import io
import os
import posixpath
import re
import unicodedata
from pathlib import Path

import pandas as pd

from hw1lib.errors import UserError

HINT = "data/README.md shows the folders and files that are expected."
SEPARATORS = ",;\t|"
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>"}  # labels that are none, in any case


def read_rows(table, *columns):
    """Read a CSV as text, each cell as it is written.

    Cells are separated by commas, semicolons, tabs or |; column names may have other letter case and spaces around
    them; the encoding is UTF-8, or UTF-16 with a byte-order mark. Empty rows and empty cells at the end are dropped.

    Args:
        table: path.
        columns: lower-case names of those that it must have.

    Returns:
        DataFrame with lower-case column names; its index holds the number of each row's line in an editor.

    Raises:
        UserError: it cannot be read, lacks a column or has it twice, or a row has more cells than there are columns.
    """
    text = re.sub(r"^sep=.(?=\s)", "", _text(table))  # Excel's first line; rows keep their numbers
    head = next((line for line in text.splitlines() if line.strip()), "")[: csv.field_size_limit()]
    names = {separator: _names(next(csv.reader([head], delimiter=separator), [])) for separator in SEPARATORS}
    separator = max(names, key=lambda of: (set(columns) <= set(names[of]), len(names[of])))
    before_quote = re.search(rf'{re.escape(separator)} +"', text) is not None
    reader = csv.reader(io.StringIO(text, ""), delimiter=separator, skipinitialspace=before_quote, strict=True)
    rows, number = {}, 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                rows[number] = cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{table}, row {number}, cannot be read as CSV: a quotation mark is out of place, or a cell has more than "
            f"{csv.field_size_limit():,} characters. {HINT}"
        ) from error

    header = _names(rows.pop(next(iter(rows), None), []))
    shown = f"its columns are {shortened(list(map(quoted, header)), 12)}" if header else "it is empty"
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"The CSV file {table} lacks the column {' and '.join(missing)}; {shown}. {HINT}")
    if twice := [name for name in columns if header.count(name) > 1]:
        raise UserError(f"{table} has more than one column {twice[0]}; {shown}. Take one of them away.")
    width = len(header)
    for number, cells in rows.items():
        if any(map(str.strip, cells[width:])):
            raise UserError(
                f"{table}, row {number}, cannot be read as CSV: it has {len(cells)} cells, the first row {width}. "
                "Put cells that hold a separator into quotation marks."
            )
    cells = [(cells + [""] * width)[:width] for cells in rows.values()]
    frame = pd.DataFrame(cells, index=list(rows), columns=header, dtype=object)
    return frame.loc[:, ~frame.columns.duplicated()]


def _names(header):
    return [name.strip().casefold() for name in header]


def _text(table):
    try:
        content = Path(table).read_bytes()
    except OSError as error:
        raise UserError(f"{table} cannot be read as a CSV file: {error.strerror}. {HINT}") from error
    wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{table}, row {row}, is no UTF-8 text. Save the file as CSV in UTF-8.") from error


def quoted(text):
    """A cell as messages show it, at most 80 characters; UserError makes invisible ones visible."""
    return f'"{text if len(text) <= 80 else text[:79] + "…"}"'


def shortened(names, most=3):
    """The first few of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def parse_label(text):
    """An int for a whole number of 64 bits, a float for any other number, None for a missing label, else the name."""
    text = unicodedata.normalize("NFC", text.strip())
    if text.casefold() in MISSING:
        return None
    whole = re.fullmatch(r"([+-]?[0-9]{1,19})(\.0*)?", text)  # 3.0, too
    if whole and -(2**63) <= int(whole[1]) < 2**63:
        return int(whole[1])
    try:
        return float(text)
    except ValueError:
        return text


def parse_labels(table, rows):
    """The labels of a CSV, as of `read_rows`: all int or all str, None where one is missing.

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
        raise UserError(
            f"{table} has labels of two kinds: the name {first[str]} and the number {first[int]}. Use either."
        )
    return labels


def read_labels(table):
    """Read a CSV that has a file name and a label in every row: a DataFrame as of `read_rows`, with parsed labels.

    Raises:
        UserError: also where a row lacks either, or labels are of two kinds.
    """
    rows = read_rows(table, "filename", "label")
    labels = parse_labels(table, rows)
    for number, name, label, text in zip(rows.index, rows["filename"], labels, rows["label"]):
        if not name.strip() or label is None:
            what = f"the label is {quoted(text)}" if name.strip() else "the filename is empty"
            raise UserError(f"{table}, row {number}: {what}. Every row must have a filename and a label. {HINT}")
    if rows.empty:
        raise UserError(f"{table} has no rows; every row must have a filename and a label. {HINT}")
    return rows.assign(label=pd.Series(labels, rows.index, dtype=object))


def read_pool(table):
    """Read the CSV of images that need no labels.

    Returns:
        A DataFrame as of `read_labels`, in which a label that cannot be used is None, and a sentence that says what was
        not as expected, empty where all was. The DataFrame is None where the file names cannot be read.
    """
    try:
        rows = read_rows(table, "filename")
    except UserError as error:
        return None, f"{error} The images count as unlabelled."
    if "label" not in rows:
        return rows.assign(label=None), f"{table} has no column label, so the images count as unlabelled."
    labels = [None if isinstance(label, float) else label for label in map(parse_label, rows["label"])]
    notes, unusable = [], [n for n, label in zip(rows.index, labels) if label is None]
    if any(isinstance(label, str) for label in labels):
        labels = [None if label is None else str(label) for label in labels]
        classes = sorted(set(labels) - {None})
        names = f"labels are names, such as {quoted(classes[0])}"
        notes.append(f"{names}, numbered 0 to {len(classes) - 1} in their order")
    if unusable:
        value = quoted(rows["label"][unusable[0]])
        notes.append(
            f"{len(unusable):,} of {len(rows):,} labels cannot be used ({value} in row {unusable[0]}), so these images "
            "count as unlabelled"
        )
    rows = rows.assign(label=pd.Series(labels, rows.index, dtype=object))
    return rows, f"{table}: {'; '.join(notes)}." if notes else ""


def listed(folder, required=True):
    """Read the CSV beside a folder of images.

    Args:
        folder: the images; may be absent.
        required: whether every row needs a label, as Office's do; else what cannot be used is left out.

    Returns:
        DataFrame with `filename` (of files in the folder, None where there is none), `label`, `given` (the name in the
        CSV) and `outside` (whether that leads out of the folder), and a sentence about what was not as expected. The
        DataFrame is None where the pool's CSV cannot be used.
    """
    table = folder.with_suffix(".csv")
    rows, note = (read_labels(table), "") if required else read_pool(table)
    if folder.is_dir():
        os.scandir(folder).close()  # what may not be read is not called absent
    if rows is None:
        return None, note
    files = plain_names(folder, rows["filename"])
    outside = [leaves(folder, files[name] or name) for name in rows["filename"]]
    plain = pd.Series([files[name] for name in rows["filename"]], rows.index, dtype=object)
    return rows.assign(given=rows["filename"], filename=plain, outside=outside), note


def absent_files(rows):
    """The names in a CSV, as of `listed`, of which the folder has no file, with their rows."""
    absent = rows["given"][rows["filename"].isna() & ~rows["outside"]]
    return [f"{quoted(name)} in row {row}" for row, name in absent.items()]


# --- names of files


def plain_names(folder, names):
    """Find the files that names from a CSV mean.

    Such a name may have spaces around it, another Unicode normal form or letter case than the file's, or begin with the
    folder's own path (office\\train\\x.jpg), if exactly one file fits.

    Returns:
        Dict from each name to that of a file in the folder itself; None where there is none.
    """
    own, files, by_key = os.path.abspath(folder), set(), {}
    if os.path.isdir(folder):
        files = {entry.name for entry in os.scandir(folder) if os.path.isfile(entry)}
    for file in files:
        by_key.setdefault(_key(file), []).append(file)

    def plain(name):
        if name in files:
            return name
        above, last = posixpath.split(_path(own, name))
        inside = above.removeprefix(own)
        if inside and not (above.startswith(f"{own}/") and own.casefold().endswith(inside.casefold())):
            return None
        fitting = by_key.get(_key(last), [])
        return fitting[0] if len(fitting) == 1 else None

    return {name: plain(name) for name in names}


def _key(name):
    return unicodedata.normalize("NFC", name).casefold()


def _path(own, name):
    return posixpath.normpath(posixpath.join(own, name.strip().replace("\\", "/")))


def leaves(folder, name):
    """Whether the name of a file, such as one from a CSV, leads out of its folder, by itself or as a link."""
    own = os.path.abspath(folder)
    if not f"{_path(own, name)}/".startswith(f"{own}/"):
        return True
    path = os.path.join(folder, name)
    # Not Path.resolve(), which fails where links go round in a loop.
    return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
