"""Segmentation: what is saved is what was measured, runs repeat and resume, colour is no model."""

from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.data.landcover import SCORED, UNKNOWN
from hw1lib.errors import UserError
from hw1lib.loops import augment, losses, train_segmenter
from hw1lib.metrics import iou
from hw1lib.models import segmenters
from hw1lib.models.ema import Averaged
from hw1lib.settings import Segment
from hw1lib.steps import store
from tests import processes
from tests.conftest import write_tile

CPU = torch.device("cpu")


def tiles(root, width=32):
    """Problem 2 with tiles of 8 × 8 pixel blocks, whose colours tell their classes."""
    splits = []
    for split, count in (("train", 4), ("validation", 3)):
        numbers = tuple(f"{number:04d}" for number in range(1, count + 1))
        for seed, number in enumerate(numbers):
            blocks = np.random.default_rng(seed).permutation(np.arange(width // 2, dtype=np.uint8) % 7)
            write_tile(root / split, number, blocks.reshape(4, -1).repeat(8, 0).repeat(8, 1))
        splits.append(layout.Tiles(root / split, numbers))
    return layout.Problem2(*splits)


@pytest.fixture
def problem2(tmp_path):
    return tiles(tmp_path / "tiles")


def pixels(count=5, height=32, width=32):
    return np.random.default_rng(0).integers(0, 256, (count, 3, height, width)).astype(np.uint8)


def normalised(*shape):
    return augment.normalise(torch.from_numpy(pixels(*shape)))


# --- prediction


class Local(nn.Module):
    """A 3 × 3 convolution that sees left from right, and likes unknown best."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(7, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.bias = torch.tensor([0.0] * UNKNOWN + [99.0])

    def forward(self, batch):
        return F.conv2d(batch, self.weight, self.bias, padding=1)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("enlarge", [1, 2])
@pytest.mark.parametrize("seen", [range(UNKNOWN), [0, 2, 5]])
@processes.float64()  # no two scores are nearer than rounding
def test_predictions_are_the_class_of_the_highest_score_among_those_seen(enlarge, tta, seen):
    """Unknown is no answer; and the size of batches plays no part."""
    network, shape = Local(), (5, 32, 64)
    scores = train_segmenter.turned_scores if tta else segmenters.scores
    expected = np.array(seen)[scores(network, normalised(*shape), enlarge)[:, list(seen)].argmax(1)]
    for batch_size in (2, 100):
        settings = Segment(batch_size=batch_size, enlarge=enlarge)
        found = train_segmenter.predict(network, pixels(*shape), CPU, settings, tta, seen)
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert len(np.unique(found)) == len(seen)


@pytest.mark.parametrize("shape", [(32, 32), (32, 64), (96, 32)])
def test_turned_scores_are_the_mean_over_eight_symmetries(shape):
    """Of a square: four flips of the image, and four of the one that is mirrored in its diagonal."""
    batch, single = normalised(3, *shape), []
    for mirror in (lambda x: x, lambda x: x.mT):
        for sides in ((), (2,), (3,), (2, 3)):
            probabilities = Local()(mirror(batch).flip(sides))[:, :UNKNOWN].softmax(1)
            single.append(mirror(probabilities.flip(sides)))
    found = train_segmenter.turned_scores(Local(), batch)
    torch.testing.assert_close(found, torch.stack(single).mean(0), atol=1e-6, rtol=1e-5)
    apart = [(one - other).abs().max() for i, one in enumerate(single) for other in single[:i]]
    assert min(apart) > 0.1  # so that each of the eight had a part in it


# --- stages and summary


@pytest.mark.parametrize(("epochs", "expected"), [(1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4))])
def test_stages_are_first_middle_and_last(epochs, expected):
    assert train_segmenter.stage_epochs(epochs) == dict(zip(("early", "middle", "final"), expected))


def row(epoch, matrix):
    return {"epoch": epoch, "miou": iou.miou(matrix), "confusion": matrix.tolist()}


def test_the_summary_takes_the_best_epoch_and_keeps_the_last():
    """The first of equals; a class that is absent has no IoU."""
    good, bad = np.diag([5, 5, 0, 5, 5, 5, 0]), np.full((7, 7), 2)
    found = train_segmenter.summary([row(1, bad), row(2, good), row(3, good), row(4, bad)])
    assert found["epoch"] == 2 and found["miou"] == 1 and found["pixel_accuracy"] == 1
    assert found["miou_last"] == iou.miou(bad)
    assert found["confusion"] == good.tolist() and found["confusion_last"] == bad.tolist()
    assert found["iou"] == {name: None if name == "rangeland" else 1.0 for name in SCORED}
    assert found["iou_last"] == train_segmenter.summary([row(4, bad)])["iou"] != found["iou"]


# --- the colour control


def test_the_table_of_colours_knows_what_colour_tells_and_answers_where_the_truth_is_unknown(tmp_path, problem2):
    """And pays for it: those answers are false positives."""
    train_segmenter.colour(store.Draft("segment-colour", tmp_path), problem2)
    result = store.Result("segment-colour", tmp_path)
    _, masks = images.load_tiles(problem2.validation)
    known, predicted = masks != UNKNOWN, result.array("predictions")
    assert np.array_equal(predicted[known], masks[known]) and predicted.max() < UNKNOWN
    assert result.metrics["pixel_accuracy"] == 1 > result.metrics["miou"] == result.metrics["miou_last"]
    assert result.metrics["confusion"] == iou.confusion(masks, predicted).tolist()


def test_a_colour_has_its_commonest_class_and_one_never_seen_that_of_all(tmp_path, monkeypatch):
    """16 levels of each channel: 0 to 15 are one colour."""
    train, val = np.full((2, 1, 3, 2, 5), 100, np.uint8)
    train[..., 3:], val[0, :, 0], val[0, :, 1] = 15, 0, [[15], [16], [15]]
    masks = np.array([[[3, 3, 3, 2, 2], [6, 6, 6, 1, 6]]], np.uint8)
    monkeypatch.setattr(images, "load_tiles", Mock(side_effect=[(train, masks), (val, masks)]))
    train_segmenter.colour(store.Draft("segment-colour", tmp_path), layout.Problem2(None, None))
    assert store.Result("", tmp_path).array("predictions").tolist() == [[[2] * 5, [3] * 5]]


# --- whole steps

SMALL = {
    "model_scale": 0.125, "lraspp.epochs": 3, "lraspp.batch_size": 2, "lraspp.crop": 16, "lraspp.average": 0.9,
    "lraspp.norm_momentum": 1.0, "segmentation.stage_images": "0003,0001", "checkpoint_every": 1000,
}  # fmt: skip


def run(folder, problem2, name="lraspp", **changes):
    """Trains as the smoke profile does: Lovász, enlarged tiles, test-time augmentation."""
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    draft = store.Draft(f"segment-{name}", folder)
    train_segmenter.run(draft, problem2, profiles.get("smoke", settings), CPU, name=name)
    return store.Result(draft.step, folder)


def files(folder):
    """What a run left behind, byte by byte, but for its checkpoint."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != store.CHECKPOINT}


@pytest.mark.parametrize(("average", "tta"), [(0.9, True), (0.0, True), (0.9, False)])
def test_what_a_run_saves_is_what_it_measured(tmp_path, problem2, average, tta):
    """Every saved mask follows from the stored weights: at last, in stages, and with test-time augmentation."""
    result = run(tmp_path / "run", problem2, lraspp__average=average, lraspp__tta=tta)
    numbers, predictions = result.metrics, result.array("predictions")
    pixels, masks = images.load_tiles(problem2.validation)
    matrix = iou.confusion(masks, predictions)
    assert numbers["confusion_last"] == matrix.tolist() and numbers["miou_last"] == iou.miou(matrix)
    assert result.history["miou"].iloc[-1] == pytest.approx(numbers["miou_last"])
    assert np.array_equal(result.array("stage_final"), predictions[[2, 0]])
    assert numbers["seen"] == list(range(UNKNOWN))
    assert ("tta" in numbers) == tta == (result.folder / "predictions_tta.npy").is_file()

    network = segmenters.build("lraspp", 0.125)
    network.load_state_dict(result.weights())  # strict: no name of a wrapper
    network = network.eval().to(memory_format=torch.channels_last)
    settings = profiles.get("smoke", SMALL).lraspp
    assert np.array_equal(train_segmenter.predict(network, pixels, CPU, settings), predictions)
    if tta:
        turned = result.array("predictions_tta")
        assert np.array_equal(train_segmenter.predict(network, pixels, CPU, settings, True), turned)
        assert numbers["tta"] == train_segmenter.summary([train_segmenter.scored(3, masks, turned)])
        assert not np.array_equal(turned, predictions)


@pytest.mark.slow
def test_the_average_follows_the_network_after_each_step(tmp_path, problem2, monkeypatch):
    """Counted from 1, over all epochs; training is as without it."""
    steps, follow = [], Averaged.follow

    def noted(module, step):
        steps.append((step, module.decay))
        follow(module, step)

    monkeypatch.setattr(Averaged, "follow", noted)
    averaged, plain = (run(tmp_path / str(average), problem2, lraspp__average=average) for average in (0.9, 0.0))
    assert steps == [(step, 0.9) for step in range(1, 7)]
    assert plain.history["loss"].tolist() == averaged.history["loss"].tolist()
    weights = [result.weights()["backbone.0.0.weight"] for result in (averaged, plain)]
    assert not torch.equal(*weights)


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("average", "place"), [(0.9, 3), (0.0, 5)])  # loss number so and so of six
def test_a_resumed_run_leaves_what_an_uninterrupted_one_does(tmp_path, problem2, place, average, monkeypatch):
    """File by file, to the bit; the average goes on from the checkpoint, too. Another seed leaves another."""
    chosen = {"lraspp__average": average, "checkpoint_every": 0}
    run(tmp_path / "whole", problem2, **chosen)
    ends = [DEFAULT] * (place - 1) + [Stopped] + [DEFAULT] * (7 - place)  # no step is taken again
    monkeypatch.setattr(losses, "segmentation", Mock(wraps=losses.segmentation, side_effect=ends))
    with pytest.raises(Stopped):
        run(tmp_path / "twice", problem2, **chosen)
    assert (tmp_path / "twice" / store.CHECKPOINT).is_file()
    run(tmp_path / "twice", problem2, **chosen)
    monkeypatch.undo()
    whole = files(tmp_path / "whole")
    assert files(tmp_path / "twice") == whole
    other = run(tmp_path / "other", problem2, seed=1, **chosen)
    assert files(other.folder)["weights.safetensors"] != whole["weights.safetensors"]


@pytest.mark.parametrize(
    ("loss", "balance", "enlarge"), [("cross_entropy", 0.0, 1), ("cross_entropy", 0.5, 2), ("lovasz", 0.3, 2)]
)
def test_a_run_trains_with_the_loss_weights_and_size_that_are_set(
    tmp_path, problem2, loss, balance, enlarge, monkeypatch
):
    """The network sees tiles enlarged in training and evaluation."""
    spied, scores, sizes = Mock(side_effect=losses.segmentation), segmenters.scores, []

    def noted(network, images, times=1):
        sizes.append((network.training, tuple(images.shape[2:]), times))
        return scores(network, images, times)

    monkeypatch.setattr(losses, "segmentation", spied)
    monkeypatch.setattr(segmenters, "scores", noted)
    changes = {"loss": loss, "balance": balance, "enlarge": enlarge, "epochs": 1}
    run(tmp_path / "run", problem2, **{f"lraspp__{key}": value for key, value in changes.items()})
    _, masks = images.load_tiles(problem2.train)
    for scored, _, kind, weights in (call.args for call in spied.call_args_list):
        assert scored.shape == (2, 7, 16, 16) and kind == loss
        assert torch.equal(weights, losses.class_weights(masks, balance))
    # Two steps; two batches of validation tiles, at first once and then in eight turns.
    assert sizes == 2 * [(True, (16, 16), enlarge)] + 18 * [(False, (32, 32), enlarge)]


@pytest.mark.parametrize(("name", "crop"), [("lraspp", 0), ("lraspp", 16), ("fcn32s", 32)])
def test_tiles_that_are_not_square_are_trained_on(tmp_path, name, crop):
    oblong = tiles(tmp_path / "tiles", width=48)
    changes = dict(crop=crop, epochs=1, batch_size=4, enlarge=3, tta=True)
    result = run(tmp_path / "run", oblong, name, **{f"{name}__{key}": value for key, value in changes.items()})
    _, masks = images.load_tiles(oblong.validation)
    stride = {"lraspp": 2, "fcn32s": 10}[name]  # a stride of 8 or 32, enlarged three times
    assert result.metrics["ceiling"] == iou.ceiling(masks, stride)
    for array, numbers in (("predictions", result.metrics), ("predictions_tta", result.metrics["tta"])):
        assert result.array(array).shape == (3, 32, 48)
        assert numbers["confusion_last"] == iou.confusion(masks, result.array(array)).tolist()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_tiles_that_show_no_class_are_a_clear_error(tmp_path, problem2, split):
    for number in getattr(problem2, split).numbers:
        write_tile(tmp_path / "tiles" / split, number, np.full((32, 32), UNKNOWN, np.uint8))
    for step in (run, lambda folder, tiles: train_segmenter.colour(store.Draft("segment-colour", folder), tiles)):
        with pytest.raises(UserError, match=rf"{split} shows a class.*data\.tile_limit"):
            step(tmp_path / "run", problem2)


def test_a_run_keeps_its_stages_of_the_asked_images(tmp_path, problem2, monkeypatch):
    epochs = iter((1, 2, 3))

    def noted(network, pixels, *words):
        """Each image all of one class, another one in each epoch."""
        numbers = (np.arange(len(pixels)) + next(epochs)).astype(np.uint8)
        return np.broadcast_to(numbers[:, None, None], (len(pixels), 32, 32))

    monkeypatch.setattr(train_segmenter, "predict", noted)
    result = run(tmp_path / "run", problem2, lraspp__tta=False)  # it asks for the images 0003 and 0001
    assert result.metrics["stages"] == {"early": 1, "middle": 2, "final": 3}
    for stage, epoch in result.metrics["stages"].items():
        shown = result.array(f"stage_{stage}")
        assert shown.shape == (2, 32, 32) and shown[:, 0, 0].tolist() == [2 + epoch, 0 + epoch]


# --- batches


def batch_of(pixels, masks, monkeypatch, **changes):
    """The first batch of an epoch, its colours left as they are."""
    recolour = Mock(side_effect=lambda images, table, recipe: images)
    monkeypatch.setattr(augment, "recolour", recolour)
    profile = profiles.get("demo")
    settings = profile.lraspp.model_copy(update={"batch_size": len(pixels), **changes})
    torch.manual_seed(0)
    batch = next(train_segmenter.batches_of(pixels, masks, profile, settings, CPU)(1))
    assert recolour.call_args.args[2] == augment.tile_recipe(settings)
    return batch


def test_augmentation_none_shows_the_tiles_as_they_are():
    profile, classes = profiles.get("seed"), pixels(1)[:, 0] % 7
    batch, masks = next(train_segmenter.batches_of(pixels(1), classes, profile, profile.fcn32s, CPU)(1))
    assert torch.equal(batch, normalised(1)) and np.array_equal(masks, classes)


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("crop", [0, 16])
@pytest.mark.parametrize("width", [32, 48])
def test_augmented_masks_still_fit_their_images(tmp_path, width, crop, scale, monkeypatch):
    """Colours tell classes here, so a mask that moved otherwise would show."""
    pixels, masks = images.load_tiles(tiles(tmp_path, width).train)
    pixels, masks = (np.concatenate([array] * 4) for array in (pixels, masks))
    batch, moved = batch_of(pixels, masks, monkeypatch, crop=crop, crop_scale=scale)
    assert moved.dtype == torch.uint8 and moved.shape == (16, *((crop, crop) if crop else pixels.shape[2:]))
    channels = torch.from_numpy(pixels).movedim(1, -1).float() / 255  # (N, H, W, 3)
    ground = torch.stack([channels[torch.from_numpy(masks) == number].mean(0) for number in range(7)])
    off = (augment.denormalise(batch) - ground[moved.long()].movedim(-1, 1)).abs().amax(1) > 0.02
    assert off.float().mean() < 0.4  # at the borders of blocks alone
    inner = F.max_pool2d(moved.float(), 5, 1) == -F.max_pool2d(-moved.float(), 5, 1)
    assert inner.any() and not off[:, 2:-2, 2:-2][inner].any()


@pytest.mark.parametrize(
    ("width", "crop", "scale", "different"), [(32, 0, 1.0, 8), (48, 0, 1.0, 4), (32, 0, 0.4, 40), (48, 16, 1.0, 40)]
)
def test_each_image_of_a_batch_has_a_draw_of_its_own(width, crop, scale, different, monkeypatch):
    """One tile forty times: whole tiles show its symmetries, crops are all different."""
    tile, masks = pixels(1, width=width).repeat(40, 0), np.zeros((40, 32, width), np.uint8)
    flat = batch_of(tile, masks, monkeypatch, crop=crop, crop_scale=scale)[0].flatten(1)
    same = torch.cdist(flat, flat) < 1e-2 * flat.shape[1] ** 0.5
    assert len(torch.unique(same, dim=0)) == different


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (48, 32)])
def test_crops_keep_the_resolution_of_their_tiles(height, width, monkeypatch):
    """Each pixel shows its own place: neighbours of the crop were neighbours in the tile."""
    rows, columns = np.mgrid[:height, :width]
    tile = 5 * np.stack([rows, columns, 0 * rows]).astype(np.uint8)
    masks = (rows // 8 % 7).astype(np.uint8)
    batch, moved = batch_of(tile[None].repeat(12, 0), masks[None].repeat(12, 0), monkeypatch, crop=16, crop_scale=0.3)
    places = augment.denormalise(batch)[:, :2] * 255 / 5
    for steps in (places.diff(dim=2), places.diff(dim=3)):
        length = steps.abs().sum(1)
        torch.testing.assert_close(length, torch.ones_like(length), atol=1e-3, rtol=0)
    row = places[:, 0].double()
    clear = (row - row.round()).abs() < 0.49  # nearest, and no tie
    assert torch.equal(moved[clear], (row.round() // 8 % 7)[clear].to(torch.uint8))
