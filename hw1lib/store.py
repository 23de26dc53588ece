"""Results on disk: keyed by what made them, written atomically.

A finished step is a folder steps/<step>/<key>/ that holds config.json (what made it),
metrics.json, history.csv, arrays, weights and, written last, done.json with the SHA-256 of
every other file. Without that marker nothing in the folder counts as done.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import safetensors.torch

from hw1lib.errors import UserError

DONE = "done.json"
CHECKPOINT = "checkpoint.pt"
LOCK = ".lock"


def key_of(parts):
    """A short key for plain JSON data: 16 hex digits of its SHA-256."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path):
    """SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path beside `path`; on success it is synced and takes its place.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private; ours are ordinary
        os.replace(temporary, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch's and theirs
        raise UserError(
            f"{path} could not be written: {getattr(error, 'strerror', None) or error}. Free some "
            "disk space or mend the permissions of its folder, then run the same command again; "
            "what was finished before is kept."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, data):
    """Writes plain data as indented JSON, atomically."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path):
    """Reads a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


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
        return read_json(self.folder / "metrics.json")

    @property
    def history(self):
        """One row an epoch, a DataFrame; empty for a step without epochs."""
        path = self.folder / "history.csv"
        return pd.read_csv(path) if path.read_text().strip() else pd.DataFrame()

    @property
    def run(self):
        """How it ran: seconds, device, precision, versions."""
        return read_json(self.folder / "run.json")

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
        write_json(self.folder / "metrics.json", data)

    def history(self, rows):
        """Saves the plain numbers of each epoch; nested values belong into metrics."""
        plain = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
        write_text(self.folder / "history.csv", pd.DataFrame(plain).to_csv(index=False))

    def array(self, name, values):
        with replacing(self.folder / f"{name}.npy") as temporary:
            with open(temporary, "wb") as file:
                np.save(file, values, allow_pickle=False)

    def weights(self, module):
        """Saves a module's state, or a dict of tensors, as safetensors."""
        state = module if isinstance(module, dict) else module.state_dict()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with replacing(self.folder / "weights.safetensors") as temporary:
            safetensors.torch.save_file(state, temporary)


class Store:
    """The steps of one build folder."""

    def __init__(self, out):
        self.out = Path(out)

    def folder(self, step, key):
        return self.out / "steps" / step / key

    def done(self, step, key):
        return (self.folder(step, key) / DONE).is_file()

    def status(self, step, key):
        """done, to resume or to run."""
        if self.done(step, key):
            return "done"
        return "to resume" if (self.folder(step, key) / CHECKPOINT).is_file() else "to run"

    def result(self, step, key):
        return Result(step, self.folder(step, key))

    @contextlib.contextmanager
    def claimed(self, step, key, config):
        """Locks a step's folder and yields a Draft, or None where another process finished it.

        Leaving the block without an error writes the done marker. The lock is the operating
        system's, so it ends with its holder however that ends.
        """
        folder = self.folder(step, key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The folder {folder} cannot be made: {error.strerror}. Choose another one "
                "with --out, or mend its permissions."
            ) from error
        with filelock.FileLock(folder / LOCK):
            if self.done(step, key):
                yield None
                return
            write_json(folder / "config.json", config)
            draft = Draft(step, folder)
            yield draft
            draft.checkpoint.unlink(missing_ok=True)
            for path in folder.glob(".*"):  # half written by a run that was killed
                if path.name != LOCK:
                    path.unlink()
            results = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            hashes = {path.name: file_hash(path) for path in results if path.name != DONE}
            write_json(folder / DONE, {"files": hashes})

    def verify(self):
        """Re-hashes every finished step; returns one line for each file that is not as written."""
        problems = []
        markers = sorted(self.out.glob(f"steps/*/*/{DONE}"))
        if not markers:
            raise UserError(f"{self.out} holds no finished step yet. Run the report first.")
        for marker in markers:
            name = "/".join(marker.parent.parts[-2:])
            try:
                files = read_json(marker)["files"]
            except (ValueError, KeyError, TypeError):
                problems.append(f"{name}/{DONE} is damaged")
                continue
            for file, expected in files.items():
                path = marker.parent / file
                if not path.is_file():
                    problems.append(f"{name}/{file} is missing")
                elif file_hash(path) != expected:
                    problems.append(f"{name}/{file} was altered")
        return problems
