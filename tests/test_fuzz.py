"""Property tests: whatever a file holds, a right result or a clear error.

Each test draws inputs that a user could have, reads them a second time in the simplest way, and
holds the library's result against that. A refusal must be one line of text.
"""

import contextlib
import csv
import dataclasses
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
from hypothesis.extra import numpy as arrays
from PIL import Image

from hw1lib import cli, predict, profiles
from hw1lib.data import csv_rows, landcover, layout
from hw1lib.data import images as image_files
from hw1lib.data.check import doctor as check
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import picture
from tests.settings import leaves


def fuzz(examples):
    """Draws the same examples in every run, so that a failure is never luck."""
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def outcome(function, *arguments):
    """What a function gives, or None where it refuses in one line."""
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1, repr(str(error))
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a test; they overwrite each other's files."""
    return tmp_path_factory.mktemp("fuzz")


# --- CSVs

IMAGES = ("Couch1.jpg", "Couch2.jpg", "Mug1.jpg", "Mug 2.jpg", "Tasse_é.jpg", "NA", "杯,1.jpg")
LONG = "x" * 300 + ".jpg"
NAMES = st.sampled_from(IMAGES) | st.sampled_from(
    ("", " ", "../Couch1.jpg", "/etc/hostname", ".", "..", "a\0b", "a\nb", LONG, "Couch9.jpg")
)
SMALL = st.integers(0, 3).map(str)
ODD = st.sampled_from(
    (
        "",
        " ",
        "01",
        "+2",
        "-1",
        "1.0",
        "1.5",
        "1e1",
        "inf",
        "nan",
        "NA",
        "x",
        "0x1",
        "1_0",
        "True",
        "False",
        " 1",
        "٣",
        "\0",
        "9007199254740992",
        "9007199254740993",
        "9007199254740993.0",
        str(2**63),
        str(-(2**63)),
        "9" * 400,
        "1e400",
    )
)
HEADERS = st.permutations(["id", "filename", "label"]) | st.lists(
    st.sampled_from(("id", "filename", "label", "Label", " filename", "note", "")), max_size=5
)


@st.composite
def tables(draw):
    """The bytes of a CSV: mostly right, with one or more of the things that spreadsheets do."""
    header = draw(HEADERS)
    plain = draw(st.booleans())
    cells = {"filename": st.sampled_from(IMAGES) if plain else NAMES, "label": SMALL if plain else SMALL | ODD}
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


def read_simply(content, *columns):
    """Cells of some columns, row by row, with the csv module; None where it is no such table."""
    try:
        lines = [r for r in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if r]
    except (UnicodeDecodeError, csv.Error):
        return None
    if not lines or any(column not in lines[0] for column in columns):
        return None
    places = [lines[0].index(column) for column in columns]
    width = len(lines[0])
    padded = [row + [""] * (width - len(row)) for row in lines[1:]]
    return [tuple(row[place] for place in places) for row in padded]


def finite(text):
    """A number from text, exactly; None where it is none."""
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and -(2**63) <= number < 2**63 else None


@fuzz(300)
@hypothesis.given(content=tables() | st.binary(max_size=60))
@hypothesis.example(content=b"id,filename,label\n0,Couch1.jpg,1,9\n")
@hypothesis.example(content=b"id,label,filename\n7,0,1,Couch1.jpg\n8,1,0,Mug1.jpg\n")
@hypothesis.example(content=b"filename,label\nCouch1.jpg,True\nMug1.jpg,False\n")
@hypothesis.example(content=b"filename,label\nMug1.jpg,9007199254740993\nNA,9007199254740992\nCouch1.jpg,1.0\n")
@hypothesis.example(content=f"filename,label\n{LONG},1\n".encode())
@hypothesis.example(content=b"filename,label\na\0b,1\n")
@hypothesis.example(content=b'filename,label\n"a\nb",1\n')
@pytest.mark.filterwarnings("error")  # a warning is no clear error
def test_a_labelled_table_is_read_as_it_stands_or_refused(folder, content):
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for name in IMAGES:
        (pictures / name).touch()
    root = folder / "labelled"
    for part in ("mini/train", "office/train", "office/val"):
        place = root / "p1_data" / part
        if not place.exists():
            shutil.copytree(pictures, place)
        place.with_name(place.name + ".csv").write_bytes(content)
    found = outcome(layout.find, root, Data())
    rows = read_simply(content, "filename", "label")
    if found is None:  # what nobody could misread is never refused
        plain = rows and all(n in IMAGES and re.fullmatch("[0-9]", label) for n, label in rows)
        assert not plain or _ragged(content)
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


def _ragged(content):
    """Whether rows are of different lengths, or a column has the name of another."""
    lines = [r for r in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if r]
    return len({len(row) for row in lines}) > 1 or len(set(lines[0])) < len(lines[0])


@fuzz(300)
@hypothesis.given(content=tables() | st.binary(max_size=60))
@pytest.mark.filterwarnings("error")  # a warning is no clear error
def test_rows_as_text_are_exactly_what_is_written(folder, content):
    path = folder / "rows.csv"
    path.write_bytes(content)
    found = outcome(csv_rows.read_rows, path, "filename", "label")
    if found is not None:
        shown = list(found[["filename", "label"]].itertuples(index=False, name=None))
        assert shown == read_simply(content, "filename", "label")


LABELLED = st.dictionaries(st.sampled_from(IMAGES), SMALL | ODD, max_size=5)


@fuzz(300)
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


@fuzz(150)
@hypothesis.given(one=tables() | st.binary(max_size=60), two=tables())
@pytest.mark.filterwarnings("error")  # a warning is no clear error
def test_any_two_tables_are_scored_or_refused(folder, one, two):
    paths = folder / "one.csv", folder / "two.csv"
    for path, content in zip(paths, (one, two)):
        path.write_bytes(content)
    found = outcome(predict.score_classification, *paths)
    assert found is None or 0 <= found[0]["correct"] <= found[0]["total"]


# --- masks and images

SIDES = st.integers(1, 6)
PURE = st.sampled_from((0, 255))
NEARLY = st.sampled_from((0, 1, 127, 128, 254, 255))
COLOURS = arrays.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3)), elements=PURE | NEARLY)
CLASSES = arrays.arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.integers(0, 6))
CLASS_OF = {tuple(colour): i for i, colour in enumerate(landcover.PALETTE.tolist())}


def decode_slowly(colours):
    """Classes and number of strays, pixel by pixel."""
    pixels = [tuple(pixel) for pixel in colours.reshape(-1, 3).tolist()]
    classes = [CLASS_OF.get(pixel, landcover.UNKNOWN) for pixel in pixels]
    return classes, sum(pixel not in CLASS_OF for pixel in pixels)


@fuzz(150)
@hypothesis.given(colours=COLOURS)
def test_a_mask_decodes_to_its_colours_classes(colours):
    before = colours.copy()
    classes, stray = landcover.decode(colours)
    assert (classes.ravel().tolist(), stray) == decode_slowly(colours)
    assert classes.shape == colours.shape[:2] and (colours == before).all()


@fuzz(60)
@hypothesis.given(classes=CLASSES)
def test_a_mask_survives_its_colours(classes):
    again, stray = landcover.decode(landcover.encode(classes))
    assert (again == classes).all() and stray == 0


def emptied(place):
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def scored_slowly(pairs):
    """IoU of each scored class over all pairs of masks, and their pixel accuracy."""
    pixels = [pair for t, p in pairs for pair in zip(t.ravel().tolist(), p.ravel().tolist())]
    iou = {}
    for number, name in enumerate(landcover.SCORED):
        union = sum(number in pair for pair in pixels)
        iou[name] = pixels.count((number, number)) / union if union else None
    known = [t == p for t, p in pixels if t != landcover.UNKNOWN]
    return iou, sum(known) / max(len(known), 1)


@fuzz(100)
@hypothesis.given(pairs=st.lists(st.tuples(CLASSES, CLASSES, st.booleans()), max_size=4))
@hypothesis.example(pairs=[(np.full((2, 2), 6, np.uint8), np.full((2, 2), 6, np.uint8), True)])
def test_a_folder_of_masks_is_scored_as_its_definition_says(folder, pairs):
    guess, true = emptied(folder / "guess"), emptied(folder / "true")
    scored = []
    for number, (truth, predicted, same) in enumerate(pairs):
        predicted = predicted if not same else np.resize(predicted, truth.shape)
        Image.fromarray(landcover.encode(truth)).save(true / f"{number}_mask.png")
        Image.fromarray(landcover.encode(predicted)).save(guess / f"{number}_mask.png")
        if truth.shape == predicted.shape:
            scored.append((truth, predicted))
    found = outcome(predict.score_segmentation, guess, true)
    measured = [v for v in scored_slowly(scored)[0].values() if v is not None]
    if found is None:
        assert not measured
        return
    numbers, problems = found
    iou, accuracy = scored_slowly(scored)
    assert numbers["tiles"] == len(scored) == len(pairs) - len(problems)
    assert numbers["iou"] == pytest.approx(iou)
    mean = sum(measured) / len(measured) if measured else math.nan
    assert numbers["miou"] == pytest.approx(mean, nan_ok=True)
    assert numbers["pixel_accuracy"] == pytest.approx(accuracy)
    assert numbers["stray_pixels"] == 0


@fuzz(60)
@hypothesis.given(
    classes=CLASSES,
    mode=st.sampled_from(("RGB", "RGBA", "P", "L", "1", "CMYK", "I;16", "LA")),
    kind=st.sampled_from(("PNG", "TIFF", "GIF", "JPEG")),
)
def test_a_mask_of_an_odd_kind_is_read_or_refused(folder, classes, mode, kind):
    """Kinds that keep the colours keep the classes."""
    data = emptied(folder / "odd")
    coloured = Image.fromarray(landcover.encode(classes))
    image = Image.new(mode, coloured.size, 300) if mode == "I;16" else coloured.convert(mode)
    with contextlib.suppress(OSError, ValueError):  # not every format has every mode
        image.save(data / "1_mask.png", format=kind)
    coloured.save(data / "1_sat.jpg")
    loaded = outcome(image_files.load_tiles, layout.Tiles(data, ("1",)))
    if loaded and mode in ("RGB", "RGBA", "P") and kind in ("PNG", "TIFF"):
        assert (loaded[1][0] == classes).all() and loaded[2] == 0
    found = outcome(predict.score_segmentation, data, data)
    assert found is None or found[0]["pixel_accuracy"] in (0, 1)


def encoded(kind):
    """An image of a few pixels as that format's bytes."""
    stream = io.BytesIO()
    picture(0, (9, 7)).save(stream, format=kind)
    return stream.getvalue()


KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000")


@st.composite
def harmed(draw):
    """An image file that was cut, or of which some bytes are others."""
    content = bytearray(encoded(draw(st.sampled_from(KINDS))))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, min(len(content), 120) - 1))
        content[place] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))])


@fuzz(600)
@hypothesis.given(content=harmed() | st.binary(max_size=40))
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then refuses
def test_a_harmed_image_is_an_image_or_refused(folder, content):
    path = folder / "harmed.jpg"
    path.write_bytes(content)
    image = outcome(image_files.open_rgb, path)
    assert image is None or image.mode == "RGB"


@fuzz(60)
@hypothesis.given(cut=st.integers(1, 200), kind=st.sampled_from(("PNG", "JPEG")))
def test_a_cut_image_is_never_another_image(folder, cut, kind):
    path = folder / "cut.png"
    content = encoded(kind)
    path.write_bytes(content)
    complete = image_files.open_rgb(path)
    path.write_bytes(content[: -min(cut, len(content))])
    image = outcome(image_files.open_rgb, path)
    assert image is None or image.tobytes() == complete.tobytes()


@fuzz(60)
@hypothesis.given(content=harmed() | st.binary(max_size=40), half=st.sampled_from(("sat", "mask")))
@pytest.mark.filterwarnings("ignore")
def test_a_harmed_tile_is_loaded_or_refused(folder, content, half):
    data = emptied(folder / "tiles")
    picture(0, (9, 7)).save(data / "1_sat.jpg")
    Image.fromarray(landcover.encode(np.zeros((7, 9), np.uint8))).save(data / "1_mask.png")
    (data / f"1_{half}.{'jpg' if half == 'sat' else 'png'}").write_bytes(content)
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
DOTTED = (
    st.sampled_from(sorted(KNOWN))
    | st.builds(
        "{}{}{}".format, st.sampled_from(sorted(KNOWN)), st.sampled_from((".", "", " ", ".x")), st.text(max_size=3)
    )
    | st.text(max_size=12)
    | st.sampled_from(("pretrain", "name", "data.", "__class__", "x" * 10000))
)


def field_of(dotted):
    """The dataclass field behind a setting."""
    *groups, name = dotted.split(".")
    owner = profiles.get("demo")
    for group in groups:
        owner = getattr(owner, group)
    return {field.name: field for field in dataclasses.fields(owner)}[name]


@fuzz(500)
@hypothesis.given(profile=st.sampled_from(sorted(profiles.PROFILES)) | st.text(max_size=6), dotted=DOTTED, value=VALUES)
@hypothesis.example(profile="demo", dotted="seed", value=10**5000)
@hypothesis.example(profile="demo", dotted="everything.images", value=[])
def test_a_setting_is_within_its_range_or_refused(profile, dotted, value):
    found = outcome(profiles.get, profile, {dotted: value})
    if found is None:
        return
    assert profile in profiles.PROFILES and dotted in KNOWN
    after = dict(leaves(found))
    new, allowed = after.pop(dotted), field_of(dotted).metadata
    assert type(new) is type(KNOWN[dotted])
    assert new in allowed.get("choices", (new,))
    assert allowed.get("low", -math.inf) <= new <= allowed["high"] if "low" in allowed else True
    if isinstance(new, tuple):
        assert new and all(type(item) is str for item in new)
    before = dict(leaves(profiles.get(profile)))
    before.pop(dotted)
    assert after == before


@fuzz(300)
@hypothesis.given(dotted=st.sampled_from(sorted(KNOWN)), value=PLAIN)
def test_a_value_and_its_text_give_the_same_profile(dotted, value):
    hypothesis.assume(value != 10**5000)  # it has no text
    if isinstance(KNOWN[dotted], tuple):
        value = str(value)
        assert outcome(profiles.get, "demo", {dotted: value.split(",")}) == outcome(
            profiles.get, "demo", {dotted: value}
        )
    plain = outcome(profiles.get, "demo", {dotted: value})
    assert plain == outcome(profiles.get, "demo", {dotted: str(value)})
    assert plain == outcome(profiles.get, "demo", {dotted: f" {value} "})


@fuzz(60)
@hypothesis.given(dotted=st.sampled_from(("lr", "weight_decay", "warmup_epochs")))
def test_a_number_without_end_is_no_setting_of_a_training(dotted):
    assert outcome(profiles.get, "demo", {f"pretrain.{dotted}": math.inf}) is None


@pytest.mark.parametrize("settings", ["pretrain.epochs=2", 3, [1], ["seed"], [("seed", 1)]])
def test_settings_that_are_no_names_with_values_are_refused(settings):
    """As papermill passes on what follows -p settings."""
    assert outcome(profiles.get, "demo", settings) is None


# --- folder layouts

HARMS = ("gone", "a file", "a folder", "upper case", "empty")
EXTRA = (
    "._hidden.jpg",
    "odd.jpg",
    "ODD.JPG",
    "ünï.jpg",
    "a b.jpg",
    os.fsdecode(b"\xe9.jpg"),
    "._0001_sat.jpg",
    "_sat.jpg",
    "0009_sat.jpg",
    "0001_SAT.JPG",
    "Thumbs.db",
    "0009_mask.png",
)
PARTS = (
    "p1_data",
    "p1_data/mini",
    "p1_data/mini/train",
    "p1_data/mini/train.csv",
    "p1_data/mini/train/Cup0.jpg",
    "p1_data/office",
    "p1_data/office/train",
    "p1_data/office/train.csv",
    "p1_data/office/val",
    "p1_data/office/val.csv",
    "p1_data/office/val/Mug0.jpg",
    "p1_data/pretrain_model_SL.pt",
    "p2_data",
    "p2_data/train",
    "p2_data/train/0000_sat.jpg",
    "p2_data/train/0000_mask.png",
    "p2_data/validation",
    "p2_data/validation/0001_sat.jpg",
    "p2_data/validation/0001_mask.png",
    ".",
)
INSIDE = ("p1_data/mini/train", "p1_data/office/train", "p2_data/train", "p2_data/validation", ".")
JPEG, MASK = encoded("JPEG"), io.BytesIO()
Image.fromarray(landcover.encode(np.zeros((7, 9), np.uint8))).save(MASK, format="PNG")

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
        if tree["halves"] & 1:
            for part in ("mini/train", "office/train", "office/val"):
                names = [f"{name}{i}.jpg" for name in ("Cup", "Mug") for i in range(tree["images"])]
                images = root / "p1_data" / part
                images.mkdir(parents=True)
                for name in names:
                    (images / name).write_bytes(JPEG)
                rows = [f"{i},{name},{int(name[0] == 'M')}" for i, name in enumerate(names)]
                if part != "mini/train" or tree["pool_csv"]:
                    table = images.with_name(f"{images.name}.csv")
                    table.write_text("\n".join(("id,filename,label", *rows)))
            (root / "p1_data" / "pretrain_model_SL.pt").touch()
        if tree["halves"] & 2:
            for part in ("train", "validation"):
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
    """(name, split) of each part that a layout has."""
    for problem, names in ((found.problem1, ("pool", "train", "val")), (found.problem2, ("train", "validation"))):
        for name in names if problem else ():
            yield ("tiles " if problem is found.problem2 else "") + name, getattr(problem, name)


def counted_simply(root):
    """How many images and tiles each part has, counted with os alone."""
    counts = {}
    for name, part, ending in (
        ("pool", "p1_data/mini/train", ".jpg"),
        ("train", "p1_data/office/train", ".jpg"),
        ("val", "p1_data/office/val", ".jpg"),
        ("tiles train", "p2_data/train", "_sat.jpg"),
        ("tiles validation", "p2_data/validation", "_sat.jpg"),
    ):
        table = root / f"{part}.csv"
        if table.is_file():
            counts[name] = len(table.read_text().split()) - 1
        elif (root / part).is_dir():
            files = [e.name for e in os.scandir(root / part) if e.is_file() and e.name[0] != "."]
            counts[name] = sum(file.endswith(ending) for file in files)
    return counts


@fuzz(200)
@hypothesis.given(tree=TREES)
def test_a_layout_is_counted_right_or_refused(tree):
    with grown(tree) as root:
        found = outcome(layout.find, root, Data())
        if found is None:
            assert tree["harms"] or tree["extra"]
            return
        counts = counted_simply(root)
        assert found.has == {n: (root / f"p{n}_data").is_dir() for n in (1, 2)}
        for name, split in splits(found):
            assert len(split) == counts[name]
            assert all(path.is_file() for path in split.paths)
            assert len(outcome(layout.fingerprint, split)) == 64
        for half in root.glob("p[12]_data"):
            assert len(outcome(layout.folder_fingerprint, half)) == 64


def command(*words):
    """Exit code, standard output and error of the command line, both strictly UTF-8."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    streams[1].reconfigure(errors="backslashreplace")  # as Python's own standard error
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = cli.main([str(word) for word in words])
    return code, *(stream.buffer.getvalue().decode() for stream in streams)


@fuzz(60)
@hypothesis.given(tree=TREES)
def test_data_info_prints_counts_or_one_paragraph(tree):
    with grown(tree) as root:
        code, printed, said = command("data", "info", "--data-root", root, "--json")
        if code == 0:
            info, counts = json.loads(printed), counted_simply(root)
            shown = {n: info[n]["images"] for n in ("pool", "train", "val") if n in info}
            shown |= {f"tiles {n}": count for n, count in info.get("tiles", {}).items()}
            assert shown == {name: counts[name] for name in shown} and said == ""
        else:
            assert code == 1 and printed == ""
            assert said.startswith("\nhw1lib: ") and said.count("\n") == 2


# --- the data doctor


@fuzz(60)
@hypothesis.given(tree=TREES)
def test_the_doctor_never_stumbles_and_finds_what_stops_a_run(tree):
    with grown(tree) as root:
        found = check.examine(root, progress=False)
        assert found == json.loads(json.dumps(found))
        for text in found["errors"] + found["warnings"]:
            assert text.strip() and len(text.splitlines()) == 1
        runs = outcome(layout.find, root, Data())
        assert runs or found["errors"]
        for number in (1, 2):
            assert (found[f"p{number}"] is not None) == (root / f"p{number}_data").is_dir()
        for form in ([], ["--json"]):
            code, printed, _ = command("data", "check", "--data-root", root, *form)
            assert code == (1 if found["errors"] else 0) and printed


@fuzz(150)
@hypothesis.given(content=tables() | st.binary(max_size=60), part=st.sampled_from(("train", "val")))
def test_the_doctor_reads_any_table(folder, content, part):
    with grown(
        {
            "images": 1,
            "tiles": 1,
            "halves": 1,
            "pool_csv": False,
            "harms": [],
            "extra": [("p1_data/office/train", name) for name in IMAGES],
        }
    ) as root:
        (root / "p1_data" / "office" / f"{part}.csv").write_bytes(content)
        found = check.examine(root, progress=False)
        assert found["errors"] or outcome(layout.find, root, Data())
        assert found == json.loads(json.dumps(found))


@fuzz(100)
@hypothesis.given(
    content=harmed() | st.binary(max_size=40),
    name=st.sampled_from(
        (
            "p1_data/mini/train/Cup0.jpg",
            "p1_data/office/val/Mug0.jpg",
            "p2_data/train/0000_sat.jpg",
            "p2_data/train/0000_mask.png",
            "p2_data/validation/0000_mask.png",
        )
    ),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then refuses
def test_the_doctor_reads_any_image_and_names_what_no_image_is(content, name):
    with grown({"images": 1, "tiles": 1, "halves": 3, "pool_csv": True, "harms": [], "extra": []}) as root:
        (root / name).write_bytes(content)
        found = check.examine(root, progress=False)
        if outcome(image_files.open_rgb, root / name) is None:
            said = " ".join(found["errors"] + found["warnings"])
            assert (root / name).name in said
        assert found == json.loads(json.dumps(found))
