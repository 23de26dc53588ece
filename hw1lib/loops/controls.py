"""Controls that settings A–E must beat: k-NN on frozen features, colour, and simple classifiers."""

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

from hw1lib.loops import classification, features, loop
from hw1lib.loops.checkpoint import Checkpoint
from hw1lib.loops.seeds import seed_everything
from hw1lib.models import resnet

FOLDS = 5
SCALES = (1, 2, 4)  # distances in pixels over which texture is measured
DEFAULT_MODEL = "logistic regression (C = 1) on colour mean and deviation"
INPUTS = {"colour mean and deviation": 6, "colour and texture": None}  # leading columns of `measures`; None: all


def _save(draft, predicted, problem1, **more):
    """Save the predictions of a control without epochs, (N,)."""
    classification.save_results(draft, [{"epoch": 0, "predictions": predicted.tolist()}], problem1.val, **more)


def knn(draft, problem1, profile, device, pretrained):
    """Run step `control-knn`: k-NN on the frozen self-supervised features, and on those of a random backbone.

    Args:
        draft, problem1, profile, device: as for `finetune.run`.
        pretrained: store.Result of the self-supervised pre-training.
    """
    pixels, labels = classification.load(problem1, profile), problem1.val.labels
    predicted = {}
    for source, result in (("pretrain", pretrained), ("random", None)):
        backbone = features.initial_backbone(profile, result).to(device, memory_format=torch.channels_last)
        if result is None:
            features.calibrate(backbone, pixels[0], device)
        bank, queries = (features.extract(backbone, images, device) for images in pixels)
        predicted[source] = features.nearest_class(bank, problem1.train.labels, queries, profile.controls.knn)
    draft.array("predictions_random", predicted["random"].astype(np.int16)[None])
    correct = int((predicted["random"] == labels).sum())
    _save(draft, predicted["pretrain"], problem1, correct_random=correct, accuracy_random=correct / len(labels))


def colour(draft, problem1, profile, device):
    """Run step `control-colour`: the head of settings A–E on mean and standard deviation of each colour channel."""
    seed_everything(profile.seed, 0)
    settings = profile.finetune
    inputs = [features.colour_statistics(images) for images in classification.load(problem1, profile)]
    head = resnet.Head(len(problem1.classes), inputs[0].shape[1], settings.hidden, settings.dropout)
    head.standardise_by(inputs[0])
    head.to(device)
    batches = classification.array_batches(inputs[0], problem1.train, profile, settings, device)
    labels, epochs = problem1.val.labels, settings.epochs
    evaluate = classification.evaluation(draft, head, lambda inputs: inputs, inputs, labels, epochs, device)
    checkpoint = Checkpoint(draft, profile.checkpoint_every)
    history = loop.train(head, classification.cross_entropy, batches, settings, device, checkpoint, evaluate)
    classification.save_results(draft, history, problem1.val)


def simple(draft, problem1, profile, *_):
    """Run step `control-simple`: the classifier of colour and texture with the best cross-validation accuracy.

    Cross-validation uses the training images only. If they are too few for folds, it is DEFAULT_MODEL.
    """
    train, val = map(measures, classification.load(problem1, profile))
    labels, groups = problem1.train.labels, problem1.train.groups
    folds = _folds(labels, np.arange(len(labels)) if groups is None else groups)
    models = {
        f"{kind} on {inputs}": (model, columns)
        for inputs, columns in INPUTS.items()
        for kind, model in candidates().items()
    }
    with threadpool_limits(1):  # twice as fast for so few images
        scores = {
            name: float(cross_val_score(model, train[:, :columns], labels, cv=folds).mean())
            for name, (model, columns) in (models if folds else {}).items()
        }
    best = max(scores, key=scores.get) if scores else DEFAULT_MODEL
    model, columns = models[best]
    predicted = model.fit(train[:, :columns], labels).predict(val[:, :columns])
    _save(draft, predicted, problem1, model=best, folds=scores)


def _folds(labels, groups):
    """Return stratified folds that keep groups together: (training, test) rows; [] if there are too few images.

    Folds with a single class for training are left out.
    """
    sizes, places = np.bincount(labels), len(np.unique(groups))
    count = max(2, min(FOLDS, sizes.min(), places))
    if max(sizes) < count or places < count:
        return []
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=0).split(labels, labels, groups)
    return [(train, test) for train, test in folds if len(np.unique(labels[train])) > 1 and len(test)]


def candidates():
    """Return untrained scikit-learn classifiers by name."""
    models = {"gradient boosting": HistGradientBoostingClassifier(max_iter=60, random_state=0)}
    for c in (1, 10, 100, 1000):
        regression, support = LogisticRegression(C=c, max_iter=5000), SVC(C=c)
        models[f"logistic regression (C = {c})"] = make_pipeline(StandardScaler(), regression)
        models[f"support vectors (C = {c})"] = make_pipeline(StandardScaler(), support)
    return models


def measures(images):
    """Return colour and texture measures: (N, 3, S, S) uint8 -> (N, 34) float32.

    Mean, standard deviation and three percentiles of each channel; mean absolute differences between neighbours at
    three scales; the histogram of uniform local binary patterns (Ojala et al. 2002).
    """
    return np.concatenate([_measures(part) for part in images.split(256)])


def _measures(images):
    pixels = images.float() / 255
    columns = [features.colour_statistics(images), *pixels.flatten(2).quantile(torch.tensor([0.1, 0.5, 0.9]), dim=2)]
    for scale in SCALES:
        coarse = F.avg_pool2d(pixels, scale)
        columns.append(coarse.diff(dim=2).abs().mean(dim=(2, 3)) + coarse.diff(dim=3).abs().mean(dim=(2, 3)))  # (N, 3)
    grays = images.float().mean(dim=1).round().byte().numpy()
    patterns = [local_binary_pattern(gray, 8, 1, "uniform").astype(int).ravel() for gray in grays]
    histograms = np.array([np.bincount(codes, minlength=10) for codes in patterns]) / grays[0].size
    return np.float32(np.concatenate([*columns, histograms], axis=1))
