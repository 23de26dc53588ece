"""How the demo's recipe was chosen: trials on folds of the training images alone. An hour or two.

    .venv/bin/python -m tests.benchmarks.recipe [--tiny]

Folds are whole blocks of the Earth, so that nothing held out has a neighbour in training; validation images take no
part. Problem 1 pre-trains once a trial and fine-tunes settings C and E on each fold, Problem 2 trains LR-ASPP on one
fold; all are scored at the last epoch. A second call goes on with the trials that are not in its table yet; delete
the table to begin anew. report/recipe.csv, which the demo's report shows, is a copy of its table.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hw1lib import paths, profiles
from hw1lib.data import layout
from hw1lib.data.sample import build as sample
from hw1lib.loops import device, finetune, pretrain, segment
from hw1lib.steps import store
from tests.benchmarks import bench

CPU = torch.device("cpu")
FOLDS = 3
TRIALS = {
    1: {
        "as it is": {},
        "more and larger batches": {"pretrain.epochs": 8, "pretrain.batch_size": 64, "pretrain.lr": 5e-4},
        "views that change colours": {"pretrain.views": "byol"},
        "smaller crops": {"pretrain.crop_scale": 0.08},
        "larger learning rate": {"pretrain.lr": 6e-4},
        "blocks not as identity": {"zero_init_residual": False},
    },
    2: {
        "as it is": {},
        "cross-entropy alone": {"lraspp.loss": "cross_entropy"},
        "classes weighed": {"lraspp.balance": 0.5},
        "half the learning rate": {"lraspp.lr": 1e-3},
        "tiles enlarged four times": {"lraspp.enlarge": 4, "lraspp.epochs": 8},
    },
}


def parted(groups, fold, folds):
    """Rows of one fold and of the others: whole groups, dealt out by their number."""
    held = np.unique(groups, return_inverse=True)[1] % folds == fold
    return np.flatnonzero(~held), np.flatnonzero(held)


def run(function, name, *arguments, **more):
    """The stored result of a step's function."""
    folder = Path(tempfile.mkdtemp(dir=run.folder))
    draft = store.Draft(name, folder)
    function(draft, *arguments, **more)
    return store.Result(draft.step, folder)


def problem1(data, profile, folds):
    """Accuracies of settings C and E on all that is held out once: {setting: share}."""
    whole, right = data.problem1, {"C": 0, "E": 0}
    pretrained = run(pretrain.self_supervised, "pretrain", whole, profile, CPU)
    for fold in range(folds):
        kept, held = (whole.train.part(rows) for rows in parted(whole.train.groups, fold, folds))
        part = dataclasses.replace(whole, train=kept, val=held)
        for setting in right:
            found = run(finetune.run, f"finetune-{setting}", part, profile, CPU, pretrained, setting=setting)
            right[setting] += found.metrics["correct_last"]
    return {setting: count / len(whole.train) for setting, count in right.items()}


def problem2(data, profile, folds):
    """mIoU of LR-ASPP on the first fold: {what: mIoU}."""
    tiles = data.problem2.train
    kept, held = (
        dataclasses.replace(tiles, numbers=tuple(tiles.numbers[at] for at in rows), groups=tiles.groups[rows])
        for rows in parted(tiles.groups, 0, max(2, folds))
    )
    shown = dataclasses.replace(profile.segmentation, stage_images=held.numbers[:1])
    profile = dataclasses.replace(profile, segmentation=shown)
    found = run(segment.run, "segment-lraspp", layout.Problem2(kept, held), profile, CPU, name="lraspp").metrics
    return {"mIoU": found["miou_last"], "mIoU with TTA": found["tta"]["miou_last"]}


def main():
    tiny = bench.arguments(__doc__)
    device.set_up(CPU)
    root, kept = sample.build(paths.EARTH), bench.OUT / "recipe.csv"
    rows = [] if tiny or not kept.exists() else pd.read_csv(kept).fillna("").to_dict("records")
    done = {(row["problem"], row["trial"]) for row in rows}
    for problem, trials in TRIALS.items():
        for name, settings in list(trials.items())[: 1 if tiny else None]:
            if (problem, name) in done:
                continue
            started = time.time()
            profile = profiles.get("smoke" if tiny else "demo", settings)
            with tempfile.TemporaryDirectory() as run.folder:
                data = layout.find(root, profile.data, decoded=Path(run.folder) / "decoded")
                scores = {1: problem1, 2: problem2}[problem](data, profile, 1 if tiny else FOLDS)
            changed = ", ".join(f"{setting} = {value}" for setting, value in settings.items())
            for of, score in scores.items():
                cells = {"problem": problem, "trial": name, "settings": changed, "of": of, "score": round(score, 4)}
                rows.append(cells | {"folds": 1 if problem == 2 else FOLDS, "seeds": 1})
            rows[-1]["minutes"] = round((time.time() - started) / 60, 1)
            bench.keep("recipe", "Trials of the demo's recipe on folds of training blocks", rows)


if __name__ == "__main__":
    main()
