"""The three segmentation networks of Problem 2: `build` them, compute `scores`, and describe their structure."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VGG16_Weights, mobilenet_v3_large, vgg16
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation import (
    DeepLabV3_ResNet101_Weights,
    LRASPP_MobileNet_V3_Large_Weights,
    deeplabv3,
    deeplabv3_resnet101,
    lraspp,
    lraspp_mobilenet_v3_large,
)
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import SqueezeExcitation

from hw1lib.data.landcover import CLASSES
from hw1lib.models import fast_conv
from hw1lib.models.pretrained import load_published


class VGG16_FCN32s(nn.Module):
    """The original report's FCN-32s: VGG16 features, two 4096-channel convolutions and one 32-fold upsampling.

    Args:
        features: VGG16's convolutional part.
        width: channels of conv6 and conv7; 4096 in the original.
    """

    def __init__(self, features, width=4096):
        super().__init__()
        channels = [m.out_channels for m in features if isinstance(m, nn.Conv2d)][-1]
        classes = len(CLASSES)
        self.vgg16 = features
        self.conv6_1 = nn.Sequential(nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(), nn.Dropout2d())
        self.conv7_1 = nn.Sequential(nn.Conv2d(width, width, kernel_size=3, padding=1), nn.ReLU(), nn.Dropout2d())
        self.score_pred = nn.Conv2d(width, classes, kernel_size=1)
        self.upsample = nn.ConvTranspose2d(classes, classes, kernel_size=32, stride=32)

    def forward(self, images):
        x = self.conv7_1(self.conv6_1(self.vgg16(images)))  # (B, 4096, H/32, W/32)
        # The last layers stay in float32: it is more accurate, and bfloat16 1×1 convolutions with few output channels
        # corrupt memory on some CPUs (torch 2.14).
        device = "cpu" if images.is_meta else images.device.type  # autocast does not know the meta device
        with torch.autocast(device, enabled=False):
            return self.upsample(self.score_pred(x.float()))  # (B, 7, H, W)


def build(name, scale=1.0, pretrained=False, norm_momentum=0.0):
    """Build a segmentation network.

    Args:
        name: fcn32s, lraspp or deeplabv3.
        scale: 1 for the real network; less shrinks width and depth, for tests.
        pretrained: start from torchvision's weights (VGG16: ImageNet; the others: COCO with VOC labels, whose last
            layers are replaced), from torch's cache or else from the internet.
        norm_momentum: momentum of BatchNorm; 0 keeps torchvision's.

    Returns:
        nn.Module for `scores`.

    Raises:
        UserError: the pretrained weights cannot be downloaded or are damaged.
    """
    network = SEGMENTERS[name].build(scale, pretrained and scale == 1)
    if norm_momentum:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum
    return fast_conv.use_in(network)


def _fcn32s(scale, pretrained):
    if pretrained:
        return VGG16_FCN32s(_published("fcn32s", vgg16(init_weights=False)).features)
    if scale == 1:
        network = VGG16_FCN32s(vgg16(weights=None).features)
    else:
        layers = [c if c == "M" else max(8, int(c * scale)) for c in cfgs["D"]]
        network = VGG16_FCN32s(make_layers(layers), width=max(16, int(4096 * scale / 8)))
    # Without BatchNorm nothing trains from torch's small default weights. Convolutions before ReLUs start from those of
    # He et al. 2015, and the upsampling repeats each score 32 × 32 times (Long et al. start from interpolation).
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module is not network.score_pred:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    nn.init.zeros_(network.upsample.bias)
    with torch.no_grad():
        network.upsample.weight.copy_(torch.eye(len(CLASSES))[:, :, None, None])
    return network


def _lraspp(scale, pretrained):
    if not pretrained:
        return lraspp._lraspp_mobilenetv3(mobilenet_v3_large(dilated=True, width_mult=scale), len(CLASSES))
    network = _published("lraspp", lraspp_mobilenet_v3_large(weights_backbone=None))
    head = network.classifier
    head.low_classifier, head.high_classifier = _resized(head.low_classifier), _resized(head.high_classifier)
    return network


def _deeplabv3(scale, pretrained):
    if not pretrained:
        depth, width = ([3, 4, 23, 3], 64) if scale == 1 else ([1, 1, 1, 1], max(8, int(64 * scale)))
        trunk = ResNet(Bottleneck, depth, width_per_group=width, replace_stride_with_dilation=[False, True, True])
        return deeplabv3._deeplabv3_resnet(trunk, len(CLASSES), None)
    network = _published("deeplabv3", deeplabv3_resnet101(weights_backbone=None, aux_loss=True))
    network.classifier[4] = _resized(network.classifier[4])
    network.aux_classifier = None
    return network


def _published(name, network):
    """Load torchvision's weights into its network, and return it."""
    load_published(network, SEGMENTERS[name].url, SEGMENTERS[name].full, f"{name}.pretrained=false")
    return network


def _resized(layer):
    """Return a new 1×1 convolution with the same inputs and one output per land-cover class."""
    return nn.Conv2d(layer.in_channels, len(CLASSES), kernel_size=1)


def scores(network, images, enlarge=1):
    """Compute class scores. Images are padded to multiples of 32, which FCN32s needs, by repeating their edges.

    Args:
        network: as returned by `build`.
        images: (B, 3, H, W) float, normalised, of any size.
        enlarge: factor by which images are enlarged first, so that the output stride covers fewer of their pixels.

    Returns:
        (B, 7, H, W) float32.
    """
    if enlarge > 1:
        images = F.interpolate(images, scale_factor=enlarge, mode="bilinear", align_corners=False)
    height, width = images.shape[-2:]
    pad = (0, -width % 32, 0, -height % 32)
    out = network(F.pad(images, pad, mode="replicate") if any(pad) else images)
    out = out["out"] if isinstance(out, dict) else out
    out = out[..., :height, :width].float()
    return F.avg_pool2d(out, enlarge) if enlarge > 1 else out


def stride(name, enlarge=1):
    """Return the output stride of a network in pixels of the tile before it is enlarged."""
    return max(1, SEGMENTERS[name].stride // enlarge)


def real(name):
    """Build the real network on torch's meta device, which has shapes but no values."""
    with torch.device("meta"):
        return build(name)


@functools.cache
def parameters(name):
    """Count the parameters of the real network."""
    return sum(p.numel() for p in real(name).parameters())


def multiply_adds(name, size):
    """Count the multiply-adds of the real network's convolutions for one size × size image."""
    network = real(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        scores(network, torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2  # a multiply-add counts as two


@functools.cache
def anatomy(name):
    """Count the building blocks of the real network.

    Returns:
        {name of the building block: number}.
    """
    modules = list(real(name).modules())

    def count(kind, condition=lambda module: True):
        return sum(isinstance(module, kind) and condition(module) for module in modules)

    return {
        "convolutions": count(nn.Conv2d),
        "depthwise convolutions": count(nn.Conv2d, lambda m: m.groups == m.in_channels > 1),
        "dilated convolutions": count(nn.Conv2d, lambda m: max(m.dilation) > 1),
        "transposed convolutions": count(nn.ConvTranspose2d),
        "poolings": count(nn.MaxPool2d),
        "BatchNorm layers": count(nn.BatchNorm2d),
        "residual bottlenecks": count(Bottleneck),
        "inverted residuals": count(InvertedResidual),
        "of these with a skip connection": count(InvertedResidual, lambda m: m.use_res_connect),
        "squeeze-and-excite blocks": count(SqueezeExcitation),
        "branches of the ASPP": sum(len(m.convs) for m in modules if isinstance(m, deeplabv3.ASPP)),
    }


def outline(name, size=512):
    """Describe the real network as the blocks of a diagram, in order of computation.

    Args:
        name: fcn32s, lraspp or deeplabv3.
        size: side of the square input in pixels.

    Returns:
        List of dicts with `label`, `part` (input, backbone, head or upsampling) and `shape` (channels, height, width).
    """
    network = real(name).eval()
    blocks = [{"label": "image", "part": "input", "shape": (3, size, size)}]
    for label, part, module in SEGMENTERS[name].blocks(network):

        def add_block(module, inputs, output, label=label, part=part):
            blocks.append({"label": label, "part": part, "shape": tuple(output.shape[1:])})

        module.register_forward_hook(add_block)
    with torch.no_grad():
        network(torch.empty(1, 3, size, size, device="meta"))
    if name != "fcn32s":
        blocks.append({"label": "bilinear ×8", "part": "upsampling", "shape": (len(CLASSES), size, size)})
    return blocks


def _fcn32s_blocks(network):
    pools = [module for module in network.vgg16 if isinstance(module, nn.MaxPool2d)]
    for stage, pool in enumerate(pools, start=1):
        yield f"conv{stage} + pool", "backbone", pool
    yield "conv6 3×3", "head", network.conv6_1
    yield "conv7 3×3", "head", network.conv7_1
    yield "score 1×1", "head", network.score_pred
    yield "transposed conv ×32", "upsampling", network.upsample


def _lraspp_blocks(network):
    first, *residuals, last = network.backbone.values()
    yield "conv 3×3", "backbone", first
    for _, run in itertools.groupby(residuals, lambda block: block.out_channels):  # one block per width
        yield "inverted residuals", "backbone", list(run)[-1]
    yield "conv 1×1", "backbone", last
    yield "conv 1×1 (× gate)", "head", network.classifier.cbr
    yield "score 1×1 (+ low-level)", "head", network.classifier.high_classifier


def _deeplabv3_blocks(network):
    yield "conv 7×7", "backbone", network.backbone["conv1"]
    yield "max pool", "backbone", network.backbone["maxpool"]
    for stage, rate in ((1, ""), (2, ""), (3, ", dilated 2"), (4, ", dilated 4")):
        layer = network.backbone[f"layer{stage}"]
        yield f"{len(layer)} bottlenecks{rate}", "backbone", layer
    yield "ASPP, rates 12 24 36", "head", network.classifier[0]
    yield "conv 3×3", "head", network.classifier[3]
    yield "score 1×1", "head", network.classifier[4]


@dataclass(frozen=True)
class Segmenter:
    """One network of Problem 2. To add another, add an entry here and a group of that name in settings.Profile.

    Attributes:
        full: name in the report.
        paper: its reference.
        stride: output stride in pixels of the input.
        colour: colour of its curves and bars, as hex.
        url: address of torchvision's pretrained weights.
        build: function(scale, pretrained) -> nn.Module from (B, 3, H, W) to (B, 7, H, W), or to a dict with that as
            "out".
        blocks: function(network) -> iterator of (label, part, module), one for each block of its diagram.
    """

    full: str
    paper: str
    stride: int
    colour: str
    url: str
    build: Callable
    blocks: Callable


SEGMENTERS = {  # by their names in settings and steps
    "fcn32s": Segmenter("VGG16-FCN32s", "Long, Shelhamer and Darrell 2015, arXiv:1411.4038", 32, "#d55e00",
                        VGG16_Weights.IMAGENET1K_V1.url, _fcn32s, _fcn32s_blocks),
    "lraspp": Segmenter("LR-ASPP MobileNetV3-Large", "Howard et al. 2019, arXiv:1905.02244", 8, "#0173b2",
                        LRASPP_MobileNet_V3_Large_Weights.DEFAULT.url, _lraspp, _lraspp_blocks),
    "deeplabv3": Segmenter("DeepLabV3-ResNet101", "Chen et al. 2017, arXiv:1706.05587", 8, "#029e73",
                           DeepLabV3_ResNet101_Weights.DEFAULT.url, _deeplabv3, _deeplabv3_blocks),
}  # fmt: skip
