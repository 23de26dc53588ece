"""Files that are whole or absent: written beside their place, synced, moved into it."""

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path

import safetensors

from hw1lib.errors import UserError, remedy


def digest(path):
    """SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def naming(path, helps="What was finished before is kept."):
    """Turns what the file system refuses into a clear error about `path`."""
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch's and theirs
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} could not be written: {reason}. {remedy(error)} {helps}") from error


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path beside `path`; on success it is synced and takes its place.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            with contextlib.suppress(OSError):  # some network file systems cannot
                _sync(path.parent)  # else a power cut could forget the move
        finally:
            with contextlib.suppress(OSError):  # what happened before says more
                temporary.unlink(missing_ok=True)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path, text):
    """Writes UTF-8 text atomically; what no UTF-8 can say, as in file names, by its code."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path, data):
    """Write plain data as indented JSON, atomically; a number that is not finite, which JSON lacks, is a ValueError."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path):
    """Reads a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
