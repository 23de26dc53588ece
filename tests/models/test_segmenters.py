"""The segmentation networks: torchvision's own, shapes, counts, and weights that cannot be had."""

import copy
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
    deeplabv3_resnet101,
    lraspp_mobilenet_v3_large,
)

from hw1lib.data.landcover import CLASSES
from hw1lib.errors import UserError
from hw1lib.models import convolution, segmenters

NAMES = tuple(segmenters.SEGMENTERS)
PRINTED = Path(__file__).with_name("vgg16_fcn32s.txt")  # the original report's own print


@pytest.fixture(scope="module")
def small():
    """The three networks at a quarter of their size."""
    torch.manual_seed(0)
    return {name: segmenters.build(name, 0.25).eval() for name in NAMES}


# --- the real ones


def test_the_baseline_is_the_printed_network():
    assert str(segmenters.real("fcn32s")) == PRINTED.read_text().strip()


@pytest.mark.parametrize(
    ("name", "builder"), [("lraspp", lraspp_mobilenet_v3_large), ("deeplabv3", deeplabv3_resnet101)]
)
def test_names_shapes_and_printed_text_are_torchvisions(name, builder):
    with torch.device("meta"):
        plain = builder(weights=None, weights_backbone=None, num_classes=len(CLASSES))
    ours = segmenters.real(name)
    assert str(ours) == str(plain)
    shapes = [[(n, v.shape) for n, v in made.state_dict().items()] for made in (ours, plain)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_convolution_is_a_quick_one(name):
    kinds = {type(m) for m in segmenters.real(name).modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {convolution.Conv2d}


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
    assert blocks[-2]["shape"] == (len(CLASSES), *[size // segmenters.SEGMENTERS[name].stride] * 2)


def test_every_network_has_its_paper():
    assert set(segmenters.PAPERS) == set(segmenters.STRIDE) == set(NAMES)
    assert all("arXiv:" in segmenters.PAPERS[name] for name in NAMES)


# --- counts


def test_multiply_adds_of_vgg16_by_hand():
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


def test_multiply_adds_are_those_that_torchvision_tells():
    """At 520 pixels and for 21 classes, so about; DeepLabV3's with its auxiliary head."""
    smaller = (512 / 520) ** 2
    lraspp = LRASPP_MobileNet_V3_Large_Weights.DEFAULT.meta["_ops"] * 1e9
    assert segmenters.multiply_adds("lraspp", 512) == pytest.approx(lraspp * smaller, rel=0.04)
    deeplab = DeepLabV3_ResNet101_Weights.DEFAULT.meta["_ops"] * 1e9
    auxiliary = 65**2 * 9 * 1024 * 256
    expected = (deeplab - auxiliary) * smaller
    assert segmenters.multiply_adds("deeplabv3", 512) == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("name", NAMES)
def test_multiply_adds_grow_with_the_area_and_padding_counts(name):
    """But for what each image has only once, such as squeeze-and-excite blocks."""
    count = segmenters.multiply_adds
    assert count(name, 512) == pytest.approx(4 * count(name, 256), rel=0.01)
    assert count(name, 225) == count(name, 256)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # VGG16: 13 convolutions; conv6, conv7 and the score.
        ("fcn32s", {"convolutions": 13 + 3, "transposed convolutions": 1, "poolings": 5}),
        # MobileNetV3-Large: a first convolution, 15 blocks of which the first does not expand
        # and eight squeeze, a last one; the head has four. Its table: 10 blocks keep their shape.
        (
            "lraspp",
            {
                "convolutions": 1 + 14 * 3 + 2 + 8 * 2 + 1 + 4,
                "depthwise convolutions": 15,
                "dilated convolutions": 3,
                "BatchNorm layers": 1 + 14 * 3 + 2 + 1 + 1,
                "inverted residuals": 15,
                "of these with a skip connection": 10,
                "squeeze-and-excite blocks": 8,
            },
        ),
        # ResNet101: 3 + 4 + 23 + 3 blocks of three, four shortcuts and a first convolution; the
        # ASPP's five branches and its projection, a convolution, the score. Dilated: each 3×3 of
        # the last two stages but the first one, and three branches.
        (
            "deeplabv3",
            {
                "convolutions": 33 * 3 + 4 + 1 + 6 + 2,
                "dilated convolutions": 22 + 3 + 3,
                "poolings": 1,
                "BatchNorm layers": 33 * 3 + 4 + 1 + 6 + 1,
                "residual bottlenecks": 33,
                "branches of the ASPP": 5,
            },
        ),
    ],
)
def test_the_anatomy_is_the_papers(name, expected):
    found = segmenters.anatomy(name)
    assert {part: count for part, count in found.items() if count} == expected
    assert list(found) == list(segmenters.anatomy("fcn32s"))  # one table for all


# --- the small ones


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (90, 40), (1, 1), (1, 70), (31, 2)])
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
        wide = F.pad(images[..., :90], (0, 6, 0, 0), mode="replicate")
        cut = segmenters.scores(small[name], images[..., :90])
        torch.testing.assert_close(cut, segmenters.scores(small[name], wide)[..., :90])


def test_padding_repeats_the_last_row_and_column():
    """As often as needed to come to 32; the network sees nothing else."""
    seen = []

    def network(images):
        seen.append(images)
        return images.mean(1, keepdim=True).expand(-1, 7, -1, -1)

    images = torch.randn(2, 3, 5, 33)
    out = segmenters.scores(network, images)
    assert seen[0].shape == (2, 3, 32, 64)
    assert torch.equal(seen[0][..., :5, :33], images)
    rows, columns = (torch.arange(n).clamp(max=m - 1) for n, m in ((32, 5), (64, 33)))
    assert torch.equal(seen[0], images[:, :, rows][..., columns])
    torch.testing.assert_close(out, images.mean(1, keepdim=True).expand(-1, 7, -1, -1))


@pytest.mark.parametrize("enlarge", [2, 3, 8])
@pytest.mark.parametrize("shape", [(32, 64), (5, 9)])
def test_enlarged_images_are_interpolated_and_their_scores_averaged(enlarge, shape):
    """By hand: pixel i of the tile lies under `enlarge` scores, and the mean of them is its own."""
    height, width = shape
    seen = []

    def network(images):
        seen.append(images)
        steps = torch.arange(images.shape[-1]).float()
        return (images[:, :1] + steps).expand(-1, 7, -1, -1)

    images = torch.randn(2, 3, height, width)
    out = segmenters.scores(network, images, enlarge)
    assert out.shape == (2, 7, height, width) and out.dtype == torch.float32
    size = (height * enlarge, width * enlarge)
    large = F.interpolate(images, size, mode="bilinear", align_corners=False)
    assert seen[0].shape[2:] == tuple(n + -n % 32 for n in size)
    torch.testing.assert_close(seen[0][..., : size[0], : size[1]], large)
    mean = large[:, 0].reshape(2, height, enlarge, width, enlarge).mean((2, 4))
    expected = mean + enlarge * torch.arange(width) + (enlarge - 1) / 2
    torch.testing.assert_close(out[:, 0], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_sees_more_in_an_enlarged_image(small, name):
    images = torch.randn(1, 3, 48, 40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        outs = [segmenters.scores(small[name], images, times) for times in (1, 2, 4)]
    assert all(out.shape == (1, 7, 48, 40) and out.isfinite().all() for out in outs)
    assert not torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("shape", [(64, 64), (96, 33)])
@pytest.mark.parametrize("name", NAMES)
def test_quick_convolutions_give_what_torchs_give(name, shape, monkeypatch):
    """The whole network: output in both modes, and every gradient."""
    torch.manual_seed(1)
    ours = segmenters.build(name, 0.25)
    for module in ours.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    plain = copy.deepcopy(ours)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    images = torch.randn(4, 3, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, expected = (segmenters.scores(n.eval(), images) for n in (ours, plain))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    values = []
    for network in (ours, plain):
        # BatchNorm as in evaluation: over few pixels its own statistics magnify rounding errors.
        value = segmenters.scores(network, images).square().mean()
        value.backward()
        values.append(value.detach())
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-4)
    for (label, mine), other in zip(ours.named_parameters(), plain.parameters()):
        assert (mine.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-7, label


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
    assert segmenters.SEGMENTERS[name].full in str(caught.value) and str(tmp_path) in str(caught.value)
