"""Fine-tuning: what is frozen stays, what is noted is what was computed, controls are fair."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.loops import augment, features, finetune, pretrain, training
from hw1lib.loops.batches import ArrayBatches
from hw1lib.models import classifier
from hw1lib.steps import store
from tests.conftest import save_oddly

CPU = torch.device("cpu")
SETTINGS = {
    "finetune.epochs": 2,
    "finetune.batch_size": 6,
    "finetune.precision": "float32",
    "finetune.hidden": 16,
    "model_scale": 0.125,
}
STILL = {"finetune__lr": 0.0, "finetune__epochs": 1, "finetune__weight_decay": 0.0}


@pytest.fixture
def problem1(course_data):
    return layout.find(course_data, profiles.Data()).problem1


def profile(**changes):
    return profiles.get("smoke", SETTINGS | {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def backbone():
    """The state of a pre-trained backbone, without fc as steps hand it on."""
    torch.manual_seed(3)
    network = classifier.backbone(0.125)
    network(torch.randn(8, 3, 32, 32))  # its running statistics are not the default
    return pretrain.without_fc(network)


def fit(folder, problem1, setting, weights, **changes):
    draft = store.Draft(f"finetune-{setting}", folder)
    draft.folder.mkdir(exist_ok=True)
    finetune.run(draft, problem1, profile(**changes), setting, weights, CPU)
    return store.Result(draft.step, folder)


def model(weights, frozen, hidden=16):
    torch.manual_seed(0)
    network = classifier.backbone(0.125)
    network.load_state_dict(weights, strict=False)
    return classifier.Classifier(network, classifier.Head(3, hidden=hidden), frozen)


def pixels(split):
    return torch.from_numpy(images.load(split, 32))


# --- frozen or not


@pytest.mark.parametrize(
    ("setting", "augmented", "changed"), [("B", False, "all"), ("D", False, "none"), ("D", True, "none")]
)
def test_a_frozen_backbone_changes_in_nothing_and_another_in_everything(
    tmp_path, problem1, backbone, setting, augmented, changed
):
    """Weights, BatchNorm's running statistics and counters; whichever way the head is trained."""
    result = fit(tmp_path / "run", problem1, setting, backbone, finetune__augment_frozen=augmented)
    state = result.weights()
    moved = {n for n, v in backbone.items() if not torch.equal(state[f"backbone.{n}"], v)}
    assert moved == (set(backbone) if changed == "all" else set())
    start = fit(tmp_path / "start", problem1, setting, backbone, **STILL).weights()
    assert not torch.equal(state["head.linear.weight"], start["head.linear.weight"])


def test_settings_differ_in_what_they_start_from(tmp_path, problem1, backbone):
    """Setting A and the random control start from the seed's random weights, alike; all share one head."""
    free, frozen, given = (
        fit(tmp_path / name, problem1, name, weights, **STILL).weights()
        for name, weights in (("A", None), ("random", None), ("C", backbone))
    )
    kernel, head = "backbone.conv1.weight", "head.linear.weight"
    assert torch.equal(free[kernel], frozen[kernel]) and not torch.equal(given[kernel], free[kernel])
    assert torch.equal(given[kernel], backbone["conv1.weight"])
    assert torch.equal(free[head], frozen[head]) and torch.equal(free[head], given[head])
    other = fit(tmp_path / "seed", problem1, "A", None, seed=1, **STILL).weights()
    assert not torch.equal(other[kernel], free[kernel])


# --- what is noted


@pytest.mark.parametrize("setting", ["B", "D"])
def test_what_is_noted_is_what_the_saved_model_computes(tmp_path, problem1, backbone, setting):
    """Activations of the training images, in their order, without augmentation and dropout; and validation."""
    result = fit(tmp_path / setting, problem1, setting, backbone)
    saved = model(backbone, setting == "D")
    saved.load_state_dict(result.weights())
    saved.eval()
    with torch.no_grad():
        entered = saved.head.activations(saved.features(augment.normalise(pixels(problem1.train))))
        logits = saved(augment.normalise(pixels(problem1.val)))
    first, last = (result.array(f"activations_{name}") for name in ("first", "last"))
    np.testing.assert_allclose(last, entered.numpy(), atol=1e-4)
    assert first.shape == last.shape == (len(problem1.train), 16) and not np.allclose(first, last, atol=1e-4)
    assert result.array("predictions")[-1].tolist() == logits.argmax(1).tolist()
    expected = F.cross_entropy(logits, torch.from_numpy(problem1.val.labels)).item()
    assert result.history["val_loss"].iloc[-1] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("epochs", [1, 4])
def test_metrics_follow_from_the_predictions_of_every_epoch(tmp_path, problem1, backbone, epochs):
    """A single epoch is first and last. Run again, everything is the same to the byte."""
    result, again = (fit(tmp_path / n, problem1, "B", backbone, finetune__epochs=epochs) for n in ("one", "two"))
    predictions, total = result.array("predictions"), len(problem1.val)
    correct = (predictions == problem1.val.labels).sum(axis=1)
    assert predictions.shape == (epochs, total)
    assert result.metrics == {
        "correct": correct.max(),
        "total": total,
        "epoch": 1 + correct.argmax(),  # the first of equals
        "accuracy": correct.max() / total,
        "correct_last": correct[-1],
        "accuracy_last": correct[-1] / total,
    }
    assert result.history["accuracy"].tolist() == pytest.approx((correct / total).tolist())
    assert "activations_last.npy" in {path.name for path in result.folder.iterdir()}
    for path in result.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize("standardise", [True, False])
def test_training_on_features_is_training_on_images(problem1, backbone, standardise):
    """A frozen model on un-augmented images takes the same steps as its head on the features."""
    chosen = dataclasses.replace(profile().finetune, optimizer="sgd", lr=0.05, epochs=3)
    labels = torch.from_numpy(problem1.train.labels)

    def train(module, tensors, prepare=None):
        batches = ArrayBatches(tensors, chosen.batch_size, 0, CPU, prepare)
        rows = training.train(module, finetune._loss(module), batches, chosen, CPU, seed=0, label="finetune-D")
        return [row["loss"] for row in rows]

    whole, short = model(backbone, True), model(backbone, True)
    extracted = features.extract(short.backbone, pixels(problem1.train), CPU)
    if standardise:
        whole.head.standardise_by(extracted), short.head.standardise_by(extracted)
    on_images = train(whole, [pixels(problem1.train), labels], lambda x, y: (augment.normalise(x), y))
    assert train(short.head, [extracted, labels]) == pytest.approx(on_images, abs=1e-5)
    with torch.no_grad():
        expected = whole.eval()(augment.normalise(pixels(problem1.train)))
        torch.testing.assert_close(short.head.eval()(extracted), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("standardise", [True, False])
def test_frozen_features_are_standardised_by_the_training_images_where_asked(tmp_path, problem1, backbone, standardise):
    settings = STILL | {"finetune__standardise": standardise}
    saved = fit(tmp_path / "D", problem1, "D", backbone, **settings).weights()
    free = fit(tmp_path / "B", problem1, "B", backbone, **settings).weights()
    extracted = features.extract(model(backbone, True).backbone, pixels(problem1.train), CPU)
    mean = extracted.mean(0) if standardise else torch.zeros(classifier.FEATURES)
    torch.testing.assert_close(saved["head.mean"], mean, atol=1e-5, rtol=1e-4)
    assert not free["head.mean"].any()


# --- controls


@pytest.mark.parametrize("seed", [0, 2])
def test_knn_is_the_majority_of_the_nearest_by_cosine(tmp_path, problem1, backbone, seed):
    """On the pre-trained features, and on those of the random backbone that setting A starts from.

    Labels are shuffled, else their colours would tell the classes apart in any features.
    """
    labels = np.random.default_rng(0).permutation(problem1.train.labels)
    problem1 = dataclasses.replace(problem1, train=dataclasses.replace(problem1.train, labels=labels))
    draft = store.Draft("control-knn", tmp_path)
    finetune.knn(draft, problem1, profile(controls__knn=3, seed=seed), backbone, CPU)
    result, truth = store.Result("control-knn", tmp_path), problem1.val.labels
    for suffix, state in (("", backbone), ("_random", None)):
        training.seed_everything(seed, 0)
        network = classifier.backbone(0.125)
        network.load_state_dict(state or {}, strict=False)
        train, val = (
            features.extract(network, pixels(s), CPU).double().numpy() for s in (problem1.train, problem1.val)
        )
        expected = KNeighborsClassifier(3, metric="cosine").fit(train, labels).predict(val)  # by scikit-learn alone
        found = result.array(f"predictions{suffix}")
        assert found.dtype == np.int16 and found.tolist() == [expected.tolist()]
        assert result.metrics[f"correct{suffix}"] == (expected == truth).sum()
        assert result.metrics[f"accuracy{suffix}"] == (expected == truth).mean()
    assert result.metrics["accuracy"] == result.metrics["accuracy_last"]
    assert not np.array_equal(result.array("predictions"), result.array("predictions_random"))


def test_the_colour_control_learns_what_colour_tells(tmp_path, problem1):
    """Each class of the small folder has its own colour."""
    draft = store.Draft("control-colour", tmp_path)
    finetune.colour(draft, problem1, profile(finetune__epochs=30, finetune__lr=0.01), CPU)
    assert store.Result("control-colour", tmp_path).metrics["accuracy_last"] == 1


@pytest.mark.parametrize("setting", ["A", "E"])
def test_gray_images_and_printing_inks_are_learnt_from(tmp_path, problem1, backbone, setting):
    """Office-Home's are of every kind; training and validation images alike."""
    for split in (problem1.train, problem1.val):
        save_oddly(split.folder)
    result = fit(tmp_path / setting, problem1, setting, backbone if setting == "E" else None, finetune__epochs=1)
    assert np.isfinite(result.history[["loss", "val_loss"]]).all(axis=None)
    assert np.isfinite(result.array("activations_last")).all()
