"""The course's folder layout: what is read from it, and what is said of its faults."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib import profiles
from hw1lib.data import layout
from hw1lib.errors import UserError
from tests.conftest import OFFICE, write_labelled


def find(root, **limits):
    return layout.find(root, profiles.Data(**limits))


def relabel(root, split, names_and_labels):
    """Renames a split's images, in their order, and writes a CSV for them."""
    folder = root / "p1_data" / "office" / split
    images = sorted(folder.iterdir())
    assert len(images) == len(names_and_labels)
    for path, (name, _) in zip(images, names_and_labels):
        path.rename(folder / f"~{name}")  # no name is both old and new
    for name, _ in names_and_labels:
        (folder / f"~{name}").rename(folder / name)
    write_labelled(folder.with_suffix(".csv"), names_and_labels)


# --- what is there


def test_counts_classes_and_numbers_come_from_the_data(course_data):
    found = find(course_data)
    one, two = found.problem1, found.problem2
    assert len(one.pool) == 12 and one.pool.counts() == {"100": 6, "200": 6}
    assert one.classes == OFFICE
    assert one.train.counts() == dict.fromkeys(OFFICE, 4)
    assert one.val.counts() == dict.fromkeys(OFFICE, 2)
    assert two.train.numbers == ("0001", "0002", "0003", "0004") and len(two.validation) == 3
    assert one.supervised_backbone is None
    every = (*one.pool.paths, *one.train.paths, *one.val.paths, *two.train.paths)
    assert all(path.is_file() for path in every) and len(set(every)) == 12 + 12 + 6 + 8


def test_each_image_has_the_class_of_its_row(course_data):
    split = find(course_data).problem1.train
    for name, label in zip(split.files, split.labels):
        assert name.startswith(split.classes[label])


def test_labels_with_gaps_become_contiguous(course_data):
    """The original's labels may skip numbers; names and order stay."""
    for split in ("train", "val"):
        table = course_data / "p1_data" / "office" / f"{split}.csv"
        rows = pd.read_csv(table)
        rows["label"] = rows["label"].map({0: 3, 1: 17, 2: 64})
        rows.to_csv(table, index=False)
    one = find(course_data).problem1
    assert one.classes == OFFICE
    assert sorted(set(one.train.labels)) == [0, 1, 2] and one.train.labels.dtype == np.int64


@pytest.mark.parametrize("gaps", [{0: 0, 1: 1, 2: 2}, {0: 3, 1: 17, 2: 64}, {0: 64, 1: -1, 2: 3}])
def test_the_csvs_own_numbers_are_kept(course_data, gaps):
    """A prediction has to be written with them; parts of a split keep them, too."""
    given = {}
    for split in ("train", "val"):
        table = course_data / "p1_data" / "office" / f"{split}.csv"
        rows = pd.read_csv(table)
        rows["label"] = rows["label"].map(gaps)
        rows.to_csv(table, index=False)
        given |= dict(zip(rows["filename"], rows["label"]))
    one = find(course_data, office_limit=5).problem1
    full = find(course_data).problem1
    parts = (full.train, full.val, one.train, full.train.take(2), full.train.without(one.train))
    for split in parts:
        numbers = [split.numbers[label] for label in split.labels]
        assert numbers == [given[name] for name in split.files]
        assert all(type(number) is int for number in split.numbers)
    assert full.train.numbers == one.val.numbers == tuple(sorted(gaps.values()))
    assert full.pool.numbers == (100, 200)


def test_without_labels_there_are_no_numbers(course_data):
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    assert find(course_data).problem1.pool.numbers == ()


def test_a_class_without_shared_letters_is_called_by_its_number(course_data):
    words = ("Cup", "Pen", "Mug", "Pen", "12", "Pen")
    rows = [(f"{word}{i}.jpg", 5 + i % 2) for i, word in enumerate(words)]
    relabel(course_data, "val", rows)
    train = [(f"{'Pen' if i % 2 else 'ab'[i % 4 // 2]}{i:03d}.jpg", 5 + i % 2) for i in range(12)]
    relabel(course_data, "train", train)
    one = find(course_data).problem1
    assert one.classes == ("5", "Pen")
    assert one.val.counts() == {"5": 3, "Pen": 3}


def test_two_classes_never_share_a_name(course_data):
    """Where all files are called alike, letters name nothing: counts would lose a class."""
    for split, count in (("train", 12), ("val", 6)):
        relabel(course_data, split, [(f"img{i:03d}.jpg", i % 3) for i in range(count)])
    one = find(course_data).problem1
    assert len(set(one.classes)) == 3
    assert sum(one.train.counts().values()) == 12


def test_the_pool_needs_no_labels(course_data):
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    pool = find(course_data).problem1.pool
    assert len(pool) == 12 and pool.labels is None and pool.counts() == {}


def test_the_courses_backbone_is_found(course_data):
    file = course_data / "p1_data" / "pretrain_model_SL.pt"
    file.write_bytes(b"")
    assert find(course_data).problem1.supervised_backbone == file


@pytest.mark.parametrize("there", [1, 2])
def test_one_problem_alone_is_enough(course_data, there):
    shutil.rmtree(course_data / f"p{3 - there}_data")
    found = find(course_data)
    assert (found.problem1 is None, found.problem2 is None) == (there == 2, there == 1)


@pytest.mark.parametrize("limit", [1, 5, 11, 12, 500])
def test_a_limit_keeps_that_many_evenly(course_data, limit):
    full = find(course_data).problem1.train
    cut = find(course_data, office_limit=limit).problem1.train
    assert len(cut) == min(limit, len(full)) == len(set(cut.files))
    assert cut.classes == full.classes
    labels = dict(zip(full.files, full.labels))
    assert all(labels[name] == label for name, label in zip(cut.files, cut.labels))
    if limit == 5:
        assert max(cut.counts().values()) - min(cut.counts().values()) <= 1


def by_file(split):
    return dict(zip(split.files, split.labels.tolist(), strict=True))


@pytest.mark.parametrize("limit", [1, 5, 11])
def test_a_part_and_what_is_without_it_are_the_split(course_data, limit):
    """No file is in both or in none; each keeps its label, and the order stays."""
    full = find(course_data).problem1.train
    part = full.take(limit)
    rest = full.without(part)
    assert len(part) == limit and len(rest) == len(full) - limit
    assert not set(part.files) & set(rest.files)
    assert by_file(part) | by_file(rest) == by_file(full)
    assert list(rest.files) == [name for name in full.files if name in set(rest.files)]
    assert rest.classes == full.classes and rest.labels.dtype == full.labels.dtype
    assert all(path.is_file() for path in rest.paths)


def test_a_split_without_all_or_nothing_of_it(course_data):
    full = find(course_data).problem1.train
    assert len(full.without(full)) == 0 == len(full.without(full).labels)
    none = full.without(full)
    assert by_file(full.without(none)) == by_file(full)


def test_a_split_without_labels_is_cut_alike(course_data):
    pool = find(course_data).problem1.pool
    bare = layout.Split(pool.folder, pool.files)
    assert bare.take(3).files == pool.take(3).files
    rest = bare.without(bare.take(3))
    assert rest.labels is None and rest.files == pool.without(pool.take(3)).files


def test_limits_cut_only_their_own_part(course_data):
    found = find(course_data, pool_limit=2, tile_limit=3)
    assert len(found.problem1.pool) == 2 and len(found.problem1.train) == 12
    assert found.problem2.train.numbers == ("0001", "0002", "0003")


def test_other_files_do_not_matter(course_data):
    before = find(course_data)
    for part in ("p1_data/office/train", "p2_data/train", "p1_data/mini/train", ""):
        (course_data / part / "._.DS_Store").write_bytes(b"")
        (course_data / part / "Thumbs.db").write_bytes(b"")
    after = find(course_data)
    assert after.problem2 == before.problem2
    for split in ("pool", "train", "val"):
        one, two = getattr(before.problem1, split), getattr(after.problem1, split)
        assert layout.fingerprint(one) == layout.fingerprint(two)


# --- faults, each with the file that has it


def fails(root, *words):
    with pytest.raises(UserError) as caught:
        find(root)
    for word in words:
        assert word in str(caught.value), caught.value


def test_a_folder_that_is_not_there(tmp_path):
    fails(tmp_path / "nowhere", "nowhere")


def test_a_folder_too_deep_or_too_high(course_data):
    fails(course_data.parent, "neither p1_data/ nor p2_data/", "--data-root")
    fails(course_data / "p1_data", "neither p1_data/ nor p2_data/")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("id,filename\n0,Couch00001.jpg\n", "label"),
        ("id,label\n0,0\n", "filename"),
        ("id,filename,label\n", "every row"),
        ("", "CSV"),
        ("id,filename,label\n0,Couch00001.jpg\n", "every row"),
        ("id,filename,label\n0,,1\n", "every row"),
        ("id,filename,label\n0,Couch00001.jpg,couch\n", "whole number"),
        ("id,filename,label\n0,Couch00001.jpg,inf\n", "whole number"),
        ("id,filename,label\n0,Couch00001.jpg,99999999999999999999\n", "whole number"),
        ("id,filename,label\n0,../val/Couch00100.jpg,0\n", "../val/Couch00100.jpg"),
        ("id,filename,label\n0,/etc/hostname,0\n", "/etc/hostname"),
        ("id,filename,label\n0,..,0\n", ".."),
        ("id,filename,label\n0,Couch99999.jpg,0\n", "Couch99999.jpg"),
        ("id,filename,label\n0,Couch00001.jpg,0\n1,a,b,c,d\n", "CSV"),
        (b"id,filename,label\n0,Couch\xff.jpg,0\n", "CSV"),
    ],
)
def test_a_faulty_table_is_named(course_data, content, word):
    table = course_data / "p1_data" / "office" / "train.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    fails(course_data, "train.csv", word)


def test_a_label_between_two_numbers_is_refused_not_cut(course_data):
    table = course_data / "p1_data" / "office" / "train.csv"
    rows = pd.read_csv(table)
    rows["label"] = rows["label"] + 0.5
    rows.to_csv(table, index=False)
    fails(course_data, "train.csv", "whole number")


def test_a_table_with_windows_line_ends_and_a_byte_order_mark(course_data):
    """As spreadsheet programs save it."""
    expected = find(course_data).problem1.val
    table = course_data / "p1_data" / "office" / "val.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    assert layout.fingerprint(find(course_data).problem1.val) == layout.fingerprint(expected)


def test_a_missing_table_is_named(course_data):
    (course_data / "p1_data" / "office" / "val.csv").unlink()
    fails(course_data, "val.csv", "data/README.md")


def test_a_missing_image_is_named(course_data):
    (course_data / "p1_data" / "office" / "train" / "Mug00002.jpg").unlink()
    fails(course_data, "train.csv", "Mug00002.jpg", "1 files")


def test_an_empty_pool_is_named(course_data):
    shutil.rmtree(course_data / "p1_data" / "mini")
    fails(course_data, "mini/train")


def test_a_class_in_one_split_only_is_named(course_data):
    table = course_data / "p1_data" / "office" / "val.csv"
    rows = pd.read_csv(table)
    rows[rows["label"] != 1].to_csv(table, index=False)
    fails(course_data, "Alarm_Clock", "val.csv")


def test_missing_masks_are_counted_and_named(course_data):
    for number in ("0002", "0003"):
        (course_data / "p2_data" / "train" / f"{number}_mask.png").unlink()
    fails(course_data, "2 tiles", "0002_mask.png")


def test_a_split_without_tiles_is_named(course_data):
    shutil.rmtree(course_data / "p2_data" / "validation")
    fails(course_data, "p2_data/validation")


def test_a_tile_that_is_not_in_use_is_named_with_the_setting(course_data):
    tiles = find(course_data, tile_limit=2).problem2.train
    assert tiles.index("0002", "everything.images") == 1
    with pytest.raises(UserError, match=r"everything\.images.*'0003'"):
        tiles.index("0003", "everything.images")


# --- fingerprints


def test_the_fingerprint_knows_names_contents_and_labels(course_data):
    def now():
        return layout.fingerprint(find(course_data).problem1.train)

    folder = course_data / "p1_data" / "office"
    prints = [now()]
    Image.new("RGB", (8, 8)).save(folder / "train" / "Mug00001.jpg")
    prints.append(now())
    table = folder / "train.csv"
    text = table.read_text()
    (folder / "train" / "Mug00001.jpg").rename(folder / "train" / "Mug00009.jpg")
    table.write_text(text.replace("Mug00001", "Mug00009"))
    prints.append(now())
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")  # another order
    prints.append(now())
    assert len(set(prints)) == 4
    assert prints[-1] == now()


def test_the_fingerprint_knows_a_label_that_moved(course_data):
    """Names and order stay, and so do the classes."""
    before = find(course_data).problem1.pool
    table = course_data / "p1_data" / "mini" / "train.csv"
    table.write_text(table.read_text().replace("00001.jpg,100", "00001.jpg,200"))
    after = find(course_data).problem1.pool
    assert (before.files, before.classes) == (after.files, after.classes)
    assert layout.fingerprint(before) != layout.fingerprint(after)
