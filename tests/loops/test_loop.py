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


def checkpoint(folder, every=-1.0, watch=None):
    """A checkpoint that is saved after every step, unless `every` says otherwise."""
    draft = Draft("finetune-A", folder)
    draft.watch = watch
    return Checkpoint(draft, every)


def fit(folder, chosen=None, *, weights_seed=0, seed=5, stop=0, watch=None, **options):
    """Train a small network with BatchNorm and dropout on images with random noise; return its state and history.

    `stop` is the number of the step in this run that raises Stopped.
    """
    torch.manual_seed(weights_seed)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 36, 3)
    module, steps, chosen = nn.Sequential(*layers), itertools.count(1), chosen or settings()
    generator = torch.Generator().manual_seed(7)
    images, labels = torch.rand(20, 3, 8, 8, generator=generator), torch.arange(20) % 3

    def loss(module, batch, targets):
        assert module.training
        if next(steps) == stop:
            raise Stopped
        return F.cross_entropy(module(batch + 0.1 * torch.rand_like(batch)), targets)

    def evaluate(epoch):
        assert not module.training and not torch.is_grad_enabled()
        correct = (module(images).argmax(1) == labels).float()
        noise = [random.random(), np.random.rand(), float(torch.rand(()))]
        return {"accuracy": float(correct.mean()), "noise": noise, "nested": [epoch, [1, 2]]}

    batches = ArrayBatches([images, labels], chosen.batch_size, seed, CPU)
    options = {"checkpoint": checkpoint(folder, watch=watch), "evaluate": evaluate} | options
    return module.state_dict(), loop.train(module, loss, batches, chosen, CPU, **options)


def assert_same(one, two):
    assert one[1] == two[1] and one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])


@pytest.fixture
def folders(tmp_path):
    """Empty folders."""
    paths = (tmp_path / str(number) for number in itertools.count())
    return (path for path in paths if path.mkdir() is None)


# --- resuming


@pytest.mark.parametrize(
    ("optimizer", "precision", "stop"), [("adam", "float32", 3), ("sgd", "float32", 6), ("adamw", "float16", 6)]
)
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(folders, optimizer, precision, stop):
    """No step is repeated, and `watch` gets the whole history."""
    chosen = settings(optimizer=optimizer, precision=precision, schedule="cosine", warmup_epochs=1.5, weight_decay=0.1)
    steps, before, after, watched, folder = [], [], [], [], next(folders)
    whole = fit(next(folders), chosen, after_step=lambda *now: steps.append(now))
    with pytest.raises(Stopped):
        fit(folder, chosen, stop=stop, after_step=lambda *now: before.append(now))
    options = {"after_step": lambda *now: after.append(now), "watch": lambda history: watched.append(len(history))}
    assert_same(fit(folder, chosen, weights_seed=99, **options), whole)
    assert before + after == steps == [(epoch, step, 2) for epoch in range(1, 5) for step in (1, 2)]
    assert watched == list(range((stop + 1) // 2, 5))


def test_a_run_may_be_stopped_many_times_and_a_finished_one_is_not_trained_again(folders):
    """The last checkpoint contains no optimizer."""
    folder, whole = next(folders), fit(next(folders))
    for stop in (2, 4):
        with pytest.raises(Stopped):
            fit(folder, stop=stop)
    assert_same(fit(folder), whole)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"] is None
    assert_same(fit(folder, weights_seed=99, stop=1), whole)


def test_all_draws_depend_on_the_seed_alone(folders):
    """Of Python, NumPy and torch, in each of four epochs."""

    def draws(**options):
        return [number for row in fit(next(folders), **options)[1] for number in row["noise"]]

    first = draws()
    assert len(set(first)) == 3 * 4 and draws(weights_seed=9) == first and not set(first) & set(draws(seed=6))


# --- an epoch


class Line:
    """A linear network whose loss is `value` at step `place`; it records weights, losses and rows of each step."""

    def __init__(self, place=None, value=math.nan, every=-1.0):
        torch.manual_seed(0)
        self.module = nn.Linear(2, 1)
        self.rows = torch.rand(10, 2)
        self.names = [f"{number:02d}.png" for number in range(len(self.rows))]
        self.place, self.value, self.every = place, value, every
        self.before, self.losses, self.seen = [], [], []

    def loss(self, module, rows):
        self.before.append(self.module.weight.detach().clone())
        self.seen.append(rows)
        value = self.module(rows).pow(2).mean() * (self.value if len(self.before) == self.place else 1)
        self.losses.append(value.item())
        return value

    def train(self, folder, **chosen):
        """Train for three epochs of five steps, unless settings say otherwise."""
        chosen = settings(**{"epochs": 3, "optimizer": "sgd", "batch_size": 2} | chosen)
        batches = ArrayBatches([self.rows], chosen.micro_batch, 3, CPU, names=self.names)
        return loop.train(self.module, self.loss, batches, chosen, CPU, checkpoint(folder, self.every))


def test_history_has_the_mean_loss_and_the_last_rate_of_each_epoch(tmp_path):
    line, cosine = Line(), settings(epochs=3, schedule="cosine")
    history = line.train(tmp_path, schedule="cosine")
    means = [pytest.approx(mean, rel=1e-6) for mean in np.reshape(line.losses, (3, 5)).mean(axis=1)]
    expected = [
        {"epoch": n, "loss": mean, "lr": loop.learning_rate(n - 0.1, cosine)} for n, mean in enumerate(means, 1)
    ]
    assert history == expected


@processes.float64()
def test_micro_batches_make_the_same_step(folders):
    """Ten rows are two batches of four, or five micro-batches of two. An infinite loss names all four files."""
    whole, parts = Line(), Line()
    one, two = whole.train(next(folders), batch_size=4), parts.train(next(folders), batch_size=4, accumulate=2)
    assert len(parts.losses) == 2 * len(whole.losses) == 12
    torch.testing.assert_close(parts.module.weight, whole.module.weight)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one])
    assert [row["lr"] for row in two] == [row["lr"] for row in one]
    with pytest.raises(Diverged, match="step 2 of 2") as caught:
        Line(place=4).train(next(folders), batch_size=4, accumulate=2)
    assert len(caught.value.files) == 4


# --- schedules and optimizers


@pytest.mark.parametrize("warmup", [0, 0.5, 3])
def test_the_learning_rate_warms_up_and_then_decays_or_stays(warmup):
    cosine, constant = (settings(lr=0.2, epochs=10, warmup_epochs=warmup, schedule=s) for s in ("cosine", "constant"))
    decay = [loop.learning_rate(warmup + (10 - warmup) * i / 100, cosine) for i in range(101)]
    assert decay[0] == pytest.approx(0.2) and decay[-1] == pytest.approx(0, abs=1e-12)
    assert decay[25] == pytest.approx(0.1 * (1 + math.sqrt(0.5))) and decay[50] == pytest.approx(0.1)
    assert {loop.learning_rate(epochs, constant) for epochs in (warmup, 3.9, 10)} == {0.2}
    for part in (0, 0.25, 0.5) if warmup else ():
        rates = [loop.learning_rate(part * warmup, chosen) for chosen in (cosine, constant)]
        assert rates == pytest.approx([0.2 * part] * 2)


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


@pytest.mark.parametrize(("name", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
@processes.float64()  # in float32, Adam may divide by gradients that are all rounding
def test_fused_steps_on_channels_last_weights_equal_torchs_unfused_steps(name, reference):
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, groups=4)).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(trained)
    fused, unfused = loop.make_optimizer(trained, settings(optimizer=name)), reference(plain.parameters(), 1e-2)
    unfused.param_groups[0]["weight_decay"] = 0
    for batch in torch.randn(10, 2, 3, 8, 8):
        for network, optimizer, step in ((trained, fused, loop.atomic_step), (plain, unfused, contextlib.nullcontext)):
            optimizer.zero_grad()
            network(batch).square().mean().backward()
            with step(optimizer):
                optimizer.step()
    for weight, expected in zip(trained.parameters(), plain.parameters()):
        assert weight.stride() == expected.stride()
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("when", ["pre", "post"])
def test_a_step_that_fails_leaves_weights_and_gradients_in_their_layout(when):
    """Whether it fails before or after computing; for two layouts and a depthwise convolution."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, (1, 3), groups=8))
    module[0].to(memory_format=torch.channels_last)
    optimizer = loop.make_optimizer(module, settings())
    module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    before = [(weight.shape, weight.stride(), weight.grad.clone()) for weight in module.parameters()]
    getattr(optimizer, f"register_step_{when}_hook")(Mock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError), loop.atomic_step(optimizer):
        optimizer.step()
    for weight, (shape, stride, gradient) in zip(module.parameters(), before):
        assert (weight.shape, weight.stride(), weight.grad.stride()) == (shape, stride, gradient.stride())
        assert torch.equal(weight.grad, gradient)


def test_an_interrupt_waits_until_the_step_has_ended():
    """Ctrl-C or JupyterLab's stop button."""
    module = nn.Linear(3, 8)
    module(torch.randn(2, 3)).square().mean().backward()
    optimizer, before = loop.make_optimizer(module, settings()), module.bias.detach().clone()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    optimizer.register_step_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), loop.atomic_step(optimizer):
        optimizer.step()
    assert not torch.equal(module.bias, before)
    assert signal.signal(signal.SIGINT, handler) is signal.default_int_handler


# --- precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_loss_and_the_evaluation_run_in_the_chosen_precision(tmp_path, precision):
    dtypes, chosen = set(), settings(epochs=1, precision=precision)

    def multiply(*_):
        dtypes.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return {}

    def loss(module, rows):
        multiply()
        return module(rows).sum()

    batches = ArrayBatches([torch.ones(8, 2)], 8, 0, CPU)
    loop.train(nn.Linear(2, 1), loss, batches, chosen, CPU, checkpoint(tmp_path), evaluate=multiply)
    assert dtypes == {getattr(torch, precision)}


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


def test_a_compiled_loss_gives_the_same_training(folders, monkeypatch):
    monkeypatch.setattr(torch, "compile", Mock(side_effect=lambda loss, **_: loss))
    assert_same(*(fit(next(folders), settings(epochs=2, compile=compiled)) for compiled in (True, False)))
    torch.compile.assert_called_once()


# --- divergence


@pytest.mark.parametrize(
    ("value", "place", "epoch", "step"), [(math.nan, 1, 1, 1), (-math.inf, 8, 2, 3), (math.nan, 15, 3, 5)]
)
def test_a_loss_that_is_not_finite_stops_the_training(folders, monkeypatch, value, place, epoch, step):
    """At the next checkpoint, which does not contain the damaged weights, or after some steps."""
    late, line, folder = Line(place, value, every=math.inf), Line(place, value), next(folders)
    monkeypatch.setattr(loop, "CHECK_EVERY", 2)
    with pytest.raises(Diverged):
        late.train(next(folders))
    with pytest.raises(Diverged) as caught:
        line.train(folder)  # with a checkpoint after each step
    assert len(late.before) == place + (step in (1, 3)) and len(line.before) == place
    assert str(caught.value) == f"the loss is {value} in epoch {epoch}, step {step} of 5" and caught.value.rate == 0.01
    assert caught.value.files == [line.names[int((line.rows == r).all(1).nonzero())] for r in line.seen[place - 1]]
    path = folder / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)["module"] if path.is_file() else {}
    assert bool(saved) == (place > 1) and all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize("place", [3, 5, 15], ids=["inside", "end of an epoch", "the very end"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, place):
    """A finite loss may have a gradient that is not, which no later loss shows after the last step."""

    class Root(Line):
        def loss(self, module, rows):
            value = super().loss(module, rows)
            return value + (value * 0).sqrt() if len(self.before) == place else value

    with pytest.raises(Diverged, match=f"a weight is no longer finite in epoch {(place + 4) // 5}"):
        Root().train(tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["module"]
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
