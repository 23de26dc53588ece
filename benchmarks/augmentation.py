"""Draw BYOL's first view of each image: ours, kornia's and torchvision's; images per second.

.venv/bin/python -m benchmarks.augmentation [--tiny]; kornia is only measured if it is installed.
"""

from functools import partial
from importlib.util import find_spec

import torch
from torchvision.transforms import v2

from benchmarks import bench
from hw1lib.loops import augment
from hw1lib.settings import Pretrain


def ours(size):
    view, _ = augment.two_views(size, Pretrain(views="byol"), overhead=False)
    return view


def torchvision(size):
    one = v2.Compose([
        v2.RandomResizedCrop(size, (0.2, 1.0), (3 / 4, 4 / 3), antialias=False),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
        v2.RandomGrayscale(0.2),
        v2.GaussianBlur(2 * max(1, size // 20) + 1, (0.1, 2.0)),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(augment.MEAN, augment.STD),
    ])  # fmt: skip
    return lambda images: torch.stack([one(image) for image in images])


def kornia(size):
    import kornia.augmentation as k

    transform = k.AugmentationSequential(
        k.RandomResizedCrop((size, size), (0.2, 1.0), (3 / 4, 4 / 3)),
        k.RandomHorizontalFlip(),
        k.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        k.RandomGrayscale(p=0.2),
        k.RandomGaussianBlur((2 * max(1, size // 20) + 1,) * 2, (0.1, 2.0), p=1.0),
        k.Normalize(torch.tensor(augment.MEAN), torch.tensor(augment.STD)),
        same_on_batch=False,
    )
    return lambda images: transform(images.float() / 255)


def rows(tiny):
    batch = 4 if tiny else 128
    for size in (32, 128):
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        makers = (ours, kornia, torchvision) if find_spec("kornia") else (ours, torchvision)
        sides = {make.__name__: partial(make(size), images) for make in makers}
        yield {"px": size} | bench.row(bench.seconds(sides, 1 if tiny else 5), per=batch)


def main():
    bench.write_tables(__doc__, augmentation=("Augmentation, images per second", rows))


if __name__ == "__main__":
    main()
