"""How time and memory grow with the images, their side and the batch, and t-SNE's with its points.

    .venv/bin/python -m benchmarks.growth [--tiny]

Each line is drawn against what a cost that grows in proportion would be; figures lie beside the tables.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import bench
from benchmarks.pretraining import ours, write_images
from hw1lib.chapters import style
from hw1lib.data import images
from hw1lib.loops import device, features
from hw1lib.metrics import collapse, projection
from hw1lib.models import resnet

CPU = torch.device("cpu")


def decode(count, side=64):
    with tempfile.TemporaryDirectory() as folder:
        split = write_images(Path(folder), count, side)
        images.load(dataclasses.replace(split, decoded=Path(folder) / "decoded"), side)


def pretrain_steps(batch, side):
    """Median seconds of one step."""
    with tempfile.TemporaryDirectory() as folder:
        split = write_images(Path(folder), 2 * batch, side)
        running = ours(split, side, batch, False)
        return statistics.median(bench.seconds({"step": lambda: next(running)}, repetitions=3)["step"])


def extract(count, side=64):
    pixels = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    features.extract(resnet.backbone().to(memory_format=torch.channels_last), pixels, CPU)


def clouds(count, dimensions=256, classes=65):
    """Points around the centres of classes, as activations are."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    return np.float32(
        3 * random.normal(size=(classes, dimensions))[labels] + random.normal(size=(count, dimensions))
    ), labels


def project(count):
    points, labels = clouds(count // 2)
    projection.project(points, points + 1, labels, 30, 0)


def rank(count):
    collapse.effective_rank(clouds(count, 2048)[0])


SERIES = {  # what grows, and in what
    "decoding (64 px)": ("images", decode, (500, 2000, 8000)),
    "frozen features (64 px)": ("images", extract, (256, 1024, 4096)),
    "effective rank": ("images", rank, (500, 2000, 8000)),
    "PCA, t-SNE and their measures": ("points", project, (1000, 4000, 20000)),
    "step of pre-training, batch 16": ("side in px", lambda side: pretrain_steps(16, side), (32, 64, 128, 256)),
    "step of pre-training, 64 px": ("batch", lambda batch: pretrain_steps(batch, 64), (16, 64, 256)),
}
TINY = {"decoding (64 px)": ("images", decode, (8, 16)), "effective rank": ("images", rank, (50, 100))}


def main():
    tiny = bench.arguments(__doc__)
    device.set_up(CPU)
    rows = []
    for name, (unit, run, sizes) in (TINY if tiny else SERIES).items():
        for size in sizes:
            seconds, megabytes = bench.alone(run, size)
            rows.append({"what": name, "grows": unit, "to": size, "seconds": round(seconds, 3), "MB": round(megabytes)})
            print(rows[-1], flush=True)
    bench.keep("growth", "How cost grows", rows)
    figure, axes = style.canvas(2, len({row["what"] for row in rows}), (13, 5))
    for place, (name, (unit, _, _)) in enumerate((TINY if tiny else SERIES).items()):
        mine = [row for row in rows if row["what"] == name]
        for of, axis in (("seconds", axes[place]), ("MB", axes[place + len(axes) // 2])):
            sizes, values = [row["to"] for row in mine], [row[of] for row in mine]
            axis.loglog(sizes, values, marker="o", color=style.PALETTE[0])
            power = 2 if unit == "side in px" else 1  # pixels
            axis.loglog(sizes, [values[0] * (size / sizes[0]) ** power for size in sizes], ":", color=style.MUTED)
            axis.set(xlabel=unit, ylabel=of, xticks=sizes, xticklabels=sizes, yticks=values, yticklabels=values)
            axis.minorticks_off()
            axis.set_ylim(min(values) / 2, max(values) * 2)
            axis.tick_params(labelsize=7)
            axis.set_title(name if of == "seconds" else "", fontsize=8)
    style.save(figure, bench.OUT / "growth.png")


if __name__ == "__main__":
    main()
