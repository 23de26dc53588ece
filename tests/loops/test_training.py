"""THE loop: what an interrupted run resumes to, rates, decay, and its errors."""

import itertools
import math
import random
import re
import resource
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import files, profiles
from hw1lib.steps import graph, store
from hw1lib.data import layout
from hw1lib.errors import UserError
from hw1lib.loops import training
from hw1lib.loops.batches import ArrayBatches
from hw1lib.settings import Optimization

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
    plain = dict(epochs=4, batch_size=8, lr=1e-2, precision="float32")
    return Optimization(**{**plain, **changes})


def data():
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(20, 3, 8, 8, generator=generator)
    return images, torch.arange(20) % 3


def fit(chosen, *, weights_seed=0, seed=5, checkpoint=None, stop=None, every=-1.0, **options):
    """Trains a small module; `stop` is called with (epoch, step) before each step.

    The batches are noised from the global generator, as augmentation draws from it.
    """
    torch.manual_seed(weights_seed)
    module, place = Small(), [0, 0]
    images, labels = data()

    def loss(batch, targets):
        place[1] += 1
        if stop:
            stop(*place)
        return F.cross_entropy(module(batch + 0.1 * torch.rand_like(batch)), targets)

    arrays = ArrayBatches([images, labels], chosen.batch_size, seed, CPU)

    class Batches:
        def __len__(self):
            return len(arrays)

        def __call__(self, epoch, start):
            place[:] = [epoch, start]
            return arrays(epoch, start)

    def evaluate(epoch):
        assert not module.training
        correct = (module(images).argmax(1) == labels).float()
        return {"accuracy": float(correct.mean()), "noise": float(torch.rand(())), "nested": [epoch, [1, 2]]}

    options = {"evaluate": evaluate, "name": "finetune-A"} | options
    history = training.train(
        module, loss, Batches(), chosen, CPU, seed=seed, checkpoint=checkpoint, checkpoint_every=every, **options
    )
    return module.state_dict(), history


def assert_same(one, two):
    assert one[1] == two[1]
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])


class Stopped(Exception):
    pass


def stop_at(epoch, step):
    def stop(*now):
        if now == (epoch, step):
            raise Stopped

    return stop


# --- resuming


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("place", [(2, 1), (3, 2), (4, 1)])
def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path, optimizer, place):
    chosen = settings(optimizer=optimizer, schedule="cosine", warmup_epochs=1.5, weight_decay=0.1)
    whole = fit(chosen)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        fit(chosen, checkpoint=checkpoint, stop=stop_at(*place))
    assert checkpoint.is_file()
    taken = []
    resumed = fit(chosen, weights_seed=99, checkpoint=checkpoint, stop=lambda *now: taken.append(now))
    assert_same(resumed, whole)
    assert taken[0] == place  # nothing that was finished ran again


def test_a_run_may_be_stopped_again_and_again(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    for epoch in (2, 3, 4):
        with pytest.raises(Stopped):
            fit(settings(), checkpoint=checkpoint, stop=stop_at(epoch, 2))
    assert_same(fit(settings(), checkpoint=checkpoint), fit(settings()))


def test_stopped_while_evaluating_the_epoch_is_done_again(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"

    def broken(epoch):
        if epoch == 3:
            raise Stopped
        return {}

    with pytest.raises(Stopped):
        fit(settings(), checkpoint=checkpoint, evaluate=broken)
    assert_same(fit(settings(), checkpoint=checkpoint, evaluate=None), fit(settings(), evaluate=None))


def test_checkpoints_do_not_change_what_is_trained(tmp_path):
    assert_same(fit(settings(), checkpoint=tmp_path / "checkpoint.pt"), fit(settings()))


def written(tmp_path, every, monkeypatch, **options):
    """Where each checkpoint of a run was written: (finished epochs, steps of the next)."""
    places = []
    real = training.Checkpoint.save

    def save(self, progress, finished=False):
        places.append((len(progress.history), progress.step))
        real(self, progress, finished)

    monkeypatch.setattr(training.Checkpoint, "save", save)
    fit(settings(epochs=3), checkpoint=tmp_path / "checkpoint.pt", every=every, **options)
    return places


def test_before_its_time_only_the_end_is_saved(tmp_path, monkeypatch):
    assert written(tmp_path, 1e6, monkeypatch) == [(3, 0)]


def test_at_every_chance_each_step_is_saved(tmp_path, monkeypatch):
    assert written(tmp_path, 0, monkeypatch) == [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]


@pytest.mark.parametrize(
    ("step_seconds", "expected"),
    [
        (40, [(1, 0), (2, 0), (3, 0)]),  # an epoch of 80 s: at its end
        (20, [(2, 0), (3, 0)]),  # of 40 s: at every second one's
        (700, [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]),
    ],  # of 1,400 s: inside, too
)
def test_checkpoints_fall_on_epoch_ends_or_inside_of_long_ones(tmp_path, monkeypatch, step_seconds, expected):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def pass_time(*_):
        clock[0] += step_seconds

    assert written(tmp_path, 60, monkeypatch, stop=pass_time) == expected


def test_slow_disks_are_written_to_less_often(tmp_path, monkeypatch):
    """No more than a twentieth of the time: after 10 s of writing 200 s go by."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    saved = training.Checkpoint(tmp_path / "checkpoint.pt", nn.Linear(1, 1), optimizer, CPU, 60)

    def slow(*_):
        clock[0] += 10

    monkeypatch.setattr(torch, "save", slow)
    clock[0] = 60
    assert saved.due()
    saved.save(training.Progress([]))
    for seconds, end, inside in (
        (70, False, False),
        (269, False, False),
        (270, True, False),
        (669, True, False),
        (670, True, True),  # inside an epoch after ten minutes all the same
    ):
        clock[0] = seconds
        assert (saved.due(), saved.due(inside=True)) == (end, inside)


def test_after_the_last_epoch_nothing_is_trained_again(tmp_path):
    """A step that is killed while it writes its results has all it needs; no optimizer is kept."""
    checkpoint, taken = tmp_path / "checkpoint.pt", []
    whole = fit(settings(), checkpoint=checkpoint)
    assert torch.load(checkpoint, weights_only=True)["optimizer"] is None
    again = fit(settings(), weights_seed=99, checkpoint=checkpoint, stop=lambda *now: taken.append(now))
    assert_same(again, whole)
    assert not taken


def damaged_by(change, tmp_path, capsys):
    """Stops a run, changes its checkpoint, and runs it to its end: what it said."""
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        fit(settings(), checkpoint=checkpoint, stop=stop_at(3, 2))
    change(checkpoint)
    capsys.readouterr()
    assert_same(fit(settings(), checkpoint=checkpoint), fit(settings()))
    return capsys.readouterr().out


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    """One bit in the middle of the weights, which torch itself would not notice."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    whole[largest.header_offset + largest.file_size] ^= 1
    path.write_bytes(whole)


def replace_by(state):
    return lambda path: torch.save(state, path)


@pytest.mark.parametrize(
    "change",
    [
        cut,
        flip,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no archive"),
        replace_by({}),
        replace_by([1]),
        replace_by({"format": 0}),
    ],
)
def test_a_damaged_checkpoint_is_never_half_trusted(tmp_path, capsys, change):
    said = damaged_by(change, tmp_path, capsys)
    assert "checkpoint.pt cannot be used" in said and "from its beginning" in said


def test_a_checkpoint_of_another_network_is_not_used(tmp_path, capsys):
    def widen(path):
        state = torch.load(path, weights_only=True)
        state["module"]["body.0.weight"] = torch.zeros(5, 3, 3, 3)
        torch.save(state, path)

    assert "another network" in damaged_by(widen, tmp_path, capsys)


def test_a_checkpoint_goes_with_the_results_beside_it(tmp_path, capsys):
    """An array that an epoch has written is trusted only as it was then."""
    checkpoint, array = tmp_path / "checkpoint.pt", tmp_path / "stage_early.npy"

    def stop(*now):
        if now == (2, 1):
            array.write_bytes(b"as written")
        stop_at(3, 2)(*now)

    for change, trusted in ((lambda: None, True), (lambda: array.write_bytes(b"other"), False)):
        checkpoint.unlink(missing_ok=True)
        with pytest.raises(Stopped):
            fit(settings(), checkpoint=checkpoint, stop=stop)
        change()
        capsys.readouterr()
        assert_same(fit(settings(), checkpoint=checkpoint), fit(settings()))
        assert ("stage_early.npy was altered" in capsys.readouterr().out) != trusted
        assert array.exists() == trusted


def test_results_that_came_after_the_checkpoint_are_made_again(tmp_path):
    """Else a GPU's other rounding would make the next checkpoint contradict them."""
    checkpoint, later = tmp_path / "checkpoint.pt", tmp_path / "predictions.npy"
    with pytest.raises(Stopped):
        fit(settings(), checkpoint=checkpoint, stop=stop_at(3, 2))
    later.write_bytes(b"of the epoch that was interrupted")
    fit(settings(), checkpoint=checkpoint, stop=lambda *now: None)
    assert not later.exists()


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    """And the last good checkpoint stays."""
    monkeypatch.setattr(training, "say", lambda line: None)  # no output may meet the limit
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        fit(settings(), checkpoint=checkpoint, stop=stop_at(2, 1))
    before = checkpoint.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(UserError, match="could not be written"):
            fit(settings(), checkpoint=checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


# --- determinism


def test_the_seed_alone_says_what_is_drawn():
    first = fit(settings())
    torch.manual_seed(123), torch.rand(5)
    assert_same(fit(settings()), first)
    assert fit(settings(), seed=6)[1] != first[1]


def test_seeding_reaches_python_numpy_and_torch():
    def draws(*numbers):
        training.seed_everything(*numbers)
        return random.random(), np.random.rand(), float(torch.rand(()))

    assert draws(3, 4) == draws(3, 4)
    for other in ((4, 3), (3, 5), (34,)):
        assert all(a != b for a, b in zip(draws(3, 4), draws(*other)))


# --- what an epoch does


def test_history_has_a_row_an_epoch_with_the_mean_loss():
    seen = []
    module = nn.Linear(1, 1)

    def loss(x):
        value = module(x).pow(2).mean()
        seen.append(value.item())
        return value

    batches = ArrayBatches([torch.linspace(0, 1, 12).view(-1, 1)], 4, 0, CPU)
    history = training.train(module, loss, batches, settings(epochs=3), CPU, seed=0, name="pretrain")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for number, row in enumerate(history):
        mean = sum(seen[3 * number : 3 * number + 3]) / 3
        assert row["loss"] == pytest.approx(mean, rel=1e-6)
        assert row["lr"] == 1e-2


def test_after_step_is_called_once_a_step_after_it():
    module = nn.Linear(1, 1, bias=False)
    weights, shares = [module.weight.item()], []

    def after_step(share):
        weights.append(module.weight.item())
        shares.append(share)

    batches = ArrayBatches([torch.ones(12, 1)], 4, 0, CPU)
    training.train(
        module,
        lambda x: module(x).mean(),
        batches,
        settings(epochs=2, optimizer="sgd"),
        CPU,
        seed=0,
        name="pretrain",
        after_step=after_step,
    )
    assert len(weights) == 1 + 2 * 3
    assert all(later < sooner for sooner, later in itertools.pairwise(weights))
    assert shares == pytest.approx([step / 6 for step in range(1, 7)])


@pytest.mark.parametrize(("images", "epochs"), [(12, 7), (13, 3), (2, 1)])
def test_the_share_of_the_training_rises_to_exactly_one(images, epochs):
    """Also where a batch is left over, and where all images are one batch."""
    module, shares = nn.Linear(1, 1), []
    training.train(
        module,
        lambda x: module(x).mean(),
        ArrayBatches([torch.ones(images, 1)], 4, 0, CPU),
        settings(epochs=epochs),
        CPU,
        seed=0,
        name="pretrain",
        after_step=shares.append,
    )
    assert len(shares) == epochs * max(1, images // 4)
    assert all(later > sooner > 0 for sooner, later in itertools.pairwise(shares))
    assert shares[-1] == 1.0


def test_a_resumed_run_goes_on_at_its_share(tmp_path):
    """A target's decay would otherwise start anew."""
    chosen, checkpoint = settings(epochs=4), tmp_path / "checkpoint.pt"
    whole, before, after = [], [], []
    fit(chosen, after_step=whole.append)
    with pytest.raises(Stopped):
        fit(chosen, checkpoint=checkpoint, stop=stop_at(3, 1), after_step=before.append)
    fit(chosen, checkpoint=checkpoint, after_step=after.append)
    assert before + after == whole


def test_watch_is_called_once_an_epoch_with_the_history_so_far():
    """With what `evaluate` gave, too; and looking on changes nothing."""
    seen = []
    watched = fit(settings(), watch=lambda history: seen.append([dict(row) for row in history]))
    assert [len(history) for history in seen] == [1, 2, 3, 4]
    assert seen == [watched[1][: n + 1] for n in range(4)]
    assert all("accuracy" in history[-1] and "loss" in history[-1] for history in seen)
    assert_same(watched, fit(settings()))


def test_a_resumed_run_is_watched_from_where_it_goes_on(tmp_path):
    """The history is whole: a figure then starts at the first epoch."""
    checkpoint, seen = tmp_path / "checkpoint.pt", []
    with pytest.raises(Stopped):
        fit(settings(), checkpoint=checkpoint, stop=stop_at(3, 1))
    fit(settings(), checkpoint=checkpoint, watch=lambda history: seen.append([row["epoch"] for row in history]))
    assert seen == [[1, 2, 3], [1, 2, 3, 4]]


def test_watch_comes_after_the_epochs_line(monkeypatch):
    """In a notebook the figure stands below it."""
    order = []
    monkeypatch.setattr(training, "say", lambda line: order.append("line"))
    fit(settings(epochs=2), watch=lambda history: order.append("figure"))
    assert order == ["line", "figure"] * 2


def test_the_module_trains_in_train_mode_whatever_evaluate_left(tmp_path):
    modes = []
    module = Small()
    images, labels = data()

    def loss(batch, targets):
        modes.append(module.training)
        return F.cross_entropy(module(batch), targets)

    training.train(
        module,
        loss,
        ArrayBatches([images, labels], 10, 0, CPU),
        settings(epochs=2),
        CPU,
        seed=0,
        name="finetune-A",
        evaluate=lambda epoch: module.eval() and {},
    )
    assert modes == [True] * 4


def test_what_is_frozen_is_left_alone():
    module = Small()
    module.body[0].requires_grad_(False)
    before = module.body[0].weight.clone()
    images, labels = data()
    training.train(
        module,
        lambda x, y: F.cross_entropy(module(x), y),
        ArrayBatches([images, labels], 10, 0, CPU),
        settings(epochs=1, optimizer="adamw", weight_decay=0.5),
        CPU,
        seed=0,
        name="finetune-A",
    )
    assert torch.equal(module.body[0].weight, before)


# --- rates


def test_warm_up_is_linear_and_meets_the_rate():
    chosen = settings(lr=0.2, epochs=10, warmup_epochs=2)
    assert [training.rate(p, chosen) for p in (0, 0.5, 1, 2)] == pytest.approx([0, 0.05, 0.1, 0.2])


@pytest.mark.parametrize("warm", [0, 0.5, 3])
def test_cosine_falls_from_the_rate_to_zero(warm):
    chosen = settings(lr=0.2, epochs=10, warmup_epochs=warm, schedule="cosine")
    values = [training.rate(warm + (10 - warm) * i / 100, chosen) for i in range(101)]
    assert values[0] == pytest.approx(0.2) and values[-1] == pytest.approx(0, abs=1e-12)
    assert values[50] == pytest.approx(0.1)
    assert all(later < sooner for sooner, later in itertools.pairwise(values))


def test_constant_stays():
    assert {training.rate(p, settings(lr=0.2)) for p in (0, 0.1, 3.9, 4)} == {0.2}


def test_warm_up_longer_than_the_run_is_no_fault():
    chosen = settings(epochs=2, warmup_epochs=5, schedule="cosine", lr=1.0)
    assert training.rate(2, chosen) == pytest.approx(0.4)
    assert training.rate(5, chosen) == pytest.approx(1.0)


def test_each_step_has_its_own_rate():
    rates = []
    module = nn.Linear(1, 1)
    batches = ArrayBatches([torch.ones(8, 1)], 2, 0, CPU)
    chosen = settings(epochs=2, schedule="cosine", warmup_epochs=1, optimizer="sgd")
    real = training.make_optimizer

    def spied(*words):
        optimizer = real(*words)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_optimizer", spied)
        training.train(module, lambda x: module(x).mean(), batches, chosen, CPU, seed=0, name="x")
    assert rates == [training.rate((i + 1) / 4, chosen) for i in range(8)]


# --- optimizers


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_spares_biases_and_norms(name):
    module = Small()
    optimizer = training.make_optimizer(module, settings(optimizer=name, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        is_kernel = name in ("body.0.weight", "body.5.weight")
        assert decay.pop(id(parameter)) == (0.3 if is_kernel else 0.0), name
    assert not decay


def test_adam_decays_as_the_original_did():
    """Adam with weight_decay is L2 on everything, so the group is one."""
    optimizer = training.make_optimizer(Small(), settings(optimizer="adam", weight_decay=1e-4))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "lion"}, ("optimizer=lion", "adamw")),
        ({"schedule": "step"}, ("schedule=step", "cosine")),
        ({"precision": "float8"}, ("precision=float8", "float32")),
    ],
)
def test_an_unknown_choice_is_a_clear_error(changes, words):
    with pytest.raises(UserError) as caught:
        fit(settings(**changes))
    assert all(word in str(caught.value) for word in words)


# --- faults


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_explodes_is_a_clear_error(value):
    module = nn.Linear(1, 1)
    batches = ArrayBatches([torch.ones(4, 1)], 2, 0, CPU)
    with pytest.raises(UserError, match=r"--set pretrain\.lr=0\.001"):
        training.train(module, lambda x: module(x).mean() * value, batches, settings(), CPU, seed=0, name="pretrain")


def test_the_setting_that_an_exploding_step_names_is_its_own(course_data):
    """For every step that trains: the setting exists, and it changes that step."""

    def made(changes=None):
        profile = profiles.get("smoke", changes)
        found = layout.find(course_data, profile.data)
        return graph.Steps(profile, found, store.Store("unused"), CPU)

    untrained = {name for name, step in made().all.items() if not step.trains}
    untrained |= {"control-knn", "embed", "segment-colour", "everything"}
    module, plain, wrong = nn.Linear(1, 1), made(), []
    for name in sorted(plain.all.keys() - untrained):
        with pytest.raises(UserError) as caught:
            training.train(
                module,
                lambda x: module(x).mean() * math.nan,
                ArrayBatches([torch.ones(4, 1)], 2, 0, CPU),
                settings(),
                CPU,
                seed=0,
                name=name,
            )
        setting = re.search(r"--set (\S+)=", str(caught.value)).group(1)
        try:
            changed = made({setting: 0.5}).key(name) != plain.key(name)
        except UserError:  # there is no such setting
            changed = False
        if not changed:
            wrong.append(f"{name}: {setting}")
    assert not wrong


# --- device and precision


def test_float32_is_never_autocast():
    for device in ("cpu", "cuda", "mps"):
        assert training.autocast_dtype("float32", torch.device(device)) is None


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, None),
        ({}, None),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_is_fast_at_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert training.autocast_dtype("auto", CPU) is expected
    assert training.autocast_dtype("auto", torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize("name", ["tpu9000", "", "cuda:99", "cpu:x"])
def test_a_device_that_cannot_be_used_is_a_clear_error(name):
    with pytest.raises(UserError, match=f"--device {name} .*--device cpu"):
        training.choose_device(name)


def test_auto_takes_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert training.choose_device("auto") == CPU == training.choose_device("cpu")


# --- a loss that is not finite


class Weights:
    """A small training whose loss is odd at one place; keeps the weights before each step."""

    def __init__(self, place=None, value=math.nan, rows=None):
        torch.manual_seed(0)
        self.module = nn.Linear(2, 1)
        self.rows = torch.rand(10, 2) if rows is None else rows
        self.names = [f"{number:02d}.png" for number in range(len(self.rows))]
        self.place, self.value, self.before, self.seen = place, value, [], []

    def loss(self, rows):
        self.before.append(self.module.weight.detach().clone())
        self.seen.append(rows)
        odd = len(self.before) == self.place
        return self.module(rows).pow(2).mean() * (self.value if odd else 1)

    def train(self, checkpoint=None, **options):
        """Three epochs of five steps."""
        batches = ArrayBatches([self.rows], 2, 3, CPU, names=self.names)
        options = {"name": "finetune-A", "checkpoint_every": -1.0} | options
        return training.train(
            self.module,
            self.loss,
            batches,
            settings(epochs=3, optimizer="sgd"),
            CPU,
            seed=0,
            checkpoint=checkpoint,
            **options,
        )

    def files(self, rows):
        """Which of the files these rows are."""
        return [self.names[int((self.rows == row).all(1).nonzero())] for row in rows]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize(("place", "epoch", "step"), [(1, 1, 1), (8, 2, 3), (15, 3, 5)])
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path, value, place, epoch, step):
    run, after = Weights(place, value), []
    with pytest.raises(UserError) as caught:
        run.train(tmp_path / "checkpoint.pt", after_step=after.append)
    assert len(run.before) == place and len(after) == place - 1
    assert torch.equal(run.module.weight, run.before[-1])
    said, note = str(caught.value), tmp_path / training.NOT_FINITE
    assert f"finetune-A: the loss is {value} in epoch {epoch}, step {step} of 5." in said
    assert f"the images that {note} names" in said and "\n" not in said
    assert "(now 0.01), for example --set finetune.lr=0.001." in said
    assert files.read_json(note) == {"epoch": epoch, "step": step, "loss": str(value), "files": run.files(run.seen[-1])}


def test_the_file_whose_pixels_are_odd_is_among_those_named(tmp_path):
    rows = torch.rand(10, 2)
    rows[7, 1] = math.nan
    with pytest.raises(UserError):
        Weights(rows=rows).train(tmp_path / "checkpoint.pt")
    named = files.read_json(tmp_path / training.NOT_FINITE)["files"]
    assert "07.png" in named and len(named) == 2


def test_without_a_checkpoint_a_loss_that_is_not_finite_is_told_as_well():
    """And there are batches that know no files."""
    run = Weights(place=2)
    run.names = ()
    with pytest.raises(UserError, match="is nan in epoch 1, step 2 of 5. Please lower") as caught:
        run.train()
    assert "None" not in str(caught.value) and training.NOT_FINITE not in str(caught.value)


def test_when_the_cause_is_mended_the_step_goes_on_and_forgets_it(tmp_path):
    """The checkpoint before it is good; the note of what went wrong is no result."""
    results, whole = store.Store(tmp_path), Weights()
    expected = whole.train()
    with pytest.raises(UserError), results.claimed("finetune-A", "k", {}) as draft:
        Weights(place=9).train(draft.checkpoint)
    note = draft.folder / training.NOT_FINITE
    assert note.is_file() and results.status("finetune-A", "k") == "to resume"
    with results.claimed("finetune-A", "k", {}) as draft:
        again = Weights()
        history = again.train(draft.checkpoint)
        draft.history(history)
    assert history == expected and torch.equal(again.module.weight, whole.module.weight)
    assert len(again.before) == 15 - 8  # those before the odd one did not run again
    assert not note.exists() and results.verify() == []
    assert files.read_json(draft.folder / "done.json")["files"].keys() == {"config.json", "history.csv"}


def test_a_full_disk_does_not_hide_that_the_loss_is_not_finite(tmp_path, monkeypatch):
    def full(path, data):
        raise UserError(f"{path} could not be written: No space left on device.")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(UserError, match="the loss is nan in epoch 1, step 1"):
        Weights(place=1).train(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("place", [3, 5, 15], ids=["inside", "end of an epoch", "the very end"])
def test_weights_that_are_not_finite_are_never_kept(tmp_path, place):
    """A finite loss may have a gradient that is not; after the last step no loss would show it."""

    class Root(Weights):
        def loss(self, rows):
            value = super().loss(rows)
            return value + (value * 0).sqrt() if len(self.before) == place else value

    run, path = Root(), tmp_path / "checkpoint.pt"
    with pytest.raises(UserError, match="finetune-A"):
        run.train(path)
    saved = torch.load(path, weights_only=True)["module"]
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
