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
THRESHOLD = 128  # from which on a channel counts as 255
RED = 4  # bits of pure red

_CLASS_OF_BITS = np.full(8, UNKNOWN, dtype=np.uint8)  # every colour is one bit a channel
_CLASS_OF_BITS[(PALETTE // 255) @ (4, 2, 1)] = np.arange(len(CLASSES))


def decode(colours):
    """Turn a colour mask into class numbers by the rule of the course's evaluator; do this before any resize.

    A channel counts as 255 from THRESHOLD on and as 0 below; pure red, which is no class, becomes unknown.

    Args:
        colours: (H, W, 3) uint8 mask in the course's palette.

    Returns:
        (H, W) uint8 class numbers 0…6, and the number of pixels whose colour is not exactly a class's.
    """
    high = (colours >= THRESHOLD).view(np.uint8)
    bits = high[..., 0] << 2 | high[..., 1] << 1 | high[..., 2]
    apart = colours + high  # 255 + 1 overflows to 0
    inexact = ((apart[..., 0] | apart[..., 1] | apart[..., 2]) > 0) | (bits == RED)
    return _CLASS_OF_BITS[bits], int(inexact.sum())


def encode(classes):
    """Turns (…, H, W) class numbers into a (…, H, W, 3) uint8 mask in the course's palette."""
    return PALETTE[classes]
