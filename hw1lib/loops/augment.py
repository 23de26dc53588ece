"""Augmentation of batches with independent draws for each image, and the original report's transforms.

Images are float (B, 3, H, W) in [0, 1]. All draws of a batch are one table of uniform random numbers from a CPU
generator, so they are the same on every device, and one non-blocking copy moves them there.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import transforms
from torchvision.transforms.functional import rgb_to_grayscale

from hw1lib.loops import distributed
from hw1lib.loops.device import no_autocast, to_device
from hw1lib.loops.normalisation import MEAN, STD, denormalise, normalise  # noqa: F401

CHUNK_PIXELS = 2**18  # pixels that a CPU transforms at a time, so that intermediate tensors stay in its cache
DRAWS = 15  # uniform random numbers for one image: 6 for geometry, 9 for colours


@dataclass(frozen=True)
class Recipe:
    """Strengths and probabilities of the augmentation of one view."""

    crop_scale: float = 0.2  # smallest fraction of the area that a random resized crop keeps
    aspect: float = 4 / 3  # largest aspect ratio of a crop; the smallest is its inverse
    overhead: bool = False  # also vertical flips and quarter turns
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur_p: float = 0.0
    solarize_p: float = 0.0


VIEWS = {  # the two views of self-supervised pre-training, by the setting pretrain.views
    # Grill et al. 2020, table 6; the views differ in blur and solarize. Deviations from the paper: crops keep at least
    # `crop_scale` of the area (not 0.08), are resized bilinearly (not bicubic) and, for overhead images, turned;
    # brightness, contrast, saturation and hue are jittered in this order (not in a random one for each image); the
    # kernel of the blur is a tenth of the view, 23 pixels at 224.
    "byol": (Recipe(blur_p=1.0), Recipe(blur_p=0.1, solarize_p=0.2)),
    # Colours are kept: they identify land cover.
    "geometry": (Recipe(jitter_p=0.0, grayscale_p=0.0),) * 2,
}
CLASSIFY = Recipe(crop_scale=0.5, jitter=(0.2, 0.2, 0.2, 0.02), grayscale_p=0.0)


class Views(nn.Module):
    """Draw one augmented, normalised view of each image: (B, 3, H, W) uint8 -> (B, 3, size, size) float32.

    Args:
        size: side of the views in pixels.
        recipe: Recipe.
        overhead: whether images are seen from above, so that vertical flips and quarter turns are drawn, too.
    """

    def __init__(self, size, recipe, overhead=False):
        super().__init__()
        self.size = size
        self.recipe = replace(recipe, overhead=overhead)

    def extra_repr(self):
        return f"size={self.size}, {self.recipe}"

    def forward(self, images):
        table = draws(len(images), images.device)
        chunk = max(1, CHUNK_PIXELS // self.size**2) if images.device.type == "cpu" else len(images)
        with no_autocast(images.device):  # bfloat16 is too coarse for coordinates
            views = [self._view(*part) for part in zip(images.split(chunk), table.split(chunk, dim=1))]
        return views[0] if len(views) == 1 else torch.cat(views)

    def _view(self, images, table):
        images = warp(images.float() / 255, geometry(table, self.recipe), self.size)
        return normalise(recolour(images, table, self.recipe))


def two_views(size, settings, overhead):
    """Return the two `Views` modules of self-supervised pre-training.

    Args:
        size: side of a view in pixels.
        settings: settings.Pretrain.
        overhead: see `Views`.
    """
    recipes = (replace(recipe, crop_scale=settings.crop_scale) for recipe in VIEWS[settings.views])
    return tuple(Views(size, recipe, overhead) for recipe in recipes)


def tile_recipe(settings):
    """Return the Recipe of Problem 2's tiles for settings.Segment."""
    jitter = (settings.jitter, settings.jitter, settings.jitter, settings.jitter / 10)
    return Recipe(crop_scale=settings.crop_scale, aspect=1.0, overhead=True, jitter=jitter, grayscale_p=0.0)


@torch.compiler.disable  # compiled code would draw other numbers
def draws(batch, device):
    """Return uniform random numbers in [0, 1) for one view of each image, (DRAWS, batch), on the device."""
    return to_device(distributed.rand(DRAWS, batch), device)


def geometry(table, recipe, crop=None, square=True):
    """Return a random crop, flip and turn for each image as affine matrices.

    Args:
        table: `draws` for B images.
        recipe: Recipe.
        crop: ((height, width) of all crops, (height, width) of the images) in pixels. Crops then start at whole
            pixels, so nothing is interpolated. None draws area and aspect ratio from the recipe.
        square: whether crops are square in pixels; otherwise only half turns are drawn.

    Returns:
        (B, 2, 3) matrices that map output to input coordinates, both in [-1, 1], as for F.affine_grid.
    """
    area, stretch, x, y, turn, flip = table[:6]  # (B,) each
    if crop is None:
        area = recipe.crop_scale + (1 - recipe.crop_scale) * area
        stretch = torch.exp((2 * stretch - 1) * 0.5 * math.log(recipe.aspect))
        width = (area.sqrt() * stretch).clamp(max=1)  # half extents: the image spans [-1, 1]
        height = (area.sqrt() / stretch).clamp(max=1)
        x, y = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
    else:
        (height, y), (width, x) = (_whole_pixels(*sides, draw) for *sides, draw in zip(*crop, (y, x)))
    quarters = 1 if square else 2
    turn = quarters * (turn * (4 // quarters)).floor() if recipe.overhead else torch.zeros_like(turn)
    flip = torch.where(flip < 0.5, -1.0, 1.0)
    cos, sin = ((turn * (math.pi / 2) + start).cos().round() for start in (0, -math.pi / 2))
    top = torch.stack([width * cos * flip, -width * sin, x], dim=1)
    bottom = torch.stack([height * sin * flip, height * cos, y], dim=1)
    return torch.stack([top, bottom], dim=1)


def _whole_pixels(side, length, draw):
    """Return half extents and centres, (B,), of crops of `side` of `length` pixels; `draw` selects the first pixel."""
    first = (draw * (length - side + 1)).floor()
    return torch.full_like(draw, side / length), (2 * first + side) / length - 1


def warp(images, theta, size, mode="bilinear"):
    """Sample each image through its own affine matrix: (B, C, H, W) -> (B, C, height, width).

    Args:
        theta: (B, 2, 3) as returned by `geometry`.
        size: side of a square in pixels, or (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    grid = F.affine_grid(theta, (len(images), images.shape[1], height, width), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def recolour(images, table, recipe):
    """Apply colour jitter, grayscale, blur and solarize, each with its own strength and probability for each image.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        table: `draws` for these images.
        recipe: Recipe.
    """
    jitter, *factors, gray_draw, sigma, blurred, solarized = table[6:, :, None, None, None]  # (B, 1, 1, 1) each
    if recipe.jitter_p:
        brightness, contrast, saturation, hue = (
            torch.where(jitter < recipe.jitter_p, strength * (2 * factor - 1), 0.0)
            for strength, factor in zip(recipe.jitter, factors)
        )
        images = (images * (1 + brightness)).clamp(0, 1)
        images = blend(images, rgb_to_grayscale(images).mean(dim=(1, 2, 3), keepdim=True), 1 + contrast)
        images = blend(images, rgb_to_grayscale(images), 1 + saturation)
        images = adjust_hue(images, hue) if recipe.jitter[3] else images
    if recipe.grayscale_p:
        images = torch.where(gray_draw < recipe.grayscale_p, rgb_to_grayscale(images), images)
    if recipe.blur_p:
        radius = max(1, images.shape[-1] // 20)
        images = torch.where(blurred < recipe.blur_p, blur(images, 0.1 + 1.9 * sigma.flatten(), radius), images)
    if recipe.solarize_p:
        inverted = (solarized < recipe.solarize_p) & (images >= 0.5)
        images = torch.where(inverted, 1 - images, images)
    return images


def blend(images, others, factor):
    """Scale the differences between images and others by `factor`, (B, 1, 1, 1)."""
    return (others + factor * (images - others)).clamp(0, 1)


def adjust_hue(images, shift):
    """Rotate the hue by `shift`, (B, 1, 1, 1), in turns of the colour circle."""
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
    """Blur each image with its own Gaussian: sigma, (B,), in pixels; the kernel has 2 · radius + 1 pixels."""
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
    """Return the original report's transforms of one PIL image, unchanged."""
    crop = [transforms.Resize(size), transforms.RandomCrop(size)]
    change = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(), transforms.TrivialAugmentWide()]
    return transforms.Compose(crop + change + [transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
