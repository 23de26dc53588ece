"""The Earth sample: what it promises about itself, measured on a fresh build."""

import filecmp
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib import files, paths
from hw1lib.data import landcover, layout
from hw1lib.data.sample import build as sample
from hw1lib.data.sample import windows
from hw1lib.settings import Data

pytestmark = pytest.mark.slow
POOL, TRAIN, VAL = "p1_data/mini/train", "p1_data/office/train", "p1_data/office/val"
TILES = "p2_data/train", "p2_data/validation"
# The digest of windows.csv, whatever decodes and encodes images.
WINDOWS = "845a34bf1d53d594c6f98a165a400e22d03def2b1d8140f6e4ad935c7d30db74"


@pytest.fixture(scope="module")
def earth(tmp_path_factory):
    return sample.build(tmp_path_factory.mktemp("first") / "earth")


@pytest.fixture(scope="module")
def rasters():
    """The whole image and the land cover on its grid."""
    return sample._read(*sample.fetch_wheels(paths.WHEELS))


@pytest.fixture(scope="module")
def places(earth):
    return pd.read_csv(earth / "windows.csv", dtype={"filename": str})


def rows(places, *splits):
    return places[places["split"].isin(splits)]


def gap(one, other, width=5400):
    """Pixels between the windows of two tables, around the Earth: (N, M), below 0 where they overlap."""
    down = abs(one["top"].values[:, None] - other["top"].values)
    along = abs(one["left"].values[:, None] - other["left"].values)
    return np.maximum(down, np.minimum(along, width - along)) - one["size"].iloc[0]


# --- the whole folder


def test_every_build_is_the_same_to_the_byte(earth):
    """As the one that all tests and the demo use, and as every one before it."""
    names, others = (
        sorted(str(path.relative_to(root)) for part in root.glob("*_data") for path in part.rglob("*.*"))
        for root in (earth, sample.build())
    )
    assert names == others and len(names) > 6000
    _, different, unreadable = filecmp.cmpfiles(earth, paths.EARTH, [*names, "windows.csv"], shallow=False)
    assert not different and not unreadable
    assert files.digest(earth / "windows.csv") == WINDOWS


def test_every_file_is_listed_and_every_listed_file_is_there(earth, places):
    count = json.loads((earth / "sample.json").read_text())["files"]
    assert set(count) == {POOL, TRAIN, VAL, *TILES}
    for split, listed in places.groupby("split"):
        names = {path.name for path in (earth / split).iterdir()}
        assert names == set(listed["filename"]) and count[split] == len(names) == len(listed)
        if split not in TILES:
            table = pd.read_csv(earth / f"{split}.csv")
            assert list(table.columns) == ["id", "filename", "label"] and list(table["id"]) == list(range(len(table)))
            assert set(table["filename"]) == names and table["filename"].is_unique
    assert 5500 <= count[POOL] <= 6500 and 400 <= count[TRAIN] <= 480 and 334 <= count[VAL] <= 480
    found = layout.find(earth, Data())
    assert found.problem1.classes == tuple(windows.PATCH_CLASSES)
    assert len(found.problem2.train) == 400 and len(found.problem2.validation) == 120


def test_images_show_their_place(earth, rasters, places):
    for window in places[places["filename"].str.endswith(".jpg")].iloc[::97].itertuples():
        with Image.open(earth / window.split / window.filename) as picture:
            assert picture.mode == "RGB" and picture.size == {32: (32, 32), 64: (128, 128)}[window.size]
            shown = np.asarray(picture.resize((window.size, window.size), Image.Resampling.BOX), dtype=int)
        place = rasters[0][window.top : window.top + window.size, window.left : window.left + window.size]
        assert abs(shown - place).mean() < window.size / 10  # tiles were enlarged


# --- Problem 1


@pytest.mark.parametrize(("split", "least", "most"), [(POOL, 300, 800), (TRAIN, 25, 60), (VAL, 25, 60)])
def test_a_label_holds_most_of_its_window_and_every_class_is_there(earth, rasters, places, split, least, most):
    numbers = list(windows.PATCH_CLASSES.values())
    table = pd.read_csv(earth / f"{split}.csv", dtype={"filename": str}).merge(rows(places, split))
    for top, left, label in table[["top", "left", "label"]].itertuples(index=False):
        cut = rasters[1][top : top + 32, left : left + 32]
        assert cut.shape == (32, 32) and np.mean(cut == numbers[label]) >= 0.6 and np.mean(cut == 0) <= 0.3
    counts = table["label"].value_counts()
    assert sorted(counts.index) == list(range(8)) and least <= counts.min() and counts.max() <= most


def test_no_split_shows_what_another_one_shows(places):
    """Office's windows and the tiles share no pixel; a window lies between training and validation.

    Longitudes, in pixels of 1/15° from 180° W: the Bering Strait and the Atlantic separate the pool from Office.
    """
    for splits in ((TRAIN, VAL), TILES):
        images = rows(places, *splits).loc[lambda table: table["filename"].str.endswith(".jpg")]
        assert (gap(images, images) < 0).sum() == len(images)  # each overlaps itself alone
    assert gap(rows(places, TRAIN), rows(places, VAL)).min() >= 32
    assert gap(*(rows(places, split) for split in TILES)).min() >= 64
    for splits, west, east in (((POOL,), 12 * 15, 150 * 15), ((TRAIN, VAL), 162 * 15, 5400)):
        table = rows(places, *splits)
        assert table["left"].min() >= west and (table["left"] + 32).max() <= east
        assert table["top"].min() >= 12 * 15 and (table["top"] + 32).max() <= 150 * 15


# --- Problem 2


@pytest.mark.parametrize("split", TILES)
def test_tiles_are_pairs_of_their_place_that_keep_their_rules(earth, rasters, places, split):
    where, total = rows(places, split).set_index("filename"), np.zeros(7)
    names = sorted(path.name for path in (earth / split).iterdir())
    assert names == [f"{i:04d}_{end}" for i in range(len(names) // 2) for end in ("mask.png", "sat.jpg")]
    for mask, sat in zip(names[::2], names[1::2]):
        with Image.open(earth / split / mask) as picture, Image.open(earth / split / sat) as image:
            assert picture.mode == image.mode == "RGB" and picture.size == image.size == (128, 128)
            classes, stray = landcover.decode(np.asarray(picture))
        top, left, size = where.loc[mask, ["top", "left", "size"]]
        place = windows.COURSE_CLASS[rasters[1][top : top + size, left : left + size]]
        assert stray == 0 and np.array_equal(classes, place.repeat(2, 0).repeat(2, 1))
        part = np.bincount(classes.ravel(), minlength=7) / classes.size
        assert part[landcover.UNKNOWN] < 0.5 and np.count_nonzero(part[:6]) >= 2, mask
        total += part
    urban, *others, unknown = total / (len(names) // 2)
    assert urban == 0 and unknown < 0.05 < min(others)


# --- image and land cover


def test_land_cover_lies_exactly_on_the_image(rasters):
    """Of all shifts by up to three pixels, none lets water and blue agree better than none."""
    image, labels = rasters
    blue = image[..., 2].astype(int) - image[..., :2].max(axis=-1) > 8
    for top, bottom, left, right in ((600, 950, 2500, 3300), (1450, 2000, 4300, 5050)):
        water = labels[top:bottom, left:right] == 0
        agreement = {}
        for y, x in itertools.product(range(-3, 4), repeat=2):
            agreement[y, x] = np.mean(water == blue[top + y : bottom + y, left + x : right + x])
        assert max(agreement, key=agreement.get) == (0, 0) and agreement[0, 0] > 0.98
