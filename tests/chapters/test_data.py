"""What the data holds: counts by hand, pictures that show what the files hold."""

import types

import numpy as np
import pytest

from hw1lib.chapters import data
from hw1lib.data import landcover, layout
from tests.chapters.made import NASTY, assert_drawn, classes, counted, image, land, split
from tests.conftest import GROUND, write_tile


def held(labels=(0, 1), problem2=True):
    one = layout.Problem1(counted(range(1234), ()) if labels else layout.Split(None, ("",) * 1234),
                          counted([0] * 5, "abc"), counted([0] * 6, "abc"), None)  # fmt: skip
    two = types.SimpleNamespace(train=range(2000), validation=range(7)) if problem2 else None
    return types.SimpleNamespace(problem1=one, problem2=two)


@pytest.mark.parametrize("labels", [(0, 1), ()])
@pytest.mark.parametrize("is_sample", [True, False])
def test_the_data_is_counted_in_words(labels, is_sample):
    text = data.counts(held(labels), 32, is_sample)
    assert (
        f"1,234 images of {'the Americas' if is_sample else 'Mini-ImageNet'} ({'with' if labels else 'without'} labels)"
        in text
    )
    assert ("Office-Home" in text) != is_sample and "5 training and 6 validation images" in text
    assert "3 classes, at 32 × 32 pixels." in text and text.endswith(
        "Problem 2 has 2,000 training and 7 validation tiles."
    )


def test_an_absent_problem_is_not_counted():
    assert "Problem 2" not in data.counts(held(problem2=False), 32, True)
    alone = types.SimpleNamespace(problem1=None, problem2=held().problem2)
    assert data.counts(alone, 32, True).startswith("Problem 2 has")


def test_findings_are_a_row_each_groups_flattened_and_lists_counted():
    pool = {"images": 5, "exact": None, "classes": {"100": 2, "200": 3}, "undecodable": ["a"]}
    checks = {1: {"warnings": ["w"], "pool": pool}, 2: {"stray_pixels": 0, "leakage": {"tiles": 4}}}
    assert data.findings(checks).values.tolist() == [
        [1, "pool", "images", 5], [1, "pool", "classes: 100", 2], [1, "pool", "classes: 200", 3],
        [1, "pool", "undecodable", 1], [2, "leakage", "tiles", 4],
    ]  # fmt: skip
    assert list(data.findings({})) == ["problem", "split", "finding", "count"]


def test_weaknesses_are_a_list_or_none():
    assert data.weaknesses([], 2) == "The check of Problem 2's data found nothing that weakens its numbers."
    lines = data.weaknesses([*NASTY], 1).splitlines()
    assert len(lines) == 2 + len(NASTY) and all(line.startswith("- ") for line in lines[2:])
    assert "numbers of Problem 1**" in lines[0] and r"- a\|b" in lines and "- a b" in lines


@pytest.mark.parametrize(("pixels", "word"), [(0, "Every pixel"), (1234567, "1,234,567 pixels")])
def test_pixels_of_no_class_are_counted(pixels, word):
    text = data.strays(pixels)
    assert text.startswith(word) and ("no class" in text) == (pixels > 0)


@pytest.mark.parametrize(("count", "wanted"), [(1, 8), (5, 8), (8, 8), (65, 8), (1000, 3), (9, 1), (0, 4)])
def test_numbers_are_spread_from_the_first_to_the_last(count, wanted):
    found = data.spread(count, wanted).tolist()
    assert len(found) == min(count, wanted) and found == sorted(set(found))
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, count - 1) and np.ptp(np.diff(found)) <= 1
    assert all(0 <= number < count for number in found)


def test_examples_show_images_of_their_own_class(tmp_path):
    labels = [n % 12 for n in range(60)]
    one = split(tmp_path, labels, classes(12))
    figure = data.examples(one, 8, classes=3, images=2)
    assert [figure.axes[2 * row].get_ylabel() for row in range(3)] == ["Class_0", "Class_6", "Class_11"]
    shown = [int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes]
    assert [labels[n] for n in shown] == [0, 0, 6, 6, 11, 11] and shown[:2] == [0, 48]
    assert all(axis.images[0].get_array().shape == (8, 8, 3) for axis in figure.axes)
    assert_drawn(figure)


@pytest.mark.parametrize("labels", [[0], [0, 2]])
def test_examples_of_few_images_and_absent_classes(tmp_path, labels):
    assert_drawn(data.examples(split(tmp_path, labels, ("Couch", "$x$", "Mug")[: max(labels) + 1]), 8))


@pytest.mark.parametrize(("names", "parts"), [(("Couch",), 1), (classes(65), 2), (classes(3), 2)])
def test_bars_of_classes_are_as_long_as_their_counts(names, parts):
    splits = {f"part {n}": counted([0] * 3 + [len(names) - 1] * n, names) for n in range(parts)}
    figure = data.class_counts(splits)
    for axis, one in zip(figure.axes, splits.values(), strict=True):
        assert [bar.get_width() for bar in axis.patches] == list(one.counts().values())
        assert f"{len(one)} images" in axis.get_title()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(names)
    assert_drawn(figure)


# --- tiles


def written(folder, masks):
    for number, mask in masks.items():
        folder.mkdir(exist_ok=True)
        write_tile(folder, number, mask)
    return layout.Tiles(folder, tuple(masks))


@pytest.mark.parametrize("number", ["0001", "$x$", "$\\bad$", "<b>", "a_b^c", "%", "$", "杯"])
def test_tiles_are_drawn_above_their_masks_whatever_they_are_called(tmp_path, number):
    """matplotlib would take dollars for a formula, and stop at a wrong one."""
    masks = {number: land(24, 36), "0002": np.full((24, 24), 6, dtype=np.uint8)}
    figure = data.tiles(written(tmp_path, masks))
    assert figure.axes[0].get_title() == number
    for axis, mask in zip(figure.axes[2:], masks.values()):
        assert np.array_equal(axis.images[0].get_array(), landcover.PALETTE[mask])
    near = np.abs(np.int16(figure.axes[1].images[0].get_array()) - GROUND[6])
    assert near.max() < 20
    there = {landcover.CLASSES[c] for c in np.unique([*np.unique(masks[number]), 6])}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == there
    assert_drawn(figure)


def test_pixels_are_counted_over_all_tiles(tmp_path):
    masks = {f"{n:04d}": land(seed=n) for n in range(3)}
    masks["0003"] = np.full((24, 24), 2, dtype=np.uint8)
    found = data.pixel_frequencies(written(tmp_path, masks))
    assert found == pytest.approx([np.mean([mask == c for mask in masks.values()]) for c in range(7)])


def test_a_bar_is_divided_by_class_and_says_what_is_large():
    frequencies = {"train": np.array([0.5, 0.03, 0.47, 0, 0, 0, 0]), "validation": np.eye(7)[6]}
    figure = data.frequency_bars(frequencies)
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["50%", "47%", "100%"]
    bars = np.array([(bar.get_x(), bar.get_width()) for bar in axis.patches]).reshape(2, 7, 2)
    assert np.allclose(bars[..., 1], list(frequencies.values()))
    assert np.allclose(bars[:, 1:, 0], np.cumsum(list(frequencies.values()), axis=1)[:, :-1])
    assert_drawn(figure)


@pytest.mark.parametrize("mask", [land(24, 48), np.full((24, 24), 6, dtype=np.uint8)])
def test_layers_decode_a_mask_class_by_class(mask):
    figure = data.layers(image(*mask.shape).transpose(2, 0, 1), mask)
    there = np.unique(mask)
    assert np.array_equal(figure.axes[0].images[0].get_array(), image(*mask.shape))
    assert np.array_equal(figure.axes[1].images[0].get_array(), landcover.PALETTE[mask])
    for axis, number in zip(figure.axes[2:], there, strict=True):
        shown, inside = np.asarray(axis.images[0].get_array()), mask == number
        assert (shown[inside] == landcover.PALETTE[number]).all() and (shown[~inside] == 235).all()
        assert axis.get_title() == f"{landcover.CLASSES[number]} {inside.mean():.0%}"
    assert_drawn(figure, wide=7.4)
