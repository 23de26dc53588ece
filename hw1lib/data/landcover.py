"""The seven land-cover classes of the course and the colours of its masks (DeepGlobe)."""

import numpy as np

_COLOURS = {
    "urban": (0, 255, 255),  # cyan
    "agriculture": (255, 255, 0),  # yellow
    "rangeland": (255, 0, 255),  # magenta
    "forest": (0, 255, 0),  # green
    "water": (0, 0, 255),  # blue
    "barren": (255, 255, 255),  # white
    "unknown": (0, 0, 0),  # black
}
CLASSES = tuple(_COLOURS)
UNKNOWN = CLASSES.index("unknown")
SCORED = CLASSES[:UNKNOWN]  # the classes that the course's mIoU averages
PALETTE = np.array(list(_COLOURS.values()), dtype=np.uint8)
THRESHOLD = 128  # a channel counts as 255 from here on
RED = 4  # the bits of pure red

_CLASS_OF_BITS = np.full(8, UNKNOWN, dtype=np.uint8)  # a colour is one bit per channel
_CLASS_OF_BITS[(PALETTE // 255) @ (4, 2, 1)] = np.arange(len(CLASSES))


def decode(colours):
    """Convert a colour mask to class numbers by the rule of the course's evaluator; resize only afterwards.

    A channel counts as 255 from THRESHOLD on, and as 0 below. Pure red, which is not a class, becomes unknown.

    Args:
        colours: (H, W, 3) uint8 mask in the course's palette.

    Returns:
        (H, W) uint8 class numbers 0…6, and the number of pixels that do not have exactly a class's colour.
    """
    high = (colours >= THRESHOLD).view(np.uint8)
    bits = high[..., 0] << 2 | high[..., 1] << 1 | high[..., 2]
    difference = colours + high  # 255 + 1 overflows to 0
    inexact = ((difference[..., 0] | difference[..., 1] | difference[..., 2]) > 0) | (bits == RED)
    return _CLASS_OF_BITS[bits], int(inexact.sum())


def encode(classes):
    """Convert (…, H, W) class numbers to a (…, H, W, 3) uint8 mask in the course's palette."""
    return PALETTE[classes]
