"""Where a result comes from: code, packages, device."""

import contextlib
import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from hw1lib import cpus, paths

PACKAGES = ("torch", "torchvision", "byol-pytorch", "scikit-learn", "numpy", "matplotlib", "papermill", "distributed")


def versions():
    """Version by name of those of PACKAGES that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def code(root):
    """Return a hash of the library's source, and of the profiles, in a copy of this project at `root`."""
    source = hashlib.sha256()
    for file in [*sorted((root / "hw1lib").rglob("*.py")), *sorted((root / "profiles").glob("*.toml"))]:
        source.update(file.read_bytes())
    return source.hexdigest()


def process(device):
    """What this process computes with, as a step's and a report's run.json say it."""
    import torch  # here, as workers that only start steps do without it

    about = {"device": str(device), "threads": torch.get_num_threads(), "python": platform.python_version()}
    about["instruction_sets"] = dict(zip(("aten", "onednn"), cpus.instruction_sets()))
    return about | {"packages": versions()}


def device_name(device):
    """The device's model, such as the CPU's name and its number of cores."""
    if device.type != "cpu":
        import torch

        return torch.get_device_module(device).get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        return platform.processor() or "CPU"
    return f"{names[0]}, {len(names)} cores" if names else "CPU"


def commit():
    """The commit that the code is at, with + where files differ from it; empty outside git."""
    describe = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
