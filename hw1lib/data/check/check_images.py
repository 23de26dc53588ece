"""What the data doctor looks for in p1_data: tables, files, labels and images."""

from pathlib import Path

from hw1lib.data import csv_rows, layout
from hw1lib.data.check import findings, survey
from hw1lib.data.check.findings import count, some
from hw1lib.errors import UserError

IMBALANCE = 10  # times as many images in the largest class as in the smallest: a warning
REMEDY = "Replace them, or take them and their rows away."


def problem1(folder, progress=True):
    """Examines p1_data: the pool, and Office's training and validation images.

    Returns:
        Diagnosis; nothing is raised for bad data.
    """
    folder = Path(folder)
    notes = findings.Notes(folder)
    places = {"pool": folder / "mini" / "train", "train": folder / "office" / "train", "val": folder / "office" / "val"}
    files, splits, looks, labels = {}, {}, {}, {}
    for name, place in places.items():
        rows_wanted = name != "pool" or place.with_suffix(".csv").is_file()
        files[name], rows, notes.facts[name] = _files(notes, place, rows_wanted)
        splits[name] = None if rows is None else layout.labelled(place, rows)
        labels[name] = None if rows is None else dict(zip(rows["filename"], rows["label"]))
        notes.facts[name] |= _classes(notes, place, splits[name], strict=name != "pool")
    _same_classes(notes, splits["train"], splits["val"])
    with findings.bar(folder, sum(map(len, files.values())), progress) as bar:
        for name, place in places.items():
            read = survey.read(survey.image, [place / file for file in files[name]], bar)
            looks[name], facts = findings.readable(notes, place, read, "image", REMEDY)
            notes.facts[name] |= facts
    for name, place in places.items():
        notes.facts[name] |= findings.copies(notes, place, looks[name], "image", labels[name])
    for name, effect in (
        ("train", "The accuracy is too high for new images."),
        ("pool", "Pre-training has seen them."),
    ):
        notes.facts["val"][f"in_{name}"] = findings.shared(
            notes, (places["val"], places[name]), looks["val"], looks[name], "image", effect
        )
    return notes.diagnosis()


def _files(notes, place, labelled):
    """The files of a split.

    Args:
        notes: where faults are said.
        place: folder of the images.
        labelled: whether it comes with a CSV.

    Returns:
        Names of the files that are there; rows, None without any; facts.
    """
    there = findings.listing(notes, place)
    files = findings.ending(there, ".jpg")
    rows = _rows(notes, place) if labelled else None
    facts = dict.fromkeys(("rows", "without_file", "without_row", "duplicate_ids", "listed_twice"))
    if rows is not None:
        outside, absent, twice, ids = _row_faults(notes, place, rows, there)
        facts |= {"rows": len(rows), "without_file": outside + absent, "duplicate_ids": ids, "listed_twice": twice}
        rows = rows[~rows["filename"].isin(outside)]
        rows = None if rows.empty else rows
        files = [] if rows is None else [f for f in rows["filename"].unique() if f in there]
    elif not files:
        notes.error(f"{notes.shown(place)} has no *.jpg files. {layout.HINT}")
    else:
        findings.refuse_links(notes, place, files)
    extra = findings.unused(there, files)
    if facts["rows"] is not None:
        facts["without_row"] = extra
    if extra:
        why = "without a row in its CSV" if facts["rows"] is not None else "not called *.jpg"
        notes.warn(f"{notes.shown(place)}: {count(len(extra), 'image')} {why}, so not used: {some(extra)}.")
    return files, rows, {"images": len(files), **facts}


def _rows(notes, place):
    try:
        return csv_rows.read_labels(place.with_suffix(".csv"))
    except UserError as error:
        notes.error(str(error).replace(f"{notes.root}/", ""))
        return None


def _row_faults(notes, place, rows, there):
    """Says what is wrong with rows.

    Returns:
        Names that lead elsewhere, names without a file, names listed twice, number of rows that
        repeat an id.
    """
    table = notes.shown(place.with_suffix(".csv"))
    names = rows["filename"]
    outside = [name for name in names if layout.leaves(place, name)]
    if outside:
        notes.error(
            f"{table}: {count(len(outside), 'name')} of no plain file inside {notes.shown(place)}: "
            f"{some(map(repr, outside))}. Copy the files there and write their names alone."
        )
    known = there | set(outside)
    absent = [name for name in names if name not in known]
    if absent:
        notes.error(
            f"{table} names {count(len(absent), 'file')} that {notes.shown(place)} does not have: "
            f"{some(absent)}. Add them or take their rows away."
        )
    ids = rows["id"][rows["id"].duplicated() & (rows["id"] != "")] if "id" in rows else []
    if len(ids):
        notes.warn(f"{table}: {count(len(ids), 'row repeats', 'rows repeat')} an id: {some(ids)}.")
    twice = names[names.duplicated()].unique().tolist()
    if twice:
        labels = rows[names.isin(twice)].groupby("filename")["label"].nunique()
        odd = int((labels > 1).sum())
        notes.warn(
            f"{table}: {count(len(twice), 'file')} listed more than once: {some(twice)}"
            + (f"; {odd:,} of them with different labels." if odd else ".")
        )
    return outside, absent, twice, len(ids)


def _classes(notes, place, split, strict):
    """Facts of a split's labels; `strict`: gaps and negative labels are worth a warning."""
    facts = dict.fromkeys(("lowest_label", "highest_label", "left_out_labels", "classes"))
    if split is None:
        return facts
    where, numbers = notes.shown(place.with_suffix(".csv")), split.numbers
    left_out = numbers[-1] - numbers[0] + 1 - len(numbers)
    if left_out and strict:
        first = next(n + 1 for n, after in zip(numbers, numbers[1:]) if after > n + 1)
        notes.warn(
            f"{where}: labels run from {numbers[0]} to {numbers[-1]} but leave out "
            f"{count(left_out, 'number')}, first {first}."
        )
    if numbers[0] < 0 and strict:
        notes.warn(f"{where}: there are negative labels, down to {numbers[0]}; each is a class.")
    counts = split.counts()
    (large, most), (small, least) = findings.spread(counts)
    if most > IMBALANCE * least:
        notes.warn(
            f"{where}: class {large} has {most:,} images, class {small} only {least:,}: accuracy "
            "tells little of small classes."
        )
    if len(counts) == 1:
        notes.warn(f"{where}: all images are of one class, {large}: accuracy means nothing.")
    return {"lowest_label": numbers[0], "highest_label": numbers[-1], "left_out_labels": left_out, "classes": counts}


def _same_classes(notes, train, val):
    if train is None or val is None:
        return
    office = notes.shown(train.folder.parent)
    odd = sorted(set(train.classes) ^ set(val.classes))
    if odd:
        notes.error(
            f"{office}: train.csv and val.csv do not name the same classes; only one of them has "
            f"{some(odd, 8)}. Every class needs training and validation images."
        )
        return
    of_train, of_val = (dict(zip(split.classes, split.numbers)) for split in (train, val))
    changed = [f"{c} ({n} and {of_val[c]})" for c, n in of_train.items() if of_val[c] != n]
    if changed:
        text = f"train.csv and val.csv number the same classes differently: {some(changed)}."
        if train.classes != val.classes:  # their order is what a run compares
            notes.error(f"{office}: {text} Give each class the same number in both.")
        else:
            notes.warn(f"{office}: {text}")
