"""Step everything: masks of the chosen tiles, and the vote on all predictions."""

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
    """Images (N, H, W, 3), true classes, and predictions that are correct for 60 % of the pixels."""
    images, masks = image_files.load_tiles(problem2.validation)
    random = np.random.default_rng(0)
    other = random.integers(0, UNKNOWN, masks.shape).astype(np.uint8)
    correct = (random.random(masks.shape) < 0.6) & (masks != UNKNOWN)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), masks, np.where(correct, masks, other)


def run(folder, problem2, predictions, sam=None, **changes):
    changes = {f"everything.{name}": value for name, value in changes.items()}
    draft = store.Draft("everything", folder)
    step.run(draft, problem2, profiles.get("smoke", SETTINGS | changes), predictions, sam, CPU)
    return store.Result(draft.step, folder)


def vote(method, images, predictions, count=9):
    """Compute the vote on every tile and the mean number of segments from the partitions."""
    labels = [models.partition(method(image, count).masks) for image in images]
    refined = np.stack([partitions.vote(*pair) for pair in zip(labels, predictions)])
    return refined, np.mean([len(np.unique(parts)) for parts in labels])


@pytest.mark.parametrize(("refine", "segments", "count"), [("felzenszwalb", 12, 12), ("slic", 0, 16)])
def test_the_vote_on_all_tiles_is_that_of_the_partitions(tmp_path, problem2, arrays, refine, segments, count):
    """The number of segments is the setting, or half the width of a tile for 0."""
    images, masks, predictions = arrays
    result = run(tmp_path, problem2, predictions, refine=refine, segments=segments)
    metrics = result.metrics
    assert metrics["refine"] == next(iter(metrics["refined"])) == refine and set(metrics["refined"]) == set(CLASSICAL)
    for method, function in CLASSICAL.items():
        refined, mean_count = vote(function, images, predictions, count)
        row = metrics["refined"][method]
        assert row["confusion_last"] == iou.confusion(masks, refined).tolist() and row["segments"] == mean_count
        assert method != refine or np.array_equal(result.array("predictions_vote"), refined)
    assert metrics["model_miou"] == iou.miou(iou.confusion(masks, predictions)) and metrics["sam"] is None
    assert metrics["refined"][refine]["miou"] > metrics["model_miou"]  # a vote removes noise


def test_the_chosen_tiles_have_a_row_for_each_method(tmp_path, problem2, arrays):
    """In the order of the setting, not of the folder."""
    images, masks, predictions = arrays
    result = run(tmp_path, problem2, predictions)
    rows = result.metrics["rows"]
    assert [(row["image"], row["method"]) for row in rows] == [(n, m) for n in ("0003", "0001") for m in CLASSICAL]
    for row in rows:
        index, name = int(row["image"]) - 1, f"{row['method']}_{row['image']}"
        result_masks = CLASSICAL[row["method"]](images[index], 9)
        labels = models.partition(result_masks.masks)
        refined = partitions.vote(labels, predictions[index])
        assert row["vote_miou"] == iou.miou(iou.confusion(masks[index], refined))
        borders = partitions.boundary_recall_precision(labels, masks[index])
        assert (row["boundary_recall"], row["boundary_precision"]) == borders
        asa = partitions.asa(labels, masks[index])
        assert (row["masks"], row["asa"], row["coverage"]) == (labels.max() + 1, asa, 1)
        stored = {"labels": labels, "vote": refined, "points": result_masks.points_xy, "grid": result_masks.grid_xy}
        stored |= {"masks": np.packbits(result_masks.masks, axis=-1)}
        assert all(np.array_equal(result.array(f"{name}_{suffix}"), array) for suffix, array in stored.items())


def test_the_vote_does_not_use_the_truth(tmp_path, problem2, arrays):
    """A tile whose truth is unknown gets the same vote; what cannot be measured is None."""
    before = run(tmp_path / "known", problem2, arrays[2])
    unknown = landcover.encode(np.full_like(arrays[1][2], UNKNOWN))
    Image.fromarray(unknown).save(problem2.validation.mask("0003"))
    after = run(tmp_path / "unknown", problem2, arrays[2])
    for name in ("predictions_vote", "slic_0003_vote", "slic_0003_labels"):
        assert np.array_equal(before.array(name), after.array(name))
    row = after.metrics["rows"][0]
    assert row["image"] == "0003" and row["asa"] is row["boundary_recall"] is None


@pytest.mark.parametrize(
    ("requested", "has_sam", "device", "expected"),
    [("auto", False, "cuda", "felzenszwalb"), ("auto", True, "cpu", "felzenszwalb"), ("auto", True, "cuda", "sam"),
     ("sam", True, "cpu", "sam"), ("slic", True, "cuda", "slic")],
)  # fmt: skip
def test_sam_votes_by_default_only_on_a_gpu(requested, has_sam, device, expected):
    assert step.refinement_method(requested, has_sam, torch.device(device)) == expected


def quarters(image, *_, **settings):
    """Return the four quarters of an image instead of SAM's masks."""
    halves = [np.arange(side) * 2 // side for side in image.shape[:2]]
    labels = 2 * halves[0][:, None] + halves[1]
    masks, scores, points = labels == np.arange(4)[:, None, None], np.zeros(4, dtype=np.float32), np.zeros((4, 2))
    return models.Masks(masks, scores, scores, points, points)


@pytest.mark.parametrize("refine", ["sam", "felzenszwalb"])
def test_with_sam_its_masks_are_measured_and_vote_if_requested(tmp_path, problem2, arrays, monkeypatch, refine):
    """SAM gets the profile's settings; the baselines get as many segments as SAM has masks."""
    images, _, predictions = arrays
    everything = Mock(side_effect=quarters)
    monkeypatch.setattr(generator, "load", lambda path: types.SimpleNamespace(to=lambda device: "network"))
    monkeypatch.setattr(generator, "sam_everything", everything)
    changes = {"refine": refine, "segments": 0, "points_per_side": 5}
    result = run(tmp_path, problem2, predictions, tmp_path / "sam_vit_b.pth", **changes)
    metrics = result.metrics
    assert metrics["sam"] == "sam_vit_b.pth" and metrics["refine"] == next(iter(metrics["refined"])) == refine
    assert [row["method"] for row in metrics["rows"]] == ["sam", *CLASSICAL] * 2
    assert all(abs(row["masks"] - 4) <= (row["method"] != "sam") for row in metrics["rows"])
    options = everything.call_args.kwargs
    assert options["points_per_side"] == 5 and len(options) == 11
    if refine == "sam":
        assert np.array_equal(result.array("predictions_vote"), vote(quarters, images, predictions)[0])
