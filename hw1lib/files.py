"""Files that are whole or absent: written beside their place, synced, moved into it."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from pathlib import Path

import safetensors

from hw1lib.errors import UserError, out_of_memory, remedy


def digest(path):
    """SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def naming(path, helps="What was finished before is kept."):
    """Re-raise what the operating system refuses about `path` as a UserError that names it.

    Every other exception passes through: errors of devices and memory, of the network, of other files, and bugs.

    Args:
        path: the file or folder that is written.
        helps: sentence that ends the message.
    """
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        refusal = _refusal(error)
        if refusal is None or out_of_memory(refusal) or not _concerns(refusal, path):
            raise
        raise UserError(f"{path} could not be written: {refusal.strerror}. {remedy(refusal)} {helps}") from error


def _refusal(error):
    """The system call's error behind one that a writer raised, or None where there is none."""
    text, number = str(error), None
    if isinstance(error, RuntimeError) and "inline_container.cc" in text:  # torch's writer of archives
        if isinstance(error.__context__, OSError):
            return _refusal(error.__context__)
        number = errno.EIO if "failed writing" in text else None
    elif isinstance(error, safetensors.SafetensorError) and (match := re.search(r"I/O.*\(os error (\d+)\)", text)):
        number = int(match[1])
    elif type(error).__module__ == "builtins" and not isinstance(error, ConnectionError | TimeoutError):
        number = getattr(error, "errno", None)  # other modules' OSErrors are about networks and formats
    if number is None:
        return None
    return error if isinstance(error, OSError) else OSError(number, os.strerror(number))


def _concerns(refusal, path):
    """Whether an OSError names no file, or `path`, something in it, a temporary form of it, or a folder above it."""
    path = Path(os.path.abspath(path))
    names = [name for name in (refusal.filename, refusal.filename2) if isinstance(name, str | bytes | os.PathLike)]
    for name in (Path(os.path.abspath(os.fsdecode(name))) for name in names):
        inside = (part == path or part.name.startswith(f".{path.name}.") for part in (name, *name.parents))
        if name in path.parents or any(inside):
            return True
    return not names


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
