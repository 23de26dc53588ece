"""The data doctor: reads all data once and says what is wrong with it, before anything trains."""

import textwrap
from pathlib import Path

from hw1lib.data import landcover, layout
from hw1lib.data.check import evidence, findings
from hw1lib.errors import UserError, remedy, visible
from hw1lib.settings import Data

WIDTH = 80  # columns of a terminal


def examine(root, progress=True):
    """Examines a data root.

    Args:
        root: folder that holds p1_data/, p2_data/ or both.
        progress: whether a bar is shown on standard error, if that is a terminal.

    Returns:
        Plain JSON: errors and warnings, and the facts of "p1" and "p2"; None for what is not there.
    """
    found = {"errors": [], "warnings": [], "p1": None, "p2": None}
    try:
        for number, diagnose in ((1, findings.problem1), (2, findings.problem2)):
            folder = Path(root) / f"p{number}_data"
            if folder.is_dir():
                diagnosis = diagnose(folder, progress)
                found[f"p{number}"] = diagnosis.facts
                found["errors"] += [f"Problem {number}: {text}" for text in diagnosis.errors]
                found["warnings"] += [f"Problem {number}: {text}" for text in diagnosis.warnings]
        if not found["errors"]:
            layout.find(root, Data())  # what a run would refuse must not pass
    except (UserError, OSError) as error:  # the latter such as missing permissions
        refused = f"{error.filename}: {error.strerror}. {remedy(error)}" if isinstance(error, OSError) else str(error)
        found["errors"].append(visible(refused))
    return found


def table(found):
    """What examine found, as text.

    Args:
        found: as of examine.

    Returns:
        Lines of at most 80 columns: a table for each problem, then errors and warnings.
    """
    lines = []
    if one := found["p1"]:
        lines += _table("Problem 1", {name: one[name] for name in ("pool", "train", "val")}, ROWS1)
    if two := found["p2"]:
        splits = {name: {"split": name, **two, **two[name]} for name in ("train", "validation")}
        lines += _table("Problem 2", splits, ROWS2)
    for word in ("errors", "warnings"):
        lines.append(word.capitalize() if found[word] else f"No {word}.")
        for text in found[word]:
            lines += textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _table(title, splits, rows):
    """A title line and a line for each row."""
    lines = [f"{title:<32}" + "".join(f"{name:>16}" for name in splits), "─" * WIDTH]
    for name, value in rows.items():
        lines.append(f"{name:<32}" + "".join(f"{_cell(value(facts)):>16}" for facts in splits.values()))
    return [*lines, ""]


def _cell(value):
    """A number, a text, or how many there are of a list; – for None."""
    if value is None:
        return "–"
    value = len(value) if isinstance(value, (list, dict)) else value
    return value if isinstance(value, str) else f"{value:,}"


def _not_rgb(facts):
    return sum(number for mode, number in facts["modes"].items() if mode != "RGB")


def _range(lowest, highest):
    return None if lowest is None else f"{lowest:,} … {highest:,}"


def _both(shared):
    return shared and shared["exact"] + shared["near"]


def _of_validation(facts, what):
    return f"{facts['leakage'][what]:,} of {facts['leakage']['of']:,}" if facts["split"] == "validation" else None


# What each line of the tables shows, from the facts of a split.
DECODED = {
    "cannot be decoded": lambda of: of["undecodable"],
    "not RGB": _not_rgb,
    "smallest, in pixels": lambda of: evidence.by(of["smallest"]),
    "largest": lambda of: evidence.by(of["largest"]),
}
COPIES = {
    "repeat another exactly": lambda of: of["exact"],
    "repeat another almost": lambda of: of["near"],
    "also in train": lambda of: _both(of.get("in_train")),
}
ROWS1 = {
    "images": lambda of: of["images"],
    **DECODED,
    "rows without a file": lambda of: of["without_file"],
    "images without a row": lambda of: of["without_row"],
    "rows that repeat an id": lambda of: of["duplicate_ids"],
    "files listed twice": lambda of: of["listed_twice"],
    "labels": lambda of: _range(of["lowest_label"], of["highest_label"]),
    "numbers left out of them": lambda of: of["left_out_labels"],
    "classes": lambda of: of["classes"],
    "images of a class": lambda of: of["classes"] and _range(min(of["classes"].values()), max(of["classes"].values())),
    **COPIES,
    "also in the pool": lambda of: _both(of.get("in_pool")),
}
ROWS2 = {
    "tiles": lambda of: of["tiles"],
    "with a mask": lambda of: of["pairs"][of["split"]],
    **DECODED,
    "masks: cannot be decoded": lambda of: of["masks"]["undecodable"],
    "masks: not RGB": lambda of: _not_rgb(of["masks"]),
    "masks: not of the tile's size": lambda of: of["mask_of_other_size"],
    "masks: with stray colours": lambda of: [f for f in of["stray_files"] if f.startswith(f"{of['split']}/")],
    **{f"pixels: {name}": lambda of, name=name: f"{of['classes'][name]:.2%}" for name in landcover.CLASSES},
    **COPIES,
    "continue a training tile": lambda of: _of_validation(of, "tiles"),
    "… with borders reversed": lambda of: _of_validation(of, "null"),
}
