"""Processes that end with the one that started them, however that ended."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections import deque

LIBC = ctypes.CDLL(None)  # loaded here: nothing may be opened between fork and exec
SET_PDEATHSIG = 1  # of prctl, on Linux alone


def started(words, ending=signal.SIGKILL, environment=None, folder=None):
    """A process whose standard output and error come through one pipe.

    Args:
        words: its command line.
        ending: the signal that it gets when this process, or the thread that calls, has ended.
        environment: its variables; None: those of this process.
        folder: where it runs; None: here.
    """
    parent = os.getpid()

    def begin():
        with contextlib.suppress(AttributeError):  # where there is no prctl
            LIBC.prctl(SET_PDEATHSIG, ending)
            if os.getppid() != parent:
                os._exit(1)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.Popen(words, cwd=folder, env=environment, preexec_fn=begin, **pipes)


def heard(process, tell, keep):
    """Passes on each line that a process prints; returns the error that it named, or else its last `keep` lines."""
    said, last = "", deque(maxlen=keep)
    for line in process.stdout:
        last.append(line.rstrip())
        if line.startswith("hw1lib: "):
            said = said or line.strip().removeprefix("hw1lib: ")
        tell(line.rstrip())
    return said or " ".join(last)
