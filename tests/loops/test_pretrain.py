"""Pre-training: which images it sees, what it hands on, and where a supervised backbone is from."""

import dataclasses
import shutil
import urllib.error
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from byol_pytorch import BYOL
from torchvision.models import ResNet50_Weights, resnet50

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.loops import finetune, pretrain, probe
from hw1lib.models import byol, resnet
from hw1lib.settings import Data
from hw1lib.steps import store
from tests.conftest import save_oddly, write_problem1

CPU = torch.device("cpu")
SMALL = {"epochs": 1, "batch_size": 6, "precision": "float32"}
SETTINGS = {f"{group}.{name}": value for group in ("pretrain", "supervised") for name, value in SMALL.items()}
SETTINGS |= {"model_scale": 0.125, "pretrain.projection_size": 8, "pretrain.projection_hidden_size": 16}
SPREAD = {"deviation": 0.5, "effective_rank": 9.0}


def profile(**changes):
    return profiles.get("smoke", SETTINGS | {k.replace("__", "."): v for k, v in changes.items()})


def only_pool(root, count=10, labelled=True):
    """Problem 1 without fine-tuning images: neither their splits nor their files are there."""
    write_problem1(root / "p1_data", pool=count)
    found = layout.find(root, Data()).problem1
    shutil.rmtree(root / "p1_data" / "office")
    pool = found.pool if labelled else layout.Split(found.pool.folder, found.pool.files)
    return dataclasses.replace(found, pool=pool, train=None, val=None)


@pytest.fixture
def problem1(tmp_path):
    return only_pool(tmp_path / "data")


def run(step, work, folder, problem1, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    work(store.Draft(step, folder), problem1, profile(**changes), CPU)
    return store.Result(step, folder)


def train(folder, problem1, **changes):
    """Runs the step; `changes` are settings of the group pretrain, or others with the group's name before them."""
    changes = {k if "__" in k or k in ("seed", "checkpoint_every") else f"pretrain__{k}": v for k, v in changes.items()}
    return run("pretrain", pretrain.self_supervised, folder, problem1, **changes)


# --- which images are trained on


@pytest.mark.parametrize(
    ("count", "labelled", "hold_out"), [(20, True, True), (20, True, False), (20, False, True), (2, True, True)]
)
def test_all_is_trained_on_but_what_the_probe_asks_for(tmp_path, monkeypatch, count, labelled, hold_out):
    """Without labels, and in a tiny pool, nobody asks, so nothing need be held out."""
    problem1, asked = only_pool(tmp_path / "data", count, labelled), count // 10 * labelled
    rest = problem1.pool.without(problem1.pool.take(asked)) if asked and hold_out else problem1.pool
    loss = Mock(side_effect=byol.loss)
    monkeypatch.setattr(byol, "loss", loss)
    result = train(tmp_path / "run", problem1, hold_out=hold_out, batch_size=20)
    (reached,) = (call.args[1].numpy() for call in loss.call_args_list)  # all in one batch
    assert sorted(map(bytes, reached)) == sorted(map(bytes, images.load(rest, 32)))
    assert (result.metrics["images"], result.metrics["queries"]) == (len(rest), asked)
    assert ("knn" in result.metrics) == ("knn" in result.history) == (asked > 0)


def test_the_originals_augmentation_holds_out_the_same_images(tmp_path, problem1, monkeypatch):
    """And trains through the package's own forward, as the seed profile does."""
    batches = Mock(side_effect=partial(pretrain.FileBatches, workers=0))
    monkeypatch.setattr(pretrain, "FileBatches", batches)
    monkeypatch.setattr(byol, "loss", None)
    result = train(tmp_path / "run", problem1, augmentation="original", one_pass=False)
    expected = problem1.pool.without(problem1.pool.take(1))
    assert batches.call_args.args[0].files == expected.files and result.metrics["images"] == len(expected)


@pytest.mark.parametrize("ours", [True, False])
def test_inputs_and_views_are_what_the_learner_takes(problem1, ours):
    """uint8 and our own two views; or what the original's transforms give, normalised, and the package's own.

    Images may be in gray or in printing inks: both are in ImageNet.
    """
    save_oddly(problem1.pool.folder)
    chosen = profile(pretrain__augmentation="batched" if ours else "original")
    taken, views = pretrain.inputs(problem1.pool.take(3), chosen), pretrain.views(chosen)
    assert taken.shape == (3, 3, 32, 32) and taken.dtype == (torch.uint8 if ours else torch.float32)
    assert [view.size for view in views or ()] == [32, 32] * ours and (taken.min() < 0) != ours
    learner = byol.learner(pretrain.initial(chosen), 32, chosen.pretrain, views)
    assert 0 <= pretrain.loss(learner, taken, chosen.pretrain) <= 8


# --- what it hands on


def test_the_last_epochs_backbone_is_handed_on_not_that_of_the_lowest_loss(tmp_path, problem1, monkeypatch):
    """A low loss may be a collapse. Its numbers are the last epoch's, and those from before training."""
    states, numbers, real_loss, real_look = [], [], byol.loss, probe.Probe.__call__

    def look(self, backbone):
        states.append({name: value.clone() for name, value in backbone.state_dict().items()})
        numbers.append(real_look(self, backbone))
        return numbers[-1]

    monkeypatch.setattr(byol, "loss", lambda *words: real_loss(*words) + 10 * len(states))
    monkeypatch.setattr(probe.Probe, "__call__", look)
    result = train(tmp_path / "run", problem1, epochs=2, batch_size=3)
    assert result.history["loss"].is_monotonic_increasing and len(states) == 3  # the first: untrained
    found = result.weights()
    assert found.keys() == {name for name in states[0] if not name.startswith("fc.")}
    assert all(torch.equal(value, states[-1][name]) for name, value in found.items())
    assert not any(torch.equal(found["conv1.weight"], earlier["conv1.weight"]) for earlier in states[:-1])
    assert result.metrics.items() >= (numbers[-1] | {"source": "byol", "epoch": 2, "before": numbers[0]}).items()
    assert result.metrics["loss"] == pytest.approx(result.history["loss"].iloc[-1])
    random, other = (finetune._backbone(profile(seed=s), None).state_dict() for s in (0, 1))
    for name, value in random.items():  # setting A's start, but for BatchNorm's statistics, which fit the images
        assert torch.equal(states[0][name], value) == ("running" not in name and "tracked" not in name), name
    assert not torch.equal(states[0]["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("deviations", [(0.5, 0.5, 0.01), (0.01, 0.01, 0.5)])  # before training, and in two epochs
def test_collapsed_is_what_ends_collapsed(tmp_path, problem1, monkeypatch, capsys, deviations):
    """A run that recovered is fine."""
    looks, expected = [SPREAD | {"deviation": deviation} for deviation in deviations], deviations[-1] == 0.01
    monkeypatch.setattr(probe.Probe, "__call__", Mock(side_effect=looks))
    assert train(tmp_path / "run", problem1, epochs=2, batch_size=64).metrics["collapsed"] is expected
    assert ("pretrain.use_momentum=true" in capsys.readouterr().out) == expected


# --- the target network


@pytest.mark.parametrize(("momentum", "one_pass"), [(True, True), (True, False), (False, True)])
def test_the_target_follows_our_rising_decay_or_the_packages_own(tmp_path, problem1, monkeypatch, one_pass, momentum):
    """Two steps an epoch: the last step of all leaves the target where it is. Without momentum there is none."""
    decays, updates = [], []
    monkeypatch.setattr(byol, "follow", lambda learner, decay: decays.append(decay))
    monkeypatch.setattr(BYOL, "update_moving_average", lambda learner: updates.append(learner.target_ema_updater.beta))
    chosen = dict(one_pass=one_pass, use_momentum=momentum, moving_average_decay=0.9)
    train(tmp_path / "run", problem1, epochs=2, batch_size=4, **chosen)
    expected = [byol.decay(0.9, step / 4) for step in range(1, 5)]
    assert decays == pytest.approx(expected if momentum and one_pass else [])
    assert updates == ([0.9] * 4 if momentum and not one_pass else [])


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_target_network(tmp_path, problem1, monkeypatch):
    """To the bit: the target is in the checkpoint, and the decay knows how far it was."""
    chosen = {"use_momentum": True, "epochs": 2, "projection_hidden_size": 2}
    whole = train(tmp_path / "whole", problem1, **chosen)
    with monkeypatch.context() as patch, pytest.raises(Stopped):  # after the second epoch, before its checkpoint
        patch.setattr(probe.Probe, "__call__", Mock(side_effect=[SPREAD, SPREAD, Stopped]))
        train(tmp_path / "parts", problem1, checkpoint_every=0.0, **chosen)
    assert (tmp_path / "parts" / store.CHECKPOINT).is_file()
    parts, expected = train(tmp_path / "parts", problem1, **chosen), whole.weights()
    assert all(torch.equal(value, expected[name]) for name, value in parts.weights().items())
    assert parts.history["loss"].tolist() == whole.history["loss"].tolist()
    assert parts.metrics["before"] == whole.metrics["before"]  # not the checkpoint's


# --- where the supervised backbone comes from

IMAGENET = Path(ResNet50_Weights.DEFAULT.url).name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole ResNet50's file, as the course hands it out."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("course") / "pretrain_model_SL.pt"
    torch.save(resnet50(num_classes=64).state_dict(), path)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache, empty, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", Mock(side_effect=urllib.error.URLError("no network in tests")))
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def supervise(folder, problem1, source="auto", scale=0.125):
    options = {"supervised__source": source, "model_scale": scale}
    return run("pretrain-supervised", pretrain.supervised, folder, problem1, **options)


@pytest.mark.parametrize("source", ["auto", "file", "imagenet"])
def test_whole_weights_are_the_files_tensor_by_tensor(tmp_path, problem1, whole, cache, source):
    """The course's, or ImageNet's from torch's cache; without network, and without a look at the pool."""
    shutil.copy(whole, cache / IMAGENET)
    shutil.rmtree(problem1.pool.folder)
    given = dataclasses.replace(problem1, supervised_backbone=None if source == "imagenet" else whole)
    result = supervise(tmp_path / "run", given, source, 1.0)
    name, file = ("imagenet", IMAGENET) if source == "imagenet" else ("file", "pretrain_model_SL.pt")
    assert result.metrics == {"source": name, "file": file}
    expected, found = torch.load(whole), result.weights()
    assert found.keys() == {name for name in expected if not name.startswith("fc.")}
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert result.history.empty  # nothing was trained


@pytest.mark.parametrize("source", ["auto", "pool"])
def test_a_small_network_is_trained_on_the_pool(tmp_path, problem1, whole, source):
    """The file would not fit it. The classes are the pool's."""
    result = supervise(tmp_path / "run", dataclasses.replace(problem1, supervised_backbone=whole), source)
    assert result.metrics == {"source": "pool", "images": 10, "classes": 2}
    missing, foreign = resnet.backbone(0.125).load_state_dict(result.weights(), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and foreign == [] and len(result.history) == 1
