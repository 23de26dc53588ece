"""Devices, precision, and copies between CPU and device that do not block."""

import ctypes
import re

import torch

from hw1lib import cpus
from hw1lib.errors import UserError


def choose(name="auto"):
    """Return the torch device called auto, cpu, mps, cuda, cuda:N or xpu; auto is a GPU if there is one.

    Raises:
        UserError: there is no such device, or this machine does not have it.
    """
    gpu = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return gpu or torch.device("cpu")
    try:
        if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d{1,4})?", name):
            raise ValueError
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        gpus = [f"{gpu.type}:{number}" for number in range(torch.accelerator.device_count())] if gpu else []
        raise UserError(
            f"--device {name} cannot be used: this machine has {', '.join(['auto', 'cpu', *gpus])}. Leave it out, or "
            "give --device cpu."
        ) from error
    return device


def dtype(precision, device):
    """Return the dtype for autocast, or None for plain float32.

    `auto` is bfloat16 where the device has instructions for it: GPUs from Ampere on, and CPUs with AMX or AVX512-BF16
    unless environment variables switch these off (`cpus.instruction_sets`). Older GPUs (T4, V100, RTX 20xx) use
    float16. Other x86-64 CPUs are slower in bfloat16 than in float32, and Arm was not measured: both use float32.
    """
    if precision != "auto":
        return None if precision == "float32" else getattr(torch, precision)
    if device.type == "cpu":
        return torch.bfloat16 if cpus.fast_bfloat16() else None
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return torch.bfloat16 if supported is None or supported(including_emulation=False) else torch.float16


def autocast(precision, device):
    """Return the autocast context of `dtype`; autocast is off where that is None."""
    chosen = dtype(precision, device)
    return no_autocast(device) if chosen is None else torch.autocast(device.type, chosen)


def no_autocast(device):
    """Return a context without autocast, also inside `autocast`."""
    device_type = "cpu" if device.type == "meta" else device.type  # autocast does not support meta
    return torch.autocast(device_type, enabled=False)


def set_up(device, tf32=True, benchmark=True):
    """Configure torch for this process.

    Args:
        tf32: compute float32 products and convolutions on a GPU's tensor cores, which round factors to 10 bits.
        benchmark: let cuDNN choose the fastest algorithm for each shape; repeated runs then differ by rounding.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if device.type == "cpu" else None
    if mallopt is not None:
        # Keep freed memory for the next step instead of returning it to the system: networks with hundreds of millions
        # of parameters otherwise spend most of a step on page faults, and VGG16-FCN32s is 2.3 to 2.8 times slower.
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def to_device(tensor, device):
    """Copy a CPU tensor to the device without blocking; for CUDA through pinned memory."""
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
