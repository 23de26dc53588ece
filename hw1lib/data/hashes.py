"""SHA-256 hashes of data, computed once per change of a file: a cache in the build folder serves all processes."""

import contextlib
import functools
import hashlib
import json
import os
import time
from pathlib import Path

CACHE = "hashes.txt"  # in the folder of decoded images; a checksum, then JSON {path: [_state(path), SHA-256]}
FOLDERS = ("mini", "mini/train", "office", "office/train", "office/val", "train", "validation")
RACY = 2.0  # seconds: a file that changed so recently may change again with the same date


def fingerprint(split):
    """Return a hash of the file names, contents and labels of a layout.Split or layout.Tiles, as hex."""
    total = _combine([path.name for path in split.paths], split.paths, split.decoded)
    if (labels := getattr(split, "labels", None)) is not None:
        total.update("\0".join(split.classes).encode() + labels.tobytes())
    return total.hexdigest()


def folder_fingerprint(folder, decoded=None):
    """Return a hash of the names and contents of all files but weights in a problem's folder, as hex.

    Args:
        folder: p1_data or p2_data.
        decoded: folder of decoded images, which keeps the cache; None: no cache.
    """
    names = []
    for name in FOLDERS:  # not recursive, since links could form loops or lead elsewhere
        path = os.path.join(folder, name)
        entries = os.scandir(path) if os.path.isdir(path) else ()
        names += sorted(f"{name}/{entry.name}" for entry in entries if entry.is_file())
    names = [name for name in names if Path(name).suffix != ".pt"]
    return _combine(names, [os.path.join(folder, name) for name in names], decoded).hexdigest()


def file_fingerprint(path, decoded=None):
    """Return the SHA-256 of one file, as hex."""
    return _digests([path], decoded)[0]


def _combine(names, paths, decoded):
    """Return a hash object of the names and contents of files."""
    total = hashlib.sha256()
    for name, digest in zip(names, _digests(paths, decoded)):
        total.update(os.fsencode(name) + b"\0" + bytes.fromhex(digest))
    return total


def _digests(paths, decoded):
    """Return the SHA-256 of each file as hex; read only files that may have changed since their hash was cached."""
    cache = None if decoded is None else Path(decoded) / CACHE
    known, new, digests = _known(cache), {}, []
    for path in map(os.path.abspath, paths):
        state = _state(path)
        entry = known.get(path)
        if entry is None or entry[0] != state:
            with open(path, "rb") as file:
                entry = [state, hashlib.file_digest(file, "sha256").hexdigest()]
            if state == _state(path) and max(state[1:3]) < (time.time() - RACY) * 1e9:
                known[path] = new[path] = entry
        digests.append(entry[1])
    if new and cache:
        _write(cache, _read(cache) | new)  # keeps what another process added
    return digests


def _state(path):
    """Return size, modification and change time in nanoseconds, and inode, one of which differs if a file changed."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _write(cache, hashes):
    """Replace a cache without sync; errors are ignored, since a missing cache only costs time."""
    text, temporary = json.dumps(hashes), cache.with_name(f".{cache.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        temporary.replace(cache)
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _read(cache):
    """Return the hashes in a cache, a dict; empty if the file is damaged or its checksum does not match."""
    with contextlib.suppress(OSError, ValueError):
        checksum, text = (cache.read_text() if cache else "").split("\n", 1)
        if hashlib.sha256(text.rstrip("\n").encode()).hexdigest() == checksum:
            return json.loads(text)
    return {}


_known = functools.cache(_read)  # one dict per cache and process, to which new hashes are added
