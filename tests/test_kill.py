"""A run that is killed at random moments ends with the bytes of one that was never interrupted.

HW1_KILLS is how often each step is killed: 1 by default, 8 for a thorough test.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hw1lib import files, paths
from hw1lib.report import notebooks
from hw1lib.steps import lock, store
from hw1lib.workbook import Workbook
from tests.conftest import everything_of, hw1lib

KILLS = int(os.environ.get("HW1_KILLS", 1))
TIMEOUT = 300  # seconds


def start(build, *words):
    """Start the command line in a process group of its own; it saves a checkpoint after every training step."""
    command = [sys.executable, "-m", "hw1lib", *map(str, words), "--profile", "smoke", "--set", "checkpoint_every=0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"HW1_BUILD": str(build)}
    return subprocess.Popen(command, cwd=paths.ROOT, env=environment, start_new_session=True, **pipes)


def wait_until(condition, process):
    """Wait until a condition holds; return False if the process ends first."""
    deadline = time.monotonic() + TIMEOUT
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process.poll() is None


def folder_of(build, step):
    """The one folder of a step; `build` if there is none."""
    return next((build / "smoke" / "steps" / step).glob("*"), build)


def checkpoint_time(build, step):
    """Return when the checkpoint of a step was written, or None."""
    with contextlib.suppress(FileNotFoundError):
        return (folder_of(build, step) / store.CHECKPOINT).stat().st_mtime_ns


def is_held(build, step, process):
    """Return whether a process has claimed a step."""
    with contextlib.suppress(FileNotFoundError):
        return f"process {process.pid} on " in (folder_of(build, step) / lock.HOLDER).read_text()


# pretrain: a target network and a probe; finetune-C: uses results; segment-lraspp: arrays beside the checkpoint
@pytest.mark.slow
@pytest.mark.parametrize(("step", "claimed"), [("pretrain", False), ("finetune-C", True), ("segment-lraspp", False)])
def test_a_killed_step_ends_as_if_uninterrupted(smoke_run, tmp_path, step, claimed):
    """Killed after it is claimed, also while data is loaded, or while it trains, evaluates and saves."""
    shutil.copytree(smoke_run / "steps", tmp_path / "smoke" / "steps", ignore=shutil.ignore_patterns(step))
    reference = folder_of(smoke_run.parent, step)
    seconds, rng, kills = files.read_json(reference / "run.json")["seconds"], random.Random(step), 0
    while kills < KILLS:
        before, process = checkpoint_time(tmp_path, step), start(tmp_path, "run", step)
        if claimed != bool(kills % 2):
            wait_until(lambda: is_held(tmp_path, step, process), process)
            time.sleep(rng.uniform(0, seconds / 2))
        else:
            wait_until(lambda: checkpoint_time(tmp_path, step) != before, process)
            time.sleep(rng.uniform(0, seconds / 10))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
        if process.returncode == 0:  # it ended before it was killed: start anew
            assert everything_of(folder_of(tmp_path, step)) == everything_of(reference)
            shutil.rmtree(folder_of(tmp_path, step))
        else:
            assert process.returncode == -signal.SIGKILL, output
            kills += 1
    done = hw1lib("run", step, "--profile", "smoke", build=tmp_path)
    assert done.returncode == 0 and "cannot be used" not in done.stdout, done.stdout + done.stderr
    assert everything_of(folder_of(tmp_path, step)) == everything_of(reference)


def kernels(process):
    """Return the kernels that papermill has started."""
    return [child for child in psutil.Process(process.pid).children() if "ipykernel_launcher" in child.cmdline()]


@pytest.fixture(scope="module")
def killed_run(smoke_run, tmp_path_factory):
    """A smoke report whose papermill process and then a kernel were killed; it starts with some finished steps."""
    build, rerun = tmp_path_factory.mktemp("killed run"), ("pretrain", "embed", "segment-fcn32s")
    shutil.copytree(smoke_run / "steps", build / "smoke" / "steps", ignore=shutil.ignore_patterns(*rerun))
    process = start(build, "report")
    assert wait_until(lambda: checkpoint_time(build, "pretrain"), process), process.stdout.read()
    (kernel,) = kernels(process)
    process.kill()  # the kernel lives on for about a second, and the next run meets it
    process.stdout.close()
    process = start(build, "report")
    assert wait_until(lambda: checkpoint_time(build, "segment-fcn32s"), process), process.stdout.read()
    assert not kernel.is_running()
    kernels(process)[0].kill()
    output = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 1 and "Traceback" not in output
    assert "kernel of notebook 04_segmentation died" in output and "--set fcn32s.batch_size=2" in output
    done = hw1lib("report", "--profile", "smoke", build=build)
    assert done.returncode == 0, done.stdout + done.stderr
    return build / "smoke"


def numbers(run):
    """All files of a build folder that depend neither on time nor on the machine."""
    paths = [run / "metrics.json", *run.glob("tables/*.csv"), *run.glob("figures/*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths if not path.name.startswith("timing-")}


def test_a_killed_report_has_the_bytes_of_an_uninterrupted_one(smoke_run, killed_run):
    """Its pages, too, given the same run.json, which says when, where and how fast it ran."""
    assert len(numbers(smoke_run)) > 40 and numbers(smoke_run) == numbers(killed_run)
    shutil.copy(smoke_run / "run.json", killed_run / "run.json")
    notebooks.build(Workbook("smoke", out=killed_run))
    for name in ("report.md", "report.html", "report.pdf", "figures/timing-steps.png"):
        assert (smoke_run / name).read_bytes() == (killed_run / name).read_bytes(), name
