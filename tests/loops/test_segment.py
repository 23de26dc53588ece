"""Segmentation: unknown never counts, stages are where they should be, colour is no model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import profiles, store
from hw1lib.data import images, layout
from hw1lib.data.landcover import SCORED, UNKNOWN
from hw1lib.errors import UserError
from hw1lib.loops import augment, segment
from hw1lib.results import metrics
from tests.conftest import write_tile

CPU = torch.device("cpu")


@pytest.fixture
def problem2(course_data):
    return layout.find(course_data, profiles.Data()).problem2


def case(seed=0):
    """Scores and masks, a third of them unknown."""
    torch.manual_seed(seed)
    scores = torch.randn(2, 7, 8, 8, requires_grad=True)
    masks = torch.randint(0, UNKNOWN, (2, 8, 8), dtype=torch.uint8)
    masks[torch.rand(2, 8, 8) < 1 / 3] = UNKNOWN
    return scores, masks


# --- loss


def test_unknown_pixels_give_neither_loss_nor_gradient():
    scores, masks = case()
    unknown = (masks == UNKNOWN)[:, None].expand_as(scores)
    value = segment.loss(scores, masks)
    value.backward()
    assert (scores.grad[unknown] == 0).all() and (scores.grad[~unknown] != 0).all()
    other = torch.where(unknown, 1e3 * torch.randn_like(scores), scores)
    assert torch.equal(segment.loss(other, masks), value)


def test_the_loss_is_the_mean_over_the_known_pixels():
    scores, masks = case(1)
    known = masks != UNKNOWN
    expected = F.cross_entropy(scores.permute(0, 2, 3, 1)[known], masks[known].long())
    torch.testing.assert_close(segment.loss(scores, masks), expected)


def test_without_a_known_pixel_the_loss_is_zero_and_its_gradient_too():
    scores, masks = case()
    value = segment.loss(scores, torch.full_like(masks, UNKNOWN))
    value.backward()
    assert value.item() == 0 and (scores.grad == 0).all()


# --- prediction


class Fixed(nn.Module):
    """Scores that depend on the brightness of a pixel; unknown always has the highest."""

    def forward(self, batch):
        ranks = batch.mean(1, keepdim=True) * torch.linspace(-1, 1, 7).view(1, 7, 1, 1)
        ranks[:, UNKNOWN] = 1e6
        return ranks


def test_unknown_is_no_answer():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 64)).astype(np.uint8)
    predicted = segment.predict(Fixed(), pixels, CPU, batch=2)
    assert predicted.shape == (5, 32, 64) and predicted.dtype == np.uint8
    assert predicted.max() < UNKNOWN and len(np.unique(predicted)) > 1


def test_predictions_do_not_depend_on_the_batch():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32)).astype(np.uint8)
    one, many = (segment.predict(Fixed(), pixels, CPU, batch=b) for b in (1, 100))
    assert np.array_equal(one, many)


# --- stages and summary


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (50, (1, 25, 50))],
)
def test_stages_are_first_middle_and_last(epochs, expected):
    assert tuple(segment.stage_epochs(epochs).values()) == expected
    assert tuple(segment.stage_epochs(epochs)) == segment.STAGES


def row(epoch, matrix):
    return {"epoch": epoch, "miou": metrics.miou(matrix), "confusion": matrix.tolist()}


def test_the_summary_takes_the_best_epoch_and_keeps_the_last():
    good, bad = np.eye(7, dtype=int) * 5, np.full((7, 7), 2)
    found = segment.summary([row(1, bad), row(2, good), row(3, bad)], stray=4)
    assert found["epoch"] == 2 and found["miou"] == 1 and found["pixel_accuracy"] == 1
    assert found["miou_last"] == metrics.miou(bad)
    assert found["confusion"] == good.tolist() and found["confusion_last"] == bad.tolist()
    assert found["stray_pixels"] == 4
    assert segment.summary([row(1, good), row(2, good)], 0)["epoch"] == 1  # the first of equals


def test_an_absent_class_is_none_and_left_out():
    matrix = np.diag([3, 3, 0, 3, 3, 3, 0])
    matrix[0, 1] = 3
    found = segment.summary([row(1, matrix)], 0)
    assert found["iou"]["rangeland"] is None
    assert list(found["iou"]) == list(SCORED)
    there = [v for v in found["iou"].values() if v is not None]
    assert len(there) == 5 and found["miou"] == pytest.approx(np.mean(there))


# --- whole steps


def test_the_table_of_colours_knows_what_colour_tells(tmp_path):
    for split in ("train", "validation"):
        for number in range(2):
            random = np.random.default_rng(number)
            blocks = random.permutation(np.arange(12) % UNKNOWN).reshape(3, 4).astype(np.uint8)
            write_tile(tmp_path / split, f"{number:04d}", blocks.repeat(8, 0).repeat(8, 1))
    numbers = ("0000", "0001")
    tiles = [layout.Tiles(tmp_path / split, numbers) for split in ("train", "validation")]
    segment.colour(store.Draft("segment-colour", tmp_path), layout.Problem2(*tiles))
    found = store.Result("segment-colour", tmp_path).metrics
    assert found["miou"] == found["miou_last"] == found["pixel_accuracy"] == 1


def test_the_table_of_colours_answers_where_the_truth_is_unknown(tmp_path, problem2):
    """And pays for it: those answers are false positives."""
    segment.colour(store.Draft("segment-colour", tmp_path), problem2)
    result = store.Result("segment-colour", tmp_path)
    _, masks, _ = images.load_tiles(problem2.validation)
    known = masks != UNKNOWN
    predicted = result.array("predictions")
    assert np.array_equal(predicted[known], masks[known]) and predicted.max() < UNKNOWN
    assert result.metrics["pixel_accuracy"] == 1 > result.metrics["miou"]


def test_a_colour_never_seen_gets_the_commonest_class(tmp_path, monkeypatch):
    train = np.zeros((1, 3, 2, 4), dtype=np.uint8), np.array([[[3, 3, 3, 1], [6, 6, 6, 6]]])
    train[0][0, :, 0, 3] = 100
    val = np.full((1, 3, 2, 4), 250, dtype=np.uint8), np.full((1, 2, 4), 3)
    loaded = iter([(train[0], train[1].astype(np.uint8), 0), (*val, 0)])
    monkeypatch.setattr(images, "load_tiles", lambda tiles: next(loaded))

    class Problem:
        train = validation = None

    segment.colour(store.Draft("segment-colour", tmp_path), Problem)
    assert (store.Result("", tmp_path).array("predictions") == 3).all()


def run(folder, problem2, **changes):
    settings = {
        "model_scale": 0.125, "lraspp.epochs": 3, "lraspp.batch_size": 2,
        "segmentation.stage_images": "0003,0001", **changes,
    }
    draft = store.Draft("segment-lraspp", folder)
    segment.run(draft, problem2, profiles.get("smoke", settings), "lraspp", CPU)
    return store.Result(draft.step, folder)


def test_a_run_keeps_what_it_predicts_at_last(tmp_path, problem2):
    result = run(tmp_path, problem2)
    predictions = result.array("predictions")
    assert predictions.shape == (3, 32, 32)
    _, masks, _ = images.load_tiles(problem2.validation)
    assert result.metrics["confusion_last"] == metrics.confusion(masks, predictions).tolist()
    assert result.history["miou"].iloc[-1] == pytest.approx(result.metrics["miou_last"])


def test_a_run_keeps_its_stages_of_the_asked_images(tmp_path, problem2, monkeypatch):
    epochs = iter((1, 2, 3))

    def noted(network, pixels, *words):
        """Each image all of one class, another one in each epoch."""
        numbers = (np.arange(len(pixels)) + next(epochs)).astype(np.uint8)
        return np.broadcast_to(numbers[:, None, None], (len(pixels), 32, 32))

    monkeypatch.setattr(segment, "predict", noted)
    result = run(tmp_path, problem2)  # it asks for the images 0003 and 0001
    assert result.metrics["stages"] == {"early": 1, "middle": 2, "final": 3}
    for stage, epoch in result.metrics["stages"].items():
        shown = result.array(f"stage_{stage}")
        assert shown.shape == (2, 32, 32)
        assert shown[:, 0, 0].tolist() == [2 + epoch, 0 + epoch]


def test_augmentation_none_shows_the_tiles_as_they_are(problem2):
    pixels, masks, _ = images.load_tiles(problem2.train)
    profile = profiles.get("seed")
    batch = next(segment._batches(pixels, masks, profile, profile.fcn32s, CPU)(1))
    plain = augment.normalise(torch.from_numpy(pixels))
    for image, mask in zip(*batch):
        at = [i for i in range(len(plain)) if torch.equal(plain[i], image)]
        assert len(at) == 1 and np.array_equal(mask, masks[at[0]])


@pytest.mark.parametrize("crop", [0, 16])
def test_augmented_masks_still_fit_their_images(problem2, crop):
    """Colours tell classes here, so a mask that moved otherwise would show."""
    pixels, masks, _ = images.load_tiles(problem2.train)
    profile = profiles.get("demo", {"lraspp.batch_size": 4, "lraspp.crop": crop})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "recolour", lambda images, recipe: images)
        torch.manual_seed(0)
        batch, moved = next(segment._batches(pixels, masks, profile, profile.lraspp, CPU)(1))
    side = crop or pixels.shape[-1]
    assert moved.dtype == torch.uint8 and moved.shape == (4, side, side)
    ground = {}
    for image, mask in zip(torch.from_numpy(pixels), torch.from_numpy(masks)):
        for number in mask.unique().tolist():
            ground[number] = image[:, mask == number].float().mean(1) / 255
    expected = torch.stack([ground[n] for n in range(7)])[moved.long()].permute(0, 3, 1, 2)
    off = (augment.denormalise(batch) - expected).abs().amax(1) > 0.02
    assert off.float().mean() < 0.4  # at the borders of blocks alone
    inner = F.max_pool2d(moved.float(), 5, 1) == -F.max_pool2d(-moved.float(), 5, 1)
    assert inner.any() and not off[:, 2:-2, 2:-2][inner].any()


def test_a_stage_image_that_is_not_there_is_named(tmp_path, problem2):
    with pytest.raises(UserError, match=r"segmentation\.stage_images.*'0077'"):
        run(tmp_path, problem2, **{"segmentation.stage_images": "0077"})
