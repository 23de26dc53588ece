"""The segmentation networks: torchvision's own, shapes, counts, and weights that cannot be had."""

import copy
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import (
    DeepLabV3_ResNet101_Weights,
    LRASPP_MobileNet_V3_Large_Weights,
    deeplabv3_resnet101,
    lraspp_mobilenet_v3_large,
)

from hw1lib.data.landcover import CLASSES
from hw1lib.errors import UserError
from hw1lib.models import convolution, segmenters

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
    """In text, names, shapes and numbers of parameters, which torchvision says for 21 classes."""
    assert str(segmenters.real("fcn32s")) == PRINTED.read_text().strip()
    assert segmenters.parameters("fcn32s") == 184_671_054
    auxiliary = 1024 * 256 * 9 + 2 * 256 + 21 * (256 + 1)  # a head for training that we leave out
    for name, builder, published, per_class, less in (
        ("lraspp", lraspp_mobilenet_v3_large, LRASPP_MobileNet_V3_Large_Weights, 40 + 1 + 128 + 1, 0),
        ("deeplabv3", deeplabv3_resnet101, DeepLabV3_ResNet101_Weights, 256 + 1, auxiliary),
    ):
        with torch.device("meta"):
            plain = builder(weights=None, weights_backbone=None, num_classes=len(CLASSES))
        ours = segmenters.real(name)
        assert str(ours) == str(plain)
        shapes = [[(n, v.shape) for n, v in made.state_dict().items()] for made in (ours, plain)]
        assert shapes[0] == shapes[1]
        count = published.DEFAULT.meta["num_params"] - less - (21 - len(CLASSES)) * per_class
        assert segmenters.parameters(name) == count


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


def test_multiply_adds_by_hand_and_as_torchvision_tells():
    """Layer by layer; the thirteen convolutions' 15.3 billion at 224 pixels are well known."""
    layers = [(64, 224), (64, 224), (128, 112), (128, 112), (256, 56), (256, 56), (256, 56)]
    layers += [(512, 28)] * 3 + [(512, 14)] * 3
    before, vgg16 = 3, 0
    for channels, side in layers:
        vgg16 += side**2 * 9 * before * channels
        before = channels
    assert vgg16 == pytest.approx(15.3e9, rel=0.005)
    head = 49 * (9 * 512 * 4096 + 9 * 4096 * 4096 + 4096 * 7)
    upsampling = 49 * 7 * 7 * 32 * 32
    assert segmenters.multiply_adds("fcn32s", 224) == vgg16 + head + upsampling
    assert segmenters.multiply_adds("fcn32s", 193) == vgg16 + head + upsampling  # padding counts
    lraspp = LRASPP_MobileNet_V3_Large_Weights.DEFAULT.meta["_ops"] * 1e9  # at 520 pixels and for 21 classes, so about
    assert segmenters.multiply_adds("lraspp", 512) == pytest.approx(lraspp * (512 / 520) ** 2, rel=0.04)


ANATOMY = {
    # VGG16: 13 convolutions; conv6, conv7 and the score.
    "fcn32s": {"convolutions": 13 + 3, "transposed convolutions": 1, "poolings": 5},
    # MobileNetV3-Large: a first convolution, 15 blocks of which the first does not expand
    # and eight squeeze, a last one; the head has four. Its table: 10 blocks keep their shape.
    "lraspp": {
        "convolutions": 1 + 14 * 3 + 2 + 8 * 2 + 1 + 4, "depthwise convolutions": 15, "dilated convolutions": 3,
        "BatchNorm layers": 1 + 14 * 3 + 2 + 1 + 1, "inverted residuals": 15, "of these with a skip connection": 10,
        "squeeze-and-excite blocks": 8,
    },
    # ResNet101: 3 + 4 + 23 + 3 blocks of three, four shortcuts and a first convolution; the
    # ASPP's five branches and its projection, a convolution, the score. Dilated: each 3×3 of
    # the last two stages but the first one, and three branches.
    "deeplabv3": {
        "convolutions": 33 * 3 + 4 + 1 + 6 + 2, "dilated convolutions": 22 + 3 + 3, "poolings": 1,
        "BatchNorm layers": 33 * 3 + 4 + 1 + 6 + 1, "residual bottlenecks": 33, "branches of the ASPP": 5,
    },
}  # fmt: skip


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


@every_network
def test_quick_convolutions_give_what_torchs_give(name):
    """The whole network: output, and every gradient, of every parameter."""
    torch.manual_seed(1)
    ours = segmenters.build(name, 0.25).eval()  # few pixels' own BatchNorm statistics magnify rounding errors
    plain = copy.deepcopy(ours)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            assert type(module) is convolution.Conv2d
            module.__class__ = nn.Conv2d
    found, expected = (segmenters.scores(network, image(4, 3, 64, 33)) for network in (ours, plain))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for out in (found, expected):
        out.square().mean().backward()
    for (label, mine), other in zip(ours.named_parameters(), plain.parameters()):
        assert (mine.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-7, label


# --- building


@every_network
def test_a_small_network_is_the_real_one_made_smaller(small, name):
    """The same kinds of modules under the same names; only blocks of a stage may be fewer."""
    real = dict(segmenters.real(name).named_modules())
    mine = dict(small[name].named_modules())
    assert mine.keys() <= real.keys() if name == "deeplabv3" else mine.keys() == real.keys()
    assert [n for n in mine if type(mine[n]) is not type(real[n])] == []
    assert {type(m) for m in mine.values()} == {type(m) for m in real.values()}
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
