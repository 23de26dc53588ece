"""The fast convolution equals nn.Conv2d up to rounding."""

import numpy as np
import pytest
import torch
from torch import nn

from hw1lib.models import fast_conv

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TORCH_FORWARD = nn.Conv2d.forward


def pair(kernel, seed=0, channels=(6, 4), layout="contiguous", **options):
    """Build ours and nn.Conv2d with the same weights."""
    torch.manual_seed(seed)
    reference = nn.Conv2d(*channels, kernel, **options)
    ours = fast_conv.Conv2d(*channels, kernel, **options)
    ours.load_state_dict(reference.state_dict())
    return [module.to(memory_format=FORMATS[layout]) for module in (ours, reference)]


def run(module, images):
    """Return the output, and the gradients of a weighted sum of it by images, weight and bias."""
    images = images.clone().requires_grad_()
    module.zero_grad()
    output = module(images)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"output": output.detach(), "images": images.grad} | gradients


def assert_equal(ours, reference, images, tolerance=1e-5):
    """Assert that both give the same or both raise; return whether there was anything to compare."""
    try:
        expected = run(reference, images)
    except RuntimeError:  # the kernel is larger than the map
        with pytest.raises(RuntimeError):
            run(ours, images)
        return False
    torch.testing.assert_close(run(ours, images), expected, atol=tolerance, rtol=tolerance)
    return True


def image(height, width, layout="contiguous", channels=6, count=3):
    generator = torch.Generator().manual_seed(10 * height + width)
    images = torch.randn(count, channels, height, width, generator=generator)
    return images.to(memory_format=FORMATS[layout])


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


def random_convolution(seed):
    """Draw kernel and options of a convolution, and sizes of maps to try it on.

    torch 2.14's convolution crashes with groups and channels last if a column of the output touches no pixel, so groups
    get a padding that keeps or shrinks the map.
    """
    random = np.random.default_rng(seed)

    def two(*choices):
        return tuple(int(n) for n in random.choice(choices, 2))

    kernel, dilation = two(1, 2, 3, 3, 4, 5), two(1, 1, 1, 2, 3, 6)
    stride, padding = two(1, 1, 2, 3), two(0, 1, 2, 3, 7)
    if seed % 3:  # as in networks
        dilation = two(2, 3, 4, 12)[:1] * 2
        padding = tuple(d * (k // 2) for d, k in zip(dilation, kernel))
        stride = (1, 1) if seed % 3 == 1 else stride
    groups = int(random.choice((1, 1, 2, 6)))
    if groups > 1:
        padding = tuple(d * (k // 2) * (k % 2) for d, k in zip(dilation, kernel))
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    options |= dict(bias=bool(random.integers(2)), channels=(6, int(random.choice((6, 12)))))
    sizes = [two(*range(1, 13)) for _ in range(4)] + [two(1, 2, 3, 4), two(4, 6, 8, 12), (12, 12)]
    return kernel, options, sizes


@pytest.mark.slow
@pytest.mark.parametrize("layout", FORMATS)
def test_output_and_gradients_of_any_convolution_are_torchs(layout, fallbacks, always):
    """Without oneDNN, which crashes on some of these maps, on different ones on each processor."""
    compared = 0
    for seed in range(60):
        kernel, options, sizes = random_convolution(seed)
        ours, reference = pair(kernel, seed, layout=layout, **options)
        for size in sizes:
            with torch.backends.mkldnn.flags(enabled=False):
                compared += assert_equal(ours, reference, image(*size, layout, count=seed % 10 and 2), 1e-4)
    assert compared - len(fallbacks) > 30 and len(fallbacks) > 30


DEPTHWISE = {"groups": 6, "channels": (6, 6)}
FAST = [  # kernel, options, sizes of maps
    (3, {"padding": 1}, [(1, 1), (1, 4), (2, 2), (8, 8), (3, 12)]),
    (3, {"padding": 1, "stride": 2}, [(3, 3), (4, 4), (2, 7)]),
    (5, {"padding": 2}, [(1, 2), (2, 2)]),
    (1, {}, [(1, 1), (2, 2), (7, 7)]),
    ((1, 3), {"padding": (0, 1)}, [(2, 2), (7, 1)]),
    (3, {"padding": 12, "dilation": 12}, [(8, 8), (12, 5)]),  # only the middle tap touches a pixel
    (5, {"padding": 4, "dilation": 2, **DEPTHWISE}, [(4, 4), (8, 12)]),
]
FALLBACK = [
    (3, {"groups": 2, "padding": 1}, [(2, 2), (1, 3), (5, 5)]),
    (3, {"padding": 1, **DEPTHWISE}, [(1, 1), (2, 2), (8, 8)]),
    (3, {"padding": 2, "dilation": 2, **DEPTHWISE}, [(5, 5), (4, 5), (7, 8)]),  # 2 does not divide the map
    (3, {"padding": 1, "dilation": 2, **DEPTHWISE}, [(8, 8), (4, 6)]),  # 2 does not divide the padding
    (3, {"padding": (2, 4), "dilation": (2, 4), **DEPTHWISE}, [(8, 8)]),
    (3, {"padding": 2, "dilation": 2, "stride": 2, **DEPTHWISE}, [(8, 8)]),
    (3, {"padding": 1, "padding_mode": "reflect"}, [(2, 2), (4, 4)]),
    (3, {"padding": "same"}, [(2, 2), (1, 3), (5, 5)]),
]


@pytest.mark.parametrize(("kernel", "options", "sizes"), FAST + FALLBACK)
def test_slow_cases_are_computed_otherwise_and_the_rest_is_torchs_to_the_bit(kernel, options, sizes, fallbacks, always):
    is_fast = (kernel, options, sizes) in FAST
    ours, reference = pair(kernel, **options)
    for size in sizes:
        assert assert_equal(ours, reference, image(*size), tolerance=1e-5 if is_fast else 0)
    assert len(fallbacks) == (0 if is_fast else len(sizes))


@pytest.mark.parametrize(
    ("channels", "kernel", "side", "batch", "float32", "bfloat16"),
    [  # of ResNet50, FCN32s and DeepLabV3
        ((64, 64), 3, 32, 128, False, False),  # a large map
        ((64, 256), 1, 8, 64, False, False),  # few weights
        ((1024, 256), 1, 64, 2, False, True),
        ((512, 2048), 1, 4, 128, True, True),
        ((512, 512), 3, 4, 128, True, True),
        ((256, 256), 3, 8, 256, False, False),  # many images
        ((256, 256), 3, 8, 64, False, True),
        ((4096, 4096), 3, 16, 2, True, True),
    ],
)
def test_products_are_for_many_weights_and_few_pixels(channels, kernel, side, batch, float32, bfloat16):
    with torch.device("meta"):
        layer = fast_conv.Conv2d(*channels, kernel, padding=kernel // 2)
        for dtype, expected in ((torch.float32, float32), (torch.bfloat16, bfloat16)):
            images = torch.empty(batch, channels[0], side, side, dtype=dtype)
            geometry = fast_conv._geometry(images.shape[2:], layer.kernel_size, layer.stride, layer.padding, (1, 1))
            assert layer._is_faster_as_product(images, *geometry) is expected


def test_other_devices_and_depthwise_inference_use_torchs(fallbacks):
    with torch.device("meta"):
        assert fast_conv.Conv2d(6, 4, 3, padding=1)(torch.empty(2, 6, 2, 2)).shape == (2, 4, 2, 2)
    with torch.no_grad():
        pair(5, padding=4, dilation=2, **DEPTHWISE)[0](image(8, 8))
    assert len(fallbacks) == 2


def test_training_works_after_inference_mode(always):
    """The cache of geometries holds nothing that belongs to inference alone."""
    fast_conv._geometry.cache_clear()
    ours, reference = pair(3, channels=(6, 6), padding=2, dilation=2)
    with torch.inference_mode():
        ours(image(6, 10))
    assert assert_equal(ours, reference, image(6, 10))


@pytest.mark.parametrize(
    ("kernel", "options", "sizes"),
    [
        (1, {"stride": 2, "bias": False}, [(4, 4), (5, 7)]),
        (3, {"padding": 1}, [(1, 1), (2, 2)]),
        (3, {"padding": 24, "dilation": 24, "bias": False}, [(8, 8)]),
        (5, {"padding": 4, "dilation": 2, "groups": 64}, [(4, 4), (8, 8)]),
    ],
)
def test_under_autocast_it_is_fast_and_stays_close(kernel, options, sizes, fallbacks, always):
    """The reference is in float32, as torch's bfloat16 convolutions have bugs (see segmenters)."""
    ours, reference = pair(kernel, channels=(64, 64), **options)
    for size in sizes:
        images = image(*size, channels=64, count=8)
        expected = run(reference, images)
        with torch.autocast("cpu", torch.bfloat16):
            results = run(ours, images)
        assert results["output"].dtype == torch.bfloat16
        for key, value in expected.items():
            assert results[key].shape == value.shape
            assert (results[key].float() - value).norm() < 0.02 * value.norm(), (key, size)
    assert fallbacks == []
