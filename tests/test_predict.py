"""Predictions for new images, and their scores: those of the stored model, in the course's own formats."""

import contextlib
import csv
import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hw1lib import comparison, predict
from hw1lib.data import images as image_files
from hw1lib.data import landcover
from hw1lib.errors import UserError
from hw1lib.loops import augment, segment
from hw1lib.measures import metrics
from hw1lib.measures.statistics import wilson
from hw1lib.models import classifier, segmenters
from hw1lib.workbook import Workbook
from tests import conftest
from tests.conftest import OFFICE, one_paragraph, picture, write_labelled, write_problem1, write_problem2

NUMBERS = (3, 17, 64)  # the labels of the three classes in the CSVs
SETTINGS = {"model_scale": 0.125, "finetune.hidden": 16, "deeplabv3.epochs": 99}
SEEN = [0, 2, 3, 5]  # classes that the segmenter saw


def pretend(book, step, network):
    """Stores a network as a finished step's."""
    steps = book.steps
    with steps.store.claimed(step, steps.key(step), steps.config(step)) as draft:
        draft.weights(network)
        draft.metrics({"seen": SEEN})
        draft.history([])


@pytest.fixture(scope="module")
def networks():
    return {}


@pytest.fixture(scope="module")
def root(tmp_path_factory, networks):
    """A data root whose labels have gaps, and a build folder with a segmenter and setting C.

    Their weights are random, but balanced, so that what they say of an image depends on it.
    """
    root = tmp_path_factory.mktemp("predict")
    write_problem1(root / "p1_data")
    write_problem2(root / "p2_data")
    for split in ("train", "val"):
        table = root / "p1_data" / "office" / f"{split}.csv"
        rows = pd.read_csv(table)
        rows["label"] = [NUMBERS[label] for label in rows["label"]]
        rows.to_csv(table, index=False)
    book = workbook(root)
    torch.manual_seed(0)
    tiles, _, _ = image_files.load_tiles(book.data.problem2.train)
    pictures = image_files.load(book.data.problem1.train, 32)
    head = classifier.Head(len(OFFICE), hidden=16)
    networks["C"] = classifier.Classifier(classifier.backbone(0.125), head)
    networks["lraspp"] = segmenters.build("lraspp", 0.125)
    last = {"C": networks["C"].head.linear, "lraspp": networks["lraspp"].classifier.high_classifier}
    for name, network in networks.items():
        images = augment.normalise(torch.from_numpy(pictures if name == "C" else tiles))
        with torch.no_grad():
            for _ in range(30):  # BatchNorm's statistics become those of these images
                network(images)
            network.eval()
            scores = network(images) if name == "C" else segmenters.scores(network, images)
            last[name].bias -= scores.transpose(0, 1).flatten(1).mean(1)  # no class prevails
        pretend(book, f"{'finetune' if name == 'C' else 'segment'}-{name}", network)
    return root


def workbook(root):
    return Workbook("smoke", root, root / "out", SETTINGS | {"device": "cpu"})


@pytest.fixture
def book(root):
    return workbook(root)


def command(capsys, root, *words):
    """Exit code, standard output and error of `predict` on that workbook."""
    pairs = [f"{name}={value}" for name, value in SETTINGS.items()]
    options = ("--profile", "smoke", "--data-root", root, "--out", root / "out", "--device", "cpu")
    code, out, said = conftest.run(capsys, "predict", *words, *options, "--set", *pairs)
    return code, out, said.strip()


@contextlib.contextmanager
def refused(*words):
    """What is refused in one line that says these words."""
    with pytest.raises(UserError) as caught:
        yield
    text = str(caught.value)
    assert [word for word in words if str(word) not in text] == [] and "\n" not in text


def masks(folder):
    """The decoded masks by file name; each is RGB in the course's palette and nothing else."""
    found = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.mode == "RGB"
            found[path.name], strays = landcover.decode(np.asarray(image))
        assert strays == 0 and found[path.name].max() < landcover.UNKNOWN
    return found


# --- segmentation: what is written

SIZES = {"0007": (7, 5), "0010": (33, 100), "0002": (96, 64), "0001": (1, 1), "0003": (96, 64), "0004": (32, 32)}
MASKS = {f"{number}_mask.png" for number in SIZES}


@pytest.fixture
def tiles(tmp_path):
    """A folder of satellite images of mixed sizes (width, height)."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    for seed, (number, size) in enumerate(SIZES.items()):
        picture(seed, size).save(folder / f"{number}_sat.jpg")
    return folder


def expected(networks, book, path, tta=False):
    """What the network says of one image alone."""
    image = np.array(image_files.open_rgb(path)).transpose(2, 0, 1)[None]
    return segment.predict(networks["lraspp"], image, torch.device("cpu"), book.profile.lraspp, tta, SEEN)[0]


@pytest.mark.parametrize(("model", "tta"), [("", False), ("lraspp", True)])
def test_every_image_gets_its_mask_in_its_own_size(book, networks, tiles, tmp_path, model, tta):
    """A second time the same to the byte. Without a model it is the profile's improved one."""
    contents = []
    for _ in range(2):
        assert predict.segmentation(book, tiles, tmp_path / "out", model, tta) == (len(SIZES), [])
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]
    found = masks(tmp_path / "out")
    assert set(found) == MASKS
    for number, (width, height) in SIZES.items():
        mask = found[f"{number}_mask.png"]
        assert mask.shape == (height, width)
        alone = expected(networks, book, tiles / f"{number}_sat.jpg", tta)
        assert (mask == alone).mean() > 0.99  # sums in another order may turn a tie
    classes = set(np.concatenate([mask.ravel() for mask in found.values()]).tolist())
    assert classes <= set(SEEN) and len(classes) > 1


def test_with_flips_and_turns_a_turned_image_gets_the_turned_mask(book, tmp_path):
    """Without them it does not: a network knows left from right."""
    for name, turn in {"turned": Image.Transpose.ROTATE_90, "flipped": Image.Transpose.FLIP_LEFT_RIGHT}.items():
        folder = tmp_path / name
        folder.mkdir()
        for number in ("0", "1", "2"):
            made = picture(int(number), (32, 32))
            made.save(folder / f"{number}.png")
            made.transpose(turn).save(folder / f"{number} {name}.png")
        same = {}
        for tta in (False, True):
            predict.segmentation(book, folder, tmp_path / f"{name} {tta}", tta=tta)
            found = masks(tmp_path / f"{name} {tta}")
            pairs = [
                (np.asarray(Image.fromarray(found[f"{n}_mask.png"]).transpose(turn)), found[f"{n} {name}_mask.png"])
                for n in ("0", "1", "2")
            ]
            same[tta] = np.mean([(one == two).mean() for one, two in pairs])
        assert same[True] > 0.99 > same[False]


def test_every_kind_of_image_is_read_as_its_colours(book, networks, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    kinds = ["RGB.png", "RGBA.png", "L.png", "P.png", "1.png", "L.jpg", "CMYK.jpg"]
    kinds += ["RGB.JPG", "RGB.tif", "RGB.bmp", "RGB.webp"]
    for number, kind in enumerate(kinds):
        picture(3, (40, 24)).convert(kind.partition(".")[0]).save(folder / f"Größe {number} {kind}")
    assert predict.segmentation(book, folder, out) == (len(kinds), [])
    found = masks(out)
    for path in folder.iterdir():
        mask = found.pop(f"{path.stem}_mask.png")
        assert (mask == expected(networks, book, path)).mean() > 0.99, path
    assert found == {}


def test_where_there_are_tiles_their_masks_and_other_images_are_left_alone(book, tiles, tmp_path):
    for number in SIZES:
        Image.new("RGB", (9, 9)).save(tiles / f"{number}_mask.png")
    (tiles / "notes.txt").write_text("text")
    picture(0).save(tiles / "overview.png")
    before = {path: path.read_bytes() for path in tiles.iterdir()}
    assert predict.segmentation(book, tiles, tmp_path / "out") == (len(SIZES), [])
    assert {path: path.read_bytes() for path in tiles.iterdir()} == before
    (tiles / "overview.png").unlink()
    for path in tiles.glob("*_sat.jpg"):  # the same without any tile among them
        path.rename(path.with_name(path.name.replace("_sat", "")))
    assert predict.segmentation(book, tiles, tmp_path / "more") == (len(SIZES), [])
    one, two = masks(tmp_path / "out"), masks(tmp_path / "more")
    assert set(one) == set(two) == MASKS and all(np.array_equal(one[name], two[name]) for name in one)


# --- segmentation: what cannot be


def test_what_cannot_be_decoded_is_named_and_the_rest_is_written(capsys, root, tiles, tmp_path):
    code, out, text = command(capsys, root, "segmentation", tiles, tmp_path / "good", "--model", "lraspp", "--tta")
    assert code == 0 and f"{len(SIZES)} masks" in out and "left out" not in text
    whole = (tiles / "0002_sat.jpg").read_bytes()
    (tiles / "0020_sat.jpg").write_bytes(whole[: len(whole) // 2])
    (tiles / "0021_sat.jpg").write_bytes(b"")
    (tiles / "0022_sat.jpg").write_text("<html>moved</html>")
    (tiles / "0023_sat.jpg").mkdir()
    code, out, text = command(capsys, root, "segmentation", tiles, tmp_path / "out")
    assert code == 1 and f"{len(SIZES)} masks" in out and set(masks(tmp_path / "out")) == MASKS
    head, *lines = text[text.index("hw1lib: ") :].splitlines()
    assert "4 left out" in head and len(lines) == 4 and "Traceback" not in text
    for number, line in zip((20, 21, 22, 23), lines):
        assert str(tiles / f"00{number}_sat.jpg") in line and "cannot be decoded" in line


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a_sat.jpg", "a_sat.png", "a_sat.bmp")])
def test_two_images_for_one_mask_are_named(book, tmp_path, names):
    """The first by name has it, whichever order they were made in."""
    folder = tmp_path / "images"
    folder.mkdir()
    for side, name in enumerate(reversed(names), start=20):
        picture(side, (side, side)).save(folder / name)
    written, problems = predict.segmentation(book, folder, tmp_path / "out")
    first, *others = sorted(names)
    assert written == 1 and [path.name for path, _ in problems] == others
    assert all("a_mask.png" in reason for _, reason in problems)
    with Image.open(folder / first) as image:
        assert masks(tmp_path / "out")["a_mask.png"].shape[::-1] == image.size


def test_a_model_that_is_unknown_or_untrained_is_one_clear_sentence(capsys, root, book, tiles, tmp_path):
    out = tmp_path / "out"
    with refused("segment-deeplabv3", "not trained", "PROFILE=smoke", "--data-root", "--set"):
        predict.segmentation(book, tiles, out, "deeplabv3")
    code, _, text = command(capsys, root, "segmentation", tiles, out, "--model", "deeplabv3")
    assert code == 1 and one_paragraph(text)
    for model in ("unet", "LRASPP", "colour", "C"):
        with refused(f"--model {model}", *segmenters.SEGMENTERS):
            predict.segmentation(book, tiles, out, model)
    for setting, word in (("A", "finetune-A"), ("c", "--model c"), ("F", "A, B, C, D, E")):
        with refused(word):
            fill(book, root, tmp_path, ["id,filename", "1,a.jpg"], setting)
    assert not out.exists()


def test_a_folder_that_is_of_no_use_is_named(book, tiles, tmp_path):
    empty, file = tmp_path / "empty", tmp_path / "file.jpg"
    empty.mkdir()
    file.write_text("")
    for folder in (empty, file, tmp_path / "nowhere"):
        with refused(folder):
            predict.segmentation(book, folder, tmp_path / "out")
    Image.new("RGB", (9, 9)).save(empty / "0001_mask.png")  # masks alone are no images
    with refused("holds no images"):
        predict.segmentation(book, empty, tmp_path / "out")
    with refused(file):  # it cannot be written
        predict.segmentation(book, tiles, file)
    with refused("both", tiles):  # true masks may lie there
        predict.segmentation(book, tiles, tiles.parent / "file" / ".." / "tiles")
    assert file.read_text() == "" and len(list(tiles.iterdir())) == len(SIZES)


# --- classification


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def fill(book, root, tmp_path, lines, setting="C", folder=None):
    """The rows of the filled CSV, how many labels it has, and the problems."""
    table = tmp_path / "test.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = folder or root / "p1_data" / "office" / "val"
    done, problems = predict.classification(book, table, folder, tmp_path / "out.csv", setting)
    return rows_of((tmp_path / "out.csv").read_text(encoding="utf-8")), done, problems


def labels(network, paths):
    """The network's labels, as the CSVs write them, one image at a time."""
    found = []
    for path in paths:
        pixels = image_files.square(image_files.open_rgb(path), 32)
        with torch.no_grad():
            scores = network(augment.normalise(torch.from_numpy(pixels.copy())[None]))
        found.append(NUMBERS[scores.argmax()])
    return found


def test_labels_are_the_training_csvs_numbers(book, root, networks, tmp_path):
    """Also where those have gaps, and whatever the CSV held before; a table without rows stays one."""
    val = book.data.problem1.val
    lines = ["id,filename,label", *(f"{i},{name},999" for i, name in enumerate(val.files))]
    found, done, problems = fill(book, root, tmp_path, lines)
    assert done == len(val) and problems == []
    assert [int(row["label"]) for row in found] == labels(networks["C"], val.paths)
    assert len({row["label"] for row in found}) > 1
    assert fill(book, root, tmp_path, lines[:1]) == ([], 0, [])
    assert (tmp_path / "out.csv").read_text().strip() == lines[0]


IDS = ["007", "1e5", "NA", "", "0x1F", "1.0", 'say "a, b"', "Größe", " 3 ", "9999999999999999999"]


def test_ids_and_names_stay_as_they_are(book, root, tmp_path):
    """An image that is named twice gets its label twice."""
    names = [*book.data.problem1.val.files] * 2
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("filename", "id"), *zip(names, IDS)])
    found, done, problems = fill(book, root, tmp_path, text.getvalue().splitlines())
    assert [row["id"] for row in found] == IDS and list(found[0]) == ["id", "filename", "label"]
    assert [row["filename"] for row in found] == names[: len(IDS)] and done == len(IDS) and problems == []
    given = {(row["filename"], row["label"]) for row in found}
    assert len(given) == len({name for name, _ in given}) == len(names) // 2 < len(IDS)


def test_images_of_any_size_and_kind_are_labelled(book, root, networks, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    kinds = {"wide.png": (90, 20, "RGB"), "tall.jpg": (20, 90, "RGB"), "dot.png": (1, 1, "RGB")}
    kinds |= {"gray.jpg": (32, 32, "L"), "clear.png": (40, 40, "RGBA")}
    for name, (*size, mode) in kinds.items():
        picture(1, size).convert(mode).save(folder / name)
    lines = ["id,filename", *(f"1,{name}" for name in kinds)]
    found, done, problems = fill(book, root, tmp_path, lines, folder=folder)
    assert done == 5 and problems == []
    assert [int(row["label"]) for row in found] == labels(networks["C"], [folder / name for name in kinds])


def test_missing_and_damaged_images_have_no_label_and_a_name(capsys, root, tmp_path):
    folder, table, out = tmp_path / "images", tmp_path / "test.csv", tmp_path / "out.csv"
    shutil.copytree(root / "p1_data" / "office" / "val", folder)
    good = sorted(path.name for path in folder.iterdir())
    whole = (folder / good[0]).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("text")
    bad = ["cut.jpg", "empty.jpg", "text.jpg", "gone.jpg"]
    names = [name for pair in zip(bad, good) for name in pair]
    write_labelled(table, [(name, "") for name in names])
    code, printed, text = command(capsys, root, "classification", table, folder, out)
    assert code == 1 and "4 labels" in printed and "4 left out" in text
    found = {row["filename"]: row["label"] for row in rows_of(out.read_text())}
    assert [found[name] for name in bad] == [""] * 4 and list(found) == names
    assert all(int(found[name]) in NUMBERS for name in good[:4])
    lines = text[text.index("hw1lib: ") :].splitlines()[1:]
    for name, word in zip(bad, ["cannot be decoded"] * 3 + ["missing"]):
        assert [line for line in lines if f"{name}: " in line and word in line]


def test_no_name_leads_out_of_the_folder_and_one_that_no_file_can_have_is_only_missing(book, root, tmp_path):
    """Though an image lies there."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub", folder):
        picture(0).save(place / "x.jpg")
    names = ["../x.jpg", "sub/x.jpg", "/etc/hostname", "..", ".", "./x.jpg", str(folder / "x.jpg")]
    names += ["", "x" * 300 + ".jpg", "a\x00b.jpg", "*.jpg", "~", "link.jpg"]
    (folder / "link.jpg").symlink_to(tmp_path / "x.jpg")
    lines = ["id,filename", *(f"1,{name}" for name in (*names, "x.jpg"))]
    found, done, problems = fill(book, root, tmp_path, lines, folder=folder)
    assert done == 1 and len(problems) == len(names) and [row["filename"] for row in found] == [*names, "x.jpg"]
    assert [row["label"] == "" for row in found] == [True] * len(names) + [False]


# --- the models of a finished report


@pytest.fixture(scope="module")
def report(smoke_run):
    return Workbook("smoke", out=smoke_run, settings={"device": "cpu"})


@pytest.fixture(scope="module")
def shown(report, tmp_path_factory):
    """The validation tiles that the report was made with, images and masks."""
    folder = tmp_path_factory.mktemp("shown")
    for path in report.data.problem2.validation.paths:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(("model", "tta"), [*((m, False) for m in segmenters.SEGMENTERS), ("lraspp", True)])
def test_masks_are_the_steps_own_predictions(report, shown, tmp_path, model, tta):
    written, problems = predict.segmentation(report, shown, tmp_path, model, tta)
    found = masks(tmp_path)
    assert list(found) == [f"{n}_mask.png" for n in report.data.problem2.validation.numbers]
    assert written == len(found) and problems == []
    stored = report.result(f"segment-{model}").array("predictions_tta" if tta else "predictions")
    assert np.array_equal(np.stack(list(found.values())), stored)


@pytest.mark.parametrize("setting", comparison.SETTINGS)
def test_labels_are_the_settings_own_predictions(report, tmp_path, setting):
    """Frozen settings, too, whose head was trained on stored features."""
    val = report.data.problem1.val
    table = tmp_path / "val.csv"
    write_labelled(table, [(name, "") for name in val.files])
    done, problems = predict.classification(report, table, val.folder, tmp_path / "out.csv", setting)
    assert done == len(val) and problems == []
    wanted = np.array(val.numbers)[report.result(f"finetune-{setting}").array("predictions")[-1]]
    found = pd.read_csv(tmp_path / "out.csv")["label"]
    assert (found == wanted).mean() >= (0.98 if setting in "DE" else 1)  # of a frozen one a tie may turn


def test_predict_and_evaluate_give_the_reports_numbers(smoke_run, report, shown, tmp_path, capsys):
    """Over the command line, as the course's own scripts are called."""

    def said(*words):
        code, out, _ = conftest.run(capsys, *words)
        assert code == 0
        return out

    where, table, val = ("--profile", "smoke", "--out", smoke_run), tmp_path / "val.csv", report.data.problem1.val
    said("predict", "segmentation", shown, tmp_path / "masks", *where)
    miou = report.result("segment-lraspp").metrics["miou_last"]
    assert re.search(rf"^mIoU +{miou:.4f} ", said("evaluate", "segmentation", tmp_path / "masks", shown), re.M)
    write_labelled(table, [(name, val.numbers[label]) for name, label in zip(val.files, val.labels)])
    said("predict", "classification", table, val.folder, tmp_path / "out.csv", *where)
    right = (report.result("finetune-C").array("predictions")[-1] == val.labels).sum()
    assert f"({right} of {len(val)};" in said("evaluate", "classification", tmp_path / "out.csv", table)


# --- scores of masks (any pairs of them in test_fuzz)

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
    Image.fromarray(landcover.encode(classes)).save(folder / f"{name}_mask.png")


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


def evaluate(capsys, *words):
    code, out, said = conftest.run(capsys, "evaluate", *words)
    return code, out, said.strip()


@pytest.mark.parametrize("seed", range(3))
def test_the_miou_is_the_courses(folders, seed):
    """Tiles of unlike content: a mean over tiles would be another number. The kind of PNG does not matter."""
    true, predicted = case(seed)
    true[0, :5] = 4
    where = folders(true, predicted)
    found, problems = predict.score_segmentation(*where)
    assert found["miou"] == pytest.approx(course_mean_iou(*where), abs=1e-12)
    assert found["tiles"] == 3 and found["stray_pixels"] == 0 and problems == []
    each = [metrics.miou(metrics.confusion(*pair)) for pair in zip(true, predicted)]
    assert abs(found["miou"] - np.mean(each)) > 1e-4
    for path, mode in zip(where[0].iterdir(), ("P", "RGBA")):
        image = Image.open(path).convert("RGB")
        image.quantize(8).save(path) if mode == "P" else image.convert(mode).save(path)
        assert Image.open(path).mode == mode
    assert predict.score_segmentation(*where) == (found, [])


@pytest.mark.parametrize("classes", [range(7), (1, 3, 6), (0, 5), (2,)])
def test_all_numbers_are_those_of_the_arrays_paired_by_name(folders, classes):
    true, predicted = case(0, classes=classes)
    where = folders(true, predicted)
    save(where[0], "9999", true[0])  # a prediction for nothing
    (where[0] / "notes.txt").write_text("text")
    matrix = metrics.confusion(true, predicted)
    iou = {name: None if np.isnan(v) else v for name, v in zip(landcover.SCORED, metrics.iou(matrix))}
    accuracy = metrics.pixel_accuracy(matrix)
    found = {"tiles": 3, "miou": metrics.miou(matrix), "iou": iou, "pixel_accuracy": accuracy, "stray_pixels": 0}
    assert predict.score_segmentation(*where) == (found, [])


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
    code, out, text = evaluate(capsys, "segmentation", *where)
    assert code == 1 and "(2 tiles)" in out and "hw1lib: 4 left out" in text
    assert all(name in text for name, _ in problems) and "Traceback" not in text


def test_the_command_prints_what_was_found(folders, capsys):
    true, predicted = case(6, classes=(0, 1, 2, 3, 4, 6))
    where = folders(true, predicted)
    found, _ = predict.score_segmentation(*where)
    code, out, text = evaluate(capsys, "segmentation", *where)
    assert code == 0 and text == ""
    lines = {line[:15].strip(): line[15:].strip() for line in out.splitlines()}
    assert lines["mIoU"] == f"{found['miou']:.4f}  (3 tiles)"
    assert lines["pixel accuracy"] == f"{found['pixel_accuracy']:.4f}"
    assert lines.pop("barren").endswith("does not occur")
    for name in landcover.SCORED[:-1]:
        assert lines[name].endswith(f"{found['iou'][name]:.4f}")
    assert "nan" not in out.lower() and max(map(len, out.splitlines())) <= 80


def test_nothing_to_score_is_an_error_with_the_reason(folders, tmp_path, capsys):
    where = folders(*case(0))
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "0001_sat.jpg")
    for bad in (tmp_path / "empty", tmp_path / "nowhere"):
        for pair in ((bad, where[1]), (where[0], bad)):
            with refused(bad, "_mask.png"):
                predict.score_segmentation(*pair)
    for path in where[0].iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with refused("0000_mask.png", "missing"):
        predict.score_segmentation(*where)
    code, out, text = evaluate(capsys, "segmentation", *where)
    assert code == 1 and out == "" and one_paragraph(text)


# --- scores of labels (any tables in test_fuzz)


@pytest.fixture
def csvs(tmp_path):
    """Ten images, their labels, and predictions of which six are right, in another order."""
    true = [3, 17, 64, 3, 17, 64, 3, 17, 64, 3]
    predicted = true[:6] + [17, 3, 3, 64]
    mixed = np.random.default_rng(0).permutation(10)
    for name, numbers, order in (("p.csv", predicted, mixed), ("t.csv", true, range(10))):
        write_labelled(tmp_path / name, [(f"Mug{i:05d}.jpg", numbers[i]) for i in order])
    return tmp_path / "p.csv", tmp_path / "t.csv"


def test_the_accuracy_is_that_of_the_file_names(csvs, capsys):
    """Whatever the order, the ids, spaces, Windows' line ends and predictions for nothing, which are named."""
    found, problems = predict.score_classification(*csvs)
    interval = dict(zip(("ci_low", "ci_high"), wilson(6, 10)))
    assert problems == [] and found == {"correct": 6, "total": 10, "accuracy": 0.6, **interval}
    code, out, text = evaluate(capsys, "classification", *csvs)
    assert code == 0 and text == ""
    assert out.startswith("accuracy 0.6000  (6 of 10;") and len(out.strip()) <= 80
    text = csvs[0].read_text() + "99,Fan00001.jpg,3\n"
    csvs[0].write_bytes(b"\xef\xbb\xbf" + text.replace(",3\n", ", 3 \n").replace("\n", "\r\n").encode())
    again, problems = predict.score_classification(*csvs)
    assert again == found and [name for name, _ in problems] == ["Fan00001.jpg"]


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
    code, out, text = evaluate(capsys, "classification", *csvs)
    assert code == 1 and "5 of 10" in out and "Mug00001.jpg" in text and "Traceback" not in text


# --- tables of both

FAULTY = [
    (b"id,filename\n1,a.jpg\n", "lacks the column label", ""),
    (b"id,label\n1,3\n", "lacks the column filename", "lacks the column filename"),
    (b"filename,label\na.jpg,2\n", "", "lacks the column id"),
    (b"a,b\n1,2\n", "filename and label", "id and filename"),
    (b"id,filename,label\n1,a.jpg,\n", "holds no labels", ""),
    (b"id,filename,label\n", "holds no labels", ""),
    (b"id,filename,label\n1,a.jpg,x\n", "no number", ""),
    (b"id,filename,label\n1,a.jpg,3\n2,a.jpg,3\n", "a.jpg more than once", ""),
    (b"", "CSV", "CSV"),
    (b"id,filename,label\n1,\xff.jpg,3\n", "CSV", "CSV"),
    (b"id,filename,label\n1,a.jpg,3\n1,a.jpg,3,4,5\n", "CSV", "CSV"),
    (None, "No such file", "No such file"),
]


@pytest.mark.parametrize(("content", "scoring", "filling"), FAULTY)
def test_a_faulty_table_is_named(book, csvs, tmp_path, content, scoring, filling):
    bad = tmp_path / "bad.csv"
    if content is not None:
        bad.write_bytes(content)
    for pair in ((bad, csvs[1]), (csvs[0], bad)):
        if scoring:
            with refused(bad, scoring):
                predict.score_classification(*pair)
    if filling:
        with refused(bad, filling):
            predict.classification(book, bad, tmp_path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
