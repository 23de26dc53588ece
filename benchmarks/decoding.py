"""Decoding: 10,000 JPEG files into batches, ours against a DataLoader of PIL images with two workers; and memory.

.venv/bin/python -m benchmarks.decoding [--tiny]
"""

import dataclasses
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks import bench
from benchmarks.pretraining import Files, write_images
from hw1lib import profiles
from hw1lib.data import images, landcover, layout
from hw1lib.data.check import findings
from hw1lib.loops import pretrain, train_segmenter

CPU = torch.device("cpu")
SIZES = ((84, 128), (128, 128), (400, 128), (500, 224))  # side of the files, side that is wanted


def usual(split, size):
    """One epoch of what everybody writes."""
    resize = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    for _ in DataLoader(Files(split.paths, resize), 64, num_workers=2):
        pass


def ours(split, size):
    """Decoding into the array on disk."""
    shutil.rmtree(split.decoded, ignore_errors=True)
    images.load(split, size)


def again(split, size):
    """A second run, which finds that array; all of it is read."""
    return int(images.load(split, size).max())


def speed(count):
    for side, size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            split = write_images(Path(folder), count, side)
            split = dataclasses.replace(split, decoded=Path(folder) / "decoded")
            sides = {
                "ours": lambda: ours(split, size),
                "DataLoader": lambda: usual(split, size),
                "a second run": lambda: again(split, size),
            }
            found = bench.seconds(sides, repetitions=3, warm=0)
            yield {"files": f"{side} px", "wanted": f"{size} px", "images": count} | bench.row(found, per=count)


def write_tiles(folder, count, side):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 7, (8, 8), dtype=np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
        ground = random.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(ground).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:04d}_sat.jpg", quality=90)
        Image.fromarray(landcover.encode(coarse)).save(folder / f"{number:04d}_mask.png")


def memory(pool, tiles):
    """Peak memory of a new process, in MB: nothing, the check, the pool's batches, the tiles' batches."""
    profile = profiles.get("strong")

    def pool_of(decoded):
        split = dataclasses.replace(pool, decoded=decoded)
        next(iter(pretrain.pool_batches(split, profile, profile.pretrain, CPU)(1)))

    def tiles_of(decoded):
        arrays = images.load_tiles(dataclasses.replace(tiles, decoded=decoded))
        next(iter(train_segmenter.training_batches(*arrays, profile, profile.lraspp, CPU)(1)))

    with tempfile.TemporaryDirectory() as folder:
        yield {"process": "imports alone", "MB": round(bench.alone(int)[1])}
        check = partial(findings.problem2, tiles.folder.parent, False)
        yield {"process": f"data check of {len(tiles)} tiles", "MB": round(bench.alone(check)[1])}
        for about, run, count in (("pool", pool_of, len(pool)), ("tiles", tiles_of, len(tiles))):
            for turn in ("decoding", "second run"):
                yield {"process": f"{about}, {count} images, {turn}", "MB": round(bench.alone(run, Path(folder))[1])}


def main():
    tiny = bench.arguments(__doc__)
    bench.keep("decoding", "Decoding, images a second", list(speed(20 if tiny else 10_000)))
    pool_count, tile_count, side = (300, 8, 64) if tiny else (38_400, 2_000, 512)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pool").mkdir()
        pool = write_images(root / "pool", pool_count, 32 if tiny else 128)
        for split in ("train", "validation"):
            write_tiles(root / "p2_data" / split, tile_count if split == "train" else max(8, tile_count // 8), side)
        tiles = layout.find(root, profiles.get("strong").data).problem2.train
        bench.keep("memory", "Peak memory, counts and sizes of the course", list(memory(pool, tiles)))


if __name__ == "__main__":
    main()
