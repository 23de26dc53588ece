"""Property tests: whatever a file holds, the result is correct or the error is clear.

Each test draws inputs that a user could have, reads them a second time in the simplest way, and
holds the library's result against that. A refusal must be one line of text.
"""

import csv
import functools
import io
import json
import math
import os
import re
import shutil
from decimal import Decimal, InvalidOperation

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from hw1lib import evaluate, profiles
from hw1lib.data import csv_rows, hashes, layout
from hw1lib.data import images as image_files
from hw1lib.data.check import doctor, report
from hw1lib.errors import UserError
from hw1lib.settings import Data, flatten
from tests.conftest import picture, write_labelled, write_problem1, write_problem2, write_tile
from tests.settings import allowed

# The same examples in every run, so that a failure is never luck.
CHECKS = list(hypothesis.HealthCheck)
fuzz = functools.partial(hypothesis.settings, deadline=None, derandomize=True, suppress_health_check=CHECKS)


def outcome(function, *arguments):
    """Return the result of a function, or None if it raises a UserError of one line."""
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1, repr(str(error))
        return None


def examine(root):
    """Return the data check of a folder, which must be plain, printable data with one line per finding."""
    findings = report.examine(root, progress=False)
    assert findings == json.loads(json.dumps(findings, ensure_ascii=False).encode())
    assert all(text.strip() and len(text.splitlines()) == 1 for text in findings["errors"] + findings["warnings"])
    return findings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a test; they overwrite each other's files."""
    return tmp_path_factory.mktemp("fuzz")


def encoded(kind):
    """Return the bytes of a small image in a format."""
    stream = io.BytesIO()
    picture(0, (9, 7)).save(stream, format=kind)
    return stream.getvalue()


# --- CSVs

IMAGES = ("Couch1.jpg", "Couch2.jpg", "Mug1.jpg", "Mug 2.jpg", "Tasse_é.jpg", "NA", "杯,1.jpg")
LONG = "x" * 300 + ".jpg"
ABSENT = ("", " ", "../Couch1.jpg", "/etc/hostname", ".", "..", "a\0b", "a\nb", LONG, "Couch9.jpg")
SMALL = st.integers(0, 3).map(str)
ODD = ["", " ", "inf", "nan", "NA", "x", "True", "\0", "01", "+2", "-1", "1.0", "1.5", "1e1", "0x1", "1_0", " 1", "٣"]
ODD = st.sampled_from([*ODD, "9" * 5000, "1e400", *map(str, (2**63, -(2**63), 2**53, 2**53 + 1)), f"{2**53 + 1}.0"])
COLUMNS = ("id", "filename", "label")
HEADERS = st.permutations(COLUMNS) | st.lists(st.sampled_from((*COLUMNS, "Label", " filename", "note", "")), max_size=5)


@st.composite
def tables(draw):
    """Draw the bytes of a CSV, mostly valid, with some of the things that spreadsheets do."""
    header, plain = draw(HEADERS), draw(st.booleans())
    names = st.sampled_from(IMAGES if plain else IMAGES + ABSENT)
    cells = {"filename": names, "label": SMALL if plain else SMALL | ODD}
    rows = [[draw(cells.get(column, SMALL)) for column in header] for _ in range(draw(st.integers(0, 6)))]
    for row in rows if not plain else ():
        extra = draw(st.integers(-1, 8))
        row[:] = row[:-1] if extra < 0 else row + ["3"] * (extra > 7)
    text = io.StringIO()
    quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    end = draw(st.sampled_from(("\n", "\r\n", "\n\n", "\r")))
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([header, *rows])
    return draw(st.sampled_from((b"", b"\xef\xbb\xbf"))) + text.getvalue().encode()


def read_simply(content):
    """Return rows of filename and label, or None if it is no such table, and whether rows or columns are ambiguous."""
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        lines = [line for line in lines if any(map(str.strip, line))]
        header, *rows = [[name.strip().lower() for name in lines[0]], *lines[1:]]
        places = [header.index(column) for column in ("filename", "label")]
    except (ValueError, IndexError, csv.Error):
        return None, True
    ragged = len({len(line) for line in lines}) > 1 or len(set(header)) < len(header)
    return [tuple((row + [""] * len(header))[place] for place in places) for row in rows], ragged


def finite(text):
    """Return the exact number that a text holds, or None."""
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and -(2**63) <= number < 2**63 else None


def meant(text):
    """Return a label: a number, a name, or None if it is missing."""
    if (number := finite(text)) is not None:
        return number
    return None if text.strip() in ("", "nan", "NA") else text.strip()


@pytest.fixture(scope="module")
def labelled(folder):
    """A data root without CSVs."""
    for part in ("mini/train", "office/train", "office/val"):
        (folder / "p1_data" / part).mkdir(parents=True)
        for name in IMAGES:
            (folder / "p1_data" / part / name).write_bytes(encoded("JPEG"))
    return folder


@pytest.mark.slow
@fuzz(max_examples=120)
@hypothesis.given(content=tables() | st.binary(max_size=60))
@hypothesis.example(content=b"id,label,filename\n7,0,1,Couch1.jpg\n8,1,0,Mug1.jpg\n")
@hypothesis.example(content=b"filename,label\nCouch1.jpg,True\nMug1.jpg,False\n")
@hypothesis.example(content=b"filename,label\nMug1.jpg,9007199254740993\nNA,9007199254740992\nCouch1.jpg,1.0\n")
@hypothesis.example(content=b'filename,label\n"a\nb",1\n')
@pytest.mark.filterwarnings("error")  # a warning is no clear error
def test_a_table_is_read_as_it_stands_or_refused(labelled, content):
    """Its text, its labels and their accuracy; the data check reports what a run refuses."""
    for part in ("mini/train", "office/train", "office/val"):
        path = labelled / "p1_data" / f"{part}.csv"
        path.write_bytes(content)
    rows, ragged = read_simply(content)
    text = outcome(csv_rows.read_rows, path, "filename", "label")
    if text is not None:
        assert list(text[["filename", "label"]].itertuples(index=False, name=None)) == rows
    scored = outcome(evaluate.score_classification, path, labelled / "p1_data" / "office" / "train.csv")
    assert scored is None or scored[0]["accuracy"] == 1
    course = outcome(layout.find, labelled, Data())
    assert course or examine(labelled)["errors"]
    if course is None:  # what nobody could misread is never refused, if there are two classes
        plain = rows and all(n in IMAGES and re.fullmatch("[0-9]", label) for n, label in rows)
        assert not plain or ragged or len({label for _, label in rows}) < 2
        return
    labels = [meant(text) for _, text in rows]
    assert None not in labels and len({type(label) for label in labels}) == 1
    numbers = sorted(set(labels))
    for split in (course.problem1.pool, course.problem1.train, course.problem1.val):
        assert list(split.files) == [name for name, _ in rows]
        assert set(split.files) <= set(IMAGES)
        assert list(split.numbers) == numbers
        assert [numbers[label] for label in split.labels] == labels
        assert len(set(split.classes)) == len(numbers)
        assert split.counts() == {split.classes[numbers.index(n)]: labels.count(n) for n in numbers}


LABELS = st.dictionaries(st.sampled_from(IMAGES), SMALL | ODD, max_size=5)


@pytest.mark.slow
@fuzz(max_examples=150)
@hypothesis.given(predicted=LABELS, true=LABELS)
@hypothesis.example(predicted={"Mug1.jpg": "9007199254740993.0"}, true={"Mug1.jpg": "9007199254740992"})
def test_the_accuracy_of_a_csv_is_an_independent_count(folder, predicted, true):
    paths = folder / "predicted.csv", folder / "true.csv"
    for path, labels in zip(paths, (predicted, true)):
        write_labelled(path, labels.items())
    scored = outcome(evaluate.score_classification, *paths)
    if scored is None:
        plain = all(re.fullmatch("[0-9]", text) for text in (*predicted.values(), *true.values()))
        assert not plain or not set(predicted) & set(true)
        return
    every = [{n: meant(text) for n, text in labels.items()} for labels in (predicted, true)]
    guess, truth = ({n: label for n, label in labels.items() if label is not None} for labels in every)
    assert len({type(label) for label in (*guess.values(), *truth.values())}) == 1
    correct = sum(guess.get(name) == label for name, label in truth.items())
    unpaired = set(truth) - set(guess), (set(predicted) | set(true)) - set(truth)
    assert scored[0]["accuracy"] == correct / len(truth) and f"{correct} of {len(truth)};" in scored[0]["coverage"]
    assert sorted(name for name, _ in scored[1]) == sorted(name for names in unpaired for name in names)


# --- masks and images

KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000")


@st.composite
def harmed(draw):
    """Draw an image file that was truncated or has wrong bytes, and its format if it is only truncated."""
    kind = draw(st.sampled_from(KINDS))
    content = bytearray(encoded(kind))
    places = st.integers(0, min(len(content), 120) - 1)
    changes = draw(st.dictionaries(places, st.integers(0, 255), max_size=4))
    for place, byte in changes.items():
        content[place] = byte
    only_cut = not changes and kind in ("PNG", "JPEG")
    return bytes(content[: draw(st.integers(0, len(content)))]), kind if only_cut else None


HARMED = harmed() | st.tuples(st.binary(max_size=40), st.none())


@pytest.mark.slow
@fuzz(max_examples=300)
@hypothesis.given(harmed=HARMED, half=st.sampled_from(("sat.jpg", "mask.png")))
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then refuses
def test_a_harmed_image_is_an_image_or_refused_and_a_cut_one_is_never_another(folder, harmed, half):
    """By a run and by the data check."""
    content, kind = harmed
    write_tile(folder, 1, np.zeros((7, 9), np.uint8))
    (folder / f"1_{half}").write_bytes(content)
    image = outcome(image_files.open_rgb, folder / f"1_{half}")
    assert image is None or image.mode == "RGB"
    if image and kind:
        assert image.tobytes() == Image.open(io.BytesIO(encoded(kind))).tobytes()
    look = doctor.summarise(folder / f"1_{half}", "tile")
    assert (look.size, bool(look.fault)) == ((0, 0), True) if image is None else (image.size, False)
    loaded = outcome(image_files.load_tiles, layout.Tiles(folder, ("1",)))
    assert loaded is None or loaded[0].shape == (1, 3, *loaded[1].shape[1:])


# --- settings

KNOWN = flatten(profiles.get("demo"))
STRANGE = [math.nan, math.inf, -math.inf, 10**400, 10**5000, "9" * 5000, "1e400", "adam", "true", "no", " 3 ", "0.5"]
PLAIN = st.integers(-3, 300) | st.floats(-1, 2) | st.booleans() | st.text(max_size=8) | st.sampled_from(STRANGE)
VALUES = PLAIN | st.none() | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2)
WRONG = ("pretrain", "name", "data.", "__class__", "seed ", "pretrain.epochs.x", "x" * 10000)
NAMES = st.sampled_from(sorted(KNOWN)) | st.sampled_from(WRONG) | st.text(max_size=12)


@pytest.mark.slow
@fuzz(max_examples=300)
@hypothesis.given(profile=st.sampled_from(sorted(profiles.NAMES)) | st.text(max_size=6), dotted=NAMES, value=VALUES)
@hypothesis.example(profile="demo", dotted="seed", value=10**5000)
def test_a_setting_is_within_its_range_or_refused(profile, dotted, value):
    changed = outcome(profiles.get, profile, {dotted: value})
    if changed is None:
        return
    assert profile in profiles.NAMES and dotted in KNOWN
    after, before = flatten(changed), flatten(profiles.get(profile))
    new, schema = after.pop(dotted), allowed(dotted)
    assert type(new) is type(KNOWN[dotted]) and new in schema.get("enum", (new,))
    if isinstance(new, (int, float)):
        assert schema.get("minimum", -math.inf) <= new <= schema.get("maximum", math.inf) and abs(new) < math.inf
    if isinstance(new, tuple):
        assert new and all(type(item) is str for item in new)
    else:  # its text says the same
        assert outcome(profiles.get, profile, {dotted: f" {value} "}) == changed
    before.pop(dotted)
    assert after == before


# --- folder layouts

HARMS = ["gone", "a file", "a folder", "upper case"]
EXTRA = ["._hidden.jpg", "odd.jpg", "ODD.JPG", "ünï.jpg", "a b.jpg", os.fsdecode(b"\xe9.jpg"), "Thumbs.db"]
EXTRA += ["._0001_sat.jpg", "_sat.jpg", "0009_sat.jpg", "0001_SAT.JPG", "0001_Mask.png", "0009_mask.png"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small valid data root to copy."""
    root = tmp_path_factory.mktemp("whole")
    write_problem1(root / "p1_data", pool=2, train=1, val=1)
    write_problem2(root / "p2_data", train=2, validation=1)
    return root


def harm(path, how):
    """Remove a part of a data root, replace it, or put an image beside it."""
    if not path.exists():
        return
    if how in EXTRA:
        (path.parent / how).write_bytes(encoded("JPEG"))
    elif how == "upper case":
        path.rename(path.with_name(path.name.upper()))
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if how != "gone":
            path.mkdir() if how == "a folder" else path.touch()


def count_simply(folder):
    """Count the images or tiles of a split with os alone."""
    table, ending = folder.with_suffix(".csv"), "_sat.jpg" if folder.parent.name == "p2_data" else ".jpg"
    if table.is_file():
        return len(table.read_text().splitlines()) - 1
    return sum(e.is_file() and e.name[0] != "." and e.name.lower().endswith(ending) for e in os.scandir(folder))


@pytest.mark.slow
@fuzz(max_examples=80)
@hypothesis.given(
    harms=st.lists(st.tuples(st.integers(0, 99), st.sampled_from(HARMS + EXTRA)), max_size=3), bare=st.booleans()
)
@hypothesis.example(harms=[(3, EXTRA[5])], bare=True)  # a name that is not UTF-8, in the pool
def test_a_layout_is_counted_correctly_or_refused(whole, folder, harms, bare):
    """The data check never fails and reports what stops a run."""
    root, parts = folder / "root", sorted(whole.rglob("*"))
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    if bare:  # the pool needs no labels
        harm(root / "p1_data" / "mini" / "train.csv", "gone")
    for number, how in harms:
        harm(root / parts[number % len(parts)].relative_to(whole), how)
    health, present = examine(root), {n: (root / f"p{n}_data").is_dir() for n in (1, 2)}
    assert {n: health[f"p{n}"] is not None for n in present} == present and report.table(health)
    course = outcome(layout.find, root, Data())
    if course is None:
        assert harms and health["errors"]
        return
    assert course.has == present
    one, two = course.problem1, course.problem2
    splits = [one.pool, one.train, one.val] if one else []
    for split in splits + ([two.train, two.validation] if two else []):
        assert len(split) == count_simply(split.folder) and all(path.is_file() for path in split.paths)
        assert len(outcome(hashes.fingerprint, split)) == 64
    for half in root.glob("p[12]_data"):
        assert len(outcome(hashes.folder_fingerprint, half)) == 64
