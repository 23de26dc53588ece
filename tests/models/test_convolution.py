"""The quick convolution: nn.Conv2d in everything but time."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import resnet50

from hw1lib.models import classifier, convolution

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LIBRARY = nn.Conv2d.forward


def pair(kernel, seed=0, channels=(6, 4), **options):
    """Ours and nn.Conv2d with the same weights."""
    torch.manual_seed(seed)
    plain = nn.Conv2d(*channels, kernel, **options)
    ours = convolution.Conv2d(*channels, kernel, **options)
    ours.load_state_dict(plain.state_dict())
    return ours, plain


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
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        torch.testing.assert_close(
            found[name],
            value,
            atol=tolerance,
            rtol=tolerance,
            msg=lambda text, name=name: f"{name} of {tuple(images.shape)}, {ours}: {text}",
        )
    return True


def image(height, width, layout=torch.contiguous_format, channels=6, count=3):
    generator = torch.Generator().manual_seed(10 * height + width)
    images = torch.randn(count, channels, height, width, generator=generator)
    return images.to(memory_format=layout)


@pytest.fixture
def library(monkeypatch):
    """A list that gets one entry whenever our convolution lets torch's own do the work."""
    calls = []

    def noted(module, images):
        out = LIBRARY(module, images)
        if type(module) is convolution.Conv2d:
            calls.append(tuple(images.shape))
        return out

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    return calls


# --- equal to torch's


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
    options = dict(
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=bool(random.integers(2)),
        groups=groups,
        channels=(6, int(random.choice((6, 12)))),
    )
    sizes = [two(*range(1, 13)) for _ in range(4)] + [two(1, 2, 3, 4), two(4, 6, 8, 12), (12, 12)]
    return kernel, options, sizes


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("start", range(0, 160, 40))
def test_output_and_gradients_of_any_convolution_are_torchs(start, layout, library):
    """Kernels 1 to 5, strides, paddings and dilations beyond the map, groups, maps 1 to 12."""
    compared = 0
    for seed in range(start, start + 40):
        kernel, options, sizes = drawn(seed)
        ours, plain = pair(kernel, seed, **options)
        for module in (ours, plain):
            module.to(memory_format=FORMATS[layout])
        for size in sizes:
            compared += assert_alike(ours, plain, image(*size, FORMATS[layout], count=2), 1e-4)
    own = compared - len(library)
    assert own > 20 and len(library) > 20  # both ways were tried


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_output_and_gradients_are_torchs(kernel, stride, padding, bias, layout):
    """On every map from 1 × 1 to 5 × 5: on either side of what goes through one matrix."""
    ours, plain = pair(kernel, stride=stride, padding=padding, bias=bias)
    for module in (ours, plain):
        module.to(memory_format=FORMATS[layout])
    for height in range(1, 6):
        for width in range(1, 6):
            assert_alike(ours, plain, image(height, width, FORMATS[layout]))


@pytest.mark.parametrize("stride", [(1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("padding", [(0, 1), (1, 0), (2, 2), (1, 3)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_both_sides_may_differ(kernel, padding, stride):
    """Padding may be wider than the kernel needs, too: then outputs see no pixel at all."""
    ours, plain = pair(kernel, stride=stride, padding=padding)
    for size in ((1, 1), (1, 3), (3, 1), (2, 2), (1, 4), (4, 1), (5, 2)):
        assert_alike(ours, plain, image(*size))


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", ["one product", "in parts", "the library's"])
def test_batches_of_any_length(name, count):
    options = {
        "one product": {"padding": 1},
        "in parts": {"padding": 2, "dilation": 2, "groups": 6},
        "the library's": {"padding": 1, "groups": 6},
    }[name]
    ours, plain = pair(3, channels=(6, 6), **options)
    side = 2 if name == "one product" else 8
    assert_alike(ours, plain, image(side, side, count=count))


# --- which way is taken


QUICK = {  # kernel, channels, options, maps
    "a small map": (3, (6, 4), {"padding": 1}, [(1, 1), (1, 4), (2, 2), (4, 1)]),
    "a small output": (3, (6, 4), {"padding": 1, "stride": 2}, [(3, 3), (4, 4), (2, 7)]),
    "5x5 on a small map": (5, (6, 4), {"padding": 2}, [(1, 2), (2, 2)]),
    "1x3": ((1, 3), (6, 4), {"padding": (0, 1)}, [(2, 2), (7, 1)]),
    "one tap by dilation": (3, (6, 4), {"padding": 12, "dilation": 12}, [(8, 8), (12, 5)]),
    "dilated, divisible": (3, (6, 4), {"padding": 2, "dilation": 2}, [(8, 8), (4, 12)]),
    "dilated depthwise": (5, (6, 6), {"padding": 4, "dilation": 2, "groups": 6}, [(4, 4), (8, 12), (16, 16)]),
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", QUICK)
def test_what_is_slow_is_not_left_to_the_library(name, layout, library):
    kernel, channels, options, sizes = QUICK[name]
    ours, plain = pair(kernel, channels=channels, **options)
    for size in sizes:
        assert assert_alike(ours, plain, image(*size, FORMATS[layout]))
    assert library == []


OTHER = {
    "large maps": (3, (6, 4), {"padding": 1}, [(1, convolution.SMALL + 1), (3, 3), (8, 8)]),
    "1x1 in float32": (1, (6, 4), {}, [(1, 1), (2, 2), (7, 7)]),
    "groups": (3, (6, 4), {"groups": 2, "padding": 1}, [(2, 2), (1, 3), (5, 5)]),
    "groups-1x1": (1, (6, 4), {"groups": 2}, [(2, 2), (1, 3), (5, 5)]),
    "depthwise": (3, (6, 6), {"groups": 6, "padding": 1}, [(1, 1), (2, 2), (8, 8)]),
    "dilation that does not divide the map": (
        3,
        (6, 6),
        {"groups": 6, "padding": 2, "dilation": 2},
        [(5, 5), (4, 5), (7, 8)],
    ),
    "dilation that does not divide the padding": (
        3,
        (6, 6),
        {"groups": 6, "padding": 1, "dilation": 2},
        [(8, 8), (4, 6)],
    ),
    "two dilations": (3, (6, 6), {"groups": 6, "padding": (2, 4), "dilation": (2, 4)}, [(8, 8)]),
    "dilation with a stride": (3, (6, 6), {"groups": 6, "padding": 2, "dilation": 2, "stride": 2}, [(8, 8)]),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_it_does_not_know_is_torchs_own(name, library):
    """To the bit."""
    kernel, channels, options, sizes = OTHER[name]
    ours, plain = pair(kernel, channels=channels, **options)
    for size in sizes:
        assert assert_alike(ours, plain, image(*size), tolerance=0)
    assert len(library) == len(sizes)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 2, "dilation": 2, "groups": 6}])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_of_another_kind_is_torchs_own(mode, options, library):
    """Padding that is not zeros is no part of the matrix."""
    ours, plain = pair(3, channels=(6, 6), padding_mode=mode, **options)
    for side in (2, 4):
        assert_alike(ours, plain, image(side, side), tolerance=0)
    assert library


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_padding_in_words_is_torchs_own(kernel, padding, library):
    ours, plain = pair(kernel, padding=padding)
    for size in ((2, 2), (1, 3), (5, 5)):
        assert_alike(ours, plain, image(*size), tolerance=0)
    assert library


def test_on_another_device_it_is_torchs_own(library):
    with torch.device("meta"):
        assert convolution.Conv2d(6, 4, 3, padding=1)(torch.empty(2, 6, 2, 2)).shape[1] == 4
        dilated = convolution.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        assert dilated(torch.empty(2, 6, 8, 8)).shape == (2, 6, 8, 8)
    assert len(library) == 2


@pytest.mark.parametrize("wrong", [torch.zeros(2, 5, 2, 2), torch.zeros(2, 6, 2, 2).double()])
def test_images_that_do_not_fit_are_refused(wrong):
    ours, plain = pair(3, padding=1)
    for module in (plain, ours):
        with pytest.raises(RuntimeError):
            module(wrong)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"padding": 1}, (2, 1)),
        ({"padding": 9, "dilation": 9}, (7, 7)),
        ({"padding": 2, "dilation": 2, "groups": 6}, (6, 10)),
    ],
)
def test_training_goes_on_after_inference_mode(options, size):
    """What is remembered of a map's size must not belong to inference alone."""
    convolution._reach.cache_clear()  # as if this were the first map of its size
    ours, plain = pair(3, channels=(6, 6), **options)
    with torch.inference_mode():
        ours(image(*size))
    assert assert_alike(ours, plain, image(*size))


# --- bfloat16


NARROW = {  # kernel, options, maps
    "1x1": (1, {}, [(1, 1), (3, 3), (8, 8)]),
    "1x1 with a stride": (1, {"stride": 2}, [(4, 4), (5, 7)]),
    "3x3": (3, {"padding": 1}, [(1, 1), (2, 2)]),
    "one tap": (3, {"padding": 24, "dilation": 24}, [(8, 8)]),
    "depthwise": (5, {"padding": 4, "dilation": 2, "groups": 64}, [(4, 4), (8, 8)]),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NARROW)
def test_under_autocast_it_is_quick_and_stays_close(name, bias, library):
    """The reference is in float32: bfloat16 convolutions have faults of their own (segmenters)."""
    kernel, options, sizes = NARROW[name]
    ours, plain = pair(kernel, channels=(64, 64), bias=bias, **options)
    for size in sizes:
        images = image(*size, channels=64, count=8)
        expected = passed(plain, images)
        with torch.autocast("cpu", torch.bfloat16):
            found = passed(ours, images)
        assert found["output"].dtype == torch.bfloat16  # as torch's own gives
        for key, value in expected.items():
            assert found[key].shape == value.shape and found[key].dtype != torch.float64
            assert (found[key].float() - value).norm() < 0.02 * value.norm(), (key, size)
    assert library == []


# --- a whole network


def networks(**options):
    """A quickened ResNet50 and torchvision's, with the same weights."""
    torch.manual_seed(0)
    plain = resnet50(weights=None)
    ours = classifier.backbone(1.0)
    ours.load_state_dict(plain.state_dict())
    return ours, plain


@pytest.fixture(scope="module")
def both():
    return networks()


def test_every_convolution_of_a_resnet50_is_quick(both):
    kinds = {type(m) for m in both[0].modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {convolution.Conv2d}


def test_names_shapes_and_printed_text_are_torchvisions(both):
    ours, plain = both
    shapes = [{n: v.shape for n, v in made.state_dict().items()} for made in both]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])
    assert str(ours) == str(plain)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_resnet50_gives_what_torchvisions_gives(both, size, mode):
    """In train mode, too: there BatchNorm takes the batch's own statistics."""
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        found, expected = (getattr(copy.deepcopy(made), mode)()(images) for made in both)
    scale = float(expected.abs().max())
    tolerance = {"eval": 1e-4, "train": 1e-3}[mode]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def test_a_copy_is_whole_and_independent(both):
    """byol-pytorch copies the online network for its target."""
    ours = both[0]
    twin = copy.deepcopy(ours)
    assert type(twin.conv1) is convolution.Conv2d
    before = ours.conv1.weight.clone()
    with torch.no_grad():
        twin.conv1.weight.add_(1)
    assert torch.equal(ours.conv1.weight, before)


def test_weights_travel_both_ways(both):
    """Also through a file, as the course hands its backbone out."""
    ours, _ = both
    target = resnet50(weights=None)
    assert not any(target.load_state_dict(ours.state_dict()))  # nothing missing, nothing left
    again = classifier.backbone(1.0)
    again.load_state_dict(target.state_dict())
    state = ours.state_dict()
    assert all(torch.equal(state[name], v) for name, v in again.state_dict().items())


def test_only_plain_convolutions_are_turned():
    """A class of someone else's has its own forward."""

    class Own(nn.Conv2d):
        pass

    network = nn.Sequential(nn.Conv2d(3, 3, 1), Own(3, 3, 1), nn.Conv1d(3, 3, 1))
    assert convolution.quicken(network) is network
    assert [type(m) for m in network] == [convolution.Conv2d, Own, nn.Conv1d]
