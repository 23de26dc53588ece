"""Hashes of data: a file is read once per change, whichever process asks."""

import functools
import hashlib
import json
import multiprocessing
import os
import time

import pytest

from hw1lib import files
from hw1lib.data import hashes, layout
from tests.test_files import held_to_permissions


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read for their hash; each Cache is as a new process has it."""
    names, digest = [], files.digest
    monkeypatch.setattr(files, "digest", lambda path: names.append(os.path.basename(path)) or digest(path))
    monkeypatch.setattr(hashes, "_cache_of", hashes.Cache)
    return names


@pytest.fixture
def split(tmp_path):
    """Three files of an hour ago."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "ü\udcff.jpg"):  # the last as no UTF-8 has it
        (folder / name).write_bytes(name[:1].encode())
    return layout.Split(folder, tuple(sorted(os.listdir(folder))), decoded=tmp_path / "out" / "decoded")


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """An hour from now, so that what a test writes is not too new."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)


def test_every_process_after_the_first_reads_nothing(split, read):
    expected = hashes.fingerprint(layout.Split(split.folder, split.files))
    assert hashes.fingerprint(split) == expected and sorted(read[3:]) == sorted(split.files)
    assert hashes.fingerprint(split) == expected and len(read) == 6
    assert hashes.file_fingerprint(split.paths[0], split.decoded) == hashlib.sha256(b"a").hexdigest() and len(read) == 6
    assert [path.name for path in split.decoded.iterdir()] == [hashes.CACHE]


def replace(path):
    path.with_name("new").write_bytes(b"x")
    os.utime(path.with_name("new"), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    path.with_name("new").replace(path)


def rewrite_with_its_date(path):
    before = path.stat()
    path.write_bytes(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"x"), lambda p: p.write_bytes(b"xy"), replace,
                                    rewrite_with_its_date, lambda p: os.rename(p.with_name("b.jpg"), p)])  # fmt: skip
def test_a_file_that_changed_is_read_again_and_the_others_are_not(split, read, change):
    """Whatever programs do to hide it: the same size, the old date, a file in its place."""
    before = hashes.fingerprint(split)
    del read[:]
    time.sleep(0.02)  # clocks of file systems have steps
    change(split.paths[0])
    split = layout.Split(
        split.folder, tuple(n for n in split.files if (split.folder / n).exists()), decoded=split.decoded
    )
    assert hashes.fingerprint(split) == hashes.fingerprint(layout.Split(split.folder, split.files)) != before
    assert read[0] == "a.jpg" and len(read) == 1 + len(split.files)


@pytest.mark.parametrize("age", [-3600, 0, 1.5])
def test_what_changed_just_now_or_will_have_is_not_trusted(split, read, monkeypatch, age):
    """Within one step of the clock it may change again without another date (racy entries, as in git)."""
    now = split.paths[0].stat().st_ctime + age
    monkeypatch.setattr(time, "time", lambda: now)
    first = hashes.fingerprint(split)
    split.paths[0].write_bytes(b"b")
    assert hashes.fingerprint(split) != first and len(read) == 6


DAMAGE = [b"", b"{}", b"\xff\xfe", b"null\nnull", b"0\n{}", None]


@pytest.mark.parametrize("content", [*DAMAGE, "cut", "flip"])
def test_a_damaged_cache_counts_as_empty(split, read, content):
    """A changed digit would otherwise become part of a step's key."""
    expected, path = hashes.fingerprint(split), split.decoded / hashes.CACHE
    whole = path.read_bytes()
    if content is None:
        path.unlink()
        path.mkdir()
    elif content == "flip":
        digest = hashlib.sha256(b"a").hexdigest().encode()
        path.write_bytes(whole.replace(digest, digest[::-1]))
    else:
        path.write_bytes(whole[:-40] if content == "cut" else content)
    assert hashes.fingerprint(split) == expected and len(read) == 6
    assert content is None or json.loads(path.read_text().partition("\n")[2]).keys() == {str(p) for p in split.paths}


def test_a_folder_that_may_not_be_written_costs_time_alone(split, read):
    split.decoded.mkdir(parents=True)
    split.decoded.chmod(0o555)
    with held_to_permissions():
        assert hashes.fingerprint(split) == hashes.fingerprint(split) and len(read) == 6
    assert list(split.decoded.iterdir()) == []


def add(folder, name):
    hashes.file_fingerprint(folder / name, folder / "decoded")


def test_processes_that_write_at_once_leave_a_whole_cache(tmp_path):
    """Each adds its own to what is there; at worst a file is hashed again."""
    names = [f"{number}.jpg" for number in range(8)]
    for name in names:
        (tmp_path / name).write_text(name)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(functools.partial(add, tmp_path), names * 3, chunksize=1)
    cache = hashes.Cache(tmp_path / "decoded" / hashes.CACHE)
    known = {os.path.basename(path): digest for path, (_, digest) in cache._known.items()}
    assert known and known.items() <= {name: hashlib.sha256(name.encode()).hexdigest() for name in names}.items()
    assert [path.name for path in (tmp_path / "decoded").iterdir()] == [hashes.CACHE]
