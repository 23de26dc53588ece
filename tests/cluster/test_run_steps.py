"""Steps on workers: the same bytes, whoever dies; and what is refused before anything runs."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import distributed
import psutil
import pytest
import torch

from hw1lib import files, paths
from hw1lib.cluster import run_steps, workers
from hw1lib.errors import UserError
from tests.conftest import hw1lib, one_paragraph, refused
from tests.test_kill import assert_same, checkpoint_of, only

AGAIN = ("pretrain", "finetune-C", "segment-lraspp")  # what the workers train


def report(build, *words, settings):
    """A smoke report on two workers, as a process."""
    where = () if "--cluster" in words else ("--cluster", "local:2")
    command = [sys.executable, "-m", "hw1lib", "report", "--profile", "smoke", *where, *words]
    return piped(*command, "--set", *settings, build=build)


def piped(*words, build):
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"HW1_BUILD": str(build)}
    return subprocess.Popen([*map(str, words)], cwd=paths.ROOT, env=environment, **out)


def worker_of(process, step):
    """The worker under which a step runs, and the step's own process; None where none does."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[2:5] == ["hw1lib", "run", step]:
                return child.parent(), child
    return None


@pytest.mark.slow
def test_two_workers_that_are_killed_give_the_bytes_of_one_process(smoke_run, tmp_path):
    """Their steps end with them, and go on elsewhere from the last checkpoint; then a notebook shows them."""
    ignored = shutil.ignore_patterns(*AGAIN, ".04_segmentation.json", "report.pdf")
    shutil.copytree(smoke_run, tmp_path / "smoke", ignore=ignored)
    threads = files.read_json(only(smoke_run.parent, "pretrain") / "run.json")["threads"]
    process, killed = report(tmp_path, settings=(f"threads={threads}", "checkpoint_every=0")), []
    while len(killed) < 2 and process.poll() is None:
        time.sleep(0.02)
        for step in {"pretrain", "segment-lraspp"} - set(killed):
            if checkpoint_of(tmp_path, step) and (found := worker_of(process, step)):
                found[0].send_signal(signal.SIGKILL)
                found[1].wait(timeout=20)  # the step ends with its worker
                killed.append(step)
    said = process.communicate(timeout=600)[0]
    assert len(killed) == 2, said
    assert process.returncode == 0, said
    assert "Watch   http://" in said and all(said.count(f"{step}: runs on worker") >= 2 for step in killed)
    for step in AGAIN:
        assert_same(only(tmp_path, step), only(smoke_run.parent, step))
    assert "04_segmentation: " in said and said.count("nothing to do") == 5
    assert (tmp_path / "smoke" / "report.pdf").is_file()


@pytest.mark.slow
def test_a_step_that_fails_is_not_tried_for_ever_and_the_others_finish(course_data, tmp_path):
    """Its error is the one paragraph that it said itself; what does not build on it is finished, and kept."""
    chosen = (
        "lraspp.lr=1e30",
        "lraspp.crop=0",
        "fcn32s.crop=0",
        "deeplabv3.crop=0",
        "fcn32s.epochs=1",
        "deeplabv3.epochs=1",
        "segmentation.stage_images=0001",
    )
    process = report(tmp_path, "--data-root", course_data, "--only", "problem2", settings=chosen)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 1 and "Traceback" not in said, said
    paragraph = one_paragraph(said[said.rindex("hw1lib: ") :])
    assert paragraph.startswith("hw1lib: Step segment-lraspp failed") and "lower the learning rate" in paragraph
    assert said.count("segment-lraspp: runs on worker") == 1 and "everything: not run: segment-lraspp failed" in said
    done = {path.parent.parent.name for path in tmp_path.glob("smoke/steps/*/*/done.json")}
    assert done == {"check-problem2", "segment-fcn32s", "segment-deeplabv3", "segment-colour"}


@pytest.mark.slow
def test_scheduler_and_client_killed_lose_nothing(course_data, tmp_path):
    """Without a scheduler it says so; the same command goes on from the checkpoint, also when it was killed itself."""
    dask, file = (sys.executable, "-m", "dask"), tmp_path / "scheduler.json"
    scheduler = piped(*dask, "scheduler", "--port", 0, "--no-dashboard", "--scheduler-file", file, build=tmp_path)
    worker = piped(*dask, "worker", "--scheduler-file", file, "--no-dashboard", build=tmp_path)
    words = ("--data-root", course_data, "--only", "problem2")
    settings = (
        "lraspp.epochs=80",
        "lraspp.crop=0",
        "segmentation.stage_images=0001",
        "checkpoint_every=0",
        "threads=1",
    )

    def until(done, *processes):
        while not done():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)

    until(file.exists, scheduler, worker)
    client = report(tmp_path, "--cluster", files.read_json(file)["address"], *words, settings=settings)
    until(lambda: checkpoint_of(tmp_path, "segment-lraspp"), client)
    for each in (scheduler, worker):
        each.kill()
    said = client.communicate(timeout=120)[0]
    assert client.returncode == 1 and "Traceback" not in said, said
    assert "is gone" in one_paragraph(said[said.rindex("hw1lib: ") :])

    client, saved = report(tmp_path, *words, settings=settings), checkpoint_of(tmp_path, "segment-lraspp")
    until(lambda: checkpoint_of(tmp_path, "segment-lraspp") != saved, client)
    family = psutil.Process(client.pid).children(recursive=True)
    client.kill()
    assert psutil.wait_procs(family, timeout=30)[1] == []  # workers and steps end with it

    done = hw1lib("run", "segment-lraspp", "--profile", "smoke", *words[:2], "--set", *settings, build=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files.read_json(only(tmp_path, "segment-lraspp") / "run.json")["resumed"]


# --- what is refused


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("local:x", "write it as local:N"),
        ("none.yaml", "does not describe a cluster"),
        ("tcp://127.0.0.1:1", "no sched"),
    ],
)
def test_a_cluster_that_is_none_is_one_paragraph(capsys, monkeypatch, course_data, tmp_path, where, said):
    monkeypatch.setattr(workers, "CONNECT_TIMEOUT", "1s")
    words = ("report", "--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out", "--cluster", where)
    assert said in refused(capsys, *words)


@pytest.mark.slow
def test_ctrl_c_still_interrupts_once_dask_is_imported():
    """dask-jobqueue installs a handler of its own, which ends the process without a word."""
    code = (
        "import signal; from hw1lib.cluster import run_steps; run_steps._distributed(); "
        "signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.stderr.strip().endswith("KeyboardInterrupt")


def test_without_dask_it_says_what_to_install(capsys, monkeypatch, course_data, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    words = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out", "--cluster", "local:2")
    assert "requirements-cluster.txt" in refused(capsys, "report", *words)


class Workers:
    """A client whose one worker sees something else."""

    def __init__(self, change=None, resources=None):
        self.change, self.resources = change or {}, resources or {}

    def wait_for_workers(self, *_, **__):
        pass

    def scheduler_info(self, **_):
        return {"workers": {"tcp://10.0.0.7:1": {"resources": self.resources}}}

    def run(self, function, *arguments):
        return {"tcp://10.0.0.7:1": function(*arguments) | {"host": "node7"} | self.change}


def book_in(folder, device="cpu", asked="auto"):
    step = SimpleNamespace(trains=True, parallel=False)
    steps = SimpleNamespace(step=lambda name: step, status=lambda name: "to run")
    about = {"profile": SimpleNamespace(device=asked), "planned": lambda: [("pretrain", steps, "pretrain")]}
    return SimpleNamespace(out=folder / "out", root=folder, device=torch.device(device), **about)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token": ""}, "does not see the build folder"),
        ({"data": False}, "does not see the data"),
        ({"code": "abc"}, "has other code in .*hw1lib than this process began with .abc"),
        ({"packages": {}}, "has torch not at all"),
        ({"room": 1e6}, "has 0.0 GB left"),
    ],
)
def test_a_worker_that_sees_something_else_is_named(tmp_path, change, said):
    book = book_in(tmp_path)
    with run_steps._marked(book) as mine, run_steps._marked(book):  # another report writes to the same folder
        run_steps.check(Workers(), book, mine)
        with pytest.raises(UserError, match=f"Worker tcp://10.0.0.7:1 on node7 {said}"):
            run_steps.check(Workers(change), book, mine)
    assert list(book.out.iterdir()) == []


def test_steps_on_a_gpu_want_workers_that_offer_one(tmp_path):
    book = book_in(tmp_path, "cuda")
    with run_steps._marked(book) as mine:
        run_steps.check(Workers(resources={"GPU": 1}), book, mine)
        with pytest.raises(UserError, match="--resources GPU=1, but the largest offers 0"):
            run_steps.check(Workers(), book, mine)


def test_gpus_of_workers_are_not_left_unused_where_this_process_has_none(tmp_path):
    workers = Workers(resources={"GPU": 1})
    with run_steps._marked(book_in(tmp_path)) as mine:
        run_steps.check(workers, book_in(tmp_path, asked="cpu"), mine)
        with pytest.raises(UserError, match="this process sees none"):
            run_steps.check(workers, book_in(tmp_path), mine)


REPORTS = f"{shlex.quote(sys.executable)} -c 'from hw1lib import progress; progress.error(\"The disk is full.\")'"


@pytest.mark.parametrize(
    ("script", "status", "error", "said"),
    [
        (f"{REPORTS}; echo 'hw1lib: boo'; exit 1", "running", run_steps.Failed, r"^The disk is full\.$"),
        ("echo 'hw1lib: boo'; echo 'more'; exit 1", "running", run_steps.Failed, "hw1lib: boo more"),
        ("kill -KILL $$", "running", run_steps.Failed, "SIGKILL; memory may have run out"),
        ("kill -TERM $$", "running", run_steps.Failed, "ended by SIGTERM"),
        ("kill -TERM $$", "closing", distributed.Reschedule, ""),
        (None, "running", run_steps.Failed, "worker 3 on .*: .*No such file"),
    ],
)
def test_how_a_step_ended_is_said_by_its_worker(tmp_path, monkeypatch, script, status, error, said):
    """Its own error, a signal, a Python that is not there; only where the worker ends with it does it go elsewhere."""
    worker = SimpleNamespace(name=3, log_event=lambda topic, event: None, status=SimpleNamespace(name=status))
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    monkeypatch.setattr(run_steps, "SHUTDOWN_GRACE", 0)
    words = ["/none/python"] if script is None else ["sh", "-c", script]
    with run_steps._marked(book_in(tmp_path)) as mine, pytest.raises(error) as caught:
        run_steps.work("pretrain", words, 1, 0, mine)
    assert not said or (caught.value.args[0] == "pretrain" and re.search(said, caught.value.args[1]))


@pytest.mark.parametrize(("name", "own"), [(1, ["3"]), ("node7", ["2", "3"])])
def test_a_step_has_devices_of_its_own(monkeypatch, name, own):
    """Of those that the worker was given; local workers share a machine's, and give back what they took."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    worker = SimpleNamespace(name=name)
    with run_steps._own_devices(worker, 0) as none:
        assert none == []
    for _ in range(2):
        with run_steps._own_devices(worker, 1) as first:
            assert first == own[:1]
            with run_steps._own_devices(worker, 1) as second:
                assert second == own[1:]
    assert worker.hw1lib_devices == own
