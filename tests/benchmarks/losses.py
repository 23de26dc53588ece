"""Which loss trains land-cover segmentation best? `python -m tests.benchmarks.losses`; 20 minutes or more.

The demo's LR-ASPP, trained on the Earth sample's training tiles without one fold, is scored at its
last epoch on that fold: whole blocks of the Earth, so that no tile has a neighbour in training.
The validation tiles take no part. Prints mIoU in percent, mean over the seeds.
"""

import csv
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch

from hw1lib import paths, profiles
from hw1lib.data import layout
from hw1lib.data.layout import Problem2, Tiles
from hw1lib.data.sample import build as sample
from hw1lib.loops import segment
from hw1lib.steps import store

SEEDS = (0,)
BLOCK, FOLDS = 512, 5  # pixels of the Earth's image; one fold of so many is held out
CHOICES = {
    "cross-entropy": {"loss": "cross_entropy"},
    "cross-entropy, classes weighed": {"loss": "cross_entropy", "balance": 0.5},
    "cross-entropy + Lovász": {"loss": "lovasz"},
}


def fold(tiles, root):
    """The training tiles without one fold, and that fold."""
    with open(root / "windows.csv", encoding="utf-8") as file:
        places = {row["filename"]: row for row in csv.DictReader(file) if row["split"] == "p2_data/train"}

    def held(number):
        place = places[f"{number}_sat.jpg"]
        row, column = (int(place[side]) // BLOCK for side in ("top", "left"))
        return (3 * row + column) % FOLDS == 0

    parts = [tuple(n for n in tiles.numbers if held(n) is out) for out in (False, True)]
    return Problem2(*(Tiles(tiles.folder, part) for part in parts))


def score(problem2, settings, seed):
    """mIoU at the last epoch, without and with TTA."""
    demo = profiles.get("demo")
    shown = dataclasses.replace(demo.segmentation, stage_images=problem2.validation.numbers[:1])
    lraspp = dataclasses.replace(demo.lraspp, tta=True, **settings)
    profile = dataclasses.replace(demo, seed=seed, segmentation=shown, lraspp=lraspp)
    with tempfile.TemporaryDirectory() as folder:
        draft = store.Draft("segment-lraspp", Path(folder))
        segment.run(draft, problem2, profile, torch.device("cpu"), name="lraspp")
        numbers = store.Result(draft.step, folder).metrics
    return numbers["miou_last"], numbers["tta"]["miou_last"]


def main():
    root = sample.build(paths.EARTH)
    problem2 = fold(layout.find(root, profiles.get("demo").data).problem2.train, root)
    print(f"{len(problem2.train)} tiles to train on, {len(problem2.validation)} held out\n")
    rows = []
    for name, settings in CHOICES.items():
        found = 100 * np.array([score(problem2, settings, seed) for seed in SEEDS])
        single = " and ".join(f"{value:.1f}" for value in found[:, 0])
        plain, tta = found.mean(axis=0)
        rows.append(f"| {name} | {single} | {plain:.1f} | {tta:.1f} |")
    print("\n| loss | each seed | mean | with TTA |\n| :--- | ---: | ---: | ---: |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
