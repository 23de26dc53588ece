"""Devices and precisions: which are chosen, and that a training step waits for none of them."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hw1lib import cpus, paths, profiles
from hw1lib.errors import UserError
from hw1lib.loops import augment, device, loop, losses, pretrain, train_segmenter
from hw1lib.loops.batches import ArrayBatches
from hw1lib.models import byol, resnet, segmenters
from hw1lib.models.ema import Averaged

CPU, META = torch.device("cpu"), torch.device("meta")


# --- which


AVX2 = ("sse4_1", "avx", "avx2")
AVX512 = (*AVX2, "avx512_bw", "avx512_vnni")
BFLOAT16 = (*AVX512, "avx512_bf16")
AMX = (*BFLOAT16, "avx512_fp16", "amx_bf16")
ARM = ("neon", "sve", "bf16")


@pytest.mark.parametrize(
    ("flags", "limits", "used", "bfloat16"),
    [
        (AMX, {}, "AVX512 AVX512_CORE_AMX", True),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "AVX512 AVX512_CORE_BF16", True),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, "AVX512 AVX512_CORE_VNNI", False),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "AVX2"}, "AVX512 AVX2", False),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX2"}, "AVX512 AVX512_CORE_AMX", True),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX9"}, "AVX512 AVX512_CORE_AMX", True),  # ignored, as oneDNN does
        (AMX, {"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2 AVX512_CORE_AMX", False),
        (AMX, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}, "DEFAULT SSE41", False),
        (BFLOAT16, {}, "AVX512 AVX512_CORE_BF16", True),
        (BFLOAT16, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "AVX512 AVX512_CORE_BF16", True),
        (AVX512, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "AVX512 AVX512_CORE_VNNI", False),
        (AVX2, {}, "AVX2 AVX2", False),
        (AVX2, {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "AVX512 AVX2", False),
        (ARM, {}, "DEFAULT ", False),
        (ARM, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "DEFAULT ", False),
    ],
)
def test_auto_takes_bfloat16_on_cpus_that_may_use_their_instructions_for_it(monkeypatch, flags, limits, used, bfloat16):
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
            with device.exact(CPU):
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


@pytest.mark.slow
@pytest.mark.skipif(not cpus.instruction_sets()[1], reason="oneDNN's instruction sets are known on x86-64 alone")
@pytest.mark.parametrize("limits", [("default", "ONEDNN_MAX_CPU_ISA", "sse41"), ("avx2", "DNNL_MAX_CPU_ISA", "AVX")])
def test_the_instruction_sets_are_those_that_torch_and_onednn_report(limits):
    """oneDNN reports its own when it first computes: "isa:Intel SSE4.1"."""
    code = """if True:
        import torch
        from hw1lib import cpus
        torch.nn.functional.conv2d(torch.ones(4, 16, 64, 64), torch.ones(16, 16, 3, 3))
        print("used:", *cpus.instruction_sets())
    """
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_MAX_CPU_ISA")}
    environment = clean | {"ATEN_CPU_CAPABILITY": limits[0], limits[1]: limits[2], "ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=paths.ROOT, capture_output=True, text=True)
    (onednn,) = re.findall(r"isa:Intel (.+)", done.stdout)
    assert done.stdout.splitlines()[-1] == f"used: {limits[0].upper()} {onednn.replace('.', '')}"


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpus_without_bfloat16_get_float16(monkeypatch, has, expected):
    """T4, V100, RTX 20xx: what torch emulates there is slow."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has)
    assert device.dtype("auto", torch.device("cuda")) is expected
    assert device.dtype("float32", torch.device("cuda")) is None
    assert device.dtype("bfloat16", torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize(
    "name", ["tpu9000", "", "cuda:99", "cpu:x", "meta", "gpu", "GPU:0", "CPU", "cdua", "cpu:0", "vulkan"]
)
def test_a_device_that_cannot_be_used_is_a_clear_error(name):
    """It names those that this machine has, not all that PyTorch was ever built for."""
    with pytest.raises(UserError, match=f"--device {name} .*this machine has auto, cpu.*--device cpu") as caught:
        device.choose(name)
    suggested = {"gpu": "called cuda", "GPU:0": "called cuda", "CPU": "mean cpu?", "cdua": "mean cuda?"}
    assert suggested.get(name, "") in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("found", [None, torch.device("meta")])
def test_auto_takes_the_accelerator_or_else_the_cpu(monkeypatch, found):
    """An accelerator that is available: torch may be built for one that is not there."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: check_available and found)
    assert device.choose("auto") == (found or CPU) and device.choose("cpu") == CPU


@pytest.mark.parametrize("on", [True, False])
def test_the_settings_of_a_gpu_are_what_the_profile_says(on):
    device.set_up(CPU, tf32=on, benchmark=on)
    assert torch.backends.cudnn.benchmark is torch.backends.cudnn.allow_tf32 is on
    assert torch.get_float32_matmul_precision() == ("high" if on else "highest")


# --- nobody waits


class Waits(TorchDispatchMode):
    """Notes copies to the device that block. What reads a value, meta tensors refuse by themselves."""

    def __init__(self):
        super().__init__()
        self.found, self.copies = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        from_cpu = any(tensor.device == CPU and tensor.ndim for tensor in given)
        if from_cpu and any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves((out, args))):
            if (kwargs or {}).get("non_blocking"):
                self.copies += 1
            else:
                self.found.append(str(function))
        return out


IMAGES = np.zeros((8, 3, 32, 32), dtype=np.uint8)


def self_supervised(momentum):
    profile = profiles.get("smoke", {"pretrain.use_momentum": momentum, "pretrain.views": "byol"})
    learner = byol.learner(pretrain.initial(profile), 32, profile.pretrain, pretrain.views(profile)).to(META)
    batches = ArrayBatches([torch.from_numpy(IMAGES)], 4, 0, META)
    follow = (lambda step: byol.follow(learner, 0.99)) if momentum else None
    return learner, lambda images: byol.loss(learner, images), batches, follow


def supervised():
    model = resnet.Classifier(resnet.backbone(0.25), resnet.Head(3)).to(META)
    view = augment.Views(32, augment.CLASSIFY)
    tensors = [torch.from_numpy(IMAGES), torch.zeros(8).long()]
    batches = ArrayBatches(tensors, 4, 0, META, lambda images, labels: (view(images), labels))
    return model, lambda images, labels: F.cross_entropy(model(images), labels), batches, None


def segmentation(name):
    profile = profiles.get("smoke", {f"{name}.crop": 0})
    network = Averaged(segmenters.build(name, 0.25), 0.99).to(META)
    batches = train_segmenter.batches_of(IMAGES, IMAGES[:, 0], profile, getattr(profile, name), META)
    return (
        network,
        lambda images, masks: losses.segmentation(segmenters.scores(network, images), masks, "lovasz"),
        batches,
        network.follow,
    )


TRAININGS = [
    *(pytest.param(lambda m=m: self_supervised(m), id=f"byol momentum {m}") for m in (True, False)),
    pytest.param(supervised, id="classifier"),
    *(pytest.param(lambda n=n: segmentation(n), id=n) for n in segmenters.SEGMENTERS),
]


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("make", TRAININGS)
def test_no_step_of_a_training_waits_for_its_device(monkeypatch, make, resident):
    """On meta tensors: no value is read, no shape follows from one, and what is copied is only ordered."""
    monkeypatch.setattr("hw1lib.loops.batches.fits", lambda tensors, device: resident)
    module, loss, batches, after_step = make()
    chosen = profiles.get("smoke", {"lraspp.precision": "float32"}).lraspp
    optimizer, scaler = torch.optim.SGD(module.parameters(), 0.1), torch.amp.GradScaler(enabled=False)
    steps = loop.train_one_epoch(loss, batches, optimizer, scaler, chosen, META, epoch=1)
    next(steps)  # constants may still be copied
    with Waits() as waits:
        step, value = next(steps)
        if after_step:
            after_step(step)
    assert value.is_meta and not waits.found and waits.copies <= 5
