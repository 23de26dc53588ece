"""One lock a folder: the operating system's, so it ends with its holder however that ends."""

import contextlib
import datetime
import errno
import json
import os
import platform

import filelock

from hw1lib import files, progress

LOCK = ".lock"
HOLDER = ".holder"  # who has the lock: for those who wait; it proves nothing


def naming(folder):
    """Re-raise what the operating system refuses about a build folder as a UserError."""
    return files.naming(folder, "--out names another build folder.")


@contextlib.contextmanager
def held(folder, name):
    """Holds the lock of a folder, which is made if need be; says for whom it waits.

    Args:
        folder: pathlib.Path.
        name: what the folder is for, as the waiting one reads it.
    """
    lock = filelock.FileLock(folder / LOCK)
    with naming(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress.say(name, f"waiting for {_holder(folder)}, which works on it")
            lock.acquire()
        except NotImplementedError as error:  # filelock's word for a file system without locks
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(folder)) from error
    try:
        with naming(folder):
            since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            (folder / HOLDER).write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}))
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def _holder(folder):
    try:
        return "process {pid} on {host} (since {since})".format(**files.read_json(folder / HOLDER))
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
