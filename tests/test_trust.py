"""Data is never executed and never leads out of its folder; JupyterLab needs its token."""

import contextlib
import functools
import http.client
import itertools
import json
import os
import pickle
import socket
import subprocess
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from hw1lib import paths
from hw1lib.data import hashes, layout
from hw1lib.errors import UserError
from hw1lib.models import pretrained, sam, segmenters, weights
from hw1lib.settings import Data
from hw1lib.steps import store
from tests.conftest import picture

# --- no code is loaded from data


class Evil:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


SAVE = {
    "zip": torch.save,
    "old": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize("save", SAVE)
@pytest.mark.parametrize(
    ("name", "load"), [("pretrain_model_SL.pt", pretrained.load_backbone), (weights.SAM_FILES[0], sam.load)]
)
def test_weights_with_code_are_refused_and_not_run(tmp_path, name, load, save):
    SAVE[save]({"state_dict": Evil(tmp_path / "ran"), "conv1.weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(UserError, match=f"{name} cannot be used: it (holds|is)") as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_downloaded_weights_with_code_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    evil = {"conv1.weight": Evil(tmp_path / "ran")}
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, *_, **__: torch.save(evil, path))
    with pytest.raises(UserError) as caught:
        segmenters.build("lraspp", pretrained=True)
    assert not (tmp_path / "ran").exists()
    assert "--set lraspp.pretrained=false" in str(caught.value)


def test_an_array_of_objects_is_refused_and_not_run(tmp_path):
    np.save(tmp_path / "points.npy", np.array([Evil(tmp_path / "ran")], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        store.Result("embed", tmp_path).array("points")
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "points.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists()  # Evil works, so the tests above prove something


# --- nothing leaves its folder


def find(root):
    return layout.find(root, Data())


OUTSIDE = ("../x.jpg", "/etc/hostname", "..", "..\\x.jpg", "sub\\..\\..\\x.jpg", "train/../../x.jpg")
MISSING = ("sub/x.jpg", ".", "a\0b.jpg", "C:\\x.jpg", "~/x.jpg")  # not files in the folder
P1 = ("p1_data/mini/train", "p1_data/office/train", "p1_data/office/val")


@pytest.fixture
def secret(tmp_path):
    """An image beside the data folder, which must never be read."""
    path = tmp_path / "secret.jpg"
    picture(7).save(path)
    return path


def link(path, target):
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("part", P1)
def test_names_and_links_in_a_table_stay_inside_its_folder(course_data, secret, part):
    folder, table = course_data / part, course_data / f"{part}.csv"
    rows = pd.read_csv(table)
    first = rows["filename"][0]
    for name in OUTSIDE:
        rows.replace(first, name).to_csv(table, index=False)
        with pytest.raises(UserError, match=rf"{table.name}.*leads out of"):
            find(course_data)
    for name in MISSING:
        rows.replace(first, name).to_csv(table, index=False)
        if "mini" in part:  # its images need no labels
            assert len(find(course_data).problem1.pool) == len(rows) - 1
            continue
        with pytest.raises(UserError, match=rf"{table.name}.*missing from"):
            find(course_data)
    rows.to_csv(table, index=False)
    for target in (secret, os.path.relpath(secret, folder)):
        link(folder / first, target)
        with pytest.raises(UserError, match=first):
            find(course_data)
    link(folder / first, folder / rows["filename"][1])  # inside the folder
    assert find(course_data)


@pytest.mark.parametrize(
    "name", ["p1_data/mini/train/00003.jpg", "p2_data/train/0002_sat.jpg", "p2_data/validation/0002_mask.png"]
)
def test_links_without_a_table_stay_inside_their_folder(course_data, secret, name):
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    link(course_data / name, secret)
    with pytest.raises(UserError, match=os.path.basename(name)):
        find(course_data)


def test_a_data_folder_may_be_a_link(course_data, tmp_path):
    """For example to another disk; its content counts."""

    def fingerprints():
        data = find(course_data)
        splits = [*vars(data.problem1).values(), *vars(data.problem2).values()]
        return [hashes.fingerprint(split) for split in splits if split]

    before = fingerprints()
    for number, part in enumerate((*P1, "p1_data/office", "p2_data/train", "p1_data", "p2_data", "")):
        place = tmp_path / f"elsewhere {number}"
        (course_data / part).rename(place)
        (course_data / part).symlink_to(place, target_is_directory=True)
        assert fingerprints() == before
    for part in (*P1, "p2_data/train"):
        held = hashes.folder_fingerprint(course_data / part[:7])
        picture(99).save(next((course_data / part).glob("*.jpg")))
        assert hashes.folder_fingerprint(course_data / part[:7]) != held


def test_other_links_in_the_data_are_not_followed(course_data, tmp_path):
    (tmp_path / "abroad").mkdir()
    (tmp_path / "abroad" / "file.jpg").write_bytes(b"abroad")
    for part in ("p1_data", "p2_data"):
        before = hashes.folder_fingerprint(course_data / part)
        for number, target in enumerate((".", "..", "../../abroad")):
            (course_data / part / f"elsewhere {number}").symlink_to(target, target_is_directory=True)
            assert hashes.folder_fingerprint(course_data / part) == before


# --- JupyterLab

CLOSED = ("/api/contents", "/api/kernels", "/api/terminals", "/lab", "/files/00_data.ipynb")


def facts_of(process, home):
    """Return JupyterLab's own description, with its token and address, once it listens."""
    for _ in range(600):
        for path in home.glob("RUNTIME/jpserver-*.json"):
            with contextlib.suppress(ValueError):  # partly written
                return json.loads(path.read_text())
        assert process.poll() is None, (home / "log").read_text()
        time.sleep(0.1)
    raise AssertionError((home / "log").read_text())


def status(port, path, token=None, method="GET"):
    """Return the status code of a response; redirects are not followed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={} if token is None else {"Authorization": f"token {token}"})
    return connection.getresponse().status


@pytest.mark.slow
def test_jupyterlab_listens_on_localhost_only_and_needs_its_token(tmp_path):
    """Started as by `make lab`, with its own home folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dry = ["make", "--no-print-directory", "--dry-run", "lab"]  # tests may run inside make
    recipe = subprocess.run(dry, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    started = recipe.stdout.replace("\\\n", " ").strip().splitlines()[-1]
    assert "jupyter lab" in started
    command = f"{started} --no-browser --ServerApp.port={port} --ServerApp.port_retries=0"
    home = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    home |= {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY"))} | {"HOME": str(tmp_path)}
    with open(tmp_path / "log", "wb") as log:
        own = {"env": home, "stdout": log, "stderr": log, "cwd": paths.ROOT, "start_new_session": True}
        process = subprocess.Popen(["sh", "-c", command], **own)
    family = psutil.Process(process.pid)
    try:
        facts = facts_of(process, tmp_path)
        every = [one for member in (family, *family.children(recursive=True)) for one in member.net_connections("inet")]
        listening = [one.laddr for one in every if one.status == psutil.CONN_LISTEN]
        assert port in {address.port for address in listening}
        assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}
        assert len(facts["token"]) >= 32 and not facts.get("password")
        assert status(port, "/api/contents", facts["token"]) == 200
        for path, token in itertools.product(CLOSED, (None, "", "wrong")):
            assert status(port, path, token) in (302, 401, 403)
        for path in ("/api/kernels", "/api/terminals", "/api/sessions"):
            assert status(port, path, method="POST") in (401, 403)
    finally:
        for member in (*family.children(recursive=True), family):
            member.kill()
        process.wait()
