"""Augmentation: each batched operation is torchvision's, with its own draw for each image."""

import itertools
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from hw1lib.loops import augment
from hw1lib.settings import Pretrain, Segment

CPU = torch.device("cpu")
BYOL = augment.VIEWS["byol"]
TILE = augment.tile_recipe(Segment(crop_scale=0.3))
COLOURS = ("brightness", "contrast", "saturation", "hue")
OFF = augment.Recipe(jitter_p=0, grayscale_p=0, blur_p=0, solarize_p=0)
both = pytest.mark.parametrize("overhead", [True, False])


def recolour(images, recipe):
    return augment.recolour(images, augment.draws(len(images), images.device), recipe)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch(count, size=24):
    """Random images in [0, 1]; one of them gray, one black, one of pure colours."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    images[1 % count] = images[1 % count].mean(0)
    images[2 % count] = 0
    images[3 % count] = (images[3 % count] > 0.5).float()
    return images


# --- colours


@pytest.mark.parametrize("name", COLOURS)
def test_colour_adjustments_are_torchvisions_with_a_strength_for_each_image(name):
    hue = name == "hue"
    strengths = [-0.5, -0.2, -0.03, 0.0, 0.1, 0.5] if hue else [0.0, 0.4, 0.9, 1.0, 1.3, 2.0]
    images = batch(len(strengths))
    adjusted = getattr(augment, f"adjust_{name}")(images, torch.tensor(strengths).view(-1, 1, 1, 1))
    expected = [getattr(reference, f"adjust_{name}")(image, s) for image, s in zip(images, strengths)]
    torch.testing.assert_close(adjusted, torch.stack(expected), atol=1e-5 if hue else 2e-6, rtol=0)


def test_gray_blur_and_solarize_are_torchvisions():
    images, sigmas = batch(5), [0.1, 0.7, 2.0, 5.0, 1.0]
    torch.testing.assert_close(augment.gray(images), reference.rgb_to_grayscale(images), atol=1e-6, rtol=0)
    expected = [reference.gaussian_blur(image, [7, 7], [sigma, sigma]) for image, sigma in zip(images, sigmas)]
    torch.testing.assert_close(augment.blur(images, torch.tensor(sigmas), 3), torch.stack(expected), atol=1e-5, rtol=0)
    solarized, expected = recolour(images, replace(OFF, solarize_p=1)), reference.solarize(images, 0.5)
    torch.testing.assert_close(solarized, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("probability", ["jitter_p", "grayscale_p", "blur_p", "solarize_p"])
def test_a_probability_applies_to_each_image(probability):
    images = batch(400, size=8)[4:].clamp(0.05, 0.95)
    changed = recolour(images, replace(OFF, **{probability: 0.25}))
    fraction = ((changed - images).abs().flatten(1).amax(1) > 1e-6).float().mean()
    assert 0.15 < fraction < 0.35  # 4.6 standard deviations
    assert torch.equal(recolour(images, OFF), images)


@pytest.mark.parametrize(("name", "strength"), [*zip(COLOURS, (0.4, 0.3, 0.2, 0.1))])
def test_jitter_is_uniform_up_to_its_strength_for_each_image(monkeypatch, name, strength):
    adjust = Mock(side_effect=lambda images, factor: images)
    monkeypatch.setattr(augment, f"adjust_{name}", adjust)
    recolour(batch(500, size=2), augment.Recipe(jitter=(0.4, 0.3, 0.2, 0.1)))
    jitter = (adjust.call_args.args[1].flatten() - (0 if name == "hue" else 1)) / strength
    assert -1.001 <= jitter.min() < -0.95 and 0.95 < jitter.max() <= 1.001
    assert 350 < len(jitter.unique()) < 450  # of 500, with probability 0.8


def test_each_image_is_blurred_by_a_sigma_of_its_own():
    blurred = recolour(batch(5)[4:].expand(16, -1, -1, -1), replace(OFF, blur_p=1))
    assert len(blurred.unique(dim=0)) > 12  # the weakest change nothing


# --- recipes


@both
@pytest.mark.parametrize("name", ["byol", "geometry"])
def test_two_views_follow_the_settings(name, overhead):
    """The geometry views leave a flat colour as it is."""
    views = augment.two_views(16, Pretrain(views=name, crop_scale=0.35), overhead)
    assert [v.recipe for v in views] == [replace(r, crop_scale=0.35, overhead=overhead) for r in augment.VIEWS[name]]
    flat = torch.tensor([30, 120, 210], dtype=torch.uint8).view(1, 3, 1, 1).expand(8, 3, 12, 12)
    for view in views:
        same = torch.isclose(view(flat), augment.normalise(flat[:, :, :1, :1]), atol=1e-5)
        assert same.shape == (8, 3, 16, 16) and same.all() == (name == "geometry")


def test_recipes_are_the_papers_and_the_settings():
    """Grill et al. 2020, table 6; tiles are seen from above and never gray."""
    same = dict(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale_p=0.2)
    assert (augment.Recipe(blur_p=1.0, **same), augment.Recipe(blur_p=0.1, solarize_p=0.2, **same)) == BYOL
    expected = augment.Recipe(0.7, 1.0, True, (0.4, 0.4, 0.4, 0.04), grayscale_p=0, blur_p=0, solarize_p=0)
    assert augment.tile_recipe(Segment(jitter=0.4, crop_scale=0.7)) == expected


# --- geometry


@both
@pytest.mark.parametrize("size", [(12, 12), (12, 20), (20, 12)])
@pytest.mark.parametrize("cropped", [True, False])
def test_whole_images_get_exactly_the_symmetries(cropped, size, overhead):
    """Eight of a square, four of another rectangle, two if they are not seen from above; nothing is interpolated."""
    square = size[0] == size[1]
    image = torch.rand(3, *size)
    recipe = augment.Recipe(crop_scale=1.0, aspect=1.0, overhead=overhead)
    theta = augment.geometry(augment.draws(200, CPU), recipe, (size, size) if cropped else None, square)
    warped = augment.warp(image.expand(200, 3, *size), theta, size)
    turns = (0, 1, 2, 3) if square else (0, 2)
    symmetries = torch.stack([i.rot90(turn, (-2, -1)) for turn in turns for i in (image, image.flip(-1))])
    distances = (warped[:, None] - symmetries).abs().flatten(2).amax(2)  # (200, symmetries)
    assert (distances.min(dim=1).values < 1e-4).all()
    expected = len(symmetries) if overhead else 2
    counts = distances.argmin(dim=1).bincount(minlength=len(symmetries))
    assert (counts[:expected] > 200 / expected / 3).all() and (counts[expected:] == 0).all()


@both
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("recipe", [BYOL[0], augment.CLASSIFY, TILE])
def test_crops_lie_inside_the_image_and_have_the_recipes_area_and_aspect(recipe, square, overhead):
    theta = augment.geometry(augment.draws(2000, CPU), replace(recipe, overhead=overhead), square=square)
    corners = torch.tensor([[-1, -1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, 1]]).float().T
    assert (theta @ corners).abs().max() <= 1 + 1e-5
    area = torch.linalg.det(theta[:, :, :2]).abs()
    assert recipe.crop_scale - 1e-5 <= area.min() < recipe.crop_scale + 0.05 and area.max() > 0.9
    height, width = theta[:, :, :2].norm(dim=2).unbind(1)  # half extents along y and x of the input
    ratio = (height / width).log().abs().max().exp()
    assert ratio <= recipe.aspect + 1e-4 and (ratio > 1.2 or recipe.aspect == 1)
    assert square or not theta[:, [0, 1], [1, 0]].any()
    place = theta[:, :, 2] / (1 - theta[:, :, :2].norm(dim=2).clamp(max=0.9))  # from one end to the other
    assert (place.amin(0) < -0.95).all() and (place.amax(0) > 0.95).all()
    assert len(theta.flatten(1).unique(dim=0)) > 1990


@both
@pytest.mark.parametrize(("side", "size"), [((6, 6), (12, 12)), ((5, 5), (12, 20)), ((12, 7), (12, 9))])
def test_crops_of_a_fixed_size_start_at_every_whole_pixel(side, size, overhead):
    """Nothing is interpolated, so training tiles are as sharp as validation tiles."""
    image = torch.arange(float(np.prod(size))).view(1, 1, *size)
    recipe = augment.Recipe(overhead=overhead)
    theta = augment.geometry(augment.draws(4000, CPU), recipe, (side, size), square=side[0] == side[1])
    warped = augment.warp(image.expand(4000, 1, *size), theta, side)[:, 0]
    assert (warped - warped.round()).abs().max() < 1e-3
    rows, columns = warped.round().div(size[1], rounding_mode="floor"), warped.round() % size[1]
    starts = {(int(r.min()), int(c.min())) for r, c in zip(rows, columns)}
    assert starts == set(itertools.product(range(size[0] - side[0] + 1), range(size[1] - side[1] + 1)))
    spans = {(int(r.max() - r.min()), int(c.max() - c.min())) for r, c in zip(rows, columns)}
    assert spans == {(side[0] - 1, side[1] - 1)}


def test_warp_is_torchvisions_resized_crop():
    image = torch.rand(1, 3, 32, 32)
    theta = torch.tensor([[[0.5, 0.0, 0.25], [0.0, 0.25, -0.5]]])  # x: 12…28, y: 4…12
    expected = reference.resized_crop(image, 4, 12, 8, 16, [32, 32], antialias=False)
    inner = np.s_[..., 4:-4, 2:-2]  # torchvision does not see the pixels around the crop
    torch.testing.assert_close(augment.warp(image, theta, 32)[inner], expected[inner], atol=1e-5, rtol=0)


# --- normalisation


def test_normalise_is_torchvisions_and_denormalise_its_inverse():
    pixels = (batch(4) * 255).to(torch.uint8)
    expected = reference.normalize(pixels / 255, augment.MEAN, augment.STD)
    torch.testing.assert_close(augment.normalise(pixels), expected)
    torch.testing.assert_close(augment.normalise(pixels / 255), expected)
    torch.testing.assert_close(augment.denormalise(expected), pixels / 255, atol=1e-6, rtol=0)
    assert augment.denormalise(expected - 9).max() == 0 and augment.denormalise(expected + 9).min() == 1


def test_the_originals_transforms():
    image = Image.fromarray((torch.rand(50, 40, 3).numpy() * 255).astype(np.uint8))
    transform = augment.original(32)
    first, second = transform(image), transform(image)
    assert first.shape == (3, 32, 32) and first.dtype == torch.float32 and not torch.equal(first, second)
    names = "Resize RandomCrop RandomHorizontalFlip RandomVerticalFlip TrivialAugmentWide ToTensor Normalize"
    assert [type(step).__name__ for step in transform.transforms] == names.split()
