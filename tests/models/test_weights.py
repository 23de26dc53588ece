"""Optional weights: what loads, from where, and what is refused."""

import email.message
import io
import json
import socket
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights, resnet18, resnet50
from transformers import SamConfig, SamModel

from hw1lib.errors import UserError
from hw1lib.models import weights


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
    assert weights.find_sam(tmp_path) is None
    assert weights.find_sam(tmp_path / "not there") is None
    for name in ("sam_vit_h_4b8939.pth", "sam_vit_b_01ec64.pth"):
        (tmp_path / name).touch()
        assert weights.find_sam(tmp_path) == tmp_path / name
    folder = tmp_path / "sam-vit-base"
    folder.mkdir()
    (folder / "config.json").touch()
    assert weights.find_sam(tmp_path).suffix == ".pth"  # the folder's download is not complete
    (folder / "model.safetensors").touch()
    assert weights.find_sam(tmp_path) == folder


@pytest.mark.parametrize("dropped", [None, *weights._SHARED])
@pytest.mark.parametrize("half", [False, True])
def test_a_hugging_face_folder_loads_without_network(sam_folder, no_network, half, dropped):
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
        text = json.dumps({"model_type": "bert"}) if harm == "other" else "<html>not found</html>"
        (folder / "config.json").write_text(text)
    refused(weights.load_sam, folder, "weights fetch sam_vit_b")


def test_a_pth_of_something_else_is_refused(tmp_path):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    for content in (resnet18().state_dict(), resnet18(), [1, 2]):
        torch.save(content, path)
        refused(weights.load_sam, path)
    path.write_bytes(b"<html>moved</html>")
    refused(weights.load_sam, path, "is damaged")


def test_the_hint_is_one_sentence_and_names_every_way():
    assert "hw1lib weights fetch sam_vit_b" in weights.SAM_HINT
    assert weights.SAM_FOLDERS[0] in weights.SAM_HINT and weights.SAM_FILES[0] in weights.SAM_HINT
    assert weights.SAM_HINT.endswith("data/weights.") and ". " not in weights.SAM_HINT


# --- the course's backbone


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return resnet50(num_classes=64).state_dict()


WRAPS = {
    "plain": lambda state: state,
    "wrapped": lambda state: {"state_dict": state, "epoch": 3},
    "parallel": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "without fc": lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_backbone_loads_however_it_was_saved(backbone, wrap, tmp_path, no_network):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save(WRAPS[wrap](backbone), path)
    tensors = weights.load_backbone(path)
    assert tensors.keys() == {name for name in backbone if not name.startswith("fc.")}
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in tensors.items())


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_backbone_that_needs_code_is_refused_and_not_run(tmp_path):
    path = tmp_path / "pretrain_model_SL.pt"
    for content in (resnet18(), {"state_dict": Evil(tmp_path / "made")}):
        torch.save(content, path)
        refused(weights.load_backbone, path, "would run code", "torch.save", "--set supervised.source=pool")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda state: resnet18().state_dict(), "layer1.0"),
        (lambda state: {**state, "layer1.0.conv2.weight": torch.zeros(128, 128, 3, 3)}, "layer1.0.conv2.weight"),
        (lambda state: {**state, "layer5.weight": torch.zeros(1)}, "layer5.weight"),
        (lambda state: {k: v for k, v in state.items() if k != "layer4.2.bn3.bias"}, "layer4.2.bn3.bias"),
        (lambda state: {**state, "conv1.weight": 3}, "conv1.weight"),
        (lambda state: {"model": "resnet50"}, "Missing"),
        (lambda state: [1, 2], "list"),
    ],
)
def test_a_wrong_backbone_is_named(backbone, tmp_path, harm, word):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save(harm(backbone), path)
    refused(weights.load_backbone, path, word)


def test_a_damaged_or_missing_backbone_is_named(tmp_path):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save({"conv1.weight": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:10_000])
    refused(weights.load_backbone, path, "is damaged")
    refused(weights.load_backbone, tmp_path / "nothing" / path.name, "No such file")


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
    tensors, name = weights.imagenet_backbone()
    assert name == IMAGENET and torch.equal(tensors["conv1.weight"], backbone["conv1.weight"])
    (cache / IMAGENET).write_bytes(b"PK")
    refused(lambda path: weights.imagenet_backbone(), cache / IMAGENET, "is damaged", "supervised.source=pool")


def offline():
    raise urllib.error.URLError("no network in tests")


class Page(io.BytesIO):
    """What a login page of a guest network would be: an answer, but not the file."""

    def __init__(self):
        super().__init__(b"<html>log in first</html>")

    def info(self):
        return email.message.Message()


@pytest.mark.parametrize(
    ("reply", "word"), [(offline, "no network"), (Page, "invalid hash value"), (None, "Not a directory")]
)
def test_a_failed_download_is_a_clear_error_and_leaves_nothing(cache, monkeypatch, reply, word):
    """No network, a wrong answer, a file where the folder should be: the cache is trusted by the next run."""
    if reply is None:
        cache.parent.parent.write_text("")
    asked = []
    monkeypatch.setattr(torch.hub, "urlopen", lambda request, *words, **more: asked.append(request.full_url) or reply())
    with pytest.raises(UserError) as caught:
        weights.imagenet_backbone()
    for part in (ResNet50_Weights.DEFAULT.url, word, str(cache), "--set supervised.source=pool"):
        assert part in str(caught.value)
    assert asked == [ResNet50_Weights.DEFAULT.url] * (reply is not None)
    assert "\n" not in str(caught.value) and (reply is None or list(cache.iterdir()) == [])
