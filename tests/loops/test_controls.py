"""Controls: k-NN is scikit-learn's, and only training images choose the simple classifier."""

import dataclasses

import numpy as np
import pytest
import torch

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.loops import controls, features
from hw1lib.models import resnet
from hw1lib.steps import store
from tests import processes
from tests.loops.test_finetune import CPU, pixels, pretrained, profile


def run(step, folder, problem1, *arguments):
    folder.mkdir(exist_ok=True)
    step(store.Draft("control", folder), problem1, *arguments)
    return store.Result("control", folder)


@pytest.mark.slow
@processes.float64()  # distances of nearly equal images
def test_knn_uses_pretrained_features_and_those_of_a_random_backbone(tmp_path, problem1):
    """Labels are shuffled, as colours would otherwise separate the classes in any features."""
    train, val = problem1.train, problem1.val
    train = dataclasses.replace(train, labels=np.random.default_rng(0).permutation(train.labels))
    problem1, chosen = dataclasses.replace(problem1, train=train), profile(controls__knn=3)
    torch.manual_seed(3)
    weights = pretrained(resnet.backbone(0.125).state_dict())
    result = run(controls.knn, tmp_path, problem1, chosen, CPU, weights)
    random = features.calibrate(features.initial_backbone(chosen), pixels(train), CPU)
    for suffix, backbone in (("", features.initial_backbone(chosen, weights)), ("_random", random)):
        bank, queries = (features.extract(backbone, pixels(split), CPU) for split in (train, val))
        expected = features.nearest_class(bank, train.labels, queries, 3)
        assert result.array(f"predictions{suffix}").tolist() == [expected.tolist()]
        assert result.metrics[f"correct{suffix}"] == (expected == val.labels).sum()
        assert result.metrics[f"accuracy{suffix}"] == (expected == val.labels).mean()
    assert not np.array_equal(result.array("predictions"), result.array("predictions_random"))


def test_the_colour_control_separates_classes_by_colour(tmp_path, problem1):
    chosen = profile(finetune__epochs=30, finetune__lr=0.01)
    assert run(controls.colour, tmp_path, problem1, chosen, CPU).metrics["accuracy_last"] == 1


# --- simple classifiers


def textures(count, seed):
    """Noise of one pixel and of four with the same colours, (N, 3, 32, 32) uint8, and labels 0 and 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    fine = rng.integers(60, 196, (count, 3, 32, 32), dtype=np.uint8)
    coarse = rng.integers(60, 196, (count, 3, 8, 8), dtype=np.uint8).repeat(4, 2).repeat(4, 3)
    return np.where(labels[:, None, None, None], fine, coarse), labels


def simple(monkeypatch, folder, labels, arrays, groups=None):
    """The result of the simple control on training and validation images given as arrays."""
    names = [tuple(map(str, range(len(each)))) for each in labels]
    classes = tuple("abc"[: labels[0].max() + 1])
    train, val = (layout.Split(folder, n, each, classes, groups=groups) for n, each in zip(names, labels))
    monkeypatch.setattr(images, "load", lambda split, size: arrays[split is val])
    return run(controls.simple, folder, layout.Problem1(train, train, val, None), profiles.get("smoke"))


def test_measures_of_an_image_do_not_depend_on_the_others():
    batch = torch.from_numpy(textures(300, 0)[0])
    measures = controls.measures(batch)
    assert measures.shape == (300, 34) and measures.dtype == np.float32 and np.isfinite(measures).all()
    np.testing.assert_allclose(measures[257:258], controls.measures(batch[257:258]), rtol=1e-4, atol=1e-5)
    assert measures[:, -10:].sum(axis=1) == pytest.approx(np.ones(300))


@pytest.mark.slow
def test_texture_is_chosen_where_it_separates_the_classes(tmp_path, monkeypatch):
    (train, train_labels), (val, val_labels) = textures(60, 0), textures(30, 1)
    result = simple(monkeypatch, tmp_path, (train_labels, val_labels), (train, val))
    folds = result.metrics["folds"]
    assert result.metrics["accuracy_last"] == 1 and result.metrics["correct_last"] == 30
    assert len(folds) == 18 and result.metrics["model"] == max(folds, key=folds.get)
    assert folds["gradient boosting on colour and texture"] > folds["gradient boosting on colour mean and deviation"]


TOO_FEW = {  # labels, places, whether there are folds
    "one place": ([0, 1, 0, 1], [3, 3, 3, 3], False),
    "a place a class": ([0, 0, 1, 1], [3, 3, 4, 4], False),
    "a class with one image": ([0, 0, 0, 1], None, True),
    "a place for each of three classes": ([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 3, 3], True),
}


@pytest.mark.parametrize("case", TOO_FEW)
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_too_few_images_for_folds_still_give_a_result(tmp_path, monkeypatch, case):
    labels, places, has_folds = TOO_FEW[case]
    labels, groups, array = np.array(labels), places and np.array(places), textures(len(labels), 0)[0]
    monkeypatch.setattr(controls, "candidates", lambda of=controls.candidates: dict(list(of().items())[1:2]))
    metrics = simple(monkeypatch, tmp_path, (labels, labels), (array, array), groups).metrics
    assert bool(metrics["folds"]) == has_folds and (has_folds or metrics["model"] == controls.DEFAULT_MODEL)
    assert all(0 <= score <= 1 for score in metrics["folds"].values()) and metrics["total"] == len(labels)
    assert metrics["interval_last"] == [None, None] if case == "one place" else None not in metrics["interval_last"]


@pytest.mark.slow
def test_folds_keep_the_images_of_a_place_together(tmp_path, monkeypatch):
    """Images of a place are alike and share a random label, which only folds of single images could predict."""
    place, rng, scores = np.arange(200) // 10, np.random.default_rng(0), {}
    labels = rng.permutation(np.arange(20) % 2)[place]
    array = rng.integers(0, 256, (20, 3, 1, 1), dtype=np.uint8)[place].repeat(8, 2).repeat(8, 3)
    for name, groups in (("places", place), ("images", None)):
        result = simple(monkeypatch, tmp_path, (labels, labels), (array, array), groups)
        scores[name] = max(result.metrics["folds"].values())
    assert scores["images"] > 0.9 > scores["places"] + 0.1
