"""Checkpoints, from which a killed training resumes bit-identically."""

import pickle
import time
import zipfile

import torch

from hw1lib import files
from hw1lib.errors import UserError, is_damage
from hw1lib.loops import distributed

FORMAT = 4  # raised when the contents of checkpoints change; those of another format are not used
MAX_WRITE_FRACTION = 0.05  # of the training time, spent on writing checkpoints
MID_EPOCH_FACTOR = 10  # how much rarer checkpoints inside an epoch are


class Checkpoint:
    """The latest checkpoint of a training; each replaces the one before.

    Args:
        draft: store.Draft of the step; the checkpoint is in its folder and lists the hashes of the arrays there.
        every: seconds between checkpoints at the ends of epochs; MID_EPOCH_FACTOR times as long inside an epoch, and
            longer if writing would take more than MAX_WRITE_FRACTION of the time. 0 saves at every opportunity.
    """

    def __init__(self, draft, every):
        self.draft, self.every = draft, every
        self._min_wait = 0.0  # seconds, from how long the last one took
        self._last = time.monotonic()

    def due(self, mid_epoch=False):
        """Return whether rank 0 should save now, at the end of an epoch or between two of its steps."""
        wait = max(self.every * (MID_EPOCH_FACTOR if mid_epoch else 1), self._min_wait)
        return distributed.rank() == 0 and time.monotonic() - self._last >= wait

    def save(self, history, step=0, total=None, finished=False):
        """Save the state of the training; only rank 0 writes.

        Args:
            history: one dict for each finished epoch.
            step: optimizer steps taken in the next epoch.
            total: sum of the losses of these steps, a scalar tensor; None for no steps.
            finished: whether the training has ended; the optimizer is then left out.
        """
        if distributed.rank():
            return
        started = time.monotonic()
        state = {
            "format": FORMAT,
            "module": self.module.state_dict(),
            "optimizer": None if finished else self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {"history": history, "step": step, "total": total},
            "beside": self.draft.arrays(),
        }
        with files.replacing(self.draft.checkpoint) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
        self._last = time.monotonic()
        if self.every > 0:
            self._min_wait = (self._last - started) / MAX_WRITE_FRACTION

    def restore(self, module, optimizer, scaler):
        """Restore the state of a training in all ranks, and remember the objects whose state `save` writes.

        A checkpoint that cannot be read, or that contains code, is set aside, and training starts over. Arrays that
        the checkpoint does not list are deleted.

        Returns:
            history, step and total as for `save`; [], 0 and None if there is no checkpoint.

        Raises:
            UserError: the ranks see different checkpoints.
            Exception: a cause other than the file, such as memory, the device or a bug; the file is left alone.
        """
        self.module, self.optimizer, self.scaler = module, optimizer, scaler
        with distributed.rank0_first():
            history, step, total = self._restore()
        if distributed.broadcast((len(history), step)) != (len(history), step):
            text = f"{self.draft.folder} must be on a disk that all of them share."
            raise UserError(f"Processes see different checkpoints: {text}")
        return history, step, total

    def _restore(self):
        if not self.draft.checkpoint.is_file():
            self.draft.keep_arrays(())
            return [], 0, None
        try:
            state = self._read()
            if state["optimizer"] is not None:
                self.optimizer.load_state_dict(state["optimizer"])
                self.scaler.load_state_dict(state["scaler"])
        except Exception as error:
            if isinstance(error, TypeError | AttributeError) or not is_damage(error):  # a bug, or a change in torch
                raise
            reasons = {pickle.UnpicklingError: "it holds more than plain data", ValueError: str(error)}
            self.draft.set_aside(reasons.get(type(error), "it is damaged"))
            return [], 0, None
        self.draft.keep_arrays(state["beside"])
        self.module.load_state_dict(state["module"])
        return tuple(state["progress"].values())

    def _read(self):
        """Return the checkpoint, after checking its checksums, its network and the arrays beside it."""
        with zipfile.ZipFile(self.draft.checkpoint) as archive:
            if archive.testzip() is not None:
                raise ValueError("it is damaged")
        state = torch.load(self.draft.checkpoint, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise ValueError("it was written by another version")
        states = state["module"], self.module.state_dict()
        saved, expected = ({name: tensor.shape for name, tensor in part.items()} for part in states)
        if saved != expected:
            raise ValueError("it belongs to another network")
        digests = self.draft.arrays()
        for name, expected in state["beside"].items():
            if digests.get(name) != expected:
                raise ValueError(f"{name} was altered or is missing")
        return state
