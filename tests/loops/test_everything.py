"""Step everything: masks of the shown tiles, and what their vote makes of all predictions."""

import types

import numpy as np
import pytest
import torch
from PIL import Image

from hw1lib import profiles
from hw1lib.data import images as image_files
from hw1lib.data import landcover, layout
from hw1lib.data.landcover import UNKNOWN
from hw1lib.errors import UserError
from hw1lib.loops import everything as step
from hw1lib.measures import metrics, segments
from hw1lib.models import everything as models
from hw1lib.models import sam as generator
from hw1lib.models import weights
from hw1lib.steps import store

CPU = torch.device("cpu")
SETTINGS = {"everything.images": "0003,0001", "everything.segments": 9}
CLASSICAL = {"slic": models.slic, "felzenszwalb": models.felzenszwalb}


@pytest.fixture
def problem2(course_data):
    return layout.find(course_data, profiles.Data()).problem2


@pytest.fixture
def arrays(problem2):
    """Images (N, H, W, 3), true classes, and predictions that are right for 60 % of the pixels."""
    images, masks, _ = image_files.load_tiles(problem2.validation)
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
    found, counts = [], []
    for image, predicted in zip(images, predictions):
        labels = models.partition(method(image, wanted).masks)
        refined = np.empty_like(predicted)
        for number in range(labels.max() + 1):
            refined[labels == number] = np.bincount(predicted[labels == number]).argmax()
        found.append(refined)
        counts.append(len(np.unique(labels)))
    return np.stack(found), np.mean(counts)


@pytest.mark.parametrize(
    ("refine", "chosen"), [("auto", "felzenszwalb"), ("felzenszwalb", "felzenszwalb"), ("slic", "slic")]
)
def test_the_vote_on_all_tiles_is_that_of_the_partitions(tmp_path, problem2, arrays, refine, chosen):
    images, masks, predictions = arrays
    result = run(tmp_path, problem2, predictions, refine=refine)
    found = result.metrics
    assert found["refine"] == next(iter(found["refined"])) == chosen and set(found["refined"]) == set(CLASSICAL)
    for method, function in CLASSICAL.items():
        refined, count = voted(function, images, predictions)
        matrix, row = metrics.confusion(masks, refined), found["refined"][method]
        assert row["miou"] == row["miou_last"] == metrics.miou(matrix) and row["segments"] == count
        assert row["pixel_accuracy"] == metrics.pixel_accuracy(matrix)
        assert row["confusion"] == row["confusion_last"] == matrix.tolist()
        if method == chosen:
            stored = result.array("predictions_vote")
            assert stored.dtype == np.uint8 and np.array_equal(stored, refined)
    assert found["model_miou"] == metrics.miou(metrics.confusion(masks, predictions)) and found["sam"] is None
    assert found["refined"][chosen]["miou"] > found["model_miou"]  # noise is what a vote removes


@pytest.mark.parametrize(("wish", "wanted"), [(0, 16), (4, 4)])
def test_the_number_of_segments_is_the_settings_or_half_the_side(tmp_path, problem2, arrays, wish, wanted):
    images, _, predictions = arrays
    found = run(tmp_path, problem2, predictions, segments=wish).metrics
    assert found["refined"]["slic"]["segments"] == voted(models.slic, images, predictions, wanted)[1]


def test_the_shown_tiles_have_a_row_for_each_method(tmp_path, problem2, arrays):
    """In the order that was asked for, though it is not the folder's."""
    images, masks, predictions = arrays
    result = run(tmp_path, problem2, predictions, refine="slic")
    rows = result.metrics["rows"]
    assert [(row["image"], row["method"]) for row in rows] == [(n, m) for n in ("0003", "0001") for m in CLASSICAL]
    for row in rows:
        at, name = int(row["image"]) - 1, f"{row['method']}_{row['image']}"
        found = CLASSICAL[row["method"]](images[at], 9)
        labels = result.array(f"{name}_labels")
        assert np.array_equal(labels, models.partition(found.masks)) and row["masks"] == labels.max() + 1
        refined = segments.vote(labels, predictions[at])
        assert np.array_equal(result.array(f"{name}_vote"), refined)
        for column, shown in (
            ("vote_miou", refined),
            ("model_miou", predictions[at]),
            ("oracle_miou", segments.oracle(labels, masks[at])),
        ):
            assert row[column] == metrics.miou(metrics.confusion(masks[at], shown))
        assert row["asa"] == segments.asa(labels, masks[at]) and row["coverage"] == 1
        borders = segments.boundary_recall_precision(labels, masks[at])
        assert (row["boundary_recall"], row["boundary_precision"]) == borders
        packed = result.array(f"{name}_masks")
        assert np.array_equal(np.unpackbits(packed, axis=-1, count=labels.shape[1]), found.masks)
        assert np.array_equal(result.array(f"{name}_points"), found.points_xy)
        assert np.array_equal(result.array(f"{name}_grid"), found.grid_xy)
        assert row["method"] != "slic" or np.array_equal(result.array("predictions_vote")[at], refined)


def test_the_vote_knows_no_truth(tmp_path, problem2, arrays):
    """With other masks the scores are others, and the refined predictions the same; what is not measured is None."""
    _, masks, predictions = arrays
    before = run(tmp_path / "a", problem2, predictions)
    for number, classes in zip(problem2.validation.numbers, masks):
        other = np.where(classes < UNKNOWN, (classes + 1) % UNKNOWN, classes).astype(np.uint8)
        other = np.full_like(other, UNKNOWN) if number == "0003" else other
        Image.fromarray(landcover.encode(other)).save(problem2.validation.mask(number))
    after = run(tmp_path / "b", problem2, predictions)
    for name in ("predictions_vote", "slic_0001_vote", "slic_0001_labels"):
        assert np.array_equal(before.array(name), after.array(name))
    one, two = (result.metrics["refined"]["slic"] for result in (before, after))
    assert one["miou"] != two["miou"] and one["segments"] == two["segments"]
    assert after.metrics["rows"][0]["asa"] is None and after.metrics["rows"][0]["boundary_recall"] is None


def test_a_vote_on_plain_areas_changes_nothing(tmp_path, problem2):
    """Predictions that are constant in each tile stay as they are, whatever the segments."""
    constant = np.broadcast_to(np.array([1, 4, 2], dtype=np.uint8)[:, None, None], (3, 32, 32))
    result = run(tmp_path, problem2, constant)
    assert np.array_equal(result.array("predictions_vote"), constant)
    assert {row["miou"] for row in result.metrics["refined"].values()} == {result.metrics["model_miou"]}


def test_a_second_run_gives_the_same_bytes(tmp_path, problem2, arrays):
    """Though tiles are cut into segments side by side."""
    for name in ("a", "b"):
        run(tmp_path / name, problem2, arrays[2])
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert written[0] == written[1] and len(written[0]) > 20


# --- whose masks


@pytest.mark.parametrize(
    ("wish", "has_sam", "device", "expected"),
    [("auto", False, "cpu", "felzenszwalb"), ("auto", True, "cpu", "felzenszwalb"),  # hours for a few hundred tiles
     ("auto", False, "cuda", "felzenszwalb"), ("auto", True, "cuda", "sam"), ("auto", True, "mps", "sam"),
     ("sam", True, "cpu", "sam"), ("sam", True, "cuda", "sam"),  # who asks for it gets it
     ("slic", True, "cuda", "slic"), ("slic", False, "cpu", "slic"), ("felzenszwalb", True, "cuda", "felzenszwalb")],
)  # fmt: skip
def test_whose_masks_vote(wish, has_sam, device, expected):
    assert step.refining(wish, has_sam, torch.device(device)) == expected


def test_sam_without_its_weights_says_how_to_get_them_before_anything_is_computed(tmp_path, problem2, arrays):
    with pytest.raises(UserError, match="everything.refine=sam.*weights fetch sam_vit_b"):
        run(tmp_path, problem2, arrays[2], refine="sam")
    assert not list(tmp_path.glob("*.npy"))


def quarters(image, *words, **settings):
    """A stand-in for SAM that finds the four quarters of an image."""
    halves = [np.arange(side) * 2 // side for side in image.shape[:2]]
    labels = 2 * halves[0][:, None] + halves[1]
    masks, nothing, points = labels == np.arange(4)[:, None, None], np.zeros(4, dtype=np.float32), np.zeros((4, 2))
    return models.Masks(masks, nothing, nothing, models.mask_boxes(masks), points, points)


@pytest.mark.parametrize(
    ("refine", "methods"), [("sam", ["sam", "slic", "felzenszwalb"]), ("auto", ["felzenszwalb", "slic"])]
)
def test_with_sam_its_rows_are_measured_and_its_vote_where_asked(
    tmp_path, problem2, arrays, monkeypatch, refine, methods
):
    """With all settings of the profile; baselines beside it get as many segments as it found, not half the side."""
    images, masks, predictions = arrays
    seen = []

    def noted(image, network, **settings):
        seen.append(settings)
        return quarters(image)

    monkeypatch.setattr(weights, "load_sam", lambda path: types.SimpleNamespace(to=lambda device: "network"))
    monkeypatch.setattr(generator, "sam_everything", noted)
    found = run(
        tmp_path, problem2, predictions, tmp_path / "sam_vit_b.pth", refine=refine, segments=0, points_per_side=5
    )
    assert found.metrics["sam"] == "sam_vit_b.pth" and found.metrics["refine"] == methods[0]
    assert list(found.metrics["refined"]) == methods
    assert [row["method"] for row in found.metrics["rows"]] == ["sam", *CLASSICAL] * 2
    assert all(
        row["masks"] == 4 if row["method"] == "sam" else abs(row["masks"] - 4) <= 1 for row in found.metrics["rows"]
    )
    here = profiles.get("smoke", {"everything.points_per_side": 5}).everything
    assert all(
        settings == {name: getattr(here, name) for name in settings} and len(settings) == 11 for settings in seen
    )
    if refine == "sam":
        refined, _ = voted(quarters, images, predictions)
        row = found.metrics["refined"]["sam"]
        assert np.array_equal(found.array("predictions_vote"), refined)
        assert row["miou"] == metrics.miou(metrics.confusion(masks, refined)) and row["segments"] == 4


def test_an_image_that_is_not_there_is_named(tmp_path, problem2, arrays):
    with pytest.raises(UserError, match=r"everything\.images.*'0009'"):
        run(tmp_path, problem2, arrays[2], images="0009")
