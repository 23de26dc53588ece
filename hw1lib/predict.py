"""Predictions for new images by the trained models, and their scores, as the course's own evaluation wants them.

What cannot be read is skipped and named: each function returns a list of (file, reason) beside its result, and
all the rest is done.
"""

import errno
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

from hw1lib import cpus, files, variants
from hw1lib.data import csv_rows, landcover, listing
from hw1lib.data import images as image_files
from hw1lib.errors import UserError, out_of_memory
from hw1lib.loops import augment, features, train_segmenter
from hw1lib.loops.device import autocast
from hw1lib.metrics import iou
from hw1lib.metrics.statistics import wilson
from hw1lib.models import resnet, segmenters

SATELLITE = "_sat"  # NNNN_sat.jpg -> NNNN_mask.png
WHOLE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # it concerns all files
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
        Number of written masks, and a list of (file, reason) of what was not used or not written.

    Raises:
        UserError: the model is not trained, the folder holds no images, or nothing can be written.
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
    seen = book.steps.result(f"segment-{name}").metrics["seen"]
    targets, problems = _masks_to_write(image_dir)
    with files.write_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(out_dir, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    written = 0
    for batch in _batches(list(targets), settings.batch_size, problems):
        images = np.stack([pixels for _, pixels in batch])
        try:
            with autocast(settings.precision, book.device):  # as in validation
                masks = train_segmenter.predict(network, images, book.device, settings, tta, seen)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = f"memory ran out; cut it into tiles, or lower {name}.batch_size ({settings.batch_size}) with --set"
            problems += [(path, reason) for path, _ in batch]
            continue
        for (path, _), mask in zip(batch, masks):
            try:
                with files.replacing(out_dir / targets[path]) as temporary:
                    Image.fromarray(landcover.encode(mask)).save(temporary, format="PNG")
                written += 1
            except UserError as error:
                reason = error.__cause__
                if not isinstance(reason, OSError) or reason.errno in WHOLE_DISK:
                    raise
                problems.append((path, f"{out_dir / targets[path]} cannot be written: {reason.strerror}"))
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
    if setting not in variants.SETTINGS:
        raise UserError(f"--model {setting}: choose one of {', '.join(variants.SETTINGS)}.")
    rows, folder = csv_rows.read_rows(table, "id", "filename"), Path(image_dir)
    settings, size = book.profile.finetune, book.profile.data.image_size
    _must_be_trained(book, f"finetune-{setting}")
    split = book.data.problem1.train
    head = resnet.Head(len(split.classes), hidden=settings.hidden, dropout=settings.dropout)
    model = resnet.Classifier(resnet.backbone(book.profile.model_scale), head)
    model = _trained(book, f"finetune-{setting}", model)
    frozen, labels = variants.ROWS[setting].frozen, {}
    plain, problems = listing.match(folder, rows["filename"]), []
    for name, file in plain.items():
        if listing.escapes(folder, file or name):
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
    network.load_state_dict(book.steps.result(step).weights())
    return network.to(book.device, memory_format=torch.channels_last).eval()


def _masks_to_write(folder):
    """Which mask each image of a folder gets: {path: NNNN_mask.png}, and a list of (path, reason) of images left out.

    Masks beside their image are left out without a word.
    """
    names = _images_in(folder)
    masks, _ = listing.numbered(names, listing.MASK)
    stems = {name: Path(name).stem for name in names if not name.lower().endswith(listing.MASK)}
    tiles = _tile_numbers(names)
    taken, problems = {}, []
    for name, number in (tiles or stems).items():
        target = number + listing.MASK
        if taken.setdefault(target, name) != name:
            problems.append((folder / name, f"{taken[target]} is already written to {target}"))
    if not taken:
        raise UserError(f"{folder} holds no images ({', '.join(listing.IMAGES)}).")
    reason = f"not used, as other images here are called NNNN{SATELLITE}"
    problems += [(folder / name, reason) for name in stems if tiles and name not in tiles]
    problems += [
        (folder / mask, "a mask without its image") for n, mask in masks.items() if n + listing.MASK not in taken
    ]
    return {folder / name: target for target, name in taken.items()}, problems


def _images_in(folder):
    """Names of what is called like an image in a folder, which must be there."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    return listing.images(listing.visible(folder))


def _tile_numbers(names):
    """The numbers of satellite tiles, whatever kind of image: {"0001_sat.tif": "0001"}."""
    stems = {name: Path(name).stem for name in names}
    return {name: stem[: -len(SATELLITE)] for name, stem in stems.items() if stem.lower().endswith(SATELLITE)}


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
        except image_files.Unreadable as error:
            return path, error.reason if error.reason == "missing" else f"it cannot be decoded: {error.reason}"
        return path, image_files.square(image, square) if square else np.asarray(image).transpose(2, 0, 1)

    batch = []
    with ThreadPoolExecutor(cpus.available()) as pool:
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
    """The course's mIoU of a folder of masks; a prediction that is missing or cannot be used counts as wrong.

    Args:
        predicted_dir, true_dir: folders of NNNN_mask.png; numbers must agree.

    Returns:
        Dict with tiles (true masks, over which the score is), wrong (those of them without a usable prediction),
        left_out (tiles without a usable true mask), others (images that are no masks), miou, iou (by class; None where
        a class does not occur), pixel_accuracy, inexact_predicted and inexact_true (pixels whose colour is not exactly
        a class's); and a list of (file, reason) of all that was not scored.

    Raises:
        UserError: a folder holds no masks, no prediction could be scored, or no true mask shows a class.
    """
    (predicted, odd), (true, others) = (_masks_in(Path(folder)) for folder in (predicted_dir, true_dir))
    problems, matrix = odd + others, np.zeros((len(landcover.CLASSES),) * 2, np.int64)
    problems += [(path, "it has no true mask") for number, path in predicted.items() if number not in true]
    counts = {"tiles": 0, "wrong": 0, "left_out": len(predicted.keys() - true.keys()), "others": len(odd + others)}
    inexact = {"inexact_predicted": 0, "inexact_true": 0}
    for number, path in true.items():
        try:
            truth, count, _ = image_files.read_mask(path)
        except image_files.Unreadable as error:
            problems.append((path, f"it cannot be decoded: {error.reason}"))
            counts["left_out"] += 1
            continue
        inexact["inexact_true"] += count
        path = predicted.get(number, Path(predicted_dir, number + listing.MASK))
        try:
            guess, count, _ = image_files.read_mask(path)
            if guess.shape != truth.shape:
                sizes = (f"{width} × {height}" for height, width in (guess.shape, truth.shape))
                raise image_files.Unreadable(path, f"its size is {' instead of '.join(sizes)}")
            inexact["inexact_predicted"] += count
        except image_files.Unreadable as error:
            problems.append((path, f"it counts as wrong: {error.reason}"))
            counts["wrong"] += 1
            guess = np.full_like(truth, landcover.UNKNOWN)
        matrix += iou.confusion(truth, guess)
        counts["tiles"] += 1
    if counts["tiles"] == counts["wrong"]:
        name, reason = problems[-1]
        raise UserError(f"No mask of {predicted_dir} could be scored against {true_dir}. {name}: {reason}.")
    if not matrix[: landcover.UNKNOWN].any():
        text = f"No mask of {true_dir} shows a class: all of its pixels are unknown, so there is no mIoU."
        raise UserError(f"{text} Use the course's colours, such as cyan (0, 255, 255) for urban.")
    found = {"miou": iou.miou(matrix), "iou": iou.iou_by_class(matrix)}
    return counts | found | {"pixel_accuracy": iou.pixel_accuracy(matrix)} | inexact, problems


def _masks_in(folder):
    """The masks of a folder by number: {"0001": path}, and a list of (path, reason) of other images.

    Tiles beside their masks are left out without a word.
    """
    names = _images_in(folder)
    masks, twice = listing.numbered(names, listing.MASK)
    if not masks:
        but = f", but {names[0]}; rename what is to be scored" if names else ""
        raise UserError(f"{folder} holds no *{listing.MASK} files{but}.")
    if twice:
        (number, name), *_ = twice
        raise UserError(f"{folder}: {name} and {masks[number]} are one mask by their names. Remove one of the two.")
    tiles = _tile_numbers(names)
    others = [name for name in names if name not in set(masks.values()) and tiles.get(name) not in masks]
    return {number: folder / name for number, name in masks.items()}, [
        (folder / name, f"it is not called NNNN{listing.MASK} and not scored") for name in others
    ]


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
