"""Pre-training from JPEG files at the course's size: ours, lightly's and the original report's loop; images per second.

.venv/bin/python -m benchmarks.pretraining [--tiny]; lightly is only measured if it is installed. Its networks, losses,
heads and transforms are used as in its documentation, with bfloat16 and channels_last where these are faster.
"""

import copy
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
from torchvision.models import resnet50

from benchmarks import bench
from benchmarks.bench import CPU
from hw1lib import profiles
from hw1lib.data.layout import Split
from hw1lib.loops import augment, device, features, pretrain
from hw1lib.models import byol


class Files(Dataset):
    """Image files, decoded and transformed each time."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def write_images(folder, count, side):
    """Write JPEG files of random texture, and return them as a Split."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    names = tuple(f"{number:05d}.jpg" for number in range(count))
    for name in names:
        small = Image.fromarray(random.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / name, quality=90)
    return Split(folder, names, decoded=folder / "decoded")


def loader(split, transform, batch):
    files = Files(split.paths, transform)
    return DataLoader(files, batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)


def original(split, side, batch, momentum):
    """Train as in the original report."""
    options = {"hidden_layer": "avgpool", "use_momentum": momentum, "use_simplicial_embeddings": False}
    learner = BYOL(resnet50(weights=None), side, **options)
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
    """Train lightly's SimSiam or BYOL as in its documentation."""
    from lightly import loss, transforms
    from lightly.models import modules, utils

    backbone = resnet50(weights=None)
    backbone.fc = nn.Flatten()
    criterion = loss.NegativeCosineSimilarity()
    if momentum:
        online = nn.Sequential(backbone, modules.BYOLProjectionHead(2048, 4096, 256))
        predictor = modules.BYOLPredictionHead(256, 4096, 256)
        views = (view(input_size=side) for view in (transforms.BYOLView1Transform, transforms.BYOLView2Transform))
        transform = transforms.BYOLTransform(*views)
    else:
        online = nn.Sequential(backbone, modules.SimSiamProjectionHead(2048, 2048, 2048))
        predictor = modules.SimSiamPredictionHead(2048, 512, 2048)
        transform = transforms.SimSiamTransform(input_size=side)
    online = online.to(memory_format=torch.channels_last)
    target = copy.deepcopy(online) if momentum else online
    if momentum:
        utils.deactivate_requires_grad(target)
    optimizer = torch.optim.SGD([*online.parameters(), *predictor.parameters()], 0.06, momentum=0.9)
    files = loader(split, transform, batch)
    while True:
        for images in files:
            first, second = (view.to(memory_format=torch.channels_last) for view in images)
            with device.autocast("auto", CPU):
                z0, z1 = online(first), online(second)
                p0, p1 = predictor(z0), predictor(z1)
                if momentum:
                    utils.update_momentum(online, target, m=0.99)
                    with torch.no_grad():
                        z0, z1 = target(first), target(second)
            similarity = criterion(p0.float(), z1.detach().float()) + criterion(p1.float(), z0.detach().float())
            (0.5 * similarity).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def ours(split, side, batch, momentum):
    """Run step `pretrain` of profile strong, without its probe."""
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


def rows(tiny):
    side, batch = (32, 4) if tiny else (128, 64)
    makers = (ours, lightly, original) if find_spec("lightly") else (ours, original)
    with tempfile.TemporaryDirectory() as folder:
        split = write_images(Path(folder), batch * 8, side)
        for momentum in (False, True):
            sides = {make.__name__: partial(next, make(split, side, batch, momentum)) for make in makers}
            case = {"px": side, "batch": batch, "target": "momentum" if momentum else "no momentum"}
            yield case | bench.row(bench.seconds(sides, 1 if tiny else 5), per=batch)


def main():
    bench.write_tables(__doc__, pretraining=("Pre-training from JPEG files, images per second", rows))


if __name__ == "__main__":
    main()
