"""Child processes that end with the process that started them, however that ended."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections import deque

from hw1lib.progress import Follower

LIBC = ctypes.CDLL(None)  # loaded here: nothing may be opened between fork and exec
SET_PDEATHSIG = 1  # of prctl, on Linux alone
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def run(words, on_record, environment, ending=signal.SIGKILL, folder=None, tail=12):
    """Run a child process, and pass on the records of its progress.

    Args:
        words: its command line.
        on_record: function(record) of hw1lib.progress.
        environment: its variables.
        ending: the signal that it gets when this process, or the thread that calls, has ended.
        folder: its working directory; None: that of this process.
        tail: number of lines of its output that stand in for an error where it reports none.

    Returns:
        Its exit code, negative where a signal ended it, and its error.
    """
    parent = os.getpid()

    def begin():
        with contextlib.suppress(AttributeError):  # where there is no prctl
            LIBC.prctl(SET_PDEATHSIG, ending)
            if os.getppid() != parent:
                os._exit(1)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with Follower(on_record) as records:
        environment = environment | records.environment
        with subprocess.Popen(words, cwd=folder, env=environment, preexec_fn=begin, **pipes) as process:
            output = deque(process.stdout, maxlen=tail)
    return process.returncode, records.error or " ".join(line.rstrip() for line in output)


def under_torchrun():
    """Whether torchrun started this process as one of several: all of its variables are there, and they make sense."""
    if not all(os.environ.get(name) for name in TORCHRUN):
        return False
    ranks = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    if not all(number.isascii() and number.isdigit() for number in ranks):
        return False
    rank, world, local_rank, local_world = map(int, ranks)
    return rank < world > 1 and local_rank < local_world
