"""The quick convolution: nn.Conv2d in everything but time."""

import numpy as np
import pytest
import torch
from torch import nn

from hw1lib.models import fast_conv

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LIBRARY = nn.Conv2d.forward


def pair(kernel, seed=0, channels=(6, 4), layout="contiguous", **options):
    """Ours and nn.Conv2d with the same weights."""
    torch.manual_seed(seed)
    plain = nn.Conv2d(*channels, kernel, **options)
    ours = fast_conv.Conv2d(*channels, kernel, **options)
    ours.load_state_dict(plain.state_dict())
    return [module.to(memory_format=FORMATS[layout]) for module in (ours, plain)]


def passed(module, images):
    """Output, and the gradients of a weighted sum of it by images, weight and bias."""
    images = images.clone().requires_grad_()
    module.zero_grad()
    out = module(images)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out.float() * weights).sum().backward()
    found = {"output": out.detach(), "images": images.grad}
    return found | {name: p.grad for name, p in module.named_parameters()}


def assert_alike(ours, plain, images, tolerance=1e-5):
    """Both are right or both refuse; returns whether there was anything to compare."""
    try:
        expected = passed(plain, images)
    except RuntimeError:  # the kernel is larger than the map
        with pytest.raises(RuntimeError):
            passed(ours, images)
        return False
    found = passed(ours, images)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    return True


def image(height, width, layout="contiguous", channels=6, count=3):
    generator = torch.Generator().manual_seed(10 * height + width)
    images = torch.randn(count, channels, height, width, generator=generator)
    return images.to(memory_format=FORMATS[layout])


@pytest.fixture
def library(monkeypatch):
    """A list that gets one entry whenever our convolution lets torch's own do the work."""
    calls = []

    def noted(module, images):
        out = LIBRARY(module, images)
        if type(module) is fast_conv.Conv2d:
            calls.append(tuple(images.shape))
        return out

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    return calls


@pytest.fixture
def always(monkeypatch):
    """Matrix products wherever they can be taken, not only where they are quicker."""
    monkeypatch.setattr(fast_conv.Conv2d, "_is_faster_as_product", lambda *_: True)


def drawn(seed):
    """One convolution, of any kind that it has options for, and the maps that it is tried on.

    NOTE: torch 2.14's own crashes where it has groups, channels come last and a column of the
    output sees no pixel. So groups are drawn with a padding that keeps or shrinks the map.
    """
    random = np.random.default_rng(seed)

    def two(*choices):
        return tuple(int(n) for n in random.choice(choices, 2))

    kernel, dilation = two(1, 2, 3, 3, 4, 5), two(1, 1, 1, 2, 3, 6)
    stride, padding = two(1, 1, 2, 3), two(0, 1, 2, 3, 7)
    if seed % 3:  # such as networks have
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
def test_output_and_gradients_of_any_convolution_are_torchs(layout, library, always):
    """Kernels 1 to 5, strides, paddings and dilations beyond the map, groups, maps 1 to 12, and no image at all.

    Without oneDNN, whose own convolutions crash on some of these maps, on other ones with each processor.
    """
    compared = 0
    for seed in range(60):
        kernel, options, sizes = drawn(seed)
        ours, plain = pair(kernel, seed, layout=layout, **options)
        for size in sizes:
            with torch.backends.mkldnn.flags(enabled=False):
                compared += assert_alike(ours, plain, image(*size, layout, count=seed % 10 and 2), 1e-4)
    assert compared - len(library) > 30 and len(library) > 30  # both ways were tried


# --- which way is taken

DEPTHWISE = {"groups": 6, "channels": (6, 6)}
QUICK = {  # kernel, options, maps
    "a small map": (3, {"padding": 1}, [(1, 1), (1, 4), (2, 2), (4, 1)]),
    "a small output": (3, {"padding": 1, "stride": 2}, [(3, 3), (4, 4), (2, 7)]),
    "5x5 on a small map": (5, {"padding": 2}, [(1, 2), (2, 2)]),
    "a large map": (3, {"padding": 1}, [(8, 8), (3, 12)]),
    "1x1": (1, {}, [(1, 1), (2, 2), (7, 7)]),
    "1x3": ((1, 3), {"padding": (0, 1)}, [(2, 2), (7, 1)]),
    "one tap by dilation": (3, {"padding": 12, "dilation": 12}, [(8, 8), (12, 5)]),
    "dilated, divisible": (3, {"padding": 2, "dilation": 2}, [(8, 8), (4, 12)]),
    "dilated depthwise": (5, {"padding": 4, "dilation": 2, **DEPTHWISE}, [(4, 4), (8, 12)]),
}
OTHER = {
    "groups": (3, {"groups": 2, "padding": 1}, [(2, 2), (1, 3), (5, 5)]),
    "depthwise": (3, {"padding": 1, **DEPTHWISE}, [(1, 1), (2, 2), (8, 8)]),
    "undivided map": (3, {"padding": 2, "dilation": 2, **DEPTHWISE}, [(5, 5), (4, 5), (7, 8)]),
    "undivided padding": (3, {"padding": 1, "dilation": 2, **DEPTHWISE}, [(8, 8), (4, 6)]),
    "two dilations": (3, {"padding": (2, 4), "dilation": (2, 4), **DEPTHWISE}, [(8, 8)]),
    "dilation with a stride": (3, {"padding": 2, "dilation": 2, "stride": 2, **DEPTHWISE}, [(8, 8)]),
    "reflected": (3, {"padding": 1, "padding_mode": "reflect"}, [(2, 2), (4, 4)]),
    "dilated and circular": (3, {"padding": 2, "dilation": 2, "padding_mode": "circular", **DEPTHWISE}, [(4, 4)]),
    "padding in words": (3, {"padding": "same"}, [(2, 2), (1, 3), (5, 5)]),
}


@pytest.mark.parametrize("name", [*QUICK, *OTHER])
def test_what_may_be_slow_is_not_left_to_the_library_and_the_rest_is(name, library, always):
    """The rest is torch's own to the bit."""
    kernel, options, sizes = (QUICK | OTHER)[name]
    ours, plain = pair(kernel, **options)
    for size in sizes:
        assert assert_alike(ours, plain, image(*size), tolerance=1e-5 if name in QUICK else 0)
    assert len(library) == (0 if name in QUICK else len(sizes))


PAYS = [  # channels, kernel, side of the map, batch, float32 and bfloat16; of ResNet50, FCN32s and DeepLabV3
    ((64, 64), 3, 32, 128, False, False),  # a large map
    ((64, 256), 1, 8, 64, False, False),  # few weights
    ((1024, 256), 1, 64, 2, False, True),
    ((512, 2048), 1, 4, 128, True, True),
    ((512, 512), 3, 4, 128, True, True),
    ((256, 256), 3, 8, 256, False, False),  # many images
    ((256, 256), 3, 8, 64, False, True),
    ((2048, 256), 3, 64, 2, False, True),
    ((512, 512), 3, 32, 2, False, False),
    ((4096, 4096), 3, 16, 2, True, True),
]


@pytest.mark.parametrize(("channels", "kernel", "side", "batch", "single", "half"), PAYS)
def test_products_are_taken_for_many_weights_and_few_pixels(channels, kernel, side, batch, single, half):
    with torch.device("meta"):
        layer = fast_conv.Conv2d(*channels, kernel, padding=kernel // 2)
        for dtype, expected in ((torch.float32, single), (torch.bfloat16, half)):
            images = torch.empty(batch, channels[0], side, side, dtype=dtype)
            reach = fast_conv._geometry(images.shape[2:], layer.kernel_size, layer.stride, layer.padding, (1, 1))
            assert layer._is_faster_as_product(images, *reach) is expected


def test_without_a_gradient_depthwise_layers_are_torchs_own(library):
    ours, _ = pair(5, padding=4, dilation=2, **DEPTHWISE)
    with torch.no_grad():
        ours(image(8, 8))
    assert len(library) == 1


def test_on_another_device_it_is_torchs_own(library):
    with torch.device("meta"):
        assert fast_conv.Conv2d(6, 4, 3, padding=1)(torch.empty(2, 6, 2, 2)).shape == (2, 4, 2, 2)
        dilated = fast_conv.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        assert dilated(torch.empty(2, 6, 8, 8)).shape == (2, 6, 8, 8)
    assert len(library) == 2


@pytest.mark.parametrize(
    ("options", "size"),
    [({"padding": 1}, (2, 1)), ({"padding": 9, "dilation": 9}, (7, 7)), ({"padding": 2, "dilation": 2}, (6, 10))],
)
def test_training_goes_on_after_inference_mode(options, size, always):
    """What is remembered of a map's size must not belong to inference alone."""
    fast_conv._geometry.cache_clear()  # as if this were the first map of its size
    ours, plain = pair(3, channels=(6, 6), **options)
    with torch.inference_mode():
        ours(image(*size))
    assert assert_alike(ours, plain, image(*size))


NARROW = {  # kernel, options, maps
    "1x1": (1, {}, [(1, 1), (3, 3), (8, 8)]),
    "1x1 with a stride": (1, {"stride": 2, "bias": False}, [(4, 4), (5, 7)]),
    "3x3": (3, {"padding": 1}, [(1, 1), (2, 2)]),
    "one tap": (3, {"padding": 24, "dilation": 24, "bias": False}, [(8, 8)]),
    "depthwise": (5, {"padding": 4, "dilation": 2, "groups": 64}, [(4, 4), (8, 8)]),
}


@pytest.mark.parametrize("name", NARROW)
def test_under_autocast_it_is_quick_and_stays_close(name, library, always):
    """The reference is in float32: bfloat16 convolutions have faults of their own (segmenters)."""
    kernel, options, sizes = NARROW[name]
    ours, plain = pair(kernel, channels=(64, 64), **options)
    for size in sizes:
        images = image(*size, channels=64, count=8)
        expected = passed(plain, images)
        with torch.autocast("cpu", torch.bfloat16):
            found = passed(ours, images)
        assert found["output"].dtype == torch.bfloat16  # as torch's own gives
        for key, value in expected.items():
            assert found[key].shape == value.shape
            assert (found[key].float() - value).norm() < 0.02 * value.norm(), (key, size)
    assert library == []
