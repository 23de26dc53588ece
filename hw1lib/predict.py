"""Predictions for new images by the trained models, as the course's evaluation wants them.

What cannot be read is skipped and named: both functions return a list of (file, reason), and all
the rest is written.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from hw1lib import files, profiles
from hw1lib.data import images as image_files
from hw1lib.data import csv_rows, landcover, layout
from hw1lib.errors import UserError
from hw1lib.loops import augment, features, finetune, segment, training
from hw1lib.models import classifier, segmenters

SATELLITE, MASK = "_sat", "_mask.png"  # NNNN_sat.jpg -> NNNN_mask.png
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
        raise UserError(
            f"OUT_DIR and IMAGE_DIR are both {image_dir}: true masks in there would be replaced. "
            "Name another folder for the predictions."
        )
    if name not in profiles.SEGMENTERS:
        raise UserError(f"--model {name}: choose one of {', '.join(profiles.SEGMENTERS)}.")
    settings = getattr(book.profile, name)
    network = segmenters.build(name, book.profile.model_scale)
    network = _trained(book, f"segment-{name}", network)
    seen = book.metrics(f"segment-{name}")["seen"]
    taken, problems = {}, []
    for path in _images_in(image_dir):
        target = path.stem.removesuffix(SATELLITE) + MASK
        if taken.setdefault(target, path) is not path:
            problems.append((path, f"{taken[target].name} is already written to {target}"))
    names = {path: target for target, path in taken.items()}
    written = 0
    for batch in _batches(list(names), settings.batch_size, problems):
        images = np.stack([pixels for _, pixels in batch])
        with _precision(settings, book.device):
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
        out: CSV to write: id, filename, label; labels are numbers as in the training CSV.
        setting: A … E.

    Returns:
        Number of filled labels, and a list of (file, reason) of rows that were not.

    Raises:
        UserError: the setting is not trained, or the CSV cannot be read.
    """
    if setting not in profiles.SETTINGS:
        raise UserError(f"--model {setting}: choose one of {', '.join(profiles.SETTINGS)}.")
    rows, folder = csv_rows.read_rows(table, "id", "filename"), Path(image_dir)
    settings, size = book.profile.finetune, book.profile.data.image_size
    _must_be_trained(book, f"finetune-{setting}")
    split = book.data.problem1.train
    head = classifier.Head(len(split.classes), hidden=settings.hidden, dropout=settings.dropout)
    model = classifier.Classifier(classifier.backbone(book.profile.model_scale), head)
    model = _trained(book, f"finetune-{setting}", model)
    frozen, problems = finetune.PLAN[setting][1], []
    names = rows["filename"].unique()
    inside = [name for name in names if not layout.leaves(folder, name)]
    problems += [(n, f"it leads out of {folder}") for n in names if layout.leaves(folder, n)]
    found = {}
    paths = [folder / name for name in inside]
    for batch in _batches(paths, settings.batch_size, problems, size):
        images = torch.from_numpy(np.stack([pixels for _, pixels in batch]))
        if frozen:  # its head was trained and scored on features in float32
            known = features.extract(model.backbone, images, book.device).to(book.device)
        with torch.no_grad(), _precision(settings, book.device):
            scores = model.head(known) if frozen else model(
                augment.normalise(images.to(book.device))
            )
        numbers = scores.float().argmax(dim=1).tolist()
        found |= {path.name: split.numbers[n] for (path, _), n in zip(batch, numbers)}
    labels = rows["filename"].map(found).astype("Int64")
    text = rows[["id", "filename"]].assign(label=labels).to_csv(index=False)
    files.write_text(out, text)
    return int(labels.notna().sum()), problems


def _must_be_trained(book, step):
    if step not in book.steps.all or book.steps.status(step) != "done":
        raise UserError(
            f"The model of step {step} is not trained in {book.out}. Run make report "
            f"PROFILE={book.profile.name} first, and give predict the same --data-root, --out and "
            "--set."
        )


def _trained(book, step, network):
    """A network with a finished step's weights, in eval mode on the device."""
    _must_be_trained(book, step)
    network.load_state_dict(book.result(step).weights())
    return network.to(book.device, memory_format=torch.channels_last).eval()


def _precision(settings, device):
    """As in validation, so that the same images give the same predictions."""
    dtype = training.autocast_dtype(settings.precision, device)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def _images_in(folder):
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS)
    found = [p for p in found if not p.name.endswith(MASK)]
    tiles = [p for p in found if p.stem.endswith(SATELLITE)]
    if not found:
        raise UserError(f"{folder} holds no images ({', '.join(ENDINGS)}).")
    return tiles or found


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
            cause = error.__cause__
            missing = isinstance(cause, FileNotFoundError)
            return path, "missing" if missing else f"it cannot be decoded: {cause}"
        pixels = np.asarray(image).transpose(2, 0, 1)
        return path, pixels if square is None else image_files.square(image, square)

    batch = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(paths), desc="predict", unit="image", disable=None, ncols=80) as bar,
    ):
        for start in range(0, len(paths), AHEAD):
            for path, pixels in pool.map(decode, paths[start : start + AHEAD]):
                bar.update()
                if isinstance(pixels, str):
                    problems.append((path, pixels))
                    continue
                if batch and (len(batch) == size or pixels.shape != batch[0][1].shape):
                    yield batch
                    batch = []
                batch.append((path, pixels))
    if batch:
        yield batch
