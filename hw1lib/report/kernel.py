"""Kernels that papermill runs notebooks in, forked from one process that has imported everything already."""

import functools
import multiprocessing
import os
import threading
from multiprocessing import forkserver

from jupyter_client import AsyncKernelManager

FORKS = multiprocessing.get_context("forkserver")
IMPORTED = ["ipykernel.kernelapp", "matplotlib.pyplot", "sklearn.decomposition", "hw1lib.workbook"]


@functools.cache
def prepare():
    """Starts the process that kernels are forked from; it imports while this one goes on."""
    FORKS.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


class ForkedKernel(AsyncKernelManager):
    """Starts its kernel in a tenth of a second instead of several; else a manager like any other."""

    async def _async_launch_kernel(self, kernel_cmd, **kw):
        arguments = kernel_cmd[kernel_cmd.index("ipykernel_launcher") + 1 :]
        process = FORKS.Process(target=_run, args=(arguments, kw.get("cwd"), kw.get("env", {})))
        process.start()
        self.provisioner.process = _Popen(process)
        self.provisioner.pid = self.provisioner.pgid = process.pid

    _launch_kernel = _async_launch_kernel


def _run(arguments, folder, environment):
    """The kernel's whole life."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # signals reach the kernel and what it starts, nobody else
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder or ".")
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    # Without a parent it would print how to connect to it; that parent outlives papermill, so the thread above ends it.
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


def _end_with(process):
    """Ends the kernel when papermill's process has ended, however that did."""
    process.join()
    os._exit(1)


class _Popen:
    """A multiprocessing.Process as subprocess.Popen, which jupyter_client expects."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process = process

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()

    def terminate(self):
        self.process.terminate()
