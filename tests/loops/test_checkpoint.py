"""Checkpoints: what they hold, that they hold nothing else, and that all of it comes back."""

import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from hw1lib import files
from hw1lib.errors import UserError
from hw1lib.loops.checkpoint import Checkpoint, Progress, random_states, restore_random
from tests.test_files import full_disk, names

CPU = torch.device("cpu")


def trained(seed=0):
    """A module and its optimizer after a step, so that both have a state."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(module.parameters(), 0.1 + seed)
    module(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return module, optimizer


def make(path, seed=0, every=0.0):
    return Checkpoint(path, *trained(seed), CPU, every)


def progress():
    rows = [
        {"epoch": 1, "loss": 0.1 + 0.2, "confusion": [[1, 2], [3, 4]], "best": True},
        {"epoch": 2, "loss": 1e-300, "note": None, "name": "≤"},
    ]
    return Progress(rows, step=3, total=torch.tensor(1 / 3))


def same(one, two):
    """Whether two nested states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


# --- random generators


def draws():
    return random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.randn(3)


def test_generators_go_on_where_they_were(tmp_path):
    """Through a file. NumPy and Python make normal numbers in pairs and keep the second; a state has it, too.

    What began on another device goes on here: its generator's state is of no use, and no harm, on a CPU.
    """
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(), np.random.randn(), torch.randn(1)
    states = random_states(CPU)
    assert states["numpy"][3] == 1 and states["python"][2] is not None
    torch.save(states | {"device": torch.zeros(16, dtype=torch.uint8)}, tmp_path / "states.pt")
    first = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(), np.random.randn(), torch.randn(1)
    assert same(draws(), first)  # asking for the states has drawn nothing
    random.seed(2), np.random.seed(2), torch.manual_seed(2), draws()
    restore_random(torch.load(tmp_path / "states.pt", weights_only=True), CPU)
    assert same(draws(), first)
    assert not same(draws(), first)


# --- saving and loading


def test_a_checkpoint_is_plain_data_with_all_that_a_training_needs(tmp_path):
    path = tmp_path / "checkpoint.pt"
    (tmp_path / "stage_early.npy").write_bytes(b"an epoch's")
    (tmp_path / ".stage_late.npy.x1").write_bytes(b"half of it")
    (tmp_path / "config.json").write_text("{}")
    saved = make(path)
    saved.save(progress())
    state = torch.load(path, weights_only=True)
    assert state.keys() == {"format", "module", "optimizer", "progress", "beside"}
    assert same(state["module"], dict(saved.module.state_dict()))
    assert same(state["optimizer"], saved.optimizer.state_dict())
    expected = vars(progress()) | {"random": random_states(CPU)}
    assert same(state["progress"], expected)
    assert state["beside"] == {"stage_early.npy": files.digest(tmp_path / "stage_early.npy")}


def test_what_was_saved_is_what_is_loaded(tmp_path):
    """Each takes the place of the one before; saving does not change what goes on."""
    saved, other, now = make(tmp_path / "checkpoint.pt"), make(tmp_path / "checkpoint.pt", seed=1), progress()
    saved.save(Progress([], 1, torch.tensor(0.0)))
    saved.save(now)
    states = random_states(CPU)
    assert now.random is None and same(vars(now), vars(progress()))
    assert names(tmp_path) == ["checkpoint.pt"]
    loaded = other.load()
    assert loaded.history == progress().history and loaded.step == 3
    assert same(loaded.total, progress().total) and same(loaded.random, states)
    assert same(dict(other.module.state_dict()), dict(saved.module.state_dict()))
    assert same(other.optimizer.state_dict(), saved.optimizer.state_dict())


def test_without_a_path_or_a_file_a_training_begins(tmp_path, capsys):
    for idle in (make(None), make(tmp_path / "checkpoint.pt")):
        before = dict(idle.module.state_dict())
        assert idle.load() == Progress([]) and same(dict(idle.module.state_dict()), before)
    assert not make(None).due() and not make(None).due(inside=True)
    assert capsys.readouterr().out == "" and names(tmp_path) == []


# --- what is not trusted


class Code:
    """Unpickled, it would make a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def refused(path, capsys):
    """Loads what must not be loaded; what was said."""
    other = make(path, seed=1)
    module, optimizer = trained(1)
    assert other.load() == Progress([])
    assert same(dict(other.module.state_dict()), dict(module.state_dict()))
    assert same(other.optimizer.state_dict(), optimizer.state_dict())
    assert not path.exists()
    said = capsys.readouterr().out
    assert said.startswith(f"{path} cannot be used (") and said.count("\n") == 1
    return said


PARTS = ["format", "module", "optimizer", "progress", "beside"]


@pytest.mark.parametrize("place", [*PARTS[1:], "more", "a plain pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys, place):
    path, ran = tmp_path / "checkpoint.pt", tmp_path / "ran"
    if place == "a plain pickle":
        path.write_bytes(pickle.dumps(Code(ran)))
    else:
        make(path).save(progress())
        torch.save(torch.load(path, weights_only=True) | {place: Code(ran)}, path)
    refused(path, capsys)
    assert not ran.exists()


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
    [
        (cut, ""),
        (lambda path: path.write_text("none"), ""),
        (flip, "it is damaged"),
        (widen, "it is of another network"),
    ],
)
def test_a_damaged_checkpoint_is_never_half_trusted(tmp_path, capsys, change, reason):
    make(tmp_path / "checkpoint.pt").save(progress())
    change(tmp_path / "checkpoint.pt")
    assert f"({reason}" in refused(tmp_path / "checkpoint.pt", capsys)


ODD = {"format": [2], "module": [[], {"0.weight": 1}], "optimizer": [{}, {"state": {}, "param_groups": []}]}
ODD |= {"progress": [{}, {"odd": 1}, None], "beside": [None, {"gone.npy": "0"}]}


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_that_lacks_a_part_or_has_an_odd_one_is_not_used(tmp_path, capsys, part):
    path = tmp_path / "checkpoint.pt"
    make(path).save(progress())
    state = torch.load(path, weights_only=True)
    for odd in ({k: v for k, v in state.items() if k != part}, *(state | {part: odd} for odd in ODD[part])):
        torch.save(odd, path)
        refused(path, capsys)


@pytest.mark.parametrize("error", [OSError("odd"), torch.AcceleratorError("CUDA error"), MemoryError()], ids=repr)
def test_what_is_no_fault_of_the_file_leaves_it_alone(tmp_path, monkeypatch, error):
    path = tmp_path / "checkpoint.pt"
    make(path).save(progress())

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        make(path).load()
    assert path.exists()


def test_results_that_came_after_it_are_made_again(tmp_path):
    """Else a GPU's other rounding would make the next checkpoint contradict them."""
    (tmp_path / "stage_early.npy").write_bytes(b"as written")
    saved = make(tmp_path / "checkpoint.pt")
    saved.save(progress())
    (tmp_path / "predictions.npy").write_bytes(b"of the epoch that was interrupted")
    assert saved.load().step == 3 and names(tmp_path) == ["checkpoint.pt", "stage_early.npy"]


@pytest.mark.parametrize("gone", [True, False])
def test_without_the_results_it_goes_with_it_is_not_used(tmp_path, capsys, gone):
    array = tmp_path / "stage_early.npy"
    array.write_bytes(b"as written")
    make(tmp_path / "checkpoint.pt").save(progress())
    array.unlink() if gone else array.write_text("x")
    assert "stage_early.npy was altered or is missing" in refused(tmp_path / "checkpoint.pt", capsys)
    assert names(tmp_path) == []


@pytest.mark.parametrize("lacking", [1, 100, 10_000])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, lacking):
    path = tmp_path / "checkpoint.pt"
    saved = make(path)
    saved.save(Progress([], 1, torch.tensor(0.0)))
    refusal = pytest.raises(UserError, match=r"checkpoint\.pt could not be written")
    with refusal as caught, full_disk(path.stat().st_size - lacking):
        saved.save(Progress([], 2, torch.tensor(0.0)))
    assert "disk space" in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path) == ["checkpoint.pt"] and saved.load().step == 1


def test_slow_disks_are_written_to_less_often(tmp_path, monkeypatch):
    """No more than a twentieth of the time: after 10 s of writing 200 s go by; inside an epoch ten intervals do."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(torch, "save", lambda *_: clock.__setitem__(0, clock[0] + 10))
    saved = make(tmp_path / "checkpoint.pt", every=60)
    clock[0] = 60
    assert saved.due()
    saved.save(Progress([]))
    for clock[0], end, inside in ((70, 0, 0), (269, 0, 0), (270, 1, 0), (669, 1, 0), (670, 1, 1)):
        assert (saved.due(), saved.due(inside=True)) == (end, inside)
