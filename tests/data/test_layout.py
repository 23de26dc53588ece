"""The course's folder layout: splits, labels, limits and fingerprints (faults are in test_check)."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib.data import hashes, images, layout
from hw1lib.data.check import report
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import OFFICE


def find(root, only="", **limits):
    return layout.find(root, Data(**limits), only)


def by_file(split):
    return dict(zip(split.files, split.labels.tolist(), strict=True))


def test_counts_classes_and_numbers_come_from_the_data(course_data):
    data = find(course_data)
    one, two = data.problem1, data.problem2
    assert one.pool.counts() == {"100": 6, "200": 6} and one.classes == OFFICE and data.has == {1: True, 2: True}
    assert (one.train.counts(), one.val.counts()) == (dict.fromkeys(OFFICE, 4), dict.fromkeys(OFFICE, 2))
    assert all(name.startswith(one.classes[label]) for name, label in by_file(one.train).items())
    assert two.train.numbers == ("0001", "0002", "0003", "0004") and len(two.validation) == 3
    files = (*one.pool.paths, *one.train.paths, *one.val.paths, *two.train.paths)
    assert all(path.is_file() for path in files) and len(set(files)) == 12 + 12 + 6 + 8
    assert "12 images of 3 classes" in repr(one.train) and str(two.train.folder) in repr(two.train)


@pytest.mark.parametrize("gaps", [{0: 3, 1: 17, 2: 64}, {0: 64, 1: -1, 2: 3}])
def test_labels_become_contiguous_and_the_numbers_in_the_csv_are_kept(course_data, gaps):
    """The original's labels skip numbers, and predictions are written with the CSV's own."""
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


def test_a_class_without_a_common_prefix_is_called_by_its_number():
    """So two classes never share a caption, which would lose one of them in counts()."""

    def counts(names, labels):
        return layout.labelled_split(Path(), pd.DataFrame({"filename": names, "label": labels})).counts()

    files = ["Cup1.jpg", "Pen1.jpg", "Mug1.jpg", "Pen2.jpg", "12.jpg"]
    assert counts(files, [5, 6, 5, 6, 7]) == {"5": 2, "Pen": 2, "7": 1}
    assert counts([f"img{i:03d}.jpg" for i in range(12)], [0, 1, 2] * 4) == {"0": 4, "1": 4, "2": 4}


def test_the_pool_needs_no_labels_and_the_supervised_backbone_is_optional(course_data):
    assert find(course_data).problem1.supervised_backbone is None
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    (folder := course_data / "p1_data" / "mini" / "train").joinpath("00003.jpg").rename(folder / "00003.JPG")
    (file := course_data / "p1_data" / "pretrain_model_SL.pt").write_bytes(b"")
    one = find(course_data).problem1
    assert one.pool.labels is None and one.pool.counts() == {} and one.pool.labelled() is None
    rest = one.pool.without(one.pool.take(3))
    assert len(one.pool) == 12 and len(rest) == 9 and rest.labels is None and one.supervised_backbone == file


@pytest.mark.parametrize("number", [1, 2])
def test_one_problem_is_enough_and_can_be_asked_for(course_data, number):
    asked = find(course_data, only=f"problem{number}")
    shutil.rmtree(course_data / f"p{3 - number}_data")
    for data in (asked, find(course_data)):
        assert data.has == {1: number == 1, 2: number == 2}
    with pytest.raises(UserError, match=f"no p{3 - number}_data/"):
        find(course_data, only=f"problem{3 - number}")
    neither = "neither p1_data/ nor p2_data/.*--data-root"
    for folder, words in (("nowhere", "no data folder .*nowhere"), (f"p{number}_data", neither), ("..", neither)):
        with pytest.raises(UserError, match=words):
            find(course_data / folder)


@pytest.mark.parametrize("limit", [2, 5, 500])
def test_a_part_is_spread_evenly_and_without_it_the_rest_remains(course_data, limit):
    full = find(course_data).problem1.train
    part = find(course_data, office_limit=limit).problem1.train
    rest = full.without(part)
    assert len(part) == min(limit, 12) == 12 - len(rest) and part.classes == rest.classes == full.classes
    assert by_file(part) | by_file(rest) == by_file(full) and by_file(full.without(rest)) == by_file(part)
    for split in (part, rest):
        assert list(split.files) == [name for name in full.files if name in split.files]
    if limit == 5:
        assert max(part.counts().values()) - min(part.counts().values()) <= 1


def test_limits_cut_only_their_own_part_and_a_tile_beyond_is_named_with_the_setting(course_data):
    data = find(course_data, pool_limit=2, tile_limit=2)
    assert len(data.problem1.pool) == 2 and len(data.problem1.train) == 12
    tiles = data.problem2.train
    assert tiles.numbers == ("0001", "0002") and tiles.index("0002", "everything.images") == 1
    with pytest.raises(UserError, match=r"everything\.images.*'0003'"):
        tiles.index("0003", "everything.images")


def test_names_of_tiles_may_be_in_upper_or_lower_case(course_data):
    """Hidden files are ignored."""
    folder = course_data / "p2_data" / "train"
    expected = images.load_tiles(find(course_data).problem2.train)
    for name, new in (("0001_sat.jpg", "0001_SAT.JPG"), ("0003_mask.png", "0003_Mask.PNG")):
        (folder / name).rename(folder / new)
    for name in ("._0001_sat.jpg", ".DS_Store", "Thumbs.db", "._0009_MASK.PNG"):
        (folder / name).write_bytes(b"")
    tiles = find(course_data, tile_limit=3).problem2.train
    assert tiles.numbers == ("0001", "0002", "0003") and tiles.sat("0001").name == "0001_SAT.JPG"
    assert all(np.array_equal(one, two[:3]) for one, two in zip(images.load_tiles(tiles), expected))
    assert report.examine(course_data, progress=False)["p2"]["pairs"]["train"] == 4


def test_the_fingerprint_depends_on_names_contents_labels_and_order(course_data):
    folder = course_data / "p1_data" / "mini" / "train"
    table = folder.with_suffix(".csv")

    def after(edit=str):
        table.write_text(edit(table.read_text()))
        whole = hashes.folder_fingerprint(course_data / "p1_data")
        return hashes.fingerprint(find(course_data).problem1.pool), whole

    prints = [after()]
    Image.new("RGB", (8, 8)).save(folder / "00001.jpg")
    prints.append(after())
    (folder / "00001.jpg").rename(folder / "00099.jpg")
    prints.append(after(lambda text: text.replace("00001", "00099")))
    prints.append(after(lambda text: text.replace("\n0,00099.jpg,100\n", "\n") + "0,00099.jpg,100\n"))
    prints.append(after(lambda text: text.replace("00099.jpg,100", "00099.jpg,200")))
    assert all(len(set(kind)) == 5 for kind in zip(*prints)) and prints[-1] == after()
    (folder / "Thumbs.db").write_bytes(b"")
    assert after(lambda text: "\ufeff" + text.replace("\n", "\r\n"))[0] == prints[-1][0]
