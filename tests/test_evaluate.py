"""Scores are the course's, over every image, and say what they do not cover (any CSV at all: test_fuzz)."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from hw1lib import evaluate
from hw1lib.data import landcover
from hw1lib.errors import UserError
from hw1lib.metrics import iou
from hw1lib.metrics.statistics import wilson
from tests.conftest import picture, refused, run, write_labelled

# --- masks

COURSE = {3: 0, 6: 1, 5: 2, 2: 3, 1: 4, 7: 5, 0: 6}  # 4·red + 2·green + blue -> class


def course_mean_iou(predicted_dir, true_dir):
    """The course's mean_iou_evaluate.py, independent of the library."""

    def read(folder):
        colours = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
        return np.vectorize(lambda code: COURSE.get(code, -1))((colours >= 128) @ (4, 2, 1))

    predicted, true = read(predicted_dir), read(true_dir)
    total = 0.0
    for number in range(6):
        tp_fp, tp_fn = np.sum(predicted == number), np.sum(true == number)
        tp = np.sum((predicted == number) * (true == number))
        total += tp / (tp_fp + tp_fn - tp) / 6
    return total


def write_masks(folder, classes=range(7)):
    """Write six predicted and true masks that agree in half of the pixels; return the folders and the classes."""
    random = np.random.default_rng(0)
    true = random.choice(list(classes), (6, 9, 12)).astype(np.uint8)
    wrong = random.choice([c for c in classes if c < 6], true.shape).astype(np.uint8)
    predicted = np.where((random.random(true.shape) < 0.5) & (true < 6), true, wrong)
    for name, masks in (("predicted", predicted), ("true", true)):
        (folder / name).mkdir()
        for number, mask in enumerate(masks):
            save_mask(folder / name / f"000{number}_mask.png", mask)
    return (folder / "predicted", folder / "true"), predicted, true


def save_mask(path, classes):
    Image.fromarray(landcover.encode(classes)).save(path)


@pytest.mark.parametrize("classes", [range(7), (1, 3, 6), (0, 5), (2,)])
def test_scores_are_those_of_the_arrays_paired_by_name(tmp_path, capsys, classes):
    """For any kind of PNG; other files are ignored; a class that does not occur has no IoU."""
    folders, predicted, true = write_masks(tmp_path, classes)
    for number, mode in enumerate(("P", "RGBA")):
        path = folders[0] / f"000{number}_mask.png"
        image = Image.open(path).convert("RGB")
        image.quantize(8).save(path) if mode == "P" else image.convert(mode).save(path)
    (folders[0] / "notes.txt").write_text("text")
    (folders[0] / "._0000_mask.png").write_bytes(b"")
    picture(0).save(folders[1] / "0000_sat.jpg")
    (folders[1] / "0003_mask.png").rename(folders[1] / "0003_MASK.PNG")
    matrix = iou.confusion(true, predicted)
    by_class = {name: None if np.isnan(v) else v for name, v in zip(landcover.SCORED, iou.iou(matrix))}
    score, problems = evaluate.score_segmentation(*folders)
    assert (score["miou"], score["iou"], problems) == (iou.miou(matrix), by_class, [])
    code, out, text = run(capsys, "evaluate", "segmentation", *folders)
    assert code == 0 and text == "" and max(map(len, out.splitlines())) <= 80
    lines = {name: "does not occur" if value is None else f"{value:.4f}" for name, value in by_class.items()}
    lines |= {"mIoU": f"{score['miou']:.4f}  (6 of 6 tiles)", "pixel accuracy": f"{iou.pixel_accuracy(matrix):.4f}"}
    assert {line[:15].strip(): line[15:].strip() for line in out.splitlines()} == lines


def test_the_miou_is_the_courses_and_inexact_colours_are_counted(tmp_path, capsys):
    folders, _, _ = write_masks(tmp_path)
    for folder, colours in zip(folders, ([(255, 0, 0), (254, 128, 0), (20, 127, 30)], [(1, 2, 3)])):
        pixels = np.array(Image.open(folder / "0001_mask.png"))
        pixels[0, : len(colours)] = colours
        Image.fromarray(pixels).save(folder / "0001_mask.png")
    score, problems = evaluate.score_segmentation(*folders)
    assert score["miou"] == pytest.approx(course_mean_iou(*folders), abs=1e-12) and problems == []
    code, out, text = run(capsys, "evaluate", "segmentation", *folders)
    assert code == 0 and text == "" and "3 predicted pixels not exactly" in out and "1 true pixel not exactly" in out


NUMBERED = np.arange(108, dtype=np.uint8).reshape(9, 12) % 7
CASES = {  # change of a folder; tiles counted as wrong and left out, and other images; what names them
    "missing": ("predicted", lambda f: (f / "0003_mask.png").unlink(), (1, 0, 0), "0003_mask.png: .*missing"),
    "damaged": ("predicted", lambda f: (f / "0004_mask.png").write_bytes(b"text"), (1, 0, 0), "0004_.*not an image"),
    "cut": ("predicted", lambda f: (f / "0004_mask.png").write_bytes((f / "0004_mask.png").read_bytes()[:60]),
        (1, 0, 0), "0004_mask.png: it counts as wrong"),
    "size": ("predicted", lambda f: save_mask(f / "0001_mask.png", NUMBERED.T), (1, 0, 0),
        "0001_mask.png: .*9 × 12 instead of 12 × 9"),
    "class numbers": ("predicted", lambda f: Image.fromarray(NUMBERED).save(f / "0002_mask.png"), (1, 0, 0),
        "0002_mask.png: .*class numbers"),
    "other name": ("predicted", lambda f: (f / "0005_mask.png").rename(f / "0005.png"), (1, 0, 1), "0005.png: "),
    "other file type": ("predicted", lambda f: shutil.copy(f / "0005_mask.png", f / "0005_mask.tif"), (0, 0, 1),
        "0005_mask.tif: .*not called"),
    "extra": ("predicted", lambda f: shutil.copy(f / "0005_mask.png", f / "0077_mask.png"), (0, 1, 0),
        "0077_mask.png: it has no true"),
    "no truth": ("true", lambda f: (f / "0000_mask.png").unlink(), (0, 1, 0), "0000_mask.png: it has no true mask"),
    "damaged truth": ("true", lambda f: (f / "0000_mask.png").write_bytes(b""), (0, 1, 0), "0000_.*an empty file"),
    "image without a mask": ("true", lambda f: picture(0).save(f / "0009_sat.jpg"), (0, 0, 1), "0009_.*not called"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_score_does_not_cover_is_on_its_line_and_named(tmp_path, capsys, case):
    """A missing or unusable prediction is wrong in every pixel."""
    folders, predicted, true = write_masks(tmp_path)
    folder, change, (wrong, left_out, others), message = CASES[case]
    change(tmp_path / folder)
    score, problems = evaluate.score_segmentation(*folders)
    rows = range(folder == "true" and left_out, 6)  # the tile without a true mask is the first
    if wrong:
        predicted[int(re.search("000([0-5])", message)[1])] = landcover.UNKNOWN
    assert problems and score["miou"] == iou.miou(iou.confusion(true[rows], predicted[rows]))
    code, out, text = run(capsys, "evaluate", "segmentation", *folders)
    assert code == 1 and re.search(message, text) and "Traceback" not in text
    tiles = 7 if case == "extra" else 6
    parts = [f"({tiles - wrong - left_out} of {tiles} tiles"]
    parts += [f"{wrong} without a usable prediction, counted as wrong"] if wrong else []
    parts += [f"{left_out} without a usable true mask, left out"] if left_out else []
    parts += [f"{others} other images, not scored"] if others else []
    assert f"{score['miou']:.4f}  {'; '.join(parts)})\n" in out


def test_nothing_to_score_is_an_error_with_the_reason(tmp_path, capsys):
    folders, _, true = write_masks(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "0001_sat.jpg")
    for bad in (tmp_path / "empty", tmp_path / "nowhere"):
        for pair in ((bad, folders[1]), (folders[0], bad)):
            with pytest.raises(UserError, match=f"{bad.name} holds no .*_mask.png|no folder .*{bad.name}"):
                evaluate.score_segmentation(*pair)
    shutil.copy(folders[0] / "0001_mask.png", folders[0] / "0001_MASK.png")
    assert "0001_mask.png and 0001_MASK.png" in refused(capsys, "evaluate", "segmentation", *folders)
    (folders[0] / "0001_MASK.png").unlink()
    shutil.copytree(folders[1], tmp_path / "black")
    for number in range(6):
        save_mask(tmp_path / "black" / f"000{number}_mask.png", np.full_like(true[0], landcover.UNKNOWN))
    text = refused(capsys, "evaluate", "segmentation", folders[0], tmp_path / "black")
    assert f"{tmp_path / 'black'} shows a class" in text and "nan" not in text
    for path in folders[0].iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    text = refused(capsys, "evaluate", "segmentation", *folders)
    assert "0005_mask.png" in text and "missing" in text


# --- labels


@pytest.fixture
def csvs(tmp_path):
    """Two CSVs of ten labels in different orders, of which six agree."""
    true = [3, 17, 64, 3, 17, 64, 3, 17, 64, 3]
    predicted = true[:6] + [17, 3, 3, 64]
    shuffled = np.random.default_rng(0).permutation(10)
    for name, numbers, order in (("p.csv", predicted, shuffled), ("t.csv", true, range(10))):
        write_labelled(tmp_path / name, [(f"Mug{i:05d}.jpg", numbers[i]) for i in order])
    return tmp_path / "p.csv", tmp_path / "t.csv"


def test_labels_are_paired_by_file_name(csvs, capsys):
    """Whatever the order, the ids, spaces and line endings."""
    low, high = wilson(6, 10)
    code, out, text = run(capsys, "evaluate", "classification", *csvs)
    assert code == 0 and text == "" and len(out.strip()) <= 80
    assert out == f"accuracy 0.6000  (6 of 10; 95 % interval {low:.4f} to {high:.4f})\n"
    content = csvs[0].read_text().replace(",3\n", ", 3 \n").replace("\n", "\r\n")
    csvs[0].write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert run(capsys, "evaluate", "classification", *csvs) == (0, out, "")


NO_TRUTH = "without a true label, not counted"
UNPAIRED = [  # predictions, truth; the score; who is named for what
    ("b,2\nc,1\nd,\ne,1", "a,1\nb,2\nc,3\nd,1", f"0.2500  (1 of 4; 2 without a prediction, wrong; 1 {NO_TRUTH};",
        {"a": "no prediction", "d": "no prediction", "e": "no label in"}),
    ("a,1\nb,2\nc,3", "a,1\nb,None\nc, NaN ", f"1.0000  (1 of 1; 2 {NO_TRUTH};", {"b": "no label", "c": "no label"}),
    ("a.jpg,1\na,1", "a.jpg,1", f"1.0000  (1 of 1; 1 {NO_TRUTH};", {"a": "no label"}),
    ("a,Couch\nb,Mug\nx\ty,Mug", "a;Couch\nb;Fan", f"0.5000  (1 of 2; 1 {NO_TRUTH};", {r"x\ty": "no label"}),
    ("val\\a,1.0\nval\\b,2", "./b,2\n./a,01", "1.0000  (2 of 2;", {}),
    ("Gro\u0308\u00dfe,\u00fc", "Gr\u00f6\u00dfe,u\u0308", "1.0000  (1 of 1;", {}),
    ("007,1\n7,2", "007,1\n7,1", "0.5000  (1 of 2;", {}),
]  # fmt: skip


@pytest.mark.parametrize(("predicted", "true", "score", "named"), UNPAIRED)
def test_every_image_in_one_csv_alone_is_counted_on_the_line_and_named(tmp_path, capsys, predicted, true, score, named):
    for name, rows in (("p.csv", predicted), ("t.csv", true)):
        separator = ";" if ";" in rows else ","
        (tmp_path / name).write_text(f"FileName{separator} label \n{rows}\n", encoding="utf-16")
    code, out, text = run(capsys, "evaluate", "classification", tmp_path / "p.csv", tmp_path / "t.csv")
    assert out.startswith(f"accuracy {score} 95 % interval") and code == bool(named) and "Traceback" not in text
    lines = text.splitlines()[2:]
    assert len(lines) == len(named)
    for line, (name, reason) in zip(lines, named.items()):
        assert line.startswith(f"  {name}: it has {reason}")


FAULTY = [  # content of one CSV, and the error
    (b"id,filename\n1,a.jpg\n", "lacks the column label"), (b"id,filename,label\n1,a.jpg,\n", "holds no labels"),
    (b"id,filename,label\n1,a.jpg,3\n2,b.jpg,x\n", "two kinds: .*row 3 .*row 2"), (None, "No such file"),
    (b"id,filename,label\n1,a.jpg,3\n2,a.jpg,3\n", "a.jpg more than once, in rows 2 and 3"),
    (b"filename,label\n0,1\n", "no image in common; their first images are"),
    (b"filename,label\nMug00001.jpg,Couch\n", "of two kinds, such as"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), FAULTY)
def test_a_faulty_csv_is_named(csvs, tmp_path, content, message):
    bad = tmp_path / "bad.csv"
    if content is not None:
        bad.write_bytes(content)
    for pair in ((bad, csvs[1]), (csvs[0], bad)):
        with pytest.raises(UserError, match=f"bad.csv.*{message}"):
            evaluate.score_classification(*pair)
