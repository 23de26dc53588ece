"""Pre-trained weights from files: what loads, and what is refused with which reason."""

import email.message
import io
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights, resnet18, resnet50

from hw1lib.errors import UserError
from hw1lib.models import pretrained, sam
from tests.models.conftest import numbered, offline, prefixed, refused
from tests.test_files import held_to_permissions


@pytest.fixture(scope="module")
def backbone():
    return numbered(lambda: resnet50(num_classes=64))


def sequential(state):
    """Name tensors as in nn.Sequential(*list(resnet50().children())[:-1]), which lightly's examples train."""
    numbers = dict(conv1=0, bn1=1, layer1=4, layer2=5, layer3=6, layer4=7)
    parts = {name: name.partition(".") for name in state if not name.startswith("fc.")}
    return {f"backbone.{numbers[p[0]]}.{p[2]}": state[name] for name, p in parts.items()}


ADAM = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
WRAPS = {
    "plain": lambda state: state,
    "without fc": lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "trainer": lambda state: {"model_state_dict": state, "optimizer_state_dict": ADAM, "epoch": 3},
    "deep": lambda state: {"net": {"model": prefixed("module.encoder_q.")(state)}, "best": torch.tensor(0.5)},
    "with heads": lambda state: prefixed("backbone.")(state) | {"projector.0.weight": torch.zeros(2, 2)},
    "sequential": sequential,
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_backbone_loads_however_it_was_saved(backbone, wrap, tmp_path, no_network):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save(WRAPS[wrap](backbone), path)
    tensors = pretrained.load_backbone(path)
    assert tensors.keys() == {name for name in backbone if not name.startswith("fc.")}
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda state: numbered(resnet18), ["layer1.0"]),
        (lambda state: state | {"layer1.0.conv2.weight": torch.zeros(128, 128, 3, 3)}, ["layer1.0.conv2.weight has"]),
        (lambda state: state | {"layer5.weight": torch.zeros(1)}, ["layer5.weight is unexpected"]),
        (lambda state: {k: v for k, v in state.items() if k != "layer4.2.bn3.bias"}, ["layer4.2.bn3.bias is missing"]),
        (lambda state: {"model": "resnet50"}, ["holds 0 tensors"]),
        (lambda state: [1, 2], ["list"]),
        (lambda state: state | prefixed("ema.")(state), ["more than once (top level, ema)"]),
        (lambda state: {"stem.weight": torch.zeros(3), "head": ADAM}, ["holds 2 tensors (first", "stem.weight"]),
        (lambda state: state | {"bn1.bias": torch.full((64,), torch.nan)}, ["bn1.bias holds values", "not finite"]),
        (lambda state: resnet18(), ["would run code", "torch.save", "--set supervised.source=pool"]),  # see test_trust
    ],
)
def test_other_backbones_are_refused_with_the_reason(backbone, tmp_path, harm, words):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save(harm(backbone), path)
    refused(pretrained.load_backbone, path, *words)


LOADERS = pytest.mark.parametrize("load", [pretrained.load_backbone, sam.load])


@LOADERS
def test_damaged_missing_and_unreadable_files_are_named(tmp_path, load):
    path = tmp_path / "weights.pt"
    refused(load, path, "No such file")
    torch.save({"conv1.weight": torch.zeros(10_000)}, path)
    for content in (path.read_bytes()[:10_000], b"<html>moved</html>", b""):
        path.write_bytes(content)
        refused(load, path, "is damaged")
    path.chmod(0o000)
    with held_to_permissions():
        refused(load, path, "Permission denied", "Fix the permissions")


@LOADERS
@pytest.mark.parametrize("error", [MemoryError(), NameError("bug"), torch.AcceleratorError("CUDA")], ids=repr)
def test_other_errors_are_not_blamed_on_the_file(tmp_path, monkeypatch, load, error):
    (tmp_path / "weights.pt").write_bytes(b"PK")
    monkeypatch.setattr(torch, "load", Mock(side_effect=error))
    with pytest.raises(type(error)):
        load(tmp_path / "weights.pt")


# --- published weights


def load_linear(*_):
    """Load the published weights of a network of one layer."""
    network = nn.Linear(2, 1)
    pretrained.load_published(network, "https://nowhere.invalid/linear-01234567.pth", "Linear", "linear.pretrained=0")
    return network


def test_published_weights_come_from_the_cache_without_network(backbone, cache, no_network):
    cache.mkdir(parents=True)
    path = cache / Path(ResNet50_Weights.DEFAULT.url).name
    torch.save(backbone, path)
    tensors, name = pretrained.imagenet_backbone()
    assert name == path.name and torch.equal(tensors["conv1.weight"], backbone["conv1.weight"])
    path.write_bytes(b"PK")
    refused(lambda path: pretrained.imagenet_backbone(), path, "is damaged", "supervised.source=pool")
    path, state = cache / "linear-01234567.pth", {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    torch.save(state, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_linear().state_dict().items())
    torch.save(state | {"bias": torch.ones(2)}, path)
    refused(load_linear, path, "Linear", "bias has the shape (2,) instead of (1,)", "linear.pretrained=0")


def login_page(*_, **__):
    """Answer as a guest network does, with another page."""
    page = io.BytesIO(b"<html>log in first</html>")
    page.info = email.message.Message
    return page


@pytest.mark.parametrize(("reply", "words"), [(offline, "no network"), (login_page, "invalid hash value")])
def test_a_failed_download_is_a_clear_error_and_leaves_nothing(cache, monkeypatch, reply, words):
    """The next run would trust the cache."""
    monkeypatch.setattr(torch.hub, "urlopen", reply)
    for load, setting in ((pretrained.imagenet_backbone, "supervised.source=pool"), (load_linear, "linear.pretrain")):
        with pytest.raises(UserError) as caught:
            load()
        message = str(caught.value)
        assert [part for part in (words, str(cache), f"--set {setting}") if part not in message] == []
        assert "\n" not in message and list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device. Free some disk space"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), None),
    ],
    ids=repr,
)
def test_a_failed_download_says_what_helps(cache, monkeypatch, error, words):
    monkeypatch.setattr(torch.hub, "download_url_to_file", Mock(side_effect=error))
    with pytest.raises(UserError if words else type(error)) as caught:
        load_linear()
    assert not words or words in str(caught.value)
