"""Decoding: JPEG files into batches, ours against a DataLoader of PIL images with two workers; and peak memory.

.venv/bin/python -m benchmarks.decoding [--tiny]
"""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks import bench
from benchmarks.bench import CPU
from benchmarks.pretraining import Files, write_images
from hw1lib import profiles
from hw1lib.data import images, landcover, layout
from hw1lib.data.check import doctor
from hw1lib.loops import pretrain, train_segmenter

SIZES = ((84, 128), (128, 128), (400, 128), (500, 224))  # side of the files, side of the images


def data_loader(split, size):
    """Run one epoch of a plain DataLoader."""
    resize = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    for _ in DataLoader(Files(split.paths, resize), 64, num_workers=2):
        pass


def decode(split, size):
    """Decode into the array on disk."""
    shutil.rmtree(split.decoded, ignore_errors=True)
    images.load(split, size)


def speed(tiny):
    count = 20 if tiny else 10_000
    for side, size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            split = write_images(Path(folder), count, side)
            sides = {
                "ours": lambda: decode(split, size),
                "DataLoader": lambda: data_loader(split, size),
                "a second run": lambda: images.load(split, size).max(),  # reads all of the array
            }
            times = bench.seconds(sides, repetitions=3, warm=0)
            yield {"files": f"{side} px", "wanted": f"{size} px", "images": count} | bench.row(times, per=count)


def write_tiles(folder, count, side):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 7, (8, 8), dtype=np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
        ground = random.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(ground).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:04d}_sat.jpg", quality=90)
        Image.fromarray(landcover.encode(coarse)).save(folder / f"{number:04d}_mask.png")


def memory(tiny):
    """Measure the peak memory of new processes at the counts and sizes of the course."""
    pool_count, tile_count, side = (300, 8, 64) if tiny else (38_400, 2_000, 512)
    profile = profiles.get("strong")

    def load_pool():
        next(iter(pretrain.pool_batches(pool, profile, profile.pretrain, CPU)(1)))

    def load_tiles():
        next(iter(train_segmenter.training_batches(*images.load_tiles(tiles), profile, profile.lraspp, CPU)(1)))

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pool = write_images(root / "pool", pool_count, 32 if tiny else 128)
        write_tiles(root / "p2_data" / "train", tile_count, side)
        write_tiles(root / "p2_data" / "validation", max(8, tile_count // 8), side)
        tiles = layout.find(root, profile.data, decoded=root / "decoded").problem2.train
        check = partial(doctor.problem2, tiles.folder.parent, False)
        steps = {"imports alone": int, f"data check of {tile_count} tiles": check}
        steps |= {f"pool, {pool_count} images, {turn}": load_pool for turn in ("decoding", "second run")}
        steps |= {f"tiles, {tile_count} images, {turn}": load_tiles for turn in ("decoding", "second run")}
        for name, run in steps.items():
            yield {"process": name, "MB": round(bench.in_new_process(run)[1])}


def main():
    bench.write_tables(
        __doc__, decoding=("Decoding, images per second", speed), memory=("Peak memory, at the course's sizes", memory)
    )


if __name__ == "__main__":
    main()
