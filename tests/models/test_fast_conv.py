"""The fast convolution equals nn.Conv2d up to rounding."""

import numpy as np
import pytest
import torch
from torch import nn

from hw1lib.models import fast_conv

TORCH_FORWARD = nn.Conv2d.forward


def pair(kernel, channels=(6, 4), layout=torch.contiguous_format, **options):
    """Build ours and nn.Conv2d with the same weights."""
    torch.manual_seed(0)
    reference = nn.Conv2d(*channels, kernel, **options)
    ours = fast_conv.Conv2d(*channels, kernel, **options)
    ours.load_state_dict(reference.state_dict())
    return [module.to(memory_format=layout) for module in (ours, reference)]


def run(module, images):
    """Return the output, and the gradients of a weighted sum of it by images, weight and bias."""
    images = images.clone().requires_grad_()
    module.zero_grad()
    output = module(images)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"output": output.detach(), "images": images.grad} | gradients


def image(height, width, channels=6, count=3):
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(10 * height + width))


@pytest.fixture
def fallbacks(monkeypatch):
    """A list that grows with each call in which our convolution falls back to torch's."""
    calls = []

    def forward(module, images):
        output = TORCH_FORWARD(module, images)
        if type(module) is fast_conv.Conv2d:
            calls.append(images.shape)
        return output

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    return calls


@pytest.fixture
def always(monkeypatch):
    """Use matrix products wherever possible, not only where they are faster."""
    monkeypatch.setattr(fast_conv.Conv2d, "_is_faster_as_product", lambda *_: True)


DEPTHWISE = {"groups": 6, "channels": (6, 6)}
FAST = [  # kernel, options, sizes of maps
    (3, {"padding": 1}, [(1, 1), (1, 4), (2, 2), (8, 8)]),
    (3, {"padding": 1, "stride": 2}, [(3, 3), (4, 4), (2, 7)]),
    (1, {"stride": 2}, [(1, 1), (2, 2), (7, 7)]),
    ((1, 3), {"padding": (0, 1)}, [(2, 2), (7, 1)]),
    (3, {"padding": 12, "dilation": 12}, [(8, 8), (12, 5), (13, 24)]),  # in some, only the middle tap touches a pixel
    (5, {"padding": 4, "dilation": 2, **DEPTHWISE}, [(4, 4), (8, 12)]),
]
FALLBACK = [
    (3, {"groups": 2, "padding": 1}, [(2, 2), (1, 3)]),
    (3, {"padding": 1, **DEPTHWISE}, [(1, 1), (8, 8)]),
    (3, {"padding": 2, "dilation": 2, **DEPTHWISE}, [(5, 5), (4, 5)]),  # 2 does not divide the map
    (3, {"padding": 1, "dilation": 2, **DEPTHWISE}, [(8, 8)]),  # 2 does not divide the padding
    (3, {"padding": (2, 4), "dilation": (2, 4), **DEPTHWISE}, [(8, 8)]),
    (3, {"padding": 2, "dilation": 2, "stride": 2, **DEPTHWISE}, [(8, 8)]),
    (3, {"padding": 1, "padding_mode": "reflect"}, [(4, 4)]),
    (3, {"padding": "same"}, [(2, 2)]),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("kernel", "options", "sizes"), FAST + FALLBACK)
def test_slow_cases_are_computed_otherwise_and_the_rest_is_torchs_to_the_bit(
    kernel, options, sizes, layout, fallbacks, always
):
    is_fast = (kernel, options, sizes) in FAST
    ours, reference = pair(kernel, layout=layout, **options)
    for size in sizes:
        images = image(*size).to(memory_format=layout)
        tolerance = 1e-5 if is_fast else 0
        torch.testing.assert_close(run(ours, images), run(reference, images), atol=tolerance, rtol=tolerance)
    assert len(fallbacks) == (0 if is_fast else len(sizes))


def test_products_of_any_geometry_are_torchs(always):
    """Without oneDNN, which crashes on some of these maps, on different ones on each processor."""
    compared = 0
    for seed in range(150):
        random = np.random.default_rng(seed)
        kernel, stride, dilation = (tuple(map(int, random.integers(1, high, 2))) for high in (5, 4, 7))
        padding = tuple(d * (k // 2) for d, k in zip(dilation, kernel)) if seed % 2 else (int(random.integers(4)),) * 2
        size = tuple(map(int, random.integers(1, 13, 2)))
        if any(s + 2 * p <= d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel)):
            continue  # the kernel is larger than the map
        ours, reference = pair(kernel, stride=stride, dilation=dilation, padding=padding)
        with torch.backends.mkldnn.flags(enabled=False):
            torch.testing.assert_close(run(ours, image(*size)), run(reference, image(*size)), atol=1e-4, rtol=1e-4)
        compared += 1
    assert compared > 80


def test_products_are_for_many_weights_and_few_pixels(fallbacks):
    for channels, side, count, expected in ((128, 2, 2, 0), (128, 2, 999, 1), (128, 16, 2, 1), (4, 2, 2, 1)):
        before = len(fallbacks)
        fast_conv.Conv2d(channels, channels, 3, padding=1)(image(side, side, channels, count))
        assert len(fallbacks) - before == expected


def test_other_devices_and_depthwise_inference_use_torchs(fallbacks):
    with torch.device("meta"):
        assert fast_conv.Conv2d(6, 4, 3, padding=1)(torch.empty(2, 6, 2, 2)).shape == (2, 4, 2, 2)
    with torch.no_grad():
        pair(5, padding=4, dilation=2, **DEPTHWISE)[0](image(8, 8))
    assert len(fallbacks) == 2


@pytest.mark.parametrize(
    ("kernel", "options", "size"),
    [
        (1, {"stride": 2, "bias": False}, (5, 7)),
        (3, {"padding": 1}, (2, 2)),
        (5, {"padding": 4, "dilation": 2, "groups": 64}, (8, 8)),
    ],
)
def test_under_autocast_it_is_fast_and_stays_close(kernel, options, size, fallbacks, always):
    """The reference is in float32, as torch's bfloat16 convolutions have bugs (see segmenters)."""
    ours, reference = pair(kernel, channels=(64, 64), **options)
    images = image(*size, channels=64, count=8)
    expected = run(reference, images)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(ours, images)
    assert results["output"].dtype == torch.bfloat16 and fallbacks == []
    for key, value in expected.items():
        assert results[key].shape == value.shape
        assert (results[key].float() - value).norm() < 0.02 * value.norm(), key
