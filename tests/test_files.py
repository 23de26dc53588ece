"""Atomic writes: a file is whole or absent, and an error says what helps."""

import contextlib
import ctypes
import errno
import os
import resource
import socket
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from hw1lib import files
from hw1lib.errors import UserError
from hw1lib.steps import store


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def held_to_permissions():
    """Give up root's capability to ignore permissions."""
    if os.geteuid():
        yield
        return
    libc, this_thread = ctypes.CDLL(None), struct.pack("Ii", 0x20080522, 0)
    before = ctypes.create_string_buffer(24)
    if not hasattr(libc, "capget") or libc.capget(this_thread, before):
        pytest.skip("permissions do not hold for this user")
    words = list(struct.unpack("6I", before.raw))  # effective, permitted, inheritable, twice
    words[0] = words[3] = 0
    assert libc.capset(this_thread, struct.pack("6I", *words)) == 0
    try:
        yield
    finally:
        libc.capset(this_thread, before)


@contextlib.contextmanager
def full_disk(limit=1024):
    """Allow no file to grow beyond `limit` bytes, much as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail(error):
    def raise_error(*_, **__):
        raise error

    return raise_error


@pytest.fixture
def path(tmp_path):
    """A file that is to be replaced."""
    files.write_text(tmp_path / "out" / "metrics.json", "old")
    return tmp_path / "out" / "metrics.json"


def test_the_old_file_stays_until_the_new_one_replaces_it(path):
    """Whoever has it open reads it to its end. A writer that fails leaves nothing else, and two do not mix."""
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half of the new")
        print(1 / 0)
    assert path.read_text() == "old" and names(path.parent) == ["metrics.json"]
    with open(path) as reader, files.replacing(path) as slower:
        with files.replacing(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old" and temporary.parent == path.parent  # only then the move is atomic
        assert path.read_text() == "new" and reader.read() == "old"
        slower.write_text("newer")
    assert path.read_text() == "newer" and names(path.parent) == ["metrics.json"]
    path.with_name("plain").write_text("")
    assert path.stat().st_mode == path.with_name("plain").stat().st_mode


def test_a_file_is_synced_before_it_moves_and_its_folder_after(path, monkeypatch):
    """In another order, a power cut could leave an empty file under the final name."""
    calls, move = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(os.fstat(handle).st_ino))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("moved") or move(*paths))
    files.write_text(path, "new")
    assert calls == [path.stat().st_ino, "moved", path.parent.stat().st_ino]


def test_json_is_utf8_and_holds_no_number_that_json_lacks(path):
    files.write_json(path, {"Größe": "≤ 1 – é 漢"})
    assert files.read_json(path) == {"Größe": "≤ 1 – é 漢"} and "漢" in path.read_bytes().decode("utf-8")
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"rows": [{"accuracy": float("nan")}]})
    files.write_text(path, "a\udcffb")  # as in a file name of another encoding
    assert path.read_text() == "a\\udcffb" and names(path.parent) == ["metrics.json"]


# --- errors


@pytest.mark.parametrize(("taken", "reason"), [("taken", "File exists"), ("taken/metrics.json", "Is a directory")])
def test_a_file_or_folder_in_the_way_is_a_clear_error(tmp_path, taken, reason):
    path = tmp_path / "taken" / "metrics.json"
    (tmp_path / taken).mkdir(parents=True) if reason == "Is a directory" else (tmp_path / taken).write_text("")
    with pytest.raises(UserError, match=rf"metrics\.json could not be written: {reason}\. Choose another place"):
        files.write_text(path, "{}")
    assert names(tmp_path) == ["taken"]


WRITE_ERRORS = [  # about the file itself, its folder, or no file; and what helps
    (lambda _: OSError(errno.ENOSPC, "No space left"), "Free some disk space,"),
    (lambda _: OSError(errno.EIO, "Input/output error"), "Check that the disk"),
    (lambda _: OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (lambda path: FileNotFoundError(errno.ENOENT, "No such file", str(path)), "Check that its folder exists"),
    (lambda path: PermissionError(errno.EACCES, "Permission denied", path.parent), "Fix the permissions of"),
    (lambda path: OSError(errno.EXDEV, "Cross-device link", "/a", None, str(path)), "Choose another place"),
]


@pytest.mark.parametrize(("error", "helps"), WRITE_ERRORS)
def test_an_error_says_what_helps_and_keeps_the_old_file(path, monkeypatch, error, helps):
    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(os, "replace", fail(error(path)))
        files.write_text(path, "new")
    text = str(caught.value)
    assert text.startswith(f"{path} could not be written: {error(path).strerror}. ") and helps in text
    assert text.endswith("What was finished before is kept.") and "\n" not in text
    assert path.read_text() == "old" and names(path.parent) == ["metrics.json"]


OTHERS = {
    "typst": fail(RuntimeError("unknown variable: x")),
    "GPU memory": fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")),
    "fork": fail(OSError(errno.ENOMEM, "Cannot allocate memory")),
    "bug": lambda path: torch.zeros(2) @ torch.zeros(3),
    "another file": lambda path: open(path.parent.parent / "missing.png"),  # noqa: SIM115
    "beside it": lambda path: np.load(path.parent / "missing.npy"),
    "Pillow": lambda path: Image.fromarray(np.zeros((2, 2), np.float32), "F").save(path, format="PNG"),
    "network": fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")),
    "name": fail(socket.gaierror(-2, "Name or service not known")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cause", OTHERS)
def test_an_error_that_is_not_about_writing_passes_through(path, cause):
    with pytest.raises(Exception) as caught, files.replacing(path) as temporary:
        OTHERS[cause](temporary)
    assert not isinstance(caught.value, UserError)
    assert path.read_text() == "old" and names(path.parent) == ["metrics.json"]


WRITERS = {
    "text": lambda draft, size: draft.metrics({"long": "x" * size}),
    "array": lambda draft, size: draft.array("a", np.zeros(size, np.uint8)),
    "weights": lambda draft, size: draft.weights({"a": torch.zeros(size)}),
}


@pytest.mark.parametrize("size", [10, 4_050, 100_000])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_lacks_a_few_bytes_is_noticed(tmp_path, kind, size):
    """Even if buffers hide it until the file is closed."""
    (tmp_path / "whole").mkdir()
    WRITERS[kind](store.Draft("pretrain", tmp_path / "whole"), size)
    (whole,) = (tmp_path / "whole").iterdir()
    for limit in (whole.stat().st_size - 1, 0):
        with pytest.raises(UserError, match="could not be written.*disk space"), full_disk(limit):
            WRITERS[kind](store.Draft("pretrain", tmp_path / "far" / "small"), size)
        assert names(tmp_path / "far" / "small") == []


def test_a_folder_without_write_permission_is_a_clear_error(path):
    """That the temporary file cannot be removed must not hide it."""
    refused = pytest.raises(UserError, match=r"metrics\.json could not be written: Permission denied\. Fix the perm")
    with held_to_permissions(), refused, files.replacing(path) as temporary:
        path.parent.chmod(0o555)
        temporary.write_text("new")
    with held_to_permissions(), refused:
        files.write_text(path, "new")
    assert path.read_text() == "old"
