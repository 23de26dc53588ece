"""A convolution that is quick on small and on dilated feature maps, too.

On CPUs the library spends most of a training step in a few layers: a ResNet50's last stages on
32-pixel images, VGG16-FCN32s's conv7, MobileNetV3's dilated depthwise layers. As matrix products,
or without the dilation, they are several times quicker. The result is the same up to rounding, and
so are the weights' names and shapes.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

SMALL = 4  # pixels of an output map up to which it is computed as one matrix product


class Conv2d(nn.Conv2d):
    """nn.Conv2d; on a CPU by matrix products, or in parts, where that is quicker."""

    def forward(self, images):
        usual = self.padding_mode == "zeros" and isinstance(self.padding, tuple)
        if images.device.type == "cpu" and images.ndim == 4 and usual:
            reach = _reach(images.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation)
            # Products in float32 are not quicker than the library where all of a kernel is used.
            half = torch.is_autocast_enabled("cpu") or images.dtype != torch.float32
            if self.groups == 1 and reach is not None and (half or self.kernel_size != (1, 1)):
                return self._product(images, *reach)
            if self._splits(images):
                return self._in_parts(images)
        return super().forward(images)

    def _product(self, images, taps, pads, out):
        """One matrix product over the taps that see any pixel."""
        (top, bottom), (left, right) = taps
        kernel = self.weight[:, :, top : bottom + 1, left : right + 1]
        (down, across), (spread, along) = self.stride, self.dilation
        if any(pads):
            images = F.pad(images, pads)  # below zero: cut off
        if kernel.shape[2:] == (1, 1):
            columns = images[:, :, ::down, ::across].permute(0, 2, 3, 1)  # (B, P, Q, C)
        else:
            windows = images.unfold(2, spread * (bottom - top) + 1, down)[..., ::spread]
            windows = windows.unfold(3, along * (right - left) + 1, across)[..., ::along]
            columns = windows.permute(0, 2, 3, 4, 5, 1).flatten(3)  # (B, P, Q, taps·C)
        kernel = kernel.permute(0, 2, 3, 1).flatten(1)  # (O, taps·C)
        return F.linear(columns, kernel, self.bias).permute(0, 3, 1, 2)

    def _splits(self, images):
        """Whether the dilation divides map and padding, so that its parts do not mix."""
        spread, along = self.dilation
        divides = all(n % spread == 0 for n in (*images.shape[2:], *self.padding))
        return divides and spread == along > 1 and self.stride == (1, 1)

    def _in_parts(self, images):
        """Dilation d takes each d-th pixel: d² smaller maps without dilation, side by side."""
        d, (batch, channels, height, width) = self.dilation[0], images.shape
        # Channels come last all the way, backwards, too: depthwise layers are slow otherwise.
        pixels = images.permute(0, 2, 3, 1).reshape(batch, height // d, d, width // d, d, channels)
        parts = pixels.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B·d², H/d, W/d, C)
        pads = [pad // d for pad in self.padding]
        out = F.conv2d(parts.permute(0, 3, 1, 2), self.weight, self.bias, padding=pads, groups=self.groups)
        out = out.permute(0, 2, 3, 1).unflatten(0, (batch, d, d))  # (B, d, d, P/d, Q/d, O)
        out = out.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)  # (B, P, Q, O)
        return out.permute(0, 3, 1, 2)


@functools.cache
def _reach(sizes, kernels, strides, paddings, dilations):
    """Which taps of a kernel see any pixel, where few enough remain for a matrix product.

    Returns:
        First and last tap along each side, padding for F.pad and the output's sides; or None.
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
    single = all(first == last for first, last in taps)
    return (tuple(taps), pads, out) if single or out[0] * out[1] <= SMALL else None


def quicken(network):
    """Turns every plain nn.Conv2d of a network into the class above, in place; returns it."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
    return network
