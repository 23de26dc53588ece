"""The data check: each fault is found, named and weighed once, and clean data passes."""

import json
import os
import re
import shutil
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib import cli, paths
from hw1lib.data import landcover, layout
from hw1lib.data.check import doctor, report
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import save_oddly

MINI, OFFICE, TRAIN, VALIDATION = "p1_data/mini/train", "p1_data/office", "p2_data/train", "p2_data/validation"
examine = partial(report.examine, progress=False)


# --- faults: functions of a data root


def gone(name):
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def written(name, content):
    return lambda root: (root / name).write_bytes(content)


def truncated(name):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-40])


def edited(table, edit):
    """A CSV rewritten by a function of its rows."""
    return lambda root: edit(pd.read_csv(root / table)).to_csv(root / table, index=False)


def relabelled(edit, *splits):
    edit_rows = lambda rows: rows.assign(label=edit(rows.label))  # noqa: E731
    return lambda root: [edited(f"{OFFICE}/{split}.csv", edit_rows)(root) for split in splits]


def copied(source, target):
    return lambda root: shutil.copy(root / source, root / target)


def resized(size, *names):
    return lambda root: [Image.open(root / name).resize(size, 0).save(root / name) for name in names]


def painted(path, colour, box=(0, 0, 4, 4)):
    mask = Image.open(path).convert("RGB")
    mask.paste(colour, box)
    mask.save(path)


def only(classes, *repeats):
    """All training masks black, but for these classes, repeated down and across, in one of them."""

    def plant(root):
        for path in (root / TRAIN).glob("*_mask.png"):
            painted(path, "black", (0, 0, 32, 32))
        painted(path, Image.fromarray(landcover.encode(np.tile(classes, repeats))), (0, 0))

    return plant


def leak(root):
    """Training tiles are the left halves of scenes, validation tiles the right halves."""
    for number in (1, 2, 3):
        rough = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        scene = Image.fromarray(rough).resize((64, 64), Image.Resampling.BILINEAR)
        for split, left in ((TRAIN, 0), (VALIDATION, 32)):
            scene.crop((left, 0, left + 32, 32)).save(root / split / f"000{number}_sat.jpg", quality=95, subsampling=0)


def saved_again(root):
    Image.open(root / TRAIN / "0001_sat.jpg").save(root / TRAIN / "0003_sat.jpg", quality=60)


def few(count):
    """A pool of a few images without labels."""
    return lambda root: [
        gone(f"{MINI}.csv")(root),
        *(path.unlink() for path in sorted((root / MINI).iterdir())[count:]),
    ]


CSV, HEAD = f"{OFFICE}/train.csv", b"id,filename,label\n"
DECODING = {  # errors that a run meets when it decodes: the fault, the words of the message
    "truncated image": (truncated(f"{OFFICE}/val/Mug00100.jpg"), [f"{OFFICE}/val: 1 image cannot", "00100", "trunc"]),
    "many empty images": (lambda root: [path.write_bytes(b"") for path in (root / MINI).iterdir()],
        [MINI, "12 images cannot", "00003.jpg (not an image in a supported format, or an empty file) and 9 more"]),
    "truncated tile": (truncated(f"{TRAIN}/0002_sat.jpg"), [TRAIN, "1 tile cannot", "0002_sat.jpg"]),
    "mask of another size": (resized((16, 32), f"{TRAIN}/0003_mask.png"),
        [TRAIN, "1 mask has another size", "0003_mask.png (16 × 32, its tile 32 × 32)"]),
    "tile of another size": (resized((64, 64), f"{TRAIN}/0003_sat.jpg", f"{TRAIN}/0003_mask.png"),
        [TRAIN, "1 tile is not 32 × 32", "0003_sat.jpg (64 × 64)"]),
    "masks without a class": (only([landcover.UNKNOWN], 1, 1), [TRAIN, "no mask shows any class"]),
}  # fmt: skip
ERRORS = DECODING | {  # the others; the first of the words are in the error of a run, too
    "no pool": (gone("p1_data/mini"), [MINI, "*.jpg"]),
    "no tiles": (gone(VALIDATION), [VALIDATION, "*_sat.jpg"]),
    "no table": (gone(f"{OFFICE}/val.csv"), [f"{OFFICE}/val.csv", "data/README.md"]),
    "no file for a row": (gone(f"{OFFICE}/train/Mug00002.jpg"), ["train.csv: 1 file is missing", "Mug00002.jpg"]),
    "classes numbered differently": (relabelled(lambda label: label + 1, "val"),
        [f"{OFFICE}: train.csv and val.csv do not have the same labels; only one of them has 0 (Couch), 3 (Mug)"]),
    "numbers and names": (relabelled(lambda label: label.map(dict(enumerate("xyz"))), "val"),
        [f"{OFFICE}: train.csv and val.csv do not have the same labels", "2 (Mug), x"]),
    "tile without mask": (gone(f"{TRAIN}/0002_mask.png"), [TRAIN, "1 tile has no mask: 0002_mask.png"]),
    "tile twice": (copied(f"{TRAIN}/0002_sat.jpg", f"{TRAIN}/0002_SAT.JPG"), [TRAIN, "and lower case", "0002_sat"]),
}  # fmt: skip
TABLES = {  # contents of office/train.csv
    HEAD + b"0,Couch\xff.jpg,0\n": "not UTF-8 text in line 2",
    HEAD + b"0,Couch00001.jpg,0\n\n0,a,0,9\n": "row 4, cannot be read as CSV: it has 4 cells, the first row 3",
    HEAD + b'0,Couch00001.jpg,0\n1,"Couch,0\n': "row 3, cannot be read as CSV: a quotation mark",
    b"id;datei;label\n0;a;0\n": 'lacks the column filename; its columns are "id", "datei", "label"',
    "id,\u200bfilename,label\n0,a,0\n".encode(): r'columns are "id", "\u200bfilename", "label"',
    b"filename,label,Label\na,1,1\n": "more than one column label", HEAD: "no rows",
    HEAD + b"0,Couch00001.jpg,0\n1,a, NaN \n": 'row 3: the label is " NaN "', HEAD + b"0,,1\n": "the filename is empty",
    HEAD + b"0,a,9223372036854775808\n": '"9223372036854775808" is not a whole number',
    HEAD + b"0,a,0\n\n1,b,Couch\n": 'two kinds: the name "Couch" in row 4 and the number "0" in row 2',
    HEAD + "0,Couch\u00a000001.jpg,0\n".encode(): r'office/train: "Couch\xa000001.jpg" in row 2',
}  # fmt: skip
ERRORS |= {content: (written(CSV, content), [words, "train.csv"]) for content, words in TABLES.items()}
WARNINGS = {
    "file without a row": (copied(f"{OFFICE}/val.csv", f"{OFFICE}/val/Mug00999.JPG"),
        [f"{OFFICE}/val", "1 image is not used (no row", "Mug00999.JPG"]),
    "other ending": (lambda root: [gone(f"{MINI}.csv")(root), (root / MINI / "x.jpeg").touch()],
        [MINI, "1 image is not used (not called *.jpg)", "x.jpeg"]),
    "row without a file": (gone(f"{MINI}/00003.jpg"), ["train.csv: 1 file is missing from", '"00003.jpg" in row 4']),
    "subfolder": (lambda root: shutil.copytree(root / OFFICE / "val", root / MINI / "n01"),
        [MINI, "1 folder is not searched: n01. Move"]),
    "mask without a tile": (copied(f"{TRAIN}/0001_mask.png", f"{TRAIN}/0099_mask.png"),
        [TRAIN, "1 file is not used", "0099_mask.png"]),
    "ids": (edited(f"{OFFICE}/val.csv", lambda rows: rows.assign(id=rows.id.clip(1))), ["1 row repeats an id: 1"]),
    "file listed twice": (edited(f"{MINI}.csv", lambda rows: pd.concat([rows, rows.iloc[:1].assign(id=99, label=200)])),
        ["mini/train.csv: 1 file is listed more than once: 00001.jpg. Their labels differ in 1 case"]),
    "classes in another order": (relabelled(lambda label: 2 - label, "val"),
        [f"{OFFICE}: files of one label have different names", "0 (Couch and Mug), 2 (Mug and Couch). Labels decide"]),
    "few images in the pool": (few(2), [MINI, "only 2 images"]),
    "imbalance": (edited(f"{MINI}.csv", lambda rows: rows.assign(label=1 * (rows.id > 0))),
        [f"{MINI}.csv", "class 1 has 11 images, class 0 only 1"]),
    "other modes": (lambda root: save_oddly(root / MINI),
        [MINI, "2 images converted to RGB (CMYK: 1, L: 1; first 00001.jpg)"]),
    "tiny": (resized((15, 32), f"{MINI}/00004.jpg"), [MINI, "1 image is less than 16 pixels", "00004.jpg"]),
    "stray colours": (lambda root: painted(root / TRAIN / "0002_mask.png", (255, 0, 0)),
        ["p2_data: 1 mask has 16 pixels", "train/0002_mask.png (16)"]),
    "rare classes": (only(range(7), 1, 1), [TRAIN, "less than 1% of all pixels are urban (0.02%), agriculture"]),
    "class that is not learnt": (only([0, 1, 2, 3, 5], 32, 5), ["p2_data", "water occurs in validation"]),
    "copy with another label": (copied(f"{MINI}/00002.jpg", f"{MINI}/00009.jpg"),
        [f"{MINI}: 1 image repeats another one exactly: 00009.jpg = 00002.jpg. Their labels differ in 1 case"]),
    "near copy": (saved_again, [TRAIN, "1 tile repeats another one almost", "0003_sat.jpg = 0001_sat.jpg"]),
    "image in both splits": (copied(f"{OFFICE}/train/Mug00001.jpg", f"{OFFICE}/val/Mug00101.jpg"),
        [f"{OFFICE}/val: 1 image is also in {OFFICE}/train", "Mug00101.jpg = Mug00001"]),
    "validation in the pool": (copied(f"{OFFICE}/val/Mug00101.jpg", f"{MINI}/00001.jpg"),
        [f"{OFFICE}/val: 1 image is also in {MINI}", "Mug00101.jpg = 00001.jpg"]),
    "leakage": (leak, ["3 of 3 validation tiles continue a training tile", "(0 with", "0001_sat.jpg at 0001_sat.jpg"]),
}  # fmt: skip
REFUSED = {
    "nothing": gone("."),
    "a file for a root": lambda root: [shutil.rmtree(root), root.write_text("")],
    "empty problems": lambda root: [[gone(part)(root), (root / part).mkdir()] for part in ("p1_data", "p2_data")],
    "a name that is too long": written(f"{OFFICE}/val.csv", HEAD + b"1," + b"x" * 300 + b".jpg,0\n"),
    "a file for a folder": lambda root: [gone(f"{OFFICE}/val")(root), (root / OFFICE / "val").touch()],
}


@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_is_named_once_by_the_check_and_by_a_run(course_data, fault):
    plant, words = ERRORS[fault]
    plant(course_data)
    (error,) = examine(course_data)["errors"]
    assert all(word in error for word in words), error
    assert str(course_data) not in error  # the same wherever the data is
    assert error.startswith("Problem 1: " if "p1_data" in error else "Problem 2: ")
    if fault in DECODING:
        layout.find(course_data, Data())
    else:
        with pytest.raises(UserError, match=re.escape(words[0])):
            layout.find(course_data, Data())


@pytest.mark.parametrize("fault", WARNINGS)
def test_a_warning_is_named_once_and_stops_no_run(course_data, fault):
    plant, words = WARNINGS[fault]
    plant(course_data)
    findings = examine(course_data)
    (warning,) = findings["warnings"]
    assert findings["errors"] == [] and all(word in warning for word in words), warning
    layout.find(course_data, Data())


@pytest.mark.parametrize("fault", REFUSED)
def test_what_a_run_refuses_does_not_pass(course_data, fault, capsys):
    REFUSED[fault](course_data)
    assert cli.main(["data", "check", "--data-root", str(course_data)]) == 1
    out = capsys.readouterr().out
    assert "Errors" in out and max(map(len, out.splitlines())) <= 80
    with pytest.raises(UserError):
        layout.find(course_data, Data())


# --- clean data


def test_clean_data_passes_with_its_facts(course_data):
    """Hidden files, folders, broken links and files of other kinds do not matter."""
    (course_data / TRAIN / "._0001_sat.jpg").write_bytes(b"")
    (course_data / TRAIN / "0009_sat.jpg").mkdir()
    (course_data / TRAIN / "0010_sat.jpg").symlink_to("nowhere")
    (course_data / TRAIN / "Thumbs.db").write_bytes(b"")
    findings = examine(course_data)
    assert findings["errors"] == findings["warnings"] == []
    one, two = findings["p1"], findings["p2"]
    assert [one[name]["images"] for name in ("pool", "train", "val")] == [12, 12, 6]
    assert one["train"]["classes"] == dict.fromkeys(("Couch", "Alarm_Clock", "Mug"), 4)
    assert one["train"]["smallest"] == [32, 32] and one["train"]["modes"] == {"RGB": 12}
    assert two["pairs"] == {"train": 4, "validation": 3} and two["train"]["tiles"] == 4
    assert two["stray_files"] == [] and two["leakage"]["of"] == 3
    assert list(two["train"]["classes"]) == list(landcover.CLASSES)
    assert sum(two["train"]["classes"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("absent", ["p1_data", "p2_data", f"{MINI}.csv"])
def test_one_problem_and_a_pool_without_labels_are_enough(course_data, absent):
    gone(absent)(course_data)
    findings = examine(course_data)
    assert findings["errors"] == findings["warnings"] == []
    assert [findings[n] is None for n in ("p1", "p2")] == [absent == n for n in ("p1_data", "p2_data")]


@pytest.mark.slow
@pytest.mark.skipif(not paths.EARTH.is_dir(), reason="the Earth sample is not built")
def test_the_earth_sample_passes_without_leakage():
    findings = examine(paths.EARTH)
    assert findings["errors"] == [] and findings["p2"]["leakage"] == {"tiles": 0, "of": 120, "null": 2}
    for facts in (*findings["p1"].values(), findings["p2"]["train"], findings["p2"]["validation"]):
        assert facts["exact"] == facts["near"] == 0
    (warning,) = findings["warnings"]
    assert "urban" in warning


# --- the command


def test_the_text_shows_facts_and_faults_in_80_columns(course_data, capsys):
    assert cli.main(["data", "check", "--data-root", str(course_data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [re.split("  +", line) for line in lines]
    rows = {name: values for name, *values in cells}
    assert rows["images"] == ["12", "12", "6"] and rows["tiles"] == ["4", "3"] and "No errors." in lines
    assert rows["lowest label"] == ["100", "0", "0"] and ["smallest", *["32 × 32"] * 3] in cells
    assert rows["also in the pool: exact copies"] == ["–", "–", "0"]
    for fault in ("truncated image", "mask of another size", "no table", "stray colours"):
        (ERRORS | WARNINGS)[fault][0](course_data)
    findings = examine(course_data)
    assert findings["p1"]["val"]["undecodable"] == ["Mug00100.jpg"] and findings["p2"]["stray_pixels"] == 16
    text = report.table(findings)
    assert max(map(len, lines + text.splitlines())) <= 80 and len(findings["errors"]) == 3
    assert all(error in " ".join(text.split()) for error in findings["errors"])


def test_names_that_are_not_unicode_can_be_printed_and_json_is_all_of_standard_output(course_data, capsys):
    (course_data / OFFICE / "train" / os.fsdecode(b"M\xfcg.jpg")).write_bytes(b"")
    for words in ((), ("--json",)):
        assert cli.main(["data", "check", "--data-root", str(course_data), *words]) == 0
        out = capsys.readouterr().out
        out.encode()
        assert "M\\udcfcg.jpg" in out.replace("\\\\", "\\")
    findings, plain = json.loads(out), examine(course_data)  # the command also names defaults that do not fit
    assert set(plain["warnings"]) < set(findings["warnings"])
    assert findings | {"warnings": plain["warnings"]} == plain


def test_an_interruption_only_waits_for_files_that_are_being_read(tmp_path, monkeypatch):
    seen = []
    slow = lambda path, kind: time.sleep(0.001) or seen.append(path) or 1 / (len(seen) < 5)  # noqa: E731
    monkeypatch.setattr(doctor, "summarise", slow)
    with pytest.raises(ZeroDivisionError):
        doctor.read([tmp_path] * 1000, "image", "", progress=False)
    assert len(seen) < 900
