"""Tables of the report: headings and formats of columns, and conversion to Markdown."""

import pandas as pd

from hw1lib.chapters.phrases import escape, fraction, interval, number, p_number, percent
from hw1lib.data.landcover import SCORED
from hw1lib.settings import result_settings

_FRACTIONS = ("miou", "miou_last", "ceiling", "model_miou", "pixel_accuracy", "first", "last", "by_chance", *SCORED)
_FRACTIONS += ("coverage", "asa", "oracle_miou", "vote_miou", "boundary_recall", "boundary_precision")
FORMATS = {
    **dict.fromkeys(("accuracy", "accuracy_last"), percent),
    **dict.fromkeys(_FRACTIONS, fraction),
    "parameters": "{:,}".format,
    "multiply_adds": lambda value: f"{value / 1e9:.3g} billion",
    "stride": "{} pixels".format,
    "seconds": "{:.1f}".format,
    "segments": "{:.0f}".format,
    "change": lambda value: number(value, "+.3f"),
    "difference": lambda value: number(100 * value, "+.1f"),
    "p": p_number,
    "adjusted": p_number,
}
HEADINGS = {  # other columns are headed by their name, with spaces for underscores
    "pretraining": "pre-training",
    "finetuning": "trained",
    "accuracy_last": "last epoch",
    "difference": "difference in points",
    "adjusted": "p (Holm)",
    "change": "difference in mIoU",
    "of": "setting or model",
    "miou": "mIoU",
    "miou_last": "last epoch",
    "asa": "ASA",
    "oracle_miou": "oracle mIoU",
    "vote_miou": "vote mIoU",
    "model_miou": "model mIoU",
    "multiply_adds": "multiply-adds per tile",
    "stride": "output stride",
    "segments": "segments per image",
}
INTERVALS = {"ci_low": ("ci_high", 100, ".1f"), "low": ("high", 1, "+.3f")}  # {low: (high, factor, format)}


def markdown(table):
    """Return a DataFrame as a pipe table; the two ends of an interval become one column, missing cells become –."""
    for low, (high, factor, form) in INTERVALS.items():
        if {low, high} <= set(table):
            ends = [interval(*pair, form) for pair in (factor * table[[low, high]]).itertuples(index=False)]
            table = table.assign(**{low: ends}).drop(columns=high).rename(columns={low: "95 % interval"})
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in table]
    lines = [_line(map(heading, table)), _line("---:" if right else ":---" for right in numeric)]
    for row in table.itertuples(index=False):
        lines.append(_line(escape(cell(column, value)) for column, value in zip(table, row, strict=True)))
    return "\n".join(lines)


def heading(column):
    """Return the heading of a column."""
    return HEADINGS.get(column, column.replace("_", " "))


def cell(column, value):
    """Return a value as text in the format of its column; missing values as –."""
    if pd.isna(value):
        return "–"
    return value if isinstance(value, str) else FORMATS.get(column, str)(value)


def _line(cells):
    return "| " + " | ".join(cells) + " |"


def settings_table(groups):
    """Return settings side by side, one row per setting.

    Args:
        groups: dict from a column's heading to a group of settings, such as settings.Pretrain, or to a dict.
    """
    values = {name: group if isinstance(group, dict) else result_settings(group) for name, group in groups.items()}
    columns = {name: {key: str(value) for key, value in group.items()} for name, group in values.items()}
    return pd.DataFrame(columns).rename_axis("setting").reset_index()
