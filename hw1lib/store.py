"""Results on disk: keyed by what made them, written atomically.

A finished step is a folder steps/<step>/<key>/ that holds config.json (what made it),
metrics.json, history.csv, arrays, weights and, written last, done.json with the SHA-256 of
every other file. Without that marker, or with a file that is not as it says, nothing in the folder
counts as done.
"""

import contextlib
import datetime
import hashlib
import json
import os
import platform
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import safetensors.torch

from hw1lib import files
from hw1lib.errors import UserError, remedy

DONE = "done.json"
CONFIG = "config.json"
CHECKPOINT = "checkpoint.pt"
LOCK = ".lock"
HOLDER = ".holder"  # who has the lock: for those who wait; it proves nothing


def key_of(parts):
    """A short key for plain JSON data: 16 hex digits of its SHA-256."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Result:
    """One finished step, read only when asked."""

    def __init__(self, step, folder):
        self.step = step
        self.folder = Path(folder)

    @property
    def key(self):
        return self.folder.name

    @property
    def metrics(self):
        """The step's numbers, a dict."""
        return files.read_json(self.folder / "metrics.json")

    @property
    def history(self):
        """One row an epoch, a DataFrame; empty for a step without epochs."""
        path = self.folder / "history.csv"
        return pd.read_csv(path) if path.read_text().strip() else pd.DataFrame()

    @property
    def run(self):
        """How it ran: seconds, device, precision, versions."""
        return files.read_json(self.folder / "run.json")

    def array(self, name):
        """A saved array."""
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def weights(self):
        """The saved weights, a dict of tensors."""
        return safetensors.torch.load_file(self.folder / "weights.safetensors")


class Draft:
    """The folder of a step that is running; the step writes its results through it."""

    def __init__(self, step, folder):
        self.step = step
        self.folder = Path(folder)
        self.checkpoint = self.folder / CHECKPOINT
        self.watch = None  # function(history), called after each epoch

    def metrics(self, data):
        files.write_json(self.folder / "metrics.json", data)

    def history(self, rows):
        """Saves the plain numbers of each epoch; nested values belong into metrics."""
        plain = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
        files.write_text(self.folder / "history.csv", pd.DataFrame(plain).to_csv(index=False))

    def array(self, name, values):
        with files.replacing(self.folder / f"{name}.npy") as temporary:
            with open(temporary, "wb") as file:
                np.save(file, values, allow_pickle=False)

    def weights(self, module):
        """Saves a module's state, or a dict of tensors, as safetensors."""
        state = module if isinstance(module, dict) else module.state_dict()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with files.replacing(self.folder / "weights.safetensors") as temporary:
            safetensors.torch.save_file(state, temporary)


class Store:
    """The steps of one build folder."""

    def __init__(self, out):
        self.out = Path(out)
        self._trusted = {}  # folder -> how its files looked when their hashes were right

    def folder(self, step, key):
        return self.out / "steps" / step / key

    def done(self, step, key):
        """Whether a step is finished and each of its files is as it was written."""
        return (self.folder(step, key) / DONE).is_file() and not self.damage(step, key)

    def damage(self, step, key):
        """What is wrong with a finished step's files: a list of phrases, empty if nothing is.

        Files are hashed the first time, and again when their size or date changes.
        """
        folder = self.folder(step, key)
        looks = _looks(folder)
        if self._trusted.get(folder) != looks:
            problems = _damage(folder)
            if problems:
                return problems
            self._trusted[folder] = looks
        return []

    def status(self, step, key):
        """done, to resume or to run."""
        if self.done(step, key):
            return "done"
        return "to resume" if (self.folder(step, key) / CHECKPOINT).is_file() else "to run"

    def result(self, step, key):
        return Result(step, self.folder(step, key))

    def configs(self, step):
        """What made the finished results of a step, of all keys that there are: a list."""
        found = []
        for marker in sorted(self.out.glob(f"steps/{step}/*/{DONE}")):
            with contextlib.suppress(OSError, ValueError):
                found.append(files.read_json(marker.parent / CONFIG))
        return found

    @contextlib.contextmanager
    def claimed(self, step, key, config):
        """Locks a step's folder and yields a Draft, or None where another process finished it.

        Leaving the block without an error writes the done marker. What an earlier attempt left is
        cleared first, but for a checkpoint and the results that go with it.

        Args:
            config: what the step follows from, with groups settings and settings.profile.
        """
        folder = self.folder(step, key)
        with _locked(step, folder):
            if self.done(step, key):
                yield None
                return
            self._clear(step, folder, config)
            files.write_json(folder / CONFIG, config)
            draft = Draft(step, folder)
            yield draft
            draft.checkpoint.unlink(missing_ok=True)
            results = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            files.write_json(
                folder / DONE,
                {
                    "files": {path.name: files.digest(path) for path in results},
                    "bytes": {path.name: path.stat().st_size for path in results},
                },
            )

    def _clear(self, step, folder, config):
        """Removes what no longer counts, so that at most one checkpoint a step and seed stays."""
        if (folder / DONE).is_file():
            print(f"{step}: {'; '.join(_damage(folder))}. The step is run again.", flush=True)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            (folder / DONE).unlink()  # first of all: without it nothing else counts
        going_on = (folder / CHECKPOINT).is_file()
        for path in folder.iterdir():
            half_written = path.name.startswith(".")  # by a process that was killed meanwhile
            if path.name not in (LOCK, HOLDER) and (half_written or not going_on):
                path.unlink()
        for checkpoint in folder.parent.glob(f"*/{CHECKPOINT}"):
            other = checkpoint.parent
            if other != folder and not _only_another_seed(other, config) and not _held(other):
                checkpoint.unlink(missing_ok=True)

    def verify(self):
        """Re-hashes every finished step; returns a line for each file that is not as written."""
        markers = sorted(self.out.glob(f"steps/*/*/{DONE}"))
        if not markers:
            raise UserError(f"{self.out} holds no finished step yet. Run the report first.")
        return [
            "/".join((*marker.parent.parts[-2:], problem))
            for marker in markers
            for problem in _damage(marker.parent)
        ]


def _looks(folder):
    """Size and date of each file: what a change of it changes."""
    return {
        entry.name: (entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in os.scandir(folder)
        if not entry.name.startswith(".")
    }


def _damage(folder):
    """Holds a finished step's files against its marker: a list of phrases."""
    try:
        marker = files.read_json(folder / DONE)
        hashes, sizes = dict(marker["files"]), dict(marker.get("bytes", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{DONE} is damaged"]
    problems = []
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size < sizes.get(name, 0):
            problems.append(f"{name} is truncated")
        elif files.digest(path) != expected:
            problems.append(f"{name} was altered")
    return problems


@contextlib.contextmanager
def _locked(step, folder):
    """The lock of a step's folder; says for whom it waits.

    It is the operating system's, so it ends with its holder however that ends.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"{step}: waiting for {_holder(folder)}, which works on it", flush=True)
            lock.acquire()
        me = {"pid": os.getpid(), "host": platform.node(), "since": _now()}
        (folder / HOLDER).write_text(json.dumps(me))
    except OSError as error:
        lock.release()
        raise UserError(
            f"The folder {folder} cannot be used: {error.strerror or error}. {remedy(error)} "
            "--out names another one."
        ) from error
    try:
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _now():
    return datetime.datetime.now().astimezone().isoformat(" ", "seconds")


def _holder(folder):
    try:
        holder = files.read_json(folder / HOLDER)
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _held(folder):
    """Whether a live process works on a folder."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        with lock.acquire(timeout=0):
            return False
    except (filelock.Timeout, OSError):
        return True


def _only_another_seed(folder, config):
    """Whether a folder is of the same settings and data but for the seed."""
    try:
        return _but_for_seed(files.read_json(folder / CONFIG)) == _but_for_seed(config)
    except (OSError, ValueError, AttributeError):
        return False


def _but_for_seed(config):
    settings = dict(config.get("settings", {}))
    settings["profile"] = {k: v for k, v in settings.get("profile", {}).items() if k != "seed"}
    return settings, config.get("version"), config.get("data")
