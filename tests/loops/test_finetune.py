"""Fine-tuning: what is frozen stays, what is noted is what was computed, controls are fair."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.loops import augment, features, finetune, loop, pretrain
from hw1lib.metrics.statistics import share
from hw1lib.models import resnet
from hw1lib.settings import Data
from hw1lib.steps import store
from tests import processes

CPU = torch.device("cpu")
SETTINGS = {"finetune.epochs": 2, "finetune.batch_size": 6, "finetune.precision": "float32", "finetune.hidden": 16}
SETTINGS |= {"model_scale": 0.125}
STILL = {"finetune__lr": 1e-30, "finetune__epochs": 1, "finetune__weight_decay": 0.0}


@pytest.fixture
def problem1(course_data):
    return layout.find(course_data, Data()).problem1


def profile(**changes):
    return profiles.get("smoke", SETTINGS | {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def backbone():
    """The state of a pre-trained backbone, without fc as steps hand it on."""
    torch.manual_seed(3)
    network = resnet.backbone(0.125)
    network(torch.randn(8, 3, 32, 32))  # its running statistics are not the default
    return pretrain.without_fc(network)


def pretrained(weights):
    """What a loop sees of the step before."""
    return SimpleNamespace(weights=lambda: weights)


def fit(folder, problem1, setting, weights, **changes):
    draft = store.Draft(f"finetune-{setting}", folder)
    draft.folder.mkdir(exist_ok=True)
    finetune.run(draft, problem1, profile(**changes), CPU, weights and pretrained(weights), setting=setting)
    return store.Result(draft.step, folder)


def model(weights, frozen):
    """As a step of seed 0 begins with it."""
    loop.seed_everything(0, 0)
    network = resnet.backbone(0.125, True)
    network.load_state_dict(weights, strict=False)
    return resnet.Classifier(network, resnet.Head(3, hidden=16), frozen)


def pixels(split):
    return torch.from_numpy(images.load(split, 32))


# --- frozen or not


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "augmented", "standardise"), [("B", False, True), ("D", False, True), ("D", True, False)]
)
def test_only_what_is_not_frozen_is_trained_and_what_is_noted_is_what_was_computed(
    tmp_path, problem1, backbone, setting, augmented, standardise
):
    """Frozen are weights, BatchNorm's running statistics and counters; noted are activations without augmentation.

    Frozen features are standardised by the training images, where asked. A second run gives the same bytes.
    """
    changes = {"finetune__augment_frozen": augmented, "finetune__standardise": standardise}
    result, again = (fit(tmp_path / name, problem1, setting, backbone, **changes) for name in ("one", "two"))
    for path in result.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name
    state, begun = result.weights(), model(backbone, True)
    moved = {name for name in backbone if not torch.equal(state[f"backbone.{name}"], backbone[name])}
    assert moved == (set(backbone) if setting == "B" else set())
    assert not torch.equal(state["head.linear.weight"], begun.head.linear.weight)
    extracted = features.extract(begun.backbone, pixels(problem1.train), CPU)
    mean = extracted.mean(0) * (standardise and setting == "D")
    torch.testing.assert_close(state["head.mean"], mean, atol=1e-5, rtol=1e-4)

    saved = model(backbone, setting == "D").eval()
    saved.load_state_dict(state)
    with torch.no_grad():
        entered = saved.head.activations(saved.features(augment.normalise(pixels(problem1.train))))
        logits = saved(augment.normalise(pixels(problem1.val)))
    first, last = (result.array(f"activations_{name}") for name in ("first", "last"))
    apart = 1e-3 * float(entered.abs().max())  # a thousand times what float32 rounds, and less than training moves
    np.testing.assert_allclose(last, entered, rtol=0, atol=apart)
    assert first.shape == last.shape == (len(problem1.train), 16) and not np.allclose(first, last, rtol=0, atol=apart)
    predictions, truth = result.array("predictions"), problem1.val.labels
    assert predictions[-1].tolist() == logits.argmax(1).tolist()
    assert result.history["accuracy"].tolist() == pytest.approx((predictions == truth).mean(axis=1))
    expected = F.cross_entropy(logits, torch.from_numpy(truth)).item()
    assert result.history["val_loss"].iloc[-1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_settings_differ_in_what_they_start_from(tmp_path, problem1, backbone):
    """Setting A and the random control start from the seed's random weights, alike; all share one head."""
    kernel, head = "backbone.conv1.weight", "head.linear.weight"
    start = model({}, True).state_dict()
    for name, weights, seed in (("A", None, 0), ("random", None, 0), ("C", backbone, 0), ("A", None, 1)):
        found = fit(tmp_path / f"{name}{seed}", problem1, name, weights, seed=seed, **STILL).weights()
        assert torch.equal(found[head], start[head]) == (seed == 0)
        assert torch.equal(found[kernel], start[kernel]) == (seed == 0 and weights is None)
        assert weights is None or torch.equal(found[kernel], backbone["conv1.weight"])


# --- what is noted


def test_metrics_follow_from_the_predictions_of_every_epoch(tmp_path, problem1, monkeypatch):
    """The best epoch is the first of equals."""
    truth = problem1.val.labels
    rights = (2, 5, 5, 3)  # of six, in each epoch
    predictions = [np.where(np.arange(6) < right, truth, (truth + 1) % 3).tolist() for right in rights]
    history = [{"epoch": n + 1, "predictions": predicted} for n, predicted in enumerate(predictions)]
    monkeypatch.setattr(loop, "train", lambda *_, **__: history)
    result = fit(tmp_path, problem1, "random", None)
    assert result.array("predictions").tolist() == predictions and len(result.history) == 4
    best, last = {"correct": 5, "total": 6, "epoch": 2, "accuracy": 5 / 6}, {"correct_last": 3, "accuracy_last": 0.5}
    assert result.metrics == best | last | {"interval_last": list(share(np.arange(6) < 3))}


# --- controls


@processes.float64()  # distances of nearly equal images
def test_knn_is_the_majority_of_the_nearest_by_cosine(tmp_path, problem1, backbone):
    """On the pre-trained features, and on those of the random backbone that setting A starts from.

    Labels are shuffled, else their colours would tell the classes apart in any features.
    """
    labels = np.random.default_rng(0).permutation(problem1.train.labels)
    problem1 = dataclasses.replace(problem1, train=dataclasses.replace(problem1.train, labels=labels))
    draft, truth = store.Draft("control-knn", tmp_path), problem1.val.labels
    finetune.knn(draft, problem1, profile(controls__knn=3), CPU, pretrained(backbone))
    result = store.Result("control-knn", tmp_path)
    for suffix, state in (("", backbone), ("_random", {})):
        network = model(state, True).backbone
        if not state:
            features.calibrate(network, pixels(problem1.train), CPU)
        train, val = (features.extract(network, pixels(s), CPU).double() for s in (problem1.train, problem1.val))
        expected = KNeighborsClassifier(3, metric="cosine").fit(train, labels).predict(val)  # by scikit-learn alone
        found = result.array(f"predictions{suffix}")
        assert found.dtype == np.int16 and found.tolist() == [expected.tolist()]
        assert result.metrics[f"correct{suffix}"] == (expected == truth).sum()
        assert result.metrics[f"accuracy{suffix}"] == (expected == truth).mean()
    assert not np.array_equal(result.array("predictions"), result.array("predictions_random"))


def test_the_colour_control_learns_what_colour_tells(tmp_path, problem1):
    """Each class of the small folder has its own colour."""
    draft = store.Draft("control-colour", tmp_path)
    finetune.colour(draft, problem1, profile(finetune__epochs=30, finetune__lr=0.01), CPU)
    assert store.Result("control-colour", tmp_path).metrics["accuracy_last"] == 1
