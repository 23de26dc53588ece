"""How many CPUs this process may use: the one place that decides on threads and worker processes."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available():
    """CPUs that this process may use, at least 1.

    The smallest of the CPUs it is bound to (taskset, Slurm), its control group's quota (containers, Slurm), and
    OMP_NUM_THREADS, which batch systems and Dask set for the processes they start.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += [math.ceil(quota) for quota in _quotas()]
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    limits += [int(first)] if first.isdigit() and int(first) else []
    return max(1, min(limits))


def _quotas():
    """CPU quotas of the control groups around this process, version 1 or 2, as numbers of CPUs."""
    try:
        entries = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, group in entries:
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / "cpu" if controllers else CGROUPS
        folder = root / group.lstrip("/")
        while folder.is_relative_to(root):
            yield from _quota(folder)
            folder = folder.parent


def _quota(folder):
    """The quota of one control group; nothing where it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
