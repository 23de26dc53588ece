"""One step's folder on disk: its marker and hashes, and the deletion of what is left of attempts."""

import contextlib
import shutil

import filelock

from hw1lib import files
from hw1lib.steps import lock

DONE = "done.json"
CHECKPOINT = "checkpoint.pt"
UNREADABLE = "unreadable"  # folder of a checkpoint that could not be read, with its arrays


def read_dict(path):
    """Return the dict in a JSON file, or None if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        data = files.read_json(path)
        return data if isinstance(data, dict) else None


def stat(folder):
    """Return {file name: (size, date)} of a folder."""
    stats = {path.name: path.lstat() for path in folder.glob("[!.]*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def damage(folder):
    """Compare the files of a finished step with its marker, and return a list of phrases."""
    expected = (read_dict(folder / DONE) or {}).get("files")
    if not expected or not isinstance(expected, dict):
        return [f"{DONE} is damaged"]
    problems = []
    for name, digest in expected.items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif files.digest(folder / name) != digest:
            problems.append(f"{name} was altered")
    return problems


def if_idle(folder, function, *arguments):
    """Call a function with the lock of a step; return None if the step is running or its folder cannot be written."""
    with contextlib.suppress(filelock.Timeout, OSError), filelock.FileLock(folder / lock.LOCK, timeout=0):
        return function(*arguments)


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def delete(folder, date):
    """Delete an attempt and return True, unless its checkpoint was written after `date`."""
    if unchanged := (folder / CHECKPOINT).stat().st_mtime == date:
        empty(folder)
    return unchanged


def tidy(folder):
    """Delete half-written files, a finished step's checkpoint, and results with neither checkpoint nor marker."""
    for path in folder.glob(".*"):
        if path.name != lock.LOCK and path.is_file():
            path.unlink()
    if (folder / DONE).is_file():
        (folder / CHECKPOINT).unlink(missing_ok=True)
    elif not (folder / CHECKPOINT).is_file():
        empty(folder)


def empty(folder, keep=()):
    """Delete what is in the folder of a step, except the files named in `keep`, locks, and an unreadable checkpoint."""
    for path in folder.iterdir():
        if path.name in (lock.LOCK, lock.HOLDER, UNREADABLE, *keep):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
