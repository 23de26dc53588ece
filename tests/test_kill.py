"""Killed at random moments, a run ends as one that was never interrupted: byte for byte.

HW1_KILLS says how often each step is killed: 2 by default, 8 for the long version.
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

KILLS = int(os.environ.get("HW1_KILLS", 2))
PATIENCE = 300  # seconds


def start(build, *words):
    """A process of the command line that saves a checkpoint after every step of training."""
    return subprocess.Popen(
        [sys.executable, "-m", "hw1lib", *words, "--profile", "smoke", "--set", "checkpoint_every=0"],
        cwd=paths.ROOT,
        env=os.environ | {"HW1_BUILD": str(build)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process):
    """Waits until something is so, or the process has ended: whether it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process.poll() is None


def only(build, step):
    """The one folder of a step, or None."""
    found = list((build / "smoke" / "steps" / step).glob("*"))
    return found[0] if found else None


def checkpoint_of(build, step):
    """Which checkpoint a step has: its date, or None."""
    with contextlib.suppress(FileNotFoundError):  # it goes when the step is done
        return ((only(build, step) or build) / store.CHECKPOINT).stat().st_mtime_ns


def held_by(process, build, step):
    """Whether a process works on a step."""
    with contextlib.suppress(FileNotFoundError):
        holder = (only(build, step) or build) / lock.HOLDER
        return f'"pid": {process.pid},' in holder.read_text()


def assert_same(folder, reference):
    found, expected = everything_of(folder), everything_of(reference)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize("step", ["pretrain", "finetune-C", "segment-lraspp"])
def test_a_step_that_is_killed_again_and_again_ends_as_if_it_never_was(smoke_run, tmp_path, step):
    shutil.copytree(smoke_run / "steps", tmp_path / "smoke" / "steps", ignore=shutil.ignore_patterns(step))
    reference = only(smoke_run.parent, step)
    seconds = files.read_json(reference / "run.json")["seconds"]
    chance = random.Random(step)
    kills = 0
    while kills < KILLS:
        before = checkpoint_of(tmp_path, step)
        process = start(tmp_path, "run", step)
        if kills % 2:  # from the claim on, while data is loaded and networks are built, too
            wait_for(lambda: held_by(process, tmp_path, step), process)
            time.sleep(chance.uniform(0, seconds / 2))
        else:  # while it trains, goes on from there, and writes
            wait_for(lambda: checkpoint_of(tmp_path, step) != before, process)
            time.sleep(chance.uniform(0, seconds / 10))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
        if process.returncode == 0:  # it was quicker: that counts, and the next one begins anew
            assert_same(only(tmp_path, step), reference)
            shutil.rmtree(only(tmp_path, step))
        else:
            assert process.returncode == -signal.SIGKILL, said
            kills += 1
    done = hw1lib("run", step, "--profile", "smoke", build=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot be used" not in done.stdout
    assert_same(only(tmp_path, step), reference)


def kernels(process):
    """Return the kernels that papermill has started."""
    return [child for child in psutil.Process(process.pid).children() if "ipykernel_launcher" in child.cmdline()]


AGAIN = ("pretrain", "finetune-C", "embed", "segment-fcn32s", "everything")  # what the killed run trains itself


@pytest.fixture(scope="module")
def killed_run(smoke_run, tmp_path_factory):
    """A smoke report whose processes were killed in turn: papermill alone, then its kernel.

    It begins with some finished steps of the run that was not killed, and runs all notebooks.
    """
    build = tmp_path_factory.mktemp("killed run")
    shutil.copytree(smoke_run / "steps", build / "smoke" / "steps", ignore=shutil.ignore_patterns(*AGAIN))
    process = start(build, "report")
    assert wait_for(lambda: checkpoint_of(build, "pretrain"), process), process.stdout.read()
    (kernel,) = kernels(process)
    process.kill()  # its kernel lives on for about a second, and the next run meets it
    process.stdout.close()
    process = start(build, "report")
    assert wait_for(lambda: checkpoint_of(build, "segment-fcn32s"), process), process.stdout.read()
    assert not kernel.is_running()
    kernels(process)[0].kill()
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 1
    assert "kernel of notebook 04_segmentation died" in said and "Traceback" not in said
    assert "--set fcn32s.batch_size=2" in said
    done = hw1lib("report", "--profile", "smoke", build=build)
    assert done.returncode == 0, done.stdout + done.stderr
    return build / "smoke"


def numbers_of(run):
    """Everything of a build folder that may not depend on time or machine."""
    found = [run / "metrics.json", *run.glob("tables/*.csv"), *run.glob("figures/*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in found if not path.name.startswith("timing-")}


def test_two_runs_give_the_same_bytes_though_one_was_killed_twice(smoke_run, killed_run):
    one, two = numbers_of(smoke_run), numbers_of(killed_run)
    assert len(one) > 40 and one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_the_same_run_json_gives_the_same_report(smoke_run, killed_run):
    """Its pages, too: only run.json says how long it took, where and when."""
    shutil.copy(smoke_run / "run.json", killed_run / "run.json")
    notebooks.build(Workbook("smoke", out=killed_run))
    for name in ("report.md", "report.html", "report.pdf", "figures/timing-steps.png"):
        assert (smoke_run / name).read_bytes() == (killed_run / name).read_bytes(), name
