"""Checkpoints: everything that a training needs to go on to the bit after it was killed."""

import pickle
import shutil
import struct
import time
import zipfile
import zlib
from dataclasses import dataclass

import torch

from hw1lib import files, progress
from hw1lib.errors import UserError, is_damage
from hw1lib.loops import distributed

FORMAT = 4  # raised when a checkpoint holds something else; older ones are then not used
COST = 0.05  # largest share of the time that writing them may take
INSIDE = 10  # an epoch that lasts so many times the interval is saved inside, too
UNREADABLE = "unreadable"  # folder beside a checkpoint: one that could not be read, with its arrays
# What zipfile, torch.load and Optimizer.load_state_dict raise at contents that they cannot use. A TypeError or an
# AttributeError is a bug of ours or a change in torch.
UNREADABLE_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, EOFError)
UNREADABLE_ERRORS += (ValueError, LookupError, ArithmeticError, RuntimeError, OSError)


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        history: one dict for each finished epoch.
        step: optimizer steps taken in the epoch that follows; 0 at its beginning.
        total: sum of that epoch's losses so far, a scalar tensor; None at its beginning.
    """

    history: list
    step: int = 0
    total: torch.Tensor | None = None


class Checkpoint:
    """The one checkpoint of a training, each written over the one before.

    Args:
        path: its file, or None: then nothing is ever saved. Results that lie beside it belong to
            the training, too.
        module: what is trained, with what follows it, such as a moving average.
        optimizer: its optimizer.
        scaler: its torch.amp.GradScaler.
        device: torch device of both.
        every: seconds between two of them, inside an epoch ten times that; more where writing
            would take over a twentieth of the time. 0: at every chance, whatever it costs.
        label: name of the training, which begins its messages.
    """

    def __init__(self, path, module, optimizer, scaler, device, every, label="checkpoint"):
        self.label = label
        self.path = path
        self.module = module
        self.optimizer = optimizer
        self.scaler = scaler
        self.device = device
        self.every = every
        self._least = 0.0  # seconds to wait, by what the last one took
        self._saved = time.monotonic()

    def due(self, inside=False):
        """Whether it is time for one, at the end of an epoch or inside of it."""
        wait = max(self.every * (INSIDE if inside else 1), self._least)
        return self.path is not None and distributed.rank() == 0 and time.monotonic() - self._saved >= wait

    def save(self, progress, finished=False):
        """Saves how far the training is; a finished one needs no optimizer any more."""
        if distributed.rank():
            return
        started = time.monotonic()
        state = {
            "format": FORMAT,
            "module": self.module.state_dict(),
            "optimizer": None if finished else self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": vars(progress),
            "beside": self._beside(),
        }
        with files.replacing(self.path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
        self._saved = time.monotonic()
        if self.every > 0:
            self._least = (self._saved - started) / COST

    def load(self):
        """Restore weights, optimizer and scaler, and return the progress; Progress([]) where there is no checkpoint.

        A checkpoint that cannot be read, or that holds code, is moved aside with the results beside it, and the
        training starts from its beginning. Results that the checkpoint does not vouch for are deleted.

        Raises:
            Exception: whatever is no fault of the file, such as memory, the device or a bug; the file stays.
        """
        if self.path is None or not self.path.is_file():
            self._delete_arrays()
            return Progress([])
        try:
            state = self._read()
            if state["optimizer"] is not None:
                self.optimizer.load_state_dict(state["optimizer"])
        except UNREADABLE_ERRORS as error:
            if not is_damage(error):
                raise
            reasons = {pickle.UnpicklingError: "it holds more than plain data", ValueError: str(error)}
            self._move_aside(reasons.get(type(error), "it is damaged"))
            return Progress([])
        if state["optimizer"] is not None and self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])  # none where it began in another precision
        self._delete_arrays(keep=state["beside"])
        self.module.load_state_dict(state["module"])
        return Progress(**state["progress"])

    def _read(self):
        """Return the file's contents, checked against its checksums, the module and the results beside it."""
        with zipfile.ZipFile(self.path) as archive:
            if archive.testzip() is not None:
                raise ValueError("it is damaged")
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError("it is of another version")
        kinds = {"module": dict, "optimizer": dict | None, "scaler": dict, "progress": dict, "beside": dict}
        for name, kind in kinds.items():
            if name not in state or not isinstance(state[name], kind):
                raise ValueError(f"its {name} is damaged")
        progress, scaler = state["progress"], state["scaler"]
        if progress.keys() != vars(Progress([])).keys() or not isinstance(progress["history"], list):
            raise ValueError("its progress is damaged")
        if self.scaler.is_enabled() and scaler and scaler.keys() != self.scaler.state_dict().keys():
            raise ValueError("its scaler is damaged")
        if _shapes(state["module"]) != _shapes(self.module.state_dict()):
            raise ValueError("it is of another network")
        digests = self._beside()
        for name, expected in state["beside"].items():
            if digests.get(name) != expected:
                raise ValueError(f"{name} was altered or is missing")
        return state

    def _move_aside(self, reason):
        """Move the checkpoint and the results beside it into a folder of their own, in place of earlier ones."""
        folder = self.path.with_name(UNREADABLE)
        with files.naming(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in (self.path, *self.path.parent.glob("*.npy")):
                path.rename(folder / path.name)
        text = f"{self.path} cannot be used ({reason}). It is kept in {folder}, and the step starts from its beginning."
        progress.say(self.label, str(UserError(text)))

    def _delete_arrays(self, keep=()):
        """Delete results beside the checkpoint, such as those of an epoch that is done again."""
        for path in self.path.parent.glob("*.npy") if self.path else ():
            if path.name not in keep:
                path.unlink()

    def _beside(self):
        """Hashes of the results that the training has written so far."""
        return {path.name: files.digest(path) for path in sorted(self.path.parent.glob("*.npy"))}


def _shapes(state):
    return {name: getattr(tensor, "shape", None) for name, tensor in state.items()}
