"""Segmentation: what is saved is what was measured, runs resume, and augmented masks fit their images."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.data.landcover import UNKNOWN
from hw1lib.errors import UserError
from hw1lib.loops import augment, train_segmenter
from hw1lib.metrics import iou
from hw1lib.models import segmenters
from hw1lib.models.ema import Averaged
from hw1lib.settings import Segment
from hw1lib.steps import store
from tests import processes
from tests.conftest import write_tile

CPU = torch.device("cpu")


def tiles(root, width=32):
    """Problem 2 with tiles of blocks of 8 × 8 pixels, whose colours are those of their classes."""
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
    """A 3 × 3 convolution without symmetries, whose highest score is always "unknown"."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(7, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.bias = torch.tensor([0.0] * UNKNOWN + [99.0])

    def forward(self, batch):
        return F.conv2d(batch, self.weight, self.bias, padding=1)


@pytest.mark.parametrize(("tta", "enlarge", "seen"), [(False, 1, range(UNKNOWN)), (True, 2, [0, 2, 5])])
@processes.float64()  # scores differ by more than rounding
def test_predictions_are_the_classes_of_the_highest_scores_among_those_seen(enlarge, tta, seen):
    """Never "unknown", for any batch size."""
    network, shape = Local(), (5, 32, 64)
    scores = train_segmenter.tta_scores if tta else segmenters.scores
    expected = np.array(seen)[scores(network, normalised(*shape), enlarge)[:, list(seen)].argmax(1)]
    for batch_size in (2, 100):
        settings = Segment(batch_size=batch_size, enlarge=enlarge)
        predicted = train_segmenter.predict(network, pixels(*shape), CPU, settings, tta, seen)
        assert predicted.dtype == np.uint8 and np.array_equal(predicted, expected)
    assert len(np.unique(predicted)) == len(seen)


@pytest.mark.parametrize("shape", [(32, 32), (96, 32)])
def test_tta_scores_are_the_mean_over_eight_symmetries(shape):
    """Four flips of the image, and four of its transpose; each contributes."""
    batch, single = normalised(3, *shape), []
    for mirror in (lambda x: x, lambda x: x.mT):
        for sides in ((), (2,), (3,), (2, 3)):
            probabilities = Local()(mirror(batch).flip(sides))[:, :UNKNOWN].softmax(1)
            single.append(mirror(probabilities.flip(sides)))
    scores = train_segmenter.tta_scores(Local(), batch)
    torch.testing.assert_close(scores, torch.stack(single).mean(0), atol=1e-6, rtol=1e-5)
    assert min((one - other).abs().max() for i, one in enumerate(single) for other in single[:i]) > 0.1


@pytest.mark.parametrize(("epochs", "expected"), [(1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4))])
def test_stages_are_the_first_middle_and_last_epoch(epochs, expected):
    assert train_segmenter.stage_epochs(epochs) == dict(zip(("early", "middle", "final"), expected))


# --- the colour control


def colour(folder, problem2):
    train_segmenter.colour(store.Draft("segment-colour", folder), problem2)
    return store.Result("segment-colour", folder)


def test_a_colour_gets_its_most_common_class_and_a_new_one_that_of_all_pixels(tmp_path, monkeypatch):
    """With 16 levels of each channel, 0 to 15 are one colour."""
    train, val = np.full((2, 1, 3, 2, 5), 100, np.uint8)
    train[..., 3:], val[0, :, 0], val[0, :, 1] = 15, 0, [[15], [16], [15]]
    masks = np.array([[[3, 3, 3, 2, 2], [6, 6, 6, 1, 6]]], np.uint8)
    monkeypatch.setattr(images, "load_tiles", Mock(side_effect=[(train, masks), (val, masks)]))
    assert colour(tmp_path, layout.Problem2(Mock(), Mock())).array("predictions").tolist() == [[[2] * 5, [3] * 5]]


# --- whole steps

SMALL = {
    "model_scale": 0.125, "lraspp.epochs": 3, "lraspp.batch_size": 2, "lraspp.crop": 16, "lraspp.average": 0.9,
    "lraspp.norm_momentum": 1.0, "segmentation.stage_images": "0003,0001", "checkpoint_every": 1000,
}  # fmt: skip


def run(folder, problem2, name="lraspp", **changes):
    """Train as the smoke profile does: Lovász loss, enlarged tiles, test-time augmentation."""
    settings = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    draft = store.Draft(f"segment-{name}", folder)
    train_segmenter.run(draft, problem2, profiles.get("smoke", settings), CPU, name=name)
    return store.Result(draft.step, folder)


@pytest.mark.slow
def test_the_average_follows_the_network_and_does_not_change_its_training(tmp_path, problem2, monkeypatch):
    steps, follow = [], Averaged.follow
    monkeypatch.setattr(Averaged, "follow", lambda self, step: steps.append((step, self.decay)) or follow(self, step))
    averaged, plain = (run(tmp_path / str(average), problem2, lraspp__average=average) for average in (0.9, 0.0))
    assert steps == [(step, 0.9) for step in range(1, 7)]
    assert plain.history["loss"].tolist() == averaged.history["loss"].tolist()
    assert not torch.equal(*(result.weights()["backbone.0.0.weight"] for result in (averaged, plain)))


@pytest.mark.parametrize(("name", "crop"), [("lraspp", 0), ("lraspp", 16), ("fcn32s", 32)])
def test_tiles_that_are_not_square_are_trained_on(tmp_path, name, crop):
    oblong = tiles(tmp_path / "tiles", width=48)
    changes = dict(crop=crop, epochs=1, batch_size=4, enlarge=3, tta=True)
    result = run(tmp_path / "run", oblong, name, **{f"{name}__{key}": value for key, value in changes.items()})
    _, masks = images.load_tiles(oblong.validation)
    stride = {"lraspp": 2, "fcn32s": 10}[name]  # 8 or 32 in the enlarged tile
    assert result.metrics["ceiling"] == iou.ceiling(masks, stride)
    for array, metrics in (("predictions", result.metrics), ("predictions_tta", result.metrics["tta"])):
        assert result.array(array).shape == (3, 32, 48)
        assert metrics["confusion_last"] == iou.confusion(masks, result.array(array)).tolist()


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("step", [run, colour])
def test_tiles_without_any_class_are_a_clear_error(tmp_path, problem2, step, split):
    for number in getattr(problem2, split).numbers:
        write_tile(tmp_path / "tiles" / split, number, np.full((32, 32), UNKNOWN, np.uint8))
    with pytest.raises(UserError, match=rf"{split} shows a known class.*data\.tile_limit"):
        step(tmp_path / "run", problem2)


# --- batches


def test_without_augmentation_batches_are_the_tiles_themselves():
    profile, classes = profiles.get("seed"), pixels(1)[:, 0] % 7
    batch, masks = next(train_segmenter.training_batches(pixels(1), classes, profile, profile.fcn32s, CPU)(1))
    assert torch.equal(batch, normalised(1)) and np.array_equal(masks, classes)


@pytest.mark.parametrize(("width", "crop", "scale"), [(32, 0, 1.0), (32, 0, 0.4), (48, 0, 0.4), (48, 16, 1.0)])
def test_augmented_masks_fit_their_images(tmp_path, width, crop, scale, monkeypatch):
    """Colours show the classes; masks may differ from them only at the borders of blocks."""
    pixels, masks = (np.concatenate([array] * 4) for array in images.load_tiles(tiles(tmp_path, width).train))
    monkeypatch.setattr(augment, "recolour", lambda images, table, recipe: images)
    settings = profiles.get("demo").lraspp.model_copy(update={"batch_size": 16, "crop": crop, "crop_scale": scale})
    profile = profiles.get("demo")
    batch, warped = next(train_segmenter.training_batches(pixels, masks, profile, settings, CPU)(1))
    assert warped.dtype == torch.uint8 and warped.shape == (16, *((crop, crop) if crop else pixels.shape[2:]))
    channels = torch.from_numpy(pixels).movedim(1, -1).float() / 255  # (N, H, W, 3)
    colours = torch.stack([channels[torch.from_numpy(masks) == number].mean(0) for number in range(7)])
    wrong = (augment.denormalise(batch) - colours[warped.long()].movedim(-1, 1)).abs().amax(1) > 0.02
    inner = F.max_pool2d(warped.float(), 5, 1) == -F.max_pool2d(-warped.float(), 5, 1)
    assert wrong.float().mean() < 0.4 and inner.any() and not wrong[:, 2:-2, 2:-2][inner].any()
    two_classes = np.where(masks > 2, 5, 0).astype(np.uint8)
    _, warped = next(train_segmenter.training_batches(pixels, two_classes, profile, settings, CPU)(1))
    assert set(warped.unique().tolist()) == {0, 5}  # no class in between
