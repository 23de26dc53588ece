"""Hashes of data: a file is read once per change, whichever process asks."""

import functools
import hashlib
import json
import multiprocessing
import os
import time

import pytest

from hw1lib.data import hashes, layout
from tests.test_files import held_to_permissions


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read; every hash is asked for as by a new process."""
    names, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: names.append(file.name) or digest(file, kind))
    monkeypatch.setattr(hashes, "_known", hashes._read)
    return names


@pytest.fixture
def split(tmp_path, monkeypatch):
    """Three files of an hour ago."""
    folder, now = tmp_path / "data", time.time
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "ü\udcff.jpg"):  # the last one is not valid UTF-8
        (folder / name).write_bytes(name[:1].encode())
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    return layout.Split(folder, tuple(sorted(os.listdir(folder))), decoded=tmp_path / "out" / "decoded")


def test_later_processes_read_nothing(split, read):
    expected = hashes.fingerprint(layout.Split(split.folder, split.files))
    assert hashes.fingerprint(split) == hashes.fingerprint(split) == expected and len(read) == 6
    assert hashes.file_fingerprint(split.paths[0], split.decoded) == hashlib.sha256(b"a").hexdigest() and len(read) == 6
    assert [path.name for path in split.decoded.iterdir()] == [hashes.CACHE]


def keep_date(path, write):
    before = path.stat()
    write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path):
    path.with_name("new").write_bytes(b"x")
    path.with_name("new").replace(path)


CHANGES = {
    "same size": lambda path: path.write_bytes(b"x"),
    "same size and date": lambda path: keep_date(path, lambda path: path.write_bytes(b"x")),
    "another file with the old date": lambda path: keep_date(path, replace),
    "another file": lambda path: path.with_name("b.jpg").replace(path),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_a_file_that_changed_is_read_again(split, read, change):
    before = hashes.fingerprint(split)
    read.clear()
    time.sleep(0.02)  # longer than a step of the file system's clock
    CHANGES[change](split.paths[0])
    files = tuple(name for name in split.files if (split.folder / name).exists())
    split = layout.Split(split.folder, files, decoded=split.decoded)
    assert hashes.fingerprint(split) == hashes.fingerprint(layout.Split(split.folder, files)) != before
    assert os.path.basename(read[0]) == "a.jpg" and len(read) == 1 + len(files)


@pytest.mark.parametrize("age", [0, 1.5])
def test_the_hash_of_a_file_that_changed_just_now_is_not_kept(split, read, monkeypatch, age):
    """Within one step of the clock it may change again without another date (a racy entry, as in git)."""
    now = split.paths[0].stat().st_ctime + age
    monkeypatch.setattr(time, "time", lambda: now)
    first = hashes.fingerprint(split)
    split.paths[0].write_bytes(b"b")
    assert hashes.fingerprint(split) != first and len(read) == 6


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null\nnull", None, "flip"])
def test_a_damaged_cache_counts_as_empty(split, read, content):
    """A changed digit would otherwise become part of a step's key."""
    expected, path = hashes.fingerprint(split), split.decoded / hashes.CACHE
    whole, digest = path.read_bytes(), hashlib.sha256(b"a").hexdigest().encode()
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(whole.replace(digest, digest[::-1]) if content == "flip" else content)
    assert hashes.fingerprint(split) == expected and len(read) == 6
    assert content is None or json.loads(path.read_text().partition("\n")[2]).keys() == {str(p) for p in split.paths}
    assert len(list(split.decoded.iterdir())) == 1


def test_without_write_permission_nothing_is_kept(split, read):
    split.decoded.mkdir(parents=True)
    split.decoded.chmod(0o555)
    with held_to_permissions():
        assert hashes.fingerprint(split) == hashes.fingerprint(split) and len(read) == 6
    assert list(split.decoded.iterdir()) == []


def hash_one(folder, name):
    hashes.file_fingerprint(folder / name, folder / "decoded")


def test_processes_that_write_at_once_leave_a_valid_cache(split, tmp_path):
    names = [f"{number}.jpg" for number in range(8)]
    for name in names:
        (tmp_path / name).write_text(name)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(functools.partial(hash_one, tmp_path), names * 3, chunksize=1)
    assert [path.name for path in (tmp_path / "decoded").iterdir()] == [hashes.CACHE]
    kept = json.loads((tmp_path / "decoded" / hashes.CACHE).read_text().partition("\n")[2])
    assert kept and all(kept[path][1] == hashlib.sha256(os.path.basename(path).encode()).hexdigest() for path in kept)
