"""Chapter 0: counts and warnings in words, and pictures that show what the files hold."""

import types

import numpy as np
import pytest

from hw1lib.chapters import ch00_data
from hw1lib.data import landcover, layout
from tests.chapters.made import NASTY, assert_drawn, classes, counted, land, pictures, split
from tests.conftest import write_tile


@pytest.mark.parametrize(("labelled", "is_sample"), [(True, True), (False, False)])
def test_counts_describe_the_problems_that_are_there(labelled, is_sample):
    pool = layout.Split(None, ("",) * 1234, np.arange(1234) if labelled else None)
    one = layout.Problem1(pool, counted([0] * 5, "abc"), counted([0] * 6, "abc"), None)
    two = types.SimpleNamespace(train=range(2000), validation=range(7))
    layouts = [types.SimpleNamespace(problem1=a, problem2=b) for a, b in ((one, None), (None, two), (one, two))]
    first, second, both = (ch00_data.counts(data, 32, is_sample) for data in layouts)
    pool = "the Americas" if is_sample else "Mini-ImageNet"
    assert both == f"{first} {second}" and "2,000 training and 7 validation tiles" in second
    assert f"1,234 images of {pool} ({'with' if labelled else 'without'} labels)" in first
    assert ("Office-Home" in first) != is_sample and "5 training and 6 validation images" in first


def test_findings_have_a_row_each():
    """Nested findings are flattened, lists counted, missing ones left out."""
    pool = {"images": 5, "exact": None, "classes": {"100": 2, "200": 3}, "undecodable": ["a"]}
    checks = {1: {"warnings": ["w"], "pool": pool}, 2: {"stray_pixels": 0, "leakage": {"tiles": 4}}}
    assert sorted(ch00_data.findings(checks).values.tolist()) == [
        [1, "pool", "classes: 100", 2], [1, "pool", "classes: 200", 3], [1, "pool", "images", 5],
        [1, "pool", "undecodable", 1], [2, "leakage", "tiles", 4],
    ]  # fmt: skip
    assert ch00_data.findings({}).empty


def test_weaknesses_are_a_list_of_harmless_lines_and_stray_pixels_are_counted():
    assert "found nothing" in ch00_data.weaknesses([], 2)
    lines = ch00_data.weaknesses([*NASTY], 1).splitlines()
    assert len(lines) == 2 + len(NASTY) and all(line.startswith("- ") for line in lines[2:])
    assert r"- a\|b" in lines and "- a b" in lines
    assert ch00_data.strays(0).startswith("Every mask pixel") and ch00_data.strays(1234).startswith("1,234 mask pixels")


def test_examples_show_images_of_their_class(tmp_path):
    labels = [n % 12 for n in range(60)]
    figure = ch00_data.examples(split(tmp_path, labels, classes(12)), 8, classes=3, images=2)
    assert [labels[picture[0, 0, 0]] for picture in pictures(figure)] == [0, 0, 6, 6, 11, 11]
    assert_drawn(figure)
    assert_drawn(ch00_data.examples(split(tmp_path, [0, 2], ("Couch", "$x$", "Mug")), 8))  # a class without images


def test_tiles_are_drawn_above_their_masks_whatever_their_names(tmp_path):
    """matplotlib would take dollars for a formula, and fail on an invalid one."""
    masks = {name: land(24, 36, seed=n) for n, name in enumerate(["0001", "$\\bad$", "<b>", "a_b^c"])}
    for number, mask in masks.items():
        write_tile(tmp_path, number, mask)
    figure = ch00_data.tiles(layout.Tiles(tmp_path, tuple(masks)))
    assert np.array_equal(pictures(figure)[4:], [landcover.PALETTE[mask] for mask in masks.values()])
    present = {landcover.CLASSES[c] for c in np.unique(list(masks.values()))}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == present
    assert_drawn(figure)
