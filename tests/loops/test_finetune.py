"""Fine-tuning: frozen backbones do not change, and results are what the saved model computes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hw1lib import profiles
from hw1lib.data import images
from hw1lib.loops import augment, classification, features, finetune
from hw1lib.metrics.statistics import share
from hw1lib.models import resnet
from hw1lib.steps import store

CPU = torch.device("cpu")
SETTINGS = {"finetune.epochs": 2, "finetune.batch_size": 6, "finetune.precision": "float32", "finetune.hidden": 16}
SETTINGS |= {"model_scale": 0.125}


def profile(**changes):
    return profiles.get("smoke", SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def weights():
    """The weights of a pre-trained backbone without fc, whose running statistics are not the default."""
    torch.manual_seed(3)
    network = resnet.backbone(0.125)
    network(torch.randn(8, 3, 32, 32))
    return {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}


def pretrained(weights):
    """A stand-in for the result of a pre-training."""
    return SimpleNamespace(weights=lambda: weights)


def pixels(split):
    return torch.from_numpy(images.load(split, 32))


def fit(folder, problem1, setting, weights, **changes):
    folder.mkdir(exist_ok=True)
    draft, source = store.Draft(f"finetune-{setting}", folder), weights and pretrained(weights)
    finetune.run(draft, problem1, profile(**changes), CPU, source, setting=setting)
    return store.Result(draft.step, folder)


def initial_model(weights, frozen):
    """The model that a step of seed 0 starts from."""
    backbone = features.initial_backbone(profile(), weights and pretrained(weights))
    return resnet.Classifier(backbone, resnet.Head(3, hidden=16), frozen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "augmented", "standardise"), [("B", False, True), ("D", False, True), ("D", True, False)]
)
def test_only_unfrozen_parts_are_trained_and_results_are_those_of_the_saved_model(
    tmp_path, problem1, weights, setting, augmented, standardise
):
    """Weights, running statistics and counters are frozen. Activations and predictions are without augmentation."""
    changes = {"finetune__augment_frozen": augmented, "finetune__standardise": standardise}
    result = fit(tmp_path / "run", problem1, setting, weights, **changes)
    state, start = result.weights(), initial_model(weights, True)
    changed = {name for name in weights if not torch.equal(state[f"backbone.{name}"], weights[name])}
    assert changed == (set(weights) if setting == "B" else set())
    assert not torch.equal(state["head.linear.weight"], start.head.linear.weight)
    mean = features.extract(start.backbone, pixels(problem1.train), CPU).mean(0) * (standardise and setting == "D")
    torch.testing.assert_close(state["head.mean"], mean, atol=1e-5, rtol=1e-4)

    model = initial_model(weights, setting == "D").eval()
    model.load_state_dict(state)
    with torch.no_grad():
        expected = model.head.activations(model.features(augment.normalise(pixels(problem1.train))))
        logits = model(augment.normalise(pixels(problem1.val)))
    first, last = (result.array(f"activations_{name}") for name in ("first", "last"))
    tolerance = 1e-3 * float(expected.abs().max())  # 1,000 times float32's rounding, and less than training changes
    np.testing.assert_allclose(last, expected, rtol=0, atol=tolerance)
    assert first.shape == (len(problem1.train), 16) and not np.allclose(first, last, rtol=0, atol=tolerance)
    expected = F.cross_entropy(logits, torch.from_numpy(problem1.val.labels)).item()
    assert result.history["val_loss"].iloc[-1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_settings_differ_only_in_their_initial_backbone(tmp_path, problem1, weights):
    """Setting A and the random control start from the same random weights; all start from the same head."""
    kernel, head = "backbone.conv1.weight", "head.linear.weight"
    start = initial_model(None, True).state_dict()
    still = {"finetune__lr": 1e-30, "finetune__epochs": 1, "finetune__weight_decay": 0.0}
    for name, source, seed in (("A", None, 0), ("random", None, 0), ("C", weights, 0), ("A", None, 1)):
        state = fit(tmp_path / f"{name}{seed}", problem1, name, source, seed=seed, **still).weights()
        assert torch.equal(state[head], start[head]) == (seed == 0)
        assert torch.equal(state[kernel], start[kernel]) == (seed == 0 and source is None)
        assert source is None or torch.equal(state[kernel], weights["conv1.weight"])


def test_metrics_follow_from_the_predictions_of_all_epochs(tmp_path, problem1):
    """The best epoch is the first with the highest accuracy."""
    labels, correct = problem1.val.labels, (2, 5, 5, 3)  # of six in each epoch
    predictions = [np.where(np.arange(6) < count, labels, (labels + 1) % 3).tolist() for count in correct]
    history = [{"epoch": n + 1, "predictions": row} for n, row in enumerate(predictions)]
    classification.save_results(store.Draft("finetune-A", tmp_path), history, problem1.val, more=1)
    result = store.Result("finetune-A", tmp_path)
    assert result.array("predictions").tolist() == predictions and len(result.history) == 4
    best, last = {"correct": 5, "total": 6, "epoch": 2, "accuracy": 5 / 6}, {"correct_last": 3, "accuracy_last": 0.5}
    assert result.metrics == best | last | {"interval_last": list(share(np.arange(6) < 3)), "more": 1}
