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


def small_config():
    small = {"hidden_size": 16, "patch_size": 16, "image_size": 64}
    return SamConfig(
        vision_config={
            **small,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
        },
        prompt_encoder_config=small,
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32},
    )


@pytest.fixture
def sam_folder(tmp_path):
    """A Hugging Face folder of a very small random SAM, as transformers writes it."""
    torch.manual_seed(0)
    sam = SamModel(small_config())
    folder = tmp_path / "sam-vit-base"
    sam.save_pretrained(folder)
    return folder, sam


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight loader reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


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


def test_a_hugging_face_folder_loads_without_network(sam_folder, no_network):
    folder, sam = sam_folder
    loaded = weights.load_sam(folder)
    assert not loaded.training
    assert loaded.state_dict().keys() == sam.state_dict().keys()
    for name, tensor in sam.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_shared_matrix_under_one_of_its_names_is_enough(sam_folder):
    folder, sam = sam_folder
    tensors = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    for kept, dropped in (weights._SHARED, weights._SHARED[::-1]):
        save_file({k: v for k, v in tensors.items() if k != dropped}, folder / "model.safetensors")
        assert torch.equal(weights.load_sam(folder).state_dict()[dropped], tensors[kept])


def test_half_precision_files_are_used_in_full_precision(sam_folder):
    folder, sam = sam_folder
    save_file({k: v.half() for k, v in sam.state_dict().items()}, folder / "model.safetensors")
    assert weights.load_sam(folder).dtype == torch.float32


@pytest.mark.parametrize("harm", ["cut", "lacks", "shape", "other", "text"])
def test_a_harmed_folder_is_refused_and_never_filled_at_random(sam_folder, harm):
    folder, sam = sam_folder
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    elif harm == "lacks":
        del tensors["mask_decoder.iou_token.weight"]
        save_file(tensors, file)
    elif harm == "shape":
        tensors["mask_decoder.iou_token.weight"] = torch.zeros(1, 99)
        save_file(tensors, file)
    elif harm == "other":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    else:
        (folder / "config.json").write_text("<html>not found</html>")
    with pytest.raises(UserError) as caught:
        weights.load_sam(folder)
    message = str(caught.value)
    assert str(folder) in message and "weights fetch sam_vit_b" in message
    assert "\n" not in message


def test_a_pth_of_something_else_is_refused(tmp_path):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    for content in (resnet18().state_dict(), resnet18(), [1, 2]):
        torch.save(content, path)
        with pytest.raises(UserError, match="sam_vit_b_01ec64.pth cannot be used"):
            weights.load_sam(path)
    path.write_bytes(b"<html>moved</html>")
    with pytest.raises(UserError, match="is damaged"):
        weights.load_sam(path)


def test_the_hint_is_one_sentence_and_names_every_way():
    assert "hw1lib weights fetch sam_vit_b" in weights.SAM_HINT
    assert weights.SAM_FOLDERS[0] in weights.SAM_HINT and weights.SAM_FILES[0] in weights.SAM_HINT
    assert weights.SAM_HINT.endswith("data/weights.") and ". " not in weights.SAM_HINT


# ---- the course's backbone -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return resnet50(num_classes=64).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "wrapped", "parallel", "without-fc", "without-counters"],
)
def test_backbone_loads_however_it_was_saved(backbone, wrap, tmp_path, no_network):
    path = tmp_path / "pretrain_model_SL.pt"
    torch.save(wrap(backbone), path)
    tensors = weights.load_backbone(path)
    assert not any(name.startswith("fc.") for name in tensors)
    network = resnet50()
    network.fc = torch.nn.Identity()
    network.load_state_dict(tensors)  # strict: exactly the backbone
    assert torch.equal(network.layer4[2].conv3.weight, backbone["layer4.2.conv3.weight"])


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_backbone_that_needs_code_is_refused_and_not_run(tmp_path):
    path = tmp_path / "pretrain_model_SL.pt"
    for content in (resnet50(), {"state_dict": Evil(tmp_path / "made")}):
        torch.save(content, path)
        with pytest.raises(UserError, match="would run code.*torch.save"):
            weights.load_backbone(path)
    assert not (tmp_path / "made").exists()


def test_a_wrong_or_damaged_backbone_is_named(backbone, tmp_path):
    path = tmp_path / "pretrain_model_SL.pt"
    wide = {**backbone, "layer1.0.conv2.weight": torch.zeros(128, 128, 3, 3)}
    extra = {**backbone, "layer5.weight": torch.zeros(1)}
    bad = (resnet18().state_dict(), wide, extra, {"model": "resnet50"}, {"conv1.weight": 3})
    for content in bad:
        torch.save(content, path)
        with pytest.raises(UserError, match="pretrain_model_SL.pt cannot be used"):
            weights.load_backbone(path)
    torch.save(backbone, path)
    path.write_bytes(path.read_bytes()[: 10**6])
    with pytest.raises(UserError, match="is damaged"):
        weights.load_backbone(path)
    with pytest.raises(UserError, match="No such file"):
        weights.load_backbone(tmp_path / "nothing" / "pretrain_model_SL.pt")


# ---- ImageNet's backbone -------------------------------------------------------------------------


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
    assert name == IMAGENET
    assert tensors.keys() == {name for name in backbone if not name.startswith("fc.")}
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in tensors.items())


def test_another_network_or_a_cut_file_in_the_cache_is_named(backbone, cache, no_network):
    cache.mkdir(parents=True)
    path = cache / IMAGENET
    torch.save(resnet18().state_dict(), path)
    with pytest.raises(UserError, match="its layer1.0.*supervised.source=pool") as caught:
        weights.imagenet_backbone()
    assert f"{path} cannot be used" in str(caught.value)
    torch.save(backbone, path)
    path.write_bytes(path.read_bytes()[: 10**6])
    with pytest.raises(UserError, match="is damaged"):
        weights.imagenet_backbone()


def answer(monkeypatch, reply):
    """Has torch's downloads answered by `reply`, and returns the addresses that were asked for."""
    asked = []

    def urlopen(request, *words, **options):
        asked.append(request.full_url)
        return reply()

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    return asked


def offline():
    raise urllib.error.URLError("no network in tests")


class Page(io.BytesIO):
    """What a login page of a guest network would be: an answer, but not the file."""

    def __init__(self):
        super().__init__(b"<html>log in first</html>")

    def info(self):
        return email.message.Message()


@pytest.mark.parametrize(("reply", "word"), [(offline, "no network"), (Page, "invalid hash value")])
def test_a_failed_download_is_a_clear_error_and_leaves_nothing(cache, monkeypatch, reply, word):
    """Neither network nor a wrong answer: what lies in the cache is trusted by the next run."""
    asked = answer(monkeypatch, reply)
    with pytest.raises(UserError) as caught:
        weights.imagenet_backbone()
    message = str(caught.value)
    assert asked == [ResNet50_Weights.DEFAULT.url]
    for part in (*asked, word, str(cache), "--set supervised.source=pool"):
        assert part in message
    assert "\n" not in message and list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_a_clear_error(cache, monkeypatch):
    """A file stands where the folder should be."""
    cache.parent.parent.write_text("")
    asked = answer(monkeypatch, offline)
    with pytest.raises(UserError, match="supervised.source=imagenet"):
        weights.imagenet_backbone()
    assert asked == []
