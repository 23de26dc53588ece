"""A new split of the tiles by scene, on scenes of the Earth whose neighbours are known."""

import errno
import itertools
import json
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from hw1lib import paths
from hw1lib.chapters import ch00_data as chapter
from hw1lib.data import csv_rows, landcover, layout
from hw1lib.data.check import resplit
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import hw1lib, one_paragraph, picture
from tools import earth_sample as sample
from tools import earth_windows as windows

SCENE, TILE, SIDE = 3, 64, 128  # tiles along a scene, pixels of the Earth, pixels of a tile


@pytest.fixture(scope="module")
def earth():
    return sample.read_rasters(*sample.fetch_wheels(paths.WHEELS))


@pytest.fixture(scope="module")
def random_split(earth, tmp_path_factory):
    """Tiles of separate scenes of land in random splits: the data root, and where on Earth each file lies."""
    image, labels = earth
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
        colours = landcover.encode(windows.COURSE_CLASS[labels[window]])
        for ending, array, how in (("sat.jpg", image, 2), ("mask.png", None, 0)):
            pixels = colours if array is None else array[window]
            picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling(how))
            picture.save(folder / f"{number:04d}_{ending}", **({"quality": 90} if how else {}))
        places[f"{folder.name}/{number:04d}_sat.jpg"] = (land[scene][0] // TILE + y, land[scene][1] // TILE + x)
    return root, places


@pytest.fixture(scope="module")
def by_scene(random_split, tmp_path_factory):
    """The same tiles split by scene: the data root, and the facts about it."""
    target = tmp_path_factory.mktemp("new") / "by scene"
    return target, resplit.by_scene(random_split[0], target, progress=False)


def origins(target):
    rows = csv_rows.read_rows(target / csv_rows.GROUPS, "split", "filename", "group", "origin")
    return rows[rows["filename"].str.endswith("_sat.jpg")]


def touching(one, two):
    return abs(one[0] - two[0]) + abs(one[1] - two[1]) == 1


def test_no_validation_tile_shares_a_border_with_a_training_tile(random_split, by_scene):
    rows, places = origins(by_scene[0]), random_split[1]
    train, validation = (
        [places[origin] for origin in rows.loc[rows["split"] == f"p2_data/{name}", "origin"]]
        for name in ("train", "validation")
    )
    assert not [pair for pair in itertools.product(train, validation) if touching(*pair)]
    before = [[place for name, place in places.items() if name.startswith(of)] for of in ("train", "validation")]
    assert len([pair for pair in itertools.product(*before) if touching(*pair)]) > len(before[1])


def test_the_new_split_has_about_the_same_size_and_classes(random_split, by_scene):
    root, (target, facts) = random_split[0], by_scene
    old, new = (layout.find(folder, Data()).problem2 for folder in (root, target))
    assert len(new.train) + len(new.validation) + facts["left_out"] == len(old.train) + len(old.validation)
    assert 0.8 * len(old.validation) <= len(new.validation) == facts["validation"] <= len(old.validation)
    assert facts["classes_moved"] < 0.15 and facts["left_out"] < 0.05 * len(old.train)
    assert not set(new.train.groups) & set(new.validation.groups)
    for tiles in (new.train, new.validation):
        for number in tiles.numbers:
            assert tiles.sat(number).stat().st_nlink > 1  # a hard link
    assert facts["leaking"] <= facts["null"] < facts["leaking_before"]
    text = chapter.split(target)
    assert f"{facts['groups']:,} groups" in text and "not the data's own" in text
    assert "the data's own split" in chapter.split(root)


@pytest.mark.slow
def test_the_new_split_is_always_the_same_and_never_overwritten(random_split, by_scene, tmp_path):
    again = resplit.by_scene(random_split[0], tmp_path / "again", progress=False)
    assert again == by_scene[1] == json.loads((tmp_path / "again" / layout.SPLIT).read_text())
    assert origins(tmp_path / "again").equals(origins(by_scene[0]))
    done = hw1lib("data", "split", "--by", "scene", "--data-root", random_split[0], "--out", tmp_path / "again")
    assert done.returncode == 1 and "already exists" in one_paragraph(done.stderr)


def test_groups_that_would_be_too_large_are_cut_at_their_weakest_links():
    """A hundred tiles in a row, at most ten in a group."""
    strengths = np.random.default_rng(0).random(99)
    links = [(float(s), i, i + 1) for i, s in enumerate(strengths)]
    groups, cut = resplit.group_tiles(100, links)
    assert max(Counter(groups.tolist()).values()) == 10
    assert len(cut) == len(set(groups)) - 1
    kept = [s for s, one, two in links if groups[one] == groups[two]]
    assert np.mean([s for s, one, two in links if groups[one] != groups[two]]) < np.mean(kept)
    assert resplit.group_tiles(3, [])[0].tolist() == [0, 1, 2]


def test_validation_consists_of_whole_groups_with_similar_classes():
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), random.integers(1, 9, 60))
    classes = random.integers(0, 1000, (60, 7))[groups] * random.integers(0, 2, (len(groups), 1))
    wanted = classes[: len(groups) // 8].sum(axis=0)
    chosen = resplit.choose_validation(groups, classes, 40, wanted)
    assert 36 <= chosen.sum() <= 40 and all(len(set(chosen[groups == g])) == 1 for g in range(60))
    pixels = classes[chosen].sum(axis=0)
    assert np.abs(pixels / pixels.sum() - wanted / wanted.sum()).sum() / 2 < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["EXDEV", "EPERM", "EMLINK", "EOPNOTSUPP"])
def test_files_that_cannot_be_linked_are_copied(random_split, by_scene, tmp_path, monkeypatch, reason):
    """Another disk, another owner, or a file system without links."""

    def refuse(source, target):
        raise OSError(getattr(errno, reason), "refused", source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    assert resplit.by_scene(random_split[0], tmp_path / "copies", progress=False) == by_scene[1]
    for path in by_scene[0].rglob("*.*g"):
        copy = tmp_path / "copies" / path.relative_to(by_scene[0])
        assert copy.read_bytes() == path.read_bytes() and copy.stat().st_nlink == 1


def test_a_split_inside_its_own_data_is_refused(course_data):
    for name in ("p2_data/train/new", "p2_data/new", "p1_data/x/y", "z/../p2_data/new"):
        with pytest.raises(UserError, match="is inside .*p[12]_data.*Choose a folder outside"):
            resplit.by_scene(course_data, course_data / name, progress=False)
        assert not (course_data / name).exists()


def test_tiles_of_a_single_place_cannot_be_split(tmp_path):
    """Copies show one place, too; nothing is written."""
    for name in ("train", "validation"):
        folder = layout.Tiles(tmp_path / "p2_data" / name, ())
        folder.folder.mkdir(parents=True)
        for number in ("0001", "0002", "0003")[: 3 if name == "train" else 1]:
            picture(1, (64, 64)).save(folder.sat(number), quality=95)
            Image.new("RGB", (64, 64), (0, 255, 0)).save(folder.mask(number))
    with pytest.raises(UserError, match="4 tiles fall into 1 groups"):
        resplit.by_scene(tmp_path, tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()
