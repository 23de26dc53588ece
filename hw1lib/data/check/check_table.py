"""The data doctor's table for a terminal of 80 columns."""

import textwrap

from hw1lib.data import landcover

WIDTH = 80


def table(found):
    """What check.examine found, as text.

    Args:
        found: as of check.examine.

    Returns:
        Lines of at most 80 columns: a table for each problem, then errors and warnings.
    """
    lines = []
    if found["p1"]:
        lines += _problem1(found["p1"])
    if found["p2"]:
        lines += _problem2(found["p2"])
    lines += _listed("Errors", found["errors"], "No errors.")
    lines += _listed("Warnings", found["warnings"], "No warnings.")
    return "\n".join(lines)


def _problem1(facts):
    splits = ["pool", "train", "val"]
    rows = [
        ("images", lambda of: of["images"]),
        *_decoding(),
        ("rows without a file", lambda of: of["without_file"]),
        ("images without a row", lambda of: of["without_row"]),
        ("rows that repeat an id", lambda of: of["duplicate_ids"]),
        ("files listed twice", lambda of: of["listed_twice"]),
        ("labels", lambda of: _range(of["lowest_label"], of["highest_label"])),
        ("numbers left out of them", lambda of: of["left_out_labels"]),
        ("classes", lambda of: of["classes"]),
        ("images of a class", lambda of: of["classes"] and _range(*_ends(of["classes"]))),
        *_copies(),
        ("also in train", lambda of: _both(of.get("in_train"))),
        ("also in the pool", lambda of: _both(of.get("in_pool"))),
    ]
    return _table("Problem 1", splits, [facts[name] for name in splits], rows)


def _problem2(facts):
    splits = ["train", "validation"]
    parts = []
    for name in splits:
        stray = [file for file in facts["stray_files"] if file.startswith(f"{name}/")]
        parts.append({**facts[name], "pairs": facts["pairs"][name], "stray": stray})
    leakage = facts["leakage"]
    parts[1]["leakage"] = f"{leakage['tiles']:,} of {leakage['of']:,}"
    parts[1]["null"] = f"{leakage['null']:,} of {leakage['of']:,}"
    rows = [
        ("tiles", lambda of: of["tiles"]),
        ("with a mask", lambda of: of["pairs"]),
        *_decoding(),
        ("masks: cannot be decoded", lambda of: of["masks"]["undecodable"]),
        ("masks: not RGB", lambda of: _not_rgb(of["masks"])),
        ("masks: not of the tile's size", lambda of: of["mask_of_other_size"]),
        ("masks: with stray colours", lambda of: of["stray"]),
        *((f"pixels: {name}", lambda of, name=name: f"{of['classes'][name]:.2%}") for name in landcover.CLASSES),
        *_copies(),
        ("also in train", lambda of: _both(of.get("in_train"))),
        ("continue a training tile", lambda of: of.get("leakage")),
        ("… with borders reversed", lambda of: of.get("null")),
    ]
    return _table("Problem 2", splits, parts, rows)


def _decoding():
    return [
        ("cannot be decoded", lambda of: of["undecodable"]),
        ("not RGB", _not_rgb),
        ("smallest, in pixels", lambda of: _by(of["smallest"])),
        ("largest", lambda of: _by(of["largest"])),
    ]


def _by(size):
    return size and " × ".join(map(str, size))


def _copies():
    return [("repeat another exactly", lambda of: of["exact"]), ("repeat another almost", lambda of: of["near"])]


def _not_rgb(of):
    return sum(number for mode, number in of["modes"].items() if mode != "RGB")


def _ends(counts):
    return min(counts.values()), max(counts.values())


def _range(lowest, highest):
    return None if lowest is None else f"{lowest:,} … {highest:,}"


def _both(of):
    return of and of["exact"] + of["near"]


def _table(title, splits, parts, rows):
    """A title line and a line for each row, whose values are numbers, texts or counted lists."""
    lines = [f"{title:<32}" + "".join(f"{name:>16}" for name in splits), "─" * WIDTH]
    for name, value in rows:
        lines.append(f"{name:<32}" + "".join(f"{_cell(value(of)):>16}" for of in parts))
    return [*lines, ""]


def _cell(value):
    if value is None:
        return "–"
    if isinstance(value, (list, dict)):
        value = len(value)
    return value if isinstance(value, str) else f"{value:,}"


def _listed(title, texts, none):
    if not texts:
        return [none]
    lines = [title]
    for text in texts:
        lines += textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    return lines
