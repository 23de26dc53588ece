"""The training loop: bit-identical resumption, schedules, optimizers, precision and divergence."""

import contextlib
import copy
import itertools
import math
import random
import signal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import progress
from hw1lib.errors import Diverged
from hw1lib.loops import loop
from hw1lib.loops.batches import ArrayBatches
from hw1lib.loops.checkpoint import Checkpoint
from hw1lib.settings import Optimization
from hw1lib.steps.store import Draft
from tests import processes

CPU = torch.device("cpu")


def settings(**changes):
    return Optimization(**{"epochs": 4, "batch_size": 8, "lr": 1e-2, "precision": "float32", **changes})


class Stopped(Exception):
    pass


def fit(chosen=None, *, weights_seed=0, seed=5, stop=None, folder=None, every=-1.0, **options):
    """Train a small network with BatchNorm and dropout on images with random noise; return its state and history.

    `stop` is called with (epoch, step) before each step. A checkpoint in `folder` is saved after every step.
    """
    torch.manual_seed(weights_seed)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 36, 3)
    module, position, chosen = nn.Sequential(*layers), [0, 0], chosen or settings()
    generator = torch.Generator().manual_seed(7)
    images, labels = torch.rand(20, 3, 8, 8, generator=generator), torch.arange(20) % 3

    def loss(module, batch, targets):
        assert module.training
        position[1] += 1
        if stop:
            stop(*position)
        return F.cross_entropy(module(batch + 0.1 * torch.rand_like(batch)), targets)

    class Batches(ArrayBatches):
        def __call__(self, epoch, start=0):
            position[:] = [epoch, start]
            return super().__call__(epoch, start)

    def evaluate(epoch):
        assert not module.training and not torch.is_grad_enabled()
        correct = (module(images).argmax(1) == labels).float()
        noise = [random.random(), np.random.rand(), float(torch.rand(()))]
        return {"accuracy": float(correct.mean()), "noise": noise, "nested": [epoch, [1, 2]]}

    batches = Batches([images, labels], chosen.batch_size, seed, CPU)
    checkpoint = Checkpoint(Draft("finetune-A", folder), every) if folder else None
    options = {"evaluate": evaluate, "label": "finetune-A", "checkpoint": checkpoint} | options
    return module.state_dict(), loop.train(module, loss, batches, chosen, CPU, **options)


def assert_same(one, two):
    assert one[1] == two[1] and one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])


def interrupt(folder, epoch, step, *chosen, **options):
    """Train until before a step, with a checkpoint after each."""

    def stop(*now):
        if now == (epoch, step):
            raise Stopped

    with pytest.raises(Stopped):
        fit(*chosen, folder=folder, stop=stop, **options)
    assert (folder / "checkpoint.pt").is_file()


# --- resuming


@pytest.mark.parametrize("place", [(2, 1), (3, 2)], ids=["epoch begins", "inside an epoch"])
@pytest.mark.parametrize(
    ("optimizer", "precision"), [("adam", "float32"), ("adamw", "float32"), ("sgd", "float32"), ("adamw", "float16")]
)
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, optimizer, precision, place):
    """No step is repeated, and `watch` gets the whole history."""
    chosen = settings(optimizer=optimizer, precision=precision, schedule="cosine", warmup_epochs=1.5, weight_decay=0.1)
    steps, before, after, watched = [], [], [], []
    whole = fit(chosen, after_step=lambda *now: steps.append(now))
    interrupt(tmp_path, *place, chosen, after_step=lambda *now: before.append(now))
    options = {"after_step": lambda *now: after.append(now), "watch": lambda history: watched.append(len(history))}
    assert_same(fit(chosen, weights_seed=99, folder=tmp_path, **options), whole)
    assert before + after == steps == [(epoch, step, 2) for epoch in range(1, 5) for step in (1, 2)]
    assert watched == list(range(place[0], 5))


def test_a_run_may_be_stopped_again_and_again_and_is_not_trained_again_when_finished(tmp_path):
    """An interrupted evaluation is repeated. At the end, no optimizer is kept."""
    for epoch in (2, 3, 4):
        interrupt(tmp_path, epoch, 2)
    interrupt(tmp_path, 0, 0, evaluate=Mock(side_effect=Stopped))
    whole = fit()
    assert_same(fit(folder=tmp_path), whole)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"] is None
    assert_same(fit(weights_seed=99, folder=tmp_path, stop=lambda *_: pytest.fail("trained")), whole)


def test_all_draws_depend_on_the_seed_alone():
    """Of Python, NumPy and torch, in each of four epochs."""

    def draws(**options):
        return [number for row in fit(**options)[1] for number in row["noise"]]

    first = draws()
    assert len(set(first)) == 3 * 4 and draws(weights_seed=9) == first and not set(first) & set(draws(seed=6))


# --- an epoch


class Line:
    """A linear network whose loss is `value` at step `place`; it notes weights, losses and rows of each step."""

    def __init__(self, rows=None, place=None, value=math.nan):
        torch.manual_seed(0)
        self.module = nn.Linear(2, 1)
        self.rows = torch.rand(10, 2) if rows is None else rows
        self.names = [f"{number:02d}.png" for number in range(len(self.rows))]
        self.place, self.value = place, value
        self.before, self.losses, self.seen = [], [], []

    def loss(self, module, rows):
        self.before.append(self.module.weight.detach().clone())
        self.seen.append(rows)
        value = self.module(rows).pow(2).mean() * (self.value if len(self.before) == self.place else 1)
        self.losses.append(value.item())
        return value

    def train(self, folder=None, after_step=None, **chosen):
        """Train for three epochs of five steps, unless settings say otherwise."""
        chosen = settings(**{"epochs": 3, "optimizer": "sgd", "batch_size": 2} | chosen)
        batches = ArrayBatches([self.rows], chosen.micro_batch, 3, CPU, names=self.names)
        checkpoint = Checkpoint(Draft("finetune-A", folder), -1.0) if folder else None
        options = dict(label="finetune-A", checkpoint=checkpoint, after_step=after_step)
        return loop.train(self.module, self.loss, batches, chosen, CPU, **options)


def test_history_has_the_mean_loss_and_the_last_rate_of_each_epoch():
    line, cosine = Line(), settings(epochs=3, schedule="cosine")
    history = line.train(schedule="cosine")
    means = [pytest.approx(mean, rel=1e-6) for mean in np.reshape(line.losses, (3, 5)).mean(axis=1)]
    expected = [
        {"epoch": n, "loss": mean, "lr": loop.learning_rate(n - 0.1, cosine)} for n, mean in enumerate(means, 1)
    ]
    assert history == expected


@pytest.mark.parametrize(("rows", "steps"), [(10, 5), (13, 6), (1, 1)])
def test_after_step_is_called_after_each_step(rows, steps):
    line, calls = Line(torch.ones(rows, 2)), []

    def after_step(*now):
        assert not torch.equal(line.module.weight, line.before[-1])
        calls.append(now)

    line.train(epochs=2, after_step=after_step)
    assert calls == [(epoch, step + 1, steps) for epoch in (1, 2) for step in range(steps)]


def test_watch_is_called_after_each_progress_line_with_the_history_so_far(monkeypatch):
    events = []
    monkeypatch.setattr(progress, "emit", lambda record: events.append(record["line"]))
    watched = fit(watch=lambda history: events.append([dict(row) for row in history]))
    assert events[1::2] == [watched[1][: n + 1] for n in range(4)]
    assert all(line.startswith(f"finetune-A  epoch {n + 1}/4  loss ") for n, line in enumerate(events[::2]))
    assert_same(watched, fit())


@processes.float64()
def test_micro_batches_make_the_same_step():
    """Ten rows are two batches of four, or five micro-batches of two. An infinite loss names all four files."""
    whole, parts = Line(), Line()
    one, two = whole.train(batch_size=4), parts.train(batch_size=4, accumulate=2)
    assert len(parts.losses) == 2 * len(whole.losses) == 12
    torch.testing.assert_close(parts.module.weight, whole.module.weight)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one])
    assert [row["lr"] for row in two] == [row["lr"] for row in one]
    with pytest.raises(Diverged, match="step 2 of 2") as caught:
        Line(place=4).train(batch_size=4, accumulate=2)
    assert len(caught.value.files) == 4


# --- schedules and optimizers


@pytest.mark.parametrize("warmup", [0, 0.5, 3])
def test_the_learning_rate_warms_up_and_then_decays_or_stays(monkeypatch, warmup):
    """Each step uses the rate at its middle, so the last one is not 0."""
    cosine, constant = (settings(lr=0.2, epochs=10, warmup_epochs=warmup, schedule=s) for s in ("cosine", "constant"))
    decay = [loop.learning_rate(warmup + (10 - warmup) * i / 100, cosine) for i in range(101)]
    assert decay[0] == pytest.approx(0.2) and decay[-1] == pytest.approx(0, abs=1e-12)
    assert decay[25] == pytest.approx(0.1 * (1 + math.sqrt(0.5))) and decay[50] == pytest.approx(0.1)
    assert all(later < sooner for sooner, later in itertools.pairwise(decay))
    assert {loop.learning_rate(epochs, constant) for epochs in (warmup, 3.9, 10)} == {0.2}
    for part in (0, 0.25, 0.5) if warmup else ():
        rates = [loop.learning_rate(part * warmup, chosen) for chosen in (cosine, constant)]
        assert rates == pytest.approx([0.2 * part] * 2)

    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: rates.append([group["lr"] for group in self.param_groups]) or step(self)
    )
    Line().train(lr=0.2, schedule="cosine", warmup_epochs=warmup)
    chosen = settings(lr=0.2, epochs=3, warmup_epochs=warmup, schedule="cosine")
    assert rates == [[loop.learning_rate((i + 0.5) / 5, chosen)] * 2 for i in range(15)]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weight_decay_spares_biases_and_norms_except_for_adam(name):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3))
    module[2].bias.requires_grad_(False)
    optimizer = loop.make_optimizer(module, settings(optimizer=name, weight_decay=0.3))
    assert type(optimizer) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    assert optimizer.defaults.get("momentum", 0.9) == 0.9 and bool(optimizer.defaults["fused"]) == (name != "sgd")
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.3}
    trained = {path: decay[id(p)] for path, p in module.named_parameters() if p.requires_grad}
    assert trained == (dict.fromkeys(expected, 0.3) if name == "adam" else expected) and len(decay) == 5


@pytest.mark.parametrize("name", ["adam", "adamw"])
@processes.float64()  # in float32, Adam may divide by gradients that are all rounding
def test_fused_steps_on_channels_last_weights_equal_torchs_unfused_steps(name):
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, groups=4), nn.Flatten(1))
    trained = trained.to(memory_format=torch.channels_last)
    reference, images = copy.deepcopy(trained), torch.randn(10, 2, 3, 8, 8)
    fused = loop.make_optimizer(trained, settings(optimizer=name))
    unfused = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](reference.parameters(), 1e-2, weight_decay=0)
    for network, optimizer in ((trained, fused), (reference, unfused)):
        for batch in images:
            optimizer.zero_grad()
            network(batch).square().mean().backward()
            with loop.atomic_step(optimizer) if optimizer is fused else contextlib.nullcontext():
                optimizer.step()
    for weight, expected in zip(trained.parameters(), reference.parameters()):
        assert weight.shape == expected.shape and weight.stride() == expected.stride()
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("CUDA error")])
@pytest.mark.parametrize("when", ["pre", "post"])
def test_a_step_that_fails_leaves_weights_and_gradients_in_their_layout(name, error, when):
    """Whether it fails before or after computing; for two layouts and a depthwise convolution."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, (1, 3), groups=8), nn.Flatten(1))
    module[0].to(memory_format=torch.channels_last)
    optimizer = loop.make_optimizer(module, settings(optimizer=name))
    module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    before = [(w.shape, w.stride(), w.grad.stride(), w.grad.clone(), w.detach().clone()) for w in module.parameters()]
    handle = getattr(optimizer, f"register_step_{when}_hook")(Mock(side_effect=error))
    with pytest.raises(BaseException), loop.atomic_step(optimizer):  # noqa: B017 (also KeyboardInterrupt)
        optimizer.step()
    for weight, (shape, stride, order, gradient, values) in zip(module.parameters(), before):
        assert (weight.shape, weight.stride(), weight.grad.stride()) == (shape, stride, order)
        assert torch.equal(weight.grad, gradient) and torch.equal(weight, values) == (when == "pre")
    handle.remove()
    with loop.atomic_step(optimizer):
        optimizer.step()


def test_an_interrupt_waits_until_the_step_has_ended():
    """Ctrl-C or JupyterLab's stop button, also twice in one step."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(1))
    module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer, handler = loop.make_optimizer(module, settings(optimizer="adamw")), signal.default_int_handler
    original = signal.signal(signal.SIGINT, handler)
    before = [weight.detach().clone() for weight in module.parameters()]
    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        register(lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), loop.atomic_step(optimizer):
        optimizer.step()
    assert all(w.shape == old.shape and not torch.equal(w, old) for w, old in zip(module.parameters(), before))
    assert signal.signal(signal.SIGINT, original) is handler


# --- precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_loss_and_the_evaluation_run_in_the_chosen_precision(precision):
    dtypes = []

    def look(*_):
        dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return {}

    fit(settings(epochs=1, precision=precision), evaluate=look, stop=look)
    assert len(dtypes) == 3 and set(dtypes) == {getattr(torch, precision)}


def test_in_float16_a_step_whose_gradient_overflows_is_skipped(tmp_path):
    """The scale starts at 65,536 and is halved for each of them; checkpoints contain it."""

    class Steep(Line):
        def loss(self, module, rows):
            value = super().loss(module, rows).float()  # large, but finite until it is scaled
            return value + 1e35 * self.module.weight.sum() if len(self.before) == 1 else value

    line = Steep()
    line.train(tmp_path, precision="float16")
    assert torch.equal(line.before[0], line.before[1]) and not torch.equal(line.before[1], line.before[2])
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["scaler"]["scale"] == 2.0**15


def test_a_compiled_loss_trains_alike(monkeypatch):
    """What cannot be compiled runs as it is."""
    monkeypatch.setattr(torch, "compile", Mock(side_effect=lambda loss, **_: loss))
    assert_same(fit(settings(epochs=2, compile=True)), fit(settings(epochs=2)))
    torch.compile.assert_called_once()
    assert not torch._dynamo.config.suppress_errors and not torch._inductor.config.fallback_random


# --- divergence


@pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
@pytest.mark.parametrize(("place", "epoch", "step"), [(1, 1, 1), (8, 2, 3), (15, 3, 5)])
def test_a_loss_that_is_not_finite_stops_the_training_and_names_its_files(tmp_path, value, place, epoch, step):
    """At most one step later, as no step waits for it; no checkpoint contains the damaged weights."""
    late, line = Line(place=place, value=value), Line(place=place, value=value)
    with pytest.raises(Diverged):
        late.train()
    with pytest.raises(Diverged) as caught:
        line.train(tmp_path)  # checkpoints after each step, before which its loss is checked
    assert len(late.before) == place + (step < 5) and len(line.before) == place
    assert str(caught.value) == f"the loss is {value} in epoch {epoch}, step {step} of 5" and caught.value.rate == 0.01
    assert caught.value.files == [line.names[int((line.rows == r).all(1).nonzero())] for r in line.seen[place - 1]]
    path = tmp_path / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)["module"] if path.is_file() else {}
    assert bool(saved) == (place > 1) and all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize("place", [3, 5, 15], ids=["inside", "end of an epoch", "the very end"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, place):
    """A finite loss may have a gradient that is not, which no later loss shows after the last step."""

    class Root(Line):
        def loss(self, module, rows):
            value = super().loss(module, rows)
            return value + (value * 0).sqrt() if len(self.before) == place else value

    with pytest.raises(Diverged, match=f"a weight is not finite any more in epoch {(place + 4) // 5}"):
        Root().train(tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["module"]
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
