"""Results of steps on disk: stored under a hash of what they depend on, and written atomically.

The folder of a finished step, steps/<step>/<key>/, holds config.json (what the key is a hash of), metrics.json,
history.csv, arrays and weights; done.json, written last, holds the SHA-256 of every other file. A folder without that
marker, or with a file that does not match it, is not used.
"""

import contextlib
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pandas as pd
import safetensors.torch

from hw1lib import files, progress
from hw1lib.data import hashes
from hw1lib.errors import UserError
from hw1lib.loops import distributed
from hw1lib.steps import lock

CONFIG = "config.json"
METRICS = "metrics.json"
DONE = "done.json"
CHECKPOINT = "checkpoint.pt"
UNREADABLE = "unreadable"  # folder for a checkpoint that could not be read, and its arrays
LOCKS = (lock.LOCK, lock.HOLDER)

# Limits on unfinished attempts; beyond them the oldest is deleted first.
ATTEMPT_DAYS = 30
ATTEMPT_BYTES = 10e9  # of all steps together, except those that are running
FREE_BYTES = 5e9  # to keep free on the disk: two of the largest checkpoints


def key_of(parts):
    """Return the key of JSON data: the first 16 hex digits of its SHA-256."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """A finished step; its files are read on access."""

    step: str
    folder: Path

    @property
    def key(self):
        return self.folder.name

    @property
    def metrics(self):
        """The step's numbers, a dict."""
        return self._read(METRICS)

    @property
    def history(self):
        """One row for each epoch, a DataFrame; empty for a step without epochs."""
        path = self.folder / "history.csv"
        return pd.read_csv(path) if path.read_text().strip() else pd.DataFrame()

    @property
    def run(self):
        """How the step ran, a dict: seconds, device, precision, versions and more."""
        return self._read("run.json")

    def _read(self, name):
        """Read a JSON file, which may have been damaged since the result was checked."""
        if (data := _read_dict(self.folder / name)) is None:
            raise UserError(f"{self.folder / name} is damaged. Run the same command again to repeat step {self.step}.")
        return data

    def array(self, name):
        """Load a saved array."""
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def weights(self):
        """Load the saved weights, a dict of tensors."""
        return safetensors.torch.load_file(self.folder / "weights.safetensors")


class Draft:
    """The folder of a running step, through which it saves its results.

    Attributes:
        label: the step's name in progress lines, with its seed if that is not the report's own.
        resumed: whether the step resumes from a checkpoint.
        watch: function(history) to call after each epoch, or None.
    """

    def __init__(self, step, folder):
        self.step = self.label = step
        self.folder = Path(folder)
        self.checkpoint = self.folder / CHECKPOINT
        self.resumed = self.checkpoint.is_file()
        self.watch = None

    def metrics(self, data):
        """Save the step's numbers, a dict of JSON data."""
        files.write_json(self.folder / METRICS, data)

    def earlier_metrics(self):
        """Return the metrics that the resumed attempt saved, a dict; {} if it saved none."""
        return _read_dict(self.folder / METRICS) or {}

    def history(self, rows):
        """Save one row for each epoch, a list of dicts; lists and dicts in them are left out."""
        plain = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
        files.write_text(self.folder / "history.csv", pd.DataFrame(plain).to_csv(index=False))

    def array(self, name, values):
        """Save an array as <name>.npy."""
        with files.replacing(self.folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            # Given the file itself, NumPy would bypass Python's write and not notice a full disk.
            np.save(SimpleNamespace(write=file.write), values, allow_pickle=False)

    def weights(self, module):
        """Save the state of a module, or a dict of tensors, as safetensors."""
        state = module if isinstance(module, dict) else module.state_dict()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with files.replacing(self.folder / "weights.safetensors") as temporary:
            temporary.write_bytes(safetensors.torch.save(state))  # a full disk is then an OSError

    def arrays(self):
        """Return {file name: SHA-256} of the arrays saved so far."""
        return {path.name: files.digest(path) for path in sorted(self.folder.glob("*.npy"))}

    def keep_arrays(self, names):
        """Delete all arrays but those with these file names, such as those of an epoch that is trained again."""
        for path in self.folder.glob("*.npy"):
            if path.name not in names:
                path.unlink()

    def set_aside(self, reason):
        """Move an unusable checkpoint and the arrays into the folder UNREADABLE, replacing what it holds."""
        folder = self.folder / UNREADABLE
        with files.write_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in (self.checkpoint, *self.folder.glob("*.npy")):
                path.rename(folder / path.name)
        text = f"{self.checkpoint} cannot be used ({reason}). It is kept in {folder}, and the step starts over."
        progress.say(self.label, str(UserError(text)))


class NullDraft(Draft):
    """A draft that writes nothing, for ranks above 0."""

    def _nothing(self, *_):
        pass

    metrics = history = array = weights = keep_arrays = set_aside = _nothing


class Store:
    """The steps of one build folder."""

    def __init__(self, out):
        self.out = Path(out)

    def folder(self, step, key):
        """Return the folder of a step's result."""
        return self.out / "steps" / step / key

    def done(self, step, key):
        """Return whether a step is finished and none of its files has changed."""
        return (self.folder(step, key) / DONE).is_file() and not self.damage(step, key)

    def damage(self, step, key):
        """Return what is wrong with the files of a finished step, list of str; unchanged files are not read again."""
        folder = self.folder(step, key)
        return _damage(folder, hashes.file_fingerprint) if (folder / DONE).is_file() else []

    def status(self, step, key):
        """Return "done", "to resume" or "to run"."""
        if self.done(step, key):
            return "done"
        folder = self.folder(step, key)
        return "to resume" if (folder / CHECKPOINT).is_file() and not (folder / DONE).is_file() else "to run"

    def result(self, step, key):
        """Return the Result of a step, which must be finished."""
        return Result(step, self.folder(step, key))

    def results(self, step):
        """Return the finished results of a step under all keys, a list of Result."""
        return [Result(step, marker.parent) for marker in sorted(self.out.glob(f"steps/{step}/*/{DONE}"))]

    def configs(self, step):
        """Return the configs of the finished results of a step, a list of dicts."""
        return [config for result in self.results(step) if (config := _read_dict(result.folder / CONFIG))]

    @contextlib.contextmanager
    def claim(self, step, key, config):
        """Lock the folder of a step and yield a Draft, or None if another process has finished the step.

        Leaving the block without an error writes the marker. An earlier attempt's checkpoint and arrays are kept. If
        several processes share the step, rank 0 does all this, and the others get a NullDraft.

        Args:
            step: name of the step.
            key: its key.
            config: what the key is a hash of.
        """
        folder = self.folder(step, key)
        if distributed.world_size() > 1 and distributed.rank():
            yield NullDraft(step, folder) if distributed.broadcast(None) else None
        else:
            with lock.acquire(folder, step):
                if self.done(step, key):
                    distributed.broadcast(False)
                    yield None
                else:
                    draft = self._begin(step, folder, config)
                    distributed.broadcast(True)
                    yield draft
                    _finish(draft)
        distributed.barrier()

    def _begin(self, step, folder, config):
        """Delete leftovers of an attempt that cannot be resumed, and old attempts of all steps; return a Draft."""
        keep = [UNREADABLE]
        with lock.write_errors(folder):
            if (folder / DONE).is_file():
                progress.say(step, f"{'; '.join(_damage(folder, files.digest))}. The step is run again.")
            elif (folder / CHECKPOINT).is_file():
                keep += [CHECKPOINT, METRICS, *(path.name for path in folder.glob("[!.]*.npy"))]
            _empty(folder, keep)
            self._limit_attempts()
        files.write_json(folder / CONFIG, config)
        return Draft(step, folder)

    def _limit_attempts(self):
        """Delete the oldest unfinished attempts beyond the limits above, except those that are running."""
        with contextlib.ExitStack() as locks:
            attempts = sorted(self._lock_attempts(locks))
            total = sum(size for _, size, _ in attempts)
            room = min(ATTEMPT_BYTES, shutil.disk_usage(self.out).free + total - FREE_BYTES)
            for date, size, folder in attempts:
                if time.time() - date > 86_400 * ATTEMPT_DAYS:
                    reason = f"it is older than {ATTEMPT_DAYS} days"
                elif total > room:
                    limit, free = f"{ATTEMPT_BYTES / 1e9:g} GB", f"{FREE_BYTES / 1e9:g} GB of the disk"
                    reason = f"unfinished attempts take more than {limit} or leave less than {free} free"
                else:
                    break
                with contextlib.suppress(OSError):
                    _empty(folder)
                    total -= size
                    progress.say(folder.parent.name, f"deleted the unfinished attempt {folder}: {reason}")

    def _lock_attempts(self, locks):
        """Yield (time of change, bytes, folder) of each unfinished step that is not running, locked by `locks`."""
        for folder in self.out.glob("steps/*/*/"):
            with contextlib.suppress(filelock.Timeout, OSError):  # running, or another user's
                if (folder / DONE).is_file():
                    (folder / CHECKPOINT).unlink(missing_ok=True)  # left if the process was killed just then
                    continue
                locks.enter_context(filelock.FileLock(folder / lock.LOCK, timeout=0))
                stats = [path.stat() for path in folder.rglob("*") if path.is_file() and path.name not in LOCKS]
                if stats and not (folder / DONE).is_file():
                    yield max(stat.st_mtime for stat in stats), sum(stat.st_size for stat in stats), folder

    def verify(self):
        """Hash the files of every finished step again, and return a line for each change, such as a missing file.

        Raises:
            UserError: no step is finished.
        """
        finished = sorted(marker.parent for marker in self.out.glob(f"steps/*/*/{DONE}"))
        if not finished:
            raise UserError(f"There is no finished step in {self.out} yet. Run the report first.")
        problems = [(folder, problem) for folder in finished for problem in _damage(folder, files.digest)]
        for run in sorted(self.out.glob("steps/*/*/run.json")):  # written just before the marker
            if not any((run.parent / name).exists() for name in (DONE, CHECKPOINT, lock.HOLDER)):
                problems.append((run.parent, f"{DONE} is missing"))
        return ["/".join((*folder.parts[-2:], problem)) for folder, problem in problems]


def _read_dict(path):
    """Return the dict in a JSON file, or None if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        data = files.read_json(path)
        return data if isinstance(data, dict) else None


def _damage(folder, digest):
    """Compare the hashes of a finished step's files with its marker, and return a phrase for each difference."""
    expected = (_read_dict(folder / DONE) or {}).get("files")
    if not expected or not isinstance(expected, dict):
        return [f"{DONE} is damaged"]
    problems = []
    for name in expected:
        try:
            if digest(folder / name) != expected[name]:
                problems.append(f"{name} was altered")
        except (FileNotFoundError, IsADirectoryError, ValueError):  # ValueError: no valid file name
            problems.append(f"{name} is missing")
    return problems


def _empty(folder, keep=()):
    """Delete everything in the folder of a step except its lock and the names in `keep`."""
    for path in folder.iterdir():
        if path.name in (*LOCKS, *keep):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _finish(draft):
    """Write the marker with the hash of each file, then delete the checkpoint, and any that could not be read."""
    results = [path for path in sorted(draft.folder.glob("[!.]*")) if path.is_file() and path != draft.checkpoint]
    files.write_json(draft.folder / DONE, {"files": {path.name: files.digest(path) for path in results}})
    draft.checkpoint.unlink(missing_ok=True)
    shutil.rmtree(draft.folder / UNREADABLE, ignore_errors=True)
