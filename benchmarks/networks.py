"""Our networks against the same ones with torch's plain convolutions: images per second.

.venv/bin/python -m benchmarks.networks [--tiny]
"""

import copy

import torch
from torch import nn

from benchmarks import bench
from benchmarks.bench import CPU
from hw1lib.loops import device
from hw1lib.models import fast_conv, resnet, segmenters

CASES = [  # network, side, batch
    *(("resnet50", side, batch) for side, batch in ((32, 32), (32, 256), (64, 64), (128, 32), (224, 16))),
    *((name, side, batch) for name in segmenters.SEGMENTERS for side, batch in ((64, 16), (128, 8), (512, 2))),
]


def build(name, scale=1.0):
    torch.manual_seed(0)
    network = resnet.backbone(scale) if name == "resnet50" else segmenters.build(name, scale)
    return network.to(memory_format=torch.channels_last)


def plain(network):
    """Return a copy of a network with torch's own convolutions."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) is fast_conv.Conv2d:
            module.__class__ = nn.Conv2d
    return network


def run(network, name, images, training, precision):
    """Run a network forwards, and backwards in training."""
    network.train(training)
    with torch.set_grad_enabled(training), device.autocast(precision, CPU):
        out = network(images) if name == "resnet50" else segmenters.scores(network, images)
    if training:
        network.zero_grad()
        out.float().mean().backward()


def rows(tiny):
    for name, side, batch in [("resnet50", 32, 2), ("lraspp", 32, 2)] if tiny else CASES:
        network = build(name, 0.1 if tiny else 1)
        other = plain(network)
        images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
        for precision in ("float32", "auto"):
            for training in (True, False):
                sides = {
                    "ours": lambda: run(network, name, images, training, precision),
                    "plain": lambda: run(other, name, images, training, precision),
                }
                dtype = "float32" if device.dtype(precision, CPU) is None else "bfloat16"
                case = {"network": name, "px": side, "batch": batch, "precision": dtype}
                case[""] = "training" if training else "inference"
                yield case | bench.row(bench.seconds(sides, 1 if tiny else 5), per=batch)


def main():
    bench.write_tables(__doc__, networks=("Networks, images per second: ours against torch's convolutions", rows))


if __name__ == "__main__":
    main()
