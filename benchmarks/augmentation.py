"""How fast BYOL's first view is drawn for each image by itself: ours, kornia's, torchvision's.

    .venv/bin/python -m benchmarks.augmentation

kornia is no requirement of the project; `pip install kornia` adds its line to the table.
"""

import time

import torch
from torchvision.transforms import v2

from hw1lib.loops import augment
from hw1lib.settings import Pretrain

BATCH, ROUNDS = 128, 5


def ours(size):
    view, _ = augment.two_views(size, Pretrain(views="byol"), overhead=False)
    return view


def torchvision(size):
    radius = max(1, size // 20)
    one = v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.2, 1.0), (3 / 4, 4 / 3), antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.GaussianBlur(2 * radius + 1, (0.1, 2.0)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(augment.MEAN, augment.STD),
        ]
    )
    return lambda images: torch.stack([one(image) for image in images])


def kornia(size):
    import kornia.augmentation as k

    radius = max(1, size // 20)
    draw = k.AugmentationSequential(
        k.RandomResizedCrop((size, size), (0.2, 1.0), (3 / 4, 4 / 3)),
        k.RandomHorizontalFlip(),
        k.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        k.RandomGrayscale(p=0.2),
        k.RandomGaussianBlur((2 * radius + 1,) * 2, (0.1, 2.0), p=1.0),
        k.Normalize(torch.tensor(augment.MEAN), torch.tensor(augment.STD)),
        same_on_batch=False,
    )
    return lambda images: draw(images.float() / 255)


def rate(draw, size):
    """Images a second, the best of some rounds."""
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
    draw(images)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        draw(images)
        seconds.append(time.perf_counter() - started)
    return BATCH / min(seconds)


def main():
    print(f"{'images a second':<16}" + "".join(f"{size:>6} px" for size in (32, 128)))
    for make in (ours, kornia, torchvision):
        try:
            rates = [rate(make(size), size) for size in (32, 128)]
        except ImportError:
            print(f"{make.__name__:<16} not installed")
            continue
        print(f"{make.__name__:<16}" + "".join(f"{r:>9,.0f}" for r in rates))


if __name__ == "__main__":
    main()
