"""The store: what is written is whole or absent, and keys say what made it."""

import os
import resource
import subprocess
import sys
import threading

import filelock
import numpy as np
import pytest
import torch
from torch import nn

from hw1lib import files, store
from hw1lib.errors import UserError

KEY = "0123456789abcdef"


def finish(results, step="pretrain", key=KEY, **metrics):
    """Runs a step that writes a little of everything."""
    with results.claimed(step, key, {"step": step}) as draft:
        draft.metrics(metrics or {"accuracy": 0.5})
        draft.history([{"epoch": 1, "loss": 2.0}])
        draft.array("predictions", np.arange(6).reshape(2, 3))
        draft.weights(nn.Linear(3, 2))
    return results.result(step, key)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- atomic writing


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.json"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half of the new")
        1 / 0
    assert path.read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_the_old_file_stands_until_the_new_one_takes_its_place(tmp_path):
    """Nothing is ever written into it: who has it open reads it to its end."""
    path = tmp_path / "metrics.json"
    files.write_text(path, "old")
    with open(path) as reader:
        with files.replacing(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            assert temporary.parent == path.parent  # else the last move would not be atomic
        assert path.read_text() == "new"
        assert reader.read() == "old"


def test_files_are_ordinary_ones(tmp_path):
    """Not private as temporary files are: others may read what the umask lets them."""
    files.write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_survives_whatever_the_locale_is(tmp_path):
    files.write_json(tmp_path / "a.json", {"Größe": "≤ 1 – é 漢"})
    assert files.read_json(tmp_path / "a.json") == {"Größe": "≤ 1 – é 漢"}
    assert "漢" in (tmp_path / "a.json").read_bytes().decode("utf-8")


def test_a_file_in_place_of_a_folder_is_a_clear_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        files.write_text(tmp_path / "taken" / "metrics.json", "{}")
    with pytest.raises(UserError, match="--out"):
        finish(store.Store(tmp_path / "taken"))


def full_disk(draft_of, write):
    """Runs `write` with no more than 1 KB for any file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        write(draft_of)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda d: d.metrics({"long": "x" * 5000}), id="text"),
        pytest.param(lambda d: d.array("big", np.zeros(5000)), id="array"),
        pytest.param(lambda d: d.weights({"big": torch.zeros(5000)}), id="weights"),
    ],
)
def test_a_full_disk_is_a_clear_error_and_leaves_no_half_file(tmp_path, write):
    draft = store.Draft("pretrain", tmp_path)
    with pytest.raises(UserError, match="could not be written"):
        full_disk(draft, write)
    assert names(tmp_path) == []


# --- keys


def test_keys_are_those_of_the_data_not_of_its_order_or_type():
    one = {"a": [1, 2.5, "x"], "b": {"c": None, "d": True}}
    same = {"b": {"d": True, "c": None}, "a": (1, 2.5, "x")}
    assert store.key_of(one) == store.key_of(same)


def test_every_change_changes_the_key():
    variants = [
        {"a": 1}, {"a": 2}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}, {"a": {}},
        {"a": 1, "b": None}, {"a": {"b": 1}}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": 1e-4},
        {"a": 1.0000000000000002e-4}, {"a": ""}, {},
    ]
    assert len({store.key_of(v) for v in variants}) == len(variants)


def test_keys_are_the_same_in_every_process():
    """A literal, so that a change of the rule shows: it would make all stored results unfound."""
    assert store.key_of({"step": "pretrain", "settings": {"lr": 0.001}}) == "6e4d2f1270ccc7e8"


# --- steps


def test_what_was_written_is_what_is_read(tmp_path):
    results = store.Store(tmp_path)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
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


HOLDER = """
import sys
from hw1lib import files, store
with store.Store(sys.argv[1]).claimed("pretrain", sys.argv[2], {}) as draft:
    draft.metrics({"by": "the killed one"})
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_holds_no_step(tmp_path):
    results = store.Store(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), KEY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
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
