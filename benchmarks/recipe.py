"""How the demo's recipe was chosen: trials on folds of the training images alone. An hour or two.

    .venv/bin/python -m benchmarks.recipe [--tiny]

Folds are whole blocks of the Earth, so that next to nothing held out has a neighbour in training (blocks of tiles touch
at their edges, the same ones in each trial); validation images take no part. Problem 1 pre-trains once a trial and
fine-tunes settings C and E on the folds that control-simple chooses on, too; Problem 2 trains LR-ASPP with a fifth of
the blocks held out. All are scored at the last epoch. A second call goes on with the trials that are not in its table
yet; delete the table to begin anew. report/recipe.csv, which the demo's report shows, is a copy of it.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks import bench
from hw1lib import paths, profiles
from hw1lib.data import earth, layout
from hw1lib.loops import controls, device, finetune, pretrain, train_segmenter
from hw1lib.steps import store

CPU = torch.device("cpu")
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
    """The stored result of a step's function."""
    folder = Path(tempfile.mkdtemp(dir=run.folder))
    draft = store.Draft(step, folder)
    function(draft, *arguments, **more)
    return store.Result(draft.step, folder)


def problem1(data, profile, folds):
    """Accuracies of settings C and E, the mean over the folds: {setting: share}."""
    whole, found = data.problem1, {"C": [], "E": []}
    pretrained = run(pretrain.self_supervised, "pretrain", whole, profile, CPU)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for rows in splitter.split(np.zeros(len(whole.train)), whole.train.labels, whole.train.groups):
        kept, held = map(whole.train.part, rows)
        part = dataclasses.replace(whole, train=kept, val=held)
        for setting, shares in found.items():
            result = run(finetune.run, f"finetune-{setting}", part, profile, CPU, pretrained, setting=setting)
            shares.append(result.metrics["accuracy_last"])
    return {setting: float(np.mean(shares)) for setting, shares in found.items()}


def problem2(data, profile, folds):
    """mIoU of LR-ASPP on one part of so many, whole blocks: {what: mIoU}."""
    tiles = data.problem2.train
    out = np.unique(tiles.groups, return_inverse=True)[1] % folds == 0
    kept, held = (
        dataclasses.replace(tiles, numbers=tuple(tiles.numbers[at] for at in rows), groups=tiles.groups[rows])
        for rows in (np.flatnonzero(~out), np.flatnonzero(out))
    )
    shown = profile.segmentation.model_copy(update={"stage_images": held.numbers[:1]})
    profile = profile.model_copy(update={"segmentation": shown})
    found = run(train_segmenter.run, "segment-lraspp", layout.Problem2(kept, held), profile, CPU, name="lraspp").metrics
    return {"mIoU": found["miou_last"], "mIoU with TTA": found["tta"]["miou_last"]}


def main():
    tiny = bench.arguments(__doc__)
    device.set_up(CPU)
    root, kept = earth.build(paths.EARTH), bench.OUT / "recipe.csv"
    rows = [] if tiny or not kept.exists() else pd.read_csv(kept, keep_default_na=False).to_dict("records")
    done = {(row["problem"], row["trial"]) for row in rows}
    for problem, trials in TRIALS.items():
        for name, settings in list(trials.items())[: 1 if tiny else None]:
            if (problem, name) in done:
                continue
            started = time.time()
            profile = profiles.get("smoke" if tiny else "demo", settings)
            with tempfile.TemporaryDirectory() as run.folder:
                data = layout.find(root, profile.data, decoded=Path(run.folder) / "decoded")
                scores = {1: problem1, 2: problem2}[problem](data, profile, 2 if tiny else controls.FOLDS)
            changed = ", ".join(f"{setting} = {value}" for setting, value in settings.items())
            for of, score in scores.items():
                cells = {"problem": problem, "trial": name, "settings": changed, "of": of, "score": round(score, 4)}
                rows.append(cells | {"folds": 1 if problem == 2 else controls.FOLDS, "seeds": 1})
            rows[-1]["minutes"] = round((time.time() - started) / 60, 1)
            bench.keep(
                "recipe_tiny" if tiny else "recipe", "Trials of the demo's recipe on folds of training blocks", rows
            )


if __name__ == "__main__":
    main()
