"""The simple control: what is told by texture alone is told, and nothing but training images chooses."""

import numpy as np
import pytest
import torch

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.loops import simple
from hw1lib.settings import Data
from hw1lib.steps import store


def textures(count, seed):
    """Noise of one pixel and of four, of the same colours: (N, 3, 32, 32) uint8, and which is which."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    fine = random.integers(60, 196, (count, 3, 32, 32), dtype=np.uint8)
    coarse = random.integers(60, 196, (count, 3, 8, 8), dtype=np.uint8).repeat(4, 2).repeat(4, 3)
    return np.where(labels[:, None, None, None], fine, coarse), labels


def test_measures_are_those_of_each_image_alone():
    found = simple.measures(torch.from_numpy(textures(300, 0)[0]))
    assert found.shape == (300, 34) and found.dtype == np.float32 and np.isfinite(found).all()
    single = simple.measures(torch.from_numpy(textures(300, 0)[0][257:258]))
    np.testing.assert_allclose(found[257:258], single, rtol=1e-4, atol=1e-5)
    assert found[:, -10:].sum(axis=1) == pytest.approx(np.ones(300))  # shares of the patterns


def test_texture_is_chosen_where_it_tells_the_classes(course_data, tmp_path, monkeypatch):
    problem1 = layout.find(course_data, Data()).problem1
    train, val = (
        layout.Split(part.folder, tuple(map(str, range(count))), textures(count, seed)[1], ("coarse", "fine"))
        for part, count, seed in ((problem1.train, 60, 0), (problem1.val, 30, 1))
    )
    monkeypatch.setattr(images, "load", lambda split, size: textures(len(split), len(split) == 30)[0])
    draft = store.Draft("control-simple", tmp_path)
    simple.run(draft, layout.Problem1(train, train, val, None), profiles.get("smoke"))
    result = store.Result(draft.step, tmp_path)
    assert result.metrics["accuracy_last"] == 1 and result.metrics["correct_last"] == 30
    folds = result.metrics["folds"]
    assert len(folds) == 18 and result.metrics["model"] == max(folds, key=folds.get)
    assert folds["gradient boosting on colour and texture"] > folds["gradient boosting on colour mean and deviation"]
    assert np.array_equal(result.array("predictions")[-1], val.labels)


TOO_FEW = {  # labels, places: whether folds can choose
    "an image a class": ([0, 1, 2], None, False),
    "two images": ([0, 1], None, False),
    "one place": ([0, 1, 0, 1], [3, 3, 3, 3], False),
    "a place a class": ([0, 0, 1, 1], [3, 3, 4, 4], False),
    "a class with one image": ([0, 0, 0, 1], None, True),
    "a place for each of three classes": ([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 3, 3], True),
}


@pytest.mark.parametrize("kind", TOO_FEW)
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_too_few_images_for_folds_still_give_a_result(course_data, tmp_path, monkeypatch, kind):
    labels, places, chosen = TOO_FEW[kind]
    folder = layout.find(course_data, Data()).problem1.train.folder
    labels = np.array(labels)
    groups = None if places is None else np.array(places)
    split = layout.Split(folder, tuple(map(str, labels)), labels, ("a", "b", "c")[: labels.max() + 1], groups=groups)
    monkeypatch.setattr(images, "load", lambda split, size: textures(len(split), 0)[0])
    monkeypatch.setattr(simple, "candidates", lambda of=simple.candidates: dict(list(of().items())[1:2]))
    draft = store.Draft("control-simple", tmp_path)
    simple.run(draft, layout.Problem1(split, split, split, None), profiles.get("smoke"))
    metrics = store.Result(draft.step, tmp_path).metrics
    assert bool(metrics["folds"]) == chosen and (chosen or metrics["model"] == simple.UNCHOSEN)
    assert all(0 <= score <= 1 for score in metrics["folds"].values()) and metrics["total"] == len(labels)
    assert metrics["interval_last"] == [None, None] if kind == "one place" else None not in metrics["interval_last"]


@pytest.mark.slow
def test_folds_keep_a_place_together(course_data, tmp_path, monkeypatch):
    """Images of one place are alike and share a label: folds of places see through what folds of images would not."""
    place = np.arange(400) // 20
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(20) % 2)[place]
    pixels = random.integers(0, 256, (20, 3, 1, 1), dtype=np.uint8)[place].repeat(8, 2).repeat(8, 3)
    monkeypatch.setattr(images, "load", lambda split, size: pixels)
    folder, scores = layout.find(course_data, Data()).problem1.train.folder, {}
    for name, groups in (("places", place), ("images", None)):
        split = layout.Split(folder, tuple(map(str, range(400))), labels, ("a", "b"), groups=groups)
        draft = store.Draft("control-simple", tmp_path / name)
        draft.folder.mkdir()
        simple.run(draft, layout.Problem1(split, split, split, None), profiles.get("smoke"))
        scores[name] = max(store.Result(draft.step, draft.folder).metrics["folds"].values())
    assert scores["images"] > 0.9 > scores["places"] + 0.1
