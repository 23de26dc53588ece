"""Land-cover classes and their colours: nothing is lost between the two, and what is no class is counted."""

import numpy as np
import pytest

from hw1lib.data import landcover


def test_a_mask_survives_pixel_by_pixel_also_in_batches():
    classes = np.random.default_rng(0).integers(0, 7, (2, 64, 48)).astype(np.uint8)
    colours = landcover.encode(classes)
    assert colours.shape == (2, 64, 48, 3) and colours.dtype == np.uint8
    for one, colour in zip(classes, colours):
        decoded, stray = landcover.decode(colour)
        assert np.array_equal(decoded, one) and stray == 0


def test_colours_are_distinct_and_those_of_the_course():
    names = ("urban", "agriculture", "rangeland", "forest", "water", "barren", "unknown")
    cyan, yellow, magenta, green = (0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0)
    colours = [cyan, yellow, magenta, green, (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    assert names == landcover.CLASSES and colours == [tuple(colour) for colour in landcover.PALETTE.tolist()]
    assert names[:6] == landcover.SCORED


@pytest.mark.parametrize("colour", [(255, 0, 0), (1, 0, 0), (254, 255, 255), (0, 0, 254), (128, 128, 128), (0, 255, 1)])
def test_a_stray_colour_becomes_unknown_and_is_counted(colour):
    colours = landcover.encode(np.full((4, 4), landcover.CLASSES.index("forest"), dtype=np.uint8))
    colours[1, 2] = colours[3, 0] = colour
    decoded, stray = landcover.decode(colours)
    assert stray == 2 and decoded[1, 2] == decoded[3, 0] == landcover.UNKNOWN
    assert np.count_nonzero(decoded == landcover.CLASSES.index("forest")) == 14
