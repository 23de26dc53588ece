"""Pre-training: which images it sees, what it hands on, and where a supervised backbone is from."""

import dataclasses
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from byol_pytorch import BYOL
from torchvision.models import ResNet50_Weights, resnet18, resnet50

from hw1lib import profiles
from hw1lib.data import images, layout
from hw1lib.errors import UserError
from hw1lib.loops import finetune, pretrain, probe
from hw1lib.models import byol, classifier
from hw1lib.steps import store
from tests.conftest import save_oddly, write_problem1

CPU = torch.device("cpu")
SETTINGS = {
    "model_scale": 0.125,
    "pretrain.epochs": 2,
    "pretrain.batch_size": 6,
    "pretrain.precision": "float32",
    "pretrain.projection_size": 8,
    "pretrain.projection_hidden_size": 16,
    "supervised.epochs": 1,
    "supervised.batch_size": 6,
    "supervised.precision": "float32",
}
SPREAD = {"deviation": 0.5, "effective_rank": 9.0}


def profile(**changes):
    return profiles.get("smoke", SETTINGS | {k.replace("__", "."): v for k, v in changes.items()})


def only_pool(root, count=20):
    """Problem 1 without fine-tuning images: neither their splits nor their files are there."""
    write_problem1(root / "p1_data", pool=count)
    found = layout.find(root, profiles.Data()).problem1
    shutil.rmtree(root / "p1_data" / "office")
    return dataclasses.replace(found, train=None, val=None)


@pytest.fixture
def problem1(tmp_path):
    return only_pool(tmp_path / "data")


def without_labels(problem1):
    pool = problem1.pool
    return dataclasses.replace(problem1, pool=layout.Split(pool.folder, pool.files))


def draft_in(folder, step):
    folder.mkdir(parents=True, exist_ok=True)
    return store.Draft(step, folder)


def train(folder, problem1, **changes):
    draft = draft_in(folder, "pretrain")
    pretrain.self_supervised(draft, problem1, profile(**changes), CPU)
    return store.Result(draft.step, folder)


def contents(pixels):
    return {image.numpy().tobytes() for image in pixels}


def pixels_of(split):
    return contents(torch.from_numpy(images.load(split, 32)))


@pytest.fixture
def reached(monkeypatch):
    """Contents of all images that reached the loss."""
    seen, real = set(), byol.loss

    def spied(learner, batch):
        seen.update(contents(batch))
        return real(learner, batch)

    monkeypatch.setattr(byol, "loss", spied)
    return seen


# --- which images are trained on


def test_what_the_probe_asks_for_is_not_trained_on(tmp_path, problem1, reached):
    """18 images in batches of 6: each of them is trained on, and nothing else is."""
    metrics = train(tmp_path / "run", problem1).metrics
    asked = problem1.pool.take(2)
    assert reached == pixels_of(problem1.pool.without(asked))
    assert not reached & pixels_of(asked)
    assert (metrics["images"], metrics["queries"]) == (18, 2)
    assert metrics["images"] + metrics["queries"] == len(problem1.pool)


def test_without_holding_out_everything_is_trained_on(tmp_path, problem1, reached):
    changes = {"pretrain__hold_out": False, "pretrain__batch_size": 10}
    metrics = train(tmp_path / "run", problem1, **changes).metrics
    assert reached == pixels_of(problem1.pool)
    assert (metrics["images"], metrics["queries"]) == (20, 2)


def test_without_labels_everything_is_trained_on(tmp_path, problem1, reached):
    """Nobody asks for labels, so nothing need be held out."""
    result = train(tmp_path / "run", without_labels(problem1), pretrain__batch_size=10)
    assert reached == pixels_of(problem1.pool)
    assert (result.metrics["images"], result.metrics["queries"]) == (20, 0)
    assert "knn" not in result.metrics and "knn" not in result.history


@pytest.mark.parametrize("hold_out", [True, False])
def test_the_originals_augmentation_holds_out_the_same_images(tmp_path, problem1, monkeypatch, hold_out):
    """And trains through the package's own forward, as the seed profile does."""
    taken = []

    class Batches(pretrain.FileBatches):
        def __init__(self, split, *words):
            super().__init__(split, *words, workers=0)
            taken.append(split)

    monkeypatch.setattr(pretrain, "FileBatches", Batches)
    monkeypatch.setattr(byol, "loss", None)
    changes = {"augmentation": "original", "one_pass": False, "hold_out": hold_out, "epochs": 1}
    result = train(tmp_path / "run", problem1, **{f"pretrain__{k}": v for k, v in changes.items()})
    pool = problem1.pool
    expected = pool.without(pool.take(2)) if hold_out else pool
    assert [split.files for split in taken] == [expected.files]
    assert result.metrics["images"] == len(expected)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_fewer_images_than_a_batch_are_one_batch(tmp_path, count, reached):
    problem1 = only_pool(tmp_path / "data", count)
    result = train(tmp_path / "run", problem1, pretrain__batch_size=64)
    assert len(result.history) == 2 and np.isfinite(result.history["loss"]).all()
    assert reached == pixels_of(problem1.pool)


@pytest.mark.parametrize("files", [("00001.jpg",), ()])
def test_a_pool_of_fewer_than_two_images_is_a_clear_error(tmp_path, problem1, files):
    """BatchNorm has nothing to standardise, and a spread needs two."""
    pool = layout.Split(problem1.pool.folder, files)
    with pytest.raises(UserError, match="mini/train needs at least two images"):
        train(tmp_path / "run", dataclasses.replace(problem1, pool=pool))


def test_gray_images_and_printing_inks_are_trained_on(tmp_path, problem1, reached):
    """JPEGs of both kinds are in ImageNet."""
    save_oddly(problem1.pool.folder)
    result = train(tmp_path / "run", problem1, pretrain__hold_out=False, pretrain__epochs=1)
    assert np.isfinite(result.history["loss"]).all() and len(reached) == 18


# --- what it hands on


def test_the_backbone_of_the_last_epoch_is_handed_on_not_that_of_the_lowest_loss(tmp_path, problem1, monkeypatch):
    """A low loss may be a collapse."""
    states, real_loss, real_look = [], byol.loss, probe.Probe.__call__  # the first: untrained

    def look(self, backbone):
        states.append({name: value.clone() for name, value in backbone.state_dict().items()})
        return real_look(self, backbone)

    monkeypatch.setattr(byol, "loss", lambda *words: real_loss(*words) + 10 * len(states))
    monkeypatch.setattr(probe.Probe, "__call__", look)
    result = train(tmp_path / "run", problem1, pretrain__epochs=3)
    assert result.history["loss"].is_monotonic_increasing and len(states) == 4
    found = result.weights()
    assert found.keys() == {name for name in states[0] if not name.startswith("fc.")}
    assert all(torch.equal(value, states[-1][name]) for name, value in found.items())
    assert result.metrics["loss"] == result.history["loss"].iloc[-1]
    for earlier in states[:-1]:
        assert not torch.equal(found["conv1.weight"], earlier["conv1.weight"])


def test_the_numbers_are_those_of_the_last_epoch(tmp_path, problem1):
    result = train(tmp_path / "run", problem1)
    assert {"deviation", "effective_rank", "knn"} <= set(result.history)
    last = result.history.iloc[-1].to_dict()
    assert {name: result.metrics[name] for name in last} == pytest.approx(last)
    assert result.metrics["source"] == "byol" and result.metrics["epoch"] == 2


def test_the_numbers_before_training_are_those_of_the_random_backbone(tmp_path, problem1):
    """The one that setting A starts from, where blocks do not begin as identity."""
    options = {"pretrain__zero_init_residual": False}
    before = train(tmp_path / "run", problem1, **options).metrics["before"]
    look, _ = probe.probe_of(problem1.pool, 32, CPU)
    assert before == pytest.approx(look(finetune._backbone(profile(), None)), rel=1e-4)


@pytest.mark.parametrize(
    ("before", "first", "last", "expected"),
    [
        ({}, {}, {}, False),
        ({}, {}, {"deviation": 0.01}, True),
        ({}, {}, {"effective_rank": 1.1}, True),
        ({"deviation": 0.01}, {"effective_rank": 1.1}, {}, False),
    ],
)
def test_collapsed_is_what_ends_collapsed(tmp_path, problem1, monkeypatch, before, first, last, expected):
    """Either of the two numbers tells; a run that recovered is fine."""
    looks = [SPREAD | numbers for numbers in (before, first, last)]
    monkeypatch.setattr(probe.Probe, "__call__", lambda self, backbone: looks.pop(0))
    assert train(tmp_path / "run", problem1).metrics["collapsed"] is expected


def test_a_backbone_that_sees_nothing_is_called_collapsed(tmp_path, problem1, monkeypatch):
    def blind(*options):
        network = classifier.backbone(*options)
        torch.nn.init.zeros_(network.conv1.weight)
        return network

    monkeypatch.setattr(pretrain, "classifier", type("", (), {"backbone": staticmethod(blind)}))
    metrics = train(tmp_path / "run", problem1, pretrain__lr=0.0, pretrain__epochs=1).metrics
    assert metrics["collapsed"] is True and metrics["effective_rank"] == 0


def test_a_run_that_diverges_is_a_clear_error(tmp_path, problem1):
    """Its loss may stay finite, as BatchNorm hides large weights until the probe's eval mode."""
    with pytest.raises(UserError, match="pretrain.lr"):
        train(tmp_path / "run", problem1, pretrain__lr=1e4, pretrain__batch_size=64)


def test_the_seed_alone_says_what_is_trained(tmp_path, problem1):
    one, two = (train(tmp_path / name, problem1).weights() for name in ("one", "two"))
    other = train(tmp_path / "other", problem1, seed=1).weights()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


# --- the target network


def test_the_targets_decay_follows_the_training_to_its_end(tmp_path, problem1, monkeypatch):
    """Three steps an epoch: the last step of all leaves the target where it is."""
    decays, real = [], byol.follow

    def spied(learner, decay):
        decays.append(decay)
        real(learner, decay)

    monkeypatch.setattr(byol, "follow", spied)
    train(tmp_path / "run", problem1, pretrain__use_momentum=True, pretrain__moving_average_decay=0.9)
    assert decays == pytest.approx([byol.decay(0.9, step / 6) for step in range(1, 7)])
    assert decays == sorted(decays) and decays[0] > 0.9 and decays[-1] == 1.0


@pytest.mark.parametrize("momentum", [True, False])
def test_the_packages_way_keeps_its_own_decay(tmp_path, problem1, monkeypatch, momentum):
    updates = []
    monkeypatch.setattr(byol, "follow", None)
    monkeypatch.setattr(BYOL, "update_moving_average", lambda learner: updates.append(learner))
    changes = {"pretrain__one_pass": False, "pretrain__use_momentum": momentum}
    train(tmp_path / "run", problem1, **changes)
    assert len(updates) == (6 if momentum else 0)
    assert {learner.target_ema_updater.beta for learner in updates} <= {0.99}


def test_without_a_target_network_nothing_follows(tmp_path, problem1, monkeypatch):
    monkeypatch.setattr(byol, "follow", None)
    train(tmp_path / "run", problem1, pretrain__use_momentum=False)


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_with_its_target_network(tmp_path, problem1, monkeypatch):
    """To the bit: the target is in the checkpoint, and the decay knows how far it was."""
    chosen = {"pretrain__use_momentum": True, "pretrain__epochs": 3, "checkpoint_every": 0.0}
    whole = train(tmp_path / "whole", problem1, **chosen)
    with monkeypatch.context() as patch:
        looks = [SPREAD] * 2  # before training, and after the first epoch
        patch.setattr(probe.Probe, "__call__", lambda *_: looks.pop() if looks else stop())
        with pytest.raises(Stopped):
            train(tmp_path / "parts", problem1, **chosen)
    assert (tmp_path / "parts" / "checkpoint.pt").is_file()
    parts = train(tmp_path / "parts", problem1, **chosen)
    expected = whole.weights()
    assert all(torch.equal(value, expected[name]) for name, value in parts.weights().items())
    assert parts.history["loss"].tolist() == whole.history["loss"].tolist()
    assert parts.metrics["before"] == whole.metrics["before"]  # not the checkpoint's


def stop():
    raise Stopped


# --- where the supervised backbone comes from


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

    def refuse(*words, **options):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


IMAGENET = Path(ResNet50_Weights.DEFAULT.url).name


def supervise(folder, problem1, **changes):
    draft = draft_in(folder, "pretrain-supervised")
    pretrain.supervised(draft, problem1, profile(**changes), CPU)
    return store.Result(draft.step, folder)


def fails(folder, problem1, *words, **changes):
    with pytest.raises(UserError) as caught:
        supervise(folder, problem1, **changes)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not (folder / "weights.safetensors").exists()


def assert_is_of(result, path):
    """The backbone is the file's, tensor by tensor."""
    expected, found = torch.load(path), result.weights()
    assert found.keys() == {name for name in expected if not name.startswith("fc.")}
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert result.history.empty  # nothing was trained


@pytest.mark.parametrize("source", ["auto", "file"])
def test_the_courses_file_is_taken_where_it_is(tmp_path, problem1, whole, source):
    given = dataclasses.replace(problem1, supervised_backbone=whole)
    result = supervise(tmp_path / "run", given, model_scale=1.0, supervised__source=source)
    assert result.metrics == {"source": "file", "file": "pretrain_model_SL.pt"}
    assert_is_of(result, whole)


@pytest.mark.parametrize("source", ["auto", "pool"])
@pytest.mark.parametrize("there", [True, False])
def test_a_small_network_is_trained_on_the_pool(tmp_path, problem1, whole, source, there):
    """The file would not fit it. The classes are the pool's."""
    given = dataclasses.replace(problem1, supervised_backbone=whole if there else None)
    result = supervise(tmp_path / "run", given, supervised__source=source)
    assert result.metrics == {"source": "pool", "images": 20, "classes": 2}
    network = classifier.backbone(0.125)
    missing, foreign = network.load_state_dict(result.weights(), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and foreign == [] and len(result.history) == 1


def test_without_a_file_a_whole_network_is_trained_on_the_pool_too(tmp_path, problem1, monkeypatch):
    asked = []
    monkeypatch.setattr(pretrain, "_supervised_on_pool", lambda *words: asked.append(words[1]))
    pretrain.supervised(None, problem1, profile(model_scale=1.0), CPU)
    assert asked == [problem1.pool]


def test_a_file_that_is_asked_for_but_not_there_is_named(tmp_path, problem1):
    fails(
        tmp_path / "run",
        problem1,
        "p1_data has no pretrain_model_SL.pt",
        "--set supervised.source=pool",
        model_scale=1.0,
        supervised__source="file",
    )


@pytest.mark.parametrize("source", ["file", "imagenet"])
def test_whole_weights_do_not_fit_a_small_network(tmp_path, problem1, whole, source, cache):
    given = dataclasses.replace(problem1, supervised_backbone=whole)
    fails(
        tmp_path / "run",
        given,
        f"supervised.source={source}",
        "profile smoke",
        "model_scale=0.125",
        "--set supervised.source=pool",
        supervised__source=source,
    )


@pytest.mark.parametrize("source", ["auto", "pool"])
def test_without_labels_there_is_no_training_on_the_pool(tmp_path, problem1, source):
    """Both remedies are named."""
    fails(
        tmp_path / "run",
        without_labels(problem1),
        "pretrain_model_SL.pt",
        "mini/train.csv",
        "data/README.md",
        supervised__source=source,
    )


def test_imagenets_weights_come_from_torchs_cache(tmp_path, problem1, whole, cache):
    """Without network, and without a look at the pool."""
    shutil.copy(whole, cache / IMAGENET)
    shutil.rmtree(problem1.pool.folder)
    chosen = {"model_scale": 1.0, "supervised__source": "imagenet"}
    result = supervise(tmp_path / "run", problem1, **chosen)
    assert result.metrics == {"source": "imagenet", "file": IMAGENET}
    assert_is_of(result, whole)


def test_imagenets_weights_that_cannot_be_had_are_a_clear_error(tmp_path, problem1, cache):
    fails(
        tmp_path / "run",
        problem1,
        IMAGENET,
        "no network in tests",
        str(cache),
        "--set supervised.source=pool",
        model_scale=1.0,
        supervised__source="imagenet",
    )


@pytest.mark.parametrize("source", ["file", "imagenet"])
def test_another_network_in_the_file_is_named(tmp_path, problem1, cache, source):
    path = {"file": tmp_path / "pretrain_model_SL.pt", "imagenet": cache / IMAGENET}[source]
    torch.save(resnet18().state_dict(), path)
    fails(
        tmp_path / "run",
        dataclasses.replace(problem1, supervised_backbone=path),
        str(path),
        "layer1.0",
        "--set supervised.source=pool",
        model_scale=1.0,
        supervised__source=source,
    )
