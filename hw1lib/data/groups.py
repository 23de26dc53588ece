"""groups.csv: which images show the same place. It may be absent, or name only some of them."""

import posixpath
from pathlib import Path

import numpy as np

from hw1lib.data.csv_rows import plain_names, quoted, read_rows, shortened

GROUPS = "groups.csv"  # beside p1_data and p2_data
SPLITS = ("p1_data/mini/train", "p1_data/office/train", "p1_data/office/val", "p2_data/train", "p2_data/validation")


class Groups:
    """The groups of a data root; splits may be written as office\\train, names of files as in any other CSV.

    Args:
        root: the data root.

    Raises:
        UserError: groups.csv cannot be read, or lacks a column.
    """

    def __init__(self, root):
        self.root, self.numbers, self.unused, self.grouped = Path(root), {}, {}, set()
        if not (table := self.root / GROUPS).is_file():
            return
        rows = read_rows(table, "split", "filename", "group")
        rows["number"] = np.unique([text.strip() for text in rows["group"]], return_inverse=True)[1]
        places = {text: _split(text) for text in rows["split"].unique()}
        odd = [f"{quoted(text)} in row {rows.index[rows['split'] == text][0]}" for text in places if not places[text]]
        if odd:
            first = "p1_data" if (self.root / "p1_data").is_dir() else "p2_data"  # where it is said, once
            self.unused[first] = f"the split is none of {', '.join(SPLITS)}: {shortened(odd)}"
        for place, part in rows.groupby(rows["split"].map(places)):
            if (self.root / place).is_dir() and place:
                self._read(place, part)

    def _read(self, place, rows):
        names, groups = plain_names(self.root / place, rows["filename"]), {}
        for name, number, text in zip(rows["filename"], rows["number"].tolist(), rows["group"]):
            if text.strip():
                groups.setdefault(names[name], set()).add(number)
        self.grouped |= {place} if any(groups) else set()
        self.numbers |= {(place, name): of.pop() for name, of in groups.items() if name and len(of) == 1}
        if absent := [f"{quoted(name)} in row {row}" for row, name in rows["filename"].items() if not names[name]]:
            self.unused[place] = f"rows without a file in {place}: {shortened(absent)}"

    def of(self, folder, names):
        """The groups of a split's files, (N,) int64; None where not all of them have one."""
        place = folder.relative_to(self.root).as_posix()
        numbers = [self.numbers.get((place, name)) for name in names]
        return None if None in numbers else np.array(numbers, dtype=np.int64)

    def notes(self, splits):
        """Say what of the groups of a problem is not used.

        Args:
            splits: dict from folder to the names of a split's files.

        Returns:
            Tuple of sentences; empty where all is used.
        """
        places = {folder.relative_to(self.root).as_posix(): names for folder, names in splits.items()}
        problem = next(iter(places)).partition("/")[0]
        texts = [text for place, text in self.unused.items() if place.partition("/")[0] == problem]
        for place, names in places.items():
            bare = [name for name in names if (place, name) not in self.numbers]
            if bare and place in self.grouped:
                text = f"of {len(names)} files of {place}, {len(bare)} have no group or two ({shortened(bare)})"
                texts.append(f"{text}, so none of them is used. Give each file one group")
        return tuple(f"{GROUPS}: {text}." for text in texts)


def _split(text):
    """The one of SPLITS that a text such as office\\train means; empty where none or more than one fits."""
    path = posixpath.normpath(text.strip().replace("\\", "/")).casefold()
    fits = [split for split in SPLITS if f"/{split}".endswith(f"/{path}") or path.endswith(f"/{split}")]
    return fits[0] if len(fits) == 1 else ""
