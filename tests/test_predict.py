"""Predictions for new images are those of the stored model, and every image without one is named with the reason."""

import csv
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hw1lib import evaluate, predict
from hw1lib.data import images as image_files
from hw1lib.data import landcover
from hw1lib.errors import UserError
from hw1lib.loops import train_segmenter
from hw1lib.loops.normalisation import normalise
from hw1lib.models import resnet, segmenters
from hw1lib.workbook import Workbook
from tests.conftest import OFFICE, one_paragraph, picture, run, write_labelled, write_problem1, write_problem2
from tests.test_files import full_disk

LABELS = (3, 17, 64)  # of the three classes in the CSVs: numbers with gaps
SETTINGS = {"device": "cpu", "model_scale": 0.125, "finetune.hidden": 16, "deeplabv3.epochs": 99}
SEEN = [0, 2, 3, 5]  # classes in the segmenter's training data


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    write_problem1(root / "p1_data")
    write_problem2(root / "p2_data")
    for table in (root / "p1_data" / "office").glob("*.csv"):
        rows = pd.read_csv(table)
        rows.replace({"label": dict(enumerate(LABELS))}).to_csv(table, index=False)
    return Workbook("smoke", root, root / "out", SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def networks(book):
    """Store random weights as the results of two steps, with biases that make the classes equally frequent."""
    torch.manual_seed(0)
    classifier = resnet.Classifier(resnet.backbone(0.125), resnet.Head(len(OFFICE), hidden=16))
    segmenter = segmenters.build("lraspp", 0.125)
    tiles, _ = image_files.load_tiles(book.data.problem2.train)
    for step, network, last, pixels in (
        ("finetune-C", classifier, classifier.head.linear, image_files.load(book.data.problem1.train, 32)),
        ("segment-lraspp", segmenter, segmenter.classifier.high_classifier, tiles),
    ):
        images = normalise(torch.from_numpy(pixels))
        network.eval()
        with torch.no_grad():
            scores = network(images) if network is classifier else segmenters.scores(network, images)
            last.bias -= scores.transpose(0, 1).flatten(1).mean(1)
        store(book, step, network)
    return {"C": classifier, "lraspp": segmenter}


def store(book, step, network):
    with book.steps.store.claim(step, book.steps.key(step), book.steps.config(step)) as draft:
        draft.weights(network)
        draft.metrics({"seen": SEEN})
        draft.history([])


def command(capsys, book, *words):
    """Run `predict` on that workbook; return exit code, standard output and error."""
    pairs = [f"{name}={value}" for name, value in SETTINGS.items()]
    options = ("--profile", "smoke", "--data-root", book.root, "--out", book.out)
    return run(capsys, "predict", *words, *options, "--set", *pairs)


def read_masks(folder):
    """Return {file name: classes}, after checking that each file is an RGB PNG in the course's colours."""
    masks = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.mode == "RGB"
            masks[path.name], inexact = landcover.decode(np.asarray(image))
        assert inexact == 0 and masks[path.name].max() < landcover.UNKNOWN
    return masks


def save_images(folder, images):
    """Save images of these names, (width, height) and modes."""
    folder.mkdir(exist_ok=True)
    for seed, (name, (size, mode)) in enumerate(images.items()):
        picture(seed, size).convert(mode).save(folder / name)
    return folder


# --- segmentation

SIZES = {"0007": (7, 5), "0010": (33, 70), "0002": (96, 64), "0001": (1, 1), "0003": (96, 64), "0004": (32, 32)}


@pytest.fixture
def tiles(tmp_path):
    """A folder of satellite images of several sizes."""
    return save_images(tmp_path / "tiles", {f"{number}_sat.jpg": (size, "RGB") for number, size in SIZES.items()})


@pytest.mark.slow
@pytest.mark.parametrize("tta", [False, True])
def test_each_mask_is_that_of_its_image_alone(book, networks, tmp_path, tiles, tta):
    """In the image's own size; without --model by the profile's improved model."""
    images, settings = list(tiles.iterdir()), book.profile.lraspp
    assert predict.segmentation(book, tiles, tmp_path / "out", "lraspp" if tta else "", tta) == (len(images), [])
    masks = read_masks(tmp_path / "out")
    classes = set(np.concatenate([mask.ravel() for mask in masks.values()]).tolist())
    assert classes <= set(SEEN) and len(classes) > 1
    for path in images:
        mask = masks.pop(f"{path.stem.removesuffix('_sat')}_mask.png")
        pixels = np.array(image_files.open_rgb(path)).transpose(2, 0, 1)[None]
        (alone,) = train_segmenter.predict(networks["lraspp"], pixels, torch.device("cpu"), settings, tta, SEEN)
        assert mask.shape == alone.shape and (mask == alone).mean() > 0.99  # rounding may turn a tie
    assert masks == {}


FOLDERS = [  # names of images, those that get no mask but a reason, and the number of masks
    (["1_sat.jpg", "2.jpg", "3_SAT.jpg", "4_sat.gif", "5_sat.jp2"], ["2.jpg"], 4),
    (["1_sat.jpg", "1_mask.png", "2_Sat.png", "2_MASK.PNG", "a.txt", "._3_sat.jpg", "Thumbs.db"], [], 2),
    (["1.jpg", "1_mask.png", "2.JPEG", "3_mask.png", "4.heic"], ["3_mask.png", "4.heic"], 2),
    (["1_sat.jpg", "1_SAT.JPG", "overview.png"], ["1_sat.jpg", "overview.png"], 1),
]


@pytest.mark.parametrize(("names", "skipped", "written"), FOLDERS)
def test_every_image_of_a_folder_gets_a_mask_or_is_named(capsys, book, tmp_path, names, skipped, written):
    """Except masks beside their image. The folder does not change."""
    (folder := tmp_path / "images").mkdir()
    kinds = {".png": "PNG", ".gif": "GIF", ".jp2": "JPEG2000"}
    for number, name in enumerate(names):
        picture(number, (16, 16)).save(folder / name, format=kinds.get(name[-4:].lower(), "JPEG"))
        if name == "4.heic":
            (folder / name).write_bytes(b"\0\0\0\x18ftypheic")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, out, text = command(capsys, book, "segmentation", folder, tmp_path / "out")
    assert code == bool(skipped) and out == f"{tmp_path / 'out'}: masks of {written} images\n"
    assert all(f"  {folder / name}: " in text for name in skipped) and text.count("\n  ") == len(skipped)
    assert len(read_masks(tmp_path / "out")) == written
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_unusable_images_and_unwritable_masks_are_named_and_the_rest_is_written(capsys, book, tiles, tmp_path):
    content, out = (tiles / "0002_sat.jpg").read_bytes(), tmp_path / "out"
    (tiles / "0020_sat.jpg").write_bytes(content[: len(content) // 2])
    (tiles / "0021_sat.jpg").mkdir()
    (long := tiles / f"{'x' * 246}_sat.jpg").write_bytes(content)  # its mask's name would be too long
    (out / "0003_mask.png" / "file").mkdir(parents=True)
    code, printed, text = command(capsys, book, "segmentation", tiles, out, "--model", "lraspp", "--tta")
    assert code == 1 and f"masks of {len(SIZES) - 1} images" in printed and "4 left out" in text
    for number in (20, 21):
        assert f"{tiles / f'00{number}_sat.jpg'}: it cannot be decoded" in text
    assert f"{long}: " in text and "File name too long" in text and f"{tiles / '0003_sat.jpg'}: " in text
    assert {path.name for path in out.iterdir()} == {f"{number}_mask.png" for number in SIZES}
    with pytest.raises(UserError, match="could not be written"):
        predict.segmentation(book, tiles, out / "0001_mask.png")
    with pytest.raises(UserError, match="disk space"), full_disk(50):
        predict.segmentation(book, tiles, tmp_path / "other")


UNUSABLE = [  # IMAGE_DIR, OUT_DIR, --model, and the error
    ("nowhere", "out", "", "no folder .*nowhere"), ("masks", "out", "", "masks holds no images"),
    ("tiles", "masks/../tiles", "", "both .*tiles: true masks there"),
    ("tiles", "out", "deeplabv3", "segment-deeplabv3 is not trained.*PROFILE=smoke.*--set"),
    ("tiles", "out", "unet", f"--model is one of {', '.join(segmenters.SEGMENTERS)}"),
]  # fmt: skip


@pytest.mark.parametrize(("images", "out", "model", "message"), UNUSABLE)
def test_an_unusable_folder_or_model_is_named_before_anything_is_written(
    capsys, book, tmp_path, tiles, images, out, model, message
):
    save_images(tmp_path / "masks", {"0001_mask.png": ((9, 9), "RGB")})
    words = [tmp_path / images, tmp_path / out, *(["--model", model] if model else [])]
    code, _, text = command(capsys, book, "segmentation", *words)
    assert code == 1 and re.search(message, one_paragraph(text))
    assert not (tmp_path / "out").exists() and len(list(tiles.iterdir())) == len(SIZES)


# --- classification


def fill(book, tmp_path, rows, folder):
    """Return the rows of the written CSV, the number of labels, and the problems."""
    table, out = tmp_path / "test.csv", tmp_path / "out.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    count, problems = predict.classification(book, table, folder, out)
    return list(csv.DictReader(out.read_text(encoding="utf-8").splitlines())), count, problems


IDS = ["007", "1e5", "NA", "", "1.0", 'say "a, b"', "Größe", " 3 ", "9999999999999999999"]
ODD = {"wide.png": ((90, 20), "RGB"), "gray.jpg": ((20, 90), "L")}


def test_labels_are_those_of_the_training_csv_and_ids_and_names_stay_as_they_are(book, networks, tmp_path):
    """For images of any size and mode, also for a file that is named twice; an existing label is ignored."""
    folder, names = tmp_path / "images", [*book.data.problem1.val.files, *ODD, "wide.png"]
    shutil.copytree(book.data.problem1.val.folder, folder)
    save_images(folder, ODD)
    rows = [("label", "filename", "id"), *((999, *pair) for pair in zip(names, IDS, strict=True))]
    filled, count, problems = fill(book, tmp_path, rows, folder)
    pixels = [image_files.square(image_files.open_rgb(folder / name), 32).copy() for name in names]
    with torch.no_grad():
        scores = [networks["C"](normalise(torch.from_numpy(one)[None])) for one in pixels]
    labels = [str(LABELS[one.argmax()]) for one in scores]
    columns = ("id", "filename", "label")
    assert [tuple(row.items()) for row in filled] == [tuple(zip(columns, row)) for row in zip(IDS, names, labels)]
    assert count == len(names) and problems == [] and len(set(labels)) > 1
    with pytest.raises(UserError, match="finetune-F is not trained.*A, B, C, D, E"):
        predict.classification(book, tmp_path / "test.csv", folder, tmp_path / "out.csv", "F")


def test_class_names_as_labels_are_written_back_and_scored(book, networks, tmp_path):
    """As in the course's CSVs of 2021 and 2022."""
    root, out = tmp_path / "named", tmp_path / "out.csv"
    shutil.copytree(book.root / "p1_data", root / "p1_data")
    train = root / "p1_data" / "office" / "train"
    for table in train.parent.glob("*.csv"):
        rows = pd.read_csv(table)
        rows.assign(label=rows["filename"].str[:-9]).to_csv(table, index=False)
    named = Workbook("smoke", root, root / "out", SETTINGS)
    store(named, "finetune-C", networks["C"])
    assert predict.classification(named, train.with_suffix(".csv"), train, out) == (12, [])
    rows = pd.read_csv(out)
    assert len(set(rows["label"])) > 1 and set(rows["label"]) <= set(OFFICE)
    accuracy = np.mean([label == name[:-9] for name, label in zip(rows["filename"], rows["label"])])
    assert evaluate.score_classification(out, train.with_suffix(".csv"))[0]["accuracy"] == accuracy


REASONS = dict.fromkeys(("cut.jpg", "empty.jpg"), "it cannot be decoded")
ABSENT = ("../x.jpg", "/etc/hostname", "..", "link.jpg", "gone.jpg", "sub/x.jpg", ".", "", "a\0b.jpg")
REASONS |= dict.fromkeys(ABSENT, "no such file, or it is a link")


def test_rows_without_a_usable_image_of_the_folder_get_no_label_and_are_named(capsys, book, tmp_path):
    folder, table, out = tmp_path / "images", tmp_path / "test.csv", tmp_path / "out.csv"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub", folder):
        picture(0).save(place / "x.jpg")
    content = (folder / "x.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").touch()
    (folder / "link.jpg").symlink_to(tmp_path / "x.jpg")
    usable = ["./x.jpg", str(folder / "x.jpg"), "x.jpg", " X.jpg ", "images\\x.jpg"]  # all mean images/x.jpg
    names = [*REASONS, *usable]
    rows, count, problems = fill(book, tmp_path, [("id", "filename"), *((1, name) for name in names)], folder)
    assert count == len(usable) and [row["filename"] for row in rows] == names
    assert [name for name, row in zip(names, rows) if row["label"]] == usable
    named = {getattr(name, "name", name): reason for name, reason in problems}  # undecodable ones by path
    assert named.keys() == REASONS.keys() and all(reason in named[name] for name, reason in REASONS.items())
    code, printed, text = command(capsys, book, "classification", table, folder, out)
    assert code == 1 and f"labels of {len(usable)} rows" in printed and f"{len(REASONS)} left out" in text


# --- the models of a finished report


@pytest.fixture(scope="module")
def report(smoke_run):
    return Workbook("smoke", out=smoke_run, settings={"device": "cpu"})


@pytest.mark.parametrize(("model", "tta"), [("fcn32s", False), ("lraspp", True)])
def test_masks_and_their_score_are_those_of_the_step(report, tmp_path, model, tta):
    (images := tmp_path / "images").mkdir()
    for path in report.data.problem2.validation.paths:  # images and masks
        shutil.copy(path, images)
    written, problems = predict.segmentation(report, images, tmp_path / "out", model, tta)
    masks, result = read_masks(tmp_path / "out"), report.result(f"segment-{model}")
    assert list(masks) == [f"{n}_mask.png" for n in report.data.problem2.validation.numbers]
    assert written == len(masks) and problems == []
    assert np.array_equal(np.stack(list(masks.values())), result.array("predictions_tta" if tta else "predictions"))
    miou = (result.metrics["tta"] if tta else result.metrics)["miou_last"]
    assert evaluate.score_segmentation(tmp_path / "out", images)[0]["miou"] == pytest.approx(miou)


@pytest.mark.parametrize("setting", ("C", "E"))  # trained whole, and with a frozen backbone
def test_labels_and_their_accuracy_are_those_of_the_step(report, tmp_path, setting):
    """Except where the two best classes are nearly equal: rounding depends on the batch."""
    val, table, out = report.data.problem1.val, tmp_path / "val.csv", tmp_path / "out.csv"
    write_labelled(table, [(name, val.numbers[label]) for name, label in zip(val.files, val.labels)])
    assert predict.classification(report, table, val.folder, out, setting) == (len(val), [])
    result, profile = report.result(f"finetune-{setting}"), report.profile
    differs = pd.read_csv(out)["label"].to_numpy() != np.array(val.numbers)[result.array("predictions")[-1]]
    head = resnet.Head(len(val.classes), hidden=profile.finetune.hidden)
    model = resnet.Classifier(resnet.backbone(profile.model_scale), head).eval()
    model.load_state_dict(result.weights())
    with torch.no_grad():
        scores = model(normalise(torch.from_numpy(image_files.load(val, profile.data.image_size))))
    best = scores.topk(2).values  # (N, 2)
    is_tie = (best[:, 0] - best[:, 1]).numpy() < 0.03 * float(scores.abs().max())  # √53 roundings to 2⁻⁹ for each
    assert not (differs & ~is_tie).any() and not is_tie.all()
    accuracy = evaluate.score_classification(out, table)[0]["accuracy"]
    assert accuracy == pytest.approx(result.metrics["accuracy_last"], abs=differs.mean() + 1e-9)
