"""Atomic writes: a file is whole or absent, and an error says what helps."""

import contextlib
import ctypes
import errno
import io
import os
import resource
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import safetensors.torch
import torch
from PIL import Image

from hw1lib import files
from hw1lib.errors import UserError, remedy
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


@pytest.fixture
def path(tmp_path):
    """A file that is to be replaced."""
    files.write_text(tmp_path / "out" / "metrics.json", "old")
    return tmp_path / "out" / "metrics.json"


# --- whole or absent


def test_the_old_file_stays_until_the_new_one_replaces_it(path):
    """Whoever has it open reads it to its end, and a writer that fails leaves nothing else."""
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half of the new")
        print(1 / 0)
    assert path.read_text() == "old" and names(path.parent) == ["metrics.json"]
    with open(path) as reader:
        with files.replacing(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old" and temporary.parent == path.parent  # only then the move is atomic
        assert path.read_text() == "new" and reader.read() == "old"


def test_a_file_is_synced_before_it_moves_and_its_folder_after(path, monkeypatch):
    """In another order, a power cut could leave an empty file under the final name."""
    calls, move = [], os.replace

    def seen(handle):
        return os.stat(handle).st_ino, os.stat(handle).st_size

    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(seen(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("moved") or move(*paths))
    files.write_text(path, "new")
    assert calls == [seen(path), "moved", seen(path.parent)]


def test_writers_of_one_file_leave_one_whole_version(path):
    """A reader never sees a part."""
    gate, versions = threading.Barrier(5), [str(number) * 50_000 for number in range(4)]
    files.write_text(path, versions[0])

    def write(text):
        gate.wait(10)
        for _ in range(5):
            files.write_text(path, text)

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, text) for text in versions]
        gate.wait(10)
        while not all(one.done() for one in writing):
            assert path.read_text() in versions
    assert [one.result() for one in writing] == [None] * 4
    assert path.read_text() in versions and names(path.parent) == ["metrics.json"]


def test_files_have_ordinary_permissions(path, monkeypatch):
    """Without changing the umask, which belongs to all threads."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("two threads at once could leave it at 0"))
    files.write_text(path.with_name("written"), "")
    path.with_name("plain").write_text("")
    assert path.with_name("written").stat().st_mode == path.with_name("plain").stat().st_mode


def test_text_is_utf8_and_other_characters_are_escaped(path):
    files.write_json(path, {"Größe": "≤ 1 – é 漢"})
    assert files.read_json(path) == {"Größe": "≤ 1 – é 漢"} and "漢" in path.read_bytes().decode("utf-8")
    files.write_text(path, "a\udcffb")  # as in a file name of another encoding
    assert path.read_text() == "a\\udcffb"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_holds_no_number_that_json_lacks(path, number):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"rows": [{"accuracy": number}]})
    assert path.read_text() == "old" and names(path.parent) == ["metrics.json"]


# --- errors of the system


@pytest.mark.parametrize(("taken", "reason"), [("taken", "File exists"), ("taken/metrics.json", "Is a directory")])
def test_a_file_or_folder_in_the_way_is_a_clear_error(tmp_path, taken, reason):
    path = tmp_path / "taken" / "metrics.json"
    (tmp_path / taken).mkdir(parents=True) if reason == "Is a directory" else (tmp_path / taken).write_text("")
    with pytest.raises(UserError, match=rf"metrics\.json could not be written: {reason}\. Choose another place"):
        files.write_text(path, "{}")
    assert names(tmp_path) == ["taken"]


@pytest.mark.parametrize("call", ["os.open", "os.fsync", "os.replace"])
@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS"])
def test_an_error_says_what_helps_and_keeps_the_old_file(path, monkeypatch, call, name):
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    helps = "Free some disk space," if name in ("ENOSPC", "EDQUOT", "EFBIG") else "Fix the permissions of its folder,"
    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(call, fail(error))
        files.write_text(path, "new")
    text = str(caught.value)
    assert text.startswith(f"{path} could not be written: {error.strerror}. {helps}")
    assert text.endswith("What was finished before is kept.") and "\n" not in text
    assert path.read_text() == "old" and names(path.parent) == ["metrics.json"]


WRITERS = {
    "text": (lambda draft, size: draft.metrics({"long": "x" * size}), [500]),
    "table": (lambda draft, size: draft.history([{"epoch": epoch} for epoch in range(size)]), [500]),
    "array": (lambda draft, size: draft.array("a", np.zeros(size, np.uint8)), [10, 3_000, 4_050, 9_000, 100_000]),
    "weights": (lambda draft, size: draft.weights({"a": torch.zeros(size)}), [10, 3_000, 100_000]),
}


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind, (_, sizes) in WRITERS.items() for size in sizes])
@pytest.mark.parametrize("missing", [1, 50, None])
def test_a_disk_that_lacks_a_few_bytes_is_noticed(tmp_path, kind, size, missing):
    """Even if buffers hide it until the file is closed."""
    write = WRITERS[kind][0]
    (tmp_path / "whole").mkdir()
    write(store.Draft("pretrain", tmp_path / "whole"), size)
    (whole,) = (tmp_path / "whole").iterdir()
    limit = whole.stat().st_size - missing if missing else 0
    with pytest.raises(UserError, match="could not be written.*disk space") as caught, full_disk(limit):
        write(store.Draft("pretrain", tmp_path / "far" / "small"), size)
    assert names(tmp_path / "far" / "small") == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_folder_without_write_permission_is_a_clear_error(path, when):
    """That the temporary file cannot be removed must not hide it."""
    path.parent.chmod(0o555 if when == "before" else 0o755)
    text = r"metrics\.json could not be written: Permission denied\. Fix the permissions"
    with held_to_permissions(), pytest.raises(UserError, match=text), files.replacing(path) as temporary:
        path.parent.chmod(0o555)
        temporary.write_text("new")
    assert path.read_text() == "old"


# --- other errors while a file is written


def load_cut_file(path):
    """Raise a RuntimeError of the same torch module that torch.save uses."""
    torch.save({"a": torch.zeros(100)}, path.with_name("cut.pt"))
    path.with_name("cut.pt").write_bytes(path.with_name("cut.pt").read_bytes()[:-50])
    torch.load(path.with_name("cut.pt"))


def fail(error):
    def raise_error(*_, **__):
        raise error

    return raise_error


OTHERS = {
    "typst": fail(RuntimeError("unknown variable: x")),
    "CUDA": fail(torch.AcceleratorError("CUDA error: device-side assert triggered")),
    "CUDA memory": fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")),
    "memory": fail(RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")),
    "fork": fail(OSError(errno.ENOMEM, "Cannot allocate memory")),
    "bug": lambda path: torch.zeros(2) @ torch.zeros(3),
    "recursion": fail(RecursionError("maximum recursion depth exceeded")),
    "another file": lambda path: open(path.parent.parent / "missing.png"),  # noqa: SIM115
    "beside it": lambda path: np.load(path.parent / "missing.npy"),
    "two other files": lambda path: os.rename("/nowhere/a", "/nowhere/b"),
    "Pillow": lambda path: Image.fromarray(np.zeros((2, 2), np.float32), "F").save(path, format="PNG"),
    "no image": lambda path: Image.open(io.BytesIO(b"text")),
    "network": fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")),
    "time-out": fail(TimeoutError(errno.ETIMEDOUT, "timed out")),
    "name": fail(socket.gaierror(-2, "Name or service not known")),
    "request": fail(requests.ConnectionError("no network")),
    "safetensors": lambda path: safetensors.torch.load(b"odd"),
    "torch": load_cut_file,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cause", OTHERS)
def test_an_error_that_is_not_about_writing_passes_through(path, cause):
    with pytest.raises(Exception) as caught, files.replacing(path) as temporary:
        OTHERS[cause](temporary)
    assert not isinstance(caught.value, UserError)
    assert path.read_text() == "old" and [name for name in names(path.parent) if name[0] == "."] == []


WRITE_ERRORS = {
    "open": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "disk": (OSError(errno.EIO, "Input/output error"), "Check that the disk"),
    "gone": (lambda path: FileNotFoundError(errno.ENOENT, "No such file", str(path)), "Check that its folder exists"),
    "parent": (lambda path: PermissionError(errno.EACCES, "Permission denied", path.parent), "Fix the permissions"),
    "move": (lambda path: OSError(errno.EXDEV, "Cross-device link", "/a", None, str(path)), "Choose another place"),
    "torch": (RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file 0: "
                           "file write failed"), "Check that the disk"),
    "safetensors": (safetensors.SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
                    "Free some disk space"),
}  # fmt: skip


@pytest.mark.parametrize("cause", WRITE_ERRORS)
def test_an_error_about_writing_is_explained_whichever_library_raises_it(path, cause):
    error, helps = WRITE_ERRORS[cause]
    error = error if isinstance(error, Exception) else error(path)
    with pytest.raises(UserError, match=rf"metrics\.json could not be written: .*{helps}"), files.replacing(path):
        raise error
    assert path.read_text() == "old" and names(path.parent) == ["metrics.json"]


@pytest.mark.parametrize("limit", [0, 300, 5_000])
def test_a_checkpoint_on_a_full_disk_is_explained(tmp_path, limit):
    """Though torch raises a RuntimeError of its own."""
    refused, path = pytest.raises(UserError, match="File too large. Free some disk space"), tmp_path / "a.pt"
    with refused, full_disk(limit), files.replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save({"a": torch.zeros(10_000)}, file)


REMEDIES = {
    "ENOENT": "Check that its folder exists", "ENOSPC": "disk space", "EACCES": "permissions",
    "EISDIR": "another place", "EMFILE": "ulimit", "ECONNREFUSED": "network", "EIO": "disk is connected",
    None: "Remove the cause",
}  # fmt: skip


@pytest.mark.parametrize("name", REMEDIES)
def test_each_error_of_the_system_has_its_own_remedy(name):
    text = remedy(OSError(getattr(errno, name), "odd") if name else OSError("odd"))
    assert [words for words in REMEDIES.values() if words in text] == [REMEDIES[name]] and text.endswith("again.")
