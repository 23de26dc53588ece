"""Step everything: masks of the shown tiles, and what their vote makes of all predictions."""

import numpy as np
import pytest
import torch

from PIL import Image

from hw1lib import profiles
from hw1lib.steps import store
from hw1lib.data import images as image_files
from hw1lib.data import landcover, layout
from hw1lib.data.landcover import UNKNOWN
from hw1lib.errors import UserError
from hw1lib.loops import everything as step
from hw1lib.models import everything as models
from hw1lib.models import weights
from hw1lib.measures import metrics, segments

CPU = torch.device("cpu")
SETTINGS = {"everything.images": "0003,0001", "everything.segments": 9}


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
    images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images, masks, np.where(right, masks, other)


def run(folder, problem2, predictions, sam=None, **changes):
    changes = {f"everything.{name}": value for name, value in changes.items()}
    profile = profiles.get("smoke", SETTINGS | changes)
    draft = store.Draft("everything", folder)
    step.run(draft, problem2, profile, predictions, sam, CPU)
    return store.Result(draft.step, folder)


def voted(method, images, predictions, wanted=9):
    """The vote on every tile and the numbers of segments, straight from the partitions."""
    found, counts = [], []
    for image, predicted in zip(images, predictions):
        labels = models.partition(method(image, wanted).masks)
        refined = np.empty_like(predicted)
        for number in range(labels.max() + 1):
            inside = labels == number
            refined[inside] = np.bincount(predicted[inside]).argmax()
        found.append(refined)
        counts.append(len(np.unique(labels)))
    return np.stack(found), np.mean(counts)


CLASSICAL = {"slic": models.slic, "felzenszwalb": models.felzenszwalb}


@pytest.mark.parametrize(("refine", "chosen"), [
    ("auto", "felzenszwalb"), ("felzenszwalb", "felzenszwalb"), ("slic", "slic"),
])
def test_the_vote_on_all_tiles_is_that_of_the_partitions(
    tmp_path, problem2, arrays, refine, chosen
):
    images, masks, predictions = arrays
    result = run(tmp_path, problem2, predictions, refine=refine)
    found = result.metrics
    assert found["refine"] == chosen and set(found["refined"]) == set(CLASSICAL)
    assert list(found["refined"])[0] == chosen and found["sam"] is None
    for method, function in CLASSICAL.items():
        refined, count = voted(function, images, predictions)
        matrix = metrics.confusion(masks, refined)
        row = found["refined"][method]
        assert row["miou"] == row["miou_last"] == metrics.miou(matrix)
        assert row["pixel_accuracy"] == metrics.pixel_accuracy(matrix)
        assert row["confusion"] == row["confusion_last"] == matrix.tolist()
        assert row["segments"] == count
        if method == chosen:
            stored = result.array("predictions_vote")
            assert stored.dtype == np.uint8 and np.array_equal(stored, refined)
    assert found["model_miou"] == metrics.miou(metrics.confusion(masks, predictions))
    assert found["refined"][chosen]["miou"] > found["model_miou"]  # noise is what a vote removes


def test_the_number_of_segments_is_the_settings_or_half_the_side(tmp_path, problem2, arrays):
    images, _, predictions = arrays
    for wish, wanted in ((0, 16), (4, 4)):
        found = run(tmp_path, problem2, predictions, segments=wish).metrics
        assert found["refined"]["slic"]["segments"] == voted(
            models.slic, images, predictions, wanted
        )[1]


def test_the_shown_tiles_have_a_row_for_each_method(tmp_path, problem2, arrays):
    """In the order that was asked for, though it is not the folder's."""
    images, masks, predictions = arrays
    result = run(tmp_path, problem2, predictions, refine="slic")
    rows = result.metrics["rows"]
    assert [(row["image"], row["method"]) for row in rows] == [
        (number, method) for number in ("0003", "0001") for method in CLASSICAL
    ]
    for row in rows:
        at = int(row["image"]) - 1
        name = f"{row['method']}_{row['image']}"
        labels = result.array(f"{name}_labels")
        expected = models.partition(CLASSICAL[row["method"]](images[at], 9).masks)
        assert np.array_equal(labels, expected) and row["masks"] == labels.max() + 1
        refined = segments.vote(labels, predictions[at])
        assert np.array_equal(result.array(f"{name}_vote"), refined)
        assert row["vote_miou"] == metrics.miou(metrics.confusion(masks[at], refined))
        assert row["model_miou"] == metrics.miou(metrics.confusion(masks[at], predictions[at]))
        reached = metrics.pixel_accuracy(metrics.confusion(masks[at], refined))
        assert reached <= row["asa"] and row["coverage"] == 1
        packed = result.array(f"{name}_masks")
        unpacked = np.unpackbits(packed, axis=-1, count=labels.shape[1]).astype(bool)
        assert np.array_equal(unpacked.argmax(0), labels)
        if row["method"] == "slic":
            assert np.array_equal(result.array("predictions_vote")[at], refined)


def test_the_vote_knows_no_truth(tmp_path, problem2, arrays):
    """With other masks the scores are others, and the refined predictions the same."""
    _, masks, predictions = arrays
    before = run(tmp_path / "a", problem2, predictions)
    for number, classes in zip(problem2.validation.numbers, masks):
        other = np.where(classes < UNKNOWN, (classes + 1) % UNKNOWN, classes).astype(np.uint8)
        Image.fromarray(landcover.encode(other)).save(problem2.validation.mask(number))
    after = run(tmp_path / "b", problem2, predictions)
    for name in ("predictions_vote", "slic_0001_vote", "slic_0001_labels"):
        assert np.array_equal(before.array(name), after.array(name))
    one, two = (result.metrics["refined"]["slic"] for result in (before, after))
    assert one["miou"] != two["miou"] and one["segments"] == two["segments"]


def test_a_vote_on_plain_areas_changes_nothing(tmp_path, problem2, arrays):
    """Predictions that are constant in each tile stay as they are, whatever the segments."""
    constant = np.broadcast_to(np.array([1, 4, 2], dtype=np.uint8)[:, None, None], (3, 32, 32))
    result = run(tmp_path, problem2, constant)
    assert np.array_equal(result.array("predictions_vote"), constant)
    miou = result.metrics["model_miou"]
    assert {row["miou"] for row in result.metrics["refined"].values()} == {miou}


def test_a_second_run_gives_the_same_bytes(tmp_path, problem2, arrays):
    """Though tiles are cut into segments side by side."""
    for name in ("a", "b"):
        run(tmp_path / name, problem2, arrays[2])
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


# --- whose masks


@pytest.mark.parametrize(
    ("wish", "has_sam", "device", "expected"),
    [
        ("auto", False, "cpu", "felzenszwalb"),
        ("auto", True, "cpu", "felzenszwalb"),  # hours for a few hundred tiles
        ("auto", False, "cuda", "felzenszwalb"),
        ("auto", True, "cuda", "sam"),
        ("auto", True, "mps", "sam"),
        ("sam", True, "cpu", "sam"),  # who asks for it gets it
        ("sam", True, "cuda", "sam"),
        ("slic", True, "cuda", "slic"),
        ("slic", False, "cpu", "slic"),
        ("felzenszwalb", True, "cuda", "felzenszwalb"),
    ],
)
def test_whose_masks_vote(wish, has_sam, device, expected):
    assert step.refining(wish, has_sam, torch.device(device)) == expected


def test_sam_without_its_weights_says_how_to_get_them(tmp_path, problem2, arrays):
    for device in ("cpu", "cuda"):
        with pytest.raises(UserError, match="everything.refine=sam.*weights fetch sam_vit_b"):
            step.refining("sam", False, torch.device(device))
    with pytest.raises(UserError, match="everything.refine=sam"):
        run(tmp_path, problem2, arrays[2], refine="sam")
    assert not list(tmp_path.glob("*.npy"))  # it is said before anything is computed


@pytest.fixture
def sam(monkeypatch, tmp_path):
    """A stand-in for SAM that finds the four quarters of an image; returns its path."""
    class Network:
        def to(self, device):
            return self

    def quarters(image, *words):
        height, width = image.shape[:2]
        masks = np.zeros((4, height, width), dtype=bool)
        for number in range(4):
            rows = slice(number // 2 * height // 2, (number // 2 + 1) * height // 2)
            masks[number, rows, number % 2 * width // 2 : (number % 2 + 1) * width // 2] = True
        nothing = np.zeros(4, dtype=np.float32)
        points = np.zeros((4, 2))
        return models.Masks(masks, nothing, nothing, models.mask_boxes(masks), points, points)

    monkeypatch.setattr(weights, "load_sam", lambda path: Network())
    monkeypatch.setattr(step, "_sam", quarters)
    return tmp_path / "sam_vit_b.pth", quarters


@pytest.mark.parametrize(("refine", "methods"), [
    ("sam", ["sam", "slic", "felzenszwalb"]), ("auto", ["felzenszwalb", "slic"]),
])
def test_with_sam_its_rows_are_measured_and_its_vote_where_asked(
    tmp_path, problem2, arrays, sam, refine, methods
):
    images, masks, predictions = arrays
    path, quarters = sam
    found = run(tmp_path, problem2, predictions, path, refine=refine)
    assert found.metrics["sam"] == "sam_vit_b.pth" and found.metrics["refine"] == methods[0]
    assert list(found.metrics["refined"]) == methods
    assert [row["method"] for row in found.metrics["rows"]] == ["sam", *CLASSICAL] * 2
    if refine == "sam":
        refined, count = voted(quarters, images, predictions)
        assert np.array_equal(found.array("predictions_vote"), refined) and count == 4
        row = found.metrics["refined"]["sam"]
        assert row["miou"] == metrics.miou(metrics.confusion(masks, refined))
        assert row["segments"] == 4


def test_baselines_beside_sam_get_as_many_segments_as_it_found(tmp_path, problem2, arrays, sam):
    rows = run(tmp_path, problem2, arrays[2], sam[0], segments=0).metrics["rows"]
    assert {row["masks"] for row in rows if row["method"] == "sam"} == {4}
    assert all(abs(row["masks"] - 4) <= 1 for row in rows)  # half the side would be 16


def test_an_image_that_is_not_there_is_named(tmp_path, problem2, arrays):
    with pytest.raises(UserError, match=r"everything\.images.*'0009'"):
        run(tmp_path, problem2, arrays[2], images="0009")
