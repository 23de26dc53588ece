"""Only `hw1lib run` joins the processes of torchrun, and an error in one of them ends all, reported once."""

import contextlib
import datetime
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from hw1lib import paths
from hw1lib.errors import UserError
from hw1lib.loops import distributed
from hw1lib.steps.store import Store
from tests.conftest import one_paragraph, refused, run
from tests.processes import free_port

COMPLETE = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "job",
}  # fmt: skip
BATCH = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "OMPI_COMM_WORLD_SIZE": "4", "PMI_RANK": "1"}
SUBSETS = [names for count in range(len(COMPLETE)) for names in itertools.combinations(COMPLETE, count)]
ODD = [{"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "many"}, {"RANK": ""}, {"RANK": "4"}, {"WORLD_SIZE": "-4"},
       {"LOCAL_RANK": "²"}, {"TORCHELASTIC_RUN_ID": ""}, {"LOCAL_WORLD_SIZE": "1"}]  # fmt: skip


@pytest.fixture
def variables(monkeypatch):
    """Sets variables of torchrun and batch systems, and no others of them."""

    def put(given):
        for name in (*COMPLETE, *BATCH):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.slow
def test_what_a_batch_system_exports_makes_nobody_wait(capsys, course_data, tmp_path, variables):
    """Each subset of torchrun's variables but the whole, and whole ones with values that make no sense."""
    words = ("run", "check-problem2", "--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out")
    cases = [{name: COMPLETE[name] for name in names} for names in SUBSETS] + [COMPLETE | odd for odd in ODD]
    for given in cases:
        variables(BATCH | given)
        assert run(capsys, *words)[0] == 0, given
    assert len(cases) == 127 + len(ODD)


def test_a_workbook_joins_nobody(course_data, tmp_path, variables):
    """As in JupyterLab inside of a job; what torch's own group is used for is not its business."""
    from hw1lib.workbook import Workbook  # not at the top: the processes below would import it, too

    variables(BATCH | COMPLETE)
    book = Workbook("smoke", course_data, tmp_path / "out")
    assert book.result("check-problem2").metrics["warnings"] is not None and distributed.count() == 1
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert (distributed.count(), distributed.rank(), distributed.agreed(3)) == (1, 0, 3)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("words", [("report",), ("plan",), ("data", "check"), ("predict", "segmentation", "a", "b")])
def test_other_commands_under_torchrun_say_so_once(capsys, monkeypatch, variables, words):
    variables(COMPLETE | {"RANK": "0", "LOCAL_RANK": "0"})
    assert f"Start `hw1lib {words[0]}` without it" in refused(capsys, *words)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    variables(COMPLETE)
    assert run(capsys, *words) == (1, "", "") and slept


def test_processes_that_cannot_be_reached_are_one_paragraph(capsys, monkeypatch, course_data, tmp_path, variables):
    """As where a whole set of variables was left behind by another job."""
    monkeypatch.setattr(distributed, "CONNECT", datetime.timedelta(seconds=1))
    words = ("run", "check-problem2", "--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out")
    for address in ({}, {"MASTER_PORT": "http"}, {"MASTER_ADDR": "none.invalid"}):
        variables(COMPLETE | address)
        assert "other processes of torchrun cannot be reached" in refused(capsys, *words)


# --- errors of one process


# What processes are in when some of them fail: blocks, the ranks that fail, and how.
FULL = UserError("The disk is full.")
PLACES = {
    "first": ([distributed.first], [0], FULL),
    "first, second process": ([distributed.first], [1], FULL),
    "by itself": ([distributed.first, distributed.alone, distributed.first], [0], FULL),
    "before the claim": (["file"], [], FULL),  # the folder of steps cannot be made
    "the claim": (["one"], [0], FULL),
    "the claim, second process": (["two"], [1], FULL),
    "a sum": ([], [2], FULL),
    "all": ([], [0, 1, 2], FULL),
    "a bug": ([], [0], ZeroDivisionError()),
    "killed": ([], [1], None),
}


def fail(place, folder):
    """Fails in some of three processes, while the others wait for them or work with them."""
    blocks, ranks, error = PLACES[place]
    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(
                Store(folder / block).claimed("pretrain", "key", {}) if isinstance(block, str) else block()
            )
        if distributed.rank() in ranks:
            if error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise error
    distributed.total(torch.ones(()))


def attempt(rank, ports, folder):
    """What each place ends with in one of the processes: the error, its text and the seconds that it took."""
    distributed.GRACE = datetime.timedelta(seconds=3)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "tests"}
    outcomes = {}
    for place, port in zip(PLACES, ports):
        os.environ["MASTER_PORT"] = str(port)
        outcomes[place] = "went on", "", 0.0
        started = time.monotonic()
        try:
            with distributed.group():
                started = time.monotonic()
                fail(place, folder)
        except BaseException as error:
            outcomes[place] = type(error).__name__, str(error), time.monotonic() - started
        (folder / f"outcomes_{rank}").write_bytes(pickle.dumps(outcomes))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outcomes")
    (folder / "file").touch()
    spawn, ports = multiprocessing.get_context("spawn"), [free_port() for _ in PLACES]
    started = [spawn.Process(target=attempt, args=(rank, ports, folder)) for rank in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=300)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return [pickle.loads((folder / f"outcomes_{rank}").read_bytes()) for rank in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_an_error_in_one_process_ends_all_and_is_reported_once(outcomes, place):
    """Wherever the others wait, and also where they are not restarted by torchrun."""
    ends = [outcome[place] for rank, outcome in enumerate(outcomes) if (place, rank) != ("killed", 1)]
    assert all(seconds < 30 for *_, seconds in ends), ends
    reported = [(name, text) for name, text, _ in ends if name != "SystemExit"]
    assert len(reported) == 1, ends
    expected = {
        "a bug": ("ZeroDivisionError", ""),
        "killed": ("UserError", "ended without an error message"),
        "before the claim": ("UserError", "--out names another build folder"),
    }.get(place, ("UserError", "The disk is full."))
    assert reported[0][0] == expected[0] and expected[1] in reported[0][1]


@pytest.mark.slow
def test_torchrun_report_is_one_sentence(tmp_path):
    """And its processes end at once."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hw1lib"]
    words = [*torchrun, "report", "--profile", "smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=paths.ROOT, capture_output=True, text=True, timeout=120)
    said = re.findall("^hw1lib: .*$", done.stderr, re.MULTILINE)
    assert done.returncode == 1 and len(said) == 1 and "without it" in one_paragraph(said[0])
    assert not list(tmp_path.iterdir())
