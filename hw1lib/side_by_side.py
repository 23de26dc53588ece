"""Several reports compared: their scores, and the settings in which they differ."""

import json
from pathlib import Path

import pandas as pd

from hw1lib import paths, profiles
from hw1lib.errors import UserError


def tables(names):
    """Accuracies and mIoUs at the last epoch of several runs, and how their settings differ.

    Args:
        names: build folders, or profiles that were run.

    Returns:
        {title: DataFrame with a column for each run}; tables without a row are left out.

    Raises:
        UserError: a folder holds no readable metrics.json.
    """
    runs = {name: _metrics(name) for name in names}
    found = {}
    for title, score in (("accuracy at the last epoch", "accuracy_last"), ("mIoU at the last epoch", "miou_last")):
        columns = {name: {s: v[score] for s, v in r["steps"].items() if score in v} for name, r in runs.items()}
        found[title] = pd.DataFrame({name: column for name, column in columns.items() if column})
    settings = pd.DataFrame({name: pd.json_normalize(r["settings"]).iloc[0].map(str) for name, r in runs.items()})
    found["settings that differ"] = settings[settings.nunique(axis=1, dropna=False) > 1].drop("about", errors="ignore")
    return {title: table for title, table in found.items() if len(table)}


def _metrics(name):
    out = paths.BUILD / name if name in profiles.PROFILES else Path(name)
    try:
        return json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{out} holds no readable metrics.json ({error}). Run the report there first.") from error
