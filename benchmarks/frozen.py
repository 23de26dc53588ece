"""Frozen backbones (settings D, E and random): an epoch on cached features against one through the backbone.

.venv/bin/python -m benchmarks.frozen [--tiny]
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import bench
from benchmarks.bench import CPU
from hw1lib import profiles
from hw1lib.loops import augment, features
from hw1lib.loops.batches import ArrayBatches
from hw1lib.models import resnet


def epoch(module, batches, settings):
    """Train for one epoch."""

    def loss(module, inputs, labels):
        return F.cross_entropy(module(inputs).float(), labels)

    for _ in itertools.islice(bench.training_steps(module, loss, batches, settings), len(batches)):
        pass


def rows(tiny):
    settings = profiles.get("strong").finetune
    for side, count in ((32, 128),) if tiny else ((32, 2048), (128, 512)):
        torch.manual_seed(0)
        images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))
        labels = torch.arange(count) % 65
        model = resnet.Classifier(resnet.backbone(0.1 if tiny else 1), resnet.Head(65), frozen=True)
        model.to(memory_format=torch.channels_last)
        cached = ArrayBatches([features.extract(model.backbone, images, CPU), labels], 64, 0, CPU)
        through = ArrayBatches([images, labels], 64, 0, CPU, lambda batch, labels: (augment.normalise(batch), labels))
        sides = {
            "on features": lambda: epoch(model.head, cached, settings),
            "through the backbone": lambda: epoch(model, through, settings),
        }
        times = bench.seconds(sides, 1 if tiny else 3)
        yield {"px": side, "images": count} | bench.row(times, ours="on features", per=count)


def main():
    bench.write_tables(__doc__, frozen=("Frozen backbones (D, E, random): an epoch, images per second", rows))


if __name__ == "__main__":
    main()
