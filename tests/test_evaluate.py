"""Scores of masks and labels: those of the course's own script, and what could not be scored."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib import cli, predict
from hw1lib.data import landcover
from hw1lib.errors import UserError
from hw1lib.measures import metrics
from hw1lib.measures.statistics import wilson

SEEDS = range(5)
COURSE = {3: 0, 6: 1, 5: 2, 2: 3, 1: 4, 7: 5, 0: 6}  # 4·red + 2·green + blue -> class


def course_mean_iou(predicted_dir, true_dir):
    """The course's mean_iou_evaluate.py, written again without a line of ours."""

    def read(folder):
        found = []
        for path in sorted(folder.glob("*.png")):
            bits = (np.asarray(Image.open(path)) >= 128).astype(int)
            codes = 4 * bits[..., 0] + 2 * bits[..., 1] + bits[..., 2]
            classes = np.full(codes.shape, -1)
            for code, number in COURSE.items():
                classes[codes == code] = number
            found.append(classes)
        return np.stack(found)

    predicted, true = read(predicted_dir), read(true_dir)
    total = 0.0
    for number in range(6):
        tp_fp, tp_fn = np.sum(predicted == number), np.sum(true == number)
        tp = np.sum((predicted == number) * (true == number))
        total += tp / (tp_fp + tp_fn - tp) / 6
    return total


def save(folder, name, classes):
    folder.mkdir(exist_ok=True)
    colours = np.zeros((*classes.shape, 3), dtype=np.uint8)
    for code, number in COURSE.items():
        colours[classes == number] = [255 * (code >> bit & 1) for bit in (2, 1, 0)]
    Image.fromarray(colours).save(folder / f"{name}_mask.png")


def case(seed, count=3, shape=(9, 12), classes=range(7)):
    """True classes, and predictions that are right for about half of the pixels."""
    random = np.random.default_rng(seed)
    true = random.choice(list(classes), (count, *shape)).astype(np.uint8)
    other = random.choice([c for c in classes if c < 6], true.shape).astype(np.uint8)
    return true, np.where((random.random(true.shape) < 0.5) & (true < 6), true, other)


@pytest.fixture
def folders(tmp_path):
    """Writes masks, and returns the folders of the predicted and the true ones."""

    def write(true, predicted):
        for number, (one, two) in enumerate(zip(true, predicted)):
            save(tmp_path / "true", f"{number:04d}", one)
            save(tmp_path / "predicted", f"{number:04d}", two)
        return tmp_path / "predicted", tmp_path / "true"

    return write


def fails(function, *words):
    with pytest.raises(UserError) as caught:
        function()
    text = str(caught.value)
    assert [word for word in words if word not in text] == [] and "\n" not in text


def run(capsys, *words):
    """Exit code, standard output and error of `evaluate`."""
    code = cli.main([str(word) for word in ("evaluate", *words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip()


# --- masks


@pytest.mark.parametrize("seed", SEEDS)
def test_the_miou_is_the_courses(folders, seed):
    """Tiles of unlike content: a mean over tiles would be another number."""
    true, predicted = case(seed)
    true[0, :5] = 4
    where = folders(true, predicted)
    found, problems = predict.score_segmentation(*where)
    assert found["miou"] == pytest.approx(course_mean_iou(*where), abs=1e-12)
    assert found["tiles"] == 3 and found["stray_pixels"] == 0 and problems == []
    each = [metrics.miou(metrics.confusion(*pair)) for pair in zip(true, predicted)]
    assert abs(found["miou"] - np.mean(each)) > 1e-4


@pytest.mark.parametrize("classes", [range(7), (1, 3, 6), (0, 5), (2,)])
def test_all_numbers_are_those_of_the_arrays(folders, classes):
    true, predicted = case(0, classes=classes)
    found, _ = predict.score_segmentation(*folders(true, predicted))
    matrix = metrics.confusion(true, predicted)
    assert found["miou"] == metrics.miou(matrix)
    assert found["pixel_accuracy"] == metrics.pixel_accuracy(matrix)
    assert list(found["iou"]) == list(landcover.SCORED)
    for value, wanted in zip(found["iou"].values(), metrics.iou(matrix)):
        assert value is None if np.isnan(wanted) else value == wanted


def test_perfect_masks_score_one_and_strangers_nothing(folders):
    true, _ = case(1, classes=range(6))
    found, _ = predict.score_segmentation(*folders(true, true))
    assert found["miou"] == found["pixel_accuracy"] == 1
    found, _ = predict.score_segmentation(*folders(true, (true + 1) % 6))
    assert found["miou"] == found["pixel_accuracy"] == 0


def test_files_are_paired_by_name_and_further_predictions_do_not_matter(folders):
    true, predicted = case(2)
    where = folders(true, predicted)
    before = predict.score_segmentation(*where)
    save(where[0], "9999", true[0])
    (where[0] / "notes.txt").write_text("text")
    assert predict.score_segmentation(*where) == before
    one, two = (where[0] / f"{n}_mask.png" for n in ("0000", "0001"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert predict.score_segmentation(*where)[0]["miou"] != before[0]["miou"]


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_the_same_colours_in_another_kind_of_png(folders, mode):
    true, predicted = case(3)
    where = folders(true, predicted)
    before = predict.score_segmentation(*where)
    for path in where[0].iterdir():
        image = Image.open(path).convert("RGB")
        image.quantize(8).save(path) if mode == "P" else image.convert(mode).save(path)
        with Image.open(path) as saved:
            assert saved.mode == mode
    assert predict.score_segmentation(*where) == before


def test_strange_colours_of_the_prediction_are_counted(folders):
    """Each counts as the nearest corner of the colour cube; red and black are unknown."""
    true, predicted = case(4)
    where = folders(true, predicted)
    path = where[0] / "0001_mask.png"
    pixels = np.array(Image.open(path))
    pixels[0, :3] = [(255, 0, 0), (254, 255, 0), (10, 20, 30)]
    Image.fromarray(pixels).save(path)
    nearly_yellow = landcover.CLASSES.index("agriculture")
    predicted[1, 0, :3] = (landcover.UNKNOWN, nearly_yellow, landcover.UNKNOWN)
    found, problems = predict.score_segmentation(*where)
    assert found["stray_pixels"] == 3 and problems == []
    assert found["miou"] == metrics.miou(metrics.confusion(true, predicted))
    pixels = np.array(Image.open(where[1] / "0000_mask.png"))
    pixels[0, 0] = (1, 2, 3)
    Image.fromarray(pixels).save(where[1] / "0000_mask.png")
    assert predict.score_segmentation(*where)[0]["stray_pixels"] == 3  # the truth's are not its fault


def test_what_cannot_be_scored_is_named_and_left_out(folders, capsys):
    true, predicted = case(5, count=6)
    where = folders(true, predicted)
    for number, classes in ((1, true[1][:, :7]), (2, true[2].T)):
        save(where[0], f"000{number}", classes)
    (where[0] / "0003_mask.png").unlink()
    (where[0] / "0004_mask.png").write_bytes(b"text")
    found, problems = predict.score_segmentation(*where)
    assert [name for name, _ in problems] == [f"000{n}_mask.png" for n in (1, 2, 3, 4)]
    reasons = [reason for _, reason in problems]
    assert "9 × 7 instead of 9 × 12" in reasons[0] and "12 × 9 instead of 9 × 12" in reasons[1]
    assert "missing" in reasons[2] and "cannot be decoded" in reasons[3]
    left = [0, 5]
    assert found["tiles"] == 2
    assert found["miou"] == metrics.miou(metrics.confusion(true[left], predicted[left]))
    code, out, text = run(capsys, "segmentation", *where)
    assert code == 1 and "(2 tiles)" in out and "hw1lib: 4 left out" in text
    assert all(name in text for name, _ in problems) and "Traceback" not in text


def test_the_command_prints_what_was_found(folders, capsys):
    true, predicted = case(6, classes=(0, 1, 2, 3, 4, 6))
    where = folders(true, predicted)
    found, _ = predict.score_segmentation(*where)
    code, out, text = run(capsys, "segmentation", *where)
    assert code == 0 and text == ""
    lines = {line[:15].strip(): line[15:].strip() for line in out.splitlines()}
    assert lines["mIoU"] == f"{found['miou']:.4f}  (3 tiles)"
    assert lines["pixel accuracy"] == f"{found['pixel_accuracy']:.4f}"
    assert lines.pop("barren").endswith("does not occur")
    for name in landcover.SCORED[:-1]:
        assert lines[name].endswith(f"{found['iou'][name]:.4f}")
    assert "nan" not in out.lower() and max(map(len, out.splitlines())) <= 80


def test_a_folder_without_masks_is_named(folders, tmp_path):
    where = folders(*case(0))
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "0001_sat.jpg")
    for bad in (tmp_path / "empty", tmp_path / "nowhere"):
        fails(lambda bad=bad: predict.score_segmentation(bad, where[1]), str(bad), "_mask.png")
        fails(lambda bad=bad: predict.score_segmentation(where[0], bad), str(bad), "_mask.png")


def test_nothing_to_score_is_an_error_with_the_reason(folders, capsys):
    where = folders(*case(0))
    for path in where[0].iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    fails(lambda: predict.score_segmentation(*where), "0000_mask.png", "missing")
    code, out, text = run(capsys, "segmentation", *where)
    assert code == 1 and out == "" and text.startswith("hw1lib: ") and "\n" not in text


# --- labels


def table(path, rows, columns=("id", "filename", "label")):
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


@pytest.fixture
def csvs(tmp_path):
    """Ten images, their labels, and predictions of which six are right, in another order."""
    names = [f"Mug{number:05d}.jpg" for number in range(10)]
    true = [3, 17, 64, 3, 17, 64, 3, 17, 64, 3]
    predicted = true[:6] + [17, 3, 3, 64]
    order = np.random.default_rng(0).permutation(10)
    return (
        table(tmp_path / "p.csv", [(i, names[i], predicted[i]) for i in order]),
        table(tmp_path / "t.csv", [(9 - i, name, true[i]) for i, name in enumerate(names)]),
    )


def test_the_accuracy_is_that_of_the_file_names(csvs, capsys):
    """Whatever the order and the ids."""
    found, problems = predict.score_classification(*csvs)
    assert problems == [] and (found["correct"], found["total"]) == (6, 10)
    assert found["accuracy"] == 0.6
    assert (found["ci_low"], found["ci_high"]) == wilson(6, 10)
    code, out, text = run(capsys, "classification", *csvs)
    assert code == 0 and text == ""
    assert out.startswith("accuracy 0.6000  (6 of 10;") and len(out.strip()) <= 80


@pytest.mark.parametrize("gap", ["row", "label"])
def test_an_image_without_a_prediction_is_wrong_and_named(csvs, capsys, gap):
    """The second is right, and it has no row or no label."""
    lines = csvs[0].read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "Mug00001" in line)
    lines[at : at + 1] = [] if gap == "row" else [lines[at].rpartition(",")[0] + ","]
    csvs[0].write_text("\n".join(lines) + "\n")
    found, problems = predict.score_classification(*csvs)
    assert (found["correct"], found["total"], found["accuracy"]) == (5, 10, 0.5)
    assert (found["ci_low"], found["ci_high"]) == wilson(5, 10)
    assert [name for name, _ in problems] == ["Mug00001.jpg"]
    code, out, text = run(capsys, "classification", *csvs)
    assert code == 1 and "5 of 10" in out and "Mug00001.jpg" in text and "Traceback" not in text


def test_a_prediction_for_nothing_is_named_and_changes_nothing(csvs):
    with open(csvs[0], "a") as file:
        file.write("99,Fan00001.jpg,3\n")
    found, problems = predict.score_classification(*csvs)
    assert (found["correct"], found["total"]) == (6, 10)
    assert [name for name, _ in problems] == ["Fan00001.jpg"]


@pytest.mark.parametrize("side", [0, 1])
def test_a_name_twice_is_an_error(csvs, side):
    """Which of its labels counts would be a guess."""
    with open(csvs[side], "a") as file:
        file.write("99,Mug00004.jpg,3\n")
    fails(lambda: predict.score_classification(*csvs), str(csvs[side]), "Mug00004.jpg", "more than once")


def test_spaces_and_windows_line_ends_do_not_matter(csvs):
    text = csvs[0].read_text()
    csvs[0].write_bytes(b"\xef\xbb\xbf" + text.replace(",3\n", ", 3 \n").replace("\n", "\r\n").encode())
    assert predict.score_classification(*csvs)[0]["correct"] == 6


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"id,filename\n1,a.jpg\n", "lacks the column label"),
        (b"id,label\n1,3\n", "lacks the column filename"),
        (b"a,b\n1,2\n", "filename and label"),
        (b"id,filename,label\n1,a.jpg,\n", "holds no labels"),
        (b"id,filename,label\n", "holds no labels"),
        (b"", "CSV"),
        (b"id,filename,label\n1,\xff.jpg,3\n", "CSV"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_a_faulty_table_is_named(csvs, content, word, side):
    if content is None:
        csvs[side].unlink()
    else:
        csvs[side].write_bytes(content)
    fails(lambda: predict.score_classification(*csvs), str(csvs[side]), word)
