"""Augmentation: each batched operation is torchvision's, drawn for each image by itself."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as reference

from hw1lib.data.landcover import CLASSES
from hw1lib.loops import augment
from hw1lib.settings import Pretrain, Segment

FACTORS = [0.0, 0.4, 0.9, 1.0, 1.3, 2.0]
SHIFTS = [-0.5, -0.2, -0.03, 0.0, 0.1, 0.5]
BYOL = augment.VIEWS["byol"]
TILE = augment.tile_recipe(Segment(crop_scale=0.3))
RECIPES = [*BYOL, augment.VIEWS["geometry"][0], augment.CLASSIFY, TILE]


def batch(count, size=24, seed=0):
    """Random images in [0, 1]; one of them gray, one black, one of pure colours."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    images[1 % count] = images[1 % count].mean(0)
    images[2 % count] = 0
    images[3 % count] = (images[3 % count] > 0.5).float()
    return images


def per_image(values):
    return torch.tensor(values).view(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_operations_are_torchvisions(name):
    """All strengths in one batch: each image must get its own."""
    images = batch(len(FACTORS))
    ours = getattr(augment, f"adjust_{name}")(images, per_image(FACTORS))
    theirs = [getattr(reference, f"adjust_{name}")(i, f) for i, f in zip(images, FACTORS)]
    torch.testing.assert_close(ours, torch.stack(theirs), atol=2e-6, rtol=0)


def test_hue_is_torchvisions():
    images = batch(len(SHIFTS))
    ours = augment.adjust_hue(images, per_image(SHIFTS))
    theirs = torch.stack([reference.adjust_hue(i, f) for i, f in zip(images, SHIFTS)])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_hue_turns_all_the_way_round():
    images = batch(4)
    once = augment.adjust_hue(images, per_image([1.0] * 4))
    torch.testing.assert_close(once, images, atol=1e-5, rtol=0)
    there = augment.adjust_hue(images, per_image([0.15] * 4))
    back = augment.adjust_hue(there, per_image([-0.15] * 4))
    torch.testing.assert_close(back, images, atol=1e-5, rtol=0)


def test_gray_is_torchvisions():
    images = batch(4)
    theirs = reference.rgb_to_grayscale(images)
    torch.testing.assert_close(augment.gray(images), theirs, atol=1e-6, rtol=0)


def test_blur_is_torchvisions():
    sigmas, radius = [0.1, 0.7, 2.0, 5.0], 3
    images = batch(len(sigmas))
    ours = augment.blur(images, torch.tensor(sigmas), radius)
    side = 2 * radius + 1
    theirs = [reference.gaussian_blur(i, [side, side], [s, s]) for i, s in zip(images, sigmas)]
    torch.testing.assert_close(ours, torch.stack(theirs), atol=1e-5, rtol=0)


def test_solarize_is_torchvisions():
    images = batch(5)
    recipe = augment.Recipe(jitter=(0, 0, 0, 0), jitter_p=0, grayscale_p=0, solarize_p=1)
    theirs = reference.solarize(images, 0.5)
    torch.testing.assert_close(augment.recolour(images, recipe), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("chance", ["jitter_p", "grayscale_p", "blur_p", "solarize_p"])
def test_a_chance_hits_its_share_of_the_images_each_by_itself(chance):
    images = batch(400, size=8)[4:].clamp(0.05, 0.95)
    off = augment.Recipe(jitter_p=0, grayscale_p=0, blur_p=0, solarize_p=0)
    torch.manual_seed(0)
    changed = augment.recolour(images, dataclasses.replace(off, **{chance: 0.25}))
    share = ((changed - images).abs().flatten(1).amax(1) > 1e-6).float().mean()
    assert 0.15 < share < 0.35  # 4.6 standard deviations
    assert torch.equal(augment.recolour(images, off), images)


# --- views


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [16, 32])
def test_a_view_has_its_size_and_stays_in_range(recipe, size):
    torch.manual_seed(0)
    images = (batch(32, 24) * 255).to(torch.uint8)
    view = augment.Views(size, recipe)(images)
    assert view.shape == (32, 3, size, size) and view.dtype == torch.float32
    low, high = (augment.normalise(torch.full((1, 3, 1, 1), v)) for v in (0.0, 1.0))
    assert (view >= low - 1e-5).all() and (view <= high + 1e-5).all()


def test_draws_differ_between_the_images_of_a_batch():
    torch.manual_seed(0)
    same = (batch(5)[4:] * 255).to(torch.uint8).repeat(16, 1, 1, 1)
    views = augment.Views(24, BYOL[1])(same).flatten(1)
    distances = torch.cdist(views, views) + 1e9 * torch.eye(16)
    assert distances.min() > 1e-2


def test_the_same_seed_draws_the_same_and_another_another():
    images = (batch(6) * 255).to(torch.uint8)
    views = augment.Views(24, BYOL[1], overhead=True)

    def draw(seed):
        torch.manual_seed(seed)
        return views(images)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_view_leaves_its_images_alone():
    images = (batch(6) * 255).to(torch.uint8)
    before = images.clone()
    augment.Views(24, BYOL[1])(images)
    assert torch.equal(images, before)


# --- the two views of pre-training


@pytest.mark.parametrize("name", augment.VIEWS)
@pytest.mark.parametrize("overhead", [True, False])
def test_two_views_are_those_that_the_profile_names(name, overhead):
    chosen = Pretrain(views=name, crop_scale=0.35)
    views = augment.two_views(16, chosen, overhead)
    expected = [dataclasses.replace(recipe, crop_scale=0.35, overhead=overhead) for recipe in augment.VIEWS[name]]
    assert [view.recipe for view in views] == expected
    assert [view.size for view in views] == [16, 16] and views[0] is not views[1]


def test_every_choice_of_views_is_there():
    choices = Pretrain.__dataclass_fields__["views"].metadata["choices"]
    assert set(choices) == set(augment.VIEWS)


def test_byols_views_are_the_papers():
    """Grill et al. 2020, table 6; the two differ in blur and solarize only."""
    first, second = BYOL
    assert (first.blur_p, second.blur_p) == (1.0, 0.1)
    assert (first.solarize_p, second.solarize_p) == (0.0, 0.2)
    assert dataclasses.replace(first, blur_p=0.1, solarize_p=0.2) == second
    assert first.jitter == (0.4, 0.4, 0.2, 0.1)
    assert (first.jitter_p, first.grayscale_p) == (0.8, 0.2)


def test_geometry_leaves_the_colours():
    """A view of one flat colour is that colour."""
    torch.manual_seed(0)
    flat = torch.tensor([30, 120, 210], dtype=torch.uint8).view(1, 3, 1, 1).expand(8, 3, 16, 16)
    for view in augment.two_views(16, Pretrain(views="geometry"), True):
        torch.testing.assert_close(view(flat), augment.normalise(flat), atol=1e-5, rtol=0)


# --- geometry


def symmetries(image):
    """The eight symmetries of a square image, (8, C, S, S); the first two keep it upright."""
    upright = [image, image.flip(-1)]
    return torch.stack([torch.rot90(i, turn, (-2, -1)) for turn in range(4) for i in upright])


@pytest.mark.parametrize(("overhead", "count"), [(True, 8), (False, 2)])
def test_without_a_crop_there_are_exactly_the_symmetries(overhead, count):
    torch.manual_seed(0)
    image = torch.rand(3, 12, 12)
    recipe = augment.Recipe(crop_scale=1.0, aspect=1.0, overhead=overhead)
    moved = augment.warp(image.expand(200, 3, 12, 12), augment.geometry(200, recipe), 12)
    distances = (moved[:, None] - symmetries(image)).abs().flatten(2).amax(2)  # (200, 8)
    assert (distances.min(dim=1).values < 1e-4).all()
    seen = distances.argmin(dim=1).bincount(minlength=8)
    assert (seen[:count] > 200 / count / 3).all() and (seen[count:] == 0).all()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("overhead", [True, False])
def test_crops_lie_inside_the_image_and_keep_their_share(recipe, overhead):
    torch.manual_seed(0)
    recipe = dataclasses.replace(recipe, overhead=overhead)
    theta = augment.geometry(2000, recipe)
    corners = torch.tensor([[-1, -1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, 1]]).float().T
    assert (theta @ corners).abs().max() <= 1 + 1e-5
    area = torch.linalg.det(theta[:, :, :2]).abs()
    assert area.min() >= recipe.crop_scale - 1e-5
    assert area.min() < recipe.crop_scale + 0.05 and area.max() > 0.9  # and use all of it
    sides = theta[:, :, :2].norm(dim=2)  # half extents along y and x of the input
    ratio = sides[:, 0] / sides[:, 1]
    assert ratio.max() <= recipe.aspect + 1e-4 and ratio.min() >= 1 / recipe.aspect - 1e-4


def test_a_crop_is_what_torchvision_would_cut_out():
    """The same window, cut and resized; bilinear without antialias, as it enlarges."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 32, 32)
    theta = torch.tensor([[[0.5, 0.0, 0.25], [0.0, 0.25, -0.5]]])  # x: 12…28, y: 4…12
    ours = augment.warp(image, theta, 32)
    theirs = reference.resized_crop(image, 4, 12, 8, 16, [32, 32], antialias=False)
    inner = np.s_[..., 4:-4, 2:-2]  # at its edge a cut-out cannot see its neighbours
    torch.testing.assert_close(ours[inner], theirs[inner], atol=1e-5, rtol=0)


def coordinates(height, width):
    """An image of one channel a side: each pixel holds its own place, (1, 2, H, W)."""
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return torch.stack([rows, columns])[None]


CROPS = [((32, 32), 16), ((32, 32), 32), ((24, 40), 16), ((40, 24), 24), ((33, 47), 20)]


@pytest.mark.parametrize("overhead", [True, False])
@pytest.mark.parametrize(("tile", "side"), CROPS)
def test_a_crop_of_shares_keeps_the_resolution(tile, side, overhead):
    """Each step in the crop is one pixel of the tile, and it stays inside."""
    torch.manual_seed(0)
    height, width = tile
    recipe = dataclasses.replace(TILE, overhead=overhead)
    theta = augment.geometry(64, recipe, (side / height, side / width)).double()
    places = coordinates(height, width).expand(64, -1, -1, -1)
    cut = augment.warp(places, theta, side)
    assert cut.shape == (64, 2, side, side)
    down, across = cut.diff(dim=2), cut.diff(dim=3)
    for steps in (down, across):  # along one axis of the tile, by one
        length = steps.abs().sum(1)
        torch.testing.assert_close(length, torch.ones_like(length), atol=1e-4, rtol=0)
        assert (steps.abs().amax(1) > 1 - 1e-4).all()
    assert cut.amin() > -1e-4 and (cut.amax((0, 2, 3)) < torch.tensor(tile) - 1 + 1e-4).all()
    turned = (down[:, 0].abs() < 0.5).flatten(1).all(1)
    assert 0.3 < turned.float().mean() < 0.7 if overhead else not turned.any()
    for axis, length in enumerate(tile):  # every place is drawn, from one end to the other
        least = cut[:, axis].amin((1, 2))
        room = length - side
        assert least.max() - least.min() >= 0.8 * room and least.max() <= room + 1e-4


def test_a_crop_as_large_as_its_tile_is_the_tile():
    """Up to flips and turns, without any interpolation."""
    torch.manual_seed(0)
    image = torch.rand(3, 16, 16)
    theta = augment.geometry(100, TILE, (1.0, 1.0))
    moved = augment.warp(image.expand(100, 3, 16, 16), theta, 16)
    distances = (moved[:, None] - symmetries(image)).abs().flatten(2).amax(2)
    assert (distances.min(dim=1).values < 1e-4).all()
    assert len(distances.argmin(dim=1).unique()) == 8


@pytest.mark.parametrize("overhead", [True, False])
@pytest.mark.parametrize("size", [(12, 20), (20, 12)])
def test_what_is_not_square_is_turned_by_halves(size, overhead):
    """Four symmetries; seen upright, only two."""
    torch.manual_seed(0)
    image = torch.rand(3, *size)
    recipe = augment.Recipe(crop_scale=1.0, aspect=1.0, overhead=overhead)
    theta = augment.geometry(200, recipe, square=False)
    moved = augment.warp(image.expand(200, 3, *size), theta, size)
    assert moved.shape == (200, 3, *size)
    own = torch.stack([image, image.flip(-1), image.flip(-2), image.flip(-2, -1)])
    distances = (moved[:, None] - own).abs().flatten(2).amax(2)  # (200, 4)
    assert (distances.min(dim=1).values < 1e-4).all()
    count = 4 if overhead else 2
    seen = distances.argmin(dim=1).bincount(minlength=4)
    assert (seen[:count] > 200 / count / 3).all() and (seen[count:] == 0).all()


def test_crops_of_what_is_not_square_keep_its_shape():
    """At an aspect of 1 both sides keep the same share."""
    torch.manual_seed(0)
    theta = augment.geometry(200, TILE, square=False)
    height, width = theta[:, 1, 1].abs(), theta[:, 0, 0].abs()
    torch.testing.assert_close(height, width)
    assert (theta[:, 0, 1] == 0).all() and (theta[:, 1, 0] == 0).all()
    assert (height**2).min() < 0.35 and (height**2).max() > 0.9 and (height**2).min() > 0.299


@pytest.mark.parametrize("shares", [None, (0.5, 0.5)])
@pytest.mark.parametrize("square", [True, False])
def test_each_image_has_a_geometry_of_its_own(shares, square):
    torch.manual_seed(0)
    theta = augment.geometry(50, TILE, shares, square).flatten(1)
    distances = torch.cdist(theta, theta) + 9 * torch.eye(50)
    assert distances.min() > 1e-4


def test_a_tiles_recipe_is_what_the_settings_say():
    """Tiles are seen from above, cropped in their own shape, and never gray."""
    recipe = augment.tile_recipe(Segment(jitter=0.4, crop_scale=0.7))
    assert recipe.jitter == pytest.approx((0.4, 0.4, 0.4, 0.04))
    assert (recipe.crop_scale, recipe.aspect, recipe.overhead) == (0.7, 1.0, True)
    assert recipe.grayscale_p == recipe.blur_p == recipe.solarize_p == 0
    images = batch(6)
    still = augment.recolour(images, augment.tile_recipe(Segment(jitter=0.0)))
    torch.testing.assert_close(still, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("tile", "shares", "square"),
    [((32, 32), None, True), ((24, 40), None, False), ((24, 40), (16 / 24, 16 / 40), True)],
)
def test_image_and_mask_move_together(tile, shares, square):
    """Of an image whose colour is its class, nearest sampling is the mask's."""
    torch.manual_seed(0)
    height, width = tile
    blocks = torch.randint(len(CLASSES), (16, 1, height // 8, width // 8))
    mask = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    image = mask.float() / 10
    theta = augment.geometry(16, TILE, shares, square)
    size = 16 if shares else tile
    moved = augment.warp(mask.float(), theta, size, mode="nearest")
    assert moved.shape == (16, 1, *((16, 16) if shares else tile))
    assert set(moved.unique().tolist()) <= set(mask.unique().tolist())  # no class is made up
    nearest = augment.warp(image, theta, size, mode="nearest")
    torch.testing.assert_close(nearest, moved / 10)
    smooth = augment.warp(image, theta, size)
    around = F.max_pool2d(moved, 5, 1) + F.max_pool2d(-moved, 5, 1)
    inside = around == 0  # one class as far as two pixels around
    assert inside.float().mean() > 0.1
    here = np.s_[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(smooth[here][inside], moved[here][inside] / 10)


# --- normalisation


def test_denormalise_undoes_normalise():
    images = batch(4)
    torch.testing.assert_close(augment.denormalise(augment.normalise(images)), images, atol=1e-6, rtol=0)


def test_normalise_is_torchvisions_and_bytes_are_shares():
    pixels = (batch(4) * 255).to(torch.uint8)
    theirs = reference.normalize(pixels.float() / 255, augment.MEAN, augment.DEVIATION)
    torch.testing.assert_close(augment.normalise(pixels), theirs)
    torch.testing.assert_close(augment.normalise(pixels.float() / 255), theirs)


def test_the_originals_transforms_give_one_normalised_image():
    torch.manual_seed(0)
    image = Image.fromarray((torch.rand(50, 40, 3).numpy() * 255).astype(np.uint8))
    draw = augment.original(32)
    first, second = draw(image), draw(image)
    assert first.shape == (3, 32, 32) and first.dtype == torch.float32
    assert not torch.equal(first, second)
    names = [type(step).__name__ for step in draw.transforms]
    assert names == [
        "Resize",
        "RandomCrop",
        "RandomHorizontalFlip",
        "RandomVerticalFlip",
        "TrivialAugmentWide",
        "ToTensor",
        "Normalize",
    ]
