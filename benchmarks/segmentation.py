"""Segmentation at the course's size: whole training steps and validation, ours against a plain torchvision loop.

    .venv/bin/python -m benchmarks.segmentation [--tiny]

Both train the same network from the same tiles with cross-entropy and Adam. The plain loop is what torchvision's
references do, in float32: a DataLoader of two workers, transforms of one image at a time, float32.
"""

import statistics
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
from hw1lib import profiles
from hw1lib.data.landcover import UNKNOWN
from hw1lib.loops import augment, device, losses, train_segmenter
from hw1lib.metrics import iou
from hw1lib.models import segmenters

CPU = torch.device("cpu")


class Plain(Dataset):
    """Tiles through torchvision's transforms, one by one."""

    def __init__(self, images, masks, train):
        self.images, self.masks = images, masks
        flips = (
            [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.ColorJitter(0.2, 0.2, 0.2, 0.02)] if train else []
        )
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(augment.MEAN, augment.STD)]
        self.image_and_mask = v2.Compose(flips or [v2.Identity()])
        self.scale = v2.Compose(scale)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, mask = tv_tensors.Image(self.images[index]), tv_tensors.Mask(self.masks[index])
        image, mask = self.image_and_mask(image, mask)
        return self.scale(image), mask.long()


def plain_network(name):
    torch.manual_seed(0)
    if name == "fcn32s":
        return segmenters.VGG16_FCN32s(vgg16(weights=None).features)
    build = {"lraspp": lraspp_mobilenet_v3_large, "deeplabv3": deeplabv3_resnet101}[name]
    return build(
        weights=None, weights_backbone=None, num_classes=7, **({"aux_loss": False} if name == "deeplabv3" else {})
    )


def plain_scores(network, images):
    out = network(images)
    return out["out"] if isinstance(out, dict) else out


def plain_training(network, images, masks, batch):
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    network.train()
    while True:
        for tiles, labels in DataLoader(Plain(images, masks, True), batch, shuffle=True, drop_last=True, num_workers=2):
            loss = F.cross_entropy(plain_scores(network, tiles), labels, ignore_index=UNKNOWN)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


@torch.no_grad()
def plain_validation(network, images, masks, batch):
    network.eval()
    matrix = torch.zeros(7, 7, dtype=torch.int64)
    for tiles, labels in DataLoader(Plain(images, masks, False), batch, num_workers=2):
        predicted = plain_scores(network, tiles).argmax(1)
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
    return iou.history_row(1, masks, predicted)


def forward_alone(network, batch, side, precision):
    """What no validation can do without: the network on a batch."""
    images = torch.randn(batch, 3, side, side)
    network.eval()
    with torch.no_grad(), device.autocast(precision, CPU):
        return segmenters.scores(network, images)


def main():
    tiny = bench.arguments(__doc__)
    side, batch, count = (64, 2, 1) if tiny else (512, 2, 3)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (max(8, 2 * batch), 3, side, side), dtype=np.uint8)
    masks = random.integers(0, 7, (len(images), side // 32, side // 32), dtype=np.uint8).repeat(32, 1).repeat(32, 2)
    device.set_up(CPU)
    training_rows, validation_rows = [], []
    for name in segmenters.SEGMENTERS:
        changes = {f"{name}.batch_size": batch, f"{name}.pretrained": False, f"{name}.augmentation": "batched"}
        profile = profiles.get("seed", changes)
        settings = getattr(profile, name)
        network = segmenters.build(name, 0.1 if tiny else 1).to(memory_format=torch.channels_last)
        other = segmenters.build(name, 0.1) if tiny else plain_network(name)
        for precision in ("float32", "auto"):
            profile = profiles.get("seed", changes | {f"{name}.precision": precision})
            settings = getattr(profile, name)
            case = {"network": name, "px": side, "precision of ours": precision}
            sides = {
                "ours": partial(next, our_training(network, images, masks, profile, settings)),
                "plain": partial(next, plain_training(other, images, masks, batch)),
            }
            found = bench.seconds(sides, repetitions=count)
            training_rows.append(case | bench.row(found, per=batch))
            sides = {
                "ours": lambda: our_validation(network, images, masks, settings),
                "plain": lambda: plain_validation(other, images, masks, batch),
                "forward alone": lambda: [
                    forward_alone(network, batch, side, precision) for _ in range(0, len(images), batch)
                ],
            }
            found = bench.seconds(sides, repetitions=count)
            forward = statistics.median(found.pop("forward alone")) / statistics.median(found["ours"])
            validation_rows.append(
                case | bench.row(found, per=len(images)) | {"forward pass": f"{100 * forward:.0f} %"}
            )
            print(training_rows[-1], validation_rows[-1], flush=True)
    bench.keep(
        "segmentation_training", f"Segmentation, training, images a second at {side} px, batch {batch}", training_rows
    )
    bench.keep("segmentation_validation", f"Segmentation, validation, images a second at {side} px", validation_rows)


if __name__ == "__main__":
    main()
