"""Steps on workers give the same bytes whatever is killed, and unsuitable workers are refused before anything runs."""

import contextlib
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

from hw1lib import cluster, files
from hw1lib.cluster import run_steps, workers
from hw1lib.errors import UserError
from hw1lib.workbook import Workbook
from tests.conftest import everything_of, one_paragraph, refused
from tests.test_kill import checkpoint_time, folder_of, start


def report(build, *words, settings, cluster="local:2"):
    """Start a smoke report on workers."""
    return start(build, "report", "--cluster", cluster, *words, "--set", *settings)


def last_error(text):
    return one_paragraph(text[text.rindex("hw1lib: ") :])


def worker_of(process, step):
    """Return the worker process that runs a step, and the step's own process; None if there is none."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[2:5] == ["hw1lib", "run", step]:
                return child.parent(), child
    return None


TRAINED = ("pretrain", "finetune-C", "segment-lraspp")  # the steps that are not copied from the finished run


@pytest.mark.slow
def test_two_killed_workers_change_no_byte(smoke_run, tmp_path):
    """A step ends with its worker and resumes on another one from its checkpoint; then the notebooks show it."""
    ignored = shutil.ignore_patterns(*TRAINED, ".04_segmentation.json", "report.pdf")
    shutil.copytree(smoke_run, tmp_path / "smoke", ignore=ignored)
    threads = files.read_json(folder_of(smoke_run.parent, "pretrain") / "run.json")["threads"]
    process, killed = report(tmp_path, settings=[f"threads={threads}"]), []
    while len(killed) < 2 and process.poll() is None:
        time.sleep(0.02)
        for step in {"pretrain", "segment-lraspp"} - set(killed):
            if checkpoint_time(tmp_path, step) and (family := worker_of(process, step)):
                family[0].send_signal(signal.SIGKILL)
                family[1].wait(timeout=20)  # the step ends with its worker
                killed.append(step)
    text = process.communicate(timeout=600)[0]
    assert len(killed) == 2 and process.returncode == 0, text
    assert "Watch   http://" in text and all(text.count(f"{step}: runs on worker") >= 2 for step in killed)
    for step in TRAINED:
        assert everything_of(folder_of(tmp_path, step)) == everything_of(folder_of(smoke_run.parent, step))
    assert "04_segmentation: " in text and text.count("nothing to do") == 5
    assert (tmp_path / "smoke" / "report.pdf").is_file()


PROBLEM2 = {"only": "problem2", "threads": 1, "model_scale": 0.125, "segmentation.stage_images": "0001"}
PROBLEM2 |= {"lraspp.crop": 0, "fcn32s.crop": 0, "deeplabv3.crop": 0, "fcn32s.epochs": 1, "deeplabv3.epochs": 1}


def as_words(settings):
    return [f"{name}={value}" for name, value in settings.items()]


def book_with(build, root, settings):
    """Return a workbook of Problem 2 in which two models are trained, which is faster here than on workers."""
    book = Workbook("smoke", root, build / "smoke", settings)
    for name in ("segment-fcn32s", "segment-deeplabv3"):
        book.result(name)
    return book


@pytest.mark.slow
def test_a_failing_step_is_not_repeated_and_independent_steps_finish(course_data, tmp_path):
    settings = PROBLEM2 | {"lraspp.lr": 1e30}
    book = book_with(tmp_path, course_data, settings)
    process = report(tmp_path, "--data-root", course_data, settings=as_words(settings))
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 1 and "Traceback" not in text, text
    error = last_error(text)
    assert error.startswith("hw1lib: Step segment-lraspp failed") and "lower the learning rate" in error
    assert text.count("segment-lraspp: runs on worker") == 1 and "everything: not run: segment-lraspp failed" in text
    assert book.steps.status("segment-colour") == "done" and book.steps.status("everything") == "to run"


@pytest.mark.slow
def test_a_killed_scheduler_and_a_killed_client_lose_nothing(course_data, tmp_path):
    file, dask = tmp_path / "scheduler.json", [sys.executable, "-m", "dask"]
    options = ["--scheduler-file", str(file), "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "scheduler", "--port", "0", *options], stderr=subprocess.DEVNULL)
    worker = subprocess.Popen([*dask, "worker", *options], stderr=subprocess.DEVNULL)
    words, settings = ("--data-root", course_data), as_words(PROBLEM2 | {"lraspp.epochs": 80})
    book_with(tmp_path, course_data, PROBLEM2)

    def wait_until(condition, *processes):
        while not condition():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)

    wait_until(file.exists, scheduler, worker)
    client = report(tmp_path, *words, settings=settings, cluster=files.read_json(file)["address"])
    wait_until(lambda: checkpoint_time(tmp_path, "segment-lraspp"), client)
    for process in (scheduler, worker):
        process.kill()
    text = client.communicate(timeout=120)[0]
    assert client.returncode == 1 and "Traceback" not in text, text
    assert "is gone" in last_error(text)

    client, saved = report(tmp_path, *words, settings=settings), checkpoint_time(tmp_path, "segment-lraspp")
    wait_until(lambda: checkpoint_time(tmp_path, "segment-lraspp") != saved, client)
    family = psutil.Process(client.pid).children(recursive=True)
    client.kill()
    assert psutil.wait_procs(family, timeout=30)[1] == []  # workers and steps end with it
    assert checkpoint_time(tmp_path, "segment-lraspp")


# --- unsuitable clusters and workers


UNUSABLE = {
    "local:x": "write it as local:N",
    "none.yaml": "does not describe a cluster",
    "tcp://127.0.0.1:1": "no scheduler answers",
}


@pytest.mark.parametrize("where", UNUSABLE)
def test_an_unusable_cluster_is_one_paragraph(capsys, monkeypatch, course_data, tmp_path, where):
    monkeypatch.setattr(workers, "CONNECT_TIMEOUT", "1s")
    words = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out", "--cluster", where)
    assert UNUSABLE[where] in refused(capsys, "report", *words)


def test_without_dask_the_error_says_what_to_install(capsys, monkeypatch, course_data, tmp_path):
    monkeypatch.delattr(cluster, "run_steps")
    monkeypatch.delitem(sys.modules, "hw1lib.cluster.run_steps")
    monkeypatch.setitem(sys.modules, "distributed", None)
    words = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out", "--cluster", "local:2")
    assert "requirements-cluster.txt" in refused(capsys, "report", *words)


def book_in(folder, device="cpu", setting="auto"):
    """Return a workbook with one step, which trains and is not done."""
    step = SimpleNamespace(trains=True, processes=1)
    steps = SimpleNamespace(step=lambda name: step, status=lambda name: "to run")
    facts = {"profile": SimpleNamespace(device=setting), "planned": lambda: [("pretrain", steps, "pretrain")]}
    return SimpleNamespace(out=folder / "out", root=folder, device=torch.device(device), **facts)


def test_a_machine_that_differs_is_named(tmp_path):
    book = book_in(tmp_path)
    with run_steps.shared_folders(book) as folders, run_steps.shared_folders(book):  # two reports on one build folder
        expected = run_steps.snapshot(*folders)
        assert run_steps.difference(folders, expected) == ""
        for name in ("build folder", "data folder", "code of hw1lib", "torch"):
            text = run_steps.difference(folders, expected | {name: "/x"})
            assert f"a different {name}: {expected[name]} instead of /x" in text
    assert list(book.out.iterdir()) == [] and "not found instead of" in run_steps.difference(folders, expected)


@pytest.mark.slow
def test_gpus_of_workers_must_suit_the_steps(tmp_path):
    books = {"cuda": book_in(tmp_path, "cuda"), "cpu": book_in(tmp_path, setting="cpu"), "auto": book_in(tmp_path)}
    for offered, errors in (
        ({"GPU": 1}, {"cuda": "", "cpu": "", "auto": "this process sees none"}),
        ({}, {"cuda": "--resources GPU=1, but the largest offers 0", "cpu": "", "auto": ""}),
    ):
        with distributed.Client(n_workers=1, processes=False, dashboard_address=None, resources=offered) as client:
            for name, message in errors.items():
                outcome = pytest.raises(UserError, match=message) if message else contextlib.nullcontext()
                with run_steps.shared_folders(books[name]) as folders, outcome:
                    run_steps.check_workers(client, books[name], folders, run_steps.snapshot(*folders))


# --- a step on its worker

ERROR = f"{shlex.quote(sys.executable)} -c 'from hw1lib import progress; progress.error(\"The disk is full.\")'"


@pytest.mark.parametrize(
    ("script", "status", "error", "message"),
    [
        (f"{ERROR}; echo 'hw1lib: boo'; exit 1", "running", run_steps.Failed, r"^The disk is full\.$"),
        ("echo 'hw1lib: boo'; echo 'more'; exit 1", "running", run_steps.Failed, "hw1lib: boo more"),
        ("kill -KILL $$", "running", run_steps.Failed, "SIGKILL; memory may have run out"),
        ("kill -TERM $$", "running", run_steps.Failed, "killed by SIGTERM"),
        ("kill -TERM $$", "closing", distributed.Reschedule, ""),
    ],
)
def test_the_worker_says_how_a_step_ended(tmp_path, monkeypatch, script, status, error, message):
    """A step moves to another worker only if its own worker ends, too."""
    worker = SimpleNamespace(name=3, log_event=lambda topic, event: None, status=SimpleNamespace(name=status))
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    monkeypatch.setattr(run_steps, "SHUTDOWN_GRACE", 0)
    with run_steps.shared_folders(book_in(tmp_path)) as folders, pytest.raises(error) as caught:
        run_steps.work("pretrain", ["sh", "-c", script], 1, 0, 0, folders, run_steps.snapshot(*folders))
    assert not message or (caught.value.args[0] == "pretrain" and re.search(message, caught.value.args[1]))


@pytest.mark.parametrize(("name", "gpus"), [(1, ["3"]), ("node7", ["2", "3"])])
def test_concurrent_steps_use_different_gpus_of_their_worker(monkeypatch, name, gpus):
    """Workers of local:N, which have numbers for names, share the machine's GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    worker = SimpleNamespace(name=name)
    for _ in range(2):
        with run_steps._reserve_gpus(worker, 1) as first, run_steps._reserve_gpus(worker, 1) as second:
            assert [first, second] == [*gpus, ""][:2]


def test_lines_give_speed_and_time_left_from_the_second_epoch_on(monkeypatch):
    lines = []
    show = run_steps.epoch_printer("pretrain, seed 1", 100, lines.append)
    for seconds, epoch in ((10.0, 1), (11.0, None), (12.0, 2)):
        monkeypatch.setattr(time, "monotonic", lambda now=seconds: now)
        text = f"pretrain  epoch {epoch}/4" if epoch else "pretrain: epoch 9/9 collapsed"
        show({"label": "pretrain", "line": text} | ({"epoch": epoch, "epochs": 4} if epoch else {}))
    assert lines == [
        "pretrain, seed 1  epoch 1/4",
        "pretrain, seed 1: epoch 9/9 collapsed",
        "pretrain, seed 1  epoch 2/4  50 images/s  0:04 left",
    ]
