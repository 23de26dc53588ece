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
from tests.conftest import picture, refused, run

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


@pytest.mark.parametrize("classes", [range(7), (1, 3, 6)])
def test_scores_are_those_of_the_arrays_paired_by_name(tmp_path, capsys, classes):
    """Other files are ignored; a class that does not occur has no IoU."""
    folders, predicted, true = write_masks(tmp_path, classes)
    for name in ("._0000_mask.png", "Thumbs.db", "README.txt"):
        (folders[0] / name).write_bytes(b"")
    picture(0).save(folders[1] / "0000_sat.jpg")
    (folders[1] / "0003_mask.png").rename(folders[1] / "0003_MASK.PNG")
    matrix = iou.confusion(true, predicted)
    code, out, text = run(capsys, "evaluate", "segmentation", *folders)
    assert code == 0 and text == "" and max(map(len, out.splitlines())) <= 80
    by_class = zip(landcover.SCORED, iou.iou(matrix))
    lines = {name: "does not occur" if np.isnan(value) else f"{value:.4f}" for name, value in by_class}
    lines |= {"mIoU": f"{iou.miou(matrix):.4f}  (6 of 6 tiles)", "pixel accuracy": f"{iou.pixel_accuracy(matrix):.4f}"}
    assert {line[:15].strip(): line[15:].strip() for line in out.splitlines()} == lines


def test_the_miou_is_the_courses_and_inexact_colours_are_counted(tmp_path):
    folders, _, _ = write_masks(tmp_path)
    for folder, colours in zip(folders, ([(255, 0, 0), (254, 128, 0), (20, 127, 30)], [(1, 2, 3)])):
        pixels = np.array(Image.open(folder / "0001_mask.png"))
        pixels[0, : len(colours)] = colours
        Image.fromarray(pixels).save(folder / "0001_mask.png")
    score, problems = evaluate.score_segmentation(*folders)
    assert score["miou"] == pytest.approx(course_mean_iou(*folders), abs=1e-12) and problems == []
    assert "1 true pixels not exactly" in score["coverage"] and "3 predicted pixels" in score["coverage"]


NUMBERED = np.arange(108, dtype=np.uint8).reshape(9, 12) % 7
CASES = [  # folder and change; tiles counted as wrong, left out, and other files; what names them
    ("predicted", lambda f: (f / "0003_mask.png").unlink(), (1, 0, 0), "predicted/0003_mask.png: .*missing"),
    ("predicted", lambda f: (f / "0004_mask.png").write_bytes(b"text"), (1, 0, 0), "0004_.*not an image"),
    ("predicted", lambda f: save_mask(f / "0001_mask.png", NUMBERED.T), (1, 0, 0), "0001_mask.png: .*9 × 12 instead"),
    ("predicted", lambda f: Image.fromarray(NUMBERED).save(f / "0002_mask.png"), (1, 0, 0), "0002_.*class numbers"),
    ("predicted", lambda f: (f / "0005_mask.png").rename(f / "0005.png"), (1, 0, 1), "0005.png: "),
    ("predicted", lambda f: shutil.copy(f / "0005_mask.png", f / "0005_MASK.png"), (0, 0, 1), "0005_mask.*same number"),
    (
        "predicted",
        lambda f: shutil.copy(f / "0005_mask.png", f / "0077_mask.png"),
        (0, 1, 0),
        "predicted/0077_.*: left out.*true/0077_.* is missing",
    ),
    ("predicted", lambda f: np.save(f / "0006_mask.npy", NUMBERED), (0, 0, 1), "predicted/0006_mask.npy: not scored"),
    ("true", lambda f: shutil.copytree(f, f / "more"), (0, 0, 1), "true/more: not scored"),
    (
        "true",
        lambda f: (f / "0000_mask.png").unlink(),
        (0, 1, 0),
        "predicted/0000_.*: left out.*true/0000_.* is missing",
    ),
    ("true", lambda f: (f / "0000_mask.png").write_bytes(b""), (0, 1, 0), "0000_.*an empty file"),
    ("true", lambda f: picture(0).save(f / "0009_sat.jpg"), (0, 0, 1), "0009_.*its name is not NNNN_mask"),
]


@pytest.mark.parametrize(("folder", "change", "counts", "message"), CASES)
def test_what_a_score_does_not_cover_is_on_its_line_and_named(tmp_path, capsys, folder, change, counts, message):
    """A missing or unusable prediction is wrong in every pixel."""
    folders, predicted, true = write_masks(tmp_path)
    change(tmp_path / folder)
    (wrong, left_out, others), rows = counts, range(folder == "true" and counts[1], 6)  # the first lacks its true mask
    if wrong:
        predicted[int(re.search("000([0-5])", message)[1])] = landcover.UNKNOWN
    miou = iou.miou(iou.confusion(true[rows], predicted[rows]))
    code, out, text = run(capsys, "evaluate", "segmentation", *folders)
    assert code == 1 and re.search(message, text) and "Traceback" not in text
    tiles = 7 if "0077" in message else 6
    parts = [f"({tiles - wrong - left_out} of {tiles} tiles", *["1 counted as wrong"] * wrong]
    parts += ["1 left out, without a usable true mask"] * left_out + ["1 other file, not scored"] * others
    assert f"{miou:.4f}  {'; '.join(parts)})\n" in out


def test_nothing_to_score_is_an_error_with_the_reason(tmp_path, capsys):
    """Nor is anything scored against itself, which would be perfect."""
    folders, _, true = write_masks(tmp_path)
    (tmp_path / "link").symlink_to(folders[0])
    assert "are the same" in refused(capsys, "evaluate", "segmentation", folders[0], tmp_path / "link")
    (tmp_path / "empty").mkdir()
    for bad, message in (("empty", "empty holds no "), ("nowhere", "no folder ")):
        for pair in ((tmp_path / bad, folders[1]), (folders[0], tmp_path / bad)):
            assert message in refused(capsys, "evaluate", "segmentation", *pair)
    for path in shutil.copytree(folders[1], tmp_path / "black").iterdir():
        save_mask(path, np.full_like(true[0], landcover.UNKNOWN))
    text = refused(capsys, "evaluate", "segmentation", folders[0], tmp_path / "black")
    assert f"{tmp_path / 'black'} shows a class" in text
    for path in folders[0].iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    assert "could be scored" in refused(capsys, "evaluate", "segmentation", *folders)


# --- labels

NO_TRUTH = "without a true label, not counted"
PAIRS = [  # predictions, truth; the score; who is named for what
    ("a,1", "b,1", f"0.0000  (0 of 1; 1 without a prediction, wrong; 1 {NO_TRUTH};", {"b": "no pred", "a": "no label"}),
    ("b,3\na,3\nc,5", "a,3\nb,3\nc, 3 ", "0.6667  (2 of 3;", {}),
    ("b,2\nc,1\nd,\ne,1", "a,1\nb,2\nc,3\nd,1", f"0.2500  (1 of 4; 2 without a prediction, wrong; 1 {NO_TRUTH};",
        {"a": "no prediction", "d": "no prediction", "e": "no label in"}),
    ("a,1\nb,2\nc,3", "a,1\nb,None\nc, NaN ", f"1.0000  (1 of 1; 2 {NO_TRUTH};", {"b": "no label", "c": "no label"}),
    ("a,Couch\nb,Mug\nx\ty,Mug", "a;Couch\nb;Fan", f"0.5000  (1 of 2; 1 {NO_TRUTH};", {r"x\ty": "no label"}),
    ("val\\a,1.0\nval\\b,2", "./b,2\n./a,01", "1.0000  (2 of 2;", {}),
    ("Gro\u0308\u00dfe,\u00fc", "Gr\u00f6\u00dfe,u\u0308", "1.0000  (1 of 1;", {}),
]  # fmt: skip


@pytest.mark.parametrize(("predicted", "true", "score", "named"), PAIRS)
def test_images_are_paired_by_name_and_those_in_one_csv_alone_are_named(
    tmp_path, capsys, predicted, true, score, named
):
    for name, rows in (("p.csv", predicted), ("t.csv", true)):
        separator = ";" if ";" in rows else ","
        (tmp_path / name).write_text(f"FileName{separator} label \n{rows}\n", encoding="utf-16")
    code, out, text = run(capsys, "evaluate", "classification", tmp_path / "p.csv", tmp_path / "t.csv")
    assert out.startswith(f"accuracy {score} 95 % interval") and code == bool(named) and "Traceback" not in text
    low, high = wilson(*map(int, re.search(r"\((\d+) of (\d+)", out).groups()))
    assert f"{low:.4f} to {high:.4f}" in out
    lines = text.splitlines()[2:]
    assert len(lines) == len(named)
    for line, (name, reason) in zip(lines, named.items()):
        assert line.startswith(f"  {name}: it has {reason}")


FAULTY = [  # rows of one CSV, and the error
    ("1,a.jpg,", "holds no labels"), ("1,a.jpg,3\n2,b.jpg,x", "two kinds: .*row 3 .*row 2"), (None, "No such file"),
    ("1,a.jpg,3\n2,a.jpg,3", "a.jpg more than once, in rows 2 and 3"), ("1,,3", "row 2: the filename is empty"),
    ("1,a.jpg,Couch", "numbers as labels and the other has names"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), FAULTY)
def test_a_faulty_csv_is_named(tmp_path, rows, message):
    bad, good = tmp_path / "bad.csv", tmp_path / "good.csv"
    good.write_text("filename,label\na.jpg,3\n")
    if rows is not None:
        bad.write_text(f"id,filename,label\n{rows}\n")
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(UserError, match=f"bad.csv.*{message}"):
            evaluate.score_classification(*pair)
