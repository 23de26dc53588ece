"""Checkpoints: what they hold, that they hold nothing else, and that all of it comes back."""

import os
import pickle
import random
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from hw1lib import files
from hw1lib.errors import UserError
from hw1lib.loops.checkpoint import Checkpoint, Progress
from tests.test_files import full_disk, names

CPU = torch.device("cpu")


def trained(seed=0):
    """A module, its optimizer and scaler after a step, so that all have a state."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(module.parameters(), 0.1 + seed)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 + seed, growth_interval=1)
    scaler.scale(module(torch.randn(5, 4)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return module, optimizer, scaler


def make(path, seed=0, every=0.0):
    return Checkpoint(path, *trained(seed), CPU, every)


def state_of(checkpoint):
    return [dict(checkpoint.module.state_dict()), checkpoint.optimizer.state_dict(), checkpoint.scaler.state_dict()]


def progress():
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "confusion": [[1, 2], [3, 4]], "best": True}]
    return Progress([*rows, {"epoch": 2, "loss": 1e-300, "note": None, "name": "≤"}], 3, torch.tensor(1 / 3))


def same(one, two):
    """Whether two nested states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


# --- saving and loading


def test_what_was_saved_is_plain_data_and_is_what_is_loaded(tmp_path):
    """Each takes the place of the one before; saving does not change what goes on."""
    (tmp_path / "stage_early.npy").write_bytes(b"an epoch's")
    (tmp_path / ".stage_late.npy.x1").write_bytes(b"half of it")
    path = tmp_path / "checkpoint.pt"
    saved, other, now = make(path), make(path, seed=1), progress()
    saved.save(Progress([], 1, torch.tensor(0.0)))
    saved.save(now)
    assert same(vars(now), vars(progress()))
    state = torch.load(path, weights_only=True)
    assert state.keys() == {"format", "module", "optimizer", "scaler", "progress", "beside"}
    assert state["beside"] == {"stage_early.npy": files.digest(tmp_path / "stage_early.npy")}
    assert same(vars(other.load()), vars(progress()))
    assert same(state_of(other), state_of(saved))


# --- what is not trusted


@pytest.fixture
def path(tmp_path):
    """A checkpoint, and a result that it goes with."""
    (tmp_path / "stage_early.npy").write_bytes(b"as written")
    make(tmp_path / "checkpoint.pt").save(progress())
    return tmp_path / "checkpoint.pt"


def refused(path, capsys):
    """Load what must not be loaded: it is moved aside, with the results beside it; return the message."""
    other = make(path, seed=1)
    before = {found.name: found.read_bytes() for found in path.parent.iterdir() if found.is_file()}
    assert other.load() == Progress([]) and same(state_of(other), state_of(make(path, seed=1)))
    assert names(path.parent) == ["unreadable"]  # in place of those of the time before
    assert {found.name: found.read_bytes() for found in (path.parent / "unreadable").iterdir()} == before
    message = capsys.readouterr().out
    assert message.startswith(f"checkpoint: {path} cannot be used (") and message.count("\n") == 1
    assert f"kept in {path.parent / 'unreadable'}," in message and "beginning" in message
    return message


class Code:
    """Unpickled, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("made",)


@pytest.mark.parametrize("place", ["module", "optimizer", "progress", "beside", "more", "a plain pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    if place == "a plain pickle":
        path.write_bytes(pickle.dumps(Code()))
    else:
        torch.save(torch.load(path, weights_only=True) | {place: Code()}, path)
    refused(path, capsys)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    """One bit in the middle of the weights, which torch itself would not notice."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    whole[largest.header_offset + largest.file_size] ^= 1
    path.write_bytes(whole)


def widen(path):
    state = torch.load(path, weights_only=True)
    state["module"]["0.weight"] = torch.zeros(5, 4)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(cut, ""), (lambda path: path.write_text("none"), ""), (flip, "it is damaged"), (widen, "it is of another net")],
)
def test_a_damaged_checkpoint_is_never_half_trusted(path, capsys, change, reason):
    change(path)
    assert f"({reason}" in refused(path, capsys)


ODD = {"format": [1], "module": [[], {"0.weight": 1}], "optimizer": [{}, {"state": {}, "param_groups": []}]}
ODD |= {
    "progress": [{}, {"odd": 1}, None],
    "beside": [None, {"gone.npy": "0"}],
    "scaler": [None, {"scale": 1.0}, 3],
}  # each part of a checkpoint


@pytest.mark.parametrize("part", ODD)
def test_a_checkpoint_that_lacks_a_part_or_has_an_odd_one_is_not_used(path, capsys, part):
    state = torch.load(path, weights_only=True)
    for odd in ({k: v for k, v in state.items() if k != part}, *(state | {part: odd} for odd in ODD[part])):
        torch.save(odd, path)
        refused(path, capsys)
        (path.parent / "stage_early.npy").write_bytes(b"as written")


@pytest.mark.parametrize("change", [None, Path.unlink, lambda path: path.write_text("x")])
def test_only_the_results_that_it_goes_with_stay_beside_it(tmp_path, path, capsys, change):
    """Others are made again: with a GPU's other rounding the next checkpoint would contradict them."""
    (tmp_path / "predictions.npy").write_bytes(b"of the epoch that was interrupted")
    if change is None:
        assert make(path).load().step == 3 and names(tmp_path) == ["checkpoint.pt", "stage_early.npy"]
    else:
        change(tmp_path / "stage_early.npy")
        assert "stage_early.npy was altered or is missing" in refused(path, capsys)


def test_whatever_is_damaged_the_training_goes_on_or_starts_anew(path):
    """Bits flipped, bytes overwritten, ends cut off anywhere, which zipfile meets with errors of many kinds."""
    whole, chance, other, outcomes = path.read_bytes(), random.Random(0), make(path, seed=1), set()
    for _ in range(300):
        content, at, count = bytearray(whole), chance.randrange(len(whole)), chance.randrange(1, 200)
        kind = chance.choice(["flip", "overwrite", "cut", "directory"])
        at = chance.randrange(len(whole) - 300, len(whole)) if kind == "directory" else at
        content[at : None if kind == "cut" else at + count] = {
            "flip": bytes([content[at] ^ 1]) + content[at + 1 : at + count],
            "cut": b"",
        }.get(kind, chance.randbytes(min(count, len(content) - at)))
        path.write_bytes(content)
        (path.parent / "stage_early.npy").write_bytes(b"as written")
        outcomes.add(other.load().step)
    assert outcomes <= {0, 3} and 0 in outcomes


BEYOND = [OSError("odd"), torch.AcceleratorError("CUDA error"), MemoryError(), TypeError("a new argument of torch")]
BEYOND += [AttributeError("our bug"), ImportError("torch"), NameError("x"), PermissionError(13, "denied")]
BEYOND += [RuntimeError("DefaultCPUAllocator: can't allocate memory"), KeyboardInterrupt()]


@pytest.mark.parametrize("place", ["torch.load", "torch.optim.Adam.load_state_dict"])
@pytest.mark.parametrize("error", BEYOND, ids=repr)
def test_what_is_no_fault_of_the_file_is_raised_and_leaves_it_alone(path, monkeypatch, error, place):
    before = path.read_bytes()
    monkeypatch.setattr(place, Mock(side_effect=error))
    with pytest.raises(type(error)):
        make(path).load()
    assert path.read_bytes() == before and names(path.parent) == ["checkpoint.pt", "stage_early.npy"]


@pytest.mark.parametrize("lacking", [1, 100, 10_000])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, path, lacking):
    refusal = pytest.raises(UserError, match=r"(?s)checkpoint\.pt could not be written.*disk space")
    with refusal as caught, full_disk(path.stat().st_size - lacking):
        make(path).save(progress())
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["checkpoint.pt", "stage_early.npy"] and make(path).load().step == 3


def test_slow_disks_are_written_to_less_often(tmp_path, monkeypatch):
    """No more than a twentieth of the time: after 10 s of writing 200 s go by; inside an epoch ten intervals do."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    saved = make(tmp_path / "checkpoint.pt", every=60)
    clock[0] = 60
    monkeypatch.setattr(torch, "save", lambda *_: clock.__setitem__(0, 70))
    assert saved.due()
    saved.save(Progress([]))
    for clock[0], end, inside in ((70, 0, 0), (269, 0, 0), (270, 1, 0), (669, 1, 0), (670, 1, 1)):
        assert (saved.due(), saved.due(inside=True)) == (end, inside)
