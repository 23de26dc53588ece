"""Several processes on one step: what they compute is what one would, up to rounding.

Rounding differs between processors, and training makes it grow, in float32 from the seventh digit to the third within
twenty steps. So these tests compare in float64, where nothing but a fault reaches the eighth digit of a loss.
"""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from unittest import mock

import psutil
import pytest
import torch
from torch import nn

from hw1lib import files, paths, profiles
from hw1lib.data import layout
from hw1lib.errors import UserError
from hw1lib.loops import distributed, loop
from hw1lib.steps.run import Steps
from hw1lib.steps.store import Store
from tests import processes
from tests.conftest import everything_of, hw1lib, one_paragraph, write_problem1, write_problem2

CPU = torch.device("cpu")
BATCH = 10  # on three processes 3, 3 and 4
TINY = {"model_scale": 0.125, "checkpoint_every": 1e9, "data.tile_limit": 0, "segmentation.stage_images": "0001"}


# --- BatchNorm


def normalised(maps, affine):
    """Outputs, gradients and running statistics of two steps on this process's part, with channels of any kind."""
    torch.manual_seed(0)
    norm = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(4, affine=affine)
    values = torch.randn(BATCH, 4, *(5, 6) * maps) * 3 + 100
    mine = values[distributed.part(BATCH)].requires_grad_()
    distributed.synchronise(norm, CPU)
    for _ in range(2):
        found = norm(mine)
    weight = torch.arange(1, BATCH + 1)[distributed.part(BATCH)].view(-1, 1, *(1, 1) * maps)
    distributed.joined((found.sin() * weight).flatten(1).sum(1, keepdim=True), BATCH).sum().backward()
    state = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    with torch.no_grad():
        outputs, gradient = (distributed.joined(part, BATCH) for part in (found, mine.grad))
    evaluated = norm.eval()(mine)
    return outputs, gradient / distributed.count(), state, distributed.joined(evaluated.detach(), BATCH)


def both_normalised():
    with processes.float64():
        return normalised(maps=True, affine=True), normalised(maps=False, affine=False)


@pytest.mark.slow
def test_batchnorm_over_all_processes_is_that_of_the_whole_batch(tmp_path):
    """In outputs, gradients and running statistics, for parts that differ in size."""
    expected = both_normalised()
    for found in processes.run(3, both_normalised, folder=tmp_path):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# --- trainings


class Interrupted(Exception):
    """What ends a training in the middle of an epoch."""


@contextlib.contextmanager
def ending_after(steps):
    """Ends the training in here after so many optimizer steps."""
    note, taken = loop.Finite.note, itertools.count(1)

    def noting(self, value, epoch, place):
        note(self, value, epoch, place)
        if next(taken) == steps:
            raise Interrupted

    with mock.patch.object(loop.Finite, "note", noting), contextlib.suppress(Interrupted):
        yield


def trained(root, out, step, chosen):
    """The losses of all optimizer steps, the step's history, and how many processes it says that it had."""
    losses, note = [], loop.Finite.note

    def noting(self, value, epoch, place):
        losses.append(value.item())
        note(self, value, epoch, place)

    profile = profiles.get("smoke", TINY | chosen)
    steps = Steps(profile, layout.find(root, profile.data), Store(out), CPU)
    with mock.patch.object(loop.Finite, "note", noting):
        result = steps.result(step)
    return losses, result.history.drop(columns="lr").to_numpy(), result.run["processes"]


FLOAT = {"epochs": 4, "precision": "float32", "batch_size": BATCH, "optimizer": "sgd", "lr": 1e-3, "warmup_epochs": 0}
CASES = {
    "BYOL": ("pretrain", {"use_momentum": False, "lr": 1e-4}),
    "BYOL with a target network": ("pretrain", {"use_momentum": True, "moving_average_decay": 0.9, "lr": 1e-4}),
    "the package's own pass": ("pretrain", {"one_pass": False, "augmentation": "original", "lr": 1e-4}),
    "supervised": ("pretrain-supervised", {}),
    "in parts": ("pretrain-supervised", {"batch_size": 2 * BATCH, "accumulate": 2, "epochs": 10}),
    "LR-ASPP": ("segment-lraspp", {"average": 0.5, "crop": 0}),
    "fine-tuning": ("finetune-A", {"dropout": 0.0}),
}
THREE = ("BYOL", "BYOL with a target network", "supervised", "LR-ASPP")
NARROW, INTERRUPTED = ("float32", "bfloat16"), "LR-ASPP, interrupted"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("parallel")
    write_problem1(root / "p1_data", pool=57, train=17)  # five batches an epoch of each
    write_problem2(root / "p2_data", train=5 * BATCH)
    return root


def one_trained(root, out, case, more=None, **shared):
    """What `trained` gives for one of CASES, with more settings of its training and of all steps."""
    step, settings = CASES[case]
    group = {"segment-lraspp": "lraspp", "pretrain-supervised": "supervised"}.get(step, step.partition("-")[0])
    settings = FLOAT | settings | (more or {})
    return trained(root, out, step, {f"{group}.{name}": value for name, value in settings.items()} | shared)


def all_trained(root, out, cases):
    """What `trained` gives for each case, in this process and in float64; also an epoch of BYOL in each NARROW type."""
    with processes.float64():
        results = {case: one_trained(root, out / case, case) for case in cases}
        if distributed.count() == 2:
            with ending_after(8):  # in the second epoch
                one_trained(root, out / INTERRUPTED, "LR-ASPP", checkpoint_every=0)
    narrow = {name: one_trained(root, out / name, "BYOL", {"precision": name, "epochs": 1}) for name in NARROW}
    return results | narrow


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    """All cases here and in two processes, and those of THREE in three: {processes: [{case: …} of each]}."""
    folder, several = tmp_path_factory.mktemp("processes"), {2: list(CASES), 3: THREE}
    theirs = {n: processes.run(n, all_trained, data, folder / str(n), several[n], folder=folder) for n in several}
    with processes.float64():  # goes on alone from the checkpoint of two
        resumed = one_trained(data, folder / "2" / INTERRUPTED, "LR-ASPP")
    return theirs | {1: [all_trained(data, folder / "1", CASES) | {INTERRUPTED: resumed}]}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_processes_take_the_steps_that_one_would(results, case):
    """Twenty of them, and each epoch's validation, whose effective rank takes the square root of rounding errors."""
    losses, history, alone = results[1][0][case]
    assert len(losses) == 20 and alone == 1
    for several in (results[n] for n in (2, 3) if case in results[n][0]):
        theirs, measured, together = several[0][case]
        assert together == len(several) and all(other[case][0] == theirs for other in several)
        assert theirs == pytest.approx(losses, rel=1e-8)
        assert measured == pytest.approx(history, rel=1e-6)


@pytest.mark.slow
def test_a_step_in_bfloat16_is_near_that_in_float32(results):
    """From the same weights and views. Each of 53 layers rounds to 2⁻⁹ of its values, so embeddings move by about
    √53·2⁻⁹ = 1.4 %, and a loss of about 4 by as much.
    """
    expected = results[1][0]["float32"][0][0]
    for several in results.values():
        (narrow, *_), *_ = several[0]["bfloat16"]
        (single, *_), *_ = several[0]["float32"]
        assert narrow == pytest.approx(expected, rel=0.014) and single == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_one_process_goes_on_from_the_checkpoint_of_two(results):
    """In the steps and epochs that an uninterrupted one would take."""
    (whole, history, _), (rest, whole_history, alone) = results[1][0]["LR-ASPP"], results[1][0][INTERRUPTED]
    assert 13 <= len(rest) < 20 and alone == 1
    assert rest == pytest.approx(whole[-len(rest) :], rel=1e-8)
    assert whole_history == pytest.approx(history, rel=1e-8)


# --- torchrun


def test_restarts_on_several_machines_want_a_store_of_their_own(monkeypatch):
    """Agents count restarts each by itself; on one machine the count tells the rounds apart."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert distributed._attempt() == "2"
    for name, value in {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "False"}.items():
        monkeypatch.setenv(name, value)
    assert distributed._attempt() == "0"
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed._attempt()


SET = (
    "lraspp.epochs=4",
    "lraspp.crop=0",
    "segmentation.stage_images=0001",
    "model_scale=0.125",
    "checkpoint_every=0",
    "lraspp.precision=float32",
    "threads=1",
)


def torchrun(out, data):
    """Two processes on LR-ASPP with a checkpoint, as a process; each may be started again once. Also theirs."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    words += ["-m", "hw1lib", "run", "segment-lraspp", "--profile", "smoke", "--data-root", data, "--out", out]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*map(str, words), "--set", *SET], cwd=paths.ROOT, env=environment, **pipes)
    while not list(out.glob("steps/segment-lraspp/*/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.02)
    ranks = [child for child in psutil.Process(process.pid).children() if "hw1lib" in child.cmdline()]
    assert len(ranks) == 2
    return process, ranks


def alone(out, data, *options):
    """The same step by `hw1lib run`."""
    words = ("run", "segment-lraspp", "--profile", "smoke", "--data-root", data, "--out", out, "--set", *SET)
    done = hw1lib(*words, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def result(out):
    """The folder of the step, and what its run.json says of processes, threads and whether it was resumed."""
    (folder,) = out.glob("steps/segment-lraspp/*")
    run = files.read_json(folder / "run.json")
    return folder, (run["processes"], run["threads"], run["resumed"])


@pytest.mark.slow
def test_killed_processes_go_on_from_the_checkpoint(data, tmp_path):
    """Two of them to the bit of a run that nobody killed, which the setting `processes` starts by itself."""
    whole, again, other = (tmp_path / name for name in ("whole", "again", "other"))
    said = alone(whole, data, "lraspp.processes=2")
    assert said.count("segment-lraspp  epoch 4/4") == 1  # one of the two speaks
    folder, run = result(whole)
    assert run == (2, 1, False)

    process, ranks = torchrun(again, data)
    ranks[1].kill()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert result(again)[1] == (2, 1, True) and result(again)[0].name == folder.name
    assert everything_of(result(again)[0]) == everything_of(folder)

    process, ranks = torchrun(other, data)
    for each in (process, *ranks):
        each.kill()
    process.communicate()
    alone(other, data)
    assert result(other)[1] == (1, 1, True)


@pytest.mark.slow
def test_a_training_that_diverges_ends_all_processes(data, tmp_path):
    """Also where the first one alone looks at the loss, before it saves a checkpoint; what it says is said once."""
    settings = (*SET, "lraspp.processes=2", "data.tile_limit=0", "lraspp.lr=1e30")
    words = ("run", "segment-lraspp", "--profile", "smoke", "--data-root", data, "--out", tmp_path, "--set", *settings)
    done = hw1lib(*words, timeout=120)
    assert done.returncode == 1
    assert one_paragraph(done.stderr).startswith("hw1lib: segment-lraspp, on 2 processes: segment-lraspp: ")
    assert "lower the learning rate" in done.stderr
