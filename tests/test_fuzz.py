"""Property tests: whatever a file holds, a right result or a clear error.

Each test draws inputs that a user could have, reads them a second time in the simplest way, and
holds the library's result against that. A refusal must be one line of text.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import tempfile
from decimal import Decimal, InvalidOperation
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from hw1lib import predict, profiles
from hw1lib.data import csv_rows, landcover, layout
from hw1lib.data import images as image_files
from hw1lib.data.check import doctor
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import picture, run
from tests.settings import allowed, leaves


def fuzz(examples):
    """Draws the same examples in every run, so that a failure is never luck."""
    health = list(hypothesis.HealthCheck)
    return hypothesis.settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=health
    )


def outcome(function, *arguments):
    """What a function gives, or None where it refuses in one line."""
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1, repr(str(error))
        return None


def examined(root):
    """What the doctor says of a data folder: plain data, each finding in one line."""
    found = doctor.examine(root, progress=False)
    assert found == json.loads(json.dumps(found))
    assert all(text.strip() and len(text.splitlines()) == 1 for text in found["errors"] + found["warnings"])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a test; they overwrite each other's files."""
    return tmp_path_factory.mktemp("fuzz")


def encoded(kind):
    """An image of a few pixels as that format's bytes."""
    stream = io.BytesIO()
    picture(0, (9, 7)).save(stream, format=kind)
    return stream.getvalue()


# --- CSVs

IMAGES = ("Couch1.jpg", "Couch2.jpg", "Mug1.jpg", "Mug 2.jpg", "Tasse_é.jpg", "NA", "杯,1.jpg")
LONG = "x" * 300 + ".jpg"
ABSENT = ("", " ", "../Couch1.jpg", "/etc/hostname", ".", "..", "a\0b", "a\nb", LONG, "Couch9.jpg")
SMALL = st.integers(0, 3).map(str)
NUMBERS = [
    "01",
    "+2",
    "-1",
    "1.0",
    "1.5",
    "1e1",
    "0x1",
    "1_0",
    " 1",
    "٣",
    "9" * 400,
    "1e400",
    str(2**63),
    str(-(2**63)),
]
NUMBERS += ["9007199254740992", "9007199254740993", "9007199254740993.0"]
ODD = st.sampled_from(["", " ", "inf", "nan", "NA", "x", "True", "False", "\0", *NUMBERS])
HEADERS = st.permutations(["id", "filename", "label"]) | st.lists(
    st.sampled_from(("id", "filename", "label", "Label", " filename", "note", "")), max_size=5
)


@st.composite
def tables(draw):
    """The bytes of a CSV: mostly right, with one or more of the things that spreadsheets do."""
    header = draw(HEADERS)
    plain = draw(st.booleans())
    names, labels = st.sampled_from(IMAGES), SMALL
    cells = {
        "filename": names if plain else names | st.sampled_from(ABSENT),
        "label": labels if plain else labels | ODD,
    }
    rows = [[draw(cells.get(column, SMALL)) for column in header] for _ in range(draw(st.integers(0, 6)))]
    if not plain:
        for row in rows:
            extra = draw(st.integers(-1, 8))
            row[:] = row[:-1] if extra < 0 else row + ["3"] * (extra > 7)
    text = io.StringIO()
    quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    end = draw(st.sampled_from(("\n", "\r\n", "\n\n", "\r")))
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([header, *rows])
    return draw(st.sampled_from((b"", b"\xef\xbb\xbf"))) + text.getvalue().encode()


def lines_of(content):
    """The cells of each row that is not empty, with the csv module; None where it is no such table."""
    try:
        return [r for r in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if r]
    except (UnicodeDecodeError, csv.Error):
        return None


def read_simply(content, *columns):
    """Cells of some columns, row by row; None where it lacks one."""
    lines = lines_of(content)
    if not lines or any(column not in lines[0] for column in columns):
        return None
    places = [lines[0].index(column) for column in columns]
    padded = [row + [""] * (len(lines[0]) - len(row)) for row in lines[1:]]
    return [tuple(row[place] for place in places) for row in padded]


def finite(text):
    """A number from text, exactly; None where it is none."""
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and -(2**63) <= number < 2**63 else None


@pytest.fixture(scope="module")
def labelled(folder):
    """A data root whose tables are to be written."""
    for part in ("mini/train", "office/train", "office/val"):
        place = folder / "p1_data" / part
        place.mkdir(parents=True)
        for name in IMAGES:
            (place / name).write_bytes(encoded("JPEG"))
    return folder


@fuzz(150)
@hypothesis.given(content=tables() | st.binary(max_size=60))
@hypothesis.example(content=b"id,filename,label\n0,Couch1.jpg,1,9\n")
@hypothesis.example(content=b"id,label,filename\n7,0,1,Couch1.jpg\n8,1,0,Mug1.jpg\n")
@hypothesis.example(content=b"filename,label\nCouch1.jpg,True\nMug1.jpg,False\n")
@hypothesis.example(content=b"filename,label\nMug1.jpg,9007199254740993\nNA,9007199254740992\nCouch1.jpg,1.0\n")
@hypothesis.example(content=f"filename,label\n{LONG},1\n".encode())
@hypothesis.example(content=b"filename,label\na\0b,1\n")
@hypothesis.example(content=b'filename,label\n"a\nb",1\n')
@pytest.mark.filterwarnings("error")  # a warning is no clear error
def test_a_table_is_read_as_it_stands_or_refused(labelled, content):
    """Its text, its labels and their accuracy; what a run refuses the doctor finds."""
    for part in ("mini/train", "office/train", "office/val"):
        path = labelled / "p1_data" / f"{part}.csv"
        path.write_bytes(content)
    rows = read_simply(content, "filename", "label")
    text = outcome(csv_rows.read_rows, path, "filename", "label")
    if text is not None:
        assert list(text[["filename", "label"]].itertuples(index=False, name=None)) == rows
    scored = outcome(predict.score_classification, path, path)
    assert scored is None or scored[0]["correct"] == scored[0]["total"] > 0
    found = outcome(layout.find, labelled, Data())
    assert found or examined(labelled)["errors"]
    if found is None:  # what nobody could misread is never refused
        plain = rows and all(n in IMAGES and re.fullmatch("[0-9]", label) for n, label in rows)
        assert not plain or ragged(content)
        return
    labels = [finite(text) for _, text in rows]
    assert None not in labels
    numbers = sorted(set(labels))
    for split in (found.problem1.pool, found.problem1.train, found.problem1.val):
        assert list(split.files) == [name for name, _ in rows]
        assert set(split.files) <= set(IMAGES)
        assert list(split.numbers) == numbers
        assert [numbers[label] for label in split.labels] == labels
        assert len(set(split.classes)) == len(numbers)
        counted = {split.classes[numbers.index(n)]: labels.count(n) for n in numbers}
        assert split.counts() == counted


def ragged(content):
    """Whether rows are of different lengths, or a column has the name of another."""
    lines = lines_of(content)
    return len({len(row) for row in lines}) > 1 or len(set(lines[0])) < len(lines[0])


LABELLED = st.dictionaries(st.sampled_from(IMAGES), SMALL | ODD, max_size=5)


@fuzz(150)
@hypothesis.given(predicted=LABELLED, true=LABELLED)
@hypothesis.example(predicted={"Mug1.jpg": "9007199254740993"}, true={"Mug1.jpg": "9007199254740992"})
@hypothesis.example(predicted={"Mug1.jpg": "9007199254740993.0"}, true={"Mug1.jpg": "9007199254740992"})
@hypothesis.example(predicted={"Mug1.jpg": "inf"}, true={"Mug1.jpg": "1e400"})
def test_the_accuracy_of_a_csv_is_an_independent_count(folder, predicted, true):
    paths = []
    for name, labels in (("predicted.csv", predicted), ("true.csv", true)):
        paths.append(folder / name)
        with paths[-1].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("filename", "label"), *labels.items()])
    found = outcome(predict.score_classification, *paths)
    truth = {name: finite(text) for name, text in true.items() if text}
    guess = {name: finite(text) for name, text in predicted.items() if text}
    if found is None:
        values = {*true.values(), *predicted.values()}
        assert not true or not predicted or not all(re.fullmatch("[0-9]", v) for v in values)
        return
    numbers, problems = found
    correct = sum(guess.get(name) == label for name, label in truth.items())
    assert None not in {*truth.values(), *guess.values()}
    assert (numbers["correct"], numbers["total"]) == (correct, len(truth))
    assert numbers["accuracy"] == correct / len(truth)
    assert {name for name, _ in problems} == set(truth) ^ set(guess)


# --- masks and images


def emptied(place):
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000")


@st.composite
def harmed(draw):
    """An image file that was cut, or of which some bytes are others; and its kind, where it is only cut."""
    kind = draw(st.sampled_from(KINDS))
    content = bytearray(encoded(kind))
    changes = draw(st.integers(0, 4))
    for _ in range(changes):
        place = draw(st.integers(0, min(len(content), 120) - 1))
        content[place] = draw(st.integers(0, 255))
    only_cut = not changes and kind in ("PNG", "JPEG")
    return bytes(content[: draw(st.integers(0, len(content)))]), kind if only_cut else None


HARMED = harmed() | st.tuples(st.binary(max_size=40), st.none())


@fuzz(300)
@hypothesis.given(harmed=HARMED, half=st.sampled_from(("sat.jpg", "mask.png")))
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then refuses
def test_a_harmed_image_is_an_image_or_refused_and_a_cut_one_is_never_another(folder, harmed, half):
    data, (content, kind) = emptied(folder / "tiles"), harmed
    picture(0, (9, 7)).save(data / "1_sat.jpg")
    Image.fromarray(landcover.encode(np.zeros((7, 9), np.uint8))).save(data / "1_mask.png")
    (data / f"1_{half}").write_bytes(content)
    image = outcome(image_files.open_rgb, data / f"1_{half}")
    assert image is None or image.mode == "RGB"
    if image and kind:
        assert image.tobytes() == Image.open(io.BytesIO(encoded(kind))).tobytes()
    loaded = outcome(image_files.load_tiles, layout.Tiles(data, ("1",)))
    assert loaded is None or loaded[0].shape == (1, 3, *loaded[1].shape[1:])


# --- settings

KNOWN = dict(leaves(profiles.get("demo")))
PLAIN = (
    st.integers(-3, 300)
    | st.floats(-1, 2)
    | st.booleans()
    | st.text(max_size=8)
    | st.sampled_from((math.nan, math.inf, -math.inf, 10**400, 10**5000, "9" * 5000, "1e400"))
    | st.sampled_from(("adam", "sgd", "cosine", "true", "no", " 3 ", "0.5", "auto"))
)
VALUES = PLAIN | st.none() | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2)
SETTINGS = st.sampled_from(sorted(KNOWN))
DOTTED = (
    SETTINGS
    | st.builds("{}{}{}".format, SETTINGS, st.sampled_from((".", "", " ", ".x")), st.text(max_size=3))
    | st.text(max_size=12)
    | st.sampled_from(("pretrain", "name", "data.", "__class__", "x" * 10000))
)


@fuzz(300)
@hypothesis.given(profile=st.sampled_from(sorted(profiles.PROFILES)) | st.text(max_size=6), dotted=DOTTED, value=VALUES)
@hypothesis.example(profile="demo", dotted="seed", value=10**5000)
@hypothesis.example(profile="demo", dotted="everything.images", value=[])
def test_a_setting_is_within_its_range_or_refused(profile, dotted, value):
    found = outcome(profiles.get, profile, {dotted: value})
    if found is None:
        return
    assert profile in profiles.PROFILES and dotted in KNOWN
    after, before = dict(leaves(found)), dict(leaves(profiles.get(profile)))
    new, schema = after.pop(dotted), allowed(dotted)
    assert type(new) is type(KNOWN[dotted]) and new in schema.get("enum", (new,))
    if isinstance(new, (int, float)):
        assert schema.get("minimum", -math.inf) <= new <= schema.get("maximum", math.inf) and abs(new) < math.inf
    if isinstance(new, tuple):
        assert new and all(type(item) is str for item in new)
    before.pop(dotted)
    assert after == before


@fuzz(200)
@hypothesis.given(dotted=SETTINGS, value=PLAIN)
def test_a_value_and_its_text_give_the_same_profile(dotted, value):
    hypothesis.assume(value != 10**5000)  # it has no text
    ways = [value, str(value), f" {value} "]
    if isinstance(KNOWN[dotted], tuple) and str(value).isprintable():
        ways[0] = str(value).split(",")
    one, two, three = (outcome(profiles.get, "demo", {dotted: way}) for way in ways)
    assert one == two == three


# --- folder layouts

HARMS = ("gone", "a file", "a folder", "upper case", "empty")
EXTRA = ["._hidden.jpg", "odd.jpg", "ODD.JPG", "ünï.jpg", "a b.jpg", os.fsdecode(b"\xe9.jpg"), "Thumbs.db"]
EXTRA += ["._0001_sat.jpg", "_sat.jpg", "0009_sat.jpg", "0001_SAT.JPG", "0009_mask.png"]
INSIDE = ("p1_data/mini/train", "p1_data/office/train", "p2_data/train", "p2_data/validation", ".")
SHOWN = ("p1_data/mini/train/Cup0.jpg", "p1_data/office/val/Mug0.jpg")
SHOWN += ("p2_data/train/0000_sat.jpg", "p2_data/train/0000_mask.png", "p2_data/validation/0000_mask.png")
PARTS = (*INSIDE, *SHOWN, "p1_data", "p1_data/mini", "p1_data/mini/train.csv", "p1_data/office", "p1_data/office/val")
PARTS += ("p1_data/office/train.csv", "p1_data/office/val.csv", "p1_data/pretrain_model_SL.pt", "p2_data")
JPEG, MASK = encoded("JPEG"), io.BytesIO()
Image.fromarray(landcover.encode(np.zeros((7, 9), np.uint8))).save(MASK, format="PNG")
WHOLE = {"images": 1, "tiles": 1, "halves": 3, "pool_csv": True, "harms": [], "extra": []}
TREES = st.fixed_dictionaries(
    {
        "images": st.integers(1, 3),
        "tiles": st.integers(1, 3),
        "halves": st.sampled_from((1, 2, 3, 3, 3)),
        "pool_csv": st.booleans(),
        "harms": st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(HARMS)), max_size=2),
        "extra": st.lists(st.tuples(st.sampled_from(INSIDE), st.sampled_from(EXTRA)), max_size=3),
    }
)


@contextlib.contextmanager
def grown(tree):
    """A data folder after its description, deleted afterwards."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        root.mkdir()
        for part in ("mini/train", "office/train", "office/val") if tree["halves"] & 1 else ():
            names = [f"{name}{i}.jpg" for name in ("Cup", "Mug") for i in range(tree["images"])]
            images = root / "p1_data" / part
            images.mkdir(parents=True)
            for name in names:
                (images / name).write_bytes(JPEG)
            rows = [f"{i},{name},{int(name[0] == 'M')}" for i, name in enumerate(names)]
            if part != "mini/train" or tree["pool_csv"]:
                images.with_name(f"{images.name}.csv").write_text("\n".join(("id,filename,label", *rows)))
            (root / "p1_data" / "pretrain_model_SL.pt").touch()
        for part in ("train", "validation") if tree["halves"] & 2 else ():
            tiles = root / "p2_data" / part
            tiles.mkdir(parents=True)
            for i in range(tree["tiles"]):
                (tiles / f"{i:04d}_sat.jpg").write_bytes(JPEG)
                (tiles / f"{i:04d}_mask.png").write_bytes(MASK.getvalue())
        for part, harm in tree["harms"]:
            harm_one(root / part, harm)
        for part, name in tree["extra"]:
            if (root / part).is_dir():
                (root / part / name).write_bytes(JPEG)
        yield root


def harm_one(path, harm):
    if not path.exists():
        return
    whole_folder = path.is_dir()
    if harm == "upper case":
        path.rename(path.with_name(path.name.upper() or "ROOT"))
        return
    shutil.rmtree(path) if whole_folder else path.unlink()
    if harm == "a file" or (harm == "empty" and not whole_folder):
        path.write_bytes(b"")
    elif harm != "gone":
        path.mkdir()


def splits(found):
    """(folder, split) of each part that a layout has."""
    one, two = found.problem1, found.problem2
    if one:
        yield from {
            "p1_data/mini/train": one.pool,
            "p1_data/office/train": one.train,
            "p1_data/office/val": one.val,
        }.items()
    if two:
        yield from {"p2_data/train": two.train, "p2_data/validation": two.validation}.items()


def counted_simply(root, part):
    """How many images or tiles a part has, counted with os alone."""
    table = root / f"{part}.csv"
    if table.is_file():
        return len(table.read_text().split()) - 1
    files = [e.name for e in os.scandir(root / part) if e.is_file() and e.name[0] != "."]
    return sum(file.endswith("_sat.jpg" if part[1] == "2" else ".jpg") for file in files)


@fuzz(80)
@hypothesis.given(tree=TREES)
def test_a_layout_is_counted_right_or_refused(capsys, tree):
    """By a run and by data info; the doctor never stumbles and finds what stops a run."""
    with grown(tree) as root:
        health = examined(root)
        assert [health[f"p{n}"] is not None for n in (1, 2)] == [(root / f"p{n}_data").is_dir() for n in (1, 2)]
        code, printed, _ = run(capsys, "data", "check", "--data-root", root)
        assert code == (1 if health["errors"] else 0) and printed
        found = outcome(layout.find, root, Data())
        code, printed, said = run(capsys, "data", "info", "--data-root", root, "--json")
        if found is None:
            assert (tree["harms"] or tree["extra"]) and health["errors"]
            assert code == 1 and printed == "" and said.startswith("\nhw1lib: ") and said.count("\n") == 2
            return
        assert found.has == {n: (root / f"p{n}_data").is_dir() for n in (1, 2)}
        counts = {part: counted_simply(root, part) for part, _ in splits(found)}
        for part, split in splits(found):
            assert len(split) == counts[part]
            assert all(path.is_file() for path in split.paths)
            assert len(outcome(layout.fingerprint, split)) == 64
        for half in root.glob("p[12]_data"):
            assert len(outcome(layout.folder_fingerprint, half)) == 64
        info = json.loads(printed)
        shown = [info[name]["images"] for name in ("pool", "train", "val") if name in info]
        assert code == 0 and said == "" and [*shown, *info.get("tiles", {}).values()] == list(counts.values())


@fuzz(40)
@hypothesis.given(harmed=HARMED, name=st.sampled_from(SHOWN))
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then refuses
def test_the_doctor_reads_any_image_and_names_what_no_image_is(harmed, name):
    with grown(WHOLE) as root:
        (root / name).write_bytes(harmed[0])
        found = examined(root)
        if outcome(image_files.open_rgb, root / name) is None:
            assert (root / name).name in " ".join(found["errors"] + found["warnings"])
