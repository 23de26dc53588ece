"""The record of figures, tables and texts kept for the report: one entry, kept/<name>.json, for each name.

An entry holds the kind, the caption, the keys of the steps used until then (by label), the SHA-256 of each file, and
the name of the notebook if a report executed it. A kernel in JupyterLab does not change the entry of
such a notebook, so files that it overwrites no longer match their hashes.
"""

import os
from pathlib import Path

from hw1lib import files

NOTEBOOK = "HW1LIB_NOTEBOOK"  # environment variable: name of the notebook that a report executes in this kernel
FILES = {
    "figure": ("figures/{}.png", "figures/{}.pdf"),
    "table": ("tables/{}.csv", "text/{}.md"),
    "text": ("text/{}.md",),
}
FIELDS = {"kind", "caption", "steps", "notebook", "files"}


def notebook():
    """Return the name of the notebook that a report executes in this process, or ""."""
    return os.environ.get(NOTEBOOK, "")


def path(out, name):
    """Return the path of an entry."""
    return Path(out) / "kept" / f"{name}.json"


def _files(kind, name):
    return {pattern.format(name) for pattern in FILES[kind]}


def entry(out, name):
    """Return the dict of an entry; None if it is missing or damaged."""
    try:
        fields = files.read_json(path(out, name))
        return fields if set(fields) == FIELDS and set(fields["files"]) == _files(fields["kind"], name) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def entries(out, notebook=None):
    """Return the valid entries in a build folder, or those of one notebook: dict from name to entry."""
    names = sorted(file.stem for file in (Path(out) / "kept").glob("[!.]*.json"))
    valid = {name: fields for name in names if (fields := entry(out, name))}
    return {name: fields for name, fields in valid.items() if notebook in (None, fields["notebook"])}


def record(out, name, kind, caption, steps, notebook):
    """Write the entry of a name whose files are already written.

    Args:
        out: build folder.
        name: name in the report's template.
        kind: figure, table or text.
        caption: caption of a figure.
        steps: dict from label to key of the steps used so far.
        notebook: name of the notebook that a report executes; "" in other kernels, which do not change its entries.

    Returns:
        The notebook whose files this kernel has overwritten with different ones, or "".
    """
    before = entry(out, name)
    if before and before["notebook"] and not notebook:
        return before["notebook"] if changed(out, before["files"]) else ""
    hashes = {file: files.digest(Path(out) / file) for file in sorted(_files(kind, name))}
    fields = {"kind": kind, "caption": caption, "steps": steps, "notebook": notebook, "files": hashes}
    files.write_json(path(out, name), fields)
    return ""


def hashes(entries):
    """Return the SHA-256 of all files of some entries: dict from path below the build folder to hash."""
    return {file: digest for fields in entries.values() for file, digest in fields["files"].items()}


def changed(out, hashes):
    """Return the files, by path below `out`, that are missing or have another hash."""
    paths = {name: Path(out) / name for name in hashes}
    return [name for name, file in paths.items() if not file.is_file() or files.digest(file) != hashes[name]]
