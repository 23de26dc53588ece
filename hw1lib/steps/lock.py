"""One lock a folder: the operating system's, so it ends with its holder however that ends."""

import contextlib
import datetime
import json
import os
import platform

import filelock

from hw1lib import files
from hw1lib.errors import UserError, remedy

LOCK = ".lock"
HOLDER = ".holder"  # who has the lock: for those who wait; it proves nothing


@contextlib.contextmanager
def naming(folder):
    """Turns what the file system refuses into a clear error."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be used: {error.strerror or error}. {remedy(error)} --out names another one."
        ) from error


@contextlib.contextmanager
def held(folder, name):
    """Holds the lock of a folder, which is made if need be; says for whom it waits.

    Args:
        folder: pathlib.Path.
        name: what the folder is for, as the waiting one reads it.
    """
    lock = filelock.FileLock(folder / LOCK)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"{name}: waiting for {_holder(folder)}, which works on it", flush=True)
            lock.acquire()
    try:
        with naming(folder):
            me = {"pid": os.getpid(), "host": platform.node(), "since": _now()}
            (folder / HOLDER).write_text(json.dumps(me))
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def _now():
    return datetime.datetime.now().astimezone().isoformat(" ", "seconds")


def _holder(folder):
    try:
        holder = files.read_json(folder / HOLDER)
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextlib.contextmanager
def if_free(folder):
    """Holds the lock of a folder if nobody else does; yields whether it is held now."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
