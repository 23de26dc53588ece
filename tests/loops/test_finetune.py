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


def moved(result, weights):
    """Names of the backbone's parameters and buffers that training changed."""
    state = result.weights()
    return {n for n, v in weights.items() if not torch.equal(state[f"backbone.{n}"], v)}


# --- frozen or not


@pytest.mark.parametrize("augmented", [False, True])
def test_a_frozen_backbone_changes_in_nothing(tmp_path, problem1, backbone, augmented):
    """Neither weights nor BatchNorm's running statistics; whichever way the head is trained."""
    result = fit(tmp_path / "D", problem1, "D", backbone, finetune__augment_frozen=augmented)
    assert moved(result, backbone) == set()


def test_the_random_control_keeps_its_random_backbone(tmp_path, problem1):
    """The one that setting A starts from."""
    start = fit(tmp_path / "A", problem1, "A", None, finetune__lr=0.0, finetune__epochs=1).weights()
    parameters = [n for n, _ in classifier.backbone(0.125).named_parameters() if n[:3] != "fc."]
    kept = {n: start[f"backbone.{n}"] for n in parameters}  # A's buffers may move at any rate
    assert moved(fit(tmp_path / "random", problem1, "random", None), kept) == set()


def test_an_unfrozen_backbone_changes_in_weights_and_statistics(tmp_path, problem1, backbone):
    result = fit(tmp_path / "B", problem1, "B", backbone)
    names = moved(result, backbone)
    assert names == set(backbone)  # all of it, buffers and counters too


def test_frozen_in_training_mode_too(backbone):
    network = classifier.backbone(0.125)
    network.load_state_dict(backbone, strict=False)
    model = classifier.Classifier(network, classifier.Head(3, hidden=8), frozen=True)
    model.train()
    before = {n: v.clone() for n, v in network.state_dict().items()}
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in model.head.parameters())


def test_settings_differ_in_what_they_start_from(tmp_path, problem1, backbone):
    """Setting A and the random control start from the seed's random weights, alike."""
    still = {"finetune__lr": 0.0, "finetune__epochs": 1, "finetune__weight_decay": 0.0}
    free = fit(tmp_path / "A", problem1, "A", None, **still).weights()
    frozen = fit(tmp_path / "random", problem1, "random", None, **still).weights()
    given = fit(tmp_path / "C", problem1, "C", backbone, **still).weights()
    kernel = "backbone.conv1.weight"
    assert torch.equal(free[kernel], frozen[kernel])
    assert torch.equal(given[kernel], backbone["conv1.weight"])
    assert not torch.equal(given[kernel], free[kernel])
    head = "head.linear.weight"  # but all share the head that they start with
    assert torch.equal(free[head], frozen[head]) and torch.equal(free[head], given[head])


# --- what is noted


@pytest.mark.parametrize("setting", ["B", "D"])
def test_activations_are_what_enters_the_last_layer(tmp_path, problem1, backbone, setting):
    """Of the training images, in their order, without augmentation and dropout."""
    result = fit(tmp_path / setting, problem1, setting, backbone)
    network = classifier.backbone(0.125)
    model = classifier.Classifier(network, classifier.Head(3, hidden=16), frozen=setting == "D")
    model.load_state_dict(result.weights())
    model.eval()
    entered = []
    model.head.linear.register_forward_hook(lambda _, inputs, __: entered.append(inputs[0]))
    with torch.no_grad():
        pixels = torch.from_numpy(images.load(problem1.train, 32))
        model(augment.normalise(pixels))
        logits = model(augment.normalise(torch.from_numpy(images.load(problem1.val, 32))))
    stored = result.array("activations_last")
    assert stored.shape == (len(problem1.train), 16)
    np.testing.assert_allclose(stored, entered[0].numpy(), atol=1e-4)
    first = result.array("activations_first")
    assert first.shape == stored.shape and not np.allclose(first, stored, atol=1e-4)
    assert result.array("predictions")[-1].tolist() == logits.argmax(1).tolist()
    expected = F.cross_entropy(logits, torch.from_numpy(problem1.val.labels)).item()
    assert result.history["val_loss"].iloc[-1] == pytest.approx(expected, abs=1e-4)


def test_metrics_follow_from_the_predictions_of_every_epoch(tmp_path, problem1, backbone):
    result = fit(tmp_path / "B", problem1, "B", backbone, finetune__epochs=4)
    predictions, metrics = result.array("predictions"), result.metrics
    correct = (predictions == problem1.val.labels).sum(axis=1)
    assert predictions.shape == (4, len(problem1.val)) and metrics["total"] == len(problem1.val)
    assert metrics["correct"] == correct.max()
    assert metrics["epoch"] == 1 + correct.argmax()  # the first of equals
    assert metrics["accuracy"] == correct.max() / metrics["total"]
    assert metrics["accuracy_last"] == correct[-1] / metrics["total"]
    shares = (correct / metrics["total"]).tolist()
    assert result.history["accuracy"].tolist() == pytest.approx(shares)


def test_a_single_epoch_is_first_and_last(tmp_path, problem1, backbone):
    result = fit(tmp_path / "D", problem1, "D", backbone, finetune__epochs=1)
    for name in ("activations_first", "activations_last"):
        assert result.array(name).shape == (len(problem1.train), 16)


def test_two_runs_are_the_same_to_the_byte(tmp_path, problem1, backbone):
    one, two = (fit(tmp_path / n, problem1, "B", backbone) for n in ("one", "two"))
    for path in sorted(one.folder.iterdir()):
        assert path.read_bytes() == (two.folder / path.name).read_bytes(), path.name


# --- features computed once


@pytest.mark.parametrize("standardise", [True, False])
def test_training_on_features_is_training_on_images(problem1, backbone, standardise):
    """A frozen model on un-augmented images takes the same steps as its head on the features."""
    chosen = dataclasses.replace(profile().finetune, optimizer="sgd", lr=0.05, epochs=3)
    pixels = torch.from_numpy(images.load(problem1.train, 32))
    labels = torch.from_numpy(problem1.train.labels)

    def model():
        torch.manual_seed(0)
        network = classifier.backbone(0.125)
        network.load_state_dict(backbone, strict=False)
        made = classifier.Classifier(network, classifier.Head(3, hidden=16), frozen=True)
        if standardise:
            made.head.standardise_by(features.extract(network, pixels, CPU))
        return made

    def train(module, tensors, prepare=None):
        batches = ArrayBatches(tensors, chosen.batch_size, 0, CPU, prepare)
        return training.train(module, finetune._loss(module), batches, chosen, CPU, seed=0, name="finetune-D")

    whole, short = model(), model()
    extracted = features.extract(short.backbone, pixels, CPU)
    on_images = train(whole, [pixels, labels], lambda x, y: (augment.normalise(x), y))
    on_features = train(short.head, [extracted, labels])
    losses = [row["loss"] for row in on_images]
    assert [row["loss"] for row in on_features] == pytest.approx(losses, abs=1e-5)
    with torch.no_grad():
        expected = whole.eval()(augment.normalise(pixels))
        torch.testing.assert_close(short.head.eval()(extracted), expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(short.head.linear.weight, model().head.linear.weight)  # it did train


# --- controls


def neighbours(problem1, state, seed=0):
    """3-NN by scikit-learn alone, on this backbone's features or on those of a random one."""
    training.seed_everything(seed, 0)
    network = classifier.backbone(0.125)
    if state is not None:
        network.load_state_dict(state, strict=False)
    train, val = (
        features.extract(network, torch.from_numpy(images.load(s, 32)), CPU).double().numpy()
        for s in (problem1.train, problem1.val)
    )
    return KNeighborsClassifier(3, metric="cosine").fit(train, problem1.train.labels).predict(val)


@pytest.mark.parametrize("seed", [0, 2])
def test_knn_is_the_majority_of_the_nearest_by_cosine(tmp_path, problem1, backbone, seed):
    """On the pre-trained features, and on those of the random backbone that setting A starts from.

    Labels are shuffled, else their colours would tell the classes apart in any features.
    """
    labels = np.random.default_rng(0).permutation(problem1.train.labels)
    problem1 = dataclasses.replace(problem1, train=dataclasses.replace(problem1.train, labels=labels))
    draft = store.Draft("control-knn", tmp_path)
    finetune.knn(draft, problem1, profile(controls__knn=3, seed=seed), backbone, CPU)
    result = store.Result("control-knn", tmp_path)
    metrics, truth = result.metrics, problem1.val.labels
    for suffix, state in (("", backbone), ("_random", None)):
        found = result.array(f"predictions{suffix}")
        assert found.shape == (1, len(truth)) and found.dtype == np.int16
        assert found[0].tolist() == neighbours(problem1, state, seed).tolist()
        assert metrics[f"correct{suffix}"] == (found[0] == truth).sum()
        assert metrics[f"accuracy{suffix}"] == (found[0] == truth).mean()
    assert metrics["accuracy"] == metrics["accuracy_last"]
    assert not np.array_equal(result.array("predictions"), result.array("predictions_random"))


def test_the_colour_control_learns_what_colour_tells(tmp_path, problem1):
    """Each class of the small folder has its own colour."""
    draft = store.Draft("control-colour", tmp_path)
    finetune.colour(draft, problem1, profile(finetune__epochs=30, finetune__lr=0.01), CPU)
    assert store.Result("control-colour", tmp_path).metrics["accuracy_last"] == 1


# --- odd images


@pytest.mark.parametrize("setting", ["A", "E"])
def test_gray_images_and_printing_inks_are_learnt_from(tmp_path, problem1, backbone, setting):
    """Office-Home's are of every kind; training and validation images alike."""
    for split in (problem1.train, problem1.val):
        save_oddly(split.folder)
    weights = backbone if setting == "E" else None
    result = fit(tmp_path / setting, problem1, setting, weights, finetune__epochs=1)
    assert np.isfinite(result.history[["loss", "val_loss"]]).all(axis=None)
    assert np.isfinite(result.array("activations_last")).all()
