"""The store: results are found by their key, used only if undamaged, and locked while they are computed."""

import contextlib
import hashlib
import multiprocessing
import os
import platform
import threading
import time
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch
from torch import nn

from hw1lib import files
from hw1lib.data import hashes
from hw1lib.errors import UserError
from hw1lib.steps import store
from tests.test_files import full_disk, names

KEY = "0123456789abcdef"
HIDDEN = [".holder", ".lock"]
NOT_A_DICT = (b"", b"{", b"\xff\xfe", b"null", b"[]", b"{}")
RESUMED = [*HIDDEN, "checkpoint.pt", "config.json", "metrics.json", "stage_early.npy"]


@pytest.fixture
def results(tmp_path):
    return store.Store(tmp_path)


def finish(results, step="pretrain", key=KEY, **metrics):
    """Finish a step that writes a file of each kind."""
    with results.claim(step, key, {"step": step}) as draft:
        draft.metrics(metrics or {"accuracy": 0.5})
        draft.history([{"epoch": 1, "loss": 2.0}])
        draft.array("predictions", np.arange(6).reshape(2, 3))
        draft.weights(nn.Linear(3, 2))
    return results.result(step, key)


class Stopped(Exception):
    pass


def attempt(results, step="pretrain", checkpoint=b"half way", key=KEY):
    """Interrupt a step, and return its folder."""
    with contextlib.suppress(Stopped), results.claim(step, key, {}) as draft:
        draft.metrics({"accuracy": 0.1})
        draft.history([{"epoch": 1}])
        draft.array("stage_early", np.zeros(3))
        if checkpoint:
            draft.checkpoint.write_bytes(checkpoint)
        raise Stopped
    return results.folder(step, key)


def checkpoints(results):
    return sorted(path.parent for path in results.out.glob("steps/*/*/checkpoint.pt"))


def is_free(folder):
    """Return whether no process holds the lock of a step."""
    try:
        with filelock.FileLock(folder / ".lock").acquire(timeout=0):
            return True
    except filelock.Timeout:
        return False


# --- keys and contents


def test_every_change_changes_the_key_and_nothing_else_does():
    one = {"a": [1, 2.5, "x"], "b": {"c": None, "d": True}}
    assert store.key_of(one) == store.key_of({"b": {"d": True, "c": None}, "a": (1, 2.5, "x")})
    values = [1, 2, "1", True, None, [1], {}, {"b": 1}, [1, 2], [2, 1], 1e-4, 1.0000000000000002e-4, ""]
    variants = [{"a": value} for value in values] + [{"b": 1}, {"a": 1, "b": None}, {}]
    assert len({store.key_of(v) for v in variants}) == len(variants)
    # A literal: if the rule changed, stored results would no longer be found.
    assert store.key_of({"step": "pretrain", "settings": {"lr": 0.001}}) == "6e4d2f1270ccc7e8"


def test_what_was_written_is_what_is_read(results):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    module(torch.randn(2, 3, 8, 8))  # changes BatchNorm's buffers
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "confusion": [[1]]}, {"epoch": 2, "loss": 1e-9}]
    with results.claim("pretrain", KEY, {"lr": 1e-3}) as draft:
        draft.metrics({"miou": 1 / 3, "none": None})
        draft.history(rows)
        draft.array("masks", np.array([[True, False]]))
        draft.weights(module)
        files.write_json(draft.folder / "run.json", {"seconds": 1})
        with pytest.raises(ValueError, match="pickle"):  # which reading it would take
            draft.array("bad", np.array([{}, None], dtype=object))
    result = results.result("pretrain", KEY)
    assert result.metrics == {"miou": 1 / 3, "none": None} and result.run == {"seconds": 1} and result.key == KEY
    assert result.history.to_dict("list") == {"epoch": [1, 2], "loss": [0.1 + 0.2, 1e-9]}
    assert result.array("masks").dtype == bool and result.array("masks").tolist() == [[True, False]]
    torch.testing.assert_close(result.weights(), dict(module.state_dict()), rtol=0, atol=0)
    assert files.read_json(result.folder / "config.json") == {"lr": 1e-3}
    assert is_free(result.folder) and not {".holder", "bad.npy"} & set(names(result.folder))

    before = (result.folder / "done.json").stat().st_mtime_ns
    with results.claim("pretrain", KEY, {"step": "other"}) as draft:  # is not run again
        assert draft is None
    assert (result.folder / "done.json").stat().st_mtime_ns == before


def test_configs_are_those_of_finished_results(results):
    path = finish(results).folder / "config.json"
    attempt(results, key="a" * 16)
    assert results.configs("pretrain") == [{"step": "pretrain"}] and results.configs("embed") == []
    for content in NOT_A_DICT:
        path.write_bytes(content)
        assert results.configs("pretrain") == []


# --- damage


def damage(path, kind):
    content = path.read_bytes()
    path.unlink()
    if kind == "altered":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])  # one bit
    elif kind == "truncated":
        path.write_bytes(content[:-1])
    elif kind == "a folder":
        (path / "another").mkdir(parents=True)
    elif kind == "a dead link":
        path.symlink_to("nowhere")


DAMAGE = [("metrics.json", "altered"), ("weights.safetensors", "truncated"), ("history.csv", "deleted")]
DAMAGE += [("predictions.npy", "a folder"), ("config.json", "a dead link")]


@pytest.mark.parametrize(("file", "kind"), DAMAGE)
def test_a_damaged_step_is_run_again(results, capsys, monkeypatch, file, kind):
    """Also if this process has verified it before, and keeps its hashes."""
    monkeypatch.setattr(hashes, "RACY", -1)
    folder = finish(results).folder
    assert results.done("pretrain", KEY)
    damage(folder / file, kind)
    problem = f"{file} {'was altered' if kind in ('altered', 'truncated') else 'is missing'}"
    assert not results.done("pretrain", KEY) and results.status("pretrain", KEY) == "to run"
    assert results.damage("pretrain", KEY) == [problem]
    assert results.verify() == [f"pretrain/{KEY}/{problem}"]
    (folder / "checkpoint.pt").write_bytes(b"as doubtful as the result")
    assert finish(results, accuracy=0.75).metrics == {"accuracy": 0.75}
    assert f"pretrain: {problem}. The step is run again." in capsys.readouterr().out
    assert results.done("pretrain", KEY) and store.Store(results.out).verify() == []


FILES = ["null", "[[1, 2]]", "{}", r'{"a\u0000b": "0"}', '{"metrics.json": null}']


@pytest.mark.parametrize("marker", [*NOT_A_DICT, *(f'{{"files": {files}}}'.encode() for files in FILES), None])
def test_a_damaged_marker_is_no_marker(results, marker):
    """Nor is a folder in its place."""
    path = finish(results).folder / "done.json"
    damage(path, "a folder") if marker is None else path.write_bytes(marker)
    assert not results.done("pretrain", KEY) and len(results.verify()) == 1
    assert finish(results, accuracy=0.75).metrics == {"accuracy": 0.75}
    assert results.verify() == []


def test_verify_names_a_missing_marker(results):
    """run.json shows that the step had finished."""
    finish(results)
    folder = finish(results, "finetune-A").folder
    files.write_json(folder / "run.json", {})
    (folder / "done.json").unlink()
    assert not results.done("finetune-A", KEY)
    assert results.verify() == [f"finetune-A/{KEY}/done.json is missing"]
    (folder / ".holder").touch()  # the step is running
    assert results.verify() == []


def test_a_result_is_hashed_once_and_again_when_its_date_changes(results, monkeypatch):
    """A report asks hundreds of times."""
    folder, hashed, digest = finish(results).folder, [], hashlib.file_digest
    monkeypatch.setattr(hashes, "RACY", -1)
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind))
    results = store.Store(results.out)
    assert all(results.done("pretrain", KEY) for _ in range(3)) and len(hashed) == 5
    os.utime(folder / "metrics.json", (1, 1))
    assert results.done("pretrain", KEY) and hashed[5:] == [str(folder / "metrics.json")]


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_result_that_is_damaged_while_in_use_is_named(results, content):
    result = finish(results)
    for name in ("metrics", "run"):
        (result.folder / f"{name}.json").write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.json is damaged.*pretrain"):
            getattr(result, name)


# --- unfinished attempts


@pytest.mark.parametrize("checkpoint", [b"half way", b""], ids=["resumed", "anew"])
def test_a_resumed_step_finds_its_checkpoint_arrays_and_metrics_alone(results, checkpoint):
    """Not the half-written files of a killed process, nor folders such as JupyterLab's."""
    folder = attempt(results, checkpoint=checkpoint)
    assert results.status("pretrain", KEY) == ("to resume" if checkpoint else "to run")
    with pytest.raises(UserError, match="no finished step"):
        results.verify()
    for name in (".checkpoint.pt.x7a", ".late.npy.abc"):
        (folder / name).write_text("half of it")
    for name in (".ipynb_checkpoints", "copies"):
        (folder / name).mkdir()
        (folder / name / "metrics-checkpoint.json").write_text("{}")
    with results.claim("pretrain", KEY, {"n": 2}) as draft:
        assert names(folder) == (RESUMED if checkpoint else [*HIDDEN, "config.json"])
        metrics = {"accuracy": 0.1} if checkpoint else {}
        assert draft.resumed == bool(checkpoint) and draft.earlier_metrics() == metrics
        assert files.read_json(folder / "config.json") == {"n": 2}
        draft.metrics({})
        (folder / "copies").mkdir()
    assert "checkpoint.pt" not in names(folder)
    assert results.done("pretrain", KEY) and results.verify() == []


def test_a_kill_while_results_are_hashed_costs_no_training(results, monkeypatch):
    """The checkpoint is deleted last; if the process is killed before that, the next step deletes it."""
    with monkeypatch.context() as patch, contextlib.suppress(ZeroDivisionError):
        patch.setattr(files, "digest", lambda path: 1 / 0)
        with results.claim("pretrain", KEY, {}) as draft:
            draft.checkpoint.write_bytes(b"all epochs")
    assert results.status("pretrain", KEY) == "to resume"
    (finish(results).folder / "checkpoint.pt").write_bytes(b"all epochs")
    attempt(results, "embed", checkpoint=b"")
    assert checkpoints(results) == [] and results.done("pretrain", KEY)


def dated(folder, days, size=0):
    """Give an attempt an age in days, and its checkpoint a size in bytes that uses no disk space."""
    with open(folder / "checkpoint.pt", "ab") as file:
        file.truncate(size)
    for path in folder.iterdir():
        os.utime(path, (time.time() - 86_400 * days,) * 2)
    return folder


LIMITS = [  # ages in days and sizes in GB of attempts, GB of free disk, which attempts stay, the reason for the others
    ([(29, 1), (1, 1)], 100, [0, 1], ""),
    ([(31, 0.001), (1, 1), (400, 1)], 100, [1], "older than 30 days"),
    ([(5, 2.2), (4, 2.2), (3, 2.2), (2, 2.2), (1, 2.2)], 100, [1, 2, 3, 4], "more than 10 GB"),
    ([(1, 11), (2, 0.5)], 100, [], "more than 10 GB"),
    ([(3, 2), (2, 2), (1, 2)], 2, [2], "less than 5 GB of the disk free"),
]


@pytest.mark.parametrize(("attempts", "free", "stay", "reason"), LIMITS)
def test_unfinished_attempts_are_limited_by_age_size_and_disk_space(
    results, monkeypatch, capsys, attempts, free, stay, reason
):
    """The oldest of any step is deleted first, and each deletion is reported; results stay."""
    finish(results, "embed")
    begun = [attempt(results, ("pretrain", "segment-fcn32s")[n % 2], key=str(n) * 16) for n in range(len(attempts))]
    for folder, (days, size) in zip(begun, attempts):
        dated(folder, days, int(size * 1e9))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free * 1e9))
    finish(results, "finetune-A")
    assert checkpoints(results) == sorted(begun[n] for n in stay) and results.done("embed", KEY)
    assert all({"checkpoint.pt", "metrics.json", "stage_early.npy"} <= set(names(begun[n])) for n in stay)
    lines = capsys.readouterr().out.splitlines()
    deleted = [folder for n, folder in enumerate(begun) if n not in stay]
    assert {line.rpartition(": ")[0] for line in lines} == {
        f"{folder.parent.name}: deleted the unfinished attempt {folder}" for folder in deleted
    }
    assert len(lines) == len(deleted) and all(reason in line for line in lines)


def test_running_attempts_are_neither_counted_nor_deleted(results, monkeypatch):
    monkeypatch.setattr(store, "ATTEMPT_BYTES", 0)
    idle = dated(attempt(results, "finetune-A"), 50)
    with running(results.out, checkpoint=True) as (process, _):
        busy = dated(results.folder("pretrain", KEY), 40)
        own = dated(attempt(results, "segment-fcn32s"), 60)
        assert set(checkpoints(results)) == {busy, own} and names(idle) == [".lock"]
        with results.claim("segment-fcn32s", KEY, {}) as draft:
            assert draft.resumed
        assert process.is_alive()


def test_an_unreadable_checkpoint_is_kept_until_its_step_is_done(results, monkeypatch, capsys):
    """It counts as an attempt."""
    draft = store.Draft("pretrain", attempt(results))
    draft.set_aside("it is damaged")
    assert results.status("pretrain", KEY) == "to run"
    unreadable = draft.folder / "unreadable"
    text = f"pretrain: {draft.checkpoint} cannot be used (it is damaged). It is kept in {unreadable}, and the step"
    assert text in capsys.readouterr().out
    attempt(results)
    assert names(unreadable) == ["checkpoint.pt", "stage_early.npy"]
    finish(results)
    assert results.done("pretrain", KEY) and results.verify() == [] and not unreadable.exists()
    other = store.Draft("embed", attempt(results, "embed"))
    other.set_aside("it is damaged")
    monkeypatch.setattr(store, "ATTEMPT_BYTES", 20)
    finish(results, "finetune-A")
    assert names(other.folder) == [".lock"]


# --- locks


def run_step(out, checkpoint, connection):
    """Run a step until told to finish; this is the code of a child process."""
    with store.Store(out).claim("pretrain", KEY, {}) as draft:
        draft.metrics({"by": os.getpid()})
        if checkpoint:
            draft.checkpoint.write_bytes(b"half way")
        connection.send("claimed")
        connection.recv()


@contextlib.contextmanager
def running(out, checkpoint=False):
    """Yield a process that runs a step, and a function that lets it finish."""
    processes = multiprocessing.get_context("fork")
    connection, other_end = processes.Pipe()
    process = processes.Process(target=run_step, args=(out, checkpoint, other_end))
    process.start()
    try:
        assert connection.poll(20) and connection.recv() == "claimed"
        yield process, lambda: connection.send("finish")
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(("killed", "note"), [(False, None), (True, None), (False, b""), (False, b"\xff\xfe")])
def test_the_second_process_waits_says_for_whom_and_takes_over(results, capsys, killed, note):
    """It loads what the first one finished; if that was killed, it runs the step. A damaged note is ignored."""
    with running(results.out) as (process, finish_it):
        folder = results.folder("pretrain", KEY)
        assert not is_free(folder)
        if note is not None:
            (folder / ".holder").write_bytes(note)
        threading.Timer(0.4, process.kill if killed else finish_it).start()
        with results.claim("pretrain", KEY, {}) as draft:
            assert (draft is not None) == killed
            if killed:
                draft.metrics({"by": 0})
    (line,) = capsys.readouterr().out.splitlines()
    who = "another process" if note is not None else f"process {process.pid} on {platform.node()} (since 2"
    assert line.startswith(f"pretrain: waiting for {who}") and line.endswith("which is working on it")
    assert results.result("pretrain", KEY).metrics == {"by": 0 if killed else process.pid}


# --- errors of the system


def test_a_full_disk_leaves_the_lock_free_and_what_was_finished(results):
    finish(results, "finetune-A")
    with pytest.raises(UserError, match=r"config\.json could not be written.*Free some disk space"), full_disk(1):
        attempt(results)
    assert is_free(results.folder("pretrain", KEY))
    limit = contextlib.ExitStack()
    refused = pytest.raises(UserError, match=r"done\.json could not be written")
    with limit, refused, results.claim("pretrain", KEY, {}) as draft:
        draft.metrics({"accuracy": 0.5})
        limit.enter_context(full_disk(10))
    assert not results.done("pretrain", KEY) and "done.json" not in names(draft.folder)
    assert finish(results).metrics == {"accuracy": 0.5} and results.verify() == []
