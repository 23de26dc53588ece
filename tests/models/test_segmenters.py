"""The segmentation networks: torchvision's own, shapes, counts, and weights that cannot be had."""

import os
import urllib.error
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet101, lraspp_mobilenet_v3_large

from hw1lib.data.landcover import CLASSES
from hw1lib.errors import UserError
from hw1lib.models import fast_conv, segmenters

every_network = pytest.mark.parametrize("name", segmenters.SEGMENTERS)
PRINTED = Path(__file__).with_name("vgg16_fcn32s.txt")  # the original report's own print


@pytest.fixture(scope="module")
def small():
    """The three networks at a quarter of their size."""
    torch.manual_seed(0)
    return {name: segmenters.build(name, 0.25).eval() for name in segmenters.SEGMENTERS}


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


# --- the real ones


def test_the_networks_are_the_printed_one_and_torchvisions():
    """In text, names, shapes and numbers of parameters."""
    assert str(segmenters.real("fcn32s")) == PRINTED.read_text().strip()
    assert segmenters.parameters("fcn32s") == 184_671_054
    for name, builder in (("lraspp", lraspp_mobilenet_v3_large), ("deeplabv3", deeplabv3_resnet101)):
        with torch.device("meta"):
            plain = builder(weights=None, weights_backbone=None, num_classes=len(CLASSES))
        ours = segmenters.real(name)
        assert str(ours) == str(plain)
        shapes = [[(n, v.shape) for n, v in made.state_dict().items()] for made in (ours, plain)]
        assert shapes[0] == shapes[1]
        assert segmenters.parameters(name) == sum(p.numel() for p in plain.parameters())


@every_network
def test_outlines_lead_from_the_image_to_full_size_scores(name):
    blocks = segmenters.outline(name, 128)
    assert blocks[0]["shape"] == (3, 128, 128) and blocks[-1]["shape"] == (len(CLASSES), 128, 128)
    parts, order = [block["part"] for block in blocks], ["input", "backbone", "head", "upsampling"]
    assert sorted(parts, key=order.index) == parts and set(parts) == set(order)
    backbone = [block["shape"][1] for block in blocks if block["part"] in order[:2]]
    assert backbone == sorted(backbone, reverse=True)  # it only ever gets coarser
    coarse = 128 // segmenters.SEGMENTERS[name].stride
    assert blocks[-2]["part"] == "head" and blocks[-2]["shape"] == (len(CLASSES), coarse, coarse)


def test_multiply_adds_are_those_of_the_layers():
    """Of all networks: test_published. VGG16's thirteen convolutions take 15.3 billion at 224 pixels, as is known."""
    head, upsampling = 49 * (9 * 512 * 4096 + 9 * 4096 * 4096 + 4096 * 7), 49 * 7 * 7 * 32 * 32
    for size in (224, 193):  # padding counts
        assert segmenters.multiply_adds("fcn32s", size) == 15_346_630_656 + head + upsampling


# --- scores


@pytest.mark.parametrize("enlarge", [1, 2, 3])
@pytest.mark.parametrize("shape", [(32, 64), (5, 33)])
def test_scores_are_those_of_padded_and_enlarged_images(enlarge, shape):
    """By hand: a pixel's score is the mean of the `enlarge`² that lie on it; the last row and column are repeated."""
    height, width = shape
    seen = []

    def network(images):
        seen.append(images)
        return (images[:, :1] + torch.arange(images.shape[-1])).expand(-1, 7, -1, -1)

    images = image(2, 3, height, width)
    out = segmenters.scores(network, images, enlarge)
    assert out.shape == (2, 7, height, width) and out.dtype == torch.float32
    size = (height * enlarge, width * enlarge)
    large = F.interpolate(images, size, mode="bilinear", align_corners=False)
    rows, columns = (torch.arange(n + -n % 32).clamp(max=n - 1) for n in size)
    torch.testing.assert_close(seen[0], large[:, :, rows][..., columns])
    mean = large[:, 0].reshape(2, height, enlarge, width, enlarge).mean((2, 4))
    expected = mean + enlarge * torch.arange(width) + (enlarge - 1) / 2
    torch.testing.assert_close(out[:, 0], expected, atol=1e-4, rtol=1e-5)


@every_network
def test_every_network_scores_images_of_any_size_in_float32(small, name):
    """Also under autocast, where the baseline's last layer runs in it."""
    network, seen = small[name], []
    last = getattr(network, "score_pred", nn.Identity())
    handle = last.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    for shape in ((64, 64), (33, 47), (1, 1)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            out = segmenters.scores(network, image(2, 3, *shape))
        assert out.shape == (2, len(CLASSES), *shape) and out.dtype == torch.float32 and out.isfinite().all()
    handle.remove()
    assert seen == [(torch.float32, torch.float32)] * (3 if name == "fcn32s" else 0)


# --- building


@every_network
def test_a_small_network_is_the_real_one_made_smaller(small, name):
    """The same kinds of modules under the same names, quick convolutions too; only blocks may be fewer."""
    real = dict(segmenters.real(name).named_modules())
    mine = dict(small[name].named_modules())
    assert mine.keys() <= real.keys() if name == "deeplabv3" else mine.keys() == real.keys()
    assert [n for n in mine if type(mine[n]) is not type(real[n])] == []
    assert {type(m) for m in mine.values()} == {type(m) for m in real.values()}
    assert {type(m) for m in mine.values() if isinstance(m, nn.Conv2d)} == {fast_conv.Conv2d}
    assert sum(p.numel() for p in small[name].parameters()) < segmenters.parameters(name) / 2


def test_the_baseline_begins_with_scores_that_are_repeated(small):
    """And with He's weights, which keep the variance of what ReLUs follow."""
    network = small["fcn32s"]
    scores = image(1, 7, 2, 3)
    with torch.no_grad():
        assert torch.equal(network.upsample(scores), scores.repeat_interleave(32, 2).repeat_interleave(32, 3))
    for layer in (network.vgg16[-3], network.conv6_1[0], network.conv7_1[0]):
        fan_in = layer.in_channels * 9
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not layer.bias.any()


@every_network
def test_weights_that_cannot_be_downloaded_are_a_clear_error(name, tmp_path, monkeypatch):
    def no_network(*words, **options):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with torch.device("meta"), pytest.raises(UserError) as caught:  # no time for weights that will not come
        segmenters.build(name, pretrained=True)
    for word in (f"--set {name}.pretrained=false", segmenters.SEGMENTERS[name].full, str(tmp_path), "no network"):
        assert word in str(caught.value)


CAUSES = [  # what happens while weights are downloaded or loaded, and what the message says; None: not their fault
    (OSError(28, "No space left on device"), "No space left on device. Free some disk space"),
    (PermissionError(13, "Permission denied"), "Fix the permissions"),
    (RuntimeError('invalid hash value (expected "ab", got "cd")'), "invalid hash value"),
    (RuntimeError("PytorchStreamReader failed reading zip archive"), "the file is damaged, holds code or belongs"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), None),
    (OSError(12, "Cannot allocate memory"), None),
    (MemoryError(), None),
    (TypeError("our bug"), None),
]


@pytest.mark.parametrize(("error", "words"), CAUSES, ids=repr)
def test_weights_that_cannot_be_loaded_say_why(monkeypatch, error, words):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", Mock(side_effect=error))
    with torch.device("meta"), pytest.raises(UserError if words else type(error)) as caught:
        segmenters.build("lraspp", pretrained=True)
    assert not words or words in str(caught.value)


def test_what_fails_in_building_is_not_blamed_on_the_weights(monkeypatch):
    monkeypatch.setattr(segmenters, "_resized", Mock(side_effect=RuntimeError("our bug")))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
    with torch.device("meta"), pytest.raises(RuntimeError, match="our bug"):
        segmenters.build("lraspp", pretrained=True)


@pytest.mark.parametrize(
    "before", [{}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0"}]
)
def test_the_environment_is_as_it_was_after_building(monkeypatch, before):
    for name in ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    environment = dict(os.environ)
    segmenters.build("lraspp", scale=0.125)
    assert dict(os.environ) == environment
