"""Several processes on one step compute what one process would, up to rounding.

In float32, training amplifies rounding from the seventh digit to the third within twenty steps. So trainings are
compared in float64, where only a fault reaches the eighth digit of a loss.
"""

import contextlib
import itertools
import subprocess
import sys
import time
from unittest import mock

import psutil
import pytest
import torch

from hw1lib import files, paths, profiles
from hw1lib.data import layout
from hw1lib.loops import distributed, loop
from hw1lib.steps import graph
from hw1lib.steps.run import Steps
from hw1lib.steps.store import Store
from tests import processes
from tests.conftest import everything_of, hw1lib, one_paragraph, write_problem1, write_problem2

CPU = torch.device("cpu")
BATCH = 9  # 4 and 5 on two processes
STEPS = 3  # of each epoch
TINY = {"model_scale": 0.125, "checkpoint_every": 1e9, "data.tile_limit": 0, "segmentation.stage_images": "0001"}


# --- trainings


class Interrupted(Exception):
    """Raised to end a training inside an epoch."""


def train(root, out, case, stop=None, **shared):
    """Train one of CASES with more settings, for at most `stop` steps.

    Returns:
        The losses of all optimizer steps, the step's history as an array, and its number of processes.
    """
    step, settings = CASES[case]
    group = {"segment-lraspp": "lraspp", "pretrain-supervised": "supervised"}.get(step, step.partition("-")[0])
    settings = {f"{group}.{name}": value for name, value in (COMMON | settings).items()}
    profile = profiles.get("smoke", TINY | settings | shared)
    steps = Steps(graph.steps, profile, layout.find(root, profile.data), Store(out), CPU)
    losses, add, count = [], loop.DivergenceGuard.add, itertools.count(1)

    def noting_add(self, loss, epoch, number):
        losses.append(loss.item())
        add(self, loss, epoch, number)
        if next(count) == stop:
            raise Interrupted

    with mock.patch.object(loop.DivergenceGuard, "add", noting_add):
        result = steps.result(step)
    return losses, result.history.drop(columns="lr").to_numpy(), result.run["processes"]


COMMON = {"epochs": 2, "precision": "float32", "batch_size": BATCH, "optimizer": "sgd", "lr": 1e-3, "warmup_epochs": 0}
CASES = {
    "BYOL with a target network": ("pretrain", {"use_momentum": True, "moving_average_decay": 0.9, "lr": 1e-4}),
    "byol-pytorch's forward pass": ("pretrain", {"one_pass": False, "augmentation": "original", "lr": 1e-4}),
    "micro-batches": ("pretrain-supervised", {"batch_size": 2 * BATCH, "accumulate": 2, "epochs": 6}),
    "LR-ASPP": ("segment-lraspp", {"average": 0.5, "crop": 0}),
    "fine-tuning": ("finetune-A", {"dropout": 0.0}),
}
INTERRUPTED = "LR-ASPP, interrupted"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """STEPS batches of the pool (without the k-NN probe's three images), of Office and of tiles."""
    root = tmp_path_factory.mktemp("distributed")
    write_problem1(root / "p1_data", pool=BATCH * STEPS + 3, train=BATCH * STEPS // 3)
    write_problem2(root / "p2_data", train=BATCH * STEPS)
    return root


def train_all(root, out):
    """Train all CASES in float64."""
    with processes.float64():
        results = {case: train(root, out / case, case) for case in CASES}
        if distributed.world_size() > 1:
            with contextlib.suppress(Interrupted):
                train(root, out / INTERRUPTED, "LR-ASPP", stop=STEPS + 2, checkpoint_every=0)
    return results


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    """What `train_all` returns in this process, and in each of two."""
    folder = tmp_path_factory.mktemp("processes")
    ranks = processes.run(2, train_all, data, folder / "two", folder=folder)
    with processes.float64():  # a single process resumes from the checkpoint of two
        resumed = train(data, folder / "two" / INTERRUPTED, "LR-ASPP")
    return train_all(data, folder / "one") | {INTERRUPTED: resumed}, ranks


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(results, case):
    """Also in validation, where the effective rank takes the square root of rounding errors."""
    (losses, history, count), (first, second) = results[0][case], (rank[case] for rank in results[1])
    assert len(losses) == 2 * STEPS and count == 1 and first[2] == 2
    assert first[0] == second[0] == pytest.approx(losses, rel=1e-8)
    assert first[1] == pytest.approx(history, rel=1e-6)


@pytest.mark.slow
def test_one_process_resumes_from_the_checkpoint_of_two(results):
    (losses, history, _), (rest, resumed_history, count) = results[0]["LR-ASPP"], results[0][INTERRUPTED]
    assert 1 <= len(rest) < STEPS and count == 1
    assert rest == pytest.approx(losses[-len(rest) :], rel=1e-8)
    assert resumed_history == pytest.approx(history, rel=1e-8)


# --- torchrun


SETTINGS = (
    "lraspp.epochs=4",
    "lraspp.crop=0",
    "segmentation.stage_images=0001",
    "model_scale=0.125",
    "checkpoint_every=0",
    "lraspp.precision=float32",
    "threads=1",
)


def arguments(out, data, *settings):
    words = ("run", "segment-lraspp", "--profile", "smoke", "--data-root", data, "--out", out, "--set", *SETTINGS)
    return [str(word) for word in (*words, *settings)]


def start_torchrun(out, data):
    """Start LR-ASPP on two processes, which torchrun may restart once; return torchrun and its processes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*words, "-m", "hw1lib", *arguments(out, data)], cwd=paths.ROOT, **pipes)
    while not list(out.glob("steps/segment-lraspp/*/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.02)
    ranks = [child for child in psutil.Process(process.pid).children() if "hw1lib" in child.cmdline()]
    assert len(ranks) == 2
    return process, ranks


def finished(out):
    """The folder of the step, and (processes, threads, resumed) of its run.json."""
    (folder,) = out.glob("steps/segment-lraspp/*")
    run = files.read_json(folder / "run.json")
    return folder, (run["processes"], run["threads"], run["resumed"])


@pytest.mark.slow
def test_killed_processes_resume_bit_identically(data, tmp_path):
    """The setting `processes` starts torchrun, whose progress is reported once."""
    whole, restarted = tmp_path / "whole", tmp_path / "restarted"
    done = hw1lib(*arguments(whole, data, "lraspp.processes=2"))
    assert done.returncode == 0 and done.stdout.count("segment-lraspp  epoch 4/4") == 1, done.stdout + done.stderr
    folder, run = finished(whole)
    assert run == (2, 1, False)

    process, ranks = start_torchrun(restarted, data)
    ranks[1].kill()
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    again, run = finished(restarted)
    assert run == (2, 1, True) and again.name == folder.name and everything_of(again) == everything_of(folder)


@pytest.mark.slow
def test_a_training_that_diverges_ends_all_processes_with_one_error(data, tmp_path):
    """Also if rank 0 alone checks the loss, before it saves a checkpoint."""
    done = hw1lib(*arguments(tmp_path, data, "lraspp.processes=2", "lraspp.lr=1e30"), timeout=300)
    assert done.returncode == 1 and "lower the learning rate" in done.stderr
    assert one_paragraph(done.stderr).startswith("hw1lib: segment-lraspp, on 2 processes: segment-lraspp: ")
