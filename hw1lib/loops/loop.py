"""THE training loop. Every network is trained here."""

import contextlib
import itertools
import math
import random
import signal
import threading

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from hw1lib import progress
from hw1lib.errors import Diverged, UserError
from hw1lib.loops import distributed
from hw1lib.loops.checkpoint import Checkpoint, Progress
from hw1lib.loops.device import Arriving, autocast, dtype


def seed_everything(*numbers):
    """Seeds Python, NumPy and torch from whole numbers such as (seed, epoch, step); returns what with."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)  # byol-pytorch's own augmentation draws from it
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def make_optimizer(module, settings):
    """Return Adam, AdamW or SGD over the parameters that need a gradient; the last two spare biases and norms decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adam":
        return torch.optim.Adam(trained, settings.lr, weight_decay=settings.weight_decay, fused=True)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.lr, fused=True)
    # Not fused: torch 2.14 would go on from memory as it is where float16's first step overflows and is left out.
    return torch.optim.SGD(groups, settings.lr, momentum=0.9)


@contextlib.contextmanager
def whole_step(optimizer):
    """Make an optimizer's step in this block whole or absent: an interrupt (SIGINT) waits until it has ended.

    A fused optimizer is shown the kernels of convolutions on CPUs as they lie in memory, channels last: torch 2.14's
    Adam otherwise copies gradients into another order, which it does not use: a third of its time. However the step
    ends, weights and gradients are put back.
    """
    weights = itertools.chain(*(group["params"] for group in optimizer.param_groups if optimizer.defaults["fused"]))
    kernels = [w for w in weights if w.ndim == 4 and w.device.type == "cpu" and w.grad is not None]
    before = [(weight, weight.data, weight.grad) for weight in kernels]
    with uninterrupted():
        try:
            for weight, values, gradient in before:
                _put(weight, values.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1))
            yield
        finally:
            for tensors in before:
                _put(*tensors)


def _put(weight, values, gradient):
    """Give a parameter values and a gradient of another shape."""
    weight.grad = None
    weight.data = values
    weight.grad = gradient


@contextlib.contextmanager
def uninterrupted():
    """Hold an interrupt (SIGINT) back until the block has ended."""
    handler, pending = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # interrupts go to the main thread, or nobody handles them
        return
    signal.signal(signal.SIGINT, lambda *arguments: pending.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending:
            handler(*pending[0])


def rate(progress, settings):
    """The learning rate after `progress` epochs: linear warm-up, then constant or cosine."""
    warm = settings.warmup_epochs
    if progress < warm:
        return settings.lr * progress / warm
    if settings.schedule == "constant":
        return settings.lr
    done = (progress - warm) / max(settings.epochs - warm, 1e-9)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def train(
    module,
    loss,
    batches,
    settings,
    device,
    *,
    label,
    evaluate=None,
    after_step=None,
    checkpoint=None,
    checkpoint_every=60.0,
    watch=None,
):
    """THE loop.

    Batches seed all generators anew for each step, so a run that goes on from a checkpoint takes the
    same steps as one that was never interrupted.

    Args:
        module: what is trained: its parameters that require a gradient.
        loss: function(module, *batch) -> scalar tensor.
        batches: function(epoch, steps to leave out) -> iterable of batches, with a length.
        settings: settings.Optimization.
        device: torch device that `module` is on.
        label: what its progress lines begin with.
        evaluate: function(epoch) -> dict of plain numbers (lists allowed), after each epoch.
        after_step: function(share of the training that is done, up to 1), called after each
            optimizer step, such as a target network's update.
        checkpoint: path that a checkpoint is written to and resumed from.
        checkpoint_every: seconds between two of them at ends of epochs; inside of long epochs ten
            times that.
        watch: function(history so far), called after each epoch, such as a live figure.

    Returns:
        One dict an epoch: epoch, loss (mean over its batches), lr (at its end) and what
        `evaluate` gave.

    Raises:
        Diverged: a loss or a weight is not finite.
    """
    loss = distributed.wrapped(module, compiled(loss) if settings.compile else loss, device)
    optimizer = make_optimizer(module, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype(settings.precision, device) is torch.float16)
    saved = Checkpoint(checkpoint, module, optimizer, scaler, device, checkpoint_every, label)
    with distributed.first():
        resumed = saved.load()
    came = len(resumed.history), resumed.step
    if distributed.agreed(came) != came:
        raise UserError(f"{label}: processes see different checkpoints. {checkpoint.parent} must be on a shared disk.")
    history, (steps, _) = resumed.history, steps_of(batches, settings)
    finite = Finite(settings, batches)

    for epoch in range(len(history) + 1, settings.epochs + 1):
        module.train()
        start, total = 0, torch.zeros((), device=device)
        if resumed.step:  # only the first epoch that is left can have begun already
            start, total = resumed.step, resumed.total.to(device)
            resumed = Progress([])

        for step, value in train_one_epoch(loss, batches, optimizer, scaler, settings, device, epoch, start, label):
            finite.note(value, epoch, step)
            if after_step is not None:
                after_step((epoch - 1 + step / steps) / settings.epochs)
            total += value
            if step < steps and saved.due(inside=True):
                finite.check(module, epoch)
                saved.save(Progress(history, step, total))
        finite.check(module, epoch)

        row = {"epoch": epoch, "loss": float(total) / steps, "lr": optimizer.param_groups[-1]["lr"]}
        if evaluate is not None:
            module.eval()
            with torch.no_grad(), autocast(settings.precision, device):
                row.update(evaluate(epoch))
        history.append(row)
        progress.epoch(label, row, settings.epochs)
        if watch is not None:
            watch(history)

        if epoch == settings.epochs and checkpoint:
            saved.save(Progress(history), finished=True)
        elif saved.due():
            saved.save(Progress(history))
    return history


def steps_of(batches, settings):
    """How many optimizer steps an epoch has, and how many batches each of them works on."""
    parts = min(settings.accumulate, len(batches))
    return len(batches) // parts, parts


def train_one_epoch(loss, batches, optimizer, scaler, settings, device, epoch, start=0, label=""):
    """Trains on the batches of one epoch; yields the number of each step, from 1, and its loss.

    Nothing in here waits for the device.

    Args:
        loss: function(*batch) -> scalar tensor.
        batches: function(epoch, batches to leave out) -> iterable of batches, with a length; settings.accumulate of
            them make one step.
        optimizer: torch optimizer over what is trained.
        scaler: torch.amp.GradScaler; but for float16 it does nothing.
        settings: settings.Optimization.
        device: torch device that the loss is computed on.
        epoch: its number, from 1.
        start: how many of its steps were taken before.
        label: what the progress bar begins with.
    """
    steps, parts = steps_of(batches, settings)
    left = iter(batches(epoch, start * parts))
    for step in progress.bar(range(start + 1, steps + 1), f"{label} epoch {epoch}", steps, start):
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch - 1 + (step - 0.5) / steps, settings)  # at its middle: the last one trains, too

        optimizer.zero_grad()
        total = 0
        for part, batch in enumerate(itertools.islice(left, parts), 1):
            with autocast(settings.precision, device), distributed.apart(loss, part < parts):
                value = loss(*batch) / parts
            scaler.scale(value).backward()
            total = total + value.detach()
        with whole_step(optimizer):
            scaler.step(optimizer)
            scaler.update()
        yield step, total


class Finite:
    """Stops a training whose losses or weights are not finite.

    Each loss is looked at when the next step has been ordered: a GPU would otherwise stand still at each.

    Args:
        settings: settings.Optimization.
        batches: what is trained on, for the names of a batch's files.
    """

    def __init__(self, settings, batches):
        self.settings, self.batches = settings, batches
        self._noted = None

    def note(self, value, epoch, step):
        """Takes the loss of a step, and looks at the one before."""
        noted = Arriving(value), epoch, step
        self._look()
        self._noted = noted

    def check(self, module, epoch):
        """Looks at the last loss and at all weights, as the gradient of a finite loss may not be finite."""
        self._look()
        if not get_total_norm(module.parameters(), math.inf).isfinite():
            raise Diverged(f"a weight is not finite any more in epoch {epoch}", self.settings.lr)

    def _look(self):
        if self._noted is None:
            return
        (value, epoch, step), self._noted = self._noted, None
        if not math.isfinite(number := value.get().item()):
            steps, parts = steps_of(self.batches, self.settings)
            said = f"the loss is {number} in epoch {epoch}, step {step} of {steps}"
            its = range((step - 1) * parts + 1, step * parts + 1)
            raise Diverged(said, self.settings.lr, [name for part in its for name in self.batches.files(epoch, part)])


def compiled(loss):
    """Return the loss through torch.compile; what that cannot compile, or has no compiler for, runs as it is."""
    quick = torch.compile(loss, options={"fallback_random": True})  # dropout draws what it draws without it
    return torch._dynamo.config.patch(suppress_errors=True)(quick)


def for_step(draft, profile):
    """What `train` has to know of the step that it works for, as keyword arguments; `draft` is its store.Draft."""
    every, watch = profile.checkpoint_every, draft.watch
    return dict(label=draft.label, checkpoint=draft.checkpoint, checkpoint_every=every, watch=watch)
