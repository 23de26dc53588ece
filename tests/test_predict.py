"""Predictions for new images, and their scores: those of the stored model, in the course's own formats."""

import csv
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hw1lib import predict, variants
from hw1lib.data import images as image_files
from hw1lib.data import landcover
from hw1lib.errors import UserError
from hw1lib.loops import augment, train_segmenter
from hw1lib.metrics import iou
from hw1lib.metrics.statistics import wilson
from hw1lib.models import resnet, segmenters
from hw1lib.workbook import Workbook
from tests.conftest import OFFICE, one_paragraph, picture, refused, run, write_labelled, write_problem1, write_problem2
from tests.test_files import full_disk

NUMBERS = (3, 17, 64)  # the labels of the three classes in the CSVs
SETTINGS = {"device": "cpu", "model_scale": 0.125, "finetune.hidden": 16, "deeplabv3.epochs": 99}
SEEN = [0, 2, 3, 5]  # classes that the segmenter saw


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A workbook on data whose labels have gaps."""
    root = tmp_path_factory.mktemp("predict")
    write_problem1(root / "p1_data")
    write_problem2(root / "p2_data")
    for table in (root / "p1_data" / "office").glob("*.csv"):
        rows = pd.read_csv(table)
        rows.replace({"label": dict(enumerate(NUMBERS))}).to_csv(table, index=False)
    return Workbook("smoke", root, root / "out", SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def networks(book):
    """Its setting C and its segmenter, with random weights; balanced, so that what they say depends on the image."""
    torch.manual_seed(0)
    setting = resnet.Classifier(resnet.backbone(0.125), resnet.Head(len(OFFICE), hidden=16))
    segmenter = segmenters.build("lraspp", 0.125)
    tiles, _ = image_files.load_tiles(book.data.problem2.train)
    for step, network, last, pixels in (
        ("finetune-C", setting, setting.head.linear, image_files.load(book.data.problem1.train, 32)),
        ("segment-lraspp", segmenter, segmenter.classifier.high_classifier, tiles),
    ):
        images = augment.normalise(torch.from_numpy(pixels))
        with torch.no_grad():
            for _ in range(30):  # BatchNorm's statistics become those of these images
                network(images)
            network.eval()
            scores = network(images) if network is setting else segmenters.scores(network, images)
            last.bias -= scores.transpose(0, 1).flatten(1).mean(1)  # no class prevails
        with book.steps.store.claim(step, book.steps.key(step), book.steps.config(step)) as draft:
            draft.weights(network)
            draft.metrics({"seen": SEEN})
            draft.history([{"epoch": 1, "loss": 0.5, "lr": 0.1}])
    return {"C": setting, "lraspp": segmenter}


def command(capsys, book, *words):
    """Exit code, standard output and error of `predict` on that workbook."""
    pairs = [f"{name}={value}" for name, value in SETTINGS.items()]
    where = ("--profile", "smoke", "--data-root", book.root, "--out", book.out)
    return run(capsys, "predict", *words, *where, "--set", *pairs)


def masks(folder):
    """The decoded masks by file name; each is RGB in the course's palette and nothing else."""
    found = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.mode == "RGB"
            found[path.name], strays = landcover.decode(np.asarray(image))
        assert strays == 0 and found[path.name].max() < landcover.UNKNOWN
    return found


def saved(folder, images):
    """A folder of images of these names, sizes (width, height) and modes."""
    folder.mkdir(exist_ok=True)
    for seed, (name, (size, mode)) in enumerate(images.items()):
        picture(seed, size).convert(mode).save(folder / name)
    return folder


# --- segmentation: what is written

SIZES = {"0007": (7, 5), "0010": (33, 100), "0002": (96, 64), "0001": (1, 1), "0003": (96, 64), "0004": (32, 32)}
MASKS = {f"{number}_mask.png" for number in SIZES}


@pytest.fixture
def tiles(tmp_path):
    """A folder of satellite images of mixed sizes."""
    return saved(tmp_path / "tiles", {f"{number}_sat.jpg": (size, "RGB") for number, size in SIZES.items()})


@pytest.fixture
def photos(tmp_path):
    """A folder of images of every mode and kind of file."""
    kinds = ["RGB.png", "RGBA.png", "L.png", "P.png", "1.png", "L.jpg", "CMYK.jpg"]
    kinds += ["RGB.JPG", "RGB.jpeg", "RGB.tif", "RGB.tiff", "RGB.bmp", "RGB.webp"]
    images = {f"Größe {number} {kind}": ((40, 24), kind.partition(".")[0]) for number, kind in enumerate(kinds)}
    return saved(tmp_path / "photos", images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model", "tta"), [("tiles", "", False), ("tiles", "lraspp", True), ("photos", "", False)]
)
def test_every_image_gets_its_mask_in_its_own_size(book, networks, tmp_path, request, kind, model, tta):
    """That of the network for this image alone. Without a model it is the profile's improved one."""
    folder = request.getfixturevalue(kind)
    images = list(folder.iterdir())
    assert predict.segmentation(book, folder, tmp_path / "out", model, tta) == (len(images), [])
    found = masks(tmp_path / "out")
    classes = set(np.concatenate([mask.ravel() for mask in found.values()]).tolist())
    assert classes <= set(SEEN) and len(classes) > 1
    for path in images:
        mask = found.pop(f"{path.stem.removesuffix('_sat')}_mask.png")
        pixels = np.array(image_files.open_rgb(path)).transpose(2, 0, 1)[None]
        settings = book.profile.lraspp
        (alone,) = train_segmenter.predict(networks["lraspp"], pixels, torch.device("cpu"), settings, tta, SEEN)
        assert mask.shape == alone.shape and (mask == alone).mean() > 0.99  # sums in another order may turn a tie
    assert found == {}


FOLDERS = [  # names in a folder of images, those that get no mask but a reason, and how many do
    (["1_sat.jpg", "2.jpg", "3_SAT.jpg", "4_sat.gif", "5_sat.jp2", "6_sat.TIF"], ["2.jpg"], 5),
    (["1_sat.jpg", "1_mask.png", "2_Sat.png", "2_MASK.PNG", "a.txt", "._3_sat.jpg", "Thumbs.db", ".DS_Store"], [], 2),
    (["1.jpg", "1_mask.png", "2.JPEG", "3_mask.png", "4.heic"], ["3_mask.png", "4.heic"], 2),
    (["1_sat.jpg", "1_SAT.JPG", "overview.png"], ["1_sat.jpg", "overview.png"], 1),
    (["1_sat.jpg", "2_sat.dng", "2_sat.bmp", "1.avif", "desktop.ini"], ["1.avif"], 2),
]


@pytest.mark.parametrize(("names", "named", "written"), FOLDERS)
def test_every_image_of_a_folder_gets_a_mask_or_is_named(capsys, book, tmp_path, names, named, written):
    """But for the masks of its images; nothing in it is changed, and the output is neither old nor wrongly counted."""
    (folder := tmp_path / "images").mkdir()
    kinds = {"mask": "PNG", "gif": "GIF", "jp2": "JPEG2000", "TIF": "TIFF", "bmp": "BMP"}
    for number, name in enumerate(names):
        kind = next((kind for part, kind in kinds.items() if part in name.lower() or part in name), "JPEG")
        picture(number).save(folder / name, format=kind)
    (folder / "4.heic").write_bytes(b"\0\0\0\x18ftypheic") if "4.heic" in names else None
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for _ in range(2):  # the second time over what is there
        code, out, text = command(capsys, book, "segmentation", folder, tmp_path / "out")
        assert code == bool(named) and out == f"{tmp_path / 'out'}: {written} mask{'s' * (written != 1)}\n"
        assert all(f"  {folder / name}: " in text for name in named) and text.count("\n  ") == len(named)
        assert len(masks(tmp_path / "out")) == written
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_terminal_shows_progress(capsys, monkeypatch, book, tiles, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    predict.segmentation(book, tiles, tmp_path / "out")
    assert f"{len(SIZES)}/{len(SIZES)}" in capsys.readouterr().err


# --- segmentation: what cannot be


def test_what_cannot_be_decoded_is_named_and_the_rest_is_written(capsys, book, tiles, tmp_path):
    code, out, text = command(capsys, book, "segmentation", tiles, tmp_path / "good", "--model", "lraspp", "--tta")
    assert code == 0 and f"{len(SIZES)} masks" in out and "left out" not in text
    whole = (tiles / "0002_sat.jpg").read_bytes()
    (tiles / "0020_sat.jpg").write_bytes(whole[: len(whole) // 2])
    (tiles / "0021_sat.jpg").write_bytes(b"")
    (tiles / "0022_sat.jpg").write_text("<html>moved</html>")
    (tiles / "0023_sat.jpg").mkdir()
    code, out, text = command(capsys, book, "segmentation", tiles, tmp_path / "out")
    assert code == 1 and f"{len(SIZES)} masks" in out and set(masks(tmp_path / "out")) == MASKS
    head, *lines = text[text.index("hw1lib: ") :].splitlines()
    assert "4 left out" in head and len(lines) == 4 and "Traceback" not in text
    for number, line in zip((20, 21, 22, 23), lines):
        assert str(tiles / f"00{number}_sat.jpg") in line and "cannot be decoded" in line


def test_a_mask_that_cannot_be_written_is_named_and_the_rest_is_written(capsys, book, tiles, tmp_path):
    """A name too long for a mask, or a folder in its place; what no file can be written into is said once."""
    (long := tiles / f"{'x' * 246}_sat.jpg").write_bytes((tiles / "0002_sat.jpg").read_bytes())
    (out := tmp_path / "out").mkdir()
    (out / "0003_mask.png").mkdir()
    (out / "0003_mask.png" / "file").touch()
    code, printed, text = command(capsys, book, "segmentation", tiles, out)
    assert code == 1 and f"{len(SIZES) - 1} masks" in printed and "2 left out" in text and "Traceback" not in text
    assert f"{long}: " in text and "File name too long" in text and f"{tiles / '0003_sat.jpg'}: " in text
    assert {path.name for path in out.iterdir()} == MASKS
    with pytest.raises(UserError, match="could not be written"):
        predict.segmentation(book, tiles, out / "0001_mask.png")
    with pytest.raises(UserError, match="disk space"), full_disk(50):
        predict.segmentation(book, tiles, tmp_path / "other")


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a_sat.jpg", "a_sat.png", "a_sat.bmp")])
def test_two_images_for_one_mask_are_named(book, tmp_path, names):
    """The first by name has it, whichever order they were made in."""
    sides = enumerate(reversed(names), start=20)
    folder = saved(tmp_path / "images", {name: ((side, side), "RGB") for side, name in sides})
    written, problems = predict.segmentation(book, folder, tmp_path / "out")
    first, *others = sorted(names)
    assert written == 1 and [path.name for path, _ in problems] == others
    assert all("a_mask.png" in reason for _, reason in problems)
    with Image.open(folder / first) as image:
        assert masks(tmp_path / "out")["a_mask.png"].shape[::-1] == image.size


def test_a_model_that_is_unknown_or_untrained_is_one_clear_sentence(capsys, book, tiles, tmp_path):
    out, table = tmp_path / "out", tmp_path / "table.csv"
    table.write_text("id,filename\n1,a.jpg\n")
    with pytest.raises(UserError, match=r"segment-deeplabv3 is not trained.*PROFILE=smoke.*--data-root.*--set"):
        predict.segmentation(book, tiles, out, "deeplabv3")
    code, _, text = command(capsys, book, "segmentation", tiles, out, "--model", "deeplabv3")
    assert code == 1 and one_paragraph(text)
    for model in ("unet", "LRASPP", "colour", "C"):
        with pytest.raises(UserError, match=f"--model {model}: .*{', '.join(segmenters.SEGMENTERS)}"):
            predict.segmentation(book, tiles, out, model)
    for setting, word in (("A", "finetune-A"), ("c", "--model c"), ("F", "A, B, C, D, E")):
        with pytest.raises(UserError, match=word):
            predict.classification(book, table, tiles, out, setting)
    assert not out.exists()


@pytest.mark.parametrize(
    ("images", "out", "said"),
    [
        ("nowhere", "out", "no folder .*nowhere"), ("file.jpg", "out", "no folder .*file.jpg"),
        ("masks", "out", "masks holds no images"), ("tiles", "file.jpg", "file.jpg.* could not be written"),
        ("tiles", "masks/../tiles", "both .*tiles: true masks in there"),
    ],
)  # fmt: skip
def test_a_folder_that_is_of_no_use_is_named(book, tiles, tmp_path, images, out, said):
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "masks" / "0001_mask.png")
    (tmp_path / "file.jpg").touch()
    with pytest.raises(UserError, match=said):
        predict.segmentation(book, tmp_path / images, tmp_path / out)
    assert (tmp_path / "file.jpg").read_bytes() == b"" and len(list(tiles.iterdir())) == len(SIZES)


# --- classification


def fill(book, tmp_path, rows, folder):
    """The rows of the filled CSV, how many labels it has, and the problems."""
    table, out = tmp_path / "test.csv", tmp_path / "out.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    done, problems = predict.classification(book, table, folder, out)
    return list(csv.DictReader(out.read_text(encoding="utf-8").splitlines())), done, problems


IDS = ["007", "1e5", "NA", "", "0x1F", "1.0", 'say "a, b"', "Größe", " 3 ", "9999999999999999999", "True", "-1"]
ODD = {"wide.png": ((90, 20), "RGB"), "tall.jpg": ((20, 90), "RGB"), "dot.png": ((1, 1), "RGB")}
ODD |= {"gray.jpg": ((32, 32), "L"), "clear.png": ((40, 40), "RGBA")}


def test_labels_are_the_training_csvs_numbers_and_ids_and_names_stay_as_they_are(book, networks, tmp_path):
    """Whatever an image's size and kind, twice if it is named twice; a label that was there is not read."""
    folder, names = tmp_path / "images", [*book.data.problem1.val.files, *ODD, "wide.png"]
    shutil.copytree(book.data.problem1.val.folder, folder)
    saved(folder, ODD)
    rows = [("label", "filename", "id"), *((999, *pair) for pair in zip(names, IDS, strict=True))]
    found, done, problems = fill(book, tmp_path, rows, folder)
    pixels = [image_files.square(image_files.open_rgb(folder / name), 32).copy() for name in names]
    with torch.no_grad():
        scores = [networks["C"](augment.normalise(torch.from_numpy(one)[None])) for one in pixels]
    expected = [str(NUMBERS[one.argmax()]) for one in scores]
    assert [tuple(row.items()) for row in found] == [
        (("id", number), ("filename", name), ("label", label)) for number, name, label in zip(IDS, names, expected)
    ]
    assert done == len(names) and problems == [] and len(set(expected)) > 1
    assert fill(book, tmp_path, rows[:1], folder) == ([], 0, [])  # a table without rows stays one
    assert (tmp_path / "out.csv").read_text().strip() == "id,filename,label"


def test_names_of_classes_are_written_back_and_scored(book, networks, tmp_path, capsys):
    """As in the course's tables of 2021 and 2022, whose labels are names; numbers are none of them."""
    root = tmp_path / "named"
    shutil.copytree(book.root / "p1_data", root / "p1_data")
    for split in ("train", "val"):
        table = root / "p1_data" / "office" / f"{split}.csv"
        rows = pd.read_csv(table)
        rows.assign(label=rows["filename"].str[:-9]).to_csv(table, index=False)
    named, train = Workbook("smoke", root, root / "out", SETTINGS), root / "p1_data" / "office" / "train"
    with named.steps.store.claim("finetune-C", named.steps.key("finetune-C"), {}) as draft:
        draft.weights(networks["C"])
        draft.metrics({})
        draft.history([])
    names, out = sorted(OFFICE), tmp_path / "out.csv"
    done, problems = predict.classification(named, train.with_suffix(".csv"), train, out)
    numbers, _, _ = fill(book, tmp_path, [("id", "filename"), *enumerate(named.data.problem1.train.files)], train)
    assert done == len(numbers) and problems == []
    predict.classification(named, train.with_suffix(".csv"), train, out)
    wanted = [names[NUMBERS.index(int(row["label"]))] for row in numbers]
    assert pd.read_csv(out)["label"].tolist() == wanted and len(set(wanted)) > 1
    score, problems = predict.score_classification(out, train.with_suffix(".csv"))
    assert score["correct"] == sum(name == file[:-9] for name, file in zip(wanted, named.data.problem1.train.files))
    said = refused(capsys, "evaluate", "classification", out, book.data.problem1.train.folder.with_suffix(".csv"))
    assert f"such as {wanted[0]} of Couch00001.jpg and 3 of Couch00001.jpg" in said


def test_missing_and_damaged_images_have_no_label_and_a_name(capsys, book, tmp_path):
    folder, table, out = tmp_path / "images", tmp_path / "test.csv", tmp_path / "out.csv"
    shutil.copytree(book.data.problem1.val.folder, folder)
    good = sorted(path.name for path in folder.iterdir())
    whole = (folder / good[0]).read_bytes()
    bad = {"cut.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "text.jpg": b"text"}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    names = [name for pair in zip([*bad, "gone.jpg"], good) for name in pair]
    write_labelled(table, [(name, "") for name in names])
    code, printed, text = command(capsys, book, "classification", table, folder, out)
    assert code == 1 and "4 labels" in printed and "4 left out" in text
    found = pd.read_csv(out, dtype={"label": "Int64"})
    assert list(found["filename"]) == names and found["label"].isna().tolist() == [True, False] * 4
    assert set(found["label"].dropna()) <= set(NUMBERS)
    for name in (*bad, "gone.jpg"):
        reason = "it cannot be decoded" if name in bad else "missing"
        assert re.search(f"^  .*{name}: {reason}", text, re.MULTILINE)


def test_no_name_leads_out_of_the_folder_and_one_that_no_file_can_have_is_only_missing(book, tmp_path):
    """Though an image lies there."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub", folder):
        picture(0).save(place / "x.jpg")
    names = ["../x.jpg", "sub/x.jpg", "/etc/hostname", "..", ".", "./x.jpg", str(folder / "x.jpg")]
    names += ["", "x" * 300 + ".jpg", "a\x00b.jpg", "*.jpg", "~", "link.jpg", "x.jpg", " X.jpg ", "images\\x.jpg"]
    (folder / "link.jpg").symlink_to(tmp_path / "x.jpg")
    filled, done, problems = fill(book, tmp_path, [("id", "filename"), *((1, name) for name in names)], folder)
    same = ["./x.jpg", str(folder / "x.jpg"), "x.jpg", " X.jpg ", "images\\x.jpg"]  # of the image in the folder
    assert done == len(same) and [row["filename"] for row in filled] == names
    assert [name for name, row in zip(names, filled) if row["label"]] == same
    assert {name for name, _ in problems} == {*names} - {*same}
    leaving = {name for name, reason in problems if "leads out" in reason}
    assert leaving == {"../x.jpg", "/etc/hostname", "..", "link.jpg"}


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
def test_masks_are_the_steps_own_predictions_and_so_are_their_scores(report, shown, tmp_path, model, tta):
    written, problems = predict.segmentation(report, shown, tmp_path, model, tta)
    found, result = masks(tmp_path), report.result(f"segment-{model}")
    assert list(found) == [f"{n}_mask.png" for n in report.data.problem2.validation.numbers]
    assert written == len(found) and problems == []
    assert np.array_equal(np.stack(list(found.values())), result.array("predictions_tta" if tta else "predictions"))
    miou = (result.metrics["tta"] if tta else result.metrics)["miou_last"]
    assert predict.score_segmentation(tmp_path, shown)[0]["miou"] == pytest.approx(miou)


@pytest.mark.parametrize("setting", variants.SETTINGS)
def test_labels_are_the_settings_own_predictions_and_so_is_their_accuracy(report, tmp_path, setting):
    """But for images whose two best classes are nearly equal: rounding depends on how many images make a batch."""
    val, table, out = report.data.problem1.val, tmp_path / "val.csv", tmp_path / "out.csv"
    write_labelled(table, [(name, val.numbers[label]) for name, label in zip(val.files, val.labels)])
    assert predict.classification(report, table, val.folder, out, setting) == (len(val), [])
    result, profile = report.result(f"finetune-{setting}"), report.profile
    turned = pd.read_csv(out)["label"].to_numpy() != np.array(val.numbers)[result.array("predictions")[-1]]
    head = resnet.Head(len(val.classes), hidden=profile.finetune.hidden)
    model = resnet.Classifier(resnet.backbone(profile.model_scale), head).eval()
    model.load_state_dict(result.weights())
    with torch.no_grad():
        scores = model(augment.normalise(torch.from_numpy(image_files.load(val, profile.data.image_size))))
    best = scores.topk(2).values  # (N, 2)
    near = (best[:, 0] - best[:, 1]).numpy() < 0.03 * float(scores.abs().max())  # √53 roundings to 2⁻⁹, for each
    assert not (turned & ~near).any() and not near.all()
    accuracy = predict.score_classification(out, table)[0]["accuracy"]
    assert accuracy == pytest.approx(result.metrics["accuracy_last"], abs=turned.mean() + 1e-9)


# --- scores of masks

COURSE = {3: 0, 6: 1, 5: 2, 2: 3, 1: 4, 7: 5, 0: 6}  # 4·red + 2·green + blue -> class


def course_mean_iou(predicted_dir, true_dir):
    """The course's mean_iou_evaluate.py, written again without a line of ours."""

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


def masks_to_score(folder, classes=range(7)):
    """Folders of six predicted and true masks, which agree in about half of the pixels, and their classes."""
    random = np.random.default_rng(0)
    true = random.choice(list(classes), (6, 9, 12)).astype(np.uint8)
    wrong = random.choice([c for c in classes if c < 6], true.shape).astype(np.uint8)
    predicted = np.where((random.random(true.shape) < 0.5) & (true < 6), true, wrong)
    for name, masks in (("predicted", predicted), ("true", true)):
        (folder / name).mkdir()
        for number, mask in enumerate(masks):
            Image.fromarray(landcover.encode(mask)).save(folder / name / f"000{number}_mask.png")
    return (folder / "predicted", folder / "true"), predicted, true


@pytest.mark.parametrize("classes", [range(7), (1, 3, 6), (0, 5), (2,)])
def test_all_numbers_are_those_of_the_arrays_paired_by_name_and_are_printed(tmp_path, capsys, classes):
    """Whatever the kind of PNG and whatever else lies there; a class that does not occur has no IoU."""
    where, predicted, true = masks_to_score(tmp_path, classes)
    for number, mode in enumerate(("P", "RGBA")):
        path = where[0] / f"000{number}_mask.png"
        image = Image.open(path).convert("RGB")
        image.quantize(8).save(path) if mode == "P" else image.convert(mode).save(path)
        assert Image.open(path).mode == mode
    (where[0] / "notes.txt").write_text("text")
    (where[0] / "._0000_mask.png").write_bytes(b"")
    picture(0).save(where[1] / "0000_sat.jpg")
    (where[1] / "0003_mask.png").rename(where[1] / "0003_MASK.PNG")
    matrix = iou.confusion(true, predicted)
    found_iou = {name: None if np.isnan(v) else v for name, v in zip(landcover.SCORED, iou.iou(matrix))}
    accuracy = iou.pixel_accuracy(matrix)
    counts = {"tiles": 6, "wrong": 0, "left_out": 0, "others": 0, "inexact_predicted": 0, "inexact_true": 0}
    found = counts | {"miou": iou.miou(matrix), "iou": found_iou, "pixel_accuracy": accuracy}
    assert predict.score_segmentation(*where) == (found, [])
    code, out, said = run(capsys, "evaluate", "segmentation", *where)
    assert code == 0 and said == "" and max(map(len, out.splitlines())) <= 80
    shown = {name: "does not occur" if value is None else f"{value:.4f}" for name, value in found_iou.items()}
    shown |= {"mIoU": f"{found['miou']:.4f}  (6 tiles)", "pixel accuracy": f"{accuracy:.4f}"}
    assert {line[:15].strip(): line[15:].strip() for line in out.splitlines()} == shown


def test_the_miou_is_the_courses_also_of_strange_colours_and_those_are_counted(tmp_path, capsys):
    """It is pooled over tiles; a colour counts as the nearest corner of the colour cube."""
    where, _, _ = masks_to_score(tmp_path)
    for folder, colours in zip(where, ([(255, 0, 0), (254, 128, 0), (20, 127, 30)], [(1, 2, 3)])):
        pixels = np.array(Image.open(folder / "0001_mask.png"))
        pixels[0, : len(colours)] = colours
        Image.fromarray(pixels).save(folder / "0001_mask.png")
    found, problems = predict.score_segmentation(*where)
    assert found["miou"] == pytest.approx(course_mean_iou(*where), abs=1e-12)
    assert (found["inexact_predicted"], found["inexact_true"]) == (3, 1) and problems == []
    code, out, said = run(capsys, "evaluate", "segmentation", *where)
    assert code == 0 and said == "" and "3 predicted pixels not exactly" in out and "1 true pixel not exactly" in out


def renamed(name, new):
    return lambda folder: (folder / name).rename(folder / new)


def gone(name):
    return lambda folder: (folder / name).unlink()


def remade(name, mask):
    return lambda folder: Image.fromarray(landcover.encode(mask)).save(folder / name)


def copied(name, new):
    return lambda folder: shutil.copy(folder / name, folder / new)


def spoilt(name, content=b"text"):
    return lambda folder: (folder / name).write_bytes(content)


NUMBERED = np.arange(108, dtype=np.uint8).reshape(9, 12) % 7
NOT_SCORED = {  # what is done to a folder of masks; tiles that are scored, wrong, left out, and other images; the words
    "missing": ("predicted", gone("0003_mask.png"), (6, 1, 0, 0), "0003_mask.png: .*missing"),
    "damaged": ("predicted", spoilt("0004_mask.png"), (6, 1, 0, 0), "0004_mask.png: .*no image"),
    "cut": ("predicted", lambda folder: spoilt("0004_mask.png", (folder / "0004_mask.png").read_bytes()[:60])(folder),
        (6, 1, 0, 0), "0004_mask.png: it counts as wrong"),
    "size": ("predicted", remade("0001_mask.png", NUMBERED.T),
        (6, 1, 0, 0), "0001_mask.png: .*9 × 12 instead of 12 × 9"),
    "numbers": ("predicted", lambda folder: Image.fromarray(NUMBERED).save(folder / "0002_mask.png"),
        (6, 1, 0, 0), "0002_mask.png: .*class numbers"),
    "other name": ("predicted", renamed("0005_mask.png", "0005.png"), (6, 1, 0, 1), "0005.png: .*not called"),
    "other kind": ("predicted", copied("0005_mask.png", "0005_mask.tif"), (6, 0, 0, 1), "0005_mask.tif: .*not called"),
    "extra": ("predicted", copied("0005_mask.png", "0077_mask.png"), (6, 0, 1, 0), "0077_mask.png: it has no true"),
    "no truth": ("true", gone("0000_mask.png"), (5, 0, 1, 0), "0000_mask.png: it has no true mask"),
    "damaged truth": ("true", spoilt("0000_mask.png", b""), (5, 0, 1, 0), "0000_mask.png: .*an empty file"),
    "numbers for truth": ("true", lambda folder: Image.fromarray(NUMBERED).convert("P").save(folder / "0000_mask.png"),
        (5, 0, 1, 0), "0000_mask.png: .*class numbers"),
    "truth by another name": ("true", renamed("0002_mask.png", "2_mask.png"), (6, 1, 1, 0), "2_mask.png: .*missing"),
    "image without a mask": ("true", lambda folder: picture(0).save(folder / "0009_sat.jpg"),
        (6, 0, 0, 1), "0009_sat.jpg: .*not called"),
}  # fmt: skip


@pytest.mark.parametrize("fault", NOT_SCORED)
def test_what_a_score_does_not_cover_is_on_its_line_and_named(tmp_path, capsys, fault):
    """A prediction that is missing or cannot be used is wrong in every pixel, as it is for labels."""
    where, predicted, true = masks_to_score(tmp_path)
    folder, harm, counts, words = NOT_SCORED[fault]
    harm(tmp_path / folder)
    found, problems = predict.score_segmentation(*where)
    names = ("tiles", "wrong", "left_out", "others")
    assert tuple(found[name] for name in names) == counts and problems
    tiles, wrong, left_out, others = counts
    rows = [number for number in range(6) if tiles == 6 or number]  # the one left out is the first
    if wrong:
        number = 2 if "truth" in fault else int(re.search("000([0-5])", words)[1])
        predicted[number] = landcover.UNKNOWN
    assert found["miou"] == iou.miou(iou.confusion(true[rows], predicted[rows]))
    code, out, text = run(capsys, "evaluate", "segmentation", *where)
    assert code == 1 and re.search(words, text) and "Traceback" not in text
    (line,) = (line for line in out.splitlines() if line.startswith("mIoU"))
    assert (f"({tiles - wrong} of {tiles + left_out} tiles: " in line) == bool(wrong or left_out)
    assert ("counted as wrong" in line, "left out" in line, "1 other image" in line) == (
        wrong > 0,
        left_out > 0,
        others > 0,
    )


def test_nothing_to_score_is_an_error_with_the_reason(tmp_path, capsys):
    where, _, true = masks_to_score(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "0001_sat.jpg")
    for bad in (tmp_path / "empty", tmp_path / "nowhere"):
        for pair in ((bad, where[1]), (where[0], bad)):
            with pytest.raises(UserError, match=f"{bad.name} holds no .*_mask.png|no folder .*{bad.name}"):
                predict.score_segmentation(*pair)
    shutil.copy(where[0] / "0001_mask.png", where[0] / "0001_MASK.png")
    assert "0001_mask.png and 0001_MASK.png" in refused(capsys, "evaluate", "segmentation", *where)
    (where[0] / "0001_MASK.png").unlink()
    shutil.copytree(where[1], tmp_path / "black")
    for number in range(6):
        remade(f"000{number}_mask.png", np.full_like(true[0], landcover.UNKNOWN))(tmp_path / "black")
    for predicted in (where[0], tmp_path / "black"):
        said = refused(capsys, "evaluate", "segmentation", predicted, tmp_path / "black")
        assert f"{tmp_path / 'black'} shows a class" in said and "nan" not in said
    for path in where[0].iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    said = refused(capsys, "evaluate", "segmentation", *where)
    assert "0005_mask.png" in said and "missing" in said


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
    """Whatever the order, the ids, spaces and Windows' line ends."""
    found, problems = predict.score_classification(*csvs)
    interval = dict(zip(("ci_low", "ci_high"), wilson(6, 10)))
    paired = dict.fromkeys(("without_prediction", "not_in_truth", "without_truth"), 0)
    assert problems == [] and found == {"correct": 6, "total": 10, "accuracy": 0.6, **interval, **paired}
    code, out, text = run(capsys, "evaluate", "classification", *csvs)
    assert code == 0 and text == "" and len(out.strip()) <= 80
    assert out.startswith(f"accuracy 0.6000  (6 of 10; 95 % interval {found['ci_low']:.4f} to {found['ci_high']:.4f})")
    text = csvs[0].read_text().replace(",3\n", ", 3 \n").replace("\n", "\r\n")
    csvs[0].write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert predict.score_classification(*csvs) == (found, [])


EXTRA = "1 of the predictions not in the truth"
UNPAIRED = [  # predictions, truth; the score; who is named for what
    ("b,2\nc,1\nd,\ne,1", "a,1\nb,2\nc,3\nd,1", f"0.2500  (1 of 4; 2 without a prediction, wrong; {EXTRA};",
        {"a": "no prediction", "d": "no prediction", "e": "it is not in"}),
    ("a,1\nb,2\nc,3", "a,1\nb,None\nc, NaN ", "1.0000  (1 of 1; 2 without a true label, not counted;",
        {"b": "it has no label in", "c": "it has no label in"}),
    ("a.jpg,1\na,1", "a.jpg,1", f"1.0000  (1 of 1; {EXTRA};", {"a": "it is not in"}),
    ("a,Couch\nb,Mug\nx\ty,Mug", "a;Couch\nb;Fan", f"0.5000  (1 of 2; {EXTRA};", {r"x\ty": "it is not in"}),
    ("val\\a,1.0\nval\\b,2", "./b,2\n./a,01", "1.0000  (2 of 2;", {}),
    ("Gro\u0308\u00dfe,\u00fc", "Gr\u00f6\u00dfe,u\u0308", "1.0000  (1 of 1;", {}),
    ("007,1\n7,2", "007,1\n7,1", "0.5000  (1 of 2;", {}),
]  # fmt: skip


@pytest.mark.parametrize(("predicted", "true", "score", "named"), UNPAIRED)
def test_every_image_that_is_not_in_both_is_named_and_counted_beside_the_score(
    tmp_path, capsys, predicted, true, score, named
):
    for name, rows in (("p.csv", predicted), ("t.csv", true)):
        separator = ";" if ";" in rows else ","
        (tmp_path / name).write_text(f"FileName{separator} label \n{rows}\n", encoding="utf-16")
    code, out, said = run(capsys, "evaluate", "classification", tmp_path / "p.csv", tmp_path / "t.csv")
    assert out.startswith(f"accuracy {score} 95 % interval") and code == bool(named) and "Traceback" not in said
    lines = said.splitlines()[2:]
    assert len(lines) == len(named)
    for line, (name, reason) in zip(lines, named.items()):
        assert line.startswith(f"  {name}: {reason}" if "no pred" not in reason else f"  {name}: it has {reason}")


def test_nothing_in_common_and_names_against_numbers_are_refused(tmp_path):
    table, other = tmp_path / "p.csv", tmp_path / "t.csv"
    table.write_text("filename,label\na.jpg,1\n")
    for rows, words in (
        ("0,1", "no image in common; they begin with a.jpg and 0"),
        ("a.jpg,Couch", "1 of a.jpg and Couch of"),
    ):
        other.write_text(f"filename,label\n{rows}\n")
        with pytest.raises(UserError, match=f"p.csv and .*t.csv have .*{words}"):
            predict.score_classification(table, other)


# --- tables of both

FAULTY = [  # content, and what is said of it where it is to be scored and to be filled
    (b"id,filename\n1,a.jpg\n", "lacks the column label", ""),
    (b"filename,label\na.jpg,2\n", "", "lacks the column id"), (b"a,b\n1,2\n", "filename and label", "id and filename"),
    (b"id,filename,label\n1,a.jpg,\n", "holds no labels", ""), (b"id,filename,label\n", "holds no labels", ""),
    (b"id,filename,label\n1,a.jpg,3\n2,b.jpg,x\n", "two kinds: .*row 3 .*row 2", ""),
    (b"", "it is empty", "it is empty"),
    (b"id,filename,label\n1,a.jpg,3\n2,a.jpg,3\n", "a.jpg more than once, in rows 2 and 3", ""),
    (b"id,filename,label\n1,\xff.jpg,3\n", "not UTF-8 text in line 2", "line 2"), (None, "No such", "No such"),
    (b"id,filename,label\n1,a.jpg,3\n1,a.jpg,3,4,5\n", "CSV", "CSV"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "scoring", "filling"), FAULTY)
def test_a_faulty_table_is_named(book, csvs, tmp_path, content, scoring, filling):
    bad, out = tmp_path / "bad.csv", tmp_path / "out.csv"
    if content is not None:
        bad.write_bytes(content)
    for pair in ((bad, csvs[1]), (csvs[0], bad)) if scoring else ():
        with pytest.raises(UserError, match=f"bad.csv.*{scoring}"):
            predict.score_classification(*pair)
    if filling:
        with pytest.raises(UserError, match=f"bad.csv.*{filling}"):
            predict.classification(book, bad, tmp_path, out)
    assert not out.exists()
