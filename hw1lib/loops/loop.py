"""The training loop, for every network of the workbook."""

import contextlib
import itertools
import math
import signal
import threading

import torch
from torch.nn.utils import get_total_norm

from hw1lib import progress
from hw1lib.errors import Diverged
from hw1lib.loops import distributed
from hw1lib.loops.device import autocast, dtype

CHECK_EVERY = 20  # number of steps whose losses are read from the device together


def train(module, loss, batches, settings, device, checkpoint, evaluate=None, after_step=None):
    """Train a module, resuming from its checkpoint if there is one.

    Batches seed all random generators anew for each step, so a resumed training takes the same steps as one that was
    never interrupted.

    Args:
        module: torch module; its parameters that require a gradient are trained.
        loss: function(module, *batch) -> scalar tensor.
        batches: function(epoch, number of batches to skip) -> iterable of batches, with a length; see `batches`.
        settings: settings.Optimization.
        device: torch device of `module`.
        checkpoint: checkpoint.Checkpoint; its draft names the training in progress lines.
        evaluate: function(epoch) -> dict of plain numbers (lists allowed), called after each epoch.
        after_step: function(epoch, step, steps an epoch), both from 1, called after each optimizer step, for example
            to update a target network.

    Returns:
        One dict for each epoch: epoch, loss (mean over its steps), lr (of its last step) and what `evaluate` returned.

    Raises:
        Diverged: a loss or a weight is not finite.
    """
    loss = distributed.data_parallel(module, compile_loss(loss) if settings.compile else loss, device)
    optimizer = make_optimizer(module, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype(settings.precision, device) is torch.float16)
    history, resume_step, total = checkpoint.restore(module, optimizer, scaler)
    guard, (steps, _) = DivergenceGuard(settings, batches), step_count(batches, settings)
    label, watch = checkpoint.draft.label, checkpoint.draft.watch

    for epoch in range(len(history) + 1, settings.epochs + 1):
        module.train()
        total = torch.zeros((), device=device) if total is None else total.to(device)
        training = train_one_epoch(loss, batches, optimizer, scaler, settings, device, epoch, resume_step, label)
        for step, value in training:
            guard.add(value, epoch, step)
            if after_step is not None:
                after_step(epoch, step, steps)
            total += value
            if step < steps and checkpoint.due(mid_epoch=True):
                guard.check(module, epoch)
                checkpoint.save(history, step, total)
        guard.check(module, epoch)

        row = {"epoch": epoch, "loss": float(total) / steps, "lr": optimizer.param_groups[-1]["lr"]}
        resume_step, total = 0, None
        if evaluate is not None:
            module.eval()
            with torch.no_grad(), autocast(settings.precision, device):
                row.update(evaluate(epoch))
        history.append(row)
        progress.epoch(label, row, settings.epochs)
        if watch is not None:
            watch(history)

        finished = epoch == settings.epochs
        if finished or checkpoint.due():
            checkpoint.save(history, finished=finished)
    return history


def train_one_epoch(loss, batches, optimizer, scaler, settings, device, epoch, start=0, label=""):
    """Train for one epoch; yield (step, loss) after each optimizer step, counted from 1.

    This never waits for the device, where the loss stays as a tensor.

    Args:
        loss: function(*batch) -> scalar tensor.
        batches: as for `train`; settings.accumulate of them make one step.
        optimizer: torch optimizer of the parameters that are trained.
        scaler: torch.amp.GradScaler, enabled only for float16.
        settings: settings.Optimization.
        device: torch device of the loss.
        epoch: number of the epoch, from 1.
        start: number of steps of this epoch that were already taken.
        label: name of the training in the progress bar.
    """
    steps, micro_batches = step_count(batches, settings)
    remaining = iter(batches(epoch, start * micro_batches))
    for step in progress.bar(range(start + 1, steps + 1), f"{label} epoch {epoch}", steps, start):
        for group in optimizer.param_groups:  # the schedule's value at the middle of the step: the last one is not 0
            group["lr"] = learning_rate(epoch - 1 + (step - 0.5) / steps, settings)

        optimizer.zero_grad()
        total = 0
        for number, batch in enumerate(itertools.islice(remaining, micro_batches), 1):
            with autocast(settings.precision, device), distributed.no_sync(loss, number < micro_batches):
                value = loss(*batch) / micro_batches
            scaler.scale(value).backward()
            total = total + value.detach()
        with atomic_step(optimizer):
            scaler.step(optimizer)
            scaler.update()
        yield step, total


def step_count(batches, settings):
    """Return the optimizer steps of an epoch, and the micro-batches of each step."""
    micro_batches = min(settings.accumulate, len(batches))
    return len(batches) // micro_batches, micro_batches


def learning_rate(epochs, settings):
    """Return the learning rate after `epochs` epochs (a float): linear warm-up, then constant or cosine decay."""
    warmup = settings.warmup_epochs
    if epochs < warmup:
        return settings.lr * epochs / warmup
    if settings.schedule == "constant":
        return settings.lr
    done = (epochs - warmup) / max(settings.epochs - warmup, 1e-9)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def make_optimizer(module, settings):
    """Return Adam, AdamW or SGD for the parameters that require a gradient.

    AdamW and SGD do not decay biases and normalisation weights.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adam":
        return torch.optim.Adam(trained, settings.lr, weight_decay=settings.weight_decay, fused=True)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.lr, fused=True)
    # Not fused: torch 2.14 uses uninitialised momentum if float16's first step overflows and is skipped.
    return torch.optim.SGD(groups, settings.lr, momentum=0.9)


@contextlib.contextmanager
def atomic_step(optimizer):
    """Complete an optimizer step before an interrupt (SIGINT) is handled, and make fused steps faster on CPUs.

    Convolution weights are channels last in memory. For the step they are permuted to that order, because torch
    2.14's fused Adam otherwise copies their gradients, which takes a third of its time. They are put back however the
    step ends.
    """
    weights = itertools.chain(*(group["params"] for group in optimizer.param_groups if optimizer.defaults["fused"]))
    kernels = [(w, w.data, w.grad) for w in weights if w.ndim == 4 and w.device.type == "cpu" and w.grad is not None]
    with _defer_interrupts():
        try:
            for weight, values, gradient in kernels:
                _assign(weight, values.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1))
            yield
        finally:
            for tensors in kernels:
                _assign(*tensors)


def _assign(weight, values, gradient):
    """Replace the data and the gradient of a parameter by tensors of another shape."""
    weight.grad = None
    weight.data = values
    weight.grad = gradient


@contextlib.contextmanager
def _defer_interrupts():
    """Handle an interrupt (SIGINT) only when the block has ended."""
    handler, pending = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # only the main thread is interrupted
        return
    signal.signal(signal.SIGINT, lambda *arguments: pending.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending:
            handler(*pending[0])


class DivergenceGuard:
    """Stop a training whose losses or weights are not finite.

    Losses are read CHECK_EVERY at a time, so the GPU rarely waits.

    Args:
        settings: settings.Optimization.
        batches: batches of the training, whose files the error names.
    """

    def __init__(self, settings, batches):
        self.settings, self.batches = settings, batches
        self._losses = []  # of steps that were not checked yet

    def add(self, loss, epoch, step):
        """Store the loss of this step."""
        self._losses.append((loss, epoch, step))
        if len(self._losses) == CHECK_EVERY:
            self._check_losses()

    def check(self, module, epoch):
        """Check all losses, weights and BatchNorm's statistics: a finite loss may have an infinite gradient."""
        self._check_losses()
        weights = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
        if not get_total_norm(weights, math.inf).isfinite():
            raise Diverged(f"a weight is no longer finite in epoch {epoch}", self.settings.lr)

    def _check_losses(self):
        losses = torch.stack([loss for loss, *_ in self._losses]).tolist() if self._losses else []
        for loss, (_, epoch, step) in zip(losses, self._losses):
            if not math.isfinite(loss):
                steps, micro_batches = step_count(self.batches, self.settings)
                numbers = range((step - 1) * micro_batches + 1, step * micro_batches + 1)
                names = [name for number in numbers for name in self.batches.files(epoch, number)]
                raise Diverged(f"the loss is {loss} in epoch {epoch}, step {step} of {steps}", self.settings.lr, names)
        self._losses.clear()


def compile_loss(loss):
    """Return the loss under torch.compile; what it cannot compile runs in eager mode."""
    compiled = torch.compile(loss, options={"fallback_random": True})  # dropout draws as in eager mode
    return torch._dynamo.config.patch(suppress_errors=True)(compiled)
