import numpy as np
import pytest

from hw1lib.data import landcover


@pytest.mark.parametrize("number", range(len(landcover.CLASSES)))
def test_every_class_survives_its_colour(number):
    classes = np.full((3, 5), number, dtype=np.uint8)
    decoded, stray = landcover.decode(landcover.encode(classes))
    assert np.array_equal(decoded, classes) and stray == 0


def test_a_mixed_mask_survives_pixel_by_pixel():
    classes = np.random.default_rng(0).integers(0, 7, (64, 48)).astype(np.uint8)
    colours = landcover.encode(classes)
    decoded, stray = landcover.decode(colours)
    assert colours.shape == (64, 48, 3) and colours.dtype == np.uint8
    assert np.array_equal(decoded, classes) and stray == 0


def test_encode_takes_batches():
    classes = np.arange(7).reshape(1, 7, 1).repeat(2, axis=0)
    assert landcover.encode(classes).shape == (2, 7, 1, 3)


def test_colours_are_distinct_and_those_of_the_course():
    assert len({tuple(colour) for colour in landcover.PALETTE}) == len(landcover.CLASSES) == 7
    assert tuple(landcover.PALETTE[landcover.CLASSES.index("water")]) == (0, 0, 255)
    assert tuple(landcover.PALETTE[landcover.UNKNOWN]) == (0, 0, 0)
    assert landcover.SCORED == landcover.CLASSES[:6] and "unknown" not in landcover.SCORED


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (1, 0, 0), (254, 255, 255), (0, 0, 254), (128, 128, 128), (0, 255, 1)]
)
def test_a_stray_colour_becomes_unknown_and_is_counted(colour):
    colours = landcover.encode(np.full((4, 4), landcover.CLASSES.index("forest"), dtype=np.uint8))
    colours[1, 2] = colours[3, 0] = colour
    decoded, stray = landcover.decode(colours)
    assert stray == 2
    assert decoded[1, 2] == decoded[3, 0] == landcover.UNKNOWN
    assert np.count_nonzero(decoded == landcover.CLASSES.index("forest")) == 14


def test_true_unknown_is_no_stray():
    decoded, stray = landcover.decode(np.zeros((2, 2, 3), dtype=np.uint8))
    assert stray == 0 and (decoded == landcover.UNKNOWN).all()
