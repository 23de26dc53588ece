"""A lock on a folder, held by the operating system, so that it is released when its process ends."""

import contextlib
import datetime
import os
import platform

import filelock

from hw1lib import files, progress

LOCK = ".lock"
HOLDER = ".holder"  # file that names the process that holds the lock


@contextlib.contextmanager
def acquire(folder, name):
    """Hold the lock of a folder; while waiting, say which process holds it.

    Args:
        folder: pathlib.Path, created if it does not exist.
        name: the step's name, which begins that message.
    """
    lock, holder = filelock.FileLock(folder / LOCK), folder / HOLDER
    with write_errors(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            owner = "another process"
            with contextlib.suppress(OSError, ValueError):
                owner = holder.read_text() or owner
            progress.say(name, f"waiting for {owner}, which is working on it")
            lock.acquire()
    try:
        with contextlib.suppress(OSError):  # the note is optional
            since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            holder.write_text(f"process {os.getpid()} on {platform.node()} (since {since})")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def write_errors(folder):
    """Re-raise an OSError about a build folder as a UserError."""
    return files.write_errors(folder, "Choose another build folder with --out.")
