"""Predictions for new images by the trained models, and their scores, as the course's own evaluation wants them.

What cannot be read is skipped and named: each function returns a list of (file, reason) beside its result, and
all the rest is done.
"""

import itertools
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from hw1lib import comparison, files
from hw1lib.data import csv_rows, landcover
from hw1lib.data import images as image_files
from hw1lib.errors import UserError
from hw1lib.loops import augment, features, segment
from hw1lib.loops.device import autocast
from hw1lib.measures import metrics
from hw1lib.measures.statistics import wilson
from hw1lib.models import classifier, segmenters

SATELLITE, MASK = "_sat", "_mask.png"  # NNNN_sat.jpg -> NNNN_mask.png
MASK_FILES = f"*{MASK}"
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
AHEAD = 16  # images that are decoded before they are needed


def segmentation(book, image_dir, out_dir, model=None, tta=False):
    """Writes a mask in the course's colours for every image of a folder.

    Args:
        book: workbook.Workbook whose model is trained.
        image_dir: folder of images of any size. Where there are NNNN_sat.jpg, only these count.
        out_dir: folder for NNNN_mask.png.
        model: fcn32s, lraspp or deeplabv3; None: the improved model.
        tta: average over eight flips and turns of each image.

    Returns:
        Number of written masks, and a list of (file, reason) of what was not.

    Raises:
        UserError: the model is not trained, or the folder holds no images.
    """
    name = model or book.profile.segmentation.improved
    out_dir, image_dir = Path(out_dir), Path(image_dir)
    if out_dir.resolve() == image_dir.resolve():
        same = f"OUT_DIR and IMAGE_DIR are both {image_dir}: true masks in there would be replaced."
        raise UserError(f"{same} Name another folder for the predictions.")
    if name not in segmenters.SEGMENTERS:
        raise UserError(f"--model {name}: choose one of {', '.join(segmenters.SEGMENTERS)}.")
    settings = getattr(book.profile, name)
    network = _trained(book, f"segment-{name}", segmenters.build(name, book.profile.model_scale))
    seen = book.result(f"segment-{name}").metrics["seen"]
    taken, problems, written = {}, [], 0
    for path in _images_in(image_dir):
        target = path.stem.removesuffix(SATELLITE) + MASK
        if taken.setdefault(target, path) is not path:
            problems.append((path, f"{taken[target].name} is already written to {target}"))
    names = {path: target for target, path in taken.items()}
    for batch in _batches(list(names), settings.batch_size, problems):
        images = np.stack([pixels for _, pixels in batch])
        with autocast(settings.precision, book.device):  # as in validation
            masks = segment.predict(network, images, book.device, settings, tta, seen)
        for (path, _), mask in zip(batch, masks):
            with files.replacing(out_dir / names[path]) as temporary:
                Image.fromarray(landcover.encode(mask)).save(temporary, format="PNG")
        written += len(batch)
    return written, problems


def classification(book, table, image_dir, out, setting="C"):
    """Fills the labels of a CSV with columns id and filename.

    Args:
        book: workbook.Workbook whose setting is trained.
        table: CSV; a column label in it is not read.
        image_dir: folder of its images.
        out: CSV to write: id, filename, label; labels are numbers or names as in the training CSV.
        setting: A … E.

    Returns:
        Number of filled labels, and a list of (file, reason) of rows that were not.

    Raises:
        UserError: the setting is not trained, or the CSV cannot be read.
    """
    if setting not in comparison.SETTINGS:
        raise UserError(f"--model {setting}: choose one of {', '.join(comparison.SETTINGS)}.")
    rows, folder = csv_rows.read_rows(table, "id", "filename"), Path(image_dir)
    settings, size = book.profile.finetune, book.profile.data.image_size
    _must_be_trained(book, f"finetune-{setting}")
    split = book.data.problem1.train
    head = classifier.Head(len(split.classes), hidden=settings.hidden, dropout=settings.dropout)
    model = classifier.Classifier(classifier.backbone(book.profile.model_scale), head)
    model = _trained(book, f"finetune-{setting}", model)
    frozen, labels = comparison.ROWS[setting].frozen, {}
    plain, problems = csv_rows.plain_names(folder, rows["filename"]), []
    for name, file in plain.items():
        if csv_rows.leaves(folder, file or name):
            problems.append((name, f"it leads out of {folder}"))
        elif file is None:
            row = rows.index[rows["filename"] == name][0]
            problems.append((name, f"missing: {folder} has no such file (row {row})"))
    left_out = {name for name, _ in problems}
    paths = list(dict.fromkeys(folder / file for name, file in plain.items() if name not in left_out))
    for batch in _batches(paths, settings.batch_size, problems, size):
        images = torch.from_numpy(np.stack([pixels for _, pixels in batch]))
        if frozen:  # its head was trained and scored on features in float32
            known = features.extract(model.backbone, images, book.device).to(book.device)
        with torch.no_grad(), autocast(settings.precision, book.device):  # as in validation
            scores = model.head(known) if frozen else model(augment.normalise(images.to(book.device)))
        numbers = scores.float().argmax(dim=1).tolist()
        labels |= {path.name: split.numbers[n] for (path, _), n in zip(batch, numbers)}
    filled = [labels.get(plain[name]) for name in rows["filename"]]
    table = rows[["id", "filename"]].assign(label=pd.Series(filled, rows.index, dtype=object))
    files.write_text(out, table.to_csv(index=False))
    return int(table["label"].notna().sum()), problems


def _must_be_trained(book, step):
    if step not in book.steps.all or book.steps.status(step) != "done":
        raise UserError(
            f"The model of step {step} is not trained in {book.out}. Run make report PROFILE={book.profile.name} "
            "first, and give predict the same --data-root, --out and --set."
        )


def _trained(book, step, network):
    """A network with a finished step's weights, in eval mode on the device."""
    _must_be_trained(book, step)
    network.load_state_dict(book.result(step).weights())
    return network.to(book.device, memory_format=torch.channels_last).eval()


def _images_in(folder):
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and not p.name.endswith(MASK))
    if not found:
        raise UserError(f"{folder} holds no images ({', '.join(ENDINGS)}).")
    return [p for p in found if p.stem.endswith(SATELLITE)] or found


def _batches(paths, size, problems, square=None):
    """Decodes ahead and yields lists of (path, (3, H, W) uint8) of one size each.

    Args:
        paths: list of images.
        size: most images in one batch.
        problems: list that takes (path, reason) of what cannot be decoded.
        square: side that images are resized and cropped to; None leaves them as they are.
    """

    def decode(path):
        try:
            image = image_files.open_rgb(path)
        except UserError as error:
            missing = isinstance(error.__cause__, FileNotFoundError)
            return path, "missing" if missing else f"it cannot be decoded: {error.__cause__}"
        return path, image_files.square(image, square) if square else np.asarray(image).transpose(2, 0, 1)

    batch = []
    with ThreadPoolExecutor() as pool:
        ahead = (paths[start : start + AHEAD] for start in range(0, len(paths), AHEAD))
        decoded = itertools.chain.from_iterable(pool.map(decode, part) for part in ahead)
        for path, pixels in tqdm(decoded, "predict", len(paths), unit="image", disable=None, ncols=80):
            if isinstance(pixels, str):
                problems.append((path, pixels))
                continue
            if batch and (len(batch) == size or pixels.shape != batch[0][1].shape):
                yield batch
                batch = []
            batch.append((path, pixels))
    if batch:
        yield batch


def score_segmentation(predicted_dir, true_dir):
    """The course's mIoU of a folder of masks.

    Args:
        predicted_dir, true_dir: folders of NNNN_mask.png; names must agree.

    Returns:
        Dict with tiles, miou, iou (by class; None where a class does not occur), pixel_accuracy
        and stray_pixels (of the predictions), and a list of (file, reason) of what was not scored.

    Raises:
        UserError: a folder is missing or holds no masks, or nothing could be scored.
    """
    predicted_dir, true_dir = Path(predicted_dir), Path(true_dir)
    for folder in (predicted_dir, true_dir):
        if not any(folder.glob(MASK_FILES)):
            raise UserError(f"{folder} holds no {MASK_FILES} files.")
    matrix, scored, strays, problems = 0, 0, 0, []
    for path in sorted(true_dir.glob(MASK_FILES)):
        try:
            truth, _ = _mask(path)
            predicted, stray = _mask(predicted_dir / path.name)
        except UserError as error:
            problems.append((path.name, str(error)))
            continue
        if truth.shape != predicted.shape:
            shapes = (f"{height} × {width}" for height, width in (predicted.shape, truth.shape))
            problems.append((path.name, f"its size is {' instead of '.join(shapes)}"))
            continue
        matrix = matrix + metrics.confusion(truth, predicted)
        strays += stray
        scored += 1
    if not scored:
        first = ": ".join(problems[0])
        raise UserError(f"No mask of {predicted_dir} could be scored against {true_dir}; the first reason: {first}.")
    found = {"tiles": scored, "miou": metrics.miou(matrix), "iou": segment.by_class(matrix)}
    return found | {"pixel_accuracy": metrics.pixel_accuracy(matrix), "stray_pixels": strays}, problems


def score_classification(predicted_csv, true_csv):
    """Score a CSV of labels; an image without a prediction counts as wrong.

    Args:
        predicted_csv, true_csv: CSVs with columns filename and label, numbers or names.

    Returns:
        Dict with correct, total, accuracy, its 95 % interval ci_low, ci_high, and how many images are
        without_prediction (wrong), not_in_truth and without_truth (neither counts); and a list of (file, reason) of
        all of these.

    Raises:
        UserError: a CSV cannot be read or names an image twice, one has numbers and the other names, or no image is in
            both.
    """
    predicted, true = _labels(predicted_csv), _labels(true_csv)
    first = [labels.dropna().iloc[:1] for labels in (predicted, true)]
    if len({type(labels.iloc[0]) for labels in first}) > 1:
        one, other = (f"{labels.iloc[0]} of {labels.index[0]}" for labels in first)
        raise UserError(
            f"{predicted_csv} and {true_csv} have labels of two kinds, such as {one} and {other}. Use numbers in both "
            "or names in both."
        )
    if not set(predicted.index) & set(true.index):
        one, other = predicted.index[0], true.index[0]
        raise UserError(f"{predicted_csv} and {true_csv} have no image in common; they begin with {one} and {other}.")
    truth, known = true.dropna(), predicted.dropna()
    reasons = {
        "without_prediction": ([name for name in truth.index if name not in known], "it has no prediction"),
        "not_in_truth": ([name for name in predicted.index if name not in true], f"it is not in {true_csv}"),
        "without_truth": ([name for name in true.index if name not in truth], f"it has no label in {true_csv}"),
    }
    problems = [(name, reason) for names, reason in reasons.values() for name in names]
    correct = sum(known.get(name) == label for name, label in truth.items())
    score = {"correct": correct, "total": len(truth), "accuracy": correct / len(truth)}
    score |= dict(zip(("ci_low", "ci_high"), wilson(correct, len(truth))))
    return score | {kind: len(names) for kind, (names, _) in reasons.items()}, problems


def _mask(path):
    """(H, W) classes of a mask file, and its number of stray pixels.

    Colours that are no class count as the nearest of the cube's eight corners, as in the course's
    own evaluation; red, which is no class either, is unknown.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    colours = np.asarray(image_files.open_rgb(path))
    nearest = np.where(colours >= 128, 255, 0).astype(np.uint8)
    return landcover.decode(nearest)[0], landcover.decode(colours)[1]


def _labels(table):
    """The labels of a CSV by file name, None where one is missing; a folder that all names share does not count."""
    rows = csv_rows.read_rows(table, "filename", "label")
    labels = csv_rows.parse_labels(table, rows)
    if all(label is None for label in labels):
        raise UserError(f"{table} holds no labels.")
    names = [unicodedata.normalize("NFC", name.strip().replace("\\", "/")) for name in rows["filename"]]
    if len({os.path.dirname(name) for name in names}) == 1:
        names = [os.path.basename(name) for name in names]
    first = {}
    for row, name in zip(rows.index, names):
        if not name:
            raise UserError(f"{table}, row {row}: the filename is empty.")
        if first.setdefault(name, row) != row:
            raise UserError(f"{table} names {name} more than once, in rows {first[name]} and {row}.")
    return pd.Series(labels, names, dtype=object)
