"""Measured cost of workers and processes, and the derived time of a report on many GPUs.

.venv/bin/python -m benchmarks.scaling [--tiny]
"""

import itertools
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
from benchmarks.bench import CPU
from hw1lib import paths, profiles
from hw1lib.cluster import run_steps, schedule
from hw1lib.data import earth, layout
from hw1lib.loops import distributed, features, losses, pretrain
from hw1lib.loops.device import autocast
from hw1lib.models import byol, resnet, segmenters
from hw1lib.steps import graph
from hw1lib.workbook import Workbook
from tests import processes

# Assumptions of `derived`, none of them measured.
BANDWIDTH = 25e9  # bytes per second between GPUs
LATENCY = 30e-6  # seconds of a reduction of a few kilobytes over one node's GPUs
RATE = 2470 * 3 * 8.2e9  # operations per second: ResNet50 at 224 px in mixed precision on an A100 (NVIDIA's examples)
POOL, OFFICE, TILES, SIDE = 38_400, 3_951, 2_000, 512  # images, images, tiles and pixels of the course's data


def dispatch(tiny):
    """Time a step in this process, in its own process, and through Dask."""
    for step in ("segment-colour",) if tiny else ("segment-colour", "segment-deeplabv3"):
        command = [sys.executable, "-m", "hw1lib", "run", step, "--profile", "smoke", "--data-root", earth.build()]
        command += ["--set", "threads=1", "--out"]
        environment = os.environ | dict.fromkeys(run_steps.THREADS, "1")

        def in_this_process(out, step=step):
            Workbook("smoke", settings={"threads": 1}, out=out).result(step)

        def in_its_own(out, command=command, environment=environment):
            subprocess.run([*command, out], cwd=paths.ROOT, check=True, capture_output=True, env=environment)

        with tempfile.TemporaryDirectory() as out:
            book = Workbook("smoke", settings={"threads": 1}, out=out)
            with run_steps.connect("local:1", book) as client, run_steps.shared_folders(book) as folders:

                def through_dask(out, step=step, command=command, client=client, folders=folders):
                    arguments = step, [*command, out], 1, 0, 0, folders, run_steps.snapshot(*folders)
                    client.submit(run_steps.work, *arguments, pure=False).result()

                sides = {"in this process": in_this_process, "its own process": in_its_own, "Dask": through_dask}
                new_folders = {name: lambda side=side: _in_new_folder(side) for name, side in sides.items()}
                times = bench.seconds(new_folders, 1 if tiny else 5, warm=0 if tiny else 1)
        ratio = statistics.median(a / b for a, b in zip(times["Dask"], times["its own process"]))
        medians = {name: f"{statistics.median(durations):.1f} s" for name, durations in times.items()}
        yield {"step": step} | medians | {"Dask / its own process": f"{ratio:.2f}"}


def _in_new_folder(function):
    with tempfile.TemporaryDirectory() as folder:
        function(folder)


def communication(tiny):
    """Measure two processes on one step."""
    sizes = (("LR-ASPP", 64),) if tiny else (("BYOL", 32), ("BYOL", 128), ("LR-ASPP", 256))
    for name, side in sizes:
        with tempfile.TemporaryDirectory() as folder:
            yield processes.run(2, steps_of_process, name, side, 1 if tiny else 4, folder=Path(folder))[0]


def steps_of_process(name, side, steps):
    """Return a table row: a step's seconds in one of two processes, the share of reductions, and the bytes sent."""
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

    parallel_loss = distributed.data_parallel(module, loss, CPU)
    sent, spent, reduce = [0], [0.0], dist.all_reduce

    def timed_reduce(tensor, *arguments, **options):
        start = time.perf_counter()
        result = reduce(tensor, *arguments, **options)
        spent[0] += time.perf_counter() - start
        sent[0] += tensor.nbytes
        return result

    dist.all_reduce = timed_reduce
    times = {True: [], False: []}  # with and without the reduction of gradients
    for step in range(2 * steps + 2):
        reduced = bool(step % 2)
        distributed.begin_step(step, 16)
        sent[0], spent[0], start = 0, 0.0, time.perf_counter()
        with distributed.no_sync(parallel_loss, not reduced), autocast("float32", CPU):
            parallel_loss(*batch).backward()
        if step > 1:
            times[reduced].append((time.perf_counter() - start, spent[0], sent[0]))
    dist.all_reduce = reduce
    gradients = sum(weight.nbytes for weight in module.parameters() if weight.requires_grad)
    (seconds, reducing, size), (without, _, _) = (sorted(each)[len(each) // 2] for each in times.values())
    return {
        "network": f"{name}, {side} px, 8 images per process",
        "gradients": f"{gradients / 1e6:.1f} MB",
        "other reductions": f"{size / 1e6:.2f} MB",
        "a step": f"{seconds:.2f} s",
        "other reductions, time": f"{100 * reducing / seconds:.0f} %",
        "reductions of gradients, time": f"{100 * max(0, seconds - without) / seconds:.0f} %",
    }


def operations(network, side):
    """Count the floating-point operations of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side, device="meta"))
    return counter.get_total_flops()


def training_costs(profile):
    """Return {training step: (operations per image, images, bytes of gradients, other reductions per step)}."""
    with torch.device("meta"):
        backbone, side = resnet.backbone(), profile.data.image_size
        trainings = {"pretrain": (backbone, side, 8, POOL)}  # two views forwards and backwards, and the target's
        trainings["pretrain-supervised"] = (backbone, side, 3, POOL)
        finetunings = ("control-random", "finetune-A", "finetune-B", "finetune-C")
        trainings |= dict.fromkeys(finetunings, (backbone, side, 3, OFFICE))
        for name in segmenters.SEGMENTERS:
            trainings[f"segment-{name}"] = (segmenters.build(name), SIDE, 3, TILES)
    costs = {}
    for name, (network, side, passes, images) in trainings.items():
        weights = sum(weight.numel() for weight in network.parameters())
        norms = sum(isinstance(module, _BatchNorm) for module in network.modules())
        reductions = norms * (6 if name == "pretrain" else 2)  # two views and the target's, or one; both directions
        costs[name] = passes * operations(network, side), images, 4 * weights, reductions
    return costs


def training_seconds(cost, settings, gpus):
    """Return the seconds that a step spends computing and communicating on `gpus` GPUs."""
    work, images, size, reductions = cost
    count = settings.epochs * (images // settings.batch_size)
    computing = work * settings.batch_size / RATE / gpus
    reducing = 2 * (gpus - 1) / gpus * size / BANDWIDTH + (LATENCY * reductions if gpus > 1 else 0)
    return count * computing, count * reducing


def derived(tiny):
    """Estimate profile strong with three seeds on 1, 8 and 64 GPUs."""
    profile = profiles.get("strong")
    data = layout.find(earth.build(), profile.data)
    steps = {step.name: step for step in graph.steps(profile, data, CPU)}
    costs = training_costs(profile)
    for gpus, per_step in ((1, 1), (8, 1), (8, 8), (64, 8), (64, 64)):
        tasks = {}
        for seed, (name, step) in itertools.product(range(3), steps.items()):
            label, *before = (f"{each}, {seed}" if step.problem == 1 else each for each in (name, *step.upstream))
            seconds = 0.0
            if name in costs:
                settings = next(iter(step.settings.values()))
                seconds = sum(training_seconds(costs[name], settings, per_step if step.parallel else 1))
            tasks[label] = seconds, before
        computing, reducing = training_seconds(costs["pretrain"], profile.pretrain, per_step)
        path = schedule.critical_path(tasks)
        yield {
            "GPUs": f"{gpus}, {per_step} per step",
            "pre-training, h": f"{(computing + reducing) / 3600:.2f}",
            "of which reductions": f"{100 * reducing / (computing + reducing):.0f} %",
            "report, h": f"{schedule.makespan(schedule.simulate(tasks, gpus // per_step)) / 3600:.2f}",
            "critical path, h": f"{sum(tasks[label][0] for label in path) / 3600:.2f}",
            "along": " → ".join(label.split(",")[0] for label in path if tasks[label][0]),
        }


def main():
    bench.write_tables(
        __doc__,
        dispatch=("A step of profile smoke", dispatch),
        communication=("Two processes on one step (gloo)", communication),
        derived=("Profile strong, three seeds, on many GPUs: derived, not measured", derived),
    )


if __name__ == "__main__":
    main()
