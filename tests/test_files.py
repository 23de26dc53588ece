"""Files: what is written is whole or absent, and a refusal says what helps."""

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
    """Root may write anywhere; without its capabilities it is held to permissions as others are."""
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
    """No file may become larger than `limit` bytes, much as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- whole or absent


def test_the_old_file_stands_until_the_new_one_takes_its_place(tmp_path):
    """Nothing is ever written into it: who has it open reads it to its end. A failing writer leaves nothing else."""
    path = tmp_path / "metrics.json"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half of the new")
        print(1 / 0)
    assert path.read_text() == "old" and names(tmp_path) == ["metrics.json"]
    with open(path) as reader:
        with files.replacing(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            assert temporary.parent == path.parent  # else the last move would not be atomic
        assert path.read_text() == "new" and reader.read() == "old"


def test_a_file_is_on_the_disk_before_it_moves_and_its_folder_after(tmp_path, monkeypatch):
    """In another order a power cut could leave an empty file under the final name."""
    path, calls, move = tmp_path / "metrics.json", [], os.replace

    def seen(handle):
        return os.stat(handle).st_ino, os.stat(handle).st_size

    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(seen(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("moved") or move(*paths))
    files.write_text(path, "new")
    assert calls == [seen(path), "moved", seen(tmp_path)]


def test_writers_of_one_file_leave_one_whole_version(tmp_path):
    """And whoever reads meanwhile never sees a part."""
    path, gate = tmp_path / "metrics.json", threading.Barrier(5)
    versions = [str(number) * 50_000 for number in range(4)]
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
    assert path.read_text() in versions and names(tmp_path) == ["metrics.json"]


def test_files_are_ordinary_ones(tmp_path, monkeypatch):
    """Others may read what the umask lets them; it belongs to all threads, so it is not touched to find that out."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("two at once could leave it at 0"))
    files.write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_is_utf8_and_what_that_cannot_say_is_shown(tmp_path):
    files.write_json(tmp_path / "a.json", {"Größe": "≤ 1 – é 漢"})
    assert files.read_json(tmp_path / "a.json") == {"Größe": "≤ 1 – é 漢"}
    assert "漢" in (tmp_path / "a.json").read_bytes().decode("utf-8")
    files.write_text(tmp_path / "odd", "a\udcffb")  # as in a file name of another coding
    assert (tmp_path / "odd").read_text() == "a\\udcffb"


# --- refusals


@pytest.mark.parametrize(("taken", "reason"), [("taken", "File exists"), ("taken/metrics.json", "Is a directory")])
def test_what_stands_in_the_way_is_a_clear_error(tmp_path, taken, reason):
    """A file in place of the folder, a folder in place of the file."""
    path = tmp_path / "taken" / "metrics.json"
    (tmp_path / taken).mkdir(parents=True) if reason == "Is a directory" else (tmp_path / taken).write_text("")
    with pytest.raises(UserError, match=rf"metrics\.json could not be written: {reason}\. Choose another place"):
        files.write_text(path, "{}")
    assert names(tmp_path) == ["taken"]


@pytest.mark.parametrize("failing", ["os.open", "os.fsync", "os.replace"])
@pytest.mark.parametrize(
    ("helps", "numbers"),
    [
        ("Free some disk space,", ["ENOSPC", "EDQUOT", "EFBIG"]),
        ("Mend the permissions of its folder, or choose another one,", ["EACCES", "EPERM", "EROFS"]),
    ],
)
def test_a_refusal_names_what_helps_and_keeps_the_old_file(tmp_path, monkeypatch, failing, helps, numbers):
    path, number = tmp_path / "metrics.json", 0
    files.write_text(path, "old")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(failing, refuse)
    for number in (getattr(errno, name) for name in numbers):
        with pytest.raises(UserError) as caught:
            files.write_text(path, "new")
        said = str(caught.value)
        assert said.startswith(f"{path} could not be written: {os.strerror(number)}. {helps}")
        assert said.endswith("What was finished before is kept.") and "\n" not in said
        assert path.read_text() == "old" and names(tmp_path) == ["metrics.json"]


WRITERS = {
    "text": (lambda d, n: d.metrics({"long": "x" * n}), [500]),
    "table": (lambda d, n: d.history([{"epoch": e} for e in range(n)]), [500]),
    "array": (lambda d, n: d.array("a", np.zeros(n, np.uint8)), [10, 3_000, 4_050, 9_000, 100_000]),
    "weights": (lambda d, n: d.weights({"a": torch.zeros(n)}), [10, 3_000, 100_000]),
}


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind, (_, sizes) in WRITERS.items() for size in sizes])
@pytest.mark.parametrize("short", [1, 50, None])
def test_a_disk_that_lacks_a_few_bytes_is_noticed(tmp_path, kind, size, short):
    """What buffers keep until the file is closed counts, too; no half file stays."""
    write = WRITERS[kind][0]
    (tmp_path / "whole").mkdir()
    write(store.Draft("pretrain", tmp_path / "whole"), size)
    (whole,) = (tmp_path / "whole").iterdir()
    limit = whole.stat().st_size - short if short else 0
    with pytest.raises(UserError, match="could not be written.*disk space") as caught, full_disk(limit):
        write(store.Draft("pretrain", tmp_path / "far" / "small"), size)
    assert names(tmp_path / "far" / "small") == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_holds_no_number_that_json_lacks(tmp_path, number):
    """A measure that cannot be taken is None; whatever else writes NaN must not go unnoticed."""
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "metrics.json", {"rows": [{"accuracy": number}]})
    assert names(tmp_path) == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_folder_without_write_permission_is_a_clear_error(tmp_path, when):
    """Meanwhile the temporary file cannot be removed; that must not hide what happened."""
    path = tmp_path / "metrics.json"
    files.write_text(path, "old")
    tmp_path.chmod(0o555 if when == "before" else 0o755)
    said = r"metrics\.json could not be written: Permission denied\. Mend the permissions"
    with held_to_permissions(), pytest.raises(UserError, match=said), files.replacing(path) as temporary:
        tmp_path.chmod(0o555)
        temporary.write_text("new")
    assert path.read_text() == "old"


# --- causes


def bad_torch_file(path):
    """torch.load of a file that ends early, which raises a RuntimeError of the same module as torch.save."""
    torch.save({"a": torch.zeros(100)}, path.with_name("cut.pt"))
    path.with_name("cut.pt").write_bytes(path.with_name("cut.pt").read_bytes()[:-50])
    torch.load(path.with_name("cut.pt"))


def fail(error):
    def run(path):
        raise error

    return run


OTHERS = {  # what may happen while a file is written, and is no fault of the disk
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
    "torch": bad_torch_file,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cause", OTHERS)
def test_what_is_no_refusal_to_write_is_not_called_one(tmp_path, cause):
    path = tmp_path / "out" / "metrics.json"
    files.write_text(path, "old")
    with pytest.raises(Exception) as caught, files.replacing(path) as temporary:
        OTHERS[cause](temporary)
    assert not isinstance(caught.value, UserError)
    assert path.read_text() == "old" and [name for name in names(path.parent) if name[0] == "."] == []


REFUSALS = {
    "open": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "disk": (OSError(errno.EIO, "Input/output error"), "Check that the disk"),
    "gone": (lambda path: FileNotFoundError(errno.ENOENT, "No such file", str(path)), "Check that its folder exists"),
    "parent": (lambda path: PermissionError(errno.EACCES, "Permission denied", path.parent), "Mend the permissions"),
    "move": (lambda path: OSError(errno.EXDEV, "Cross-device link", "/a", None, str(path)), "Choose another place"),
    "torch": (RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file 0: "
                           "file write failed"), "Check that the disk"),
    "safetensors": (safetensors.SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
                    "Free some disk space"),
}  # fmt: skip


@pytest.mark.parametrize("cause", REFUSALS)
def test_a_refusal_to_write_is_one_whoever_raises_it(tmp_path, cause):
    path, (error, helps) = tmp_path / "weights.pt", REFUSALS[cause]
    error = error if isinstance(error, Exception) else error(path)
    with pytest.raises(UserError, match=rf"weights\.pt could not be written: .*{helps}"), files.replacing(path):
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("limit", [0, 300, 5_000])
def test_a_checkpoint_on_a_full_disk_says_so_whatever_torch_makes_of_it(tmp_path, limit):
    """torch's writer raises a RuntimeError of its own over that of the system."""
    refused, path = pytest.raises(UserError, match="File too large. Free some disk space"), tmp_path / "a.pt"
    with refused, full_disk(limit), files.replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save({"a": torch.zeros(10_000)}, file)


HELP = {
    "ENOENT": "Check that its folder exists",
    "ENOSPC": "disk space",
    "EACCES": "permissions",
    "EISDIR": "another place",
}
HELP |= {"EMFILE": "ulimit", "ECONNREFUSED": "network", "EIO": "disk is connected", None: "Remove the cause"}


@pytest.mark.parametrize("name", HELP)
def test_each_error_of_the_system_has_its_own_remedy(name):
    """Disk space is named only where it is short, permissions only where they are missing."""
    said = remedy(OSError(getattr(errno, name), "odd") if name else OSError("odd"))
    assert [words for words in set(HELP.values()) if words in said] == [HELP[name]] and said.endswith("again.")
