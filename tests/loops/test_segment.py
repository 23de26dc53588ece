"""Segmentation: what is saved is what was measured, runs repeat and resume, colour is no model."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.data.landcover import SCORED, UNKNOWN
from hw1lib.errors import UserError
from hw1lib.loops import augment, losses, segment
from hw1lib.measures import metrics
from hw1lib.models import segmenters
from hw1lib.models.average import Averaged
from hw1lib.settings import Data, Segment
from hw1lib.steps import store
from tests.conftest import write_tile

CPU = torch.device("cpu")


@pytest.fixture
def problem2(course_data):
    return layout.find(course_data, Data()).problem2


# --- prediction


class Fixed(nn.Module):
    """Scores that depend on the brightness of a pixel; unknown always has the highest."""

    def forward(self, batch):
        ranks = batch.mean(1, keepdim=True) * torch.linspace(-1, 1, 7).view(1, 7, 1, 1)
        ranks[:, UNKNOWN] = 20
        return ranks


def pixels(count=5, height=32, width=32, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3, height, width)).astype(np.uint8)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("enlarge", [1, 2])
def test_unknown_is_no_answer(enlarge, tta):
    settings = Segment(batch_size=2, enlarge=enlarge)
    predicted = segment.predict(Fixed(), pixels(5, 32, 64), CPU, settings, tta)
    assert predicted.shape == (5, 32, 64) and predicted.dtype == np.uint8
    assert predicted.max() < UNKNOWN and len(np.unique(predicted)) > 1


@pytest.mark.parametrize("tta", [False, True])
def test_predictions_do_not_depend_on_the_batch(tta):
    one, many = (segment.predict(Local(), pixels(5), CPU, Segment(batch_size=b), tta) for b in (2, 100))
    assert np.array_equal(one, many)


def test_predictions_are_the_highest_scores_class():
    batch = augment.normalise(torch.from_numpy(pixels()))
    expected = Local()(batch)[:, :UNKNOWN].argmax(1)
    found = segment.predict(Local(), pixels(), CPU, Segment(batch_size=3))
    assert np.array_equal(found, expected) and len(np.unique(found)) == UNKNOWN


# --- test-time augmentation


class Local(nn.Module):
    """A 3 × 3 convolution that sees left from right, or of one pixel each: the same for all eight.

    Args:
        kernel: 3 or 1.
    """

    def __init__(self, kernel=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(7, 3, kernel, kernel, generator=generator)

    def forward(self, batch):
        return F.conv2d(batch, self.weight, padding=self.weight.shape[-1] // 2)


EIGHT = [  # of a square: what is done, and what undoes it
    (lambda x: x, lambda x: x),
    (lambda x: x.flip(2), lambda x: x.flip(2)),
    (lambda x: x.flip(3), lambda x: x.flip(3)),
    (lambda x: x.flip(2, 3), lambda x: x.flip(2, 3)),
    (lambda x: x.mT, lambda x: x.mT),
    (lambda x: x.mT.flip(2), lambda x: x.flip(2).mT),
    (lambda x: x.mT.flip(3), lambda x: x.flip(3).mT),
    (lambda x: x.mT.flip(2, 3), lambda x: x.flip(2, 3).mT),
]


@pytest.mark.parametrize("shape", [(32, 32), (32, 64), (96, 32)])
def test_turned_scores_are_the_mean_over_eight_symmetries(shape):
    batch = augment.normalise(torch.from_numpy(pixels(3, *shape)))
    single = [undo(Local()(do(batch))[:, :UNKNOWN].softmax(1)) for do, undo in EIGHT]
    found = segment.turned_scores(Local(), batch)
    torch.testing.assert_close(found, torch.stack(single).mean(0), atol=1e-6, rtol=1e-5)
    apart = [(one - other).abs().max() for i, one in enumerate(single) for other in single[:i]]
    assert min(apart) > 0.1  # so that each of the eight had a part in it


@pytest.mark.parametrize("enlarge", [1, 2, 3])
@pytest.mark.parametrize("shape", [(32, 32), (20, 45)])
def test_a_network_that_knows_no_direction_gains_nothing(shape, enlarge):
    """Scores turn with their image, so the mean over all turns is the plain one."""
    batch = augment.normalise(torch.from_numpy(pixels(2, *shape)))
    plain = segmenters.scores(Local(1), batch, enlarge)
    found = segment.turned_scores(Local(1), batch, enlarge)
    if enlarge == 1:
        torch.testing.assert_close(found, plain[:, :UNKNOWN].softmax(1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
    smooth = F.interpolate(batch, scale_factor=enlarge, mode="bilinear", align_corners=False)
    averaged = F.avg_pool2d(Local(1)(smooth), enlarge)[:, :UNKNOWN].softmax(1)
    torch.testing.assert_close(found, averaged, atol=1e-5, rtol=1e-4)


def test_turned_scores_turn_with_their_images():
    """Whatever the network: that is what the mean is for."""
    batch = augment.normalise(torch.from_numpy(pixels(2, 32, 32)))
    plain = segment.turned_scores(Local(), batch)
    for do, _ in EIGHT:
        turned = segment.turned_scores(Local(), do(batch))
        torch.testing.assert_close(turned, do(plain), atol=1e-6, rtol=1e-5)


# --- stages and summary


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (50, (1, 25, 50))]
)
def test_stages_are_first_middle_and_last(epochs, expected):
    assert tuple(segment.stage_epochs(epochs).values()) == expected
    assert tuple(segment.stage_epochs(epochs)) == segment.STAGES


def row(epoch, matrix):
    return {"epoch": epoch, "miou": metrics.miou(matrix), "confusion": matrix.tolist()}


def test_the_summary_takes_the_best_epoch_and_keeps_the_last():
    good, bad = np.eye(7, dtype=int) * 5, np.full((7, 7), 2)
    found = segment.summary([row(1, bad), row(2, good), row(3, bad)])
    assert found["epoch"] == 2 and found["miou"] == 1 and found["pixel_accuracy"] == 1
    assert found["miou_last"] == metrics.miou(bad)
    assert found["confusion"] == good.tolist() and found["confusion_last"] == bad.tolist()
    assert found["iou"] != found["iou_last"] == segment.summary([row(3, bad)])["iou"]
    assert segment.summary([row(1, good), row(2, good)])["epoch"] == 1  # the first of equals


def test_an_absent_class_is_none_and_left_out():
    matrix = np.diag([3, 3, 0, 3, 3, 3, 0])
    matrix[0, 1] = 3
    found = segment.summary([row(1, matrix)])
    assert found["iou"]["rangeland"] is None
    assert list(found["iou"]) == list(SCORED)
    there = [v for v in found["iou"].values() if v is not None]
    assert len(there) == 5 and found["miou"] == pytest.approx(np.mean(there))


@pytest.mark.parametrize(
    ("name", "enlarge", "expected"),
    [("fcn32s", 1, 32), ("fcn32s", 2, 16), ("lraspp", 1, 8), ("lraspp", 2, 4), ("deeplabv3", 8, 1), ("lraspp", 3, 2)],
)
def test_an_enlarged_tile_has_a_finer_stride(name, enlarge, expected):
    assert segment.stride(name, Segment(enlarge=enlarge)) == expected


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


SMALL = {
    "model_scale": 0.125,
    "lraspp.epochs": 3,
    "lraspp.batch_size": 2,
    "lraspp.crop": 16,
    "lraspp.average": 0.9,
    "lraspp.norm_momentum": 1.0,
    "segmentation.stage_images": "0003,0001",
    "checkpoint_every": 0,
}


def run(folder, problem2, **changes):
    """Trains LR-ASPP as the smoke profile does: Lovász, enlarged tiles, test-time augmentation."""
    settings = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    draft = store.Draft("segment-lraspp", folder)
    segment.run(draft, problem2, profiles.get("smoke", settings), "lraspp", CPU)
    return store.Result(draft.step, folder)


def files(folder):
    """What a run left behind, byte by byte, but for its checkpoint."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != store.CHECKPOINT}


@pytest.fixture
def oblong(tmp_path):
    """Tiles of 32 × 48 pixels."""
    for split, count in (("train", 4), ("validation", 3)):
        for number in range(count):
            random = np.random.default_rng(number)
            blocks = random.permutation(np.arange(24) % 7).reshape(4, 6).astype(np.uint8)
            tile = blocks.repeat(8, 0).repeat(8, 1)
            write_tile(tmp_path / "oblong" / split, f"{number + 1:04d}", tile)
    found = [
        layout.Tiles(tmp_path / "oblong" / split, tuple(f"{n + 1:04d}" for n in range(count)))
        for split, count in (("train", 4), ("validation", 3))
    ]
    return layout.Problem2(*found)


@pytest.mark.parametrize("tta", [True, False])
@pytest.mark.parametrize("average", [0.9, 0.0])
def test_what_a_run_saves_is_what_it_measured(tmp_path, problem2, average, tta):
    """Every saved mask: at last, in stages, and with test-time augmentation."""
    result = run(tmp_path, problem2, lraspp__average=average, lraspp__tta=tta)
    numbers, predictions = result.metrics, result.array("predictions")
    assert predictions.shape == (3, 32, 32) and predictions.dtype == np.uint8
    _, masks, _ = images.load_tiles(problem2.validation)
    matrix = metrics.confusion(masks, predictions)
    assert numbers["confusion_last"] == matrix.tolist()
    assert numbers["miou_last"] == metrics.miou(matrix)
    assert result.history["miou"].iloc[-1] == pytest.approx(numbers["miou_last"])
    assert np.array_equal(result.array("stage_final"), predictions[[2, 0]])
    assert numbers["stray_pixels"] == 0
    assert ("tta" in numbers) == tta == (tmp_path / "predictions_tta.npy").is_file()
    if tta:
        turned = result.array("predictions_tta")
        matrix = metrics.confusion(masks, turned)
        assert numbers["tta"]["confusion"] == matrix.tolist()
        assert numbers["tta"]["miou"] == numbers["tta"]["miou_last"] == metrics.miou(matrix)
        assert numbers["tta"]["epoch"] == 3
        assert not np.array_equal(turned, predictions)


@pytest.mark.parametrize("average", [0.9, 0.0])
def test_the_stored_weights_are_those_that_were_evaluated(tmp_path, problem2, average):
    result = run(tmp_path, problem2, lraspp__average=average)
    network = segmenters.build("lraspp", 0.125)
    network.load_state_dict(result.weights())  # strict: no name of a wrapper
    network = network.eval().to(memory_format=torch.channels_last)
    pixels, _, _ = images.load_tiles(problem2.validation)
    settings = profiles.get("smoke", SMALL).lraspp
    for name, tta in (("predictions", False), ("predictions_tta", True)):
        again = segment.predict(network, pixels, CPU, settings, tta)
        assert np.array_equal(again, result.array(name))


def test_the_stored_weights_are_the_average_over_all_steps(tmp_path, problem2, monkeypatch):
    """Recomputed from the network's own weights after each of the six steps."""
    seen = []
    follow = Averaged.follow

    def noted(module, step):
        assert step == len(seen) + 1  # counted from 1, over all epochs
        seen.append({n: v.clone() for n, v in module.network.state_dict().items()})
        follow(module, step)

    monkeypatch.setattr(Averaged, "follow", noted)
    start = {}
    build = segmenters.build

    def built(*words):
        network = build(*words)
        start.update({n: v.clone() for n, v in network.state_dict().items()})
        return network

    monkeypatch.setattr(segmenters, "build", built)
    result = run(tmp_path, problem2)
    assert len(seen) == 3 * 2
    expected = start
    for step, state in enumerate(seen, start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in state.items():
            kept = decay * expected[name] + (1 - decay) * value
            expected[name] = kept if value.is_floating_point() else value
    stored = result.weights()
    assert stored.keys() == expected.keys()
    for name, value in stored.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(stored["backbone.0.0.weight"], seen[-1]["backbone.0.0.weight"])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("average", [0.9, 0.0])
@pytest.mark.parametrize("place", [3, 5, 6])  # loss number so and so of six
def test_a_resumed_run_leaves_what_an_uninterrupted_one_does(tmp_path, problem2, place, average, monkeypatch):
    """File by file, to the bit; the average goes on from the checkpoint, too."""
    run(tmp_path / "whole", problem2, lraspp__average=average)
    plain, calls = losses.segmentation, []

    def stopping(*words):
        calls.append(words)
        if len(calls) == place:
            raise Stopped
        return plain(*words)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "segmentation", stopping)
        with pytest.raises(Stopped):
            run(tmp_path / "twice", problem2, lraspp__average=average)
        del calls[:]
        patch.setattr(losses, "segmentation", lambda *words: calls.append(1) or plain(*words))
        assert (tmp_path / "twice" / store.CHECKPOINT).is_file()
        run(tmp_path / "twice", problem2, lraspp__average=average)
    assert len(calls) == 7 - place  # no step was taken again
    whole, twice = files(tmp_path / "whole"), files(tmp_path / "twice")
    assert whole.keys() == twice.keys()
    assert [name for name in whole if whole[name] != twice[name]] == []


def test_two_runs_leave_the_same_and_another_seed_does_not(tmp_path, problem2):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        run(tmp_path / name, problem2, seed=seed)
    one, two, other = (files(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one["weights.safetensors"] != other["weights.safetensors"]


@pytest.mark.parametrize(("loss", "balance"), [("cross_entropy", 0.0), ("focal", 0.5), ("dice", 1.0), ("lovasz", 0.3)])
def test_a_run_trains_with_the_loss_and_weights_that_are_set(tmp_path, problem2, loss, balance, monkeypatch):
    plain, seen = losses.segmentation, []

    def noted(scores, masks, kind, weights):
        seen.append((tuple(scores.shape), kind, weights))
        return plain(scores, masks, kind, weights)

    monkeypatch.setattr(losses, "segmentation", noted)
    run(tmp_path, problem2, lraspp__loss=loss, lraspp__balance=balance, lraspp__epochs=1)
    _, masks, _ = images.load_tiles(problem2.train)
    for shape, kind, weights in seen:
        assert shape == (2, 7, 16, 16) and kind == loss
        assert torch.equal(weights, losses.class_weights(masks, balance))
    assert len(seen) == 2


@pytest.mark.parametrize("enlarge", [1, 2])
def test_the_network_sees_tiles_enlarged_in_training_and_evaluation(tmp_path, problem2, enlarge, monkeypatch):
    plain, seen = segmenters.scores, []

    def noted(network, pixels, times=1):
        seen.append((network.training, tuple(pixels.shape[2:]), times))
        return plain(network, pixels, times)

    monkeypatch.setattr(segmenters, "scores", noted)
    run(tmp_path, problem2, lraspp__enlarge=enlarge, lraspp__epochs=1)
    # Two steps; two batches of validation tiles, at first once and then in eight turns.
    assert seen == 2 * [(True, (16, 16), enlarge)] + 18 * [(False, (32, 32), enlarge)]


def test_averaging_leaves_the_training_as_it_is(tmp_path, problem2):
    plain = run(tmp_path / "plain", problem2, lraspp__average=0.0).history["loss"]
    averaged = run(tmp_path / "averaged", problem2, lraspp__average=0.99).history["loss"]
    assert plain.tolist() == averaged.tolist()


@pytest.mark.parametrize("crop", [0, 16, 32])
@pytest.mark.parametrize("name", ["lraspp", "fcn32s"])
def test_tiles_that_are_not_square_are_trained_on(tmp_path, oblong, name, crop):
    settings = SMALL | {
        f"{name}.{key}": value for key, value in dict(crop=crop, epochs=1, batch_size=4, enlarge=2, tta=True).items()
    }
    draft = store.Draft(f"segment-{name}", tmp_path)
    segment.run(draft, oblong, profiles.get("smoke", settings), name, CPU)
    result = store.Result(draft.step, tmp_path)
    _, masks, _ = images.load_tiles(oblong.validation)
    stride = {"lraspp": 4, "fcn32s": 16}[name]  # a stride of 8 or 32, enlarged twice
    assert result.metrics["ceiling"] == metrics.ceiling(masks, stride)
    for array, numbers in (("predictions", result.metrics), ("predictions_tta", result.metrics["tta"])):
        predicted = result.array(array)
        assert predicted.shape == (3, 32, 48)
        assert numbers["confusion_last"] == metrics.confusion(masks, predicted).tolist()


@pytest.mark.parametrize("crop", [33, 40, 64])
def test_a_crop_larger_than_the_tiles_is_a_clear_error(tmp_path, problem2, oblong, crop):
    with pytest.raises(UserError, match=rf"{crop} pixels .*32 × 32\b.*0 for whole tiles"):
        run(tmp_path, problem2, lraspp__crop=crop)
    with pytest.raises(UserError, match=rf"{crop} pixels .*48 × 32\b"):  # the shorter side decides
        run(tmp_path, oblong, lraspp__crop=crop)


def test_a_run_keeps_its_stages_of_the_asked_images(tmp_path, problem2, monkeypatch):
    epochs = iter((1, 2, 3))

    def noted(network, pixels, *words):
        """Each image all of one class, another one in each epoch."""
        numbers = (np.arange(len(pixels)) + next(epochs)).astype(np.uint8)
        return np.broadcast_to(numbers[:, None, None], (len(pixels), 32, 32))

    monkeypatch.setattr(segment, "predict", noted)
    result = run(tmp_path, problem2, lraspp__tta=False)  # it asks for the images 0003 and 0001
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


def batch_of(pixels, masks, monkeypatch, **changes):
    """The first batch of an epoch, its colours left as they are."""
    monkeypatch.setattr(augment, "recolour", lambda images, recipe: images)
    profile = profiles.get("demo")
    settings = dataclasses.replace(profile.lraspp, **{"batch_size": len(pixels), **changes})
    torch.manual_seed(0)
    return next(segment._batches(pixels, masks, profile, settings, CPU)(1))


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("crop", [0, 16, 32])
@pytest.mark.parametrize("kind", ["problem2", "oblong"])
def test_augmented_masks_still_fit_their_images(kind, crop, scale, request, monkeypatch):
    """Colours tell classes here, so a mask that moved otherwise would show."""
    pixels, masks, _ = images.load_tiles(request.getfixturevalue(kind).train)
    pixels, masks = (np.concatenate([array] * 4) for array in (pixels, masks))
    batch, moved = batch_of(pixels, masks, monkeypatch, crop=crop, crop_scale=scale)
    size = (crop, crop) if crop else pixels.shape[2:]
    assert moved.dtype == torch.uint8 and moved.shape == (16, *size)
    ground = {}
    for image, mask in zip(torch.from_numpy(pixels), torch.from_numpy(masks)):
        for number in mask.unique().tolist():
            ground[number] = image[:, mask == number].float().mean(1) / 255
    expected = torch.stack([ground[n] for n in range(7)])[moved.long()].permute(0, 3, 1, 2)
    off = (augment.denormalise(batch) - expected).abs().amax(1) > 0.02
    assert off.float().mean() < 0.4  # at the borders of blocks alone
    inner = F.max_pool2d(moved.float(), 5, 1) == -F.max_pool2d(-moved.float(), 5, 1)
    assert inner.any() and not off[:, 2:-2, 2:-2][inner].any()


@pytest.mark.parametrize(
    ("kind", "crop", "scale", "most"),
    [
        ("problem2", 16, 1.0, 40),
        ("problem2", 0, 1.0, 8),
        ("problem2", 0, 0.4, 40),
        ("oblong", 16, 1.0, 40),
        ("oblong", 0, 1.0, 4),
        ("oblong", 0, 0.4, 40),
    ],
)
def test_each_image_of_a_batch_has_a_draw_of_its_own(kind, crop, scale, most, request, monkeypatch):
    """One tile forty times: whole tiles show its symmetries, crops are all different."""
    pixels, masks, _ = images.load_tiles(request.getfixturevalue(kind).train)
    noise = np.random.default_rng(0).integers(0, 256, pixels[:1].shape).astype(np.uint8)
    pixels, masks = noise.repeat(40, 0), masks[:1].repeat(40, 0)
    batch, _ = batch_of(pixels, masks, monkeypatch, crop=crop, crop_scale=scale)
    flat = batch.flatten(1)
    same = torch.cdist(flat, flat) < 1e-2 * flat.shape[1] ** 0.5
    assert len(torch.unique(same, dim=0)) == most


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


def test_a_stage_image_that_is_not_there_is_named(tmp_path, problem2):
    with pytest.raises(UserError, match=r"segmentation\.stage_images.*'0077'"):
        run(tmp_path, problem2, segmentation__stage_images="0077")
