"""Compare reports: their scores, and how their settings, data, versions and machines differ."""

from pathlib import Path

import pandas as pd

from hw1lib import files, paths, profiles
from hw1lib.errors import UserError

SCORES = {"accuracy at the last epoch": "accuracy_last", "mIoU at the last epoch": "miou_last"}
MACHINE = ("device", "device_name", "threads", "python", "packages", "precision")  # keys of run.json


def compare(names):
    """Compare the reports of several build folders.

    Args:
        names: build folders, published ones such as report/demo, or names of profiles whose report was built.

    Returns:
        Dict from title to a DataFrame with a column per report, without empty tables; and a list of sentences.

    Raises:
        UserError: fewer than two folders, a folder given twice, or one without a report's metrics.json.
    """
    folders = {str(name): (paths.BUILD / name if name in profiles.NAMES else Path(name)) for name in names}
    if len({folder.resolve() for folder in folders.values()}) < max(2, len(names)):
        raise UserError(f"compare {' '.join(map(str, names))}: give two or more different reports.")
    reports = {name: _read(folder / "metrics.json") for name, folder in folders.items()}
    for folder, report in zip(folders.values(), reports.values()):
        if not all(isinstance(report.get(group), dict) for group in ("settings", "steps")):
            raise UserError(f"{folder} holds no metrics.json with settings and steps. Run the report there first.")
    machines = {name: _read(folder / "run.json") for name, folder in folders.items()}
    tables = {}
    for title, score in SCORES.items():
        steps = {name: report["steps"].items() for name, report in reports.items()}
        columns = {name: {step: metrics.get(score) for step, metrics in of} for name, of in steps.items()}
        tables[title] = pd.DataFrame(columns, dtype=float).dropna(how="all")
    parts = {
        "settings": {n: {k: v for k, v in r["settings"].items() if k != "about"} for n, r in reports.items()},
        "data": {name: report.get("data") for name, report in reports.items()},
        "versions of steps": {name: report.get("versions") for name, report in reports.items()},
        "packages and machine": {n: {key: run[key] for key in MACHINE if key in run} for n, run in machines.items()},
    }
    same, unknown = [], []
    for part, columns in parts.items():
        if not all(columns.values()):
            unknown.append(part)
            continue
        flat = {name: pd.json_normalize(values).iloc[0].map(str) for name, values in columns.items()}
        table = pd.DataFrame(flat).fillna("–")
        tables[f"{part} that differ"] = differing = table[table.nunique(axis=1) > 1]
        same += [] if len(differing) else [part]
    sentences = [f"The same: {', '.join(same)}."] if same else []
    if unknown:
        sentences.append(f"Not recorded in all reports, so they may differ: {', '.join(unknown)}.")
    if len(tables.get("data that differ", ())):
        sentences.append("The data differ, so the scores cannot be compared.")
    return {title: table for title, table in tables.items() if len(table)}, sentences


def _read(path):
    """Return the dict in a JSON file; {} if it is missing or damaged."""
    try:
        content = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
