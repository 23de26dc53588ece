"""Step `control-simple`: the best classifier of colour and texture that training images choose; no network."""

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import local_binary_pattern
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from hw1lib.loops.features import colour_statistics
from hw1lib.loops.finetune import finish, pixels_of

FOLDS = 5
SCALES = (1, 2, 4)  # pixels that detail is measured over
UNCHOSEN = "logistic regression (C = 1) on colour mean and deviation"
INPUTS = {"colour mean and deviation": 6, "colour and texture": None}  # how many of the measures are used


def run(draft, problem1, profile, *_):
    """Measure both splits, let folds of the training images choose, then predict the validation images once.

    Where there are too few images for folds, UNCHOSEN predicts.
    """
    train, val = map(measures, pixels_of(problem1, profile))
    labels, groups = problem1.train.labels, problem1.train.groups
    groups = np.arange(len(labels)) if groups is None else groups
    folds = _folds(train, labels, groups)
    models = {
        f"{kind} on {inputs}": (model, count)
        for inputs, count in INPUTS.items()
        for kind, model in candidates().items()
    }
    with threadpool_limits(1):  # twice as quick for so few images
        scores = {
            name: float(cross_val_score(model, train[:, :count], labels, cv=folds).mean())
            for name, (model, count) in (models if folds else {}).items()
        }
    best = max(scores, key=scores.get) if scores else UNCHOSEN
    model, count = models[best]
    predicted = model.fit(train[:, :count], labels).predict(val[:, :count])
    finish(draft, [{"epoch": 0, "predictions": predicted.tolist()}], problem1, model=best, folds=scores)


def _folds(images, labels, groups):
    """Stratified folds that keep groups together, but for those whose training part has one class; may be empty."""
    sizes, places = np.bincount(labels), len(np.unique(groups))
    parts = max(2, min(FOLDS, sizes.min(), places))
    if max(sizes) < parts or places < parts:
        return []
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=0).split(images, labels, groups)
    return [(train, test) for train, test in folds if len(np.unique(labels[train])) > 1 and len(test)]


def candidates():
    """Untrained classifiers of scikit-learn, by what they are called."""
    found = {"gradient boosting": HistGradientBoostingClassifier(max_iter=60, random_state=0)}
    for c in (1, 10, 100, 1000):
        regression, support = LogisticRegression(C=c, max_iter=5000), SVC(C=c)
        found[f"logistic regression (C = {c})"] = make_pipeline(StandardScaler(), regression)
        found[f"support vectors (C = {c})"] = make_pipeline(StandardScaler(), support)
    return found


def measures(images):
    """Colour and texture of images: (N, 3, S, S) uint8 tensor -> (N, 34) float32.

    Mean, deviation, and three percentiles of each channel; how much neighbours differ at three scales; how often each
    of ten uniform local binary patterns occurs (Ojala et al. 2002).
    """
    return np.concatenate([_measures(part) for part in images.split(256)])


def _measures(images):
    pixels = images.float() / 255
    ranks = torch.tensor([0.1, 0.5, 0.9])
    found = [colour_statistics(images), *pixels.flatten(2).quantile(ranks, dim=2)]
    for scale in SCALES:
        coarse = F.avg_pool2d(pixels, scale)
        steps = coarse.diff(dim=2).abs().mean(dim=(2, 3)) + coarse.diff(dim=3).abs().mean(dim=(2, 3))
        found.append(steps)  # (N, 3)
    gray = images.float().mean(dim=1).round().byte().numpy()
    patterns = [
        np.bincount(local_binary_pattern(one, 8, 1, "uniform").astype(int).ravel(), minlength=10) for one in gray
    ]
    return np.float32(np.concatenate([*found, np.array(patterns) / gray[0].size], axis=1))
