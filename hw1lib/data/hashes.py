"""SHA-256 hashes of data, computed once per change of a file: a cache in the build folder serves all processes."""

import contextlib
import functools
import hashlib
import json
import os
import time
from pathlib import Path

CACHE = "hashes.txt"  # in the folder of decoded images: a checksum, then JSON {path: [[size, dates, inode], SHA-256]}
FOLDERS = ("mini", "mini/train", "office", "office/train", "office/val", "train", "validation")
RACY = 2.0  # seconds: a file that changed so recently may change again without a new date


def fingerprint(split):
    """Return a hash of the file names, contents and labels of a layout.Split or layout.Tiles, as hex."""
    total = hashlib.sha256()
    with _cache_in(split.decoded) as cache:
        for path in split.paths:
            total.update(os.fsencode(path.name) + b"\0" + bytes.fromhex(cache.digest(path)))
    if (labels := getattr(split, "labels", None)) is not None:
        total.update("\0".join(split.classes).encode() + labels.tobytes())
    return total.hexdigest()


def folder_fingerprint(folder, decoded=None):
    """Return a hash of the names and contents of all files but weights in a problem's folder, as hex.

    Args:
        folder: p1_data or p2_data.
        decoded: folder of decoded images, which keeps the cache; None: no cache.
    """
    total = hashlib.sha256()
    with _cache_in(decoded) as cache:
        for name in FOLDERS:  # no others, so that no link leads in circles or elsewhere
            path = os.path.join(folder, name)
            entries = os.scandir(path) if os.path.isdir(path) else ()
            for file in sorted(entry.name for entry in entries if entry.is_file()):
                if Path(file).suffix != ".pt":
                    digest = cache.digest(os.path.join(path, file))
                    total.update(os.fsencode(f"{name}/{file}") + b"\0" + bytes.fromhex(digest))
    return total.hexdigest()


def file_fingerprint(path, decoded=None):
    """Return the SHA-256 of one file, as hex."""
    with _cache_in(decoded) as cache:
        return cache.digest(path)


@contextlib.contextmanager
def _cache_in(decoded):
    """Yield the Cache of a folder of decoded images, and save it at the end."""
    cache = _cache_of(None if decoded is None else Path(decoded) / CACHE)
    yield cache
    cache.save()


class Cache:
    """SHA-256 of files by path, valid while size, dates and inode stay the same.

    Args:
        path: file that keeps the hashes, or None. A damaged file counts as empty.
    """

    def __init__(self, path):
        self.path = path
        self._known = self._read()
        self._new = {}

    def digest(self, path):
        """Return the SHA-256 of a file as hex; read the file only if it may have changed."""
        name = os.path.abspath(path)
        state = _state(name)
        known = self._known.get(name)
        if known is not None and known[0] == state:
            return known[1]
        with open(name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if state == _state(name) and max(state[1:3]) < (time.time() - RACY) * 1e9:
            self._known[name] = self._new[name] = [state, digest]
        return digest

    def save(self):
        """Add new hashes to the file; a folder that cannot be written keeps none."""
        if self._new and self.path is not None:
            text = json.dumps(self._read() | self._new)  # keeps what another process added
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            with contextlib.suppress(OSError):  # a lost cache only costs time, so nothing is synced
                self.path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
                temporary.replace(self.path)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._new = {}

    def _read(self):
        """Return the hashes in the file, if it matches the checksum in its first line."""
        with contextlib.suppress(OSError, ValueError):
            checksum, text = (self.path.read_text() if self.path else "").split("\n", 1)
            if hashlib.sha256(text.rstrip("\n").encode()).hexdigest() == checksum:
                return json.loads(text)
        return {}


_cache_of = functools.cache(Cache)  # one per file and process


def _state(name):
    """Return what changes with a file: size, dates of its contents and inode in nanoseconds, inode number."""
    status = os.stat(name)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
