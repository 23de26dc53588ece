"""Our networks against the same ones with torch's plain convolutions: images a second, both sides in turns.

.venv/bin/python -m benchmarks.networks [--tiny]
"""

import copy

import torch
from torch import nn

from benchmarks import bench
from hw1lib.loops import device
from hw1lib.models import fast_conv, resnet, segmenters

CPU = torch.device("cpu")
CASES = [  # network, side, batch
    *(("resnet50", side, batch) for side, batch in ((32, 32), (32, 256), (64, 64), (128, 32), (224, 16))),
    *((name, side, batch) for name in segmenters.SEGMENTERS for side, batch in ((64, 16), (128, 8), (512, 2))),
]
MODES = ("training", "inference")


def build(name, scale=1.0):
    torch.manual_seed(0)
    network = resnet.backbone(scale) if name == "resnet50" else segmenters.build(name, scale)
    return network.to(memory_format=torch.channels_last)


def plain(network):
    """The same network with torch's own convolutions."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) is fast_conv.Conv2d:
            module.__class__ = nn.Conv2d
    return network


def call(network, name, images, mode, precision):
    """A function that runs the network once, forwards or in both directions."""
    network.train(mode == "training")

    def run():
        with torch.set_grad_enabled(mode == "training"), device.autocast(precision, CPU):
            out = network(images) if name == "resnet50" else segmenters.scores(network, images)
        if mode == "training":
            network.zero_grad()
            out.float().mean().backward()

    return run


def main():
    tiny = bench.arguments(__doc__)
    device.set_up(CPU)
    rows = []
    for name, side, batch in [("resnet50", 32, 2), ("lraspp", 32, 2)] if tiny else CASES:
        network = build(name, 0.1 if tiny else 1)
        other = plain(network)
        images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
        for precision in ("float32", "auto"):
            for mode in MODES:
                sides = {
                    "ours": call(network, name, images, mode, precision),
                    "plain": call(other, name, images, mode, precision),
                }
                found = bench.seconds(sides, repetitions=1 if tiny else 5)
                shown = "float32" if device.dtype(precision, CPU) is None else "bfloat16"
                case = {"network": name, "px": side, "batch": batch, "precision": shown, "": mode}
                rows.append(case | bench.row(found, per=batch))
                print(*rows[-1].values(), flush=True)
    bench.keep("networks", "Networks, images a second: ours against torch's own convolutions", rows)


if __name__ == "__main__":
    main()
