"""Pre-training: which images it uses, what it saves, the probe, and where a supervised backbone comes from."""

import dataclasses
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from byol_pytorch import BYOL

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.loops import features, pretrain
from hw1lib.metrics import collapse
from hw1lib.models import byol, pretrained, resnet
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
    """Run self-supervised pre-training with settings of pretrain."""
    changes = {f"pretrain__{name}": value for name, value in changes.items()}
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
    states, numbers, probe = [], [], pretrain.Probe.__call__

    def noting_probe(self, backbone):
        states.append({name: value.clone() for name, value in backbone.state_dict().items()})
        numbers.append(probe(self, backbone))
        return numbers[-1]

    monkeypatch.setattr(pretrain.Probe, "__call__", noting_probe)
    result = train(tmp_path / "run", problem1, epochs=2, batch_size=3)
    weights = result.weights()
    assert weights.keys() == {name for name in states[0] if not name.startswith("fc.")} and len(states) == 3
    assert all(torch.equal(value, states[-1][name]) for name, value in weights.items())
    assert result.metrics.items() >= (numbers[-1] | {"source": "byol", "epoch": 2, "before": numbers[0]}).items()
    assert result.metrics["loss"] == pytest.approx(result.history["loss"].iloc[-1])
    for name, value in features.initial_backbone(profile()).state_dict().items():
        # the untrained backbone is setting A's, with calibrated statistics
        assert torch.equal(states[0][name], value) == ("running" not in name and "tracked" not in name), name


@pytest.mark.parametrize("deviations", [(0.5, 0.5, 0.01), (0.01, 0.01, 0.5)])  # before training, in two epochs
def test_a_run_collapsed_if_its_last_epoch_did(tmp_path, problem1, monkeypatch, capsys, deviations):
    numbers, expected = [SPREAD | {"deviation": deviation} for deviation in deviations], deviations[-1] == 0.01
    monkeypatch.setattr(pretrain.Probe, "__call__", Mock(side_effect=numbers))
    assert train(tmp_path / "run", problem1, epochs=2, batch_size=64).metrics["collapsed"] is expected
    assert ("pretrain.use_momentum=true" in capsys.readouterr().out) == expected


@pytest.mark.parametrize(("momentum", "one_pass"), [(True, True), (True, False), (False, True)])
def test_the_target_network_is_updated_after_each_step(tmp_path, problem1, monkeypatch, one_pass, momentum):
    """With the rising decay, so that the last step changes nothing, or byol-pytorch's constant one."""
    decays, betas = [], []
    monkeypatch.setattr(byol, "follow", lambda learner, decay: decays.append(decay))
    monkeypatch.setattr(BYOL, "update_moving_average", lambda learner: betas.append(learner.target_ema_updater.beta))
    settings = dict(one_pass=one_pass, use_momentum=momentum, moving_average_decay=0.9)
    train(tmp_path / "run", problem1, epochs=2, batch_size=4, **settings)
    expected = [byol.decay(0.9, step / 4) for step in range(1, 5)]
    assert decays == pytest.approx(expected if momentum and one_pass else [])
    assert betas == ([0.9] * 4 if momentum and not one_pass else [])


# --- the probe


def coloured_pool(folder, count=30):
    """A pool whose images have the colour of their class, in random order."""
    folder.mkdir()
    labels = np.random.default_rng(0).permutation(np.arange(count) % 3)
    names = tuple(f"{number:05d}.jpg" for number in range(count))
    for number, (name, label) in enumerate(zip(names, labels)):
        picture(number, colour=((220, 40, 40), (40, 220, 40), (40, 40, 220))[label]).save(folder / name, quality=95)
    return layout.Split(folder, names, labels, ("red", "green", "blue"))


@pytest.mark.parametrize(("count", "limit"), [(10, 500), (57, 500), (57, 2)])
def test_queries_are_not_in_the_bank_and_all_other_images_are_the_rest(tmp_path, monkeypatch, count, limit):
    """Without labels, or in a tiny pool, there are no queries."""
    monkeypatch.setattr(pretrain, "QUERIES", limit)
    monkeypatch.setattr(pretrain, "BANK_SIZE", 6 * limit)
    pool = coloured_pool(tmp_path / "pool", count)
    for other in (pool.take(9), layout.Split(pool.folder, pool.files)):
        probe = pretrain.Probe(other, 32, CPU)
        assert probe.held_out is None and probe.rest is other
    probe = pretrain.Probe(pool, 32, CPU)
    assert sorted(probe.held_out.files + probe.rest.files) == sorted(pool.files)
    assert set(probe.bank.files) <= set(probe.rest.files)
    assert (len(probe.held_out), len(probe.bank)) == (min(limit, count // 10), min(6 * limit, len(probe.rest)))


def test_the_probes_numbers_are_those_of_bank_and_queries(tmp_path, monkeypatch):
    """It draws no random numbers."""
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


# --- supervised


@pytest.mark.parametrize("source", ["auto", "file", "imagenet"])
def test_weights_of_files_are_saved_as_they_are(tmp_path, problem1, monkeypatch, source):
    """The course's or ImageNet's; the pool is not read."""
    state = {"conv1.weight": torch.rand(3)}
    monkeypatch.setattr(pretrained, "load_backbone", lambda path: state)
    monkeypatch.setattr(pretrained, "imagenet_backbone", lambda: (state, "resnet50.pth"))
    shutil.rmtree(problem1.pool.folder)
    problem1 = dataclasses.replace(problem1, supervised_backbone=None if source == "imagenet" else Path("SL.pt"))
    result = run(pretrain.supervised, tmp_path / "run", problem1, supervised__source=source, model_scale=1.0)
    name, file = ("imagenet", "resnet50.pth") if source == "imagenet" else ("file", "SL.pt")
    assert result.metrics == {"source": name, "file": file} and result.history.empty
    assert torch.equal(result.weights()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("source", ["auto", "pool"])
def test_a_small_network_is_trained_on_the_pool(tmp_path, problem1, source):
    """The course's file would not fit it."""
    problem1 = dataclasses.replace(problem1, supervised_backbone=Path("SL.pt"))
    result = run(pretrain.supervised, tmp_path / "run", problem1, supervised__source=source)
    assert result.metrics == {"source": "pool", "images": 10, "classes": 2} and len(result.history) == 1
    missing, unexpected = resnet.backbone(0.125).load_state_dict(result.weights(), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and unexpected == []
