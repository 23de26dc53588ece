"""One lock for each folder, held by the operating system, so that it ends with its process."""

import contextlib
import datetime
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
    lock, holder = filelock.FileLock(folder / LOCK), folder / HOLDER
    with write_errors(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            text = "another process"
            with contextlib.suppress(OSError, ValueError):
                text = holder.read_text() or text
            progress.say(name, f"waiting for {text}, which works on it")
            lock.acquire()
    try:
        with contextlib.suppress(OSError):  # only a note
            since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            holder.write_text(f"process {os.getpid()} on {platform.node()} (since {since})")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def write_errors(folder):
    """Re-raise an OSError about a build folder as a UserError."""
    return files.write_errors(folder, "--out names another build folder.")
