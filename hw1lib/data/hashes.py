"""Hashes of data, computed once per change of a file: a cache in the build folder serves all processes."""

import contextlib
import functools
import hashlib
import json
import os
import time
from pathlib import Path

from hw1lib import files
from hw1lib.errors import UserError

CACHE = "hashes.txt"  # in the folder of decoded images: a checksum, then {path: [[size, dates, inode], SHA-256]}
PARTS = ("mini", "mini/train", "office", "office/train", "office/val", "train", "validation")
RACY = 2.0  # seconds: a file changed so recently may change again without a new date


def fingerprint(split):
    """Hash the file names, contents and labels of a layout.Split or layout.Tiles; hex."""
    total = hashlib.sha256()
    with cache_in(split.decoded) as cache:
        for path in split.paths:
            total.update(os.fsencode(path.name) + b"\0" + bytes.fromhex(cache.digest(path)))
    if (labels := getattr(split, "labels", None)) is not None:
        total.update("\0".join(split.classes).encode() + labels.tobytes())
    return total.hexdigest()


def folder_fingerprint(folder, decoded=None):
    """Hash names and contents of all files of one problem's folder but weights; hex.

    Args:
        folder: p1_data or p2_data.
        decoded: folder of decoded images, which keeps the hashes; None: they are not kept.
    """
    total = hashlib.sha256()
    with cache_in(decoded) as cache:
        for part in PARTS:  # these alone, so that no link leads round in circles or elsewhere
            place = os.path.join(folder, part)
            names = sorted(entry.name for entry in os.scandir(place) if entry.is_file()) if os.path.isdir(place) else ()
            for name in names:
                if Path(name).suffix != ".pt":
                    digest = cache.digest(os.path.join(place, name))
                    total.update(os.fsencode(f"{part}/{name}") + b"\0" + bytes.fromhex(digest))
    return total.hexdigest()


def file_fingerprint(path, decoded=None):
    """Hash the contents of one file; hex."""
    with cache_in(decoded) as cache:
        return cache.digest(path)


@contextlib.contextmanager
def cache_in(decoded):
    """Yield the Cache of a folder; what it learns in the block is written at its end."""
    cache = _cache_of(None if decoded is None else Path(decoded) / CACHE)
    yield cache
    cache.save()


class Cache:
    """SHA-256 of files by path, valid while size, dates and inode stay the same.

    Args:
        path: file that keeps them, or None. A damaged one counts as empty.
    """

    def __init__(self, path):
        self.path = path
        self._known = self._read()
        self._new = {}

    def digest(self, path):
        """Return the SHA-256 of a file as hex; it is read only if it may have changed."""
        name = os.fspath(path) if os.path.isabs(path) else os.path.abspath(path)
        state = _state(name)
        known = self._known.get(name)
        if known is not None and known[0] == state:
            return known[1]
        digest = files.digest(name)
        if state == _state(name) and max(state[1:3]) < (time.time() - RACY) * 1e9:
            self._known[name] = self._new[name] = [state, digest]
        return digest

    def save(self):
        """Add what is new to the file; a folder that cannot be written keeps nothing."""
        if self._new and self.path is not None:
            text = json.dumps(self._read() | self._new)  # what another process added stays
            with contextlib.suppress(UserError):
                files.write_text(self.path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        self._new = {}

    def _read(self):
        """Return what the file holds, which begins with its own hash."""
        with contextlib.suppress(OSError, ValueError):
            checksum, text = (self.path.read_text() if self.path else "").split("\n", 1)
            if hashlib.sha256(text.rstrip("\n").encode()).hexdigest() == checksum:
                return json.loads(text)
        return {}


_cache_of = functools.cache(Cache)  # one for each file and process


def _state(name):
    """What a change of a file changes: size, date of its contents and of its inode, inode; whole numbers."""
    status = os.stat(name)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
