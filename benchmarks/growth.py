"""Growth of time and memory with the number of images, their side and the batch, and t-SNE's with its points.

.venv/bin/python -m benchmarks.growth [--tiny]; growth.png compares each series with proportional growth.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import bench
from benchmarks.bench import CPU
from benchmarks.pretraining import ours, write_images
from hw1lib.chapters import style
from hw1lib.data import images
from hw1lib.loops import features
from hw1lib.metrics import collapse, projection
from hw1lib.models import resnet


def decode(count, side=64):
    with tempfile.TemporaryDirectory() as folder:
        images.load(write_images(Path(folder), count, side), side)


def pretraining_step(batch, side):
    """Return the median seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        steps = ours(write_images(Path(folder), 2 * batch, side), side, batch, False)
        return statistics.median(bench.seconds({"step": lambda: next(steps)}, repetitions=3)["step"])


def extract(count, side=64):
    pixels = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    features.extract(resnet.backbone().to(memory_format=torch.channels_last), pixels, CPU)


def clusters(count, dimensions=256, classes=65):
    """Draw points around the centres of classes, similar to activations."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = 3 * random.normal(size=(classes, dimensions))
    return np.float32(centres[labels] + random.normal(size=(count, dimensions))), labels


def project(count):
    points, labels = clusters(count // 2)
    projection.project(points, points + 1, labels, 30, 0)


def rank(count):
    collapse.effective_rank(clusters(count, 2048)[0])


SERIES = {  # name: what grows, the function, and the sizes
    "decoding (64 px)": ("images", decode, (500, 2000, 8000)),
    "frozen features (64 px)": ("images", extract, (256, 1024, 4096)),
    "effective rank": ("images", rank, (500, 2000, 8000)),
    "PCA, t-SNE and their metrics": ("points", project, (1000, 4000, 20000)),
    "step of pre-training, batch 16": ("side in px", lambda side: pretraining_step(16, side), (32, 64, 128, 256)),
    "step of pre-training, 64 px": ("batch", lambda batch: pretraining_step(batch, 64), (16, 64, 256)),
}
TINY = {"decoding (64 px)": ("images", decode, (8, 16)), "effective rank": ("images", rank, (50, 100))}


def rows(tiny):
    series = {}
    for name, (unit, run, sizes) in (TINY if tiny else SERIES).items():
        series[name, unit] = [(size, *bench.in_new_process(run, size)) for size in sizes]
        for size, seconds, megabytes in series[name, unit]:
            yield {"what": name, "grows": unit, "to": size, "seconds": round(seconds, 3), "MB": round(megabytes)}
    style.save(plot(series), bench.OUT / "growth.png")


def plot(series):
    """Plot {(name, unit): [(size, seconds, MB)]}, seconds above and memory below, beside proportional growth."""
    figure, axes = style.canvas(2, len(series), (13, 5))
    for place, ((name, unit), points) in enumerate(series.items()):
        sizes, *columns = map(np.array, zip(*points))
        for label, values, axis in zip(("seconds", "MB"), columns, (axes[place], axes[place + len(series)])):
            axis.loglog(sizes, values, marker="o", color=style.PALETTE[0])
            power = 2 if unit == "side in px" else 1  # pixels
            axis.loglog(sizes, values[0] * (sizes / sizes[0]) ** power, ":", color=style.MUTED)
            axis.set(xlabel=unit, ylabel=label, xticks=sizes, xticklabels=sizes)
            axis.minorticks_off()
            axis.tick_params(labelsize=7)
            axis.set_title(name if label == "seconds" else "", fontsize=8)
    return figure


def main():
    bench.write_tables(__doc__, growth=("How cost grows", rows))


if __name__ == "__main__":
    main()
