"""The quick convolution: nn.Conv2d in everything but time."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import resnet50

from hw1lib.models import classifier, convolution

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def pair(kernel, seed=0, **options):
    """Ours and nn.Conv2d with the same weights."""
    torch.manual_seed(seed)
    plain = nn.Conv2d(6, 4, kernel, **options)
    ours = convolution.Conv2d(6, 4, kernel, **options)
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
    """Both are right or both refuse."""
    try:
        expected = passed(plain, images)
    except RuntimeError:  # the kernel is larger than the map
        with pytest.raises(RuntimeError):
            passed(ours, images)
        return
    found = passed(ours, images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=tolerance,
            msg=lambda text, name=name: f"{name} of {tuple(images.shape)}: {text}",
        )


def image(height, width, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(10 * height + width)
    images = torch.randn(3, 6, height, width, generator=generator)
    return images.to(memory_format=layout)


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


OTHER = {
    "groups": (3, {"groups": 2, "padding": 1}),
    "groups-1x1": (1, {"groups": 2}),
    "dilation": (3, {"dilation": 2, "padding": 2}),
    "5x5": (5, {"padding": 2}),
    "1x3": ((1, 3), {"padding": (0, 1)}),
    "1x1-padded": (1, {"padding": 1}),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_it_does_not_know_is_torchs_own(name, monkeypatch):
    def never(*words):
        raise AssertionError("computed as a matrix product")

    monkeypatch.setattr(convolution.Conv2d, "_pointwise", never)
    monkeypatch.setattr(convolution.Conv2d, "_dense", never)
    kernel, options = OTHER[name]
    ours, plain = pair(kernel, **options)
    for size in ((2, 2), (1, 3), (5, 5)):
        assert_alike(ours, plain, image(*size), tolerance=0)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_of_another_kind_is_torchs_own(mode):
    """Padding that is not zeros is no part of the matrix."""
    ours, plain = pair(3, padding=1, padding_mode=mode)
    assert_alike(ours, plain, image(2, 2))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_padding_in_words_is_torchs_own(kernel, padding):
    ours, plain = pair(kernel, padding=padding)
    for size in ((2, 2), (1, 3), (5, 5)):
        assert_alike(ours, plain, image(*size))


def test_large_maps_of_a_3x3_kernel_stay_with_the_library(monkeypatch):
    """A matrix that grows with the square of the map would not be quick any more."""
    monkeypatch.setattr(convolution.Conv2d, "_dense", lambda *_: pytest.fail("one matrix"))
    ours, plain = pair(3, padding=1)
    assert_alike(ours, plain, image(1, convolution.SMALL + 1))
    assert_alike(ours, plain, image(8, 8))


@pytest.mark.parametrize(("kernel", "size"), [(1, 1), (1, 7), (3, 1), (3, 2)])
def test_what_is_slow_is_not_left_to_the_library(monkeypatch, kernel, size):
    """Else this file would prove nothing."""
    ours, _ = pair(kernel, padding=kernel // 2)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *_: pytest.fail("the library's"))
    ours(image(size, size))


def test_training_goes_on_after_inference_mode():
    """What is remembered of a map's size must not belong to inference alone."""
    convolution._taps.cache_clear()
    ours, plain = pair(3, padding=1)
    with torch.inference_mode():
        ours(image(2, 2))
    try:
        assert_alike(ours, plain, image(2, 2))
    finally:
        convolution._taps.cache_clear()  # other tests have their own faults to find


@pytest.mark.parametrize(("kernel", "size"), [(1, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_it_stays_close(kernel, size, bias):
    """The reference is in float32: bfloat16 convolutions have faults of their own (segmenters)."""
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 32, kernel, padding=kernel // 2, bias=bias)
    ours = convolution.Conv2d(64, 32, kernel, padding=kernel // 2, bias=bias)
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(8, 64, size, size)
    expected = passed(plain, images)
    with torch.autocast("cpu", torch.bfloat16):
        found = passed(ours, images)
    assert found["output"].dtype == torch.bfloat16  # as torch's own gives
    for name, value in expected.items():
        assert (found[name].float() - value).norm() < 0.02 * value.norm(), name


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


def test_on_another_device_it_is_torchs_own(monkeypatch):
    monkeypatch.setattr(convolution.Conv2d, "_pointwise", lambda *_: pytest.fail("a CPU's way"))
    with torch.device("meta"):
        assert convolution.Conv2d(6, 4, 1)(torch.empty(2, 6, 3, 3)).shape == (2, 4, 3, 3)
