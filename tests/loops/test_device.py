"""Devices and precision; no training step waits for its device."""

import os
import re
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hw1lib import cpus, paths, profiles
from hw1lib.errors import UserError
from hw1lib.loops import device, features, loop, losses, pretrain, train_segmenter
from hw1lib.loops.batches import ArrayBatches
from hw1lib.models import byol, segmenters
from hw1lib.models.ema import Averaged

CPU, META = torch.device("cpu"), torch.device("meta")

AVX2 = ("sse4_1", "avx", "avx2")
BFLOAT16 = (*AVX2, "avx512_bw", "avx512_vnni", "avx512_bf16")
AMX = (*BFLOAT16, "avx512_fp16", "amx_bf16")
ARM = ("neon", "sve", "bf16")


@pytest.mark.parametrize(
    ("flags", "limits", "used", "bfloat16"),
    [
        (AMX, {}, "AVX512 AVX512_CORE_AMX", True),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, "AVX512 AVX512_CORE_VNNI", False),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "AVX2"}, "AVX512 AVX2", False),
        (AMX, {"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2 AVX512_CORE_AMX", False),
        (BFLOAT16, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "AVX512 AVX512_CORE_BF16", True),
        (AVX2, {}, "AVX2 AVX2", False),
        (ARM, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "DEFAULT ", False),
    ],
)
def test_auto_is_bfloat16_on_cpus_whose_instructions_for_it_are_not_switched_off(
    monkeypatch, flags, limits, used, bfloat16
):
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    own = "AVX512" if "avx512_bw" in flags else "AVX2" if "avx2" in flags else "DEFAULT"
    aten = limits.get("ATEN_CPU_CAPABILITY", own).upper()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: aten)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True) | {"avx10_1": False})
    assert cpus.instruction_sets() == tuple(used.split(" "))
    expected = torch.bfloat16 if bfloat16 else None
    assert device.dtype("auto", CPU) is expected
    for precision, dtype in (("auto", expected or torch.float32), ("float32", torch.float32)):
        with device.autocast(precision, CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype
            with device.no_autocast(CPU):
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


@pytest.mark.slow
@pytest.mark.skipif(not cpus.instruction_sets()[1], reason="oneDNN's instruction sets are known on x86-64 alone")
def test_the_instruction_sets_are_those_that_torch_and_onednn_report():
    """With ONEDNN_VERBOSE, oneDNN's first computation prints lines like "isa:Intel SSE4.1"."""
    code = """if True:
        import torch
        from hw1lib import cpus
        torch.nn.functional.conv2d(torch.ones(4, 16, 64, 64), torch.ones(16, 16, 3, 3))
        print("used:", *cpus.instruction_sets())
    """
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_MAX_CPU_ISA")}
    environment = clean | {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "avx", "ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=paths.ROOT, capture_output=True, text=True)
    (onednn,) = re.findall(r"isa:Intel (.+)", done.stdout)
    assert done.stdout.splitlines()[-1] == f"used: AVX2 {onednn.replace('.', '')}"


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpus_that_only_emulate_bfloat16_use_float16(monkeypatch, native, expected):
    """T4, V100, RTX 20xx."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert device.dtype("auto", torch.device("cuda")) is expected
    assert device.dtype("float32", torch.device("cuda")) is None


@pytest.mark.parametrize("name", ["tpu9000", "", "cuda:99", "cpu:x", "meta", "CPU", "cpu:0", "vulkan"])
def test_a_device_that_cannot_be_used_is_a_clear_error(name):
    """It names the devices of this machine, not all that PyTorch supports."""
    with pytest.raises(UserError, match=f"--device {name} .*this machine has auto, cpu.*--device cpu"):
        device.choose(name)


@pytest.mark.parametrize("gpu", [None, torch.device("meta")])
def test_auto_is_an_available_accelerator_or_else_the_cpu(monkeypatch, gpu):
    accelerator = Mock(side_effect=lambda check_available: check_available and gpu)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", accelerator)
    assert device.choose("auto") == (gpu or CPU) and device.choose("cpu") == CPU


# --- no step waits for its device


class Copies(TorchDispatchMode):
    """Record blocking and other copies to the device. Meta tensors themselves refuse to be read."""

    def __init__(self):
        super().__init__()
        self.blocking, self.count = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        from_cpu = any(tensor.device == CPU and tensor.ndim for tensor in tensors)
        if from_cpu and any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves((out, args))):
            if (kwargs or {}).get("non_blocking"):
                self.count += 1
            else:
                self.blocking.append(str(function))
        return out


IMAGES = np.zeros((8, 3, 32, 32), dtype=np.uint8)


def pretraining():
    """Module, loss, batches and the function to call after a step."""
    profile = profiles.get("smoke", {"pretrain.use_momentum": True, "pretrain.views": "byol"})
    learner = byol.learner(features.initial_backbone(profile), 32, profile.pretrain, pretrain.views(profile)).to(META)
    batches = ArrayBatches([torch.from_numpy(IMAGES)], 4, 0, META)
    return learner, lambda images: byol.loss(learner, images), batches, lambda step: byol.follow(learner, 0.99)


def segmentation():
    profile = profiles.get("smoke", {"lraspp.crop": 0})
    network = Averaged(segmenters.build("lraspp", 0.25), 0.99).to(META)
    batches = train_segmenter.training_batches(IMAGES, IMAGES[:, 0], profile, profile.lraspp, META)

    def loss(images, masks):
        return losses.segmentation(segmenters.scores(network, images), masks, "lovasz")

    return network, loss, batches, network.follow


@pytest.mark.slow
@pytest.mark.parametrize("training", [pretraining, segmentation])
def test_no_training_step_waits_for_its_device(training):
    """On meta tensors: no value is read, no shape depends on values, and no copy blocks."""
    module, loss, batches, after_step = training()
    settings = profiles.get("smoke", {"lraspp.precision": "float32"}).lraspp
    optimizer, scaler = torch.optim.SGD(module.parameters(), 0.1), torch.amp.GradScaler(enabled=False)
    steps = loop.train_one_epoch(loss, batches, optimizer, scaler, settings, META, epoch=1)
    next(steps)  # copies constants
    with Copies() as copies:
        step, value = next(steps)
        after_step(step)
    assert value.is_meta and not copies.blocking and copies.count <= 5
