"""Results on disk: keyed by what made them, written atomically.

A finished step is a folder steps/<step>/<key>/ that holds config.json (what made it),
metrics.json, history.csv, arrays, weights and, written last, done.json with the SHA-256 of
every other file. Without that marker, or with a file that is not as it says, nothing in the folder
counts as done.
"""

import contextlib
import hashlib
import json
import os
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
from hw1lib.errors import UserError
from hw1lib.loops import distributed
from hw1lib.steps import lock

DONE = "done.json"
CONFIG = "config.json"
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.json"
UNREADABLE = "unreadable"  # folder of a checkpoint that could not be read, with its arrays

# Unfinished attempts, of other settings, too, stay within these bounds; beyond them the oldest goes first.
ATTEMPT_DAYS = 30
ATTEMPT_BYTES = 10e9  # of all steps together, without those that are running
FREE_BYTES = 5e9  # on the disk: two of the largest checkpoints


def key_of(parts):
    """A short key for plain JSON data: 16 hex digits of its SHA-256."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """One finished step, read only when asked."""

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
        """One row an epoch, a DataFrame; empty for a step without epochs."""
        path = self.folder / "history.csv"
        return pd.read_csv(path) if path.read_text().strip() else pd.DataFrame()

    @property
    def run(self):
        """How it ran: seconds, device, precision, versions."""
        return self._read("run.json")

    def _read(self, name):
        """Return the dict that a JSON file holds; a UserError where it was damaged after the result was checked."""
        with contextlib.suppress(ValueError):
            if isinstance(data := files.read_json(self.folder / name), dict):
                return data
        raise UserError(f"{self.folder / name} is damaged. Run the same command again: it runs step {self.step} anew.")

    def array(self, name):
        """A saved array."""
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def weights(self):
        """The saved weights, a dict of tensors."""
        return safetensors.torch.load_file(self.folder / "weights.safetensors")


class Draft:
    """The folder of a step that is running; the step writes its results through it."""

    def __init__(self, step, folder):
        self.step = self.label = step  # label: with its seed, for lines of progress
        self.folder = Path(folder)
        self.checkpoint = self.folder / CHECKPOINT
        self.resumed = self.checkpoint.is_file()
        self.watch = None  # function(history), called after each epoch

    def metrics(self, data):
        files.write_json(self.folder / METRICS, data)

    def earlier_metrics(self):
        """Return what an attempt that this one resumes has saved as metrics, a dict; {} where there is none."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(data := files.read_json(self.folder / METRICS), dict):
                return data
        return {}

    def history(self, rows):
        """Saves the plain numbers of each epoch; nested values belong into metrics."""
        plain = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
        files.write_text(self.folder / "history.csv", pd.DataFrame(plain).to_csv(index=False))

    def array(self, name, values):
        with files.replacing(self.folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            # NumPy's own way to write into a file does not notice a full disk.
            np.save(SimpleNamespace(write=file.write), values, allow_pickle=False)

    def arrays(self):
        """Return {file name: SHA-256} of the arrays saved so far."""
        return {path.name: files.digest(path) for path in sorted(self.folder.glob("*.npy"))}

    def keep_arrays(self, names):
        """Delete all other arrays, such as those of an epoch that is trained again."""
        for path in self.folder.glob("*.npy"):
            if path.name not in names:
                path.unlink()

    def set_aside(self, reason):
        """Move a checkpoint that cannot be used, and the arrays, into the folder UNREADABLE; replace an earlier one."""
        folder = self.folder / UNREADABLE
        with files.naming(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in (self.checkpoint, *self.folder.glob("*.npy")):
                path.rename(folder / path.name)
        text = f"{self.checkpoint} cannot be used ({reason}). It is kept in {folder}, and the step starts anew."
        progress.say(self.label, str(UserError(text)))

    def weights(self, module):
        """Saves a module's state, or a dict of tensors, as safetensors."""
        state = module if isinstance(module, dict) else module.state_dict()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with files.replacing(self.folder / "weights.safetensors") as temporary:
            safetensors.torch.save_file(state, temporary)


class Onlooker(Draft):
    """What another process than the first one of a step writes its results through: nothing is written."""

    def _nothing(self, *_):
        pass

    metrics = history = array = weights = keep_arrays = set_aside = _nothing


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
        if not (folder / DONE).is_file():
            return []
        try:
            looks = _looks(folder)
            if self._trusted.get(folder) == looks:
                return []
            problems = _damage(folder)
        except FileNotFoundError:
            return ["another process is writing it anew"]
        if not problems:
            self._trusted[folder] = looks
        return problems

    def status(self, step, key):
        """done, to resume or to run."""
        if self.done(step, key):
            return "done"
        folder = self.folder(step, key)
        return "to resume" if (folder / CHECKPOINT).is_file() and not (folder / DONE).is_file() else "to run"

    def result(self, step, key):
        return Result(step, self.folder(step, key))

    def results(self, step):
        """The finished results of a step, of all keys that there are: a list."""
        return [Result(step, marker.parent) for marker in sorted(self.out.glob(f"steps/{step}/*/{DONE}"))]

    def configs(self, step):
        """What made them: a list of what their config.json hold."""
        return [config for result in self.results(step) if (config := _config(result.folder))]

    @contextlib.contextmanager
    def claimed(self, step, key, config):
        """Locks a step's folder and yields a Draft, or None where somebody else finished it.

        Of several processes that work on one step the first does so, and the others look on.

        Leaving the block without an error writes the done marker. What an earlier attempt left is
        deleted first, but for its checkpoint and the results that go with it; so are old attempts of
        all steps, see `_limit_attempts`.

        Args:
            config: what the step follows from, with groups settings and settings.profile.
        """
        folder = self.folder(step, key)
        if distributed.world_size() > 1 and distributed.rank():
            yield Onlooker(step, folder) if distributed.broadcast(None) else None
            distributed.barrier()
            return
        with lock.held(folder, step):
            if self.done(step, key):
                distributed.broadcast(False)
                yield None
                distributed.barrier()
                return
            with lock.naming(folder):
                self._clear(step, folder)
            files.write_json(folder / CONFIG, config)
            draft = Draft(step, folder)
            distributed.broadcast(True)
            yield draft
            results = [path for path in sorted(folder.glob("[!.]*")) if path.is_file() and path != draft.checkpoint]
            files.write_json(folder / DONE, {"files": {path.name: files.digest(path) for path in results}})
            draft.checkpoint.unlink(missing_ok=True)
        distributed.barrier()

    def _clear(self, step, folder):
        """Delete stale files from a step's folder and its neighbours, then what makes too many unfinished attempts."""
        keep = []
        if (folder / DONE).is_file():
            progress.say(step, f"{'; '.join(_damage(folder))}. The step is run again.")
            (folder / DONE).unlink()  # first of all: without it nothing else counts
        elif (folder / CHECKPOINT).is_file():  # it vouches for the arrays beside it
            keep = [CHECKPOINT, METRICS, *(path.name for path in folder.glob("[!.]*.npy"))]
        _empty(folder, keep)
        for other in folder.parent.iterdir():
            if other != folder and other.is_dir():
                _if_idle(other, _tidy, other)
        self._limit_attempts()

    def _limit_attempts(self):
        """Delete the oldest unfinished attempts of all steps beyond ATTEMPT_DAYS, ATTEMPT_BYTES and FREE_BYTES.

        An attempt is a checkpoint, also an unreadable one, with all that lies beside it; one that is running is
        neither counted nor deleted.
        """
        attempts = []
        for folder in self.out.glob("steps/*/*/"):
            for part in (folder, folder / UNREADABLE):
                if (part / CHECKPOINT).is_file() and (size := _if_idle(folder, _size, part)) is not None:
                    attempts.append(((part / CHECKPOINT).stat().st_mtime, size, folder, part))
        total, free = sum(size for _, size, *_ in attempts), shutil.disk_usage(self.out).free
        for date, size, folder, part in sorted(attempts):
            if time.time() - date > 86_400 * ATTEMPT_DAYS:
                reason = f"it is older than {ATTEMPT_DAYS} days"
            elif total > ATTEMPT_BYTES:
                reason = f"unfinished attempts take more than {ATTEMPT_BYTES / 1e9:g} GB"
            elif free < FREE_BYTES:
                reason = f"less than {FREE_BYTES / 1e9:g} GB of the disk is free"
            else:
                break
            if _if_idle(folder, _give_up, part, date):
                total, free = total - size, free + size
                progress.say(folder.parent.name, f"deleted the unfinished attempt {part}, as {reason}")

    def verify(self):
        """Re-hashes every finished step; returns a line for each file that is not as written."""
        markers = sorted(self.out.glob(f"steps/*/*/{DONE}"))
        if not markers:
            raise UserError(f"{self.out} holds no finished step yet. Run the report first.")
        found = [(folder.parent, f) for folder in markers for f in _damage(folder.parent)]
        for run in sorted(self.out.glob("steps/*/*/run.json")):  # the last but one to be written
            going_on = (run.parent / CHECKPOINT).is_file() or (run.parent / lock.HOLDER).is_file()
            if not going_on and not (run.parent / DONE).exists():
                found.append((run.parent, f"{DONE} is missing"))
        return ["/".join((*folder.parts[-2:], problem)) for folder, problem in found]


def _looks(folder):
    """Size and date of each file: what a change of it changes."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    stats = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats}


def _damage(folder):
    """Holds a finished step's files against its marker: a list of phrases."""
    try:
        expected = list(files.read_json(folder / DONE)["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        expected = []
    if not expected:
        return [f"{DONE} is damaged"]
    problems = []
    for name, digest in expected:
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif files.digest(folder / name) != digest:
            problems.append(f"{name} was altered")
    return problems


def _if_idle(folder, function, *arguments):
    """function(*arguments) with a step's lock held; None where another process holds it or nothing can be written."""
    with contextlib.suppress(filelock.Timeout, OSError), filelock.FileLock(folder / lock.LOCK, timeout=0):
        return function(*arguments)


def _size(folder):
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _give_up(folder, date):
    """Delete an attempt, unless somebody went on with it after `date`; whether it was deleted."""
    if unchanged := (folder / CHECKPOINT).stat().st_mtime == date:
        _empty(folder)
    return unchanged


def _tidy(folder):
    """Delete what nobody can go on with from the folder of another attempt: half-written files, results alone."""
    for path in folder.glob(".*"):
        if path.name != lock.LOCK and path.is_file():
            path.unlink()  # half written by a process that was killed
    if (folder / DONE).is_file():
        (folder / CHECKPOINT).unlink(missing_ok=True)  # killed just before it was done
    elif not (folder / CHECKPOINT).is_file():
        _empty(folder)


def _empty(folder, keep=()):
    """Delete what is in a step's folder, half-written files included, but for `keep` and an unreadable checkpoint."""
    for path in folder.iterdir():
        if path.name in (lock.LOCK, lock.HOLDER, UNREADABLE, *keep):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _config(folder):
    """What made the contents of a folder; empty where that cannot be told."""
    with contextlib.suppress(OSError, ValueError):
        config = files.read_json(folder / CONFIG)
        return config if isinstance(config, dict) else {}
    return {}
