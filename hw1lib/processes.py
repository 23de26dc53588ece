"""Child processes that die with their parent, and whether torchrun started this process."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections import deque

LIBC = ctypes.CDLL(None)  # loaded early: nothing may be opened between fork and exec
PR_SET_PDEATHSIG = 1  # an option of prctl, which only Linux has


def run(argv, env, death_signal=signal.SIGKILL, cwd=None, tail=12):
    """Run a child process, and wait until it ends.

    Args:
        argv: its command line, a list.
        env: its environment variables, a dict.
        death_signal: signal that it gets if this process or the calling thread ends first (on Linux).
        cwd: its working directory; None for that of this process.
        tail: number of lines of its output to return.

    Returns:
        (exit code, negative for a signal; the last lines of stdout and stderr, joined by spaces).
    """
    parent = os.getpid()

    def set_death_signal():
        with contextlib.suppress(AttributeError):  # no prctl: not Linux
            LIBC.prctl(PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:
                os._exit(1)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(argv, cwd=cwd, env=env, preexec_fn=set_death_signal, **pipes) as process:
        output = deque(process.stdout, maxlen=tail)
    return process.returncode, " ".join(line.rstrip() for line in output)


def under_torchrun():
    """Return whether torchrun started this process as one of several: all its variables are set and consistent."""
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in numbers)
    except (KeyError, ValueError):
        return False
    is_launched = all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"))
    return is_launched and 0 <= rank < world_size > 1 and 0 <= local_rank < local_world_size
