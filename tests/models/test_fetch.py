"""Weights from a file, a server or a mirror: the right bytes or nothing, and never a long wait."""

import contextlib
import errno
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
from hw1lib.models import fetch, weights

CONTENT = random.Random(0).randbytes(5 * fetch.BLOCK // 2)  # more than two blocks
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
FILE = "tiny.pth"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A small file of weights by the name of tiny; no proxy and no mirror of this machine; less patience."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(fetch.KNOWN, "tiny", fetch.Weights(FILE, digest, 3, "made for tests"))
    monkeypatch.delenv(fetch.MIRROR, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "PATIENCE", 0.5)
    monkeypatch.setattr(fetch, "STALL", 0.5)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "some other name.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def serve(monkeypatch):
    """Starts a server that answers each request with a function, and names it as the mirror.

    Returns a list that grows by the path of each request for a file.
    """
    with contextlib.ExitStack() as started:

        def start(reply, under=""):
            asked = []

            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    asked.append(self.path)
                    with contextlib.suppress(ConnectionError):
                        reply(self)

                def log_message(self, *words):
                    pass

            server = started.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            started.callback(server.shutdown)
            monkeypatch.setenv(fetch.MIRROR, f"http://127.0.0.1:{server.server_port}{under}")
            return asked

        yield start


def sends(content, length=True, status=200, then=lambda: None, moved=""):
    """A reply; `moved` begins the path that others lead to."""

    def reply(handler):
        here = handler.path.startswith(moved)
        handler.send_response(status if here else 302)
        handler.send_header(*(("Content-Length", str(len(CONTENT))) if length else ("Server", "test")))
        if not here:
            handler.send_header("Location", moved + handler.path)
        handler.end_headers()
        if here:
            handler.wfile.write(content)
            then()

    return reply


def listing(folder):
    return {p: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}


def fails(folder, *words, source=None):
    """One paragraph with these words, soon, and nothing left behind."""
    before, start = listing(folder), time.monotonic()
    with pytest.raises(UserError) as caught:
        fetch.fetch("tiny", source, folder)
    assert time.monotonic() - start < 3
    text = str(caught.value)
    assert [word for word in words if word not in text] == [] and "\n" not in text
    assert text.endswith(".") and len(text) < 500
    assert listing(folder) == before


# --- what is known


def test_every_known_file_is_one_that_sam_is_looked_for_in():
    known = [fetch.KNOWN[name] for name in fetch.KNOWN if name != "tiny"]
    assert [each.file for each in known] == list(weights.SAM_FILES)
    hashes = {each.sha256 for each in known}
    assert len(hashes) == 3 and all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes)
    assert fetch.address(known[0]) == "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"


# --- a file


def test_a_file_is_copied_whole_and_readable_by_all(folder, source):
    path = fetch.fetch("tiny", source, folder)
    assert path == folder / FILE and listing(folder) == {path: CONTENT}
    assert path.stat().st_mode & 0o444 == 0o444 and source.read_bytes() == CONTENT


def test_a_wrong_source_is_refused(folder, source, tmp_path):
    for content in (WRONG, CONTENT[:-1], CONTENT + b"\0", b""):
        source.write_bytes(content)
        found = hashlib.sha256(content).hexdigest()[:12]
        fails(folder, str(source), FILE, found, fetch.KNOWN["tiny"].sha256[:12], source=source)
    fails(folder, "--from", str(tmp_path / "nothing"), "No such file", source=tmp_path / "nothing")
    fails(folder, "--from", str(tmp_path), source=tmp_path)
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(WRONG)
    fails(folder, str(folder / FILE), source=folder / FILE)  # the damaged file itself


def test_a_full_disk_leaves_nothing(folder, source, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    fails(folder, "could not be written", "No space", source=source)


# --- a server


@pytest.mark.parametrize("options", [{}, {"length": False}, {"moved": "/moved"}])
@pytest.mark.parametrize("damaged", [None, WRONG, CONTENT[:1000], b""])
def test_a_mirror_is_asked_for_the_file(folder, serve, damaged, options):
    """Unless it is there already, and whole; the mirror may lead elsewhere."""
    if damaged is not None:
        folder.mkdir()
        (folder / FILE).write_bytes(damaged)
    asked = serve(sends(CONTENT, **options), under="/some/where/")
    for _ in range(2):
        assert fetch.fetch("tiny", folder=folder) == folder / FILE
        assert listing(folder) == {folder / FILE: CONTENT}
    paths = [f"/some/where/{FILE}", f"/moved/some/where/{FILE}"]
    assert asked == paths[: 1 + ("moved" in options)]


def test_a_server_that_refuses_gives_something_else_stops_or_stalls(folder, serve):
    """An error; a login page of a guest network; half of the file; and a connection that stays open."""
    for status in (404, 500):
        serve(sends(b"", length=False, status=status))
        fails(folder, FILE, "127.0.0.1", str(status), fetch.MIRROR, "--from FILE")
    serve(sends(b"<html>log in first</html>", length=False))
    fails(folder, FILE, "SHA-256", "127.0.0.1")
    serve(sends(CONTENT[: len(CONTENT) // 2]))
    fails(folder, FILE, "127.0.0.1", "--from FILE")
    over = threading.Event()
    serve(sends(CONTENT[:1000], then=lambda: over.wait(20)))
    fails(folder, FILE, "timed out", "--from FILE")
    over.set()


def test_a_mirror_that_never_answers_is_not_there_or_is_no_address(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it listens, and that is all
        here = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(fetch.MIRROR, here)
        fails(folder, here, fetch.MIRROR, "--from FILE")
    fails(folder, here, "refused", "--from FILE")
    for mirror in ("http://weights.invalid", "my.mirror/sam", "http://a b", "gopher://x"):
        monkeypatch.setenv(fetch.MIRROR, mirror)
        fails(folder, mirror, fetch.MIRROR, "--from FILE")


# --- the commands

PROGRAM = """
import sys
from hw1lib import cli
code = cli.main(["weights", "fetch", "sam"])
print("heavy:", *sorted({"torch", "transformers", "pandas", "IPython"} & set(sys.modules)))
sys.exit(code)
"""


def test_the_command_needs_no_torch():
    """It answers in a moment, not after the seconds that torch takes to import."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=paths.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "heavy:\n") and "hw1lib: There are no weights 'sam'" in done.stderr


def test_list_and_check_say_what_is_there(folder, source, monkeypatch, capsys):
    def run(word):
        code = cli.main(["weights", word])
        return code, *capsys.readouterr()

    monkeypatch.setattr(paths, "WEIGHTS", folder)
    code, out, _ = run("check")
    assert code == 0 and "No weights" in out and str(folder) in out
    fetch.fetch("tiny", source, folder)
    code, out, _ = run("check")
    assert code == 0 and re.search(rf"^{FILE} +right$", out, re.M)
    code, out, _ = run("list")
    assert code == 0 and re.search("^sam_vit_b .*not there", out, re.M) and not re.search("^tiny .*not th", out, re.M)
    (folder / FILE).write_bytes(WRONG)
    code, out, error = run("check")
    assert code == 1 and re.search(rf"^{FILE} +wrong$", out, re.M)
    assert error.strip().startswith("hw1lib: ") and FILE in error and "weights fetch" in error
    assert (folder / FILE).read_bytes() == WRONG  # it is named, not deleted
