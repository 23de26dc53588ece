"""Provenance of a result: code, packages and device."""

import contextlib
import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from hw1lib import cpus, paths

PACKAGES = ("torch", "torchvision", "byol-pytorch", "scikit-learn", "numpy", "matplotlib", "papermill", "distributed")


def versions():
    """Return {name: version} of the installed ones of PACKAGES."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def code(root):
    """Return the SHA-256 of the library and the profiles in a copy of this project at `root`."""
    source = hashlib.sha256()
    for file in [*sorted((root / "hw1lib").rglob("*.py")), *sorted((root / "profiles").glob("*.toml"))]:
        source.update(file.read_bytes())
    return source.hexdigest()


def process(device):
    """Return device, threads, Python version, instruction sets and package versions of this process, as in run.json."""
    import torch  # not at the top, because processes that only start steps do not need it

    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "instruction_sets": dict(zip(("aten", "onednn"), cpus.instruction_sets())),
        "packages": versions(),
    }


def device_name(device):
    """Return the model name of a torch.device; for a CPU, also the number of cores."""
    if device.type != "cpu":
        import torch

        return torch.get_device_module(device).get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        if names := [line.partition(":")[2].strip() for line in file if line.startswith("model name")]:
            return f"{names[0]}, {len(names)} cores"
    return platform.processor() or "CPU"


def commit():
    """Return the short hash of the current commit, with + if files differ from it; "" outside git."""
    describe = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
