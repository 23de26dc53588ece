"""The store: keys say what made a result, and only what is as it was written counts."""

import contextlib
import multiprocessing
import os
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch
from torch import nn

from hw1lib import files
from hw1lib.errors import UserError
from hw1lib.steps import explain, store
from tests.test_files import full_disk, held_to_permissions, names

KEY = "0123456789abcdef"
HIDDEN = [".holder", ".lock"]
ODD = (b"", b"{", b"\xff\xfe", b"null", b"3", b'"files"', b"[]", b"{}")  # instead of what a JSON file should hold
WRITTEN = ["metrics.json", "history.csv", "predictions.npy", "weights.safetensors", "config.json"]


@pytest.fixture
def results(tmp_path):
    return store.Store(tmp_path)


def finish(results, step="pretrain", key=KEY, **metrics):
    """Runs a step that writes a little of everything."""
    with results.claimed(step, key, {"step": step}) as draft:
        draft.metrics(metrics or {"accuracy": 0.5})
        draft.history([{"epoch": 1, "loss": 2.0}])
        draft.array("predictions", np.arange(6).reshape(2, 3))
        draft.weights(nn.Linear(3, 2))
    return results.result(step, key)


def config_of(seed=0, epochs=1, version=1, data="d", upstream="u"):
    """As run.Steps.config gives it."""
    settings = {"profile": {"seed": seed, "model_scale": 1.0}, "pretrain": {"epochs": epochs}}
    return {"version": version, "settings": settings, "data": {"pool": data}, "upstream": {"pretrain": upstream}}


class Stopped(Exception):
    pass


def attempt(results, step="pretrain", checkpoint=b"half way", key=None, **changes):
    """An attempt that was stopped on its way, under the key that its config has; its folder."""
    config = config_of(**changes)
    key = key or store.key_of(config)
    with contextlib.suppress(Stopped), results.claimed(step, key, config) as draft:
        draft.metrics({"accuracy": 0.1})
        draft.history([{"epoch": 1}])
        draft.array("stage_early", np.zeros(3))
        files.write_json(draft.folder / "not_finite.json", {"files": []})
        if checkpoint:
            draft.checkpoint.write_bytes(checkpoint)
        raise Stopped
    return results.folder(step, key)


def checkpoints(results):
    return sorted(path.parent for path in results.out.glob("steps/*/*/checkpoint.pt"))


# --- keys


def test_every_change_changes_the_key_and_nothing_else_does():
    one = {"a": [1, 2.5, "x"], "b": {"c": None, "d": True}}
    assert store.key_of(one) == store.key_of({"b": {"d": True, "c": None}, "a": (1, 2.5, "x")})
    values = [1, 2, "1", True, None, [1], {}, {"b": 1}, [1, 2], [2, 1], 1e-4, 1.0000000000000002e-4, ""]
    variants = [{"a": value} for value in values] + [{"b": 1}, {"a": 1, "b": None}, {}]
    assert len({store.key_of(v) for v in variants}) == len(variants)
    # A literal, so that a change of the rule shows: it would make all stored results unfound.
    assert store.key_of({"step": "pretrain", "settings": {"lr": 0.001}}) == "6e4d2f1270ccc7e8"


# --- steps


def test_what_was_written_is_what_is_read(results):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    module(torch.randn(2, 3, 8, 8))  # so that BatchNorm's buffers are not the default
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "confusion": [[1]]}, {"epoch": 2, "loss": 1e-9}]
    with results.claimed("pretrain", KEY, {"lr": 1e-3}) as draft:
        draft.metrics({"miou": 1 / 3, "none": None})
        draft.history(rows)
        draft.array("masks", np.array([[True, False]]))
        draft.weights(module)
        files.write_json(draft.folder / "run.json", {"seconds": 1})
    result = results.result("pretrain", KEY)
    assert result.metrics == {"miou": 1 / 3, "none": None} and result.run == {"seconds": 1} and result.key == KEY
    assert result.history.to_dict("list") == {"epoch": [1, 2], "loss": [0.1 + 0.2, 1e-9]}
    assert result.array("masks").dtype == bool and result.array("masks").tolist() == [[True, False]]
    torch.testing.assert_close(result.weights(), dict(module.state_dict()), rtol=0, atol=0)
    assert files.read_json(result.folder / "config.json") == {"lr": 1e-3}
    assert free(result.folder) and ".holder" not in names(result.folder)  # an open workbook blocks nobody


def test_an_array_of_objects_is_never_written(tmp_path):
    """It would need pickle to be read."""
    with pytest.raises(ValueError, match="pickle"):
        store.Draft("x", tmp_path).array("bad", np.array([{}, None], dtype=object))
    assert names(tmp_path) == []


@pytest.mark.parametrize(("checkpoint", "status"), [(b"", "to run"), (b"half way", "to resume")])
def test_a_step_that_was_stopped_is_not_done(results, checkpoint, status):
    attempt(results, key=KEY, checkpoint=checkpoint)
    assert not results.done("pretrain", KEY) and results.status("pretrain", KEY) == status
    with pytest.raises(UserError, match="no finished step"):
        results.verify()
    assert "checkpoint.pt" not in names(finish(results).folder)  # and its lock was free
    assert results.status("pretrain", KEY) == "done" and results.verify() == []


def test_a_finished_step_is_not_claimed_again(results):
    before = finish(results).folder / "done.json"
    stamp = before.stat().st_mtime_ns
    with results.claimed("pretrain", KEY, {"step": "other"}) as draft:
        assert draft is None
    assert before.stat().st_mtime_ns == stamp
    assert files.read_json(before.parent / "config.json") == {"step": "pretrain"}


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


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "fresh"])
@pytest.mark.parametrize("kind", ["altered", "truncated", "deleted", "a folder", "a dead link"])
@pytest.mark.parametrize("file", WRITTEN)
def test_a_damaged_step_is_run_again_whoever_trusted_it(results, capsys, file, kind, trusted):
    finish(results, "finetune-A")
    folder = finish(results).folder
    for old in folder.iterdir():
        os.utime(old, (1, 1))  # so that a new date shows, whatever the clock's steps are
    assert not trusted or results.done("pretrain", KEY)
    damage(folder / file, kind)
    seen = f"{file} {'was altered' if kind in ('altered', 'truncated') else 'is missing'}"
    assert not results.done("pretrain", KEY) and results.status("pretrain", KEY) == "to run"
    assert results.damage("pretrain", KEY) == [seen]
    assert results.verify() == [f"pretrain/{KEY}/{seen}"]
    (folder / "checkpoint.pt").write_bytes(b"of whom?")  # as doubtful as the result
    assert finish(results, accuracy=0.75).metrics == {"accuracy": 0.75}
    assert f"pretrain: {seen}. The step is run again." in capsys.readouterr().out
    assert results.done("pretrain", KEY) and store.Store(results.out).verify() == []


FILES = ["null", "3", '"abc"', "[1]", "[]", "[[1, 2]]", "{}", r'{"a\u0000b": "0"}', '{"metrics.json": null}']


@pytest.mark.parametrize("marker", [*ODD, *(f'{{"files": {files}}}'.encode() for files in FILES), None])
def test_a_damaged_marker_is_no_marker(results, marker):
    """Nor is a folder in its place."""
    path = finish(results).folder / "done.json"
    assert results.done("pretrain", KEY)
    damage(path, "a folder") if marker is None else path.write_bytes(marker)
    assert not results.done("pretrain", KEY) and len(results.verify()) == 1
    assert finish(results, accuracy=0.75).metrics == {"accuracy": 0.75}
    assert results.verify() == []


def test_all_that_is_damaged_is_named(results):
    folder = finish(results).folder
    (folder / "metrics.json").unlink()
    (folder / "history.csv").write_text("")
    assert sorted(results.damage("pretrain", KEY)) == ["history.csv was altered", "metrics.json is missing"]


def test_verify_names_a_marker_that_is_gone(results):
    """A step that ran to its end has run.json."""
    finish(results)
    folder = finish(results, "finetune-A", "f" * 16).folder
    files.write_json(folder / "run.json", {})
    (folder / "done.json").unlink()
    assert not results.done("finetune-A", "f" * 16)
    assert results.verify() == [f"finetune-A/{'f' * 16}/done.json is missing"]
    (folder / ".holder").write_text("{}")  # somebody works on it
    assert results.verify() == []


def test_what_is_trusted_is_hashed_once_and_again_when_its_date_changes(results, monkeypatch):
    """A report asks hundreds of times."""
    folder, hashed = finish(results).folder, []
    real = files.digest
    monkeypatch.setattr(files, "digest", lambda path: hashed.append(path.name) or real(path))
    results = store.Store(results.out)
    assert all(results.done("pretrain", KEY) for _ in range(3))
    assert sorted(hashed) == sorted(WRITTEN)
    os.utime(folder / "metrics.json", (1, 1))
    assert results.done("pretrain", KEY) and len(hashed) == 10


def test_configs_are_those_of_finished_results(results):
    for key, config in (("a" * 16, {"n": 1}), ("b" * 16, {"n": 2})):
        with results.claimed("pretrain", key, config):
            pass
    attempt(results)
    finish(results, "finetune-A")
    assert results.configs("pretrain") == [{"n": 1}, {"n": 2}] and results.configs("embed") == []
    assert [result.key for result in results.results("pretrain")] == ["a" * 16, "b" * 16]
    for odd in ODD:
        (results.folder("finetune-A", KEY) / "config.json").write_bytes(odd)
        assert explain.reason({"settings": {}}, results.configs("finetune-A")) == "it never ran to its end"


# --- what an attempt leaves


@pytest.mark.parametrize("going_on", [True, False], ids=["resumed", "anew"])
def test_only_a_checkpoint_and_its_arrays_outlive_an_attempt(results, going_on):
    """Neither what a killed process has half written nor a folder that somebody made, such as JupyterLab's."""
    folder = attempt(results, key=KEY, checkpoint=b"half way" if going_on else b"")
    for name in (".metrics.json.k3x", ".checkpoint.pt.x7a", ".late.npy.abc"):
        (folder / name).write_text("half of it")
    for name in (".ipynb_checkpoints", "copies"):
        (folder / name).mkdir()
        (folder / name / "metrics-checkpoint.json").write_text("{}")
    kept = ["checkpoint.pt", "config.json", "stage_early.npy"] if going_on else ["config.json"]
    with results.claimed("pretrain", KEY, {"n": 2}) as draft:
        assert names(folder) == HIDDEN + kept and draft.resumed == going_on
        assert files.read_json(folder / "config.json") == {"n": 2}
        draft.metrics({})
        (folder / "copies").mkdir()
    assert "checkpoint.pt" not in names(folder)
    assert results.done("pretrain", KEY) and results.verify() == []


def test_a_kill_while_results_are_hashed_costs_no_training(results, monkeypatch):
    """The checkpoint goes when all else is done; what is left of it where that was the last moment goes later."""
    with monkeypatch.context() as patch, contextlib.suppress(ZeroDivisionError):
        patch.setattr(files, "digest", lambda path: 1 / 0)
        with results.claimed("pretrain", KEY, {}) as draft:
            draft.checkpoint.write_bytes(b"all epochs")
    assert results.status("pretrain", KEY) == "to resume"
    (finish(results).folder / "checkpoint.pt").write_bytes(b"all epochs")
    attempt(results, checkpoint=b"")
    assert checkpoints(results) == [] and results.done("pretrain", KEY)


@pytest.mark.parametrize("what", ["epochs", "seed", "version", "data", "upstream"])
def test_trying_something_else_keeps_what_was_begun(results, what):
    """Each attempt goes on with its checkpoint and its arrays; without a checkpoint nobody can go on."""
    begun = [attempt(results, step, **{what: value}) for value in (2, 3, 4) for step in ("pretrain", "segment-fcn32s")]
    bare = attempt(results, checkpoint=b"", **{what: 5})
    attempt(results, **{what: 6})
    assert set(begun) < set(checkpoints(results)) and set(names(bare)) <= set(HIDDEN)
    for folder in begun:
        with results.claimed(folder.parent.name, folder.name, {}) as draft:
            assert draft.resumed and names(folder) == [*HIDDEN, "checkpoint.pt", "config.json", "stage_early.npy"]


def dated(folder, days, size=0):
    """Gives a checkpoint an age in days, and a size in bytes that takes no room."""
    with open(folder / "checkpoint.pt", "ab") as file:
        file.truncate(size)
    os.utime(folder / "checkpoint.pt", (time.time() - 86_400 * days,) * 2)
    return folder


# Ages in days and sizes in GB of attempts, GB of free disk, which attempts stay, and what is said of the others.
BOUNDS = [
    ([(29, 1), (1, 1)], 100, [0, 1], ""),
    ([(31, 0.001), (1, 1), (400, 1)], 100, [1], "older than 30 days"),
    ([(5, 2.2), (4, 2.2), (3, 2.2), (2, 2.2), (1, 2.2)], 100, [1, 2, 3, 4], "more than 10 GB"),
    ([(1, 11), (2, 0.5)], 100, [], "more than 10 GB"),
    ([(3, 2), (2, 2), (1, 2)], 2, [2], "less than 5 GB of the disk is free"),
    ([(2, 0.1), (1, 0.1)], 0, [], "less than 5 GB of the disk is free"),
]


@pytest.mark.parametrize(("attempts", "free", "stay", "reason"), BOUNDS)
def test_unfinished_attempts_are_bounded_by_age_size_and_disk_space(
    results, monkeypatch, capsys, attempts, free, stay, reason
):
    """The oldest goes first, of whatever step and seed, and each is named; nobody else's is touched."""
    steps = ("pretrain", "segment-fcn32s")
    begun = [attempt(results, steps[at % 2], seed=at, epochs=7) for at in range(len(attempts))]
    for folder, (days, size) in zip(begun, attempts):
        dated(folder, days, int(size * 1e9))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free * 1e9))
    finish(results, "finetune-A")
    assert checkpoints(results) == sorted(begun[at] for at in stay)
    lines = capsys.readouterr().out.splitlines()
    gone = [folder for at, folder in enumerate(begun) if at not in stay]
    assert len(lines) == len(gone) and all(reason in line for line in lines)
    assert {line.partition(",")[0] for line in lines} == {
        f"{folder.parent.name}: deleted the unfinished attempt {folder}" for folder in gone
    }


def test_an_attempt_that_runs_or_is_claimed_is_neither_counted_nor_deleted(results, monkeypatch):
    monkeypatch.setattr(store, "ATTEMPT_BYTES", 0)
    idle = dated(attempt(results, "finetune-A"), 50)
    with holder(results.out, checkpoint=True) as (process, _):
        running = dated(results.folder("pretrain", KEY), 40)
        own = dated(attempt(results, "segment-fcn32s", epochs=3), 60)
        assert (
            set(checkpoints(results)) == {running, own} and process.is_alive() and "stage_early.npy" not in names(idle)
        )
        with results.claimed("segment-fcn32s", own.name, {}) as draft:
            assert draft.resumed


def test_an_unreadable_checkpoint_counts_as_an_attempt_and_breaks_nothing(results, monkeypatch):
    """Its folder belongs to no result, whether its step is run again, done or verified."""
    folder = attempt(results, key=KEY, checkpoint=b"")
    (folder / "unreadable").mkdir()
    (folder / "unreadable" / "checkpoint.pt").write_bytes(b"half way")
    (folder / "unreadable" / "stage_early.npy").write_bytes(b"of the first epoch")
    assert results.status("pretrain", KEY) == "to run"
    finish(results)
    for _ in range(2):
        assert results.done("pretrain", KEY) and results.verify() == []
        assert names(folder / "unreadable") == ["checkpoint.pt", "stage_early.npy"]
        (folder / "metrics.json").write_text("")
        finish(results)
    monkeypatch.setattr(store, "ATTEMPT_BYTES", 20)
    finish(results, "finetune-A")
    assert not (folder / "unreadable" / "checkpoint.pt").exists() and results.done("pretrain", KEY)
    assert results.verify() == []


@pytest.mark.parametrize("content", [b"{", b'{"settings": 3}', None])
def test_a_checkpoint_of_unknown_settings_stays(results, content):
    """Its folder says by its key whose it is."""
    old = attempt(results)
    config = old / "config.json"
    config.unlink() if content is None else config.write_bytes(content)
    new = attempt(results, seed=1)
    assert checkpoints(results) == sorted([new, old])


@pytest.mark.parametrize("name", ["metrics", "run"])
@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[1]", b"\xff"])
def test_a_result_that_is_damaged_while_it_is_in_use_is_named(results, name, content):
    result = finish(results)
    (result.folder / f"{name}.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}\.json is damaged.*pretrain"):
        getattr(result, name)


def test_finished_results_of_other_keys_are_never_touched(results):
    folders = [finish(results, key=str(number) * 16).folder for number in range(3)]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for folder in folders for path in folder.iterdir()}
    attempt(results, epochs=2)
    attempt(results, epochs=3)
    finish(results, key="f" * 16)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert {path for folder in folders for path in folder.iterdir()} == before.keys()


# --- locks


def test_threads_that_claim_one_step_run_it_once(tmp_path):
    gate, ran = threading.Barrier(4), []

    def claim(number):
        gate.wait(10)
        with store.Store(tmp_path).claimed("pretrain", KEY, {}) as draft:
            if draft is not None:
                ran.append(number)
                draft.metrics({"by": number})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(claim, range(4)))  # raises what a thread raised
    assert len(ran) == 1
    assert store.Store(tmp_path).result("pretrain", KEY).metrics == {"by": ran[0]}


def hold(out, checkpoint, connection):
    """A process of its own that works on a step until it is told to finish."""
    with store.Store(out).claimed("pretrain", KEY, config_of()) as draft:
        draft.metrics({"by": os.getpid()})
        if checkpoint:
            draft.checkpoint.write_bytes(b"half way")
        connection.send("claimed")
        connection.recv()


@contextlib.contextmanager
def holder(out, checkpoint=False):
    """Yields (process, function that lets it finish)."""
    processes = multiprocessing.get_context("fork")
    ours, its = processes.Pipe()
    process = processes.Process(target=hold, args=(out, checkpoint, its))
    process.start()
    try:
        assert ours.poll(20) and ours.recv() == "claimed"
        yield process, lambda: ours.send("finish")
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("killed", [False, True], ids=["finishes", "is killed"])
def test_the_second_waits_says_for_whom_and_takes_over(results, capsys, killed):
    """What the first finished is loaded; if it was killed, the second runs the step at once."""
    with holder(results.out) as (process, finish_it):
        assert not free(results.folder("pretrain", KEY))
        ended = []

        def end():
            ended.append(time.monotonic())
            process.kill() if killed else finish_it()

        threading.Timer(0.4, end).start()
        with results.claimed("pretrain", KEY, {}) as draft:
            waited = time.monotonic()
            assert (draft is not None) == killed
            if killed:
                draft.metrics({"by": 0})
    assert ended and 0 <= waited - ended[0] < 3
    said = capsys.readouterr().out.splitlines()
    who = f"pretrain: waiting for process {process.pid} on {platform.node()} (since 2"
    assert len(said) == 1 and said[0].startswith(who) and said[0].endswith("which works on it")
    assert results.result("pretrain", KEY).metrics == {"by": 0 if killed else process.pid}


@pytest.mark.parametrize("content", [*ODD, b'{"pid": 1}', b'{"pid": [1]}'])
def test_a_damaged_note_of_the_holder_does_not_matter(results, capsys, content):
    """Neither when the step is free nor for those who wait."""
    note = results.folder("pretrain", KEY) / ".holder"
    note.parent.mkdir(parents=True)
    note.write_bytes(content)
    with holder(results.out) as (_, finish_it):
        note.write_bytes(content)
        threading.Timer(0.1, finish_it).start()
        with results.claimed("pretrain", KEY, {}) as draft:
            assert draft is None
    assert capsys.readouterr().out == "pretrain: waiting for another process, which works on it\n"
    assert not note.exists()


def test_a_living_process_keeps_its_checkpoint_and_holds_up_nobody_else(results, capsys):
    with holder(results.out, checkpoint=True) as (process, _):
        finish(results, "finetune-A")
        other = attempt(results, epochs=2)
        assert checkpoints(results) == sorted([results.folder("pretrain", KEY), other])
        assert process.is_alive() and capsys.readouterr().out == ""


# --- refusals


def free(folder):
    """Whether nobody holds a step's lock."""
    try:
        with filelock.FileLock(folder / ".lock").acquire(timeout=0):
            return True
    except filelock.Timeout:
        return False


def test_a_full_disk_leaves_the_lock_free_and_what_was_finished(results):
    finish(results, "finetune-A")
    for limit in (10, 60):  # the note of the holder, the config
        with pytest.raises(UserError, match="Free some disk space"), full_disk(limit):
            attempt(results, key=KEY)
        assert free(results.folder("pretrain", KEY))
    limit = contextlib.ExitStack()
    refused = pytest.raises(UserError, match=r"done\.json could not be written")
    with limit, refused, results.claimed("pretrain", KEY, {}) as draft:
        draft.metrics({"accuracy": 0.5})
        limit.enter_context(full_disk(10))
    assert not results.done("pretrain", KEY) and "done.json" not in names(draft.folder)
    assert finish(results).metrics == {"accuracy": 0.5} and results.verify() == []


def test_a_folder_that_becomes_read_only_meanwhile_is_a_clear_error(results):
    """What happened is told, not that the lock's note could not be removed; the lock is free."""
    said = r"metrics\.json could not be written: Permission denied"
    with held_to_permissions(), pytest.raises(UserError, match=said), results.claimed("pretrain", KEY, {}) as draft:
        draft.folder.chmod(0o555)
        draft.metrics({})
    assert free(draft.folder)
