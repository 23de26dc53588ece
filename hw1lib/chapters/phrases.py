"""How numbers and tables are written out for a reader: percent, p-values, lists, Markdown."""

import re

import pandas as pd

from hw1lib.data.landcover import SCORED

LEVEL = 0.05  # of all tests


def percent(value):
    """0.4211 -> 42.1 %."""
    return f"{100 * value:.1f} %"


def fraction(value):
    """0.68671 -> 0.687."""
    return f"{value:.3f}"


def points(value):
    """0.042 -> 4.2 percentage points."""
    return f"{100 * value:.1f} percentage points"


def p_value(p):
    """p = 0.042, or p < 0.001."""
    number = p_number(p)
    return f"p {number}" if number.startswith("<") else f"p = {number}"


def p_number(p):
    """Three digits, and more where three would hide on which side of the level it is."""
    if p < 0.001:
        return "< 0.001"
    digits = 3
    while p != LEVEL and round(p, digits) == LEVEL:
        digits += 1
    return f"{p:.{digits}f}"


def ends(low, high, between="to", form="+.3f", without="no interval from one place"):
    """An interval such as -0.003 to +0.020; `without` where there is none (nan)."""
    return f"{low:{form}} {between} {high:{form}}" if low == low else without


def listed(items):
    """A, B and C."""
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def capital(text):
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def escape(text):
    """Makes any text harmless inside Markdown: no markup, no HTML, no curly quotes, one line."""
    special = r"""[\\`*_{}\[\]<>#|~^$@&'"]|(?<=-)-|(?<=\.)\."""  # the last two: -- and ...
    return re.sub(special, r"\\\g<0>", " ".join(str(text).split()))


def code(text):
    """Text as a block of code in Markdown."""
    return f"```\n{text}\n```"


FRACTIONS = ("miou", "miou_last", "ceiling", "model_miou", "pixel_accuracy", "first", "last", "by_chance", *SCORED)
FRACTIONS += ("coverage", "asa", "oracle_miou", "vote_miou", "boundary_recall", "boundary_precision")
FORMATS = dict.fromkeys(("accuracy", "accuracy_last"), percent) | dict.fromkeys(FRACTIONS, fraction)
FORMATS |= {"parameters": "{:,}".format, "seconds": "{:.1f}".format}
HEADINGS = {"asa": "ASA", "oracle_miou": "oracle mIoU", "vote_miou": "vote mIoU", "miou": "mIoU"}
HEADINGS |= dict.fromkeys(("accuracy_last", "miou_last"), "last epoch")


def markdown(table):
    """A DataFrame as a pipe table: numbers as FORMATS says of their column, what is missing as –."""
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in table]
    heading = _line(HEADINGS.get(column, column.replace("_", " ")) for column in table)
    lines = [heading, _line("---:" if right else ":---" for right in numeric)]
    for row in table.itertuples(index=False):
        cells = zip(table, row, strict=True)
        forms = ((str if isinstance(value, str) else FORMATS.get(column, str), value) for column, value in cells)
        lines.append(_line("–" if pd.isna(value) else escape(form(value)) for form, value in forms))
    return "\n".join(lines)


def _line(cells):
    return "| " + " | ".join(cells) + " |"
