"""A new split of the tiles by scene, on scenes of the Earth whose neighbours are known."""

import errno
import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image

from hw1lib.chapters import ch00_data as chapter
from hw1lib.data import csv_rows, landcover, layout
from hw1lib.data.check import resplit
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import picture, refused
from tools import earth_windows as windows

SCENE, TILE, SIDE = 3, 64, 128  # tiles along a scene, pixels of the Earth, pixels of a tile


@pytest.fixture(scope="module")
def random_split(rasters, tmp_path_factory):
    """Tiles of separate scenes of land in random splits: the data root, and where on Earth each file lies."""
    image, labels = rasters
    size = SCENE * TILE
    tops, lefts = (range(0, side - size, size + TILE) for side in labels.shape)
    land = [p for p in itertools.product(tops, lefts) if (labels[p[0] :, p[1] :][:size, :size] != 0).mean() > 0.98]
    root, random = tmp_path_factory.mktemp("random") / "data", np.random.default_rng(0)
    places, tiles = {}, [(n, y, x) for n in range(len(land)) for y in range(SCENE) for x in range(SCENE)]
    for number, at in enumerate(random.permutation(len(tiles))):
        scene, y, x = tiles[at]
        folder = root / "p2_data" / ("validation" if number % 4 == 0 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        top, left = land[scene][0] + y * TILE, land[scene][1] + x * TILE
        window = np.s_[top : top + TILE, left : left + TILE]
        tile, mask = image[window], landcover.encode(windows.COURSE_CLASS[labels[window]])
        tile = Image.fromarray(tile).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        tile.save(folder / f"{number:04d}_sat.jpg", quality=90)
        mask = Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        mask.save(folder / f"{number:04d}_mask.png")
        places[f"{folder.name}/{number:04d}_sat.jpg"] = top // TILE, left // TILE
    return root, places


@pytest.fixture(scope="module")
def by_scene(random_split, tmp_path_factory):
    """The same tiles split by scene: the data root, and the facts about it."""
    target = tmp_path_factory.mktemp("new") / "by scene"
    return target, resplit.by_scene(random_split[0], target, progress=False)


def origins(target):
    rows = csv_rows.read_rows(target / csv_rows.GROUPS, "split", "filename", "group", "origin")
    return rows[rows["filename"].str.endswith("_sat.jpg")]


def touching(ones, others):
    return [p for p in itertools.product(ones, others) if abs(p[0][0] - p[1][0]) + abs(p[0][1] - p[1][1]) == 1]


@pytest.mark.slow
def test_no_validation_tile_shares_a_border_with_a_training_tile(random_split, by_scene):
    rows, places = origins(by_scene[0]), random_split[1]
    train, validation = (
        [places[origin] for origin in rows.loc[rows["split"] == f"p2_data/{name}", "origin"]]
        for name in ("train", "validation")
    )
    assert not touching(train, validation)
    before = [[place for name, place in places.items() if name.startswith(of)] for of in ("train", "validation")]
    assert len(touching(*before)) > len(before[1])


@pytest.mark.slow
def test_the_new_split_has_about_the_same_size_and_classes(random_split, by_scene):
    root, (target, facts) = random_split[0], by_scene
    old, new = (layout.find(folder, Data()).problem2 for folder in (root, target))
    assert len(new.train) + len(new.validation) + facts["left_out"] == len(old.train) + len(old.validation)
    assert 0.8 * len(old.validation) <= len(new.validation) == facts["validation"] <= len(old.validation)
    assert facts["classes_moved"] < 0.15 and facts["left_out"] < 0.05 * len(old.train)
    assert not set(new.train.groups) & set(new.validation.groups)
    for path in (*new.train.paths, *new.validation.paths):
        assert path.stat().st_nlink > 1  # a hard link
    assert facts["leaking"] <= facts["null"] < facts["leaking_before"]
    text = chapter.split(target)
    assert f"{facts['groups']:,} groups" in text and "not the data's own" in text
    assert "the data's own split" in chapter.split(root)


@pytest.mark.slow
def test_the_split_is_always_the_same_even_as_copies_and_never_overwritten(
    random_split, by_scene, tmp_path, monkeypatch, capsys
):
    """Another disk, another owner, or a file system without links: files are copied."""

    def refuse(source, target):
        raise OSError(errno.EXDEV, "refused", source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "copies"
    facts = resplit.by_scene(random_split[0], target, progress=False)
    assert facts == by_scene[1] == json.loads((target / layout.SPLIT).read_text())
    assert origins(target).equals(origins(by_scene[0]))
    for path in by_scene[0].rglob("*.*g"):
        copy = target / path.relative_to(by_scene[0])
        assert copy.read_bytes() == path.read_bytes() and copy.stat().st_nlink == 1
    words = "data", "split", "--by", "scene", "--data-root", random_split[0], "--out", target
    assert "already exists" in refused(capsys, *words)


def test_groups_that_would_be_too_large_are_cut_at_their_weakest_links():
    """A hundred tiles in a row, at most ten in a group."""
    strengths = np.random.default_rng(0).random(99)
    links = [(float(s), i, i + 1) for i, s in enumerate(strengths)]
    groups, cut = resplit.group_tiles(100, links)
    assert np.bincount(groups).max() == 10 and len(cut) == len(set(groups)) - 1
    kept = [s for s, one, two in links if groups[one] == groups[two]]
    assert np.mean([s for s, one, two in links if groups[one] != groups[two]]) < np.mean(kept)
    assert resplit.group_tiles(3, [])[0].tolist() == [0, 1, 2]


def test_a_split_inside_its_own_data_is_refused(course_data):
    for name in ("p2_data/train/new", "p1_data/x/y", "z/../p2_data/new"):
        with pytest.raises(UserError, match="is inside p1_data or p2_data.*Choose a folder outside"):
            resplit.by_scene(course_data, course_data / name, progress=False)
        assert not (course_data / name).exists()


def test_tiles_of_a_single_place_cannot_be_split(tmp_path):
    """Copies show one place, too; nothing is written."""
    for name, count in (("train", 3), ("validation", 1)):
        tiles = layout.Tiles(tmp_path / "p2_data" / name, ("0001", "0002", "0003")[:count])
        tiles.folder.mkdir(parents=True)
        for number in tiles.numbers:
            picture(1, (64, 64)).save(tiles.sat(number), quality=95)
            Image.new("RGB", (64, 64), (0, 255, 0)).save(tiles.mask(number))
    with pytest.raises(UserError, match="4 tiles fall into 1 groups"):
        resplit.by_scene(tmp_path, tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()
