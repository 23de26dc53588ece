"""The segmentation networks equal torchvision's and the original report's; scores have any size; weights load."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import vgg16
from torchvision.models.segmentation import deeplabv3_resnet101, lraspp_mobilenet_v3_large

from hw1lib.data.landcover import CLASSES
from hw1lib.errors import UserError
from hw1lib.models import segmenters
from tests.models.conftest import numbered, offline

every_network = pytest.mark.parametrize("name", segmenters.SEGMENTERS)
PRINTED = Path(__file__).with_name("vgg16_fcn32s.txt")  # from the original report


@pytest.fixture(scope="module")
def small():
    """The three networks at a quarter of their size."""
    torch.manual_seed(0)
    return {name: segmenters.build(name, 0.25).eval() for name in segmenters.SEGMENTERS}


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


# --- the real networks


@pytest.mark.slow
def test_the_networks_equal_the_printed_one_and_torchvisions():
    assert str(segmenters.real("fcn32s")) == PRINTED.read_text().strip()
    assert segmenters.parameters("fcn32s") == 184_671_054
    for name, builder in (("lraspp", lraspp_mobilenet_v3_large), ("deeplabv3", deeplabv3_resnet101)):
        with torch.device("meta"):
            reference = builder(weights=None, weights_backbone=None, num_classes=len(CLASSES))
        network = segmenters.real(name)
        assert str(network) == str(reference)
        shapes = [[(n, v.shape) for n, v in each.state_dict().items()] for each in (network, reference)]
        assert shapes[0] == shapes[1]
        assert segmenters.parameters(name) == sum(p.numel() for p in reference.parameters())


@every_network
def test_outlines_lead_from_the_image_to_full_size_scores(name):
    blocks = segmenters.outline(name, 128)
    assert blocks[0]["shape"] == (3, 128, 128) and blocks[-1]["shape"] == (len(CLASSES), 128, 128)
    parts, order = [block["part"] for block in blocks], ["input", "backbone", "head", "upsampling"]
    assert sorted(parts, key=order.index) == parts and set(parts) == set(order)
    backbone = [block["shape"][1] for block in blocks if block["part"] in order[:2]]
    assert backbone == sorted(backbone, reverse=True)
    coarse = 128 // segmenters.SEGMENTERS[name].stride
    assert blocks[-2]["part"] == "head" and blocks[-2]["shape"] == (len(CLASSES), coarse, coarse)


def test_multiply_adds_are_those_of_the_layers():
    """VGG16's convolutions are known to take 15.3 billion at 224 pixels; test_published compares all networks."""
    head, upsampling = 49 * (9 * 512 * 4096 + 9 * 4096 * 4096 + 4096 * 7), 49 * 7 * 7 * 32 * 32
    for size in (224, 193):  # padding counts
        assert segmenters.multiply_adds("fcn32s", size) == 15_346_630_656 + head + upsampling


# --- scores


@pytest.mark.parametrize("enlarge", [1, 2, 3])
@pytest.mark.parametrize("shape", [(32, 64), (5, 33)])
def test_scores_are_those_of_padded_and_enlarged_images(enlarge, shape):
    """A pixel's score is the mean over its `enlarge`² pixels; edges are repeated up to a multiple of 32."""
    height, width = shape
    inputs = []

    def network(images):
        inputs.append(images)
        return (images[:, :1] + torch.arange(images.shape[-1])).expand(-1, 7, -1, -1)

    images = image(2, 3, height, width)
    scores = segmenters.scores(network, images, enlarge)
    assert scores.shape == (2, 7, height, width) and scores.dtype == torch.float32
    size = (height * enlarge, width * enlarge)
    large = F.interpolate(images, size, mode="bilinear", align_corners=False)
    rows, columns = (torch.arange(n + -n % 32).clamp(max=n - 1) for n in size)
    torch.testing.assert_close(inputs[0], large[:, :, rows][..., columns])
    mean = large[:, 0].reshape(2, height, enlarge, width, enlarge).mean((2, 4))
    expected = mean + enlarge * torch.arange(width) + (enlarge - 1) / 2
    torch.testing.assert_close(scores[:, 0], expected, atol=1e-4, rtol=1e-5)


@every_network
def test_every_network_scores_images_of_any_size_in_float32(small, name):
    """Also under autocast; FCN32s computes its last layers in float32, too."""
    network, dtypes = small[name], []
    last = getattr(network, "score_pred", nn.Identity())
    handle = last.register_forward_hook(lambda _, inputs, output: dtypes.append((inputs[0].dtype, output.dtype)))
    for shape in ((64, 64), (33, 47), (1, 1)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            scores = segmenters.scores(network, image(2, 3, *shape))
        assert scores.shape == (2, len(CLASSES), *shape) and scores.dtype == torch.float32 and scores.isfinite().all()
    handle.remove()
    assert dtypes == [(torch.float32, torch.float32)] * (3 if name == "fcn32s" else 0)


# --- building


@every_network
def test_a_small_network_has_the_real_ones_modules(small, name):
    real, kinds = segmenters.real(name), {type(module) for module in small[name].modules()}
    assert kinds == {type(module) for module in real.modules()} and nn.Conv2d not in kinds
    assert sum(p.numel() for p in small[name].parameters()) < segmenters.parameters(name) / 2


def test_fcn32s_starts_from_repeated_scores_and_hes_weights(small):
    network = small["fcn32s"]
    scores = image(1, 7, 2, 3)
    with torch.no_grad():
        assert torch.equal(network.upsample(scores), scores.repeat_interleave(32, 2).repeat_interleave(32, 3))
    for layer in (network.vgg16[-3], network.conv6_1[0], network.conv7_1[0]):
        fan_in = layer.in_channels * 9
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not layer.bias.any()


PUBLISHED = {  # the network of each file, and the layers that are new
    "fcn32s": (vgg16, {"conv6_1.0", "conv7_1.0", "score_pred", "upsample"}),
    "lraspp": (lraspp_mobilenet_v3_large, {"classifier.low_classifier", "classifier.high_classifier"}),
    "deeplabv3": (partial(deeplabv3_resnet101, aux_loss=True), {"classifier.4"}),
}


@pytest.mark.slow
@every_network
def test_published_weights_fit_or_are_a_clear_error(name, cache, monkeypatch):
    """Only the last layers are new; under the meta device they have no values."""
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with torch.device("meta"), pytest.raises(UserError) as caught:
        segmenters.build(name, pretrained=True)
    for word in (f"--set {name}.pretrained=false", segmenters.SEGMENTERS[name].full, str(cache), "no network"):
        assert word in str(caught.value)
    builder, new_layers = PUBLISHED[name]
    published = numbered(partial(builder, **({} if name == "fcn32s" else {"weights_backbone": None})))
    torch.save(published, cache / segmenters.SEGMENTERS[name].url.rpartition("/")[2])
    with torch.device("meta"):
        state = segmenters.build(name, pretrained=True).state_dict()
    assert state.keys() == segmenters.real(name).state_dict().keys()
    assert {n.rpartition(".")[0] for n, tensor in state.items() if tensor.is_meta} == new_layers
    for n, tensor in state.items():
        assert tensor.is_meta or torch.equal(tensor, published[n.replace("vgg16.", "features.")]), n
