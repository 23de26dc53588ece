"""Pre-training: which images it uses, what it saves, the probe, and where a supervised backbone comes from."""

import dataclasses
import shutil
import urllib.error
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from byol_pytorch import BYOL
from torchvision.models import ResNet50_Weights, resnet50

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.errors import UserError
from hw1lib.loops import features, pretrain
from hw1lib.metrics import collapse
from hw1lib.models import byol, resnet
from hw1lib.settings import Data
from hw1lib.steps import store
from tests.conftest import picture, save_oddly, write_problem1

CPU = torch.device("cpu")
SMALL = {"epochs": 1, "batch_size": 6, "precision": "float32"}
SETTINGS = {f"{group}.{name}": value for group in ("pretrain", "supervised") for name, value in SMALL.items()}
SETTINGS |= {"model_scale": 0.125, "pretrain.projection_size": 8, "pretrain.projection_hidden_size": 16}
SPREAD = {"deviation": 0.5, "effective_rank": 9.0}


def profile(**changes):
    return profiles.get("smoke", SETTINGS | {name.replace("__", "."): value for name, value in changes.items()})


def only_pool(root, count=10, labelled=True):
    """Problem 1 without Office images."""
    write_problem1(root / "p1_data", pool=count)
    problem1 = layout.find(root, Data()).problem1
    shutil.rmtree(root / "p1_data" / "office")
    pool = problem1.pool if labelled else layout.Split(problem1.pool.folder, problem1.pool.files)
    return dataclasses.replace(problem1, pool=pool, train=None, val=None)


@pytest.fixture
def problem1(tmp_path):
    return only_pool(tmp_path / "data")


def run(step, folder, problem1, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    step(store.Draft("pretrain", folder), problem1, profile(**changes), CPU)
    return store.Result("pretrain", folder)


def train(folder, problem1, **changes):
    """Run self-supervised pre-training; names without a group are settings of pretrain."""
    whole = ("seed", "checkpoint_every")
    changes = {name if name in whole else f"pretrain__{name}": value for name, value in changes.items()}
    return run(pretrain.self_supervised, folder, problem1, **changes)


# --- which images are used


@pytest.mark.parametrize(
    ("count", "labelled", "hold_out"), [(20, True, True), (20, True, False), (20, False, True), (2, True, True)]
)
def test_training_uses_all_images_but_the_probes_queries(tmp_path, monkeypatch, count, labelled, hold_out):
    """Without labels, and in a tiny pool, there are no queries."""
    problem1, queries = only_pool(tmp_path / "data", count, labelled), count // 10 * labelled
    rest = problem1.pool.without(problem1.pool.take(queries)) if queries and hold_out else problem1.pool
    loss = Mock(side_effect=byol.loss)
    monkeypatch.setattr(byol, "loss", loss)
    result = train(tmp_path / "run", problem1, hold_out=hold_out, batch_size=20)
    (batch,) = (call.args[1].numpy() for call in loss.call_args_list)
    assert sorted(map(bytes, batch)) == sorted(map(bytes, images.load(rest, 32)))
    assert (result.metrics["images"], result.metrics["queries"]) == (len(rest), queries)
    assert ("knn" in result.metrics) == ("knn" in result.history) == (queries > 0)


def test_the_originals_augmentation_uses_the_same_images_and_byol_pytorchs_forward_pass(
    tmp_path, problem1, monkeypatch
):
    batches = Mock(side_effect=partial(pretrain.FileBatches, workers=0))
    monkeypatch.setattr(pretrain, "FileBatches", batches)
    monkeypatch.setattr(byol, "loss", None)
    result = train(tmp_path / "run", problem1, augmentation="original", one_pass=False)
    expected = problem1.pool.without(problem1.pool.take(1))
    assert batches.call_args.args[1].files == expected.files and result.metrics["images"] == len(expected)


@pytest.mark.parametrize("batched", [True, False])
def test_inputs_and_views_are_those_of_the_learner(problem1, batched):
    """Also for images in gray or CMYK, both of which ImageNet contains."""
    save_oddly(problem1.pool.folder)
    chosen = profile(pretrain__augmentation="batched" if batched else "original")
    inputs, views = pretrain.inputs(problem1.pool.take(3), chosen), pretrain.views(chosen)
    assert inputs.shape == (3, 3, 32, 32) and inputs.dtype == (torch.uint8 if batched else torch.float32)
    assert [view.size for view in views or ()] == [32, 32] * batched and (inputs.min() < 0) != batched
    learner = byol.learner(features.initial_backbone(chosen), 32, chosen.pretrain, views)
    assert 0 <= pretrain.loss(learner, inputs, chosen.pretrain) <= 8


# --- results


@pytest.mark.slow
def test_the_result_is_the_last_epochs_backbone_whatever_its_loss(tmp_path, problem1, monkeypatch):
    """A low loss may be a collapse. Metrics are those of the last epoch, and of the untrained backbone."""
    states, numbers, byol_loss, probe = [], [], byol.loss, pretrain.Probe.__call__

    def noting_probe(self, backbone):
        states.append({name: value.clone() for name, value in backbone.state_dict().items()})
        numbers.append(probe(self, backbone))
        return numbers[-1]

    monkeypatch.setattr(byol, "loss", lambda *arguments: byol_loss(*arguments) + 10 * len(states))
    monkeypatch.setattr(pretrain.Probe, "__call__", noting_probe)
    result = train(tmp_path / "run", problem1, epochs=2, batch_size=3)
    assert result.history["loss"].is_monotonic_increasing and len(states) == 3
    weights = result.weights()
    assert weights.keys() == {name for name in states[0] if not name.startswith("fc.")}
    assert all(torch.equal(value, states[-1][name]) for name, value in weights.items())
    assert not torch.equal(weights["conv1.weight"], states[1]["conv1.weight"])
    assert result.metrics.items() >= (numbers[-1] | {"source": "byol", "epoch": 2, "before": numbers[0]}).items()
    assert result.metrics["loss"] == pytest.approx(result.history["loss"].iloc[-1])
    random, other = (features.initial_backbone(profile(seed=seed)).state_dict() for seed in (0, 1))
    for name, value in random.items():  # the untrained backbone is setting A's, with calibrated statistics
        assert torch.equal(states[0][name], value) == ("running" not in name and "tracked" not in name), name
    assert not torch.equal(states[0]["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("deviations", [(0.5, 0.5, 0.01), (0.01, 0.01, 0.5)])  # before training, in two epochs
def test_a_run_collapsed_if_its_last_epoch_did(tmp_path, problem1, monkeypatch, capsys, deviations):
    numbers, expected = [SPREAD | {"deviation": deviation} for deviation in deviations], deviations[-1] == 0.01
    monkeypatch.setattr(pretrain.Probe, "__call__", Mock(side_effect=numbers))
    assert train(tmp_path / "run", problem1, epochs=2, batch_size=64).metrics["collapsed"] is expected
    assert ("pretrain.use_momentum=true" in capsys.readouterr().out) == expected


@pytest.mark.parametrize(("momentum", "one_pass"), [(True, True), (True, False), (False, True)])
def test_the_target_network_is_updated_after_each_step(tmp_path, problem1, monkeypatch, one_pass, momentum):
    """With our rising decay, by which the last step changes nothing, or byol-pytorch's constant one."""
    decays, betas = [], []
    monkeypatch.setattr(byol, "follow", lambda learner, decay: decays.append(decay))
    monkeypatch.setattr(BYOL, "update_moving_average", lambda learner: betas.append(learner.target_ema_updater.beta))
    settings = dict(one_pass=one_pass, use_momentum=momentum, moving_average_decay=0.9)
    train(tmp_path / "run", problem1, epochs=2, batch_size=4, **settings)
    expected = [byol.decay(0.9, step / 4) for step in range(1, 5)]
    assert decays == pytest.approx(expected if momentum and one_pass else [])
    assert betas == ([0.9] * 4 if momentum and not one_pass else [])


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_stopped_run_resumes_with_its_target_network_and_does_not_probe_again(tmp_path, problem1, monkeypatch):
    settings, probe = {"use_momentum": True, "epochs": 2, "projection_hidden_size": 2}, pretrain.Probe.__call__
    whole = train(tmp_path / "whole", problem1, **settings)
    calls = Mock(side_effect=[probe, probe, Stopped, probe])  # untrained, first epoch, second epoch, second epoch
    monkeypatch.setattr(pretrain.Probe, "__call__", lambda self, backbone: calls()(self, backbone))
    with pytest.raises(Stopped):
        train(tmp_path / "parts", problem1, checkpoint_every=0.0, **settings)
    assert (tmp_path / "parts" / store.CHECKPOINT).is_file()
    parts, expected = train(tmp_path / "parts", problem1, **settings), whole.weights()
    assert all(torch.equal(value, expected[name]) for name, value in parts.weights().items())
    assert parts.metrics == whole.metrics and parts.history.equals(whole.history) and calls.call_count == 4


# --- the probe


def coloured_pool(folder, count=30, labelled=True):
    """A pool whose images have the colour of their class, in random order."""
    folder.mkdir()
    labels = np.random.default_rng(0).permutation(np.arange(count) % 3)
    names = tuple(f"{number:05d}.jpg" for number in range(count))
    for number, (name, label) in enumerate(zip(names, labels)):
        picture(number, colour=((220, 40, 40), (40, 220, 40), (40, 40, 220))[label]).save(folder / name, quality=95)
    return layout.Split(folder, names, labels, ("red", "green", "blue")) if labelled else layout.Split(folder, names)


@pytest.mark.parametrize(("count", "limit"), [(10, 500), (57, 500), (57, 2)])
def test_queries_are_in_no_bank_and_all_other_images_are_the_rest(tmp_path, monkeypatch, count, limit):
    monkeypatch.setattr(pretrain, "QUERIES", limit)
    monkeypatch.setattr(pretrain, "BANK_SIZE", 6 * limit)
    pool = coloured_pool(tmp_path / "pool", count)
    probe = pretrain.Probe(pool, 32, CPU)
    assert sorted(probe.held_out.files + probe.rest.files) == sorted(pool.files)
    assert set(probe.bank.files) <= set(probe.rest.files)
    assert (len(probe.held_out), len(probe.bank)) == (min(limit, count // 10), min(6 * limit, len(probe.rest)))


@pytest.mark.parametrize(("count", "labelled"), [(30, False), (9, True)])
def test_without_labels_or_in_a_tiny_pool_only_the_spread_is_measured(tmp_path, count, labelled):
    pool = coloured_pool(tmp_path / "pool", count, labelled)
    probe = pretrain.Probe(pool, 32, CPU)
    assert probe.rest is pool and probe.bank.files == pool.files
    assert probe(resnet.backbone(0.125)).keys() == {"deviation", "effective_rank"}


def test_the_probes_numbers_are_those_of_bank_and_queries(tmp_path, monkeypatch):
    """It draws no random numbers. A constant network is collapsed, and one that is not finite is an error."""
    monkeypatch.setattr(pretrain, "NEIGHBOURS", 1)
    torch.manual_seed(0)
    backbone, probe = resnet.backbone(0.125), pretrain.Probe(coloured_pool(tmp_path / "pool"), 32, CPU)
    splits = probe.rest, probe.held_out
    bank, queries = (features.extract(backbone, torch.from_numpy(images.load(s, 32)), CPU) for s in splits)
    accuracy = np.mean(features.nearest_class(bank, probe.rest.labels, queries, 1) == probe.held_out.labels)
    state = torch.get_rng_state()
    assert probe(backbone) == {
        "deviation": pytest.approx(collapse.deviation(bank.numpy())),
        "effective_rank": pytest.approx(collapse.effective_rank(bank.numpy())),
        "knn": accuracy,
    }
    assert torch.equal(torch.get_rng_state(), state) and accuracy > 0.5
    torch.nn.init.zeros_(backbone.conv1.weight)
    numbers = probe(backbone)
    assert collapse.collapsed(numbers) and numbers["effective_rank"] == 0
    torch.nn.init.constant_(backbone.conv1.weight, float("nan"))
    with pytest.raises(UserError, match=r"diverged.*pretrain\.lr"):
        probe(backbone)


# --- supervised


IMAGENET = Path(ResNet50_Weights.DEFAULT.url).name


@pytest.fixture(scope="module")
def course_file(tmp_path_factory):
    """The file of a whole ResNet50, as the course provides it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("course") / "pretrain_model_SL.pt"
    torch.save(resnet50(num_classes=64).state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("source", ["auto", "file", "imagenet"])
def test_weights_of_files_are_copied_tensor_by_tensor(tmp_path, problem1, course_file, monkeypatch, source):
    """The course's, or ImageNet's from torch's cache, without network; the pool is not read."""
    cache = tmp_path / "cache" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    shutil.copy(course_file, cache / IMAGENET)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", Mock(side_effect=urllib.error.URLError("no network in tests")))
    shutil.rmtree(problem1.pool.folder)
    problem1 = dataclasses.replace(problem1, supervised_backbone=None if source == "imagenet" else course_file)
    result = run(pretrain.supervised, tmp_path / "run", problem1, supervised__source=source, model_scale=1.0)
    name, file = ("imagenet", IMAGENET) if source == "imagenet" else ("file", "pretrain_model_SL.pt")
    assert result.metrics == {"source": name, "file": file} and result.history.empty
    expected, weights = torch.load(course_file), result.weights()
    assert weights.keys() == {name for name in expected if not name.startswith("fc.")}
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


@pytest.mark.parametrize("source", ["auto", "pool"])
def test_a_small_network_is_trained_on_the_pool(tmp_path, problem1, course_file, source):
    """The course's file would not fit it."""
    problem1 = dataclasses.replace(problem1, supervised_backbone=course_file)
    result = run(pretrain.supervised, tmp_path / "run", problem1, supervised__source=source)
    assert result.metrics == {"source": "pool", "images": 10, "classes": 2} and len(result.history) == 1
    missing, unexpected = resnet.backbone(0.125).load_state_dict(result.weights(), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and unexpected == []
