"""The data doctor: each fault is found, named and weighed, and clean data passes."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib import cli, paths
from hw1lib.data import landcover, layout
from hw1lib.data.check import check
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import picture, save_oddly
from tests.data.test_leakage import land


def diagnose(root):
    return check.examine(root, progress=False)


def change(table, edit):
    """Rewrites a CSV by a function of its rows."""
    edit(pd.read_csv(table)).to_csv(table, index=False)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


def redraw(path, colour, box=(0, 0, 4, 4)):
    """Paints a box of a mask."""
    mask = Image.open(path).convert("RGB")
    mask.paste(colour, box)
    mask.save(path)


def resize(path, size):
    Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)


# --- clean data


def test_clean_data_passes(course_data):
    found = diagnose(course_data)
    assert found["errors"] == found["warnings"] == []
    one, two = found["p1"], found["p2"]
    assert [one[name]["images"] for name in ("pool", "train", "val")] == [12, 12, 6]
    assert one["train"]["classes"] == dict.fromkeys(("Couch", "Alarm_Clock", "Mug"), 4)
    assert one["train"]["smallest"] == one["train"]["largest"] == [32, 32]
    assert one["train"]["modes"] == {"RGB": 12}
    assert (one["val"]["lowest_label"], one["val"]["highest_label"]) == (0, 2)
    assert two["pairs"] == {"train": 4, "validation": 3}
    assert two["stray_pixels"] == 0 and two["stray_files"] == []
    assert set(two["leakage"]) == {"tiles", "of", "null"} and two["leakage"]["of"] == 3
    assert sum(two["train"]["classes"].values()) == pytest.approx(1, abs=1e-5)
    assert list(two["train"]["classes"]) == list(landcover.CLASSES)


def test_what_was_found_is_plain_json(course_data):
    (course_data / "p2_data" / "train" / "0001_mask.png").unlink()
    found = diagnose(course_data)
    assert set(found) == {"errors", "warnings", "p1", "p2"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_problems_can_be_examined_alone(course_data):
    one = check.problem1(course_data / "p1_data", progress=False)
    two = check.problem2(course_data / "p2_data", progress=False)
    found = diagnose(course_data)
    assert isinstance(one, check.Diagnosis) and one.errors == two.errors == []
    assert (one.facts, two.facts) == (found["p1"], found["p2"])


@pytest.mark.parametrize("there", [1, 2])
def test_one_problem_alone_is_enough(course_data, there):
    shutil.rmtree(course_data / f"p{3 - there}_data")
    found = diagnose(course_data)
    assert found["errors"] == [] and found[f"p{3 - there}"] is None and found[f"p{there}"]


def test_a_pool_without_labels_is_clean(course_data):
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    found = diagnose(course_data)
    assert found["errors"] == found["warnings"] == []
    assert found["p1"]["pool"]["images"] == 12 and found["p1"]["pool"]["classes"] is None


# --- errors: one fault each, and nothing else is an error


OFFICE, TRAIN = "p1_data/office", "p2_data/train"
ERRORS = {
    "no pool": (lambda r: shutil.rmtree(r / "p1_data/mini"), ["p1_data/mini/train", "*.jpg"]),
    "no tiles": (lambda r: shutil.rmtree(r / "p2_data/validation"), ["p2_data/validation"]),
    "no table": (lambda r: (r / OFFICE / "val.csv").unlink(), ["p1_data/office/val.csv"]),
    "table without labels": (
        lambda r: change(r / OFFICE / "val.csv", lambda rows: rows.drop(columns="label")),
        ["val.csv", "label"],
    ),
    "empty label": (
        lambda r: change(r / OFFICE / "val.csv", lambda rows: rows.assign(label=np.nan)),
        ["val.csv", "label in every row"],
    ),
    "label between numbers": (
        lambda r: change(
            r / OFFICE / "train.csv", lambda rows: rows.assign(label=rows.label + 0.5)
        ),
        ["train.csv", "whole number"],
    ),
    "no file for a row": (
        lambda r: (r / OFFICE / "train/Mug00002.jpg").unlink(),
        ["train.csv", "1 file", "Mug00002.jpg"],
    ),
    "file elsewhere": (
        lambda r: change(
            r / OFFICE / "train.csv",
            lambda rows: rows.replace("Mug00002.jpg", "../val/Mug00100.jpg"),
        ),
        ["train.csv", "'../val/Mug00100.jpg'"],
    ),
    "truncated image": (
        lambda r: cut_short(r / OFFICE / "val/Mug00100.jpg"),
        ["p1_data/office/val", "1 image cannot", "Mug00100.jpg", "truncated"],
    ),
    "text for an image": (
        lambda r: (r / "p1_data/mini/train/00003.jpg").write_text("hello"),
        ["p1_data/mini/train", "00003.jpg (no image)"],
    ),
    "empty image": (
        lambda r: (r / "p1_data/mini/train/00003.jpg").write_bytes(b""),
        ["p1_data/mini/train", "00003.jpg (an empty file)"],
    ),
    "class in one split": (
        lambda r: change(r / OFFICE / "val.csv", lambda rows: rows[rows.label != 1]),
        ["p1_data/office", "Alarm_Clock"],
    ),
    "classes in another order": (
        lambda r: change(r / OFFICE / "val.csv", lambda rows: rows.assign(label=2 - rows.label)),
        ["p1_data/office", "Couch (0 and 2)", "same number in both"],
    ),
    "tile without mask": (
        lambda r: (r / TRAIN / "0002_mask.png").unlink(), [TRAIN, "1 tile ", "0002_mask.png"]
    ),
    "truncated tile": (
        lambda r: cut_short(r / TRAIN / "0002_sat.jpg"), [TRAIN, "1 tile cannot", "0002_sat.jpg"]
    ),
    "truncated mask": (
        lambda r: cut_short(r / TRAIN / "0002_mask.png"), [TRAIN, "1 mask cannot", "0002_mask.png"]
    ),
    "mask of another size": (
        lambda r: resize(r / TRAIN / "0003_mask.png", (16, 32)),
        [TRAIN, "1 mask of another size", "0003_mask.png (16 × 32, its tile 32 × 32)"],
    ),
    "tile of another size": (
        lambda r: [resize(r / TRAIN / f"0003_{n}", (64, 64)) for n in ("sat.jpg", "mask.png")],
        [TRAIN, "1 tile not 32 × 32", "0003_sat.jpg (64 × 64)"],
    ),
    "masks without a class": (
        lambda r: [redraw(p, "black", (0, 0, 32, 32)) for p in (r / TRAIN).glob("*_mask.png")],
        [TRAIN, "no mask shows any class"],
    ),
}


@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_is_named_and_is_the_only_one(course_data, fault):
    plant, words = ERRORS[fault]
    plant(course_data)
    errors = diagnose(course_data)["errors"]
    assert len(errors) == 1, errors
    for word in words:
        assert word in errors[0], errors
    assert str(course_data) not in errors[0]  # the same wherever the data is
    assert errors[0].startswith("Problem 1: " if "p1_data" in errors[0] else "Problem 2: ")


def test_several_faults_are_all_said(course_data):
    for fault in ("truncated image", "no file for a row", "tile without mask", "truncated tile"):
        ERRORS[fault][0](course_data)
    assert len(diagnose(course_data)["errors"]) == 4


def test_long_lists_are_cut(course_data):
    for path in (course_data / "p1_data" / "mini" / "train").iterdir():
        path.write_bytes(b"")
    found = diagnose(course_data)
    assert "12 images cannot be decoded" in found["errors"][0]
    assert "00003.jpg (an empty file) and 9 more" in found["errors"][0]
    assert len(found["p1"]["pool"]["undecodable"]) == 12


# --- warnings: one fault each, no error, and no other warning


def copy(root, source, target):
    shutil.copy(root / source, root / target)


def write_scene(root):
    """A scene of 2 × 3 tiles of 64 pixels: train has the left and right, validation the middle."""
    scene = land(0, 256)
    for number in range(6):
        row, column = divmod(number, 3)
        tile = scene[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
        folder = root / "p2_data" / ("validation" if column == 1 else "train")
        classes = np.arange(64 * 64).reshape(64, 64) * 7 // 64**2
        Image.fromarray(tile).save(
            folder / f"{number:04d}_sat.jpg", quality=95, subsampling=0
        )
        Image.fromarray(landcover.encode(classes)).save(folder / f"{number:04d}_mask.png")


def leak(root):
    for split in ("train", "validation"):
        shutil.rmtree(root / "p2_data" / split)
        (root / "p2_data" / split).mkdir()
    write_scene(root)


def without_class(root, name):
    """Paints over a class in all training masks."""
    for path in (root / TRAIN).glob("*_mask.png"):
        mask = np.array(Image.open(path))
        mask[(mask == landcover.PALETTE[landcover.CLASSES.index(name)]).all(axis=-1)] = 255
        Image.fromarray(mask).save(path)


WARNINGS = {
    "file without a row": (
        lambda r: picture(99).save(r / OFFICE / "val/Mug00999.jpg"),
        ["p1_data/office/val", "1 image without a row", "Mug00999.jpg"],
    ),
    "other ending": (
        lambda r: [(r / "p1_data/mini/train.csv").unlink(),
                   picture(99).save(r / "p1_data/mini/train/x.jpeg")],
        ["p1_data/mini/train", "not called *.jpg", "x.jpeg"],
    ),
    "mask without a tile": (
        lambda r: copy(r, f"{TRAIN}/0001_mask.png", f"{TRAIN}/0099_mask.png"),
        [TRAIN, "1 file", "0099_mask.png"],
    ),
    "duplicate ids": (
        lambda r: change(r / OFFICE / "val.csv", lambda rows: rows.assign(id=rows.id.clip(1))),
        ["val.csv", "1 row repeats an id: 1"],
    ),
    "file listed twice": (
        lambda r: change(r / OFFICE / "train.csv", lambda rows: pd.concat(
            [rows, rows.iloc[:1].assign(id=99)])),
        ["train.csv", "1 file listed more than once", "Couch00001.jpg."],
    ),
    "file listed twice with two labels": (
        lambda r: change(r / "p1_data/mini/train.csv", lambda rows: pd.concat(
            [rows, rows.iloc[:1].assign(id=99, label=200)])),
        ["mini/train.csv", "00001.jpg; 1 of them with different labels"],
    ),
    "negative labels": (
        lambda r: [change(r / OFFICE / f"{s}.csv", lambda rows: rows.assign(label=rows.label - 1))
                   for s in ("train", "val")],
        ["negative labels, down to -1"],
    ),
    "gap in labels": (
        lambda r: [change(r / OFFICE / f"{s}.csv", lambda rows: rows.replace({"label": {2: 5}}))
                   for s in ("train", "val")],
        ["labels run from 0 to 5 but leave out 3 numbers, first 2"],
    ),
    "classes numbered differently": (
        lambda r: change(r / OFFICE / "val.csv", lambda rows: rows.assign(label=rows.label + 1)),
        ["p1_data/office", "number the same classes differently"],
    ),
    "other modes": (
        lambda r: save_oddly(r / "p1_data/mini/train"),
        ["p1_data/mini/train", "2 images of another mode", "CMYK: 1, L: 1", "first 00001.jpg"],
    ),
    "tiny image": (
        lambda r: resize(r / "p1_data/mini/train/00004.jpg", (15, 32)),
        ["p1_data/mini/train", "1 image less than 16 pixels", "00004.jpg"],
    ),
    "stray colours": (
        lambda r: redraw(r / TRAIN / "0002_mask.png", (255, 0, 0)),
        ["p2_data", "16 pixels of 1 mask", "train/0002_mask.png (16)"],
    ),
    "class that is not learnt": (
        lambda r: without_class(r, "water"), ["p2_data", "water occurs in validation"]
    ),
    "exact copy in a split": (
        lambda r: copy(r, "p1_data/mini/train/00002.jpg", "p1_data/mini/train/00008.jpg"),
        ["p1_data/mini/train", "1 image repeats another one exactly", "00008.jpg = 00002.jpg."],
    ),
    "copy with another label": (
        lambda r: copy(r, "p1_data/mini/train/00002.jpg", "p1_data/mini/train/00009.jpg"),
        ["00009.jpg = 00002.jpg; 1 of them with another label"],
    ),
    "near copy in a split": (
        lambda r: Image.open(r / TRAIN / "0001_sat.jpg").save(
            r / TRAIN / "0003_sat.jpg", quality=60
        ),
        [TRAIN, "1 tile repeats another one almost", "0003_sat.jpg = 0001_sat.jpg"],
    ),
    "image in both splits": (
        lambda r: copy(r, f"{OFFICE}/train/Mug00001.jpg", f"{OFFICE}/val/Mug00101.jpg"),
        ["p1_data/office/val: 1 image is also in p1_data/office/train", "Mug00101.jpg = Mug00001"],
    ),
    "tile in both splits": (
        lambda r: copy(r, f"{TRAIN}/0001_sat.jpg", "p2_data/validation/0002_sat.jpg"),
        ["p2_data/validation: 1 tile is also in p2_data/train", "0002_sat.jpg = 0001_sat.jpg"],
    ),
    "validation in the pool": (
        lambda r: copy(r, f"{OFFICE}/val/Mug00101.jpg", "p1_data/mini/train/00001.jpg"),
        ["p1_data/office/val: 1 image is also in p1_data/mini/train", "Mug00101.jpg = 00001.jpg"],
    ),
    "scene leakage": (
        leak, ["2 of 2 validation tiles continue a training tile", "(0 with", "0001_sat.jpg at 000"]
    ),
}


@pytest.mark.parametrize("fault", WARNINGS)
def test_a_warning_is_named_and_is_the_only_one(course_data, fault):
    plant, words = WARNINGS[fault]
    plant(course_data)
    found = diagnose(course_data)
    assert found["errors"] == []
    warnings = set(found["warnings"])
    if fault in ("negative labels", "gap in labels"):
        assert len(warnings) == 2  # train and val
    else:
        assert len(warnings) == 1, warnings
    for word in words:
        assert all(word in text for text in warnings), warnings


def test_an_imbalance_is_a_warning(course_data):
    names = [f"Couch{number:05d}.jpg" for number in range(500, 541)]
    for number, name in enumerate(names):
        picture(5000 + number).save(course_data / OFFICE / "train" / name)
    more = pd.DataFrame({"id": range(500, 541), "filename": names, "label": 0})
    change(course_data / OFFICE / "train.csv", lambda rows: pd.concat([rows, more]))
    (warning,) = diagnose(course_data)["warnings"]
    assert "class Couch has 45 images" in warning and "only 4" in warning


def test_a_single_pixel_is_no_absent_class(course_data):
    """Shares are rounded; whether a class occurs at all is not."""
    for split in ("train", "validation"):
        masks = sorted((course_data / "p2_data" / split).glob("*_mask.png"))
        for path in masks:
            redraw(path, "black", (0, 0, 32, 32))
        for column, colour in enumerate(landcover.PALETTE[:6].tolist()):
            redraw(masks[0], tuple(colour), (column, 0, column + 1, 1))
    found = diagnose(course_data)
    assert found["errors"] == []
    assert all("less than 1%" in text for text in found["warnings"])
    assert len(found["warnings"]) == 2


def test_facts_count_what_was_found(course_data):
    leak(course_data)
    redraw(course_data / TRAIN / "0000_mask.png", (1, 2, 3))
    two = diagnose(course_data)["p2"]
    assert two["leakage"] == {"tiles": 2, "of": 2, "null": 0}
    assert two["stray_pixels"] == 16 and two["stray_files"] == ["train/0000_mask.png"]


# --- nothing passes that a run would refuse, and nothing is a traceback


REFUSED = {
    "nothing": lambda r: shutil.rmtree(r),
    "an empty root": lambda r: [shutil.rmtree(r), r.mkdir()],
    "a file for a root": lambda r: [shutil.rmtree(r), r.write_text("")],
    "empty problems": lambda r: [[shutil.rmtree(r / p), (r / p).mkdir()]
                                 for p in ("p1_data", "p2_data")],
    "a table in another encoding": lambda r: (r / OFFICE / "val.csv").write_bytes(b"\xff\xfe\0a"),
    "a table full of zeros": lambda r: (r / OFFICE / "val.csv").write_bytes(b"\0" * 50),
    "a name that is too long": lambda r: (r / OFFICE / "val.csv").write_text(
        f"id,filename,label\n1,{'x' * 300}.jpg,0\n"
    ),
    "a file for a folder": lambda r: [shutil.rmtree(r / OFFICE / "val"),
                                      (r / OFFICE / "val").write_text("")],
    "two dots for a name": lambda r: (r / OFFICE / "val.csv").write_text(
        "id,filename,label\n1,..,0\n"
    ),
    **{name: plant for name, (plant, _) in ERRORS.items()},
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_a_run_refuses_does_not_pass(course_data, fault, capsys):
    REFUSED[fault](course_data)
    found = diagnose(course_data)
    assert found["errors"]
    assert cli.main(["data", "check", "--data-root", str(course_data)]) == 1
    out = capsys.readouterr().out
    assert "Errors" in out and max(map(len, out.splitlines())) <= 80


def test_what_is_no_file_of_the_data_does_not_matter(course_data):
    """Hidden files, folders, links that lead nowhere, and files of other kinds."""
    folder = course_data / TRAIN
    (folder / "._0001_sat.jpg").write_bytes(b"")
    (folder / "0009_sat.jpg").mkdir()
    os.symlink(folder / "nowhere", folder / "0010_sat.jpg")
    (folder / "Thumbs.db").write_bytes(b"")
    found = diagnose(course_data)
    assert found["errors"] == found["warnings"] == []
    there = layout.find(course_data, Data()).problem2.train
    assert found["p2"]["train"]["tiles"] == len(there) == 4


@pytest.mark.parametrize("fault", WARNINGS)
def test_what_passes_is_accepted(course_data, fault):
    WARNINGS[fault][0](course_data)
    layout.find(course_data, Data())


def test_a_link_out_of_the_folder_is_refused_as_by_a_run(course_data):
    outside = course_data / "other.jpg"
    picture(77).save(outside)
    os.symlink(outside, course_data / "p2_data" / "train" / "0009_sat.jpg")
    copy(course_data, f"{TRAIN}/0001_mask.png", f"{TRAIN}/0009_mask.png")
    with pytest.raises(UserError):
        layout.find(course_data, Data())
    (error,) = diagnose(course_data)["errors"]
    assert "0009_sat.jpg" in error and "link" in error


def test_names_that_are_no_text_can_be_printed(course_data, capsys):
    name = os.fsdecode(b"M\xfcg.jpg")
    (course_data / OFFICE / "train" / name).write_bytes(b"")
    for words in ((), ("--json",)):
        assert cli.main(["data", "check", "--data-root", str(course_data), *words]) == 0
        out = capsys.readouterr().out
        out.encode()
        assert "M?g.jpg" in out


# --- the command


def test_the_table_fits_a_terminal(course_data, capsys):
    assert cli.main(["data", "check", "--data-root", str(course_data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "No errors." in lines
    rows = {line[:32].strip(): line[32:].split() for line in lines}
    assert rows["images"] == ["12", "12", "6"] and rows["tiles"] == ["4", "3"]
    assert rows["labels"] == ["100", "…", "200", "0", "…", "2", "0", "…", "2"]


def test_the_table_wraps_what_it_lists(course_data):
    for fault in ("truncated image", "mask of another size", "no table"):
        ERRORS[fault][0](course_data)
    found = diagnose(course_data)
    text = check.table(found)
    assert max(map(len, text.splitlines())) <= 80 and len(found["errors"]) == 3
    assert all(error in " ".join(text.split()) for error in found["errors"])


def test_json_is_all_of_standard_output(course_data, capsys):
    assert cli.main(["data", "check", "--json", "--data-root", str(course_data)]) == 0
    assert json.loads(capsys.readouterr().out) == diagnose(course_data)


@pytest.mark.skipif(not paths.EARTH.is_dir(), reason="the Earth sample is not built")
def test_the_earth_sample_passes_without_leakage():
    found = diagnose(paths.EARTH)
    assert found["errors"] == []
    assert found["p2"]["leakage"]["tiles"] == 0 and found["p2"]["leakage"]["of"] == 120
    for facts in (*found["p1"].values(), found["p2"]["train"], found["p2"]["validation"]):
        assert facts["exact"] == facts["near"] == 0
    (warning,) = found["warnings"]
    assert "urban" in warning
