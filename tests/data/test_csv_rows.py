"""CSV files as other programs write them: what is unambiguous is read, and what is not used is named."""

import re
import shutil
import unicodedata

import pytest

from hw1lib.data import csv_rows, layout, listing
from hw1lib.data.check import report
from hw1lib.data.csv_rows import GROUPS
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tests.conftest import OFFICE, picture, write_labelled, write_problem1

PARTS = ("mini/train", "office/train", "office/val")


@pytest.fixture
def root(tmp_path):
    write_problem1(tmp_path / "p1_data")
    return tmp_path


def checked(root, warnings=0):
    """Problem 1 as a run reads it and the warnings of the data check, which has no errors."""
    found = report.examine(root, progress=False)
    assert found["errors"] == [] and len(found["warnings"]) == warnings, found
    return layout.find(root, Data()).problem1, " ".join(found["warnings"])


# --- dialects


def renamed(pattern):
    """Rewrite each file name of a CSV."""
    return lambda text: re.sub(r",(\w+\.jpg),", pattern, text)


DIALECTS = {
    "semicolons": lambda text: text.replace(",", ";"),
    "bars": lambda text: text.replace(",", "|"),
    "quotes after a space": lambda text: re.sub("(?m)^(.*),(.*),(.*)$", r'"\1", "\2", "\3"', text),
    "padding in the first row": lambda text: text.replace("id,filename,label", " id , Filename, LABEL\u00a0"),
    "old Mac line ends": lambda text: text.replace("\n", "\r"),
    "Windows line ends and a byte-order mark": lambda text: "\ufeff" + text.replace("\n", "\r\n"),
    "UTF-16, big-endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "rows without content": lambda text: text.replace("\n", "\n\n", 3) + ",,\n , \n\n\n",
    "a separator at each end": lambda text: text.replace("\n", ",\n"),
    "an index without a name": lambda text: text.replace("id,", ",", 1),
    "labels with a decimal point": lambda text: text.replace("\n", ".0\n").replace("label.0", "label"),
    "its path on Windows": renamed(r",p1_data\\office\\train\\\1,"),
    "dots and slashes": renamed(r",.//./office/train/../train/\1,"),
    "letter case as on Windows": lambda text: re.sub(r"\w+\.jpg", lambda name: f"Train/{name[0].upper()}", text),
    "spaces around names": renamed(", \\1\u00a0,"),
    "Excel's separator": lambda text: f"sep=;\n{text}".replace(",", ";").replace("\n", "\r\n").encode("utf-16"),
    "a second note": lambda text: text.replace("id,filename,label", "note,FILENAME,label,note"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_table_means_the_same_in_every_dialect(root, dialect):
    table = root / "p1_data" / "office" / "train.csv"
    before = csv_rows.read_labelled(table)[["filename", "label"]].values.tolist()
    content = DIALECTS[dialect](table.read_text())
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = csv_rows.read_labelled(table)
    files = listing.match(table.with_suffix(""), rows["filename"])
    assert [[files[name], label] for name, label in rows[["filename", "label"]].values.tolist()] == before


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_may_have_another_normal_form_than_on_the_disk(root, forms):
    """As in archives made by macOS; files that differ in nothing else are not confused."""
    on_disk, in_table = (unicodedata.normalize(form, "Größe é 1.jpg") for form in forms)
    folder, table = root / "p1_data/office/train", root / "p1_data/office/train.csv"
    (folder / "Couch00001.jpg").rename(folder / on_disk)
    table.write_text(table.read_text().replace("Couch00001.jpg", in_table))
    assert checked(root)[0].train.files[0] == on_disk
    (folder / unicodedata.normalize("NFD", "GRÖẞE É 1.JPG").casefold()).write_bytes((folder / on_disk).read_bytes())
    shutil.copy(folder / on_disk, folder / on_disk.replace("jpg", "JPG"))
    with pytest.raises(UserError, match="train.csv: 1 file is missing .* in row 2"):
        layout.find(root, Data())


def test_only_files_in_the_folder_itself_match(tmp_path):
    folder = tmp_path / "p1_data" / "train"
    (folder / "sub").mkdir(parents=True)
    for name in ("x.jpg", "sub/y.jpg", "A.jpg", "a.jpg", " b.jpg", "b.jpg"):
        picture(0).save(folder / name)
    wanted = {" b.jpg": " b.jpg", "b.jpg ": "b.jpg", "A.jpg": "A.jpg", "a.JPG": None, "y.jpg": None, "sub/y.jpg": None}
    wanted |= {"sub/../x.jpg": "x.jpg", "../train/x.jpg": "x.jpg", "../x.jpg": None, "rain/x.jpg": None, "": None}
    wanted |= {str(folder / "x.jpg"): "x.jpg", "/elsewhere/p1_data/train/x.jpg": None, "sub": None, ".": None}
    assert listing.match(folder, wanted) == wanted


def test_rows_are_counted_as_in_an_editor(root):
    """Excel's separator line, empty rows and line ends in quotes count."""
    table = root / "p1_data/office/train.csv"
    table.write_bytes(b'sep=;\r\nfilename;label;note\r\n\r\nMug00001.jpg;2;"two\r\nlines"\r\nMug00002.jpg;;\r\n')
    with pytest.raises(UserError, match='train.csv, row 6: the label is ""'):
        layout.find(root, Data())


# --- classes


@pytest.mark.parametrize(("split", "name"), [("train", "my_photo_1.jpg"), ("val", "1.jpg")])
def test_labels_identify_classes_whatever_files_are_called(root, split, name):
    clean, table = layout.find(root, Data()).problem1, root / "p1_data" / "office" / f"{split}.csv"
    picture(9000, colour=(200, 120, 50)).save(table.with_suffix("") / name)
    table.write_text(f"{table.read_text()}99,{name},0\n")
    one, _ = checked(root)
    assert one.train.classes == one.val.classes == clean.classes and one.train.numbers == clean.train.numbers
    before, after = getattr(clean, split), getattr(one, split)
    assert after.labels.tolist() == [*before.labels.tolist(), 0] and after.files[-1] == name


def relabel(root, part, label):
    """Rewrite a CSV with a label for each file, given its name and number."""
    table = root / "p1_data" / f"{part}.csv"
    files = csv_rows.read_rows(table, "filename")["filename"]
    write_labelled(table, [(name, label(name, n)) for n, name in enumerate(files)])


def test_labels_may_be_names_which_are_numbered_in_sorted_order(root):
    """Spaces and the normal form do not count."""
    for part, form in zip(PARTS[1:], ("NFC", "NFD")):
        relabel(root, part, lambda name, _: unicodedata.normalize(form, f" {name[:-9]}ü "))
    one, _ = checked(root)
    wanted = tuple(f"{name}ü" for name in sorted(OFFICE))
    for split in (one.train, one.val):
        assert split.classes == split.numbers == wanted
        assert all(name.startswith(wanted[label].strip("ü")) for name, label in zip(split.files, split.labels))


# --- a pool without usable labels

WORDNET, ODD = ("n01532829", "n02091244"), ("1.5", "3", "inf")
POOLS = {  # label of the n-th image, labels of the pool, words of the warning
    "WordNet ids": (lambda n: WORDNET[n % 2], [0, 1] * 6, ['labels are names, such as "n01532829", numbered 0 to 1']),
    "names, numbers and none": (lambda n: ("NaN", "7", "x1")[n % 3], [-1, 0, 1] * 4, ['such as "7"', "4 of 12 labels"]),
    "odd numbers": (lambda n: ODD[n % 3], [-1, 0, -1] * 4, ["8 of 12 labels", '"1.5" in row 2', "k-NN"]),
    "all missing": (lambda n: ["", " none ", "NA"][n % 3], None, ['12 of 12 labels cannot be used ("" in row 2)']),
}


@pytest.mark.parametrize("kind", POOLS)
def test_usable_labels_of_the_pool_are_used(root, kind):
    label, labels, words = POOLS[kind]
    relabel(root, "mini/train", lambda _, n: label(n))
    one, text = checked(root, warnings=1 + ("k-NN" in words))
    assert all(word in text for word in ["p1_data/mini/train.csv", *words]) and len(one.pool) == 12
    part = one.pool.labelled()
    if labels is None:
        assert one.pool.labels is None and part is None
    else:
        assert one.pool.labels.tolist() == labels and len(part) == sum(n >= 0 for n in labels)


HEAD = b"id,filename,label\n"
UNLISTED = {  # the pool's CSV, number of images used, words of the warnings
    "no column label": (b"filename\n00001.jpg\n00002.jpg\n", 2, ["has no column label", "10 images are not used"]),
    "no column filename": (b"id,label\n1,3\n", 12, ["lacks the column filename", '"id", "label"']),
    "files that are not there": (HEAD + b"1,00001.jpg,3\n2,00002.jpg,4\n3,x.jpg,4\n4,,3\n", 2,
        ['2 files are missing from p1_data/mini/train: "x.jpg" in row 4, "" in row 5', "10 images are not used"]),
    "none that is there": (HEAD + b"1,x.jpg,3\n2,y.jpg,4\n", 12, ['2 files are missing from p1_data/mini/train']),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNLISTED)
def test_the_csv_of_the_pool_may_be_incomplete(root, kind):
    content, count, words = UNLISTED[kind]
    (root / "p1_data" / "mini" / "train.csv").write_bytes(content)
    one, text = checked(root, warnings=1 + (count == 2) + (count == 2))
    assert len(one.pool) == count and all(word in text for word in words), text


# --- groups.csv

ROWS = [f"p1_data/office/train,{name}0000{i}.jpg" for name in OFFICE for i in range(1, 5)]
ROWS += [f"p1_data/office/val,{name}0010{i}.jpg" for name in OFFICE for i in range(2)]
USED = [  # ways to write a row of ROWS
    lambda row: row.replace("/", "\\"),
    lambda row: row.upper().removeprefix("P1_DATA/"),
    lambda row: row.replace("train,", "train,train/").replace("val,", "val/,office\\val\\"),
    lambda row: f"C:\\hw1_data\\{row}",
]
UNUSED = {  # rows (those of ROWS by number), which splits have groups, words of the note
    "unknown files": ([*range(18), "p1_data/office/val,x.jpg,b", "office/val,..\\y.jpg,b"], (True, True),
        'rows without a file in p1_data/office/val: "x.jpg" in row 20, "..\\y.jpg" in row 21'),
    "unknown splits": ([*range(18), "p1/train,x.jpg,b", "train,Mug00001.jpg,b"], (True, True),
        '"p1/train" in row 20, "train" in row 21'),
    "a file without one": ([*range(17)], (True, False), "of p1_data/office/val, 1 have no group or two (Mug00101"),
    "an empty group": ([*range(18), "p1_data/office/train,Mug00001.jpg,"], (True, True), ""),
    "two groups": ([*range(18), "office\\train,Mug00001.jpg,other"], (False, True), "of p1_data/office/train, 1 have"),
    "nothing that fits": (["x,y,z"], (False, False), '"x" in row 2'),
    "one split": ([*range(12)], (True, False), ""),
}  # fmt: skip


def write_groups(root, rows, end=""):
    (root / GROUPS).write_text("\n".join(["Split, FILENAME ,group", *rows, end]))


@pytest.mark.parametrize("write", USED)
def test_groups_are_used_however_they_are_written(root, write):
    write_groups(root, [f"{write(row)},{'north' if n % 2 else 'south'}" for n, row in enumerate(ROWS)])
    one = layout.find(root, Data()).problem1
    for split in (one.train, one.val):
        assert split.groups.tolist() == [1, 0] * (len(split) // 2)
    part = layout.find(root, Data(office_limit=4)).problem1.train
    assert part.groups.tolist() == [one.train.groups[one.train.files.index(name)] for name in part.files]


@pytest.mark.parametrize("kind", UNUSED)
def test_groups_that_are_not_used_are_named_once(root, kind):
    rows, used, words = UNUSED[kind]
    write_groups(root, [f"{ROWS[row]},g{row // 3}" if isinstance(row, int) else row for row in rows])
    one, text = checked(root, warnings=bool(words))
    assert words in text and (one.train.groups is not None, one.val.groups is not None) == used
    assert bool(one.group_notes) == bool(words)
