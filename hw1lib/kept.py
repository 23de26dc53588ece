"""What notebooks keep for the report: its files, and an entry kept/<name>.json that says which and from where.

An entry holds kind, caption, the steps behind the thing (label: key), the notebook that kept it while a report
executed it, and the SHA-256 of each of its files. Anything else that keeps, such as a kernel in JupyterLab, leaves
the entries of notebooks as they are, so what it changes no longer agrees with them.
"""

import os
from pathlib import Path

from hw1lib import files

NOTEBOOK = "HW1LIB_NOTEBOOK"  # environment variable: the notebook that a report executes in this kernel
FILES = {
    "figure": ("figures/{}.png", "figures/{}.pdf"),
    "table": ("tables/{}.csv", "text/{}.md"),
    "text": ("text/{}.md",),
}


def path(out, name):
    """The file of an entry."""
    return Path(out) / "kept" / f"{name}.json"


def entry(out, name):
    """Return a thing's entry, a dict; None where there is none or it is damaged."""
    try:
        about = files.read_json(path(out, name))
        groups, texts = [about["steps"], about["files"]], [about["caption"], about["notebook"]]
        whole = {dict} == {*map(type, groups)} and {str} == {*map(type, texts)}
        return about if whole and set(about["files"]) == _files(about["kind"], name) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files(kind, name):
    """The names of a thing's files below the build folder."""
    return {pattern.format(name) for pattern in FILES[kind]}


def record(out, name, kind, caption, steps, notebook):
    """Write the entry of a thing whose files are written.

    Returns:
        The notebook whose entry stays because it was kept by no notebook now, where its files are others; or "".
    """
    hashes = {file: files.digest(Path(out) / file) for file in sorted(_files(kind, name))}
    before = entry(out, name)
    if not notebook and before and before["notebook"]:
        return before["notebook"] if changed(out, before["files"]) else ""
    about = {"kind": kind, "caption": caption, "steps": steps, "notebook": notebook, "files": hashes}
    files.write_json(path(out, name), about)
    return ""


def changed(out, hashes):
    """Return the files that are missing or not as their hashes say: a list of names; `hashes` by name below `out`."""
    paths = {name: Path(out) / name for name in hashes}
    return [name for name, file in paths.items() if not file.is_file() or files.digest(file) != hashes[name]]


def entries(out, notebook=None):
    """Return the entries of a build folder, or of one notebook there: dict from name to entry."""
    names = sorted(file.stem for file in (Path(out) / "kept").glob("[!.]*.json"))
    whole = {name: about for name in names if (about := entry(out, name))}
    return {name: about for name, about in whole.items() if notebook in (None, about["notebook"])}


def notebook():
    """Return the notebook that a report executes in this process; empty elsewhere."""
    return os.environ.get(NOTEBOOK, "")
