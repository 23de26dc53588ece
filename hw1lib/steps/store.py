"""Results on disk: keyed by a hash of what they depend on, and written atomically.

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

import numpy as np
import pandas as pd
import safetensors.torch

from hw1lib import files, progress
from hw1lib.errors import UserError
from hw1lib.loops import distributed
from hw1lib.steps import lock, step_folder
from hw1lib.steps.step_folder import CHECKPOINT, DONE, UNREADABLE

CONFIG = "config.json"
METRICS = "metrics.json"

# Limits on unfinished attempts; beyond them the oldest is deleted first.
ATTEMPT_DAYS = 30
ATTEMPT_BYTES = 10e9  # of all steps together, without those that are running
FREE_BYTES = 5e9  # on the disk: two of the largest checkpoints


def key_of(parts):
    """Return a key for plain JSON data: 16 hex digits of its SHA-256."""
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
        """Return how the step ran: seconds, device, precision, versions."""
        return self._read("run.json")

    def _read(self, name):
        """Read a JSON file; it may have been damaged since the result was checked."""
        if (data := step_folder.read_dict(self.folder / name)) is None:
            text = f"Run the same command again to compute step {self.step} again."
            raise UserError(f"{self.folder / name} is damaged. {text}")
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
        label: the step's name in lines of progress, with its seed.
        resumed: whether the step resumes from a checkpoint.
        watch: function(history), called after each epoch, or None.
    """

    def __init__(self, step, folder):
        self.step = self.label = step
        self.folder = Path(folder)
        self.checkpoint = self.folder / CHECKPOINT
        self.resumed = self.checkpoint.is_file()
        self.watch = None

    def metrics(self, data):
        """Save the step's numbers, plain data."""
        files.write_json(self.folder / METRICS, data)

    def earlier_metrics(self):
        """Return the metrics that the attempt which this one resumes has saved, a dict; {} where there are none."""
        return step_folder.read_dict(self.folder / METRICS) or {}

    def history(self, rows):
        """Save the plain numbers of each epoch; nested values belong into metrics."""
        plain = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
        files.write_text(self.folder / "history.csv", pd.DataFrame(plain).to_csv(index=False))

    def array(self, name, values):
        """Save an array as <name>.npy."""
        with files.replacing(self.folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            # Given a file, NumPy would write past Python and not notice a full disk.
            np.save(SimpleNamespace(write=file.write), values, allow_pickle=False)

    def weights(self, module):
        """Save the state of a module, or a dict of tensors, as safetensors."""
        state = module if isinstance(module, dict) else module.state_dict()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with files.replacing(self.folder / "weights.safetensors") as temporary:
            safetensors.torch.save_file(state, temporary)

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
        with files.write_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in (self.checkpoint, *self.folder.glob("*.npy")):
                path.rename(folder / path.name)
        text = f"{self.checkpoint} cannot be used ({reason}). It is kept in {folder}, and the step starts anew."
        progress.say(self.label, str(UserError(text)))


class NullDraft(Draft):
    """The draft of all processes of a step but the first; it writes nothing."""

    def _nothing(self, *_):
        pass

    metrics = history = array = weights = keep_arrays = set_aside = _nothing


class Store:
    """The steps of one build folder."""

    def __init__(self, out):
        self.out = Path(out)
        self._verified = {}  # folder -> sizes and dates of its files when their hashes were right

    def folder(self, step, key):
        """Return the folder of a step's result."""
        return self.out / "steps" / step / key

    def done(self, step, key):
        """Return whether a step is finished and none of its files has changed."""
        return (self.folder(step, key) / DONE).is_file() and not self.damage(step, key)

    def damage(self, step, key):
        """Return what is wrong with the files of a finished step, a list of phrases.

        Files are hashed the first time, and again when their size or date changes.
        """
        folder = self.folder(step, key)
        if not (folder / DONE).is_file():
            return []
        try:
            stat = step_folder.stat(folder)
            if self._verified.get(folder) == stat:
                return []
            problems = step_folder.damage(folder)
        except FileNotFoundError:
            return ["another process is writing it anew"]
        if not problems:
            self._verified[folder] = stat
        return problems

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
        """Return the finished results of a step with all keys, a list."""
        return [Result(step, marker.parent) for marker in sorted(self.out.glob(f"steps/{step}/*/{DONE}"))]

    def configs(self, step):
        """Return the configs of the finished results of a step, a list of dicts."""
        return [config for result in self.results(step) if (config := step_folder.read_dict(result.folder / CONFIG))]

    @contextlib.contextmanager
    def claim(self, step, key, config):
        """Lock the folder of a step and yield a Draft, or None if another process has finished the step.

        Leaving the block without an error writes the marker. Of several processes that share a step, the first one
        does all this, and the others get a NullDraft. An earlier attempt's checkpoint and arrays are kept.

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
        """Delete what an earlier attempt left that cannot be resumed, then old attempts; return a Draft."""
        keep = []
        with lock.write_errors(folder):
            if (folder / DONE).is_file():
                progress.say(step, f"{'; '.join(step_folder.damage(folder))}. The step is run again.")
                (folder / DONE).unlink()  # first, as nothing counts without it
            elif (folder / CHECKPOINT).is_file():
                keep = [CHECKPOINT, METRICS, *(path.name for path in folder.glob("[!.]*.npy"))]
            step_folder.empty(folder, keep)
            self._limit_attempts()
        files.write_json(folder / CONFIG, config)
        return Draft(step, folder)

    def _limit_attempts(self):
        """Delete files that nothing can use, and the oldest unfinished attempts beyond the limits above.

        An attempt is a checkpoint, even an unreadable one, with the files beside it. Steps that are running are left
        alone and not counted.
        """
        attempts = []
        for folder in self.out.glob("steps/*/*/"):
            step_folder.if_idle(folder, step_folder.tidy, folder)
            for part in (folder, folder / UNREADABLE):
                if (part / CHECKPOINT).is_file() and (
                    size := step_folder.if_idle(folder, step_folder.size, part)
                ) is not None:
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
            if step_folder.if_idle(folder, step_folder.delete, part, date):
                total, free = total - size, free + size
                progress.say(folder.parent.name, f"deleted the unfinished attempt {part}, as {reason}")

    def verify(self):
        """Hash every finished step again, and return a line for each file that has changed.

        Raises:
            UserError: no step is finished.
        """
        markers = sorted(self.out.glob(f"steps/*/*/{DONE}"))
        if not markers:
            raise UserError(f"There is no finished step in {self.out} yet. Run the report first.")
        problems = [(marker.parent, problem) for marker in markers for problem in step_folder.damage(marker.parent)]
        for run in sorted(self.out.glob("steps/*/*/run.json")):  # written just before the marker
            running = (run.parent / CHECKPOINT).is_file() or (run.parent / lock.HOLDER).is_file()
            if not running and not (run.parent / DONE).exists():
                problems.append((run.parent, f"{DONE} is missing"))
        return ["/".join((*folder.parts[-2:], problem)) for folder, problem in problems]


def _finish(draft):
    """Write the marker with the hash of each file, then delete the checkpoint."""
    results = [path for path in sorted(draft.folder.glob("[!.]*")) if path.is_file() and path != draft.checkpoint]
    files.write_json(draft.folder / DONE, {"files": {path.name: files.digest(path) for path in results}})
    draft.checkpoint.unlink(missing_ok=True)
