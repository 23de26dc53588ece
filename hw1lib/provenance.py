"""Where a result comes from: code, packages and device."""

import contextlib
import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from hw1lib import cpus, paths

PACKAGES = ("torch", "torchvision", "byol-pytorch", "scikit-learn", "numpy", "matplotlib", "papermill", "distributed")


def versions():
    """Return {name: version} of those of PACKAGES that are installed."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def code(root):
    """Return a hash of the library and the profiles in a copy of this project at `root`."""
    source = hashlib.sha256()
    for file in [*sorted((root / "hw1lib").rglob("*.py")), *sorted((root / "profiles").glob("*.toml"))]:
        source.update(file.read_bytes())
    return source.hexdigest()


def process(device):
    """Return the device, threads, Python, processor and package versions of this process, plain data for run.json."""
    import torch  # not at the top: the processes that only start steps do without it

    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "instruction_sets": dict(zip(("aten", "onednn"), cpus.instruction_sets())),
        "packages": versions(),
    }


def device_name(device):
    """Return the model of a device, for a CPU with its number of cores."""
    if device.type != "cpu":
        import torch

        return torch.get_device_module(device).get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        if names := [line.partition(":")[2].strip() for line in file if line.startswith("model name")]:
            return f"{names[0]}, {len(names)} cores"
    return platform.processor() or "CPU"


def commit():
    """Return the commit of the code, with + if files differ from it; empty outside git."""
    describe = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
