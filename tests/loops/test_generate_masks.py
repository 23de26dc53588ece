"""Step everything: masks of the shown tiles, and what their vote makes of all predictions."""

import types
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from hw1lib import profiles
from hw1lib.data import images as image_files
from hw1lib.data import landcover, layout
from hw1lib.data.landcover import UNKNOWN
from hw1lib.loops import generate_masks as step
from hw1lib.metrics import iou, partitions
from hw1lib.models import sam as generator
from hw1lib.models import superpixels as models
from hw1lib.settings import Data
from hw1lib.steps import store

CPU = torch.device("cpu")
SETTINGS = {"everything.images": "0003,0001", "everything.segments": 9}
CLASSICAL = {"slic": models.slic, "felzenszwalb": models.felzenszwalb}


@pytest.fixture
def problem2(course_data):
    return layout.find(course_data, Data()).problem2


@pytest.fixture
def arrays(problem2):
    """Images (N, H, W, 3), true classes, and predictions that are right for 60 % of the pixels."""
    images, masks = image_files.load_tiles(problem2.validation)
    random = np.random.default_rng(0)
    other = random.integers(0, UNKNOWN, masks.shape).astype(np.uint8)
    right = (random.random(masks.shape) < 0.6) & (masks != UNKNOWN)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), masks, np.where(right, masks, other)


def run(folder, problem2, predictions, sam=None, **changes):
    changes = {f"everything.{name}": value for name, value in changes.items()}
    draft = store.Draft("everything", folder)
    step.run(draft, problem2, profiles.get("smoke", SETTINGS | changes), predictions, sam, CPU)
    return store.Result(draft.step, folder)


def voted(method, images, predictions, wanted=9):
    """The vote on every tile and the mean number of segments, straight from the partitions."""
    labels = [models.partition(method(image, wanted).masks) for image in images]
    refined = np.stack([partitions.vote(*pair) for pair in zip(labels, predictions)])
    return refined, np.mean([len(np.unique(parts)) for parts in labels])


@pytest.mark.parametrize(
    ("refine", "chosen", "wish", "wanted"),
    [("auto", "felzenszwalb", 9, 9), ("felzenszwalb", "felzenszwalb", 12, 12), ("slic", "slic", 0, 16)],
)
def test_the_vote_on_all_tiles_is_that_of_the_partitions(tmp_path, problem2, arrays, refine, chosen, wish, wanted):
    """Of as many segments as are set, or half as many as a tile is wide."""
    images, masks, predictions = arrays
    result = run(tmp_path, problem2, predictions, refine=refine, segments=wish)
    found = result.metrics
    assert found["refine"] == next(iter(found["refined"])) == chosen and set(found["refined"]) == set(CLASSICAL)
    for method, function in CLASSICAL.items():
        refined, count = voted(function, images, predictions, wanted)
        matrix, row = iou.confusion(masks, refined), found["refined"][method]
        assert row["miou"] == row["miou_last"] == iou.miou(matrix) and row["segments"] == count
        assert row["confusion"] == row["confusion_last"] == matrix.tolist()
        if method == chosen:
            stored = result.array("predictions_vote")
            assert stored.dtype == np.uint8 and np.array_equal(stored, refined)
    assert found["model_miou"] == iou.miou(iou.confusion(masks, predictions)) and found["sam"] is None
    assert found["refined"][chosen]["miou"] > found["model_miou"]  # noise is what a vote removes


def test_the_shown_tiles_have_a_row_for_each_method(tmp_path, problem2, arrays):
    """In the order that was asked for, though it is not the folder's."""
    images, masks, predictions = arrays
    result = run(tmp_path, problem2, predictions)
    rows = result.metrics["rows"]
    assert [(row["image"], row["method"]) for row in rows] == [(n, m) for n in ("0003", "0001") for m in CLASSICAL]
    for row in rows:
        at, name = int(row["image"]) - 1, f"{row['method']}_{row['image']}"
        found = CLASSICAL[row["method"]](images[at], 9)
        labels = models.partition(found.masks)
        refined, oracle = partitions.vote(labels, predictions[at]), partitions.oracle(labels, masks[at])
        for column, shown in (("vote_miou", refined), ("model_miou", predictions[at]), ("oracle_miou", oracle)):
            assert row[column] == iou.miou(iou.confusion(masks[at], shown))
        borders = partitions.boundary_recall_precision(labels, masks[at])
        assert (row["boundary_recall"], row["boundary_precision"]) == borders
        asa = partitions.asa(labels, masks[at])
        assert (row["masks"], row["asa"], row["coverage"]) == (labels.max() + 1, asa, 1)
        kept = {"labels": labels, "vote": refined, "points": found.points_xy, "grid": found.grid_xy}
        assert all(np.array_equal(result.array(f"{name}_{what}"), array) for what, array in kept.items())
        unpacked = np.unpackbits(result.array(f"{name}_masks"), axis=-1, count=labels.shape[1])
        assert np.array_equal(unpacked, found.masks)


def test_the_vote_knows_no_truth(tmp_path, problem2, arrays):
    """Where a tile's truth is unknown its vote is the same, and what cannot be measured is None."""
    before = run(tmp_path / "known", problem2, arrays[2])
    unknown = landcover.encode(np.full_like(arrays[1][2], UNKNOWN))
    Image.fromarray(unknown).save(problem2.validation.mask("0003"))
    after = run(tmp_path / "unknown", problem2, arrays[2])
    for name in ("predictions_vote", "slic_0003_vote", "slic_0003_labels"):
        assert np.array_equal(before.array(name), after.array(name))
    row = after.metrics["rows"][0]
    assert row["image"] == "0003" and row["asa"] is row["boundary_recall"] is None


# --- whose masks


@pytest.mark.parametrize(
    ("wish", "has_sam", "device", "expected"),
    [("auto", False, "cuda", "felzenszwalb"), ("auto", True, "cpu", "felzenszwalb"),  # it would take hours
     ("auto", True, "cuda", "sam"), ("auto", True, "mps", "sam"), ("sam", True, "cpu", "sam"),  # who asks gets it
     ("slic", True, "cuda", "slic"), ("felzenszwalb", True, "cuda", "felzenszwalb")],
)  # fmt: skip
def test_whose_masks_vote(wish, has_sam, device, expected):
    assert step.refinement_method(wish, has_sam, torch.device(device)) == expected


def quarters(image, *words, **settings):
    """A stand-in for SAM that finds the four quarters of an image."""
    halves = [np.arange(side) * 2 // side for side in image.shape[:2]]
    labels = 2 * halves[0][:, None] + halves[1]
    masks, nothing, points = labels == np.arange(4)[:, None, None], np.zeros(4, dtype=np.float32), np.zeros((4, 2))
    return models.Masks(masks, nothing, nothing, points, points)


@pytest.mark.parametrize(
    ("refine", "methods"), [("sam", ["sam", "slic", "felzenszwalb"]), ("auto", ["felzenszwalb", "slic"])]
)
def test_with_sam_its_rows_are_measured_and_its_vote_where_asked(
    tmp_path, problem2, arrays, monkeypatch, refine, methods
):
    """With all settings of the profile; baselines beside it get as many segments as it found, not half the side."""
    images, _, predictions = arrays
    everything = Mock(side_effect=quarters)
    monkeypatch.setattr(generator, "load", lambda path: types.SimpleNamespace(to=lambda device: "network"))
    monkeypatch.setattr(generator, "sam_everything", everything)
    changes = {"refine": refine, "segments": 0, "points_per_side": 5}
    result = run(tmp_path, problem2, predictions, tmp_path / "sam_vit_b.pth", **changes)
    found = result.metrics
    assert found["sam"] == "sam_vit_b.pth" and found["refine"] == methods[0] and list(found["refined"]) == methods
    assert [row["method"] for row in found["rows"]] == ["sam", *CLASSICAL] * 2
    assert all(abs(row["masks"] - 4) <= (row["method"] != "sam") for row in found["rows"])
    expected = profiles.get("smoke", {"everything.points_per_side": 5}).everything
    for call in everything.call_args_list:
        assert call.kwargs == {name: getattr(expected, name) for name in call.kwargs} and len(call.kwargs) == 11
    if refine == "sam":
        assert np.array_equal(result.array("predictions_vote"), voted(quarters, images, predictions)[0])
        assert found["refined"]["sam"]["segments"] == 4
