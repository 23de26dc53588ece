"""Child processes that end with the process that started them, and whether torchrun started this one."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections import deque

LIBC = ctypes.CDLL(None)  # loaded early: nothing may be opened between fork and exec
PR_SET_PDEATHSIG = 1  # an option of prctl, which only Linux has


def run(argv, env, death_signal=signal.SIGKILL, cwd=None, tail=12):
    """Run a child process to its end.

    Args:
        argv: its command line.
        env: its environment variables.
        death_signal: the signal that it gets if this process, or the thread that calls, ends first (on Linux).
        cwd: its working directory; None for that of this process.
        tail: number of lines of its output to return.

    Returns:
        (exit code, negative for a signal; the last lines of stdout and stderr, joined by spaces).
    """
    parent = os.getpid()

    def set_death_signal():
        with contextlib.suppress(AttributeError):  # there is no prctl
            LIBC.prctl(PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:
                os._exit(1)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(argv, cwd=cwd, env=env, preexec_fn=set_death_signal, **pipes) as process:
        output = deque(process.stdout, maxlen=tail)
    return process.returncode, " ".join(line.rstrip() for line in output)


def under_torchrun():
    """Whether torchrun started this process as one of several: all of its variables are set to sensible values."""
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in numbers)
    except (KeyError, ValueError):
        return False
    is_launched = all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"))
    return is_launched and 0 <= rank < world_size > 1 and 0 <= local_rank < local_world_size
