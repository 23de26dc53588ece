"""Predictions of trained models for new images, in the file formats of the course.

Images that cannot be used are skipped; each function returns them with their reasons.
"""

import errno
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from hw1lib import cpus, files, progress, variants
from hw1lib.data import csv_rows, landcover, listing
from hw1lib.data import images as image_files
from hw1lib.errors import UserError, out_of_memory
from hw1lib.loops import features, train_segmenter
from hw1lib.loops.device import autocast
from hw1lib.loops.normalisation import normalise
from hw1lib.models import resnet, segmenters

ONE_FILE_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR)  # concern one file, so others can still be written
AHEAD = 16  # number of images decoded ahead of use


def segmentation(book, image_dir, out_dir, model=None, tta=False):
    """Predict a land-cover mask for each image of a folder.

    Args:
        book: workbook.Workbook whose model is trained.
        image_dir: folder of images of any size; if any is called NNNN_sat.jpg (or .png, …), only such images are used.
        out_dir: folder for NNNN_mask.png in the course's colours.
        model: fcn32s, lraspp or deeplabv3; None: the profile's improved model.
        tta: whether to average over eight flips and rotations of each image.

    Returns:
        The number of masks written, and a list of (path, reason) of images without one.

    Raises:
        UserError: the model is not trained, the folder holds no images, both folders are the same, or writing fails.
    """
    name = model or book.profile.segmentation.improved
    out_dir, image_dir = Path(out_dir), Path(image_dir)
    if out_dir.resolve() == image_dir.resolve():
        message = f"OUT_DIR and IMAGE_DIR are both {image_dir}: true masks there could be overwritten."
        raise UserError(f"{message} Name another folder for the predictions.")
    step = f"segment-{name}"
    network = _load_model(book, step, segmenters.SEGMENTERS, lambda: segmenters.build(name, book.profile.model_scale))
    settings, seen = getattr(book.profile, name), book.steps.result(step).metrics["seen"]
    targets, problems = _masks_to_write(image_dir)
    written = 0
    for paths, images in _batches(list(targets), settings.batch_size, problems):
        try:
            with autocast(settings.precision, book.device):  # as in validation
                masks = train_segmenter.predict(network, images, book.device, settings, tta, seen)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = f"memory ran out; cut it into tiles, or lower {name}.batch_size ({settings.batch_size}) with --set"
            problems += [(path, reason) for path in paths]
            continue
        for path, mask in zip(paths, masks):
            target = out_dir / targets[path]
            try:
                with files.replacing(target) as temporary:
                    Image.fromarray(landcover.encode(mask)).save(temporary, format="PNG")
                written += 1
            except UserError as error:
                if error.__cause__.errno not in ONE_FILE_ERRORS:
                    raise
                problems.append((path, str(error)))
    return written, problems


def classification(book, table, image_dir, out, setting="C"):
    """Predict the labels of the images that a CSV lists.

    Args:
        book: workbook.Workbook whose setting is trained.
        table: path of a CSV with columns id and filename; a column label is ignored.
        image_dir: folder of the images.
        out: CSV to write, with columns id, filename and label; labels are numbers or names as in the training CSV.
        setting: A … E.

    Returns:
        The number of labels written, and a list of (file, reason) of rows without one.

    Raises:
        UserError: the setting is not trained, or the CSV cannot be read.
    """
    rows, folder = csv_rows.read_rows(table, "id", "filename"), Path(image_dir)
    settings = book.profile.finetune

    def build():
        split = book.data.problem1.train
        head = resnet.Head(len(split.classes), hidden=settings.hidden, dropout=settings.dropout)
        return resnet.Classifier(resnet.backbone(book.profile.model_scale), head)

    model = _load_model(book, f"finetune-{setting}", variants.SETTINGS, build)
    matches, labels = listing.match(folder, rows["filename"]), {}
    named = {name: file for name, file in matches.items() if file and not listing.escapes(folder, file)}
    reason, names = f"{folder} has no such file, or it is a link out of the folder", rows["filename"].drop_duplicates()
    problems = [(name, f"row {row}: {reason}") for row, name in names.items() if name not in named]
    paths = [folder / file for file in dict.fromkeys(named.values())]  # two names may match one file
    for batch, images in _batches(paths, settings.batch_size, problems, book.profile.data.image_size):
        images = torch.from_numpy(images)
        with torch.no_grad(), autocast(settings.precision, book.device):  # as in validation; `extract` uses float32
            if variants.ROWS[setting].frozen:
                scores = model.head(features.extract(model.backbone, images, book.device).to(book.device))
            else:
                scores = model(normalise(images.to(book.device)))
        classes = scores.float().argmax(dim=1).tolist()
        labels |= {path.name: book.data.problem1.train.numbers[number] for path, number in zip(batch, classes)}
    labels = [labels.get(named.get(name)) for name in rows["filename"]]
    table = rows[["id", "filename"]].assign(label=pd.Series(labels, rows.index, dtype=object))
    files.write_text(out, table.to_csv(index=False))
    return int(table["label"].notna().sum()), problems


def _load_model(book, step, models, build):
    """Build a network, load the weights of a finished step, and return it in eval mode on the device."""
    if step not in book.steps.all or book.steps.status(step) != "done":
        raise UserError(
            f"The model of step {step} is not trained in {book.out}. --model is one of {', '.join(models)}. Run make "
            f"report PROFILE={book.profile.name} first, and give predict the same --data-root, --out and --set."
        )
    network = build()
    network.load_state_dict(book.steps.result(step).weights())
    return network.to(book.device, memory_format=torch.channels_last).eval()


def _batches(paths, size, problems, side=None):
    """Decode images ahead of use, and yield batches of consecutive images of one shape.

    Args:
        paths: list of images.
        size: maximum number of images in a batch.
        problems: list to which (path, reason) is added for each image that cannot be decoded.
        side: resize and crop images to this width and height; None: leave them as they are.

    Yields:
        A list of paths, and their (N, 3, H, W) uint8 images.
    """

    def decode(path):
        try:
            image = image_files.open_rgb(path)
        except image_files.Unreadable as error:
            return f"it cannot be decoded: {error.reason}"
        return image_files.square(image, side) if side else np.asarray(image).transpose(2, 0, 1)

    def decodable():
        with ThreadPoolExecutor(cpus.available()) as pool:
            parts = (pool.map(decode, paths[start : start + AHEAD]) for start in range(0, len(paths), AHEAD))
            pairs = zip(paths, itertools.chain.from_iterable(parts))
            for path, image in progress.bar(pairs, "predict", len(paths), unit="image"):
                if isinstance(image, str):
                    problems.append((path, image))
                else:
                    yield path, image

    for _, images in itertools.groupby(decodable(), key=lambda pair: pair[1].shape):
        while batch := list(itertools.islice(images, size)):
            yield [path for path, _ in batch], np.stack([image for _, image in batch])


def _masks_to_write(folder):
    """Return the mask's file name of each image, {path: NNNN_mask.png}, and (path, reason) of images without one."""
    names = listing.images_in(folder)
    images = {name: Path(name).stem for name in names if not name.lower().endswith(listing.MASK)}
    tiles = {name: stem[: -len("_sat")] for name, stem in images.items() if stem.lower().endswith("_sat")}
    reason = "not used, as other images in this folder are called NNNN_sat"
    first, problems = {}, [(folder / name, reason) for name in images if tiles and name not in tiles]
    for name, number in (tiles or images).items():
        target = number + listing.MASK
        if first.setdefault(target, name) != name:
            problems.append((folder / name, f"{first[target]} is already written to {target}"))
    if not first:
        raise UserError(f"{folder} holds no images ({', '.join(listing.IMAGES)}).")
    masks = {name: name[: -len(listing.MASK)] + listing.MASK for name in listing.ending(names, listing.MASK)}
    problems += [(folder / name, "a mask without its image") for name in masks if masks[name] not in first]
    return {folder / name: target for target, name in first.items()}, problems
