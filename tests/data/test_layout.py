"""The course's folder layout: what is read from it, and what is said of its faults (most are in test_check)."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib.data import hashes, images, layout
from hw1lib.data import split as splitting
from hw1lib.data.check import doctor
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import OFFICE


def find(root, only="", **limits):
    return layout.find(root, Data(**limits), only)


def by_file(split):
    return dict(zip(split.files, split.labels.tolist(), strict=True))


# --- what is there


def test_counts_classes_and_numbers_come_from_the_data(course_data):
    found = find(course_data)
    one, two = found.problem1, found.problem2
    assert len(one.pool) == 12 and one.pool.counts() == {"100": 6, "200": 6}
    assert one.classes == OFFICE and one.supervised_backbone is None and found.has == {1: True, 2: True}
    assert (one.train.counts(), one.val.counts()) == (dict.fromkeys(OFFICE, 4), dict.fromkeys(OFFICE, 2))
    assert all(name.startswith(one.classes[label]) for name, label in by_file(one.train).items())
    assert two.train.numbers == ("0001", "0002", "0003", "0004") and len(two.validation) == 3
    every = (*one.pool.paths, *one.train.paths, *one.val.paths, *two.train.paths)
    assert all(path.is_file() for path in every) and len(set(every)) == 12 + 12 + 6 + 8
    assert "12 images of 3 classes" in repr(one.train) and str(two.train.folder) in repr(two.train)


@pytest.mark.parametrize("gaps", [{0: 0, 1: 1, 2: 2}, {0: 3, 1: 17, 2: 64}, {0: 64, 1: -1, 2: 3}])
def test_labels_become_contiguous_and_the_csvs_own_numbers_are_kept(course_data, gaps):
    """The original's labels skip numbers, and a prediction has to be written with them; parts keep them, too."""
    given = {}
    for split in ("train", "val"):
        table = course_data / "p1_data" / "office" / f"{split}.csv"
        rows = pd.read_csv(table).assign(label=lambda rows: rows["label"].map(gaps))
        rows.to_csv(table, index=False)
        given |= dict(zip(rows["filename"], rows["label"]))
    part, full = find(course_data, office_limit=5).problem1.train, find(course_data).problem1
    for split in (full.train, full.val, part, full.train.take(2), full.train.without(part)):
        assert all(split.numbers[label] == given[name] for name, label in by_file(split).items())
        assert split.numbers == tuple(sorted(gaps.values())) and all(type(number) is int for number in split.numbers)
    assert sorted(set(full.train.labels)) == [0, 1, 2] and full.train.labels.dtype == np.int64
    assert set(full.classes) == set(OFFICE) and full.pool.numbers == (100, 200)


def test_a_class_without_shared_letters_is_called_by_its_number():
    """So two classes never share a name: counts would lose one."""

    def counts(names, labels):
        return layout.labelled(Path(), pd.DataFrame({"filename": names, "label": labels})).counts()

    files = ["Cup1.jpg", "Pen1.jpg", "Mug1.jpg", "Pen2.jpg", "12.jpg"]
    assert counts(files, [5, 6, 5, 6, 7]) == {"5": 2, "Pen": 2, "7": 1}
    assert counts([f"img{i:03d}.jpg" for i in range(12)], [0, 1, 2] * 4) == {"0": 4, "1": 4, "2": 4}


def test_the_pool_needs_no_labels_and_the_courses_backbone_is_found(course_data):
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    (folder := course_data / "p1_data" / "mini" / "train").joinpath("00003.jpg").rename(folder / "00003.JPG")
    file = course_data / "p1_data" / "pretrain_model_SL.pt"
    file.write_bytes(b"")
    one = find(course_data).problem1
    assert one.pool.labels is None and one.pool.counts() == {} and one.pool.numbers == () and len(one.pool) == 12
    assert one.supervised_backbone == file
    part = one.pool.take(3)
    rest = one.pool.without(part)
    assert rest.labels is None and {*rest.files, *part.files} == {*one.pool.files} and len(rest) == 9


@pytest.mark.parametrize("there", [1, 2])
def test_one_problem_alone_is_enough_and_can_be_asked_for(course_data, there):
    asked = find(course_data, only=f"problem{there}")
    shutil.rmtree(course_data / f"p{3 - there}_data")
    for found in (asked, find(course_data)):
        assert found.has == {1: there == 1, 2: there == 2}
    with pytest.raises(UserError, match=f"no p{3 - there}_data/"):
        find(course_data, only=f"problem{3 - there}")


@pytest.mark.parametrize("limit", [2, 5, 11, 12, 500])
def test_a_part_is_spread_evenly_and_what_is_without_it_is_the_rest(course_data, limit):
    full = find(course_data).problem1.train
    part = find(course_data, office_limit=limit).problem1.train
    rest = full.without(part)
    assert len(part) == min(limit, 12) == 12 - len(rest) and part.classes == rest.classes == full.classes
    assert by_file(part) | by_file(rest) == by_file(full)
    for split in (part, rest):
        assert list(split.files) == [name for name in full.files if name in split.files]
        assert split.labels.dtype == full.labels.dtype and all(path.is_file() for path in split.paths)
    assert by_file(full.without(rest)) == by_file(part)
    if limit == 5:
        assert max(part.counts().values()) - min(part.counts().values()) <= 1


def test_limits_cut_only_their_own_part_and_a_tile_beyond_is_named_with_the_setting(course_data):
    found = find(course_data, pool_limit=2, tile_limit=2)
    assert len(found.problem1.pool) == 2 and len(found.problem1.train) == 12
    tiles = found.problem2.train
    assert tiles.numbers == ("0001", "0002") and tiles.index("0002", "everything.images") == 1
    with pytest.raises(UserError, match=r"everything\.images.*'0003'"):
        tiles.index("0003", "everything.images")


def test_tiles_are_found_in_upper_and_lower_case_and_keep_the_names_of_their_files(course_data):
    """Their numbers, pixels and order are the same; hidden files are none of them."""
    folder = course_data / "p2_data" / "train"
    before, usual = find(course_data).problem2.train, layout.Tiles(folder, ("0001", "0002", "0003", "0004"))
    expected = images.load_tiles(before)
    assert before == usual
    for name, new in (("0001_sat.jpg", "0001_SAT.JPG"), ("0003_mask.png", "0003_Mask.PNG")):
        (folder / name).rename(folder / new)
    for name in ("._0001_sat.jpg", ".DS_Store", "Thumbs.db", "._0009_MASK.PNG"):
        (folder / name).write_bytes(b"")
    tiles = find(course_data, tile_limit=3).problem2.train
    assert tiles.numbers == ("0001", "0002", "0003") and tiles.sat("0001").name == "0001_SAT.JPG"
    assert all(path.is_file() for path in tiles.paths)
    assert all(np.array_equal(one, two[:3]) for one, two in zip(images.load_tiles(tiles), expected))
    found = doctor.examine(course_data, progress=False)
    assert found["errors"] == found["warnings"] == [] and found["p2"]["pairs"]["train"] == 4
    copies = splitting.by_scene(course_data, course_data / "anew", progress=False)
    assert copies["train"] + copies["validation"] + copies["left_out"] == 7
    shutil.copy(folder / "0002_sat.jpg", folder / "0002_sat.JPG")
    with pytest.raises(UserError, match="0002_sat.jpg.* upper and lower case"):
        find(course_data)


# --- faults


def test_a_folder_that_is_not_there_or_too_deep_or_too_high(course_data):
    neither = "neither p1_data/ nor p2_data/.*--data-root"
    for folder, words in (("nowhere", "no data folder .*nowhere"), ("p1_data", neither), ("..", neither)):
        with pytest.raises(UserError, match=words):
            find(course_data / folder)


# --- fingerprints


def test_the_fingerprint_knows_names_contents_labels_and_order(course_data):
    folder = course_data / "p1_data" / "mini" / "train"
    table = folder.with_suffix(".csv")

    def now():
        whole = hashes.folder_fingerprint(course_data / "p1_data")
        return hashes.fingerprint(find(course_data).problem1.pool), whole

    def rewritten(edit):
        table.write_text(edit(table.read_text()))
        return now()

    prints = [now()]
    Image.new("RGB", (8, 8)).save(folder / "00001.jpg")
    prints.append(now())
    (folder / "00001.jpg").rename(folder / "00099.jpg")
    prints.append(rewritten(lambda text: text.replace("00001", "00099")))
    prints.append(rewritten(lambda text: text.replace("\n0,00099.jpg,100\n", "\n") + "0,00099.jpg,100\n"))
    prints.append(rewritten(lambda text: text.replace("00099.jpg,100", "00099.jpg,200")))
    assert all(len(set(kind)) == 5 for kind in zip(*prints)) and prints[-1] == now()
    (folder / "Thumbs.db").write_bytes(b"")  # nor does it know other files and what spreadsheet programs do
    assert rewritten(lambda text: "\ufeff" + text.replace("\n", "\r\n"))[0] == prints[-1][0]


def test_a_fingerprint_is_the_same_in_every_version(tmp_path):
    """It is part of every step's key."""
    for name in ("a.jpg", "b.jpg", "train/c.png", "train/weights.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("c" if "/" in name else name)
    files = ("a.jpg", "b.jpg")
    split = layout.Split(tmp_path, files, np.array([1, 0], dtype=np.int64), ("x", "y"), (0, 1))
    bare = hashes.fingerprint(layout.Split(tmp_path, files))
    assert hashes.fingerprint(split) == "ca31d44090571e3084abcdb32a8cf9fb2c938e7941c7c051a0f174cebeac8a54"
    assert bare == "83873bc4bef1d9567138736106ae02b24fec952423c03a40cfe06cdea078f135"
    assert hashes.folder_fingerprint(tmp_path) == "2b8c96e848a61943f593dd6084324b1e8b8b6f9ba4a9196b90718dcd893fbe81"
