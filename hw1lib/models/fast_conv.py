"""A convolution that is quick on CPUs where torch's own is not.

The library spends most of a step in a few layers: those with many weights for few pixels (a ResNet50's
last stages, VGG16-FCN32s's conv7, DeepLabV3's ASPP), and MobileNetV3's depthwise ones. As matrix products,
or in other parts, they are several times quicker; which ones is what benchmarks/networks.py measured
(docs/performance.md). The result is the same up to rounding, and so are the weights' names and shapes.
"""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn


class Conv2d(nn.Conv2d):
    """nn.Conv2d; on a CPU by matrix products, or in parts, where that is quicker."""

    def forward(self, images):
        usual = self.padding_mode == "zeros" and isinstance(self.padding, tuple)
        if images.device.type == "cpu" and images.ndim == 4 and usual:
            if self.groups == 1:
                reach = _reach(images.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation)
                if reach is not None and self._pays(images, *reach):
                    return self._product(images, *reach)
            elif self.groups == self.in_channels and torch.is_grad_enabled():
                return self._depthwise(images)
        return super().forward(images)

    def _pays(self, images, taps, pads, out):
        """Whether a matrix product is quicker: the library first puts all weights into another order."""
        used = [last - first + 1 for first, last in taps]
        weights = self.in_channels * self.out_channels * used[0] * used[1]
        pixels = out[0] * out[1]
        half = torch.is_autocast_enabled("cpu") or images.dtype != torch.float32
        if used == [1, 1]:
            return weights >= 2**15 if half else weights >= 2**19 and pixels <= 64
        few, many = (64, 2**22) if half else (16, 2**24)
        return weights >= 64 * pixels * len(images) and (pixels <= few or weights >= many)

    def _product(self, images, taps, pads, out):
        """One matrix product over the taps that see any pixel."""
        (top, bottom), (left, right) = taps
        seen = slice(top, bottom + 1), slice(left, right + 1)
        partial = (bottom - top + 1, right - left + 1) != self.kernel_size
        weight = _Taps.apply(self.weight, *seen) if partial else self.weight
        kernel = weight.permute(0, 2, 3, 1).flatten(1)  # (O, taps·C)
        pixels = (F.pad(images, pads) if any(pads) else images).permute(0, 2, 3, 1)  # below zero: cut off
        rows, columns = (
            [slice(tap * spread, tap * spread + (count - 1) * stride + 1, stride) for tap in range(last - first + 1)]
            for (first, last), spread, stride, count in zip(taps, self.dilation, self.stride, out)
        )
        places = list(itertools.product(rows, columns))
        windows = pixels[:, *places[0]] if len(places) == 1 else _Windows.apply(pixels, places)  # (B, P, Q, taps·C)
        # Flat: without a gradient torch would multiply image by image, and copy each of them before.
        found = F.linear(windows.flatten(0, 2), kernel, self.bias)  # (B·P·Q, O)
        return found.unflatten(0, windows.shape[:3]).permute(0, 3, 1, 2)

    def _depthwise(self, images):
        """In float32, whose gradient is 5 to 10 times as quick as bfloat16's, and without dilation where that divides.

        Dilation d takes each d-th pixel: d² smaller maps without dilation, side by side.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        with torch.autocast("cpu", enabled=False):
            pixels, d = images.float(), self.dilation[0]
            if not self._splits(pixels):
                return super().forward(pixels).to(dtype)
            # Channels come last all the way, backwards, too: depthwise layers are slow otherwise.
            batch, channels, height, width = pixels.shape
            parts = pixels.permute(0, 2, 3, 1).reshape(batch, height // d, d, width // d, d, channels)
            parts = parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B·d², H/d, W/d, C)
            pads = [pad // d for pad in self.padding]
            out = F.conv2d(parts.permute(0, 3, 1, 2), self.weight, self.bias, padding=pads, groups=self.groups)
            out = out.permute(0, 2, 3, 1).unflatten(0, (batch, d, d))  # (B, d, d, P/d, Q/d, O)
            out = out.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)  # (B, P, Q, O)
            return out.permute(0, 3, 1, 2).to(dtype)

    def _splits(self, images):
        """Whether the dilation divides map and padding, so that its parts do not mix."""
        spread, along = self.dilation
        divides = all(n % spread == 0 for n in (*images.shape[2:], *self.padding))
        return divides and spread == along > 1 and self.stride == (1, 1)


class _Taps(torch.autograd.Function):
    """Some taps of a kernel: weight[:, :, rows, columns].

    Its gradient has channels last like the weights, so that nobody has to put it into another order.
    """

    @staticmethod
    def forward(ctx, weight, rows, columns):
        ctx.shape, ctx.seen = weight.shape, (rows, columns)
        return weight[:, :, rows, columns]

    @staticmethod
    def backward(ctx, gradient):
        total = torch.zeros_like(gradient.new_empty(ctx.shape), memory_format=torch.channels_last)
        total[:, :, *ctx.seen] = gradient
        return total, None, None


class _Windows(torch.autograd.Function):
    """What each tap of a kernel sees, side by side: (B, H, W, C) -> (B, P, Q, taps·C).

    Its gradient adds slices up, an order of magnitude quicker than that of torch.Tensor.unfold.
    """

    @staticmethod
    def forward(ctx, pixels, places):
        ctx.shape, ctx.places = pixels.shape, places
        return torch.cat([pixels[:, rows, columns] for rows, columns in places], dim=-1)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.new_zeros(ctx.shape)
        for (rows, columns), part in zip(ctx.places, gradient.split(ctx.shape[-1], dim=-1)):
            total[:, rows, columns] += part
        return total, None


@functools.cache
def _reach(sizes, kernels, strides, paddings, dilations):
    """Which taps of a kernel see any pixel.

    Returns:
        First and last tap along each side, padding for F.pad and the output's sides; None where no tap does.
    """
    taps, pads, out = [], [], []
    for size, kernel, stride, padding, dilation in zip(sizes, kernels, strides, paddings, dilations):
        count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        starts = [index * stride - padding for index in range(count)]
        seen = [tap for tap in range(kernel) if any(0 <= start + tap * dilation < size for start in starts)]
        if not seen:  # the library says it best
            return None
        first, last = seen[0], seen[-1]
        before = padding - first * dilation
        after = (count - 1) * stride + (last - first) * dilation + 1 - before - size
        taps.append((first, last))
        pads = [before, after] + pads  # F.pad begins with the last side
        out.append(count)
    return tuple(taps), pads, out


def quicken(network):
    """Turns every plain nn.Conv2d of a network into the class above, in place; returns it."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
    return network
