"""Land-cover classes and their colours: nothing is lost between the two, and what is no class is counted."""

import numpy as np

from hw1lib.data import landcover


def test_a_mask_survives_pixel_by_pixel_also_in_batches():
    classes = np.random.default_rng(0).integers(0, 7, (2, 64, 48)).astype(np.uint8)
    colours = landcover.encode(classes)
    assert colours.shape == (2, 64, 48, 3) and colours.dtype == np.uint8
    for one, colour in zip(classes, colours):
        decoded, stray = landcover.decode(colour)
        assert np.array_equal(decoded, one) and stray == 0


def test_classes_and_colours_are_those_of_the_course():
    names = ("urban", "agriculture", "rangeland", "forest", "water", "barren", "unknown")
    colours = [(0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    assert names == landcover.CLASSES and names[:6] == landcover.SCORED
    assert np.array_equal(landcover.PALETTE, colours)


def test_stray_colours_become_unknown_and_are_counted():
    strays = [(255, 0, 0), (1, 0, 0), (254, 255, 255), (0, 0, 254), (128, 128, 128), (0, 255, 1)]
    colours = np.concatenate([landcover.PALETTE, np.array(strays, dtype=np.uint8)])[None]
    decoded, stray = landcover.decode(colours)
    assert stray == 6 and decoded[0].tolist() == [*range(7)] + [landcover.UNKNOWN] * 6
