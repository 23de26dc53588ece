"""One lock for each folder, held by the operating system, so that it ends with its process."""

import contextlib
import datetime
import errno
import json
import os
import platform

import filelock

from hw1lib import files, progress

LOCK = ".lock"
HOLDER = ".holder"  # which process holds the lock, for the message to those who wait


@contextlib.contextmanager
def acquire(folder, name):
    """Hold the lock of a folder; say which process it waits for.

    Args:
        folder: pathlib.Path, created if need be.
        name: begins the message to those who wait.
    """
    lock = filelock.FileLock(folder / LOCK)
    with write_errors(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress.say(name, f"waiting for {_holder(folder)}, which works on it")
            lock.acquire()
        except NotImplementedError as error:  # raised for file systems without locks
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(folder)) from error
    try:
        with write_errors(folder):
            since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            (folder / HOLDER).write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}))
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def write_errors(folder):
    """Re-raise an OSError about a build folder as a UserError."""
    return files.write_errors(folder, "--out names another build folder.")


def _holder(folder):
    try:
        return "process {pid} on {host} (since {since})".format(**files.read_json(folder / HOLDER))
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
