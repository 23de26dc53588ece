"""Where networks run, in which precision, and how tensors get there and back without anybody waiting."""

import ctypes
import re

import torch

from hw1lib import cpus
from hw1lib.errors import UserError, did_you_mean

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


def choose(name="auto"):
    """Choose a torch device by name: auto, cpu, mps, cuda, cuda:N or xpu; auto takes a GPU if there is one.

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
        numbered = [f"{gpu.type}:{number}" for number in range(torch.accelerator.device_count())] if gpu else []
        available = ["auto", "cpu", *([gpu.type] if gpu else []), *numbered]
        similar = "" if name.partition(":")[0] in DEVICES else did_you_mean(name, DEVICES)
        similar = " NVIDIA's and AMD's GPUs are called cuda." if "gpu" in name.lower() else similar
        raise UserError(
            f"--device {name} cannot be used: this machine has {', '.join(available)}.{similar} Leave it out, or give "
            "--device cpu."
        ) from error
    return device


def dtype(precision, device):
    """The type that autocast uses, or None for plain float32.

    `auto` takes bfloat16 where the device has instructions for it: CPUs with AMX or AVX512-BF16, unless environment
    variables switch these off (`cpus.instruction_sets`), and GPUs from Ampere on. Other x86-64 CPUs would be slower in
    it than in float32, Arm is not measured: both stay in float32. Older GPUs (T4, V100, RTX 20xx) take float16.
    """
    if precision != "auto":
        return None if precision == "float32" else getattr(torch, precision)
    if device.type == "cpu":
        return torch.bfloat16 if cpus.fast_bfloat16() else None
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return torch.bfloat16 if supported is None or supported(including_emulation=False) else torch.float16


def autocast(precision, device):
    """The context in which networks run: that of `dtype`, where it names one."""
    chosen = dtype(precision, device)
    return exact(device) if chosen is None else torch.autocast(device.type, chosen)


def exact(device):
    """The context in which everything is computed in the type that it has, inside of `autocast`, too."""
    kind = "cpu" if device.type == "meta" else device.type  # meta tensors, shapes without values, know no autocast
    return torch.autocast(kind, enabled=False)


def set_up(device, tf32=True, benchmark=True):
    """Settings of the whole process.

    Args:
        tf32: float32 products and convolutions on a GPU's tensor cores, which round factors to 10 bits.
        benchmark: let cuDNN try which of its algorithms is quickest for each shape; runs then differ in rounding.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark
    if device.type == "cpu":
        _keep_memory()


def _keep_memory():
    """Asks the C library to keep freed memory for the next step instead of giving it back.

    Networks of hundreds of millions of parameters otherwise spend most of a CPU step on fresh
    pages: 2.3 to 2.8 times slower for VGG16-FCN32s. Does nothing where there is no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def send(tensor, device):
    """A CPU tensor on the device. The copy is only ordered, from pinned memory, so that nobody waits for it."""
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Arriving:
    """A copy of a tensor on its way to the CPU: ordered when made, waited for when asked for.

    Args:
        tensor: on any device.
    """

    def __init__(self, tensor):
        self._copy = tensor.to("cpu", non_blocking=True)
        self._there = None
        if tensor.device.type != "cpu":
            self._there = torch.Event(tensor.device)
            self._there.record()

    def get(self):
        if self._there is not None:
            self._there.synchronize()
        return self._copy


def fits(tensors, device):
    """Whether a device other than the CPU has room to keep these CPU tensors: a third of its free memory."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return False
    return sum(tensor.nbytes for tensor in tensors) <= module.mem_get_info(device)[0] / 3
