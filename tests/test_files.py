"""Files: what is written is whole or absent, and a refusal says what helps."""

import contextlib
import ctypes
import errno
import os
import resource
import struct
import threading

import numpy as np
import pytest
import torch

from hw1lib import files
from hw1lib.steps import store
from hw1lib.errors import UserError

FREE, MEND = "Free some disk space,", "Mend the permissions of its folder, or choose another one,"


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


def test_a_file_is_on_the_disk_before_it_moves_and_its_folder_after(tmp_path, monkeypatch):
    """In another order a power cut could leave an empty file under the final name."""
    path, calls = tmp_path / "metrics.json", []
    real_sync, real_move = os.fsync, os.replace

    def sync(handle):
        calls.append(("sync", os.fstat(handle).st_ino, os.fstat(handle).st_size))
        real_sync(handle)

    def move(source, target):
        calls.append(("move", os.stat(source).st_ino, os.fspath(target)))
        real_move(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    files.write_text(path, "new")
    written, folder = path.stat().st_ino, tmp_path.stat()
    assert calls == [("sync", written, 3), ("move", written, str(path)), ("sync", folder.st_ino, folder.st_size)]


def test_writers_of_one_file_leave_one_whole_version(tmp_path):
    """And whoever reads meanwhile never sees a part."""
    path, gate, errors = tmp_path / "metrics.json", threading.Barrier(5), []
    versions = [str(number) * 50_000 for number in range(4)]
    files.write_text(path, versions[0])

    def write(text):
        gate.wait(10)
        for _ in range(5):
            files.write_text(path, text)

    def read():
        gate.wait(10)
        while any(writer.is_alive() for writer in writers):
            if path.read_text() not in versions:
                errors.append("a part was read")

    writers = [threading.Thread(target=write, args=(text,)) for text in versions]
    reader = threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in (*writers, reader):
        thread.join(30)
    assert not errors and path.read_text() in versions
    assert names(tmp_path) == ["metrics.json"]


def test_files_are_ordinary_ones(tmp_path):
    """Not private as temporary files are: others may read what the umask lets them."""
    files.write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writing_leaves_the_umask_of_other_threads_alone(tmp_path, monkeypatch):
    """It belongs to the whole process: set and put back by two at once, it could stay at 0."""
    calls = []
    real = os.umask
    monkeypatch.setattr(os, "umask", lambda mask: calls.append(mask) or real(mask))
    files.write_text(tmp_path / "metrics.json", "{}")
    assert calls == []


def test_text_survives_whatever_the_locale_is(tmp_path):
    files.write_json(tmp_path / "a.json", {"Größe": "≤ 1 – é 漢"})
    assert files.read_json(tmp_path / "a.json") == {"Größe": "≤ 1 – é 漢"}
    assert "漢" in (tmp_path / "a.json").read_bytes().decode("utf-8")


def test_the_digest_is_that_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.digest(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


# --- refusals


def test_a_file_in_place_of_a_folder_is_a_clear_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        files.write_text(tmp_path / "taken" / "metrics.json", "{}")


def test_a_folder_in_place_of_the_file_is_a_clear_error(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(UserError, match="metrics.json could not be written: Is a directory"):
        files.write_text(tmp_path / "metrics.json", "{}")
    assert names(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("failing", ["os.open", "os.fsync", "os.replace"])
@pytest.mark.parametrize(
    ("number", "helps"),
    [("ENOSPC", FREE), ("EDQUOT", FREE), ("EFBIG", FREE), ("EACCES", MEND), ("EPERM", MEND), ("EROFS", MEND)],
)
def test_a_refusal_names_what_helps_and_keeps_the_old_file(tmp_path, monkeypatch, failing, number, helps):
    path, number = tmp_path / "metrics.json", getattr(errno, number)
    files.write_text(path, "old")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(failing, refuse)
    with pytest.raises(UserError) as caught:
        files.write_text(path, "new")
    said = str(caught.value)
    assert said.startswith(f"{path} could not be written: {os.strerror(number)}. {helps}")
    assert said.endswith("What was finished before is kept.") and "\n" not in said
    assert path.read_text() == "old" and names(tmp_path) == ["metrics.json"]


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
    with pytest.raises(UserError, match="could not be written") as caught, full_disk():
        write(draft)
    assert "disk space" in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda d: d.metrics({"long": "x" * 500}), id="text"),
        pytest.param(lambda d: d.history([{"epoch": e} for e in range(500)]), id="table"),
        *(
            pytest.param(lambda d, n=n: d.array("a", np.zeros(n, np.uint8)), id=f"array of {n}")
            for n in (10, 3_000, 4_050, 9_000, 100_000)
        ),
        *(
            pytest.param(lambda d, n=n: d.weights({"a": torch.zeros(n)}), id=f"weights of {n}")
            for n in (10, 3_000, 100_000)
        ),
    ],
)
@pytest.mark.parametrize("short", [1, 50])
def test_a_disk_that_lacks_a_few_bytes_is_noticed(tmp_path, write, short):
    """What buffers keep until the file is closed counts, too."""
    (tmp_path / "whole").mkdir()
    write(store.Draft("pretrain", tmp_path / "whole"))
    (whole,) = (tmp_path / "whole").iterdir()
    with pytest.raises(UserError, match="could not be written"):
        with full_disk(whole.stat().st_size - short):
            write(store.Draft("pretrain", tmp_path / "small"))
    assert names(tmp_path / "small") == []


def test_a_folder_without_write_permission_is_a_clear_error(tmp_path):
    files.write_text(tmp_path / "metrics.json", "old")
    tmp_path.chmod(0o555)
    with held_to_permissions(), pytest.raises(UserError, match=f"Permission denied. {MEND}"):
        files.write_text(tmp_path / "metrics.json", "new")
    assert (tmp_path / "metrics.json").read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_a_folder_that_loses_its_permission_meanwhile_is_the_same_error(tmp_path):
    """Then the temporary file cannot be removed; that must not hide what happened."""
    files.write_text(tmp_path / "metrics.json", "old")
    with held_to_permissions():
        with pytest.raises(UserError, match="metrics.json could not be written: Permission denied"):
            with files.replacing(tmp_path / "metrics.json") as temporary:
                tmp_path.chmod(0o555)
                temporary.write_text("new")
    assert (tmp_path / "metrics.json").read_text() == "old"
