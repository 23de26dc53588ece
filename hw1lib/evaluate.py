"""Scores of predictions, computed as in the course: mIoU of masks, accuracy of labels.

Each function also returns a list of (file, reason) of files that it did not score or counted as wrong.
"""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from hw1lib.data import csv_rows, landcover, listing
from hw1lib.data import images as image_files
from hw1lib.errors import UserError
from hw1lib.metrics import iou
from hw1lib.metrics.statistics import wilson

LEFT_OUT, WRONG = "left out, without a usable true mask", "counted as wrong"
INEXACT = "pixels not exactly of a class's colour"  # channel values of 128 or more count as 255, others as 0


def score_segmentation(predicted_dir, true_dir):
    """Return the course's mIoU of a folder of masks; a missing or unusable prediction counts as wrong.

    Args:
        predicted_dir, true_dir: folders of NNNN_mask.png with the same numbers.

    Returns:
        Dict of miou, iou (by class; None where a class does not occur), pixel_accuracy and coverage (the tiles that
        were scored, counted as wrong or left out, and the pixels whose colour is not exactly a class's, in words); and
        a list of (path, reason) of files that were not scored or count as wrong.

    Raises:
        UserError: a folder holds no masks, both are the same folder, no prediction could be scored, or the true masks
            are unknown everywhere.
    """
    predicted_dir, true_dir = Path(predicted_dir), Path(true_dir)
    _refuse_same(predicted_dir, true_dir)
    (predicted, others), (true, true_others) = _masks_in(predicted_dir), _masks_in(true_dir)
    others, numbers = others + true_others, sorted(predicted.keys() | true.keys())
    problems, counts, pixels = list(others), Counter(), Counter()
    matrix = np.zeros((len(landcover.CLASSES),) * 2, np.int64)
    for number in numbers:
        name = number + listing.MASK
        path, effect = true.get(number) or predicted[number], LEFT_OUT
        try:
            if number not in true:
                raise image_files.Unreadable(path, f"{true_dir / name} is missing")
            truth, count, _ = image_files.read_mask(path)
            pixels[f"true {INEXACT}"] += count
            path, effect = predicted.get(number, predicted_dir / name), WRONG
            prediction, count, _ = image_files.read_mask(path)
            pixels[f"predicted {INEXACT}"] += count
            if prediction.shape != truth.shape:
                sizes = (f"{width} × {height}" for height, width in (prediction.shape, truth.shape))
                raise image_files.Unreadable(path, f"its size is {' instead of '.join(sizes)}")
        except image_files.Unreadable as error:
            problems.append((path, f"{effect}: {error.reason}"))
            counts[effect] += 1
            if effect == LEFT_OUT:
                continue
            prediction = np.full_like(truth, landcover.UNKNOWN)
        matrix += iou.confusion(truth, prediction)
    scored = len(numbers) - counts.total()
    if not scored:
        path, reason = problems[-1]
        raise UserError(f"No mask of {predicted_dir} could be scored against {true_dir}. {path}: {reason}.")
    if not matrix[: landcover.UNKNOWN].any():
        message = f"No mask of {true_dir} shows a class: all pixels are unknown, so the mIoU is undefined."
        raise UserError(f"{message} Use the course's colours, such as cyan (0, 255, 255) for urban.")
    exceptions = {**counts, f"other file{'s' * (len(others) > 1)}, not scored": len(others), **pixels}
    score = {"miou": iou.miou(matrix), "iou": iou.iou_by_class(matrix), "pixel_accuracy": iou.pixel_accuracy(matrix)}
    return score | {"coverage": _coverage(f"{scored} of {len(numbers)} tiles", exceptions)}, problems


def _masks_in(folder):
    """Return a folder's masks by number, {"0001": path}, and (path, reason) of other images except tiles.

    Files of other kinds are left out, unless their name or, for a folder, its content says that they hold masks.
    """
    names = listing.images_in(folder)
    masks, _ = listing.numbered(names, listing.MASK)
    if not masks:
        content = f", but {names[0]}; rename the masks" if names else ""
        raise UserError(f"{folder} holds no *{listing.MASK} files{content}.")
    known = {*masks.values(), *(f"{number}_sat".lower() for number in masks)}
    named = (name for name in listing.visible(folder) if "_mask" in name.lower())
    others = sorted({*names, *named, *listing.image_folders(folder)} - known)
    others = [name for name in others if Path(name).stem.lower() not in known]
    reason = f"not scored: its name is not NNNN{listing.MASK}, or another file has the same number"
    return {number: folder / name for number, name in masks.items()}, [(folder / name, reason) for name in others]


def _refuse_same(predicted, true):
    if predicted.resolve() == true.resolve():
        raise UserError(f"{predicted} and {true} are the same. Give the predictions first, then the truth.")


def score_classification(predicted_csv, true_csv):
    """Return the accuracy of a CSV of labels; an image without a prediction counts as wrong.

    Args:
        predicted_csv, true_csv: CSVs with columns filename and label (numbers or names).

    Returns:
        Dict of accuracy and coverage (how many images were scored, counted as wrong or left out, and the accuracy's
        95 % interval, in words); and a list of (file, reason) of those without a prediction or a true label.

    Raises:
        UserError: a CSV cannot be read or names an image twice, both are the same file, or one has numbers and the
            other names.
    """
    _refuse_same(Path(predicted_csv), Path(true_csv))
    predicted, true = _labels(predicted_csv), _labels(true_csv)
    if {type(label) for label in (*predicted.values(), *true.values())} >= {int, str}:
        kinds = "numbers as labels and the other has names. Use numbers in both or names in both"
        raise UserError(f"Of {predicted_csv} and {true_csv}, one has {kinds}.")
    truth = {name: label for name, label in true.items() if label is not None}
    missing = [name for name in truth if predicted.get(name) is None]
    unlabelled = [name for name in predicted | true if name not in truth]
    problems = [(name, "it has no prediction") for name in missing]
    problems += [(name, f"it has no label in {true_csv}") for name in unlabelled]
    correct, total = sum(predicted.get(name) == label for name, label in truth.items()), len(truth)
    low, high = wilson(correct, total)
    exceptions = {"without a prediction, wrong": len(missing), "without a true label, not counted": len(unlabelled)}
    coverage = f"{_coverage(f'{correct} of {total}', exceptions)}; 95 % interval {low:.4f} to {high:.4f}"
    return {"accuracy": correct / total, "coverage": coverage}, problems


def _coverage(scored, exceptions):
    """Return how many images a score covers, and how many are exceptions, as text."""
    return "; ".join([scored, *(f"{count:,} {what}" for what, count in exceptions.items() if count)])


def _labels(table):
    """Return a CSV's labels by file name, None if missing; a folder that all names share is removed."""
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
    return dict(zip(names, labels))
