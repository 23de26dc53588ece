"""The store: keys say what made a result, and only what is as it was written counts."""

import contextlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest
import torch
from torch import nn

from hw1lib import files
from hw1lib.steps import store, why
from hw1lib.errors import UserError
from tests.test_files import full_disk, held_to_permissions, names

KEY = "0123456789abcdef"


def finish(results, step="pretrain", key=KEY, **metrics):
    """Runs a step that writes a little of everything."""
    with results.claimed(step, key, {"step": step}) as draft:
        draft.metrics(metrics or {"accuracy": 0.5})
        draft.history([{"epoch": 1, "loss": 2.0}])
        draft.array("predictions", np.arange(6).reshape(2, 3))
        draft.weights(nn.Linear(3, 2))
    return results.result(step, key)


# --- keys


def test_keys_are_those_of_the_data_not_of_its_order_or_type():
    one = {"a": [1, 2.5, "x"], "b": {"c": None, "d": True}}
    same = {"b": {"d": True, "c": None}, "a": (1, 2.5, "x")}
    assert store.key_of(one) == store.key_of(same)


def test_every_change_changes_the_key():
    variants = [
        {"a": 1},
        {"a": 2},
        {"a": "1"},
        {"a": True},
        {"a": None},
        {"b": 1},
        {"a": [1]},
        {"a": {}},
        {"a": 1, "b": None},
        {"a": {"b": 1}},
        {"a": [1, 2]},
        {"a": [2, 1]},
        {"a": 1e-4},
        {"a": 1.0000000000000002e-4},
        {"a": ""},
        {},
    ]
    assert len({store.key_of(v) for v in variants}) == len(variants)


def test_keys_are_the_same_in_every_process():
    """A literal, so that a change of the rule shows: it would make all stored results unfound."""
    assert store.key_of({"step": "pretrain", "settings": {"lr": 0.001}}) == "6e4d2f1270ccc7e8"


# --- steps


def test_what_was_written_is_what_is_read(tmp_path):
    results = store.Store(tmp_path)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    module(torch.randn(2, 3, 8, 8))  # so that BatchNorm's buffers are not the default
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "confusion": [[1]]}, {"epoch": 2, "loss": 1e-9}]
    with results.claimed("pretrain", KEY, {"lr": 1e-3}) as draft:
        draft.metrics({"miou": 1 / 3, "none": None})
        draft.history(rows)
        draft.array("masks", np.array([[True, False]]))
        draft.weights(module)
    result = results.result("pretrain", KEY)
    assert result.metrics == {"miou": 1 / 3, "none": None}
    assert result.history.to_dict("list") == {"epoch": [1, 2], "loss": [0.1 + 0.2, 1e-9]}
    assert result.array("masks").dtype == bool and result.array("masks").tolist() == [[True, False]]
    state = module.state_dict()
    assert state.keys() == result.weights().keys()
    assert all(torch.equal(state[name], value) for name, value in result.weights().items())
    assert files.read_json(result.folder / "config.json") == {"lr": 1e-3}


def test_a_step_without_epochs_has_an_empty_history(tmp_path):
    results = store.Store(tmp_path)
    with results.claimed("embed", KEY, {}) as draft:
        draft.history([])
    assert results.result("embed", KEY).history.empty


def test_an_array_of_objects_is_never_written(tmp_path):
    """It would need pickle to be read."""
    with pytest.raises(ValueError, match="pickle"):
        store.Draft("x", tmp_path).array("bad", np.array([{}, None], dtype=object))
    assert names(tmp_path) == []


def test_a_step_that_fails_is_not_done(tmp_path):
    results = store.Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), results.claimed("pretrain", KEY, {}) as draft:
        draft.metrics({"accuracy": 1.0})
        raise KeyboardInterrupt
    assert not results.done("pretrain", KEY)
    assert results.status("pretrain", KEY) == "to run"
    with pytest.raises(UserError, match="no finished step"):
        results.verify()
    finish(results)  # and its lock is free
    assert results.status("pretrain", KEY) == "done"


def test_without_its_marker_a_full_folder_is_not_done(tmp_path):
    results = store.Store(tmp_path)
    (finish(results).folder / "done.json").unlink()
    assert not results.done("pretrain", KEY)


def test_a_checkpoint_means_to_resume_and_goes_when_done(tmp_path):
    results = store.Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), results.claimed("pretrain", KEY, {}) as draft:
        draft.checkpoint.write_bytes(b"half way")
        raise KeyboardInterrupt
    assert results.status("pretrain", KEY) == "to resume"
    result = finish(results)
    assert results.status("pretrain", KEY) == "done"
    assert "checkpoint.pt" not in names(result.folder)


def test_a_finished_step_is_not_claimed_again(tmp_path):
    results = store.Store(tmp_path)
    before = finish(results).folder / "done.json"
    stamp = before.stat().st_mtime_ns
    with results.claimed("pretrain", KEY, {"step": "other"}) as draft:
        assert draft is None
    assert before.stat().st_mtime_ns == stamp
    assert files.read_json(before.parent / "config.json") == {"step": "pretrain"}


# --- verification


def test_verify_finds_nothing_in_what_was_written(tmp_path):
    results = store.Store(tmp_path)
    finish(results)
    finish(results, "finetune-A", "f" * 16)
    assert results.verify() == []


@pytest.mark.parametrize(
    "file", ["metrics.json", "history.csv", "predictions.npy", "weights.safetensors", "config.json"]
)
def test_verify_names_what_was_altered_or_is_missing(tmp_path, file):
    results = store.Store(tmp_path)
    finish(results)
    folder = finish(results, "finetune-A", "f" * 16).folder
    with open(folder / file, "r+b") as stored:
        first = stored.read(1)
        stored.seek(0)
        stored.write(bytes([first[0] ^ 1]))  # one bit
    problems = results.verify()
    assert len(problems) == 1 and f"{'f' * 16}/{file}" in problems[0]
    assert "altered" in problems[0]
    os.unlink(folder / file)
    problems = results.verify()
    assert len(problems) == 1 and f"{file} is missing" in problems[0]


def test_what_a_killed_run_left_behind_is_no_result(tmp_path):
    """A process that is killed while it writes leaves a hidden temporary file."""
    results = store.Store(tmp_path)
    folder = results.folder("pretrain", KEY)
    folder.mkdir(parents=True)
    (folder / ".metrics.json.abc123").write_text("half of it")
    finish(results)
    assert not [n for n in files.read_json(folder / "done.json")["files"] if n.startswith(".")]


def damage(folder, name, kind):
    """Damages a stored file; its new date shows, whatever the clock's steps are."""
    path = folder / name
    for old in folder.iterdir():
        os.utime(old, (1, 1))
    yield  # here it may be trusted as it is
    content = path.read_bytes()
    path.unlink()
    if kind == "altered":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif kind == "truncated":
        path.write_bytes(content[:-1])
    elif kind == "a folder":
        path.mkdir()
        (path / "file").write_text("")
    elif kind == "a dead link":
        path.symlink_to("nowhere")


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "fresh"])
@pytest.mark.parametrize("kind", ["altered", "truncated", "deleted", "a folder", "a dead link"])
@pytest.mark.parametrize(
    "file", ["metrics.json", "history.csv", "predictions.npy", "weights.safetensors", "config.json"]
)
def test_a_damaged_step_is_run_again_whoever_trusted_it(tmp_path, capsys, file, kind, trusted):
    results = store.Store(tmp_path)
    folder = finish(results).folder
    damaging = damage(folder, file, kind)
    next(damaging)
    if trusted:
        assert results.done("pretrain", KEY)
    next(damaging, None)
    seen = {"altered": "was altered", "truncated": "is truncated"}.get(kind, "is missing")
    assert not results.done("pretrain", KEY)
    assert results.damage("pretrain", KEY) == [f"{file} {seen}"]
    assert results.status("pretrain", KEY) == "to run"
    assert results.verify() == [f"pretrain/{KEY}/{file} {seen}"]
    assert finish(results, accuracy=0.75).metrics == {"accuracy": 0.75}
    assert f"pretrain: {file} {seen}. The step is run again." in capsys.readouterr().out
    assert results.done("pretrain", KEY) and store.Store(tmp_path).verify() == []


def test_all_that_is_damaged_is_named(tmp_path):
    results = store.Store(tmp_path)
    folder = finish(results).folder
    (folder / "metrics.json").unlink()
    (folder / "history.csv").write_text("")
    (folder / "predictions.npy").write_bytes((folder / "predictions.npy").read_bytes() + b"more")
    found = ["history.csv is truncated", "metrics.json is missing", "predictions.npy was altered"]
    assert sorted(results.damage("pretrain", KEY)) == found


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"3",
        b'"files"',
        b"[]",
        b"{}",
        b'{"bytes": {}}',
        b'{"files": null}',
        b'{"files": 3}',
        b'{"files": "abc"}',
        b'{"files": [1]}',
        b'{"files": []}',
        b'{"files": {}}',
        b'{"files": {"a\\u0000b": "0"}}',
        b'{"files": {"metrics.json": 5}}',
        b'{"files": {"metrics.json": null}}',
    ],
)
def test_a_damaged_marker_is_no_marker(tmp_path, marker):
    results = store.Store(tmp_path)
    folder = finish(results).folder
    assert results.done("pretrain", KEY)
    (folder / "done.json").write_bytes(marker)
    assert not results.done("pretrain", KEY)
    assert len(results.verify()) == 1
    assert finish(results, accuracy=0.75).metrics == {"accuracy": 0.75}
    assert results.verify() == []


@pytest.mark.parametrize("sizes", [None, 3, "x", [1], {"metrics.json": "1"}, {"metrics.json": None}], ids=str)
def test_a_marker_with_odd_sizes_is_damaged(tmp_path, sizes):
    results = store.Store(tmp_path)
    path = finish(results).folder / "done.json"
    path.write_text(json.dumps(files.read_json(path) | {"bytes": sizes}))
    assert not results.done("pretrain", KEY)
    assert results.verify() == [f"pretrain/{KEY}/done.json is damaged"]


def test_a_folder_in_place_of_the_marker_is_no_marker(tmp_path):
    results = store.Store(tmp_path)
    path = finish(results).folder / "done.json"
    path.unlink()
    path.mkdir()
    assert not results.done("pretrain", KEY)
    assert results.verify() == [f"pretrain/{KEY}/done.json is damaged"]
    finish(results)
    assert results.verify() == []


def test_verify_names_a_marker_that_is_gone(tmp_path):
    """A step that ran to its end has run.json."""
    results = store.Store(tmp_path)
    finish(results)
    folder = finish(results, "finetune-A", "f" * 16).folder
    files.write_json(folder / "run.json", {})
    (folder / "done.json").unlink()
    assert results.verify() == [f"finetune-A/{'f' * 16}/done.json is missing"]


def test_markers_of_before_there_were_sizes_still_count(tmp_path):
    results = store.Store(tmp_path)
    folder = finish(results).folder
    hashes = files.read_json(folder / "done.json")["files"]
    (folder / "done.json").write_text(json.dumps({"files": hashes}))
    assert results.done("pretrain", KEY) and results.verify() == []
    (folder / "history.csv").write_text("")
    assert results.damage("pretrain", KEY) == ["history.csv was altered"]


def test_what_is_trusted_is_hashed_once_and_again_when_its_date_changes(tmp_path, monkeypatch):
    """A report asks hundreds of times."""
    folder, hashed = finish(store.Store(tmp_path)).folder, []
    real = files.digest
    monkeypatch.setattr(files, "digest", lambda path: hashed.append(path.name) or real(path))
    results = store.Store(tmp_path)
    assert all(results.done("pretrain", KEY) for _ in range(3))
    assert len(hashed) == 5 and len(set(hashed)) == 5
    os.utime(folder / "metrics.json", (1, 1))
    assert results.done("pretrain", KEY) and len(hashed) == 10


# --- configs


def test_configs_are_those_of_finished_results(tmp_path):
    results = store.Store(tmp_path)
    for key, config in (("a" * 16, {"n": 1}), ("b" * 16, {"n": 2})):
        with results.claimed("pretrain", key, config):
            pass
    interrupted(results, "c" * 16, {"n": 3})
    finish(results, "finetune-A")
    assert results.configs("pretrain") == [{"n": 1}, {"n": 2}]
    assert results.configs("embed") == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"3"])
def test_a_damaged_config_says_nothing_of_what_changed(tmp_path, content):
    results = store.Store(tmp_path)
    (finish(results).folder / "config.json").write_bytes(content)
    assert why.reason({"settings": {}}, results.configs("pretrain")) == "it never ran to its end"


# --- what an attempt leaves


class Stopped(Exception):
    pass


def interrupted(results, key=KEY, config=None, step="pretrain", checkpoint=b"half way"):
    """A step that was stopped on its way; its folder."""
    with contextlib.suppress(Stopped), results.claimed(step, key, config or {}) as draft:
        draft.metrics({"accuracy": 0.1})
        draft.history([{"epoch": 1}])
        draft.array("stage_early", np.zeros(3))
        files.write_json(draft.folder / "not_finite.json", {"files": []})
        if checkpoint:
            draft.checkpoint.write_bytes(checkpoint)
        raise Stopped
    return results.folder(step, key)


HIDDEN = [".holder", ".lock"]


@pytest.mark.parametrize("going_on", [True, False], ids=["resumed", "anew"])
def test_only_a_checkpoint_and_its_arrays_outlive_an_attempt(tmp_path, going_on):
    results = store.Store(tmp_path)
    folder = interrupted(results, checkpoint=b"half way" if going_on else b"")
    for name in (".metrics.json.k3x", ".checkpoint.pt.x7a", ".late.npy.abc"):
        (folder / name).write_text("half of it, by a killed process")
    kept = ["checkpoint.pt", "config.json", "stage_early.npy"] if going_on else ["config.json"]
    with results.claimed("pretrain", KEY, {"n": 2}) as draft:
        assert names(folder) == HIDDEN + kept
        assert files.read_json(folder / "config.json") == {"n": 2}
        draft.metrics({})
    assert "checkpoint.pt" not in names(folder)
    assert results.verify() == []


def test_a_damaged_result_is_not_resumed(tmp_path):
    """Its checkpoint, if there is one, is as doubtful."""
    results = store.Store(tmp_path)
    folder = finish(results).folder
    (folder / "checkpoint.pt").write_bytes(b"of whom?")
    (folder / "metrics.json").write_text("{}")
    with results.claimed("pretrain", KEY, {}):
        assert names(folder) == [*HIDDEN, "config.json"]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "copies"])
@pytest.mark.parametrize("checkpoint", [b"half way", b""])
def test_a_folder_that_somebody_made_does_not_matter(tmp_path, name, checkpoint):
    """Such as JupyterLab's own, next to a file that was opened and saved in it."""
    results = store.Store(tmp_path)
    folder = interrupted(results, checkpoint=checkpoint)
    (folder / name).mkdir()
    (folder / name / "metrics-checkpoint.json").write_text("{}")
    finish(results)
    assert results.done("pretrain", KEY) and results.verify() == []


def test_a_folder_that_somebody_makes_meanwhile_does_not_matter(tmp_path):
    results = store.Store(tmp_path)
    with results.claimed("pretrain", KEY, {}) as draft:
        draft.metrics({})
        (draft.folder / "copies").mkdir()
    assert results.done("pretrain", KEY) and results.verify() == []


def test_a_kill_while_results_are_hashed_costs_no_training(tmp_path, monkeypatch):
    """The checkpoint goes when all else is done."""
    results = store.Store(tmp_path)

    def killed(path):
        raise Stopped

    with monkeypatch.context() as patch, contextlib.suppress(Stopped):
        patch.setattr(files, "digest", killed)
        with results.claimed("pretrain", KEY, {}) as draft:
            draft.checkpoint.write_bytes(b"all epochs")
    assert results.status("pretrain", KEY) == "to resume"


def config_of(seed=0, epochs=1, version=1, data="d", upstream="u"):
    """As graph.Steps.config gives it."""
    return {
        "step": "pretrain",
        "version": version,
        "settings": {"profile": {"seed": seed, "model_scale": 1.0}, "pretrain": {"epochs": epochs}},
        "data": {"pool": data},
        "upstream": {"pretrain": upstream},
    }


def attempt(results, step="pretrain", checkpoint=b"half way", **changes):
    """An attempt that leaves a checkpoint, under the key that its config has; its folder."""
    config = config_of(**changes)
    return interrupted(results, store.key_of(config), config, step, checkpoint)


def checkpoints(results):
    return sorted(path.parent for path in results.out.glob("steps/*/*/checkpoint.pt"))


@pytest.mark.parametrize(
    "change",
    [{"epochs": 2}, {"version": 2}, {"data": "other"}, {"upstream": "other"}, {"seed": 1, "epochs": 2}],
    ids=str,
)
def test_the_checkpoint_of_other_settings_goes(tmp_path, change):
    results = store.Store(tmp_path)
    attempt(results)
    new = attempt(results, **change)
    assert checkpoints(results) == [new]


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": 1, "upstream": "of seed 1"}], ids=str)
def test_the_checkpoint_of_another_seed_stays(tmp_path, change):
    """Of several seeds each may be interrupted; what they build on has other keys, too."""
    results = store.Store(tmp_path)
    both = [attempt(results), attempt(results, **change)]
    assert checkpoints(results) == sorted(both)


def test_the_checkpoint_of_another_step_stays(tmp_path):
    results = store.Store(tmp_path)
    places = [attempt(results, "finetune-A"), attempt(results, "finetune-B", epochs=2)]
    assert checkpoints(results) == sorted(places)


@pytest.mark.parametrize("what", ["epochs", "data", "upstream"])
def test_however_often_something_changes_one_checkpoint_a_seed_stays(tmp_path, what):
    results = store.Store(tmp_path)
    for value in range(2, 8):
        for seed in (0, 1):
            attempt(results, seed=seed, **{what: value if what == "epochs" else str(value)})
    assert len(checkpoints(results)) == 2


@pytest.mark.parametrize("checkpoint", [b"half way", b""])
def test_arrays_of_an_attempt_that_nothing_resumes_go_too(tmp_path, checkpoint):
    """Predictions of all tiles are larger than many a checkpoint."""
    results = store.Store(tmp_path)
    old = attempt(results, checkpoint=checkpoint)
    attempt(results, epochs=2)
    assert not list(old.glob("*.npy"))


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"null", b'{"settings": 3}', b'{"settings": null}', b'{"settings": {"profile": 3}}'],
)
def test_a_checkpoint_of_unknown_settings_goes(tmp_path, content):
    results = store.Store(tmp_path)
    config = attempt(results) / "config.json"
    config.unlink()
    if content is not None:
        config.write_bytes(content)
    new = attempt(results, seed=1)
    assert checkpoints(results) == [new]


def test_finished_results_of_other_keys_are_never_touched(tmp_path):
    results = store.Store(tmp_path)
    folders = [finish(results, key=str(number) * 16).folder for number in range(3)]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for folder in folders for path in folder.iterdir()}
    attempt(results, epochs=2)
    attempt(results, epochs=3)
    finish(results, key="f" * 16)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert all(names(folder) == sorted(p.name for p in before if p.parent == folder) for folder in folders)


# --- locks


def test_threads_that_claim_one_step_run_it_once(tmp_path):
    gate, ran, errors = threading.Barrier(4), [], []

    def claim():
        try:
            gate.wait(10)
            with store.Store(tmp_path).claimed("pretrain", KEY, {}) as draft:
                if draft is not None:
                    ran.append(threading.get_ident())
                    draft.metrics({"by": ran[-1]})
        except BaseException as error:  # a thread's own would be lost
            errors.append(error)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors and len(ran) == 1
    assert store.Store(tmp_path).result("pretrain", KEY).metrics == {"by": ran[0]}


def hold(out, step, key, checkpoint, connection):
    """A process of its own that works on a step until it is told to finish."""
    with store.Store(out).claimed(step, key, config_of()) as draft:
        draft.metrics({"by": os.getpid()})
        if checkpoint:
            draft.checkpoint.write_bytes(b"half way")
        connection.send("claimed")
        connection.recv()


@contextlib.contextmanager
def holder(out, step="pretrain", key=KEY, checkpoint=False):
    """Yields (process, function that lets it finish)."""
    processes = multiprocessing.get_context("fork")
    ours, its = processes.Pipe()
    process = processes.Process(target=hold, args=(out, step, key, checkpoint, its))
    process.start()
    try:
        assert ours.poll(20) and ours.recv() == "claimed"
        yield process, lambda: ours.send("finish")
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("killed", [False, True], ids=["finishes", "is killed"])
def test_the_second_waits_says_for_whom_and_takes_over(tmp_path, capsys, killed):
    """What the first finished is loaded; if it was killed, the second runs the step at once."""
    results = store.Store(tmp_path)
    with holder(tmp_path) as (process, finish_it):
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


HOLDER = """
import sys
from hw1lib import files
from hw1lib.steps import store
with store.Store(sys.argv[1]).claimed("pretrain", sys.argv[2], {}) as draft:
    draft.metrics({"by": "the killed one"})
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_holds_no_step(tmp_path):
    results = store.Store(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "claimed\n"
        with pytest.raises(filelock.Timeout):  # it is locked for all others
            filelock.FileLock(results.folder("pretrain", KEY) / ".lock").acquire(timeout=0)
    finally:
        holder.kill()
        holder.communicate()
    assert results.status("pretrain", KEY) == "to run"
    assert finish(results, by="the next one").metrics == {"by": "the next one"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"3", b"null", b"{}", b'{"pid": 1}', b'{"pid": [1]}'])
def test_a_damaged_note_of_the_holder_does_not_matter(tmp_path, capsys, content):
    """Neither when the step is free nor for those who wait."""
    results = store.Store(tmp_path)
    note = results.folder("pretrain", KEY) / ".holder"
    with holder(tmp_path) as (_, finish_it):
        note.write_bytes(content)
        threading.Timer(0.1, finish_it).start()
        with results.claimed("pretrain", KEY, {}) as draft:
            assert draft is None
    assert capsys.readouterr().out == "pretrain: waiting for another process, which works on it\n"
    note.write_bytes(content)
    with results.claimed("pretrain", KEY, {}) as draft:
        assert draft is None
    assert not note.exists()


def test_other_steps_and_settings_need_not_wait(tmp_path, capsys):
    results = store.Store(tmp_path)
    with holder(tmp_path) as (process, _):
        finish(results, "finetune-A")
        finish(results, key="f" * 16)
        assert process.is_alive()
    assert capsys.readouterr().out == ""


def test_the_checkpoint_of_a_living_process_stays(tmp_path):
    results = store.Store(tmp_path)
    with holder(tmp_path, checkpoint=True):
        other = attempt(results, epochs=2)
        assert checkpoints(results) == sorted([results.folder("pretrain", KEY), other])
    new = attempt(results, epochs=3)
    assert checkpoints(results) == [new]  # the other is a dead one's now


def test_an_open_workbook_blocks_nobody(course_data, tmp_path):
    """As JupyterLab keeps it: results loaded and shown, and nothing running."""
    from hw1lib.workbook import Workbook

    book = Workbook("smoke", course_data, tmp_path / "out", {"device": "cpu"})
    book.run("segment-colour")
    assert "miou" in book.metrics("segment-colour")
    locks = list((tmp_path / "out").rglob(".lock"))
    assert {path.parent.parent.name for path in locks} == {"check-problem2", "segment-colour"}
    for path in locks:
        with filelock.FileLock(path).acquire(timeout=0):
            pass
    assert not list((tmp_path / "out").rglob(".holder"))


# --- refusals


def free(folder):
    """Whether nobody holds a step's lock."""
    try:
        with filelock.FileLock(folder / ".lock").acquire(timeout=0):
            return True
    except filelock.Timeout:
        return False


def test_a_file_in_place_of_a_folder_is_a_clear_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="--out"):
        finish(store.Store(tmp_path / "taken"))
    with pytest.raises(UserError, match="--out"):
        finish(store.Store(tmp_path / "taken" / "below"))


def test_a_folder_without_write_permission_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o555)
    with held_to_permissions(), pytest.raises(UserError, match="Permission denied.*--out"):
        finish(store.Store(tmp_path))
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_lock_free_and_what_was_finished(tmp_path):
    results = store.Store(tmp_path)
    finish(results, "finetune-A")
    for limit in (10, 60):  # the note of the holder, the config
        with pytest.raises(UserError, match="Free some disk space"), full_disk(limit):
            with results.claimed("pretrain", KEY, config_of()):
                pytest.fail("it may not run")
        assert free(results.folder("pretrain", KEY))
    assert not results.done("pretrain", KEY) and results.verify() == []
    finish(results)
    assert results.verify() == []


def test_a_disk_that_is_full_at_the_end_leaves_no_marker(tmp_path):
    results = store.Store(tmp_path)
    limit = contextlib.ExitStack()
    with limit, pytest.raises(UserError, match="done.json could not be written"):
        with results.claimed("pretrain", KEY, {}) as draft:
            draft.metrics({"accuracy": 0.5})
            limit.enter_context(full_disk(10))
    assert not results.done("pretrain", KEY) and names(draft.folder).count("done.json") == 0
    assert finish(results).metrics == {"accuracy": 0.5}


def test_a_folder_that_becomes_read_only_meanwhile_is_a_clear_error(tmp_path):
    """What happened is told, not that the lock's note could not be removed; the lock is free."""
    results = store.Store(tmp_path)
    with held_to_permissions():
        with pytest.raises(UserError, match="metrics.json could not be written: Permission denied"):
            with results.claimed("pretrain", KEY, {}) as draft:
                draft.folder.chmod(0o555)
                draft.metrics({})
    assert free(draft.folder)
    draft.folder.chmod(0o755)
    finish(results)
    assert results.verify() == []
