"""Several reports compared: their scores, and the settings, data and versions in which they differ."""

from pathlib import Path

import pandas as pd

from hw1lib import files, paths, profiles
from hw1lib.errors import UserError

SCORES = {"accuracy at the last epoch": "accuracy_last", "mIoU at the last epoch": "miou_last"}
MACHINE = ("device", "device_name", "threads", "python", "packages", "precision")  # of run.json


def compare(names):
    """Compare the reports of several build folders.

    Args:
        names: build folders, published ones such as report/demo, or profiles that were run.

    Returns:
        {title: DataFrame with a column for each report}, without empty ones, and a list of sentences.

    Raises:
        UserError: fewer than two different folders, or one without a report's metrics.json.
    """
    folders = {name: (paths.BUILD / name if name in profiles.NAMES else Path(name)) for name in names}
    if len({folder.resolve() for folder in folders.values()}) < max(2, len(names)):
        raise UserError(f"compare {' '.join(map(str, names))}: give two or more different reports.")
    reports = {str(name): _metrics(folder) for name, folder in folders.items()}
    tables = {}
    for title, score in SCORES.items():
        columns = {n: {s: v[score] for s, v in r["steps"].items() if score in v} for n, r in reports.items()}
        tables[title] = pd.DataFrame({name: column for name, column in columns.items() if column})

    machines = {str(name): _read(folder / "run.json") for name, folder in folders.items()}
    computed = {name: {part: run[part] for part in MACHINE if part in run} for name, run in machines.items()}
    parts = {
        "settings": {name: {k: v for k, v in r["settings"].items() if k != "about"} for name, r in reports.items()},
        "data": _data(reports),
        "versions of steps": {name: r.get("versions", {}) for name, r in reports.items()},
        "packages and machine": computed,
    }
    same, unknown = [], []
    for what, columns in parts.items():
        if not all(columns.values()):
            unknown.append(what)
            continue
        flat = {name: pd.json_normalize(values).iloc[0].map(str) for name, values in columns.items()}
        table = pd.DataFrame(flat).fillna("–")
        tables[f"{what} that differ"] = differing = table[table.nunique(axis=1) > 1]
        same += [] if len(differing) else [what]
    sentences = [f"The same: {', '.join(same)}."] if same else []
    if unknown:
        sentences.append(f"Not recorded by all of them, so that they may differ: {', '.join(unknown)}.")
    if len(tables.get("data that differ", ())):
        sentences.append("The data differ: scores of different images do not compare.")
    return {title: table for title, table in tables.items() if len(table)}, sentences


def _data(reports):
    """Hashes of the data by split; reports of earlier versions only have the key of each problem's check."""
    recorded = {name: report.get("data") for name, report in reports.items()}
    if all(recorded.values()):
        return recorded
    checks = ("check-problem1", "check-problem2")
    return {n: {c: r["steps"][c].get("key") for c in checks if c in r["steps"]} for n, r in reports.items()}


def _metrics(folder):
    """A report's metrics.json."""
    found = _read(folder / "metrics.json")
    groups = [found.get("settings"), found.get("steps")]
    if not all(isinstance(group, dict) for group in (*groups, *(groups[1] or {}).values())):
        raise UserError(f"{folder} holds no metrics.json with settings and steps. Run the report there first.")
    return found


def _read(path):
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
