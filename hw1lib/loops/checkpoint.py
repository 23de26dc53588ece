"""Checkpoints: everything that a training needs to go on to the bit after it was killed."""

import time
import zipfile
from dataclasses import dataclass

import torch

from hw1lib import files, parallel
from hw1lib.errors import out_of_memory

FORMAT = 4  # raised when a checkpoint holds something else; older ones are then not used
COST = 0.05  # largest share of the time that writing them may take
INSIDE = 10  # an epoch that lasts so many times the interval is saved inside, too


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
    """

    def __init__(self, path, module, optimizer, scaler, device, every):
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
        return self.path is not None and parallel.rank() == 0 and time.monotonic() - self._saved >= wait

    def save(self, progress, finished=False):
        """Saves how far the training is; a finished one needs no optimizer any more."""
        if parallel.rank():
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
        """Puts weights and optimizer back, and returns the progress.

        With a damaged checkpoint, or one that holds code, the training starts from its beginning.
        Results beside it that came after it, or that belong to none, are removed.
        """
        if self.path is None or not self.path.is_file():
            self._forget()
            return Progress([])
        try:
            state = self._read()
            progress = Progress(**state["progress"])
            if state["optimizer"] is not None:
                self.optimizer.load_state_dict(state["optimizer"])
                if self.scaler.is_enabled() and state["scaler"]:  # none where it began in another precision
                    self.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # damage shows in many ways, all with the same remedy
            if isinstance(error, OSError | torch.AcceleratorError) or out_of_memory(error):
                raise  # the file may be whole
            reason = " ".join(str(error).split())[:200]
            print(f"{self.path} cannot be used ({reason}); the step starts from its beginning.", flush=True)
            self.path.unlink()
            self._forget()
            return Progress([])
        self._forget(but=state["beside"])
        self.module.load_state_dict(state["module"])
        return progress

    def _read(self):
        """The file's contents, held against its checksums, the module and the results beside."""
        with zipfile.ZipFile(self.path) as archive:
            if archive.testzip() is not None:
                raise ValueError("it is damaged")
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise ValueError("it is of another version")
        if _shapes(state["module"]) != _shapes(self.module.state_dict()):
            raise ValueError("it is of another network")
        here = self._beside()
        for name, expected in state["beside"].items():
            if here.get(name) != expected:
                raise ValueError(f"{name} was altered or is missing")
        return state

    def _forget(self, but=()):
        """Removes results beside the checkpoint, such as those of an epoch that is done again."""
        for path in self.path.parent.glob("*.npy") if self.path else ():
            if path.name not in but:
                path.unlink()

    def _beside(self):
        """Hashes of the results that the training has written so far."""
        return {path.name: files.digest(path) for path in sorted(self.path.parent.glob("*.npy"))}


def _shapes(state):
    return {name: tensor.shape for name, tensor in state.items()}
