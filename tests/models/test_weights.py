"""Weights from a file, a server or a mirror: the right bytes or nothing, and never a long wait."""

import errno
import functools
import hashlib
import http.server
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from hw1lib import cli, paths
from hw1lib.errors import UserError
from hw1lib.models import weights

CONTENT = random.Random(0).randbytes(5 << 19)  # more than two blocks
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
FILE = "tiny.pth"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Add a small file of weights named tiny, shorten the timeouts, and use no proxy or mirror of this machine."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(weights.KNOWN, "tiny", weights.Weights(FILE, digest, 3))
    monkeypatch.delenv(weights.MIRROR, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(weights, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(weights, "READ_TIMEOUT", 0.5)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "some other name.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder whose files a local server serves as the mirror."""
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv(weights.MIRROR, f"http://127.0.0.1:{server.server_port}/")
        yield served
        server.shutdown()


def listing(folder):
    return {path: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def fails(folder, *words, source=None):
    """Assert that fetching soon raises one paragraph with these words, and changes nothing."""
    before, start = listing(folder), time.monotonic()
    with pytest.raises(UserError) as caught:
        weights.fetch("tiny", source, folder)
    assert time.monotonic() - start < 3
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert "\n" not in text and text.endswith(".") and len(text) < 500 and listing(folder) == before


# --- finding


def test_find_sam_prefers_complete_folders_and_small_models(tmp_path):
    folder, expected = tmp_path / "sam-vit-base", [None]
    folder.mkdir()
    for path in (tmp_path / "sam_vit_h_4b8939.pth", tmp_path / "sam_vit_b_01ec64.pth", folder / "config.json"):
        assert weights.find_sam(tmp_path) == expected[-1]
        path.touch()
        expected.append(path)
    assert weights.find_sam(tmp_path) == expected[-2]  # the folder's download is not complete
    (folder / "model.safetensors").touch()
    assert weights.find_sam(tmp_path) == folder and weights.find_sam(tmp_path / "missing") is None


# --- a file


def test_a_file_is_copied_whole_and_readable_by_all(folder, source):
    path = weights.fetch("tiny", source, folder)
    assert path == folder / FILE and listing(folder) == {path: CONTENT}
    assert path.stat().st_mode & 0o444 == 0o444 and source.read_bytes() == CONTENT


def test_a_wrong_source_is_refused(folder, source, tmp_path):
    for content in (WRONG, b""):
        source.write_bytes(content)
        fails(folder, str(source), FILE, weights.KNOWN["tiny"].sha256[:12], source=source)
    fails(folder, "--from", str(tmp_path / "missing"), "No such file", source=tmp_path / "missing")
    (folder / FILE).write_bytes(WRONG)
    fails(folder, str(folder / FILE), source=folder / FILE)  # the damaged file itself


def test_a_folder_that_takes_no_file_is_named(folder, source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    fails(tmp_path / "file", str(tmp_path / "file"), "could not be written", "Not a directory", source=source)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(full))
    fails(folder, "could not be written", "Free some disk space", source=source)


# --- a server


@pytest.mark.parametrize("damaged", [None, WRONG, CONTENT[:1000]])
def test_a_mirror_serves_the_file_unless_it_is_already_complete(folder, mirror, damaged):
    (mirror / FILE).write_bytes(CONTENT)
    if damaged is not None:
        folder.mkdir()
        (folder / FILE).write_bytes(damaged)
    assert weights.fetch("tiny", folder=folder) == folder / FILE and listing(folder) == {folder / FILE: CONTENT}
    (mirror / FILE).unlink()
    assert weights.fetch("tiny", folder=folder) == folder / FILE and listing(folder) == {folder / FILE: CONTENT}


def test_missing_and_wrong_files_of_a_mirror_are_refused(folder, mirror):
    fails(folder, FILE, "127.0.0.1", "404", weights.MIRROR, "--from FILE")
    for content in (WRONG, b"<html>log in first</html>"):
        (mirror / FILE).write_bytes(content)
        fails(folder, FILE, "SHA-256", "127.0.0.1")


def test_a_silent_absent_or_malformed_mirror_is_named(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it listens, and never answers
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(weights.MIRROR, mirror)
        fails(folder, mirror, weights.MIRROR, "--from FILE")
    fails(folder, mirror, "refused", "--from FILE")
    for mirror in ("http://weights.invalid", "my.mirror/sam", "http://a b"):
        monkeypatch.setenv(weights.MIRROR, mirror)
        fails(folder, mirror, weights.MIRROR, "--from FILE")


# --- the commands

PROGRAM = """
import sys
from hw1lib import cli
code = cli.main(["weights", "list"]) + cli.main(["weights", "fetch", "sam"])
print("heavy:", *sorted({"torch", "segment_anything", "pandas", "IPython"} & set(sys.modules)))
sys.exit(code)
"""


@pytest.mark.slow
def test_the_commands_start_without_importing_torch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.endswith("\nheavy:\n") and "There are no weights 'sam'" in done.stderr


def test_list_and_check_say_what_is_there(folder, source, monkeypatch, capsys):
    def run(word):
        code = cli.main(["weights", word])
        return code, *capsys.readouterr()

    monkeypatch.setattr(paths, "WEIGHTS", folder)
    code, out, _ = run("check")
    assert code == 0 and "No weights" in out and str(folder) in out
    weights.fetch("tiny", source, folder)
    code, out, _ = run("check")
    assert code == 0 and re.search(rf"^{FILE} +valid$", out, re.M)
    code, out, _ = run("list")
    assert code == 0 and re.search("^sam_vit_b .*missing", out, re.M) and not re.search("^tiny .*missing", out, re.M)
    (folder / FILE).write_bytes(WRONG)
    code, out, error = run("check")
    assert code == 1 and re.search(rf"^{FILE} +not valid$", out, re.M)
    assert error.strip().startswith("hw1lib: ") and FILE in error and "weights fetch" in error
    assert (folder / FILE).read_bytes() == WRONG  # it is reported, not deleted
