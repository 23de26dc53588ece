"""Scores predictions against the truth, as the course's own evaluation does."""

from pathlib import Path

import numpy as np
import pandas as pd

from hw1lib.data import images as image_files
from hw1lib.data import csv_rows, landcover, layout
from hw1lib.errors import UserError
from hw1lib.results import metrics
from hw1lib.results.statistics import wilson

MASKS = "*_mask.png"


def segmentation(predicted_dir, true_dir):
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
        if not any(folder.glob(MASKS)):
            raise UserError(f"{folder} holds no {MASKS} files.")
    matrix, scored, strays, problems = 0, 0, 0, []
    for path in sorted(true_dir.glob(MASKS)):
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
        raise UserError(
            f"No mask of {predicted_dir} could be scored against {true_dir}; the first reason: "
            f"{problems[0][0]}: {problems[0][1]}."
        )
    iou = [None if np.isnan(value) else float(value) for value in metrics.iou(matrix)]
    return {
        "tiles": scored,
        "miou": metrics.miou(matrix),
        "iou": dict(zip(landcover.SCORED, iou)),
        "pixel_accuracy": metrics.pixel_accuracy(matrix),
        "stray_pixels": strays,
    }, problems


def classification(predicted_csv, true_csv):
    """The accuracy of a CSV of labels; an image without a prediction counts as wrong.

    Args:
        predicted_csv, true_csv: CSVs with columns filename and label.

    Returns:
        Dict with correct, total, accuracy and its 95 % interval ci_low, ci_high, and a list of
        (file, reason) of what has no prediction.

    Raises:
        UserError: a CSV cannot be read.
    """
    predicted, true = _labels(predicted_csv), _labels(true_csv)
    problems = [(name, "it has no prediction") for name in true.index if name not in predicted]
    problems += [(name, "it is not among the true labels") for name in predicted.index
                 if name not in true]
    correct = int((predicted.reindex(true.index) == true).sum())
    low, high = wilson(correct, len(true))
    return {
        "correct": correct, "total": len(true), "accuracy": correct / len(true),
        "ci_low": low, "ci_high": high,
    }, problems


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
    """Labels by file name; rows without a label are left out."""
    rows = csv_rows.read_rows(table, "filename", "label")
    twice = rows["filename"][rows["filename"].duplicated()]
    if len(twice):
        raise UserError(f"{table} names {twice.iloc[0]} more than once.")
    rows = rows[rows["label"] != ""]
    if rows.empty:
        raise UserError(f"{table} holds no labels.")
    labels = rows.set_index("filename")["label"].map(csv_rows.whole_number)
    if labels.isna().any():
        raise UserError(f"{table}: the label of {labels.index[labels.isna()][0]} is no number.")
    return labels.astype("int64")
