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


def test_colours_count_by_the_threshold_of_128_as_the_course_scores_them():
    """Pure red is no class; what is not exactly of a class's colour is counted."""
    cases = {(254, 255, 255): "barren", (0, 0, 128): "water", (127, 128, 0): "forest", (127, 127, 127): "unknown"}
    cases |= {
        (128, 128, 128): "barren",
        (255, 0, 0): "unknown",
        (200, 3, 90): "unknown",
        (130, 130, 127): "agriculture",
    }
    decoded, inexact = landcover.decode(np.array([*landcover.PALETTE, *cases], dtype=np.uint8)[None])
    assert inexact == len(cases)
    assert [landcover.CLASSES[number] for number in decoded[0]] == [*landcover.CLASSES, *cases.values()]
