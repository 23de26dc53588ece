"""What notebooks keep for the report: its files, and an entry kept/<name>.json for each name.

An entry holds the kind, the caption, the keys of the steps that were read before (by label), the SHA-256 of each file,
and the notebook that kept it while a report executed it. A kernel in JupyterLab leaves such an entry alone, so that
files it overwrites no longer match their hashes.
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
FIELDS = {"kind", "caption", "steps", "notebook", "files"}


def notebook():
    """Return the notebook that a report executes in this process; empty elsewhere."""
    return os.environ.get(NOTEBOOK, "")


def path(out, name):
    """Return the path of an entry."""
    return Path(out) / "kept" / f"{name}.json"


def _files(kind, name):
    return {pattern.format(name) for pattern in FILES[kind]}


def entry(out, name):
    """Return an entry, a dict; None if there is none or it is damaged."""
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
    """Write the entry of a name whose files are written.

    Args:
        notebook: that a report executes; empty in any other kernel, which leaves the entries of notebooks alone.

    Returns:
        The notebook whose files this kernel has replaced by different ones; empty if there is none.
    """
    before = entry(out, name)
    if before and before["notebook"] and not notebook:
        return before["notebook"] if changed(out, before["files"]) else ""
    hashes = {file: files.digest(Path(out) / file) for file in sorted(_files(kind, name))}
    fields = {"kind": kind, "caption": caption, "steps": steps, "notebook": notebook, "files": hashes}
    files.write_json(path(out, name), fields)
    return ""


def hashes(entries):
    """Return the SHA-256 of all files of some entries: dict from the name below the build folder."""
    return {file: digest for fields in entries.values() for file, digest in fields["files"].items()}


def changed(out, hashes):
    """Return those of the hashed files that are missing or have another hash, a list of names below `out`."""
    paths = {name: Path(out) / name for name in hashes}
    return [name for name, file in paths.items() if not file.is_file() or files.digest(file) != hashes[name]]
