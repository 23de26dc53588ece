"""Pre-training at the course's size, whole steps from JPEG files on: ours, lightly's, the original's loop.

    .venv/bin/python -m benchmarks.pretraining [--tiny]

lightly is no requirement of the project; `pip install lightly` adds its rows. Its networks, losses, heads and
transforms are used as its documentation has them, with what makes them quick here: bfloat16, channels_last.
"""

import copy
import dataclasses
import statistics
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from byol_pytorch import BYOL
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from benchmarks import bench
from hw1lib import profiles
from hw1lib.data.layout import Split
from hw1lib.loops import augment, device, features, pretrain
from hw1lib.models import byol

CPU, SIDE, BATCH = torch.device("cpu"), 128, 64


class Files(Dataset):
    """Image files through a transform, decoded each time."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def write_images(folder, count, side):
    """JPEG files with detail at several scales."""
    random = np.random.default_rng(0)
    for number in range(count):
        small = random.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(
            folder / f"{number:05d}.jpg", quality=90
        )
    return Split(folder, tuple(f"{number:05d}.jpg" for number in range(count)))


def loader(split, transform, batch):
    return DataLoader(
        Files(split.paths, transform), batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )


def original(split, side, batch, momentum):
    """The original report's loop to the letter."""
    learner = BYOL(
        resnet50(weights=None), side, hidden_layer="avgpool", use_momentum=momentum, use_simplicial_embeddings=False
    )
    optimizer = torch.optim.Adam(learner.parameters(), 1e-3)
    files = loader(split, augment.original(side), batch)
    while True:
        for images in files:
            loss = learner(images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if momentum:
                learner.update_moving_average()
            yield


def lightly(split, side, batch, momentum):
    """lightly's SimSiam and BYOL as documented, in bfloat16 where that is quick, channels last."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import (
        BYOLPredictionHead,
        BYOLProjectionHead,
        SimSiamPredictionHead,
        SimSiamProjectionHead,
    )
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform, SimSiamTransform

    backbone = resnet50(weights=None)
    backbone.fc = nn.Flatten()
    criterion = NegativeCosineSimilarity()
    if momentum:
        online = nn.Sequential(backbone, BYOLProjectionHead(2048, 4096, 256)).to(memory_format=torch.channels_last)
        predictor = BYOLPredictionHead(256, 4096, 256)
        target = copy.deepcopy(online)
        deactivate_requires_grad(target)
        transform = BYOLTransform(BYOLView1Transform(input_size=side), BYOLView2Transform(input_size=side))
    else:
        online = nn.Sequential(backbone, SimSiamProjectionHead(2048, 2048, 2048)).to(memory_format=torch.channels_last)
        predictor = SimSiamPredictionHead(2048, 512, 2048)
        transform = SimSiamTransform(input_size=side)
    optimizer = torch.optim.SGD([*online.parameters(), *predictor.parameters()], 0.06, momentum=0.9)
    files = loader(split, transform, batch)
    while True:
        for first, second in files:
            first, second = (view.to(memory_format=torch.channels_last) for view in (first, second))
            with device.autocast("auto", CPU):
                z0, z1 = online(first), online(second)
                p0, p1 = predictor(z0), predictor(z1)
                if momentum:
                    update_momentum(online, target, m=0.99)
                    with torch.no_grad():
                        z0, z1 = target(first), target(second)
                loss = 0.5 * (criterion(p0.float(), z1.detach().float()) + criterion(p1.float(), z0.detach().float()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def ours(split, side, batch, momentum):
    """Step `pretrain` of profile strong, without its probe."""
    changes = {"pretrain.use_momentum": momentum, "pretrain.batch_size": batch, "data.image_size": side}
    profile = profiles.get("strong", changes)
    settings = profile.pretrain
    backbone = features.initial_backbone(profile).to(memory_format=torch.channels_last)
    learner = byol.learner(backbone, side, settings, pretrain.views(profile))
    batches = pretrain.pool_batches(split, profile, settings, CPU)
    for _ in bench.training_steps(learner, lambda *batch: pretrain.loss(*batch, settings), batches, settings):
        if momentum:
            byol.follow(learner, 0.99)
        yield


def flops_per_image(side, momentum):
    """Floating-point operations of one image's step, without what is not a product."""
    profile = profiles.get("strong", {"pretrain.use_momentum": momentum})
    learner = byol.learner(features.initial_backbone(profile), side, profile.pretrain, (nn.Identity(), nn.Identity()))
    with FlopCounterMode(display=False) as counter:
        byol.loss(learner, torch.randn(2, 3, side, side)).backward()
    return counter.get_total_flops() / 2


def product_rate(size=4096):
    """Operations a second of a large matrix product in the precision that training takes."""
    dtype = device.dtype("auto", CPU) or torch.float32
    one, two = (torch.randn(size, size).to(dtype) for _ in range(2))
    taken = bench.seconds({"product": lambda: one @ two}, repetitions=5)["product"]
    return 2 * size**3 / statistics.median(taken)


def main():
    tiny = bench.arguments(__doc__)
    side, batch = (32, 4) if tiny else (SIDE, BATCH)
    device.set_up(CPU)
    rows, peak = [], product_rate(256 if tiny else 4096)
    with tempfile.TemporaryDirectory() as folder:
        split = write_images(Path(folder), batch * 8, side)
        split = dataclasses.replace(split, decoded=Path(folder) / "decoded")
        for momentum in (False, True):
            makes = (ours, original) if find_spec("lightly") is None else (ours, lightly, original)
            sides = {make.__name__: partial(next, make(split, side, batch, momentum)) for make in makes}
            found = bench.seconds(sides, repetitions=1 if tiny else 5)
            part = flops_per_image(side, momentum) * batch / statistics.median(found["ours"]) / peak
            method = "momentum target" if momentum else "no momentum"
            share = {"of the machine's product rate": f"{100 * part:.0f} %"}
            rows.append({"method": method} | bench.row(found, per=batch) | share)
            print(rows[-1], flush=True)
    bench.keep("pretraining", f"Pre-training, images a second: {side} px, batch {batch}, from JPEG files", rows)


if __name__ == "__main__":
    main()
