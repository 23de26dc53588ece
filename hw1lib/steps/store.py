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
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pandas as pd
import safetensors.torch

from hw1lib import files, parallel, progress
from hw1lib.errors import UserError
from hw1lib.steps import lock

DONE = "done.json"
CONFIG = "config.json"
CHECKPOINT = "checkpoint.pt"


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
        self.step = self.label = step  # label: with its seed, for lines of progress
        self.folder = Path(folder)
        self.checkpoint = self.folder / CHECKPOINT
        self.resumed = self.checkpoint.is_file()
        self.watch = None  # function(history), called after each epoch

    def metrics(self, data):
        files.write_json(self.folder / "metrics.json", data)

    def history(self, rows):
        """Saves the plain numbers of each epoch; nested values belong into metrics."""
        plain = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
        files.write_text(self.folder / "history.csv", pd.DataFrame(plain).to_csv(index=False))

    def array(self, name, values):
        with files.replacing(self.folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            # NumPy's own way to write into a file does not notice a full disk.
            np.save(SimpleNamespace(write=file.write), values, allow_pickle=False)

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

    metrics = history = array = weights = _nothing


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
        cleared first, but for a checkpoint and the results that go with it.

        Args:
            config: what the step follows from, with groups settings and settings.profile.
        """
        folder = self.folder(step, key)
        if parallel.count() > 1 and parallel.rank():
            yield Onlooker(step, folder) if parallel.agreed(None) else None
            parallel.wait()
            return
        with lock.held(folder, step):
            if self.done(step, key):
                parallel.agreed(False)
                yield None
                parallel.wait()
                return
            with lock.naming(folder):
                self._clear(step, folder, config)
            files.write_json(folder / CONFIG, config)
            draft = Draft(step, folder)
            parallel.agreed(True)
            yield draft
            results = [path for path in sorted(folder.glob("[!.]*")) if path.is_file() and path != draft.checkpoint]
            files.write_json(folder / DONE, {"files": {path.name: files.digest(path) for path in results}})
            draft.checkpoint.unlink(missing_ok=True)
        parallel.wait()

    def _clear(self, step, folder, config):
        """Removes what counts no longer; of each step and seed at most one attempt stays."""
        keep = []
        if (folder / DONE).is_file():
            progress.say(step, f"{'; '.join(_damage(folder))}. The step is run again.")
            (folder / DONE).unlink()  # first of all: without it nothing else counts
        elif (folder / CHECKPOINT).is_file():  # it vouches for the arrays beside it
            keep = [CHECKPOINT, *(path.name for path in folder.glob("[!.]*.npy"))]
        _empty(folder, keep)

        for other in folder.parent.iterdir():
            if other != folder and other.is_dir():
                with contextlib.suppress(filelock.Timeout, OSError), filelock.FileLock(other / lock.LOCK, timeout=0):
                    _tidy(step, other, _seed(config))

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


def _tidy(step, folder, seed):
    """Removes what another attempt has left that nobody works on; one of another seed may still go on."""
    for path in folder.glob(".*"):
        if path.name != lock.LOCK and path.is_file():
            path.unlink()  # half written by a process that was killed
    if (folder / DONE).is_file():
        (folder / CHECKPOINT).unlink(missing_ok=True)  # killed just before it was done
    elif _seed(_config(folder)) in (None, seed):
        if (folder / CHECKPOINT).is_file():
            progress.say(step, "what other settings had begun is given up")
        _empty(folder)


def _empty(folder, keep=()):
    """Removes what is in a step's folder, half written files included."""
    for path in folder.iterdir():
        if path.name in (lock.LOCK, lock.HOLDER, *keep):
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


def _seed(config):
    """The seed that a config names, or None."""
    with contextlib.suppress(KeyError, TypeError):
        return config["settings"]["profile"]["seed"]
