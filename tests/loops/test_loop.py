"""THE loop: what an interrupted run resumes to, rates, decay, and its errors."""

import contextlib
import copy
import itertools
import math
import random
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import profiles, progress
from hw1lib.errors import Diverged
from hw1lib.loops import loop
from hw1lib.loops.batches import ArrayBatches
from hw1lib.settings import Optimization
from tests import processes

CPU = torch.device("cpu")


class Small(nn.Module):
    """Everything that a state can hide in: weights, running statistics, dropout's draws."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 36, 3)
        )

    def forward(self, images):
        return self.body(images)


def settings(**changes):
    return Optimization(**{"epochs": 4, "batch_size": 8, "lr": 1e-2, "precision": "float32", **changes})


class Stopped(Exception):
    pass


def fit(chosen=None, *, weights_seed=0, seed=5, stop=None, every=-1.0, **options):
    """Trains a small module; `stop` is called with (epoch, step) before each step.

    The batches are noised from the global generator, as augmentation draws from it.
    """
    torch.manual_seed(weights_seed)
    module, place, chosen = Small(), [0, 0], chosen or settings()
    generator = torch.Generator().manual_seed(7)
    images, labels = torch.rand(20, 3, 8, 8, generator=generator), torch.arange(20) % 3

    def loss(module, batch, targets):
        assert module.training
        place[1] += 1
        if stop:
            stop(*place)
        return F.cross_entropy(module(batch + 0.1 * torch.rand_like(batch)), targets)

    class Batches(ArrayBatches):
        def __call__(self, epoch, start=0):
            place[:] = [epoch, start]
            return super().__call__(epoch, start)

    def evaluate(epoch):
        assert not module.training and not torch.is_grad_enabled()
        correct = (module(images).argmax(1) == labels).float()
        noise = [random.random(), np.random.rand(), float(torch.rand(()))]
        return {"accuracy": float(correct.mean()), "noise": noise, "nested": [epoch, [1, 2]]}

    batches = Batches([images, labels], chosen.batch_size, seed, CPU)
    options = {"evaluate": evaluate, "label": "finetune-A", "checkpoint_every": every} | options
    history = loop.train(module, loss, batches, chosen, CPU, **options)
    return module.state_dict(), history


def assert_same(one, two):
    assert one[1] == two[1] and one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint.pt"


def interrupted(checkpoint, epoch, step, *chosen, **options):
    def stop(*now):
        if now == (epoch, step):
            raise Stopped

    with pytest.raises(Stopped):
        fit(*chosen, checkpoint=checkpoint, stop=stop, **options)
    assert checkpoint.is_file()


# --- resuming


@pytest.mark.parametrize(
    ("optimizer", "precision"), [("adam", "float32"), ("adamw", "float32"), ("sgd", "float32"), ("adamw", "float16")]
)
@pytest.mark.parametrize("place", [(2, 1), (3, 2), (4, 1)])
def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(checkpoint, optimizer, precision, place):
    """And `after_step` and `watch` go on where they were: a target's decay would otherwise start anew."""
    more = dict(optimizer=optimizer, precision=precision)
    chosen = settings(**more, schedule="cosine", warmup_epochs=1.5, weight_decay=0.1)
    done, before, after, taken, seen = [], [], [], [], []
    whole = fit(chosen, after_step=done.append)
    interrupted(checkpoint, *place, chosen, after_step=before.append)
    more = {"after_step": after.append, "watch": lambda history: seen.append(len(history))}
    resumed = fit(chosen, weights_seed=99, checkpoint=checkpoint, stop=lambda *now: taken.append(now), **more)
    assert_same(resumed, whole)
    assert taken[0] == place and before + after == done  # nothing that was finished ran again
    assert seen == list(range(place[0], 5))  # with the whole history: a figure then starts at the first epoch


def test_a_run_may_be_stopped_again_and_again(checkpoint):
    """Also while it evaluates: that epoch is done again."""
    for epoch in (2, 3, 4):
        interrupted(checkpoint, epoch, 2)
    interrupted(checkpoint, 0, 0, evaluate=Mock(side_effect=Stopped))
    assert_same(fit(checkpoint=checkpoint), fit())


def test_after_the_last_epoch_nothing_is_trained_again(checkpoint):
    """A step that is killed while it writes its results has all it needs; no optimizer is kept."""
    whole = fit(checkpoint=checkpoint)
    assert_same(whole, fit())  # checkpoints do not change what is trained
    assert torch.load(checkpoint, weights_only=True)["optimizer"] is None
    assert_same(fit(weights_seed=99, checkpoint=checkpoint, stop=lambda *_: pytest.fail("trained")), whole)


EVERYWHERE = [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]  # (finished epochs, steps of the next)


@pytest.mark.parametrize(
    ("every", "step_seconds", "expected"),
    [
        (1e6, 1, [(3, 0)]),  # before its time only the end is saved
        (0, 1, EVERYWHERE),
        (60, 40, [(1, 0), (2, 0), (3, 0)]),  # an epoch of 80 s: at its end
        (60, 20, [(2, 0), (3, 0)]),  # of 40 s: at every second one's
        (60, 700, EVERYWHERE),  # of 1,400 s: inside, too
    ],
)
def test_checkpoints_fall_on_epoch_ends_or_inside_of_long_ones(checkpoint, monkeypatch, every, step_seconds, expected):
    clock, places, real = [0.0], [], loop.Checkpoint.save
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def pass_time(*_):
        clock[0] += step_seconds

    def save(self, progress, finished=False):
        places.append((len(progress.history), progress.step))
        real(self, progress, finished)

    monkeypatch.setattr(loop.Checkpoint, "save", save)
    fit(settings(epochs=3), checkpoint=checkpoint, every=every, stop=pass_time)
    assert places == expected


# --- determinism


def test_the_seed_alone_says_what_is_drawn():
    """By Python, NumPy and torch; in each of four epochs something else, whatever was drawn before."""

    def drawn(**options):
        return [number for row in fit(**options)[1] for number in row["noise"]]

    first = drawn()
    assert len(set(first)) == 3 * 4 and drawn(weights_seed=9) == first and not set(first) & set(drawn(seed=6))


# --- what an epoch does


class Line:
    """A linear module whose loss may be odd at one step; keeps what each step saw."""

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

    def train(self, checkpoint=None, after_step=None, **chosen):
        """Three epochs of five steps, if not told otherwise."""
        chosen = settings(**{"epochs": 3, "optimizer": "sgd", "batch_size": 2} | chosen)
        batches = ArrayBatches([self.rows], chosen.micro_batch, 3, CPU, names=self.names)
        more = dict(label="finetune-A", checkpoint=checkpoint, checkpoint_every=-1.0, after_step=after_step)
        return loop.train(self.module, self.loss, batches, chosen, CPU, **more)


def test_history_has_a_row_an_epoch_with_the_mean_loss_and_the_last_rate():
    run, cosine = Line(), settings(epochs=3, schedule="cosine")
    history = run.train(schedule="cosine")
    means = [pytest.approx(mean, rel=1e-6) for mean in np.reshape(run.losses, (3, 5)).mean(axis=1)]
    rows = [{"epoch": n, "loss": mean, "lr": loop.rate(n - 0.1, cosine)} for n, mean in enumerate(means, 1)]
    assert history == rows


@pytest.mark.parametrize(("rows", "epochs"), [(10, 3), (13, 2), (1, 4)])
def test_after_step_is_called_once_a_step_after_it_and_rises_to_exactly_one(rows, epochs):
    """Also where a row is left over, and where all rows are one batch."""
    run, done = Line(torch.ones(rows, 2)), []

    def after_step(part):
        assert not torch.equal(run.module.weight, run.before[-1])  # the step was taken
        done.append(part)

    run.train(epochs=epochs, after_step=after_step)
    steps = epochs * max(1, rows // 2)
    assert len(run.losses) == steps and done[-1] == 1.0
    assert done == pytest.approx([step / steps for step in range(1, steps + 1)])


def test_each_step_has_its_own_rate(monkeypatch):
    """In both groups: of what decays and what does not."""
    rates, step = [], torch.optim.SGD.step

    def noted(optimizer):
        rates.append([group["lr"] for group in optimizer.param_groups])
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    chosen = dict(epochs=3, schedule="cosine", warmup_epochs=1)
    Line().train(**chosen)
    assert rates == [[loop.rate((i + 0.5) / 5, settings(**chosen))] * 2 for i in range(15)]
    assert rates[-1][0] > 0  # the last step trains, too


def test_watch_comes_once_an_epoch_after_its_line_with_the_history_so_far(monkeypatch):
    """With what `evaluate` gave, too; in a notebook the figure stands below the line; looking on changes nothing."""
    seen = []
    monkeypatch.setattr(progress, "emit", lambda record: seen.append(record["line"]))
    watched = fit(watch=lambda history: seen.append([dict(row) for row in history]))
    assert seen[1::2] == [watched[1][: n + 1] for n in range(4)]
    assert all(line.startswith(f"finetune-A  epoch {n + 1}/4  loss ") for n, line in enumerate(seen[::2]))
    assert_same(watched, fit())


def test_a_step_says_what_its_training_needs(tmp_path):
    profile = profiles.get("smoke", {"checkpoint_every": 7})
    draft = SimpleNamespace(label="pretrain", checkpoint=tmp_path / "c.pt", watch=print)
    expected = dict(label="pretrain", checkpoint=tmp_path / "c.pt", checkpoint_every=7.0, watch=print)
    assert loop.for_step(draft, profile) == expected


# --- rates and optimizers


@pytest.mark.parametrize("warm", [0, 0.5, 3])
def test_the_rate_warms_up_and_falls_to_zero_or_stays(warm):
    cosine, constant = (settings(lr=0.2, epochs=10, warmup_epochs=warm, schedule=s) for s in ("cosine", "constant"))
    falling = [loop.rate(warm + (10 - warm) * i / 100, cosine) for i in range(101)]
    assert falling[0] == pytest.approx(0.2) and falling[-1] == pytest.approx(0, abs=1e-12)
    assert falling[25] == pytest.approx(0.1 * (1 + math.sqrt(0.5))) and falling[50] == pytest.approx(0.1)
    assert all(later < sooner for sooner, later in itertools.pairwise(falling))
    assert {loop.rate(p, constant) for p in (warm, 3.9, 10)} == {0.2}
    for part in (0, 0.25, 0.5) if warm else ():
        assert loop.rate(part * warm, cosine) == loop.rate(part * warm, constant) == pytest.approx(0.2 * part)


def test_the_warm_up_may_last_as_long_as_the_run():
    chosen = settings(epochs=5, warmup_epochs=5, schedule="cosine", lr=1.0)
    assert (loop.rate(2, chosen), loop.rate(5, chosen)) == pytest.approx((0.4, 1.0))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_decay_spares_biases_and_norms(name):
    """But Adam's, which is L2 on everything, as the original's was."""
    module = Small()
    module.body[5].bias.requires_grad_(False)
    optimizer = loop.make_optimizer(module, settings(optimizer=name, weight_decay=0.3))
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    assert type(optimizer) is kinds[name] and optimizer.defaults.get("momentum", 0.9) == 0.9
    assert bool(optimizer.defaults["fused"]) == (
        name != "sgd"
    )  # in another order of operations the results differ in their last bits
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for path, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = name == "adam" or path in ("body.0.weight", "body.5.weight")
            assert decay.pop(id(parameter)) == (0.3 if decayed else 0.0), path
    assert not decay and {group["lr"] for group in optimizer.param_groups} == {1e-2}


@pytest.mark.parametrize("name", ["adam", "adamw"])
@processes.float64()  # Adam divides by gradients, which may be all rounding in float32
def test_weights_with_channels_last_are_trained_as_torch_trains_them(name):
    """The steps see kernels in another order of their dimensions; torch's unfused optimizers are the reference."""
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3, groups=4), torch.nn.Flatten(1))
    ours = ours.to(memory_format=torch.channels_last)
    theirs, images = copy.deepcopy(ours), torch.randn(10, 2, 3, 8, 8)
    first = loop.make_optimizer(ours, settings(optimizer=name))
    second = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](theirs.parameters(), 1e-2, weight_decay=0)
    for network, optimizer in ((ours, first), (theirs, second)):
        for batch in images:
            optimizer.zero_grad()
            network(batch).square().mean().backward()
            with loop.whole_step(optimizer) if optimizer is first else contextlib.nullcontext():
                optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        assert mine.shape == other.shape and mine.stride() == other.stride()
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("CUDA error"), MemoryError])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_step_that_fails_leaves_weights_and_gradients_as_they_were(name, error, when):
    """Before or after it computes, with kernels of two layouts and of depthwise convolutions."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, (1, 3), groups=8), nn.Flatten(1))
    module[0].to(memory_format=torch.channels_last)
    optimizer = loop.make_optimizer(module, settings(optimizer=name))
    module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    before = [(w.shape, w.stride(), w.grad.stride(), w.grad.clone(), w.detach().clone()) for w in module.parameters()]
    hook = Mock(side_effect=error)
    handle = (optimizer.register_step_pre_hook if when == "before" else optimizer.register_step_post_hook)(hook)
    with pytest.raises(BaseException), loop.whole_step(optimizer):  # noqa: B017 (also KeyboardInterrupt)
        optimizer.step()
    for weight, (shape, stride, order, gradient, values) in zip(module.parameters(), before):
        assert (weight.shape, weight.stride(), weight.grad.stride()) == (shape, stride, order)
        assert torch.equal(weight.grad, gradient) and torch.equal(weight, values) == (when == "before")
    handle.remove()
    with loop.whole_step(optimizer):
        optimizer.step()
    module(torch.randn(2, 3, 8, 8))


def test_an_interrupt_waits_until_the_step_has_ended():
    """Ctrl-C, or JupyterLab's stop button: also between two groups of parameters, and twice."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(1))
    module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer, handler = loop.make_optimizer(module, settings(optimizer="adamw")), signal.default_int_handler
    usual = signal.signal(signal.SIGINT, handler)
    before = [weight.detach().clone() for weight in module.parameters()]
    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        register(lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), loop.whole_step(optimizer):
        optimizer.step()
    assert all(w.shape == old.shape and not torch.equal(w, old) for w, old in zip(module.parameters(), before))
    assert signal.signal(signal.SIGINT, usual) is handler


@processes.float64()
def test_a_batch_in_parts_is_the_same_step():
    """For what has no BatchNorm; ten rows are two batches of four, and five parts of two."""
    whole, parts = Line(), Line()
    one, two = whole.train(batch_size=4), parts.train(batch_size=4, accumulate=2)
    assert len(parts.losses) == 2 * len(whole.losses) == 12
    torch.testing.assert_close(parts.module.weight, whole.module.weight)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one])
    assert [row["lr"] for row in two] == [row["lr"] for row in one]
    odd = Line(place=4)  # of the second step
    with pytest.raises(Diverged, match="step 2 of 2") as caught:
        odd.train(batch_size=4, accumulate=2)
    assert len(caught.value.files) == 4


# --- precision


def test_the_loss_and_the_evaluation_run_in_the_chosen_precision():
    for precision in ("float32", "bfloat16", "float16"):
        dtypes = []

        def look(*_, dtypes=dtypes):
            dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return {}

        fit(settings(epochs=1, precision=precision), evaluate=look, stop=look)
        assert len(dtypes) == 3 and set(dtypes) == {getattr(torch, precision)}


def test_in_float16_the_loss_is_scaled_and_a_step_whose_gradient_overflows_is_left_out(checkpoint):
    """The scale begins at 65,536 and is halved each time; the checkpoint carries it."""

    class Steep(Line):
        def loss(self, module, rows):
            value = super().loss(module, rows).float()  # large, but finite until it is scaled
            return value + 1e35 * self.module.weight.sum() if len(self.before) == 1 else value

    run = Steep()
    run.train(checkpoint=checkpoint, precision="float16")
    assert torch.equal(run.before[0], run.before[1]) and not torch.equal(run.before[1], run.before[2])
    assert torch.load(checkpoint, weights_only=True)["scaler"]["scale"] == 2.0**15


def test_compiled_the_training_is_the_same(monkeypatch):
    """Up to rounding; what cannot be compiled runs as it is."""
    plain = fit(settings(epochs=2))
    monkeypatch.setattr(torch, "compile", Mock(side_effect=lambda loss, **_: loss))
    assert_same(fit(settings(epochs=2, compile=True)), plain)
    torch.compile.assert_called_once()
    assert not torch._dynamo.config.suppress_errors and not torch._inductor.config.fallback_random


# --- what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize(("place", "epoch", "step"), [(1, 1, 1), (8, 2, 3), (10, 2, 5), (15, 3, 5)])
def test_a_loss_that_is_not_finite_stops_the_training_and_names_its_files(checkpoint, value, place, epoch, step):
    """One step later at most, for nobody waits for it; and no checkpoint holds what it made of the weights."""
    late, run = Line(place=place, value=value), Line(place=place, value=value)
    with pytest.raises(Diverged):
        late.train()
    with pytest.raises(Diverged) as caught:
        run.train(checkpoint=checkpoint)  # after each step, so each is looked at before
    assert len(late.before) == place + (step < 5) and len(run.before) == place
    assert str(caught.value) == f"the loss is {value} in epoch {epoch}, step {step} of 5" and caught.value.rate == 0.01
    assert caught.value.files == [run.names[int((run.rows == row).all(1).nonzero())] for row in run.seen[place - 1]]
    saved = torch.load(checkpoint, weights_only=True)["module"] if checkpoint.is_file() else {}
    assert bool(saved) == (place > 1) and all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize("place", [3, 5, 15], ids=["inside", "end of an epoch", "the very end"])
def test_weights_that_are_not_finite_are_never_kept(checkpoint, place):
    """A finite loss may have a gradient that is not; after the last step no loss would show it."""

    class Root(Line):
        def loss(self, module, rows):
            value = super().loss(module, rows)
            return value + (value * 0).sqrt() if len(self.before) == place else value

    with pytest.raises(Diverged, match=f"a weight is not finite any more in epoch {(place + 4) // 5}"):
        Root().train(checkpoint=checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["module"]
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
