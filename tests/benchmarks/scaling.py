"""What workers and processes cost, where it can be measured, and what many GPUs would take, derived.

.venv/bin/python -m tests.benchmarks.scaling [--tiny]
"""

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from hw1lib import parallel, paths, profiles
from hw1lib.loops import pretrain
from hw1lib.loops.device import autocast
from hw1lib.models import byol, segmenters
from tests import processes
from tests.benchmarks import bench

CPU = torch.device("cpu")
WIRE = 25e9  # bytes a second between GPUs: one link of a node of today, as the issue sets it
IMAGES = 2470  # images a second in training of ResNet50 at 224 px on one A100, mixed precision (NVIDIA's own examples)
UNITS = {
    "self-supervised": 8,
    "supervised": 3,
}  # forward passes that a step costs an image: two views, target, backward


def dispatch(tiny):
    """A step through Dask against the same step by itself: median seconds of both, in turns."""
    from distributed import Client, LocalCluster

    from hw1lib import cluster
    from hw1lib.workbook import Workbook

    step = [
        sys.executable,
        "-m",
        "hw1lib",
        "run",
        "segment-colour",
        "--profile",
        "smoke",
        "--set",
        "threads=1",
        "--out",
    ]

    def alone(out):
        subprocess.run([*step, out], cwd=paths.ROOT, check=True, capture_output=True)

    workers = LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0")
    with tempfile.TemporaryDirectory() as out:
        book = Workbook("smoke", out=out)
        with workers, Client(workers) as client, cluster._marked(book) as mine:

            def through(out):
                client.submit(cluster.work, "segment-colour", [*step, out], 1, 0, mine, pure=False).result()

            sides = {"through Dask": lambda: fresh(through), "by itself": lambda: fresh(alone)}
            found = bench.seconds(sides, 1 if tiny else 5)
    ratio = sorted(one / other for one, other in zip(found["through Dask"], found["by itself"]))
    taken = {name: f"{sorted(seconds)[len(seconds) // 2]:.2f} s" for name, seconds in found.items()}
    return [{"step": "segment-colour"} | taken | {"ratio": f"{ratio[len(ratio) // 2]:.3f}"}]


def fresh(function):
    with tempfile.TemporaryDirectory() as out:
        function(out)


def communication(name, side, steps):
    """In each of two processes: seconds of a step, of these in sums over both, and bytes that it sends."""
    torch.manual_seed(0)
    profile = profiles.get("demo", {"data.image_size": side, "pretrain.precision": "float32"})
    if name == "BYOL, ResNet50":
        module = byol.learner(pretrain.initial(profile), side, profile.pretrain, pretrain.views(profile))
        batch, loss = (
            [torch.zeros(8, 3, side, side, dtype=torch.uint8)],
            lambda module, images: byol.loss(module, images),
        )
    else:
        module = segmenters.build("lraspp", 1.0, False, None)
        batch = [torch.randn(8, 3, side, side)]
        loss = lambda module, images: segmenters.scores(module, images, 1).square().mean()  # noqa: E731
    stepped = parallel.wrapped(module, loss, CPU)
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
        parallel.seed(step)
        parallel.part(16, note=True)
        sent[0], spent[0], started = 0, 0.0, time.perf_counter()
        with parallel.apart(stepped, not together), autocast("float32", CPU):
            stepped(*batch).backward()
        if step > 1:
            taken[together].append((time.perf_counter() - started, spent[0], sent[0]))
    dist.all_reduce = reduce
    gradients = sum(weight.nbytes for weight in module.parameters() if weight.requires_grad)
    whole, apart = (sorted(values)[len(values) // 2] for values in (taken[True], taken[False]))
    return {
        "network": f"{name}, {side} px, 8 images a process",
        "gradients": f"{gradients / 1e6:.1f} MB",
        "BatchNorm's sums": f"{whole[2] / 1e6:.2f} MB",
        "a step": f"{whole[0]:.2f} s",
        "sums of BatchNorm": f"{100 * whole[1] / whole[0]:.0f} %",
        "sums of gradients": f"{100 * max(0, whole[0] - apart[0]) / whole[0]:.0f} %",
    }


def derived():
    """What `strong` would take on 1, 8 and 64 GPUs: nothing of it was measured."""
    profile, rows = profiles.get("strong"), []
    area = (profile.data.image_size / 224) ** 2
    byol_bytes = 4 * 35e6  # ResNet50, projector and predictor in float32
    for gpus in (1, 8, 64):
        batch = profile.pretrain.batch_size
        compute = batch / gpus * UNITS["self-supervised"] / UNITS["supervised"] * area / IMAGES
        wire = 2 * (gpus - 1) / gpus * byol_bytes / WIRE
        steps = math.floor(38_400 / batch) * profile.pretrain.epochs
        hours = [steps * taken / 3600 for taken in (compute + wire, max(compute, wire))]
        costs = {"computing a step": f"{1e3 * compute:.1f} ms", "all-reduce a step": f"{1e3 * wire:.1f} ms"}
        ends = {"800 epochs, one after the other": f"{hours[0]:.1f} h", "overlapped": f"{hours[1]:.1f} h"}
        rows.append({"GPUs": gpus, "images a GPU": batch / gpus} | costs | ends)
    return rows


def main():
    tiny = bench.arguments(__doc__)
    bench.keep("dispatch", "A step through Dask, and by itself", dispatch(tiny))
    rows = []
    for name, side in (
        (("LR-ASPP", 64),) if tiny else (("BYOL, ResNet50", 32), ("BYOL, ResNet50", 128), ("LR-ASPP", 256))
    ):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(processes.run(2, communication, name, side, 1 if tiny else 4, folder=Path(folder))[0])
    bench.keep("communication", "Two processes on one step (gloo)", rows)
    bench.keep("derived", "Profile strong on many GPUs: derived, not measured", derived())


if __name__ == "__main__":
    main()
