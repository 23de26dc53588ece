"""Only `hw1lib run` joins torchrun's processes; an error in one of them ends all and is reported once."""

import contextlib
import datetime
import multiprocessing
import os
import pickle
import signal
import time
from unittest.mock import Mock

import pytest
import torch

from hw1lib.errors import UserError
from hw1lib.loops import distributed
from hw1lib.processes import under_torchrun
from hw1lib.steps.store import Store
from tests import processes
from tests.conftest import refused, run

COMPLETE = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "job",
}  # fmt: skip
BATCH_SYSTEM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "OMPI_COMM_WORLD_SIZE": "4", "PMI_RANK": "1"}
INVALID = [{"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "many"}, {"RANK": "4"}, {"LOCAL_RANK": "²"}]
INVALID += [{name: ""} for name in COMPLETE]


@pytest.fixture
def set_variables(monkeypatch):
    """A function that sets variables of torchrun and batch systems, and removes the others."""

    def set_variables(values):
        for name in (*COMPLETE, *BATCH_SYSTEM):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_only_complete_and_valid_variables_are_torchruns(set_variables):
    """A batch system may export some of them, as may a shell inside a job."""
    for values in ({}, {"WORLD_SIZE": "4"}, *(COMPLETE | values for values in INVALID)):
        set_variables(BATCH_SYSTEM | values)
        assert not under_torchrun(), values
    set_variables(COMPLETE)
    assert under_torchrun()


def test_a_workbook_joins_no_process_group(course_data, tmp_path, set_variables):
    """As for JupyterLab inside a job; a process group of the user's own is ignored."""
    from hw1lib.workbook import Workbook  # not above: the processes below would import it, too

    set_variables(BATCH_SYSTEM | COMPLETE)
    book = Workbook("smoke", course_data, tmp_path / "out")
    assert book.result("check-problem2").metrics["warnings"] is not None and distributed.world_size() == 1
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert (distributed.world_size(), distributed.rank(), distributed.broadcast(3)) == (1, 0, 3)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("words", [("report",), ("plan",), ("data", "check"), ("predict", "segmentation", "a", "b")])
def test_other_commands_refuse_torchrun_once(capsys, monkeypatch, set_variables, words):
    """Rank 0 reports the error; the others wait a moment and end silently."""
    set_variables(COMPLETE | {"RANK": "0", "LOCAL_RANK": "0"})
    assert f"Start `hw1lib {words[0]}` without it" in refused(capsys, *words)
    sleep = Mock()
    monkeypatch.setattr(time, "sleep", sleep)
    set_variables(COMPLETE)
    assert run(capsys, *words) == (1, "", "") and sleep.called


@pytest.mark.slow
def test_processes_that_cannot_be_reached_are_a_clear_error(capsys, course_data, tmp_path, set_variables, monkeypatch):
    monkeypatch.setattr(distributed, "CONNECT_TIMEOUT", datetime.timedelta(seconds=1))
    words = ("run", "check-problem2", "--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out")
    for address in ({}, {"MASTER_PORT": "http"}):
        set_variables(COMPLETE | address)
        assert "other processes of torchrun cannot be reached" in refused(capsys, *words)


# --- errors


FULL = UserError("The disk is full.")
PLACES = {  # nested blocks (functions, or folders of stores), the ranks that fail in the innermost, and their error
    "rank 0 first": ([distributed.rank0_first], [0], FULL),
    "a single process": ([distributed.rank0_first, distributed.single_process, distributed.rank0_first], [0], FULL),
    "before the claim": (["file"], [], FULL),  # its folder cannot be made
    "the claim, rank 1 fails": (["store"], [1], FULL),
    "all": ([], [0, 1, 2], FULL),
    "a bug": ([], [2], ZeroDivisionError()),
    "killed": ([], [1], None),
}


def fail(place, folder):
    """Fail in some of three ranks, while the others wait for them or work with them."""
    blocks, ranks, error = PLACES[place]
    with contextlib.ExitStack() as stack:
        for block in blocks:
            context = Store(folder / block).claim("pretrain", "key", {}) if isinstance(block, str) else block()
            stack.enter_context(context)
        if distributed.rank() in ranks:
            if error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise error
    distributed.all_reduce(torch.ones(()))


def fail_everywhere(rank, ports, folder):
    """Save how each of PLACES ends in one rank: the type and text of the error, and the seconds until then."""
    distributed.ERROR_GRACE = datetime.timedelta(seconds=3)
    outcomes = {}
    for place, port in zip(PLACES, ports):
        processes.join(rank, 3, port)
        outcomes[place] = "went on", "", 0.0
        started = time.monotonic()
        try:
            with distributed.process_group():
                started = time.monotonic()
                fail(place, folder)
        except BaseException as error:
            outcomes[place] = type(error).__name__, str(error), time.monotonic() - started
        (folder / f"outcomes_{rank}").write_bytes(pickle.dumps(outcomes))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outcomes")
    (folder / "file").touch()
    spawn, ports = multiprocessing.get_context("spawn"), [processes.free_port() for _ in PLACES]
    children = [spawn.Process(target=fail_everywhere, args=(rank, ports, folder)) for rank in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=300)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    return [pickle.loads((folder / f"outcomes_{rank}").read_bytes()) for rank in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_an_error_in_one_rank_ends_all_and_is_reported_once(outcomes, place):
    ends = [outcome[place] for rank, outcome in enumerate(outcomes) if (place, rank) != ("killed", 1)]
    assert all(seconds < 30 for *_, seconds in ends), ends
    reported = [(name, text) for name, text, _ in ends if name != "SystemExit"]
    assert len(reported) == 1, ends
    expected = {
        "a bug": ("ZeroDivisionError", ""),
        "killed": ("UserError", "ended without an error message"),
        "before the claim": ("UserError", "Choose another build folder"),
    }.get(place, ("UserError", "The disk is full."))
    assert reported[0][0] == expected[0] and expected[1] in reported[0][1]
