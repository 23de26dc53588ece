"""A convolution layer that is fast on CPUs where PyTorch's is slow.

On CPUs, most of a training step is spent in layers with many weights and few pixels (ResNet50's last stages,
VGG16-FCN32s's conv7, DeepLabV3's ASPP) and in MobileNetV3's depthwise layers. The former are several times faster as
matrix products, the latter in float32 and without dilation. benchmarks/networks.py measured the thresholds
(docs/performance.md). Results agree up to rounding; names and shapes of weights are the same.
"""

import functools
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Conv2d(nn.Conv2d):
    """nn.Conv2d that uses a faster equivalent on CPUs where there is one."""

    def forward(self, images):
        if images.device.type == "cpu" and self.padding_mode == "zeros" and isinstance(self.padding, tuple):
            if self.groups == 1:
                geometry = self.kernel_size, self.stride, self.padding, self.dilation
                sides = [_side(*side) for side in zip(images.shape[2:], *geometry)]
                if self._is_faster_as_product(images, *sides):
                    return self._product(images, *sides)
            elif self.groups == self.in_channels and torch.is_grad_enabled():
                return self._depthwise(images)
        return super().forward(images)

    def _is_faster_as_product(self, images, vertical, horizontal):
        """Return whether a matrix product is faster than oneDNN, which first reorders all weights."""
        taps = len(vertical.windows) * len(horizontal.windows)
        weights, pixels = self.in_channels * self.out_channels * taps, vertical.length * horizontal.length
        half = torch.is_autocast_enabled("cpu") or images.dtype != torch.float32
        if taps == 1:
            return weights >= 2**15 if half else weights >= 2**19 and pixels <= 64
        max_pixels, min_weights = (64, 2**22) if half else (16, 2**24)
        return weights >= 64 * pixels * len(images) and (pixels <= max_pixels or weights >= min_weights)

    def _product(self, images, vertical, horizontal):
        """Convolve by one matrix product over the taps that touch the map."""
        # Channels come last, as in the weights' memory, so the optimizer need not reorder the gradient.
        kernel = self.weight.permute(0, 2, 3, 1)[:, vertical.taps, horizontal.taps].flatten(1)  # (O, taps·C)
        pads = (*horizontal.pads, *vertical.pads)  # negative values crop
        pixels = (F.pad(images, pads) if any(pads) else images).permute(0, 2, 3, 1)
        slices = list(itertools.product(vertical.windows, horizontal.windows))
        windows = pixels[:, *slices[0]] if len(slices) == 1 else _Windows.apply(pixels, slices)  # (B, P, Q, taps·C)
        # Without flatten and gradients, PyTorch would copy and multiply image by image.
        product = F.linear(windows.flatten(0, 2), kernel, self.bias)  # (B·P·Q, O)
        return product.unflatten(0, windows.shape[:3]).permute(0, 3, 1, 2)

    def _depthwise(self, images):
        """Compute a depthwise convolution in float32, whose gradient is 5 to 10 times as fast as bfloat16's.

        Dilation d only combines every d-th pixel, so where d divides the map it is split into d² maps without dilation.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        with torch.autocast("cpu", enabled=False):
            pixels, d = images.float(), self.dilation[0]
            if not self._splits(pixels):
                return super().forward(pixels).to(dtype)
            # Depthwise layers are only fast with channels last, forwards and backwards.
            batch, channels, height, width = pixels.shape
            parts = pixels.permute(0, 2, 3, 1).reshape(batch, height // d, d, width // d, d, channels)
            parts = parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B·d², H/d, W/d, C)
            pads = [pad // d for pad in self.padding]
            out = F.conv2d(parts.permute(0, 3, 1, 2), self.weight, self.bias, padding=pads, groups=self.groups)
            out = out.permute(0, 2, 3, 1).unflatten(0, (batch, d, d))  # (B, d, d, P/d, Q/d, O)
            out = out.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)  # (B, P, Q, O)
            return out.permute(0, 3, 1, 2).to(dtype)

    def _splits(self, images):
        """Return whether the map can be split: the dilation divides its sides and the padding."""
        vertical, horizontal = self.dilation
        divides = all(n % vertical == 0 for n in (*images.shape[2:], *self.padding))
        return divides and vertical == horizontal > 1 and self.stride == (1, 1)


class _Windows(torch.autograd.Function):
    """Concatenate the pixels that each tap of a kernel touches: (B, H, W, C) -> (B, P, Q, taps·C).

    The gradient is a sum of slices, ten times as fast as that of torch.Tensor.unfold.
    """

    @staticmethod
    def forward(ctx, pixels, slices):
        ctx.shape, ctx.slices = pixels.shape, slices
        return torch.cat([pixels[:, rows, columns] for rows, columns in slices], dim=-1)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.new_zeros(ctx.shape)
        for (rows, columns), part in zip(ctx.slices, gradient.split(ctx.shape[-1], dim=-1)):
            total[:, rows, columns] += part
        return total, None


class _Side(NamedTuple):
    """A convolution along one side of the map, without taps that only touch padding.

    Attributes:
        taps: slice of the kernel.
        windows: for each of these taps, the slice of the padded map that it touches.
        pads: padding before and after the map.
        length: number of output pixels.
    """

    taps: slice
    windows: tuple
    pads: tuple
    length: int


@functools.cache
def _side(size, kernel, stride, padding, dilation):
    """Describe a convolution along a side of `size` pixels, which with padding is at least as long as the kernel."""
    length = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    starts = [index * stride - padding for index in range(length)]
    used = [tap for tap in range(kernel) if any(0 <= start + tap * dilation < size for start in starts)] or [0]
    first, last = used[0], used[-1]
    span = (length - 1) * stride + 1
    windows = tuple(slice(tap * dilation, tap * dilation + span, stride) for tap in range(last - first + 1))
    before = padding - first * dilation
    return _Side(slice(first, last + 1), windows, (before, windows[-1].stop - before - size), length)


def use_in(network):
    """Turn every plain nn.Conv2d of a network into this module's Conv2d, in place, and return the network."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
    return network
