"""Frozen settings: an epoch of the head on features kept once, against one that runs the backbone.

.venv/bin/python -m benchmarks.frozen [--tiny]
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import bench
from hw1lib import profiles
from hw1lib.loops import augment, device, features
from hw1lib.loops.batches import ArrayBatches
from hw1lib.models import resnet

CPU = torch.device("cpu")


def epoch(module, batches, settings):
    """One epoch of training."""

    def loss(module, inputs, labels):
        return F.cross_entropy(module(inputs).float(), labels)

    for _ in itertools.islice(bench.training_steps(module, loss, batches, settings), len(batches)):
        pass


def main():
    tiny = bench.arguments(__doc__)
    device.set_up(CPU)
    rows, settings = [], profiles.get("strong").finetune
    for side, count in ((32, 128),) if tiny else ((32, 2048), (128, 512)):
        torch.manual_seed(0)
        images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))
        labels = torch.arange(count) % 65
        model = resnet.Classifier(resnet.backbone(0.1 if tiny else 1), resnet.Head(65), frozen=True)
        model.to(memory_format=torch.channels_last)
        known = features.extract(model.backbone, images, CPU)
        kept = ArrayBatches([known, labels], 64, 0, CPU)
        through = ArrayBatches([images, labels], 64, 0, CPU, lambda batch, of: (augment.normalise(batch), of))
        sides = {
            "on features": lambda: epoch(model.head, kept, settings),
            "through the backbone": lambda: epoch(model, through, settings),
        }
        found = bench.seconds(sides, repetitions=1 if tiny else 3)
        rows.append({"px": side, "images": count} | bench.row(found, ours="on features", per=count))
    bench.keep("frozen", "Frozen settings (D, E, random): an epoch, images a second", rows)


if __name__ == "__main__":
    main()
