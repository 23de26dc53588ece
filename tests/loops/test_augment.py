"""Augmentation: each batched operation is torchvision's, with its own draw for each image."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from hw1lib.loops import augment
from hw1lib.settings import Pretrain, Segment

CPU = torch.device("cpu")
BYOL = augment.VIEWS["byol"]
TILE = augment.tile_recipe(Segment(crop_scale=0.3))
OFF = augment.Recipe(jitter_p=0, grayscale_p=0, blur_p=0, solarize_p=0)
both = pytest.mark.parametrize("overhead", [True, False])


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


def recolour_one(image, table, recipe):
    """Recolour one image as `recolour` does, with torchvision's functions."""
    jitter, *factors, gray, sigma, blurred, solarized = table[6:].tolist()
    if jitter < recipe.jitter_p:
        for name, strength, factor in zip(("brightness", "contrast", "saturation", "hue"), recipe.jitter, factors):
            change = strength * (2 * factor - 1)
            image = getattr(reference, f"adjust_{name}")(image, change if name == "hue" else 1 + change)
    if gray < recipe.grayscale_p:
        image = reference.rgb_to_grayscale(image, 3)
    if blurred < recipe.blur_p:
        image = reference.gaussian_blur(image, [2 * (image.shape[-1] // 20) + 1] * 2, [0.1 + 1.9 * sigma] * 2)
    return reference.solarize(image, 0.5) if solarized < recipe.solarize_p else image


@pytest.mark.parametrize("recipe", [*BYOL, augment.CLASSIFY, TILE, OFF])
def test_colours_change_as_in_torchvision_with_independent_draws_for_each_image(recipe):
    images, table = batch(64, 40), augment.draws(64, CPU)
    expected = torch.stack([recolour_one(*each, recipe) for each in zip(images, table.T)])
    torch.testing.assert_close(augment.recolour(images, table, recipe), expected, atol=1e-4, rtol=0)
    assert table.shape == (augment.DRAWS, 64) and len(table.unique()) > 900  # of 960


# --- recipes


@both
@pytest.mark.parametrize("name", ["byol", "geometry"])
def test_two_views_follow_the_settings(name, overhead):
    """The geometry views do not change a flat colour."""
    views = augment.two_views(16, Pretrain(views=name, crop_scale=0.35), overhead)
    assert [v.recipe for v in views] == [replace(r, crop_scale=0.35, overhead=overhead) for r in augment.VIEWS[name]]
    flat = torch.tensor([30, 120, 210], dtype=torch.uint8).view(1, 3, 1, 1).expand(8, 3, 12, 12)
    for view in views:
        same = torch.isclose(view(flat), augment.normalise(flat[:, :, :1, :1]), atol=1e-5)
        assert same.shape == (8, 3, 16, 16) and same.all() == (name == "geometry")


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


# --- normalisation


def test_normalise_is_torchvisions_and_denormalise_its_inverse():
    pixels = (batch(4) * 255).to(torch.uint8)
    expected = reference.normalize(pixels / 255, augment.MEAN, augment.STD)
    torch.testing.assert_close(augment.normalise(pixels), expected)
    torch.testing.assert_close(augment.denormalise(expected), pixels / 255, atol=1e-6, rtol=0)
    assert augment.denormalise(expected - 9).max() == 0 and augment.denormalise(expected + 9).min() == 1


def test_the_originals_transforms():
    names = "Resize RandomCrop RandomHorizontalFlip RandomVerticalFlip TrivialAugmentWide ToTensor Normalize"
    assert [type(step).__name__ for step in augment.original(32).transforms] == names.split()
