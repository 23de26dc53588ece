"""What the data holds: counts by hand, pictures that show what the files hold."""

import types

import numpy as np
import pytest

from hw1lib.chapters import ch00_data
from hw1lib.data import landcover, layout
from tests.chapters.made import NASTY, assert_drawn, classes, counted, image, land, numbers, pictures, split, texts
from tests.conftest import GROUND, write_tile


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("is_sample", [True, False])
def test_the_data_is_counted_in_words(labelled, is_sample):
    """An absent problem is not."""
    pool = layout.Split(None, ("",) * 1234, np.arange(1234) if labelled else None)
    one = layout.Problem1(pool, counted([0] * 5, "abc"), counted([0] * 6, "abc"), None)
    two = types.SimpleNamespace(train=range(2000), validation=range(7))
    halves = ((one, None), (None, two), (one, two))
    layouts = [types.SimpleNamespace(problem1=first, problem2=second) for first, second in halves]
    first, second, both = (ch00_data.counts(found, 32, is_sample) for found in layouts)
    assert both == f"{first} {second}"
    pool = "the Americas" if is_sample else "Mini-ImageNet"
    assert f"1,234 images of {pool} ({'with' if labelled else 'without'} labels)" in first
    assert ("Office-Home" in first) != is_sample and "5 training and 6 validation images" in first
    assert first.endswith("3 classes, at 32 × 32 pixels.")
    assert second == "Problem 2 has 2,000 training and 7 validation tiles."


def test_findings_are_a_row_each_groups_flattened_and_lists_counted():
    pool = {"images": 5, "exact": None, "classes": {"100": 2, "200": 3}, "undecodable": ["a"]}
    checks = {1: {"warnings": ["w"], "pool": pool}, 2: {"stray_pixels": 0, "leakage": {"tiles": 4}}}
    assert ch00_data.findings(checks).values.tolist() == [
        [1, "pool", "images", 5], [1, "pool", "classes: 100", 2], [1, "pool", "classes: 200", 3],
        [1, "pool", "undecodable", 1], [2, "leakage", "tiles", 4],
    ]  # fmt: skip
    assert ch00_data.findings({}).empty


def test_weaknesses_are_a_list_or_none():
    assert ch00_data.weaknesses([], 2) == "The check of Problem 2's data found nothing that weakens its numbers."
    lines = ch00_data.weaknesses([*NASTY], 1).splitlines()
    assert len(lines) == 2 + len(NASTY) and all(line.startswith("- ") for line in lines[2:])
    assert "numbers of Problem 1**" in lines[0] and r"- a\|b" in lines and "- a b" in lines


@pytest.mark.parametrize(("count", "wanted"), [(1, 8), (5, 8), (8, 8), (65, 8), (1000, 3), (9, 1), (0, 4)])
def test_numbers_are_spread_from_the_first_to_the_last(count, wanted):
    found = ch00_data.spread(count, wanted).tolist()
    assert len(found) == min(count, wanted) and found == sorted(set(found))
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, count - 1) and np.ptp(np.diff(found)) <= 1
    assert all(0 <= number < count for number in found)


def test_examples_show_images_of_their_own_class(tmp_path):
    labels = [n % 12 for n in range(60)]
    figure = ch00_data.examples(split(tmp_path, labels, classes(12)), 8, classes=3, images=2)
    assert [figure.axes[2 * row].get_ylabel() for row in range(3)] == ["Class_0", "Class_6", "Class_11"]
    shown = numbers(figure)
    assert [labels[n] for n in shown] == [0, 0, 6, 6, 11, 11] and shown[:2] == [0, 48]
    assert {picture.shape for picture in pictures(figure)} == {(8, 8, 3)}
    assert_drawn(figure)
    assert_drawn(ch00_data.examples(split(tmp_path, [0, 2], ("Couch", "$x$", "Mug")), 8))  # one is absent


# --- tiles


def written(folder, masks):
    for number, mask in masks.items():
        write_tile(folder, number, mask)
    return layout.Tiles(folder, tuple(masks))


def test_tiles_are_drawn_above_their_masks_whatever_they_are_called(tmp_path):
    """matplotlib would take dollars for a formula, and stop at a wrong one."""
    names = ["0001", "$x$", "$\\bad$", "<b>", "a_b^c", "%"]
    masks = {name: land(24, 36, seed=n) for n, name in enumerate(names[:-1])} | {"%": np.full((24, 36), 6, np.uint8)}
    figure = ch00_data.tiles(written(tmp_path, masks))
    shown = pictures(figure)
    assert [axis.get_title() for axis in figure.axes[:6]] == names
    assert np.array_equal(shown[6:], [landcover.PALETTE[mask] for mask in masks.values()])
    assert np.abs(np.int16(shown[5]) - GROUND[6]).max() < 20
    there = {landcover.CLASSES[c] for c in np.unique(list(masks.values()))}
    assert set(texts(figure.legends[0].get_texts())) == there
    assert_drawn(figure)


@pytest.mark.parametrize("mask", [land(24, 48), np.full((24, 24), 6, dtype=np.uint8)])
def test_layers_decode_a_mask_class_by_class(mask):
    figure = ch00_data.layers(image(*mask.shape).transpose(2, 0, 1), mask)
    first, second, *rest = pictures(figure)
    assert np.array_equal(first, image(*mask.shape)) and np.array_equal(second, landcover.PALETTE[mask])
    for axis, shown, number in zip(figure.axes[2:], rest, np.unique(mask), strict=True):
        inside = mask == number
        assert np.array_equal(shown, np.where(inside[..., None], landcover.PALETTE[number], 235))
        assert axis.get_title() == f"{landcover.CLASSES[number]} {inside.mean():.0%}"
    assert_drawn(figure, wide=7.4)
