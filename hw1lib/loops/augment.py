"""Augmentation: batched and drawn for each image by itself, and the original's transforms.

The batched operations take float images (B, 3, H, W) in [0, 1] and one strength for each image,
so no two images of a batch share a draw. All draws of a batch are one table of uniform numbers from
torch's global CPU generator, the same on every device, and one copy that nobody waits for.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import transforms

from hw1lib.loops import distributed
from hw1lib.loops.device import exact, send

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as the course sets it
DEVIATION = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # gray, with torchvision's digits
CACHED = 2**18  # pixels that a CPU changes at a time: what lies between two changes stays in its cache
DRAWS = 15  # uniform numbers for one image: 6 of its geometry, 9 of its colours


def normalise(images):
    """uint8 or [0, 1] float images (B, 3, H, W) -> float32, channel by channel standardised."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    mean, deviation = _constants(images.device)
    return (images - mean) / deviation


def denormalise(images):
    """Undoes `normalise`, for looking at: (B, 3, H, W) -> float32 in [0, 1]."""
    mean, deviation = _constants(images.device)
    return (images * deviation + mean).clamp(0, 1)


@functools.cache  # a copy to a GPU would wait each time
def _constants(device):
    return [torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, DEVIATION)]


@dataclass(frozen=True)
class Recipe:
    """How strongly one view is changed."""

    crop_scale: float = 0.2  # smallest share of the area that a random resized crop keeps
    aspect: float = 4 / 3  # largest aspect ratio of the crop, and its inverse the smallest
    overhead: bool = False  # also vertical flips and quarter turns
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness … hue
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur_p: float = 0.0
    solarize_p: float = 0.0


VIEWS = {  # the two views of self-supervised pre-training, by the profile's `views`
    # Probabilities and strengths of Grill et al. 2020, table 6; the views differ in blur and solarize. What deviates
    # from the paper: crops keep at least `crop_scale` of the area (there 0.08), are resized bilinearly (bicubic) and,
    # where images are seen from above, turned; brightness, contrast, saturation and hue are jittered in this order
    # (there in one drawn anew for each image); the blur's kernel grows with the view, to 23 pixels at 224.
    "byol": (Recipe(blur_p=1.0), Recipe(blur_p=0.1, solarize_p=0.2)),
    # For land cover, which is told by its colours: they stay.
    "geometry": (Recipe(jitter_p=0.0, grayscale_p=0.0),) * 2,
}
CLASSIFY = Recipe(crop_scale=0.5, jitter=(0.2, 0.2, 0.2, 0.02), grayscale_p=0.0)


class Views(nn.Module):
    """Draws one augmented, normalised view of a uint8 batch, each image by itself.

    Args:
        size: side of the view in pixels.
        recipe: how strongly.
        overhead: seen from above, so vertical flips and quarter turns are drawn, too.
    """

    def __init__(self, size, recipe, overhead=False):
        super().__init__()
        self.size = size
        self.recipe = replace(recipe, overhead=overhead)

    def extra_repr(self):
        return f"size={self.size}, {self.recipe}"

    def forward(self, images):
        table = draws(len(images), images.device)
        few = max(1, CACHED // self.size**2) if images.device.type == "cpu" else len(images)
        with exact(images.device):  # pixels and their places in float32
            views = [self._view(*part) for part in zip(images.split(few), table.split(few, dim=1))]
        return views[0] if len(views) == 1 else torch.cat(views)

    def _view(self, images, table):
        images = warp(images.float() / 255, geometry(table, self.recipe), self.size)
        return normalise(recolour(images, table, self.recipe))


def two_views(size, settings, overhead):
    """The two views that pre-training draws of each image, a pair of `Views`.

    Args:
        size: side of a view in pixels.
        settings: settings.Pretrain.
        overhead: see `Views`.
    """
    recipes = (replace(recipe, crop_scale=settings.crop_scale) for recipe in VIEWS[settings.views])
    return tuple(Views(size, recipe, overhead) for recipe in recipes)


def tile_recipe(settings):
    """The recipe of Problem 2's tiles, of settings.Segment."""
    jitter = (settings.jitter, settings.jitter, settings.jitter, settings.jitter / 10)
    return Recipe(crop_scale=settings.crop_scale, aspect=1.0, overhead=True, jitter=jitter, grayscale_p=0.0)


@torch.compiler.disable  # compiled code would draw otherwise
def draws(batch, device):
    """Uniform random numbers in [0, 1) for one view of each image of a batch: (DRAWS, B), on the device."""
    return send(distributed.draw(DRAWS, batch), device)


def geometry(table, recipe, crop=None, square=True):
    """A crop, flips and quarter turns for each image.

    Args:
        table: what `draws` gave for B images.
        recipe: Recipe.
        crop: sides of all crops and of the images, each (height, width) in pixels; they then begin at whole pixels,
            so nothing is interpolated. None draws their area and aspect ratio from the recipe.
        square: whether what is cropped is square in pixels; else only half turns are drawn.

    Returns:
        (B, 2, 3) affine matrices from output to input coordinates, both in [-1, 1].
    """
    area, stretch, x, y, turn, flip = table[:6]  # (B,) each
    if crop is None:
        area = recipe.crop_scale + (1 - recipe.crop_scale) * area
        stretch = torch.exp((2 * stretch - 1) * 0.5 * math.log(recipe.aspect))
        width = (area.sqrt() * stretch).clamp(max=1)  # half extents, as the image spans [-1, 1]
        height = (area.sqrt() / stretch).clamp(max=1)
        x, y = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
    else:
        (height, y), (width, x) = (_whole(*sides, place) for *sides, place in zip(*crop, (y, x)))
    quarters = 1 if square else 2
    turn = quarters * (turn * (4 // quarters)).floor() if recipe.overhead else torch.zeros_like(turn)
    flip = torch.where(flip < 0.5, -1.0, 1.0)
    cos, sin = ((turn * (math.pi / 2) + start).cos().round() for start in (0, -math.pi / 2))
    top = torch.stack([width * cos * flip, -width * sin, x], dim=1)
    bottom = torch.stack([height * sin * flip, height * cos, y], dim=1)
    return torch.stack([top, bottom], dim=1)


def _whole(side, of, place):
    """Half extent and centre of a crop that begins at one of the whole pixels along a side, chosen by `place`."""
    first = (place * (of - side + 1)).floor()
    return torch.full_like(place, side / of), (2 * first + side) / of - 1


def warp(images, theta, size, mode="bilinear"):
    """Samples each image through its own matrix: (B, C, H, W) -> (B, C, height, width).

    Args:
        size: side of a square in pixels, or (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    shape = (len(images), images.shape[1], height, width)
    grid = F.affine_grid(theta, shape, align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def recolour(images, table, recipe):
    """Jitter, grayscale, blur and solarize; strength and chance drawn for each image.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        table: what `draws` gave for them.
        recipe: Recipe.
    """
    jitter, *factors, pale, sigma, blurred, solarized = table[6:, :, None, None, None]  # (B, 1, 1, 1) each
    strengths = zip(recipe.jitter, factors)
    brightness, contrast, saturation, hue = (
        torch.where(jitter < recipe.jitter_p, strength * (2 * factor - 1), 0.0) for strength, factor in strengths
    )
    if recipe.jitter_p:
        images = adjust_brightness(images, 1 + brightness)
        images = adjust_contrast(images, 1 + contrast)
        images = adjust_saturation(images, 1 + saturation)
        images = adjust_hue(images, hue) if recipe.jitter[3] else images
    if recipe.grayscale_p:
        images = torch.where(pale < recipe.grayscale_p, gray(images), images)
    if recipe.blur_p:
        radius = max(1, images.shape[-1] // 20)  # kernel of a tenth of the side, as in BYOL
        images = torch.where(blurred < recipe.blur_p, blur(images, 0.1 + 1.9 * sigma.flatten(), radius), images)
    if recipe.solarize_p:
        chosen = (solarized < recipe.solarize_p) & (images >= 0.5)
        images = torch.where(chosen, 1 - images, images)
    return images


def gray(images):
    """Luma of each pixel: (B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def adjust_brightness(images, factor):
    """Multiplies by `factor`, (B, 1, 1, 1)."""
    return (images * factor).clamp(0, 1)


def adjust_contrast(images, factor):
    """Blends with each image's mean gray."""
    mean = gray(images).mean(dim=(1, 2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def adjust_saturation(images, factor):
    """Blends with each pixel's gray."""
    pale = gray(images)
    return (pale + factor * (images - pale)).clamp(0, 1)


def adjust_hue(images, shift):
    """Turns the hue by `shift` (B, 1, 1, 1), in whole turns of the colour circle."""
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = high - low
    red, green, blue = images.split(1, dim=1)
    safe = torch.where(spread > 0, spread, torch.ones_like(spread))
    sector = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # the hue in sixths of a turn
    sector = sector + 6 * shift

    def channel(offset):
        k = (offset + sector) % 6
        return high - spread * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.cat([channel(offset) for offset in (5, 3, 1)], dim=1)


def blur(images, sigma, radius):
    """Gaussian blur with one sigma (B,) in pixels for each image."""
    batch, channels, height, width = images.shape
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma.view(-1, 1)) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (B, K)
    kernel = kernel.repeat_interleave(channels, dim=0)  # (B·C, K)
    flat = F.pad(images, [radius] * 4, mode="reflect").flatten(0, 1)[None]  # (1, B·C, H+2r, W+2r)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels)
    return flat.view(batch, channels, height, width)


def original(size):
    """The original report's transforms, to the letter, for one PIL image."""
    crop = [transforms.Resize(size), transforms.RandomCrop(size)]
    change = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(), transforms.TrivialAugmentWide()]
    scale = [transforms.ToTensor(), transforms.Normalize(mean=MEAN, std=DEVIATION)]
    return transforms.Compose(crop + change + scale)
