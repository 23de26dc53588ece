"""The segmentation networks: the printed one, shapes, outlines, and weights that cannot be had."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import (
    DeepLabV3_ResNet101_Weights,
    LRASPP_MobileNet_V3_Large_Weights,
)

from hw1lib.data.landcover import CLASSES
from hw1lib.errors import UserError
from hw1lib.models import segmenters

NAMES = tuple(segmenters.NAMES)
PRINTED = Path(__file__).with_name("vgg16_fcn32s.txt")  # the original report's own print


@pytest.fixture(scope="module")
def small():
    """The three networks at a quarter of their size."""
    torch.manual_seed(0)
    return {name: segmenters.build(name, 0.25).eval() for name in NAMES}


# --- the real ones


def test_the_baseline_is_the_printed_network():
    assert str(segmenters.real("fcn32s")) == PRINTED.read_text().strip()


def test_numbers_of_parameters():
    """The baseline's is that of the printed layers; torchvision says the others' for 21 classes."""
    assert segmenters.parameters("fcn32s") == 184_671_054
    fewer = 21 - len(CLASSES)
    lraspp = LRASPP_MobileNet_V3_Large_Weights.DEFAULT.meta["num_params"]
    assert segmenters.parameters("lraspp") == lraspp - fewer * (40 + 1 + 128 + 1)
    deeplab = DeepLabV3_ResNet101_Weights.DEFAULT.meta["num_params"]
    auxiliary = 1024 * 256 * 9 + 2 * 256 + 21 * (256 + 1)  # a head for training that we leave out
    assert segmenters.parameters("deeplabv3") == deeplab - auxiliary - fewer * (256 + 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_real_networks_give_a_score_a_class_and_pixel(name):
    network = segmenters.real(name).eval()
    out = network(torch.empty(1, 3, 512, 512, device="meta"))
    out = out["out"] if isinstance(out, dict) else out
    assert tuple(out.shape) == (1, len(CLASSES), 512, 512)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [128, 512])
def test_outlines_lead_from_the_image_to_full_size_scores(name, size):
    blocks = segmenters.outline(name, size)
    assert blocks[0]["part"] == "input" and blocks[0]["shape"] == (3, size, size)
    assert blocks[-1]["part"] == "upsampling"
    assert blocks[-1]["shape"] == (len(CLASSES), size, size)
    parts = [block["part"] for block in blocks]
    order = ["input", "backbone", "head", "upsampling"]
    assert sorted(parts, key=order.index) == parts and set(parts) == set(order)
    backbone = [block["shape"][1] for block in blocks if block["part"] in order[:2]]
    assert backbone == sorted(backbone, reverse=True)  # it only ever gets coarser
    assert blocks[-2]["part"] == "head"
    assert blocks[-2]["shape"] == (len(CLASSES), *[size // segmenters.STRIDE[name]] * 2)


def test_the_difference_is_told_for_every_network():
    assert set(segmenters.DIFFERENCE) == set(segmenters.PAPERS) == set(NAMES)
    assert all(segmenters.DIFFERENCE[name] and segmenters.PAPERS[name] for name in NAMES)


# --- the small ones


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (40, 90), (65, 31)])
def test_any_size_is_scored_pixel_by_pixel(small, name, shape):
    with torch.no_grad():
        out = segmenters.scores(small[name], torch.randn(2, 3, *shape))
    assert out.shape == (2, len(CLASSES), *shape) and out.dtype == torch.float32
    assert out.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_cut_off_again_where_it_was_added(small, name):
    """Scores of an image that needs none are the network's own."""
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        own = small[name](images)
        own = own["out"] if isinstance(own, dict) else own
        torch.testing.assert_close(segmenters.scores(small[name], images), own)
        wide = F.pad(images[..., :90], (0, 6, 0, 0), mode="reflect")
        cut = segmenters.scores(small[name], images[..., :90])
        torch.testing.assert_close(cut, segmenters.scores(small[name], wide)[..., :90])


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_float32_under_autocast(small, name):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = segmenters.scores(small[name], torch.randn(1, 3, 32, 32))
    assert out.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name):
    torch.manual_seed(0)
    network = segmenters.build(name, 0.25)
    segmenters.scores(network, torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_small_network_is_the_real_one_made_smaller(small, name):
    """The same kinds of modules under the same names; only blocks of a stage may be fewer."""
    real = dict(segmenters.real(name).named_modules())
    mine = dict(small[name].named_modules())
    assert mine.keys() <= real.keys() if name == "deeplabv3" else mine.keys() == real.keys()
    assert [n for n in mine if type(mine[n]) is not type(real[n])] == []
    assert {type(m) for m in mine.values()} == {type(m) for m in real.values()}
    size = sum(p.numel() for p in small[name].parameters())
    assert size < sum(p.numel() for p in segmenters.real(name).parameters()) / 2


@pytest.mark.parametrize("name", NAMES)
def test_the_momentum_of_norms_is_set_or_left(name):
    def momenta(**options):
        network = segmenters.build(name, 0.25, **options)
        return {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)}

    plain = momenta()
    assert momenta(norm_momentum=0.07) == ({0.07} if plain else set())
    assert 0.07 not in plain and momenta(norm_momentum=0.0) == plain


# --- pretrained weights


def no_network(*words, **options):
    raise urllib.error.URLError("no network in tests")


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_cannot_be_downloaded_are_a_clear_error(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with torch.device("meta"):  # no time for weights that will not come
        with pytest.raises(UserError) as caught:
            segmenters.build(name, pretrained=True)
    assert f"--set {name}.pretrained=false" in str(caught.value)
    assert segmenters.NAMES[name] in str(caught.value) and str(tmp_path) in str(caught.value)
