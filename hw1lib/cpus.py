"""How many CPUs this process may use: the one place that decides on threads and worker processes."""

import math
import os
from pathlib import Path


def available(threads=True, system=Path("/")):
    """Return how many CPUs this process may use, at least 1.

    The smallest of the CPUs it is bound to (taskset, Slurm), its control group's quota (containers, Slurm), and
    OMP_NUM_THREADS, which batch systems, Dask and torchrun set for the processes they start.

    Args:
        threads: whether OMP_NUM_THREADS counts.
        system: root of the file system that control groups are read from.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += [math.ceil(quota) for quota in _quotas(system)]
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    limits += [int(first)] if threads and first.isdecimal() and int(first) else []
    return max(1, min(limits))


def share(of, **given):
    """Return the CPUs of each of `of` processes or threads that share those available, at least 1."""
    return max(1, available(**given) // of)


def _quotas(system):
    """CPU quotas of the control groups around this process, version 1 or 2, as numbers of CPUs."""
    try:
        entries = [line.split(":", 2) for line in (system / "proc/self/cgroup").read_text().splitlines()]
    except (OSError, ValueError):
        return
    for _, controllers, group in (entry for entry in entries if len(entry) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = system / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = root / group.lstrip("/")
        while folder.is_relative_to(root):
            yield from _quota(folder)
            folder = folder.parent


def _quota(folder):
    """The quota of one control group; nothing where it has none, or none that makes sense."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0 and int(period) > 0:  # "max" is no number
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
