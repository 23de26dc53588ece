"""What workers and processes cost, where it can be measured, and what many GPUs would take, derived.

.venv/bin/python -m benchmarks.scaling [--tiny]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench
from hw1lib import paths, profiles
from hw1lib.cluster import run_steps, schedule
from hw1lib.data import earth, layout
from hw1lib.loops import distributed, features, losses, pretrain
from hw1lib.loops.device import autocast
from hw1lib.models import byol, resnet, segmenters
from hw1lib.steps import graph
from hw1lib.workbook import Workbook
from tests import processes

CPU = torch.device("cpu")
# What `derived` stands on. None of it was measured here.
WIRE = 25e9  # bytes a second between GPUs, as issue 14 sets it
LATENCY = 30e-6  # seconds of a sum of a few kilobytes over one node's GPUs: an assumption
RATE = 2470 * 3 * 8.2e9  # operations a second: ResNet50 at 224 px in mixed precision on one A100, NVIDIA's own examples
POOL, OFFICE, TILES, SIDE = 38_400, 3_951, 2_000, 512  # images, images, tiles and pixels of the course's data


def dispatch(step, tiny):
    """A step in this process, in a process of its own, and in one through Dask: seconds in turns."""
    command = [sys.executable, "-m", "hw1lib", "run", step, "--profile", "smoke", "--set", "threads=1", "--out"]
    settings = {"threads": 1}

    def through(out):
        client.submit(run_steps.work, step, [*command, out], 1, 0, mine, pure=False).result()

    one_thread = os.environ | dict.fromkeys(run_steps.THREADS, "1")
    with tempfile.TemporaryDirectory() as out:
        book = Workbook("smoke", settings=settings, out=out)
        with run_steps.connect("local:1", book) as client, run_steps._marked(book) as mine:
            sides = {
                "in this process": lambda out: Workbook("smoke", settings=settings, out=out).result(step),
                "a process of its own": lambda out: subprocess.run(
                    [*command, out], cwd=paths.ROOT, check=True, capture_output=True, env=one_thread
                ),
                "through Dask": through,
            }
            turns = {name: (lambda side=side: fresh(side)) for name, side in sides.items()}
            found = bench.seconds(turns, 1 if tiny else 5, warm=0 if tiny else 1)
    ratios = [ours / alone for ours, alone in zip(found["through Dask"], found["a process of its own"])]
    seconds = {name: f"{statistics.median(taken):.1f} s" for name, taken in found.items()}
    return {"step": step} | seconds | {"Dask / a process of its own": f"{statistics.median(ratios):.2f}"}


def fresh(function):
    with tempfile.TemporaryDirectory() as out:
        function(out)


def communication(name, side, steps):
    """In each of two processes: seconds of a step, of these in sums over both, and bytes that it sends."""
    torch.manual_seed(0)
    profile = profiles.get("demo", {"data.image_size": side, "pretrain.precision": "float32"})
    if name == "BYOL":
        module = byol.learner(features.initial_backbone(profile), side, profile.pretrain, pretrain.views(profile))
        batch = [torch.zeros(8, 3, side, side, dtype=torch.uint8)]

        def loss(learner, images):
            return pretrain.loss(learner, images, profile.pretrain)
    else:
        module = segmenters.build("lraspp", 1.0, False, None)
        batch = [torch.randn(8, 3, side, side), torch.randint(0, 7, (8, side, side), dtype=torch.uint8)]

        def loss(network, images, masks):
            scores = segmenters.scores(network, images)
            return losses.segmentation(*(distributed.all_gather(part, 16) for part in (scores, masks)), "lovasz")

    stepped = distributed.data_parallel(module, loss, CPU)
    sent, spent, reduce = [0], [0.0], dist.all_reduce

    def counted(tensor, *arguments, **options):
        started = time.perf_counter()
        found = reduce(tensor, *arguments, **options)
        spent[0] += time.perf_counter() - started
        sent[0] += tensor.nbytes
        return found

    dist.all_reduce = counted
    taken = {True: [], False: []}
    for step in range(2 * steps + 2):
        together = bool(step % 2)
        distributed.begin_step(step, 16)
        sent[0], spent[0], started = 0, 0.0, time.perf_counter()
        with distributed.no_sync(stepped, not together), autocast("float32", CPU):
            stepped(*batch).backward()
        if step > 1:
            taken[together].append((time.perf_counter() - started, spent[0], sent[0]))
    dist.all_reduce = reduce
    gradients = sum(weight.nbytes for weight in module.parameters() if weight.requires_grad)
    whole, apart = (sorted(values)[len(values) // 2] for values in (taken[True], taken[False]))
    return {
        "network": f"{name}, {side} px, 8 images a process",
        "gradients": f"{gradients / 1e6:.1f} MB",
        "other sums": f"{whole[2] / 1e6:.2f} MB",
        "a step": f"{whole[0]:.2f} s",
        "other sums, time": f"{100 * whole[1] / whole[0]:.0f} %",
        "sums of gradients, time": f"{100 * max(0, whole[0] - apart[0]) / whole[0]:.0f} %",
    }


def operations(network, side):
    """Of one image forwards."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side, device="meta"))
    return counter.get_total_flops()


def derived_steps(profile):
    """What each training of a profile takes an image, in operations, and what it sends a step."""
    with torch.device("meta"):
        backbone = resnet.backbone()
        found = {"pretrain": (backbone, profile.data.image_size, 8, POOL)}  # two views, back, and the target's
        found["pretrain-supervised"] = (backbone, profile.data.image_size, 3, POOL)
        found |= {f"finetune-{name}": (backbone, profile.data.image_size, 3, OFFICE) for name in "ABC"}
        found["control-random"] = (backbone, profile.data.image_size, 3, OFFICE)
        for name in segmenters.SEGMENTERS:
            found[f"segment-{name}"] = (segmenters.build(name, 1.0, False, None), SIDE, 3, TILES)
    for name, (network, side, passes, images) in found.items():
        weights = sum(weight.numel() for weight in network.parameters())
        norms = sum(isinstance(module, _BatchNorm) for module in network.modules())
        sums = norms * (6 if name == "pretrain" else 2)  # two views and the target's, or one; forwards and back
        yield name, passes * operations(network, side), images, 4 * weights, sums


def derived():
    """What `strong` with three seeds would take on 1, 8 and 64 GPUs: nothing of it was measured."""
    profile, rows = profiles.get("strong"), []
    steps = {step.name: step for step in graph.steps(profile, layout.find(earth.build(), profile.data), CPU)}
    costs = {name: cost for name, *cost in derived_steps(profile)}
    for gpus, together in ((1, 1), (8, 1), (8, 8), (64, 8), (64, 64)):
        tasks, computing, talking = {}, 0.0, 0.0
        for seed in range(3):
            for name, step in steps.items():
                label = f"{name}, {seed}" if step.problem == 1 else name
                if name in costs:
                    work, images, size, sums = costs[name]
                    settings = next(iter(step.settings.values()))
                    count = settings.epochs * (images // settings.batch_size)
                    many = together if step.parallel else 1
                    compute = work * settings.batch_size / RATE / many
                    wire = 2 * (many - 1) / many * size / WIRE + (LATENCY * sums if many > 1 else 0)
                    seconds = count * (compute + wire)
                    if name == "pretrain":
                        computing, talking = count * compute, count * wire
                else:
                    seconds = 0.0
                before = [f"{other}, {seed}" if step.problem == 1 else other for other in step.upstream]
                tasks[label] = seconds, before
        path = schedule.critical_path(tasks)
        rows.append({
            "GPUs": f"{gpus}, {together} a step",
            "pre-training, h": f"{(computing + talking) / 3600:.2f}",
            "of it sums": f"{100 * talking / (computing + talking):.0f} %",
            "report, h": f"{schedule.makespan(schedule.simulate(tasks, gpus // together)) / 3600:.2f}",
            "critical path, h": f"{sum(tasks[label][0] for label in path) / 3600:.2f}",
            "along": " → ".join(label.split(",")[0] for label in path if tasks[label][0]),
        })  # fmt: skip
    return rows


def main():
    tiny = bench.arguments(__doc__)
    steps = ("segment-colour",) if tiny else ("segment-colour", "segment-deeplabv3")
    bench.keep("dispatch", "A step of profile smoke", [dispatch(step, tiny) for step in steps])
    rows, sizes = [], (("LR-ASPP", 64),) if tiny else (("BYOL", 32), ("BYOL", 128), ("LR-ASPP", 256))
    for name, side in sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(processes.run(2, communication, name, side, 1 if tiny else 4, folder=Path(folder))[0])
    bench.keep("communication", "Two processes on one step (gloo)", rows)
    bench.keep("derived", "Profile strong, three seeds, on many GPUs: derived, not measured", derived())


if __name__ == "__main__":
    main()
