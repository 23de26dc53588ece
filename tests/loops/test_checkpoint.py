"""Checkpoints: they restore everything, contain no code, and are used whole or not at all."""

import os
import zipfile
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from hw1lib import files
from hw1lib.errors import UserError
from hw1lib.loops.checkpoint import Checkpoint
from hw1lib.steps.store import Draft
from tests.test_files import full_disk, names

ROWS = [{"epoch": 1, "loss": 0.1 + 0.2, "confusion": [[1, 2], [3, 4]], "best": True}]
ROWS += [{"epoch": 2, "loss": 1e-300, "note": None, "name": "≤"}]
POINT = ROWS, 3, torch.tensor(1 / 3)


def training(seed=0):
    """A module, its optimizer and its scaler after one step, so that each has a state."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(module.parameters(), 0.1 + seed)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 + seed, growth_interval=1)
    scaler.scale(module(torch.randn(5, 4)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return module, optimizer, scaler


def restore(folder, seed=0, every=0.0):
    """A checkpoint in a step's folder, and what it restored into a training with other weights, by default none."""
    parts, checkpoint = training(seed), Checkpoint(Draft("pretrain", folder), every)
    return checkpoint, parts, checkpoint.restore(*parts)


def assert_same(parts, expected):
    states = ([part.state_dict() for part in group] for group in (parts, expected))
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.fixture
def path(tmp_path):
    """A checkpoint that was saved with an array beside it."""
    checkpoint, *_ = restore(tmp_path)
    (tmp_path / "stage_early.npy").write_bytes(b"as written")
    checkpoint.save([], 1, torch.tensor(0.0))
    checkpoint.save(*POINT)
    return tmp_path / "checkpoint.pt"


def test_a_checkpoint_restores_all_states_from_plain_data(path):
    state = torch.load(path, weights_only=True)
    assert state.keys() == {"format", "module", "optimizer", "scaler", "progress", "beside"}
    assert state["beside"] == {"stage_early.npy": files.digest(path.parent / "stage_early.npy")}
    _, parts, point = restore(path.parent, seed=1)
    assert point == POINT
    assert_same(parts, training(0))


# --- damage


class Code:
    """Creates a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("made",)


def edit(path, part, value):
    state = torch.load(path, weights_only=True)
    torch.save(state | {part: value}, path)


def flip_a_bit_of_the_weights(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size] ^= 1
    path.write_bytes(content)


DAMAGE = [
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "it is damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-200] + bytes(200)), "it is damaged"),
    (flip_a_bit_of_the_weights, "it is damaged"),
    (lambda path: edit(path, "more", Code()), "it holds more than plain data"),
    (lambda path: edit(path, "format", 1), "it was written by another version"),
    (lambda path: edit(path, "module", {"0.weight": torch.zeros(5, 4)}), "it belongs to another network"),
    (lambda path: edit(path, "optimizer", {"state": {}, "param_groups": []}), ""),
    (lambda path: (path.parent / "stage_early.npy").write_text("x"), "stage_early.npy was altered or is missing"),
    (lambda path: (path.parent / "stage_early.npy").unlink(), "stage_early.npy was altered or is missing"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_its_code_is_not_run(path, monkeypatch, capsys, damage, reason):
    """Training starts over; one line says why and where the checkpoint and its arrays are kept."""
    monkeypatch.chdir(path.parent)
    damage(path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    for _ in range(2):  # the second replaces the first
        _, parts, point = restore(path.parent, seed=1)
        assert point == ([], 0, None)
        assert_same(parts, training(1))
        kept = path.parent / "unreadable"
        assert names(path.parent) == ["unreadable"]
        assert {file.name: file.read_bytes() for file in kept.iterdir()} == before
        message = capsys.readouterr().out
        assert message.startswith(f"pretrain: {path} cannot be used ({reason}") and message.count("\n") == 1
        assert f"kept in {kept}," in message and "starts over" in message
        for file, content in before.items():
            (path.parent / file).write_bytes(content)


def test_arrays_of_an_epoch_that_is_trained_again_are_deleted(path):
    """On another GPU, rounding could make them differ from the hashes in the next checkpoint."""
    (path.parent / "predictions.npy").write_bytes(b"of the interrupted epoch")
    assert restore(path.parent)[2][1] == 3
    assert names(path.parent) == ["checkpoint.pt", "stage_early.npy"]
    path.unlink()
    restore(path.parent)
    assert names(path.parent) == []


OTHER_CAUSES = [PermissionError(13, "denied"), torch.AcceleratorError("CUDA error"), TypeError("new torch argument")]
OTHER_CAUSES += [RuntimeError("DefaultCPUAllocator: can't allocate memory"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", OTHER_CAUSES, ids=repr)
def test_errors_with_another_cause_leave_the_file_alone(path, monkeypatch, error):
    before = path.read_bytes()
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", Mock(side_effect=error))
    with pytest.raises(type(error)):
        restore(path.parent)
    assert path.read_bytes() == before and names(path.parent) == ["checkpoint.pt", "stage_early.npy"]


def test_a_full_disk_keeps_the_previous_checkpoint(path):
    checkpoint, *_ = restore(path.parent)
    refusal = pytest.raises(UserError, match=r"checkpoint\.pt could not be written.*disk space")
    with refusal, full_disk(path.stat().st_size - 1):
        checkpoint.save(*POINT)
    assert names(path.parent) == ["checkpoint.pt", "stage_early.npy"] and restore(path.parent)[2][1] == 3


def test_writing_takes_at_most_a_twentieth_of_the_time(tmp_path, monkeypatch):
    """After a write of 10 s, 200 s pass; inside an epoch, ten intervals do."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    checkpoint, *_ = restore(tmp_path, every=60)
    clock[0] = 60
    monkeypatch.setattr(torch, "save", lambda *_: clock.__setitem__(0, 70))
    assert checkpoint.due()
    checkpoint.save([])
    for clock[0], end, inside in ((70, 0, 0), (269, 0, 0), (270, 1, 0), (669, 1, 0), (670, 1, 1)):
        assert (checkpoint.due(), checkpoint.due(mid_epoch=True)) == (end, inside)
