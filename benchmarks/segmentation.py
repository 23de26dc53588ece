"""Segmentation at the course's size: training steps and validation, ours against a plain torchvision loop.

.venv/bin/python -m benchmarks.segmentation [--tiny]

Both loops train the same network on the same tiles with cross-entropy and Adam. The plain one follows torchvision's
references: a DataLoader with two workers, transforms of one image at a time, float32.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.models import vgg16
from torchvision.models.segmentation import deeplabv3_resnet101, lraspp_mobilenet_v3_large
from torchvision.transforms import v2

from benchmarks import bench
from benchmarks.bench import CPU
from hw1lib import profiles
from hw1lib.data.landcover import UNKNOWN
from hw1lib.loops import augment, device, losses, train_segmenter
from hw1lib.metrics import iou
from hw1lib.models import segmenters

PLAIN = {
    "fcn32s": lambda: segmenters.VGG16_FCN32s(vgg16(weights=None).features),
    "lraspp": partial(lraspp_mobilenet_v3_large, weights_backbone=None, num_classes=7),
    "deeplabv3": partial(deeplabv3_resnet101, weights_backbone=None, num_classes=7, aux_loss=False),
}


class Plain(Dataset):
    """Tiles transformed one by one with torchvision."""

    def __init__(self, images, masks, train):
        self.images, self.masks = images, masks
        flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.ColorJitter(0.2, 0.2, 0.2, 0.02)]
        self.augmentation = v2.Compose(flips if train else [v2.Identity()])
        to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(augment.MEAN, augment.STD)]
        self.normalise = v2.Compose(to_float)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, mask = tv_tensors.Image(self.images[index]), tv_tensors.Mask(self.masks[index])
        image, mask = self.augmentation(image, mask)
        return self.normalise(image), mask.long()


def plain_scores(network, images):
    out = network(images)
    return out["out"] if isinstance(out, dict) else out


def plain_training(network, images, masks, batch):
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    tiles = Plain(images, masks, True)
    while True:
        network.train()
        for inputs, labels in DataLoader(tiles, batch, shuffle=True, drop_last=True, num_workers=2):
            loss = F.cross_entropy(plain_scores(network, inputs), labels, ignore_index=UNKNOWN)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


@torch.no_grad()
def plain_validation(network, images, masks, batch):
    network.eval()
    matrix = torch.zeros(7, 7, dtype=torch.int64)
    for inputs, labels in DataLoader(Plain(images, masks, False), batch, num_workers=2):
        predicted = plain_scores(network, inputs).argmax(1)
        matrix += torch.bincount((labels * 7 + predicted).flatten(), minlength=49).view(7, 7)
    return matrix


def our_training(network, images, masks, profile, settings):
    batches = train_segmenter.training_batches(images, masks, profile, settings, CPU)
    network.train()

    def loss(network, tiles, labels):
        return losses.segmentation(segmenters.scores(network, tiles), labels)

    yield from bench.training_steps(network, loss, batches, settings)


def our_validation(network, images, masks, settings):
    network.eval()
    with torch.no_grad(), device.autocast(settings.precision, CPU):
        predicted = train_segmenter.predict(network, images, CPU, settings)
    return iou.confusion(masks, predicted)


def rows(tiny, validation):
    """Measure training steps, or whole validations."""
    side, batch, repetitions = (64, 2, 1) if tiny else (512, 2, 3)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 3, side, side), dtype=np.uint8)
    masks = random.integers(0, 7, (8, side // 32, side // 32), dtype=np.uint8).repeat(32, 1).repeat(32, 2)
    for name in segmenters.SEGMENTERS:
        network = segmenters.build(name, 0.1 if tiny else 1).to(memory_format=torch.channels_last)
        other = segmenters.build(name, 0.1) if tiny else PLAIN[name]()
        for precision in ("float32", "auto"):
            changes = {"batch_size": batch, "pretrained": False, "augmentation": "batched", "precision": precision}
            profile = profiles.get("seed", {f"{name}.{setting}": value for setting, value in changes.items()})
            settings = getattr(profile, name)
            if validation:
                sides = {
                    "ours": partial(our_validation, network, images, masks, settings),
                    "plain": partial(plain_validation, other, images, masks, batch),
                }
            else:
                sides = {
                    "ours": partial(next, our_training(network, images, masks, profile, settings)),
                    "plain": partial(next, plain_training(other, images, masks, batch)),
                }
            times = bench.seconds(sides, repetitions)
            case = {"network": name, "px": side, "precision of ours": precision}
            yield case | bench.row(times, per=len(images) if validation else batch)


def main():
    bench.write_tables(
        __doc__,
        segmentation_training=("Segmentation, training, images per second", partial(rows, validation=False)),
        segmentation_validation=("Segmentation, validation, images per second", partial(rows, validation=True)),
    )


if __name__ == "__main__":
    main()
