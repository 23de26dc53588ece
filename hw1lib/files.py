"""Atomic writes: write to a temporary file in the same folder, sync it, and rename it."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from pathlib import Path

from hw1lib.errors import UserError, remedy


def digest(path):
    """Return the SHA-256 of a file as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def write_errors(path, advice="What was finished before is kept."):
    """Re-raise the system's errors about writing `path` as a UserError that names it.

    Others pass through: errors of devices, memory, the network and other files, and bugs.

    Args:
        path: the file or folder that is written.
        advice: sentence that ends the message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save hides an OSError
        if not _is_about(cause, path):
            raise
        raise UserError(f"{path} could not be written: {cause.strerror}. {remedy(cause)} {advice}") from cause


def _is_about(error, path):
    """Return whether an error is the system's, and names no file, `path`, something in it, or a folder above it."""
    other = isinstance(error, ConnectionError | TimeoutError) or type(error).__module__ != "builtins"
    if not isinstance(error, OSError) or other or error.errno in (None, errno.ENOMEM):
        return False
    path = Path(os.path.abspath(path))
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    for name in (Path(os.path.abspath(os.fsdecode(name))) for name in names):
        inside = (part == path or part.name.startswith(f".{path.name}.") for part in (name, *name.parents))
        if name in path.parents or any(inside):
            return True
    return not names


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, which replaces `path` if the block succeeds.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            with contextlib.suppress(OSError):  # not supported by some network file systems
                _sync(path.parent)  # otherwise a power cut could undo the move
        finally:
            with contextlib.suppress(OSError):  # must not hide an earlier error
                temporary.unlink(missing_ok=True)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path, text):
    """Write UTF-8 text atomically; characters that UTF-8 cannot encode, as in odd file names, are escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path, data):
    """Write plain data as indented JSON, atomically; raise a ValueError for numbers that are not finite."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path):
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
