"""Optional weights: what loads, from where, and what is refused."""

import email.message
import io
import socket
import urllib.error
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from torchvision.models import ResNet50_Weights, resnet18, resnet50
from transformers import SamConfig, SamModel

from hw1lib.errors import UserError
from hw1lib.models import pretrained, weights
from tests.test_files import held_to_permissions


@pytest.fixture(scope="module")
def small_sam():
    """A very small random SAM."""
    small = {"hidden_size": 16, "patch_size": 16, "image_size": 64}
    sizes = {"output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_pos_feats": 8}
    torch.manual_seed(0)
    return SamModel(
        SamConfig(
            vision_config={**small, **sizes, "window_size": 3, "global_attn_indexes": [1]},
            prompt_encoder_config=small,
            mask_decoder_config={"hidden_size": 16, "mlp_dim": 32},
        )
    )


@pytest.fixture
def sam_folder(tmp_path, small_sam):
    """Its Hugging Face folder as transformers writes it, and its tensors."""
    folder = tmp_path / "sam-vit-base"
    small_sam.save_pretrained(folder)
    return folder, {name: tensor.clone() for name, tensor in small_sam.state_dict().items()}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight loader reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def refused(load, path, *words):
    """One paragraph that names the file and holds these words."""
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert [word for word in (str(path), "cannot be used", *words) if word not in message] == []
    assert "\n" not in message


def test_find_sam(tmp_path):
    folder, whole = tmp_path / "sam-vit-base", [None]
    folder.mkdir()
    for path in (tmp_path / "sam_vit_h_4b8939.pth", tmp_path / "sam_vit_b_01ec64.pth", folder / "config.json"):
        assert weights.find_sam(tmp_path) == whole[-1]
        path.touch()
        whole.append(path)
    assert weights.find_sam(tmp_path) == whole[-2]  # the folder's download is not complete
    (folder / "model.safetensors").touch()
    assert weights.find_sam(tmp_path) == folder and weights.find_sam(tmp_path / "not there") is None


@pytest.mark.parametrize(("dropped", "half"), [(None, True), *((name, False) for name in weights._SHARED)])
def test_a_hugging_face_folder_loads_without_network(sam_folder, no_network, dropped, half):
    """In full precision, whatever the file has; one of a shared matrix's two names is enough."""
    folder, tensors = sam_folder
    saved = {name: tensor.half() if half else tensor for name, tensor in tensors.items() if name != dropped}
    save_file(saved, folder / "model.safetensors")
    loaded = weights.load_sam(folder)
    assert not loaded.training and loaded.state_dict().keys() == tensors.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, tensors[name].half().float() if half else tensors[name]), name


@pytest.mark.parametrize("harm", ["cut", "lacks", "shape", "other", "text"])
def test_a_harmed_folder_is_refused_and_never_filled_at_random(sam_folder, harm):
    folder, tensors = sam_folder
    file, token = folder / "model.safetensors", "mask_decoder.iou_token.weight"
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    elif harm in ("lacks", "shape"):
        del tensors[token]
        save_file(tensors | ({token: torch.zeros(1, 99)} if harm == "shape" else {}), file)
    else:
        (folder / "config.json").write_text('{"model_type": "bert"}' if harm == "other" else "<html>not found</html>")
    refused(weights.load_sam, folder, "weights fetch sam_vit_b")


def test_a_pth_of_something_else_is_refused(tmp_path):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    for content in (resnet18().state_dict(), [1, 2]):
        torch.save(content, path)
        refused(weights.load_sam, path)
    path.write_bytes(b"<html>moved</html>")
    for read in (weights.load_sam, weights.check_sam):
        refused(read, path, "is damaged", "web page")


def test_a_look_at_the_names_finds_most_harm(sam_folder, tmp_path):
    """Before anything is trained, and without the seconds that transformers takes to import."""
    folder, tensors = sam_folder
    weights.check_sam(folder)
    for harmed in ({}, {"x": torch.zeros(1)}, {n: t for n, t in tensors.items() if "iou_token" not in n}):
        save_file(harmed, folder / "model.safetensors")
        refused(weights.check_sam, folder)
    (folder / "model.safetensors").write_bytes(b"{}")
    refused(weights.check_sam, folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    refused(weights.check_sam, folder, "model_type: sam")
    with torch.device("meta"):
        state = dict.fromkeys(sam_model_registry["vit_b"]().state_dict(), torch.zeros(1))
    for wrap in (lambda s: s, lambda s: {"model": s}, prefixed("module.")):
        torch.save(wrap(state), path := tmp_path / "sam_vit_b_01ec64.pth")
        weights.check_sam(path)
    torch.save({n: t for n, t in state.items() if "iou_token" not in n}, path)
    refused(weights.check_sam, path, "tensors (first", "SAM with")


# --- the course's backbone


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return resnet50(num_classes=64).state_dict()


def prefixed(prefix):
    return lambda state: {f"{prefix}{k}": v for k, v in state.items()}


def sequential(state):
    """As of nn.Sequential(*list(resnet50().children())[:-1]), which lightly's examples train."""
    numbers = dict(conv1=0, bn1=1, layer1=4, layer2=5, layer3=6, layer4=7)
    parts = {name: name.partition(".") for name in state if not name.startswith("fc.")}
    return {f"backbone.{numbers[p[0]]}.{p[2]}": state[name] for name, p in parts.items()}


ADAM = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
WRAPS = {
    "plain": lambda state: state,
    "wrapped": lambda state: {"state_dict": state, "epoch": 3},
    "parallel": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "without fc": lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "trainer": lambda state: {"model_state_dict": state, "optimizer_state_dict": ADAM, "epoch": 3},
    "deep": lambda state: {"net": {"model": state}, "best": torch.tensor(0.5)},
    "ema": lambda state: {"state_dict_ema": state, "arch": "resnet50"},
    "with heads": lambda state: prefixed("backbone.")(state) | {"projector.0.weight": torch.zeros(2, 2)},
    "sequential": sequential,
    **{prefix: prefixed(prefix) for prefix in ("encoder.", "resnet.", "_orig_mod.", "module.encoder_q.")},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_backbone_loads_however_it_was_saved(backbone, wrap, tmp_path, no_network):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save(WRAPS[wrap](backbone), path)
    tensors = pretrained.load_backbone(path)
    assert tensors.keys() == {name for name in backbone if not name.startswith("fc.")}
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda state: resnet18().state_dict(), ["layer1.0"]),
        (lambda state: {**state, "layer1.0.conv2.weight": torch.zeros(128, 128, 3, 3)}, ["layer1.0.conv2.weight"]),
        (lambda state: {**state, "layer5.weight": torch.zeros(1)}, ["layer5.weight"]),
        (lambda state: {k: v for k, v in state.items() if k != "layer4.2.bn3.bias"}, ["layer4.2.bn3.bias"]),
        (lambda state: {**state, "conv1.weight": 3}, ["conv1.weight"]),
        (lambda state: {"model": "resnet50"}, ["holds 0 tensors"]),
        (lambda state: [1, 2], ["list"]),
        (lambda state: {"student": state, "teacher": state}, ["a ResNet50 more than once (student, teacher)"]),
        (lambda state: state | prefixed("ema.")(state), ["more than once (the whole, ema)"]),
        (lambda state: {"stem.weight": torch.zeros(3), "head": ADAM}, ["holds 2 tensors (first", "stem.weight"]),
        (lambda state: {**state, "bn1.bias": torch.full((64,), torch.nan)}, ["bn1.bias holds values", "not finite"]),
        (lambda state: resnet18(), ["would run code", "torch.save", "--set supervised.source=pool"]),  # see test_trust
    ],
)
def test_a_wrong_backbone_is_named(backbone, tmp_path, harm, words):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save(harm(backbone), path)
    refused(pretrained.load_backbone, path, *words)


def test_a_damaged_or_missing_backbone_is_named(tmp_path):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save({"conv1.weight": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:10_000])
    refused(pretrained.load_backbone, path, "is damaged")
    refused(pretrained.load_backbone, tmp_path / "nothing" / path.name, "No such file")


# --- ImageNet's backbone

IMAGENET = Path(ResNet50_Weights.DEFAULT.url).name


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of torch's cache that weights lie in, not yet there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "cache" / "hub" / "checkpoints"


def test_imagenets_backbone_comes_from_the_cache_without_network(backbone, cache, no_network):
    cache.mkdir(parents=True)
    torch.save(backbone, cache / IMAGENET)
    tensors, name = pretrained.imagenet_backbone()
    assert name == IMAGENET and torch.equal(tensors["conv1.weight"], backbone["conv1.weight"])
    (cache / IMAGENET).write_bytes(b"PK")
    refused(lambda path: pretrained.imagenet_backbone(), cache / IMAGENET, "is damaged", "supervised.source=pool")


def offline(*_, **__):
    raise urllib.error.URLError("no network in tests")


def login_page(*_, **__):
    """An answer, but not the file: as in a guest network."""
    page = io.BytesIO(b"<html>log in first</html>")
    page.info = email.message.Message
    return page


@pytest.mark.parametrize(("reply", "said"), [(offline, "no network"), (login_page, "invalid hash value")])
def test_a_failed_download_is_a_clear_error_and_leaves_nothing(cache, monkeypatch, reply, said):
    """The cache is trusted by the next run."""
    monkeypatch.setattr(torch.hub, "urlopen", reply)
    with pytest.raises(UserError) as caught:
        pretrained.imagenet_backbone()
    for part in (ResNet50_Weights.DEFAULT.url, said, str(cache), "--set supervised.source=pool"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and list(cache.iterdir()) == []


@pytest.mark.parametrize("load", [pretrained.load_backbone, weights.load_sam])
@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("torch"), NameError("bug"), torch.AcceleratorError("CUDA")], ids=repr
)
def test_what_is_no_fault_of_a_file_does_not_ask_to_delete_it(tmp_path, monkeypatch, load, error):
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"PK")
    monkeypatch.setattr(torch, "load", Mock(side_effect=error))
    with pytest.raises(type(error)):
        load(tmp_path / "sam_vit_b_01ec64.pth")


@pytest.mark.parametrize("load", [pretrained.load_backbone, weights.load_sam])
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, load):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.touch(0o000)
    with held_to_permissions():
        refused(load, path, "Permission denied", "Fix the permissions")
