"""The search for the demo's recipe: trials on folds of the training images. Takes an hour or two.

    .venv/bin/python -m benchmarks.recipe [--tiny]

Folds are whole blocks of the Earth, so that few held-out images have a neighbour in training (only at the edges of
blocks, the same in each trial). Validation images are not used. For Problem 1 a trial pre-trains once and
fine-tunes settings C and E on the folds of control-simple; for Problem 2 it trains LR-ASPP with a fifth of the blocks
held out. Scores are from the last epoch. A second call runs the trials that the table lacks; delete the table to start
again. report/recipe.csv, which the demo's report shows, is a copy of the table.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks import bench
from benchmarks.bench import CPU
from hw1lib import paths, profiles
from hw1lib.data import earth, layout
from hw1lib.loops import controls, finetune, pretrain, train_segmenter
from hw1lib.steps import store

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
        "as it was": {"lraspp.lr": 2e-3},
        "cross-entropy alone": {"lraspp.lr": 2e-3, "lraspp.loss": "cross_entropy"},
        "classes weighed": {"lraspp.lr": 2e-3, "lraspp.balance": 0.5},
        "half the learning rate": {"lraspp.lr": 1e-3},
        "both": {"lraspp.lr": 1e-3, "lraspp.loss": "cross_entropy"},
        "tiles enlarged four times": {"lraspp.lr": 2e-3, "lraspp.enlarge": 4, "lraspp.epochs": 5},
        "the same, longer": {"lraspp.lr": 2e-3, "lraspp.enlarge": 4, "lraspp.epochs": 8},
        "the same, half the rate": {"lraspp.lr": 1e-3, "lraspp.enlarge": 4, "lraspp.epochs": 5},
    },
}


def run(function, step, *arguments, **more):
    """Run a step's function and return its stored result."""
    folder = Path(tempfile.mkdtemp(dir=run.folder))
    draft = store.Draft(step, folder)
    function(draft, *arguments, **more)
    return store.Result(draft.step, folder)


def problem1(data, profile, folds):
    """Return the mean accuracies of settings C and E over the folds."""
    whole, accuracies = data.problem1, {"C": [], "E": []}
    pretrained = run(pretrain.self_supervised, "pretrain", whole, profile, CPU)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for rows in splitter.split(np.zeros(len(whole.train)), whole.train.labels, whole.train.groups):
        kept, held = map(whole.train.part, rows)
        part = dataclasses.replace(whole, train=kept, val=held)
        for setting, values in accuracies.items():
            result = run(finetune.run, f"finetune-{setting}", part, profile, CPU, pretrained, setting=setting)
            values.append(result.metrics["accuracy_last"])
    return {setting: float(np.mean(values)) for setting, values in accuracies.items()}


def problem2(data, profile, folds):
    """Return the mIoU of LR-ASPP, with and without TTA, on the blocks that are held out, one in `folds`."""
    tiles = data.problem2.train
    held_out = np.unique(tiles.groups, return_inverse=True)[1] % folds == 0
    kept, held = (
        dataclasses.replace(tiles, numbers=tuple(tiles.numbers[at] for at in rows), groups=tiles.groups[rows])
        for rows in (np.flatnonzero(~held_out), np.flatnonzero(held_out))
    )
    segmentation = profile.segmentation.model_copy(update={"stage_images": held.numbers[:1]})
    profile = profile.model_copy(update={"segmentation": segmentation})
    result = run(train_segmenter.run, "segment-lraspp", layout.Problem2(kept, held), profile, CPU, name="lraspp")
    return {"mIoU": result.metrics["miou_last"], "mIoU with TTA": result.metrics["tta"]["miou_last"]}


def rows(tiny):
    root, table = earth.build(paths.EARTH), bench.OUT / "recipe.csv"
    previous = [] if tiny or not table.exists() else pd.read_csv(table, keep_default_na=False).to_dict("records")
    yield from previous
    done = {(row["problem"], row["trial"]) for row in previous}
    for problem, trials in TRIALS.items():
        for name, settings in list(trials.items())[: 1 if tiny else None]:
            if (problem, name) in done:
                continue
            start = time.time()
            profile = profiles.get("smoke" if tiny else "demo", settings)
            with tempfile.TemporaryDirectory() as run.folder:
                data = layout.find(root, profile.data, decoded=Path(run.folder) / "decoded")
                scores = {1: problem1, 2: problem2}[problem](data, profile, 2 if tiny else controls.FOLDS)
            minutes = [""] * (len(scores) - 1) + [round((time.time() - start) / 60, 1)]
            changes = ", ".join(f"{setting} = {value}" for setting, value in settings.items())
            for (metric, score), taken in zip(scores.items(), minutes):
                row = {"problem": problem, "trial": name, "settings": changes, "of": metric, "score": round(score, 4)}
                yield row | {"folds": 1 if problem == 2 else controls.FOLDS, "seeds": 1, "minutes": taken}


def main():
    bench.write_tables(__doc__, recipe=("Trials of the demo's recipe on folds of training blocks", rows))


if __name__ == "__main__":
    main()
