"""Weights from a file, a server or a mirror: the right bytes or nothing, and never a long wait."""

import contextlib
import hashlib
import http.server
import random
import re
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from hw1lib import cli, paths
from hw1lib.errors import UserError
from hw1lib.models import fetch, weights

CONTENT = random.Random(0).randbytes(5 * fetch.BLOCK // 2)  # more than two blocks
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
FILE = "tiny.pth"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A small file of weights by the name of tiny; no proxy and no mirror of this machine."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(fetch.KNOWN, "tiny", fetch.Weights(FILE, digest, 3, "made for tests"))
    monkeypatch.delenv(fetch.MIRROR, raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


@pytest.fixture
def serve(monkeypatch):
    """Starts a server that answers each request with a function, and names it as the mirror.

    Returns a list that grows by the path of each request.
    """
    started = []

    def start(reply, under=""):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                with contextlib.suppress(ConnectionError):
                    reply(self)

            def log_message(self, *words):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        monkeypatch.setenv(fetch.MIRROR, f"http://127.0.0.1:{server.server_port}{under}")
        return asked

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def sends(content, length=True, status=200):
    def reply(handler):
        handler.send_response(status)
        if length:
            handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(content)

    return reply


def fails(folder, *words, source=None, seconds=5.0):
    """One paragraph with these words, soon, and nothing left behind."""
    before = {p: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        fetch.fetch("tiny", source, folder)
    assert time.monotonic() - start < seconds
    text = str(caught.value)
    assert [word for word in words if word not in text] == [] and "\n" not in text
    assert text.endswith(".") and len(text) < 500
    left = {p: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}
    assert left == before
    return text


# --- what is known


def test_every_known_file_is_one_that_sam_is_looked_for_in():
    names = [fetch.KNOWN[name].file for name in fetch.KNOWN if name != "tiny"]
    assert names == list(weights.SAM_FILES)
    hashes = {known.sha256 for known in fetch.KNOWN.values()}
    assert len(hashes) == len(fetch.KNOWN)
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes)


def test_a_fetched_file_is_found_as_sam(folder, monkeypatch, tmp_path):
    """Where it is put and where it is looked for are the same place."""
    known = fetch.KNOWN["sam_vit_b"]
    made = fetch.Weights(known.file, hashlib.sha256(CONTENT).hexdigest(), 3, "made up")
    monkeypatch.setitem(fetch.KNOWN, "sam_vit_b", made)
    (tmp_path / "from").write_bytes(CONTENT)
    assert weights.find_sam(folder) is None
    assert fetch.fetch("sam_vit_b", tmp_path / "from", folder) == weights.find_sam(folder)


def test_an_unknown_name_comes_with_the_known_ones(folder):
    with pytest.raises(UserError, match="'sam'.*sam_vit_b, sam_vit_l, sam_vit_h"):
        fetch.fetch("sam", folder=folder)
    assert not folder.exists()


def test_without_a_mirror_it_is_metas_server():
    known = fetch.KNOWN["sam_vit_b"]
    assert fetch.address(known) == ("https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth")


# --- a file


def test_a_file_is_copied_whole_and_readable_by_all(folder, tmp_path):
    source = tmp_path / "some other name.bin"
    source.write_bytes(CONTENT)
    path = fetch.fetch("tiny", source, folder)
    assert path == folder / FILE and path.read_bytes() == CONTENT
    assert [p.name for p in folder.iterdir()] == [FILE]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    assert source.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [WRONG, CONTENT[:-1], CONTENT + b"\0", b""])
def test_a_wrong_file_is_refused(folder, tmp_path, content):
    source = tmp_path / "wrong.pth"
    source.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()[:12]
    fails(folder, str(source), FILE, found, fetch.KNOWN["tiny"].sha256[:12], source=source)


def test_a_missing_file_or_a_folder_is_named(folder, tmp_path):
    fails(folder, "--from", str(tmp_path / "nothing"), "No such file", source=tmp_path / "nothing")
    fails(folder, "--from", str(tmp_path), source=tmp_path)


def test_a_file_may_replace_itself(folder):
    """--from names the very file that lies there, and it is damaged."""
    folder.mkdir()
    (folder / FILE).write_bytes(WRONG)
    fails(folder, str(folder / FILE), source=folder / FILE)


# --- a server


@pytest.mark.parametrize("length", [True, False])
def test_a_mirror_is_asked_for_the_file(folder, serve, length):
    asked = serve(sends(CONTENT, length), under="/some/where/")
    path = fetch.fetch("tiny", folder=folder)
    assert path.read_bytes() == CONTENT
    assert asked == [f"/some/where/{FILE}"]
    assert [p.name for p in folder.iterdir()] == [FILE]


def test_a_mirror_may_lead_elsewhere(folder, serve):
    def reply(handler):
        if handler.path.startswith("/moved/"):
            sends(CONTENT)(handler)
        else:
            handler.send_response(302)
            handler.send_header("Location", f"/moved{handler.path}")
            handler.end_headers()

    asked = serve(reply)
    assert fetch.fetch("tiny", folder=folder).read_bytes() == CONTENT
    assert asked == [f"/{FILE}", f"/moved/{FILE}"]


def test_what_is_there_is_not_fetched_again(folder, serve, tmp_path):
    folder.mkdir()
    (folder / FILE).write_bytes(CONTENT)
    stamp = (folder / FILE).stat().st_mtime_ns
    asked = serve(sends(CONTENT))
    assert fetch.fetch("tiny", folder=folder) == folder / FILE
    assert fetch.fetch("tiny", tmp_path / "nothing", folder) == folder / FILE
    assert asked == [] and (folder / FILE).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("damaged", [WRONG, CONTENT[:1000], b""])
def test_a_damaged_file_is_fetched_anew(folder, serve, damaged):
    folder.mkdir()
    (folder / FILE).write_bytes(damaged)
    asked = serve(sends(CONTENT))
    assert fetch.fetch("tiny", folder=folder).read_bytes() == CONTENT
    assert asked == [f"/{FILE}"] and len(list(folder.iterdir())) == 1


def test_a_login_page_in_its_place_is_refused(folder, serve):
    """As a guest network answers: with 200 and something else."""
    asked = serve(sends(b"<html>log in first</html>", length=False))
    fails(folder, FILE, "SHA-256", "127.0.0.1")
    assert len(asked) == 1


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_a_server_that_refuses_is_named(folder, serve, status):
    serve(sends(b"", length=False, status=status))
    fails(folder, FILE, "127.0.0.1", fetch.MIRROR, "--from FILE")


def test_a_server_that_stops_in_the_middle(folder, serve):
    """It closes the connection after half of the file."""
    serve(sends(CONTENT[: len(CONTENT) // 2]))
    fails(folder, FILE, "127.0.0.1")


def test_a_server_that_stalls_in_the_middle(folder, serve, monkeypatch):
    """It keeps the connection open; a read waits for its limit, here a short one."""
    goes_on = threading.Event()

    def reply(handler):
        sends(CONTENT[:1000])(handler)
        goes_on.wait(20)

    serve(reply)
    plain = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: plain(url, timeout=timeout / 60))
    try:
        fails(folder, FILE, "timed out", "--from FILE")
    finally:
        goes_on.set()


def test_a_server_that_never_answers(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it listens, and that is all
        monkeypatch.setenv(fetch.MIRROR, f"http://127.0.0.1:{silent.getsockname()[1]}")
        fails(folder, "no answer in 3 seconds", fetch.MIRROR, "--from FILE")


def test_nobody_at_that_address(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv(fetch.MIRROR, f"http://127.0.0.1:{port}")
    fails(folder, f"127.0.0.1:{port}", "refused", "--from FILE")


def test_a_name_that_nobody_has(folder, monkeypatch):
    """.invalid is reserved to be one."""
    monkeypatch.setenv(fetch.MIRROR, "http://weights.invalid")
    fails(folder, "http://weights.invalid", "--from FILE")


def test_looking_up_a_name_may_hang(folder, monkeypatch):
    """As it does behind a broken resolver; it has no time limit of its own."""
    over = threading.Event()

    def hang(*words, **options):
        over.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setenv(fetch.MIRROR, "http://weights.example")
    try:
        fails(folder, "no answer in 3 seconds", "http://weights.example")
    finally:
        over.set()


@pytest.mark.parametrize("mirror", ["my.mirror/sam", "http://a b", "gopher://x"])
def test_a_mirror_that_is_no_address(folder, monkeypatch, mirror):
    monkeypatch.setenv(fetch.MIRROR, mirror)
    fails(folder, mirror, fetch.MIRROR)


# --- a folder


def test_a_folder_that_cannot_be_made(tmp_path):
    """A file stands where it should be."""
    (tmp_path / "weights").write_text("")
    (tmp_path / "source").write_bytes(CONTENT)
    with pytest.raises(UserError, match="could not be written") as caught:
        fetch.fetch("tiny", tmp_path / "source", tmp_path / "weights")
    assert str(tmp_path / "weights" / FILE) in str(caught.value)
    assert (tmp_path / "weights").read_text() == ""


def test_a_folder_stands_where_the_file_should_be(folder, tmp_path):
    (tmp_path / "source").write_bytes(CONTENT)
    (folder / FILE).mkdir(parents=True)
    with pytest.raises(UserError, match="could not be written"):
        fetch.fetch("tiny", tmp_path / "source", folder)
    assert [p.name for p in folder.iterdir()] == [FILE]


def test_stopping_it_leaves_nothing(folder, serve, monkeypatch):
    serve(sends(CONTENT))
    blocks = iter([CONTENT[:1000]])

    def read(answer):
        for block in blocks:
            return block
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_read", read)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("tiny", folder=folder)
    assert list(folder.iterdir()) == []


# --- in a process of its own

PROGRAM = """
import hashlib, resource, sys
from pathlib import Path
from hw1lib import cli, paths
paths.WEIGHTS = Path(sys.argv[1])
from hw1lib.models import fetch
content = Path(sys.argv[2]).read_bytes()
fetch.KNOWN["tiny"] = fetch.Weights(
    "tiny.pth", hashlib.sha256(content).hexdigest(), 3, "made up"
)
if sys.argv[3] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
code = cli.main(["weights", "fetch", "tiny", "--from", sys.argv[2]])
print("heavy:", *sorted({"torch", "transformers", "pandas", "IPython"} & set(sys.modules)))
sys.exit(code)
"""


def program(folder, source, limit=0):
    source.write_bytes(CONTENT)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, source, str(limit)], cwd=paths.ROOT, capture_output=True, text=True
    )


def test_the_command_needs_no_torch(folder, tmp_path):
    """It answers in a moment, not after the seconds that torch takes to import."""
    done = program(folder, tmp_path / "source")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / FILE), "heavy:"]
    assert (folder / FILE).read_bytes() == CONTENT


def test_a_full_disk_is_one_paragraph_and_leaves_nothing(folder, tmp_path):
    """A file may have no more than a million bytes here."""
    done = program(folder, tmp_path / "source", 10**6)
    assert done.returncode == 1
    text = done.stderr.strip()
    assert text.startswith("hw1lib: ") and "could not be written" in text and "\n" not in text
    assert list(folder.iterdir()) == []


# --- the commands


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip()


def test_list_and_check_say_what_is_there(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "WEIGHTS", folder)
    code, out, _ = run(capsys, "weights", "check")
    assert code == 0 and "No weights" in out and str(folder) in out
    (tmp_path / "source").write_bytes(CONTENT)
    fetch.fetch("tiny", tmp_path / "source", folder)
    code, out, _ = run(capsys, "weights", "check")
    assert code == 0 and re.search(rf"^{FILE} +right$", out, re.M)
    code, out, _ = run(capsys, "weights", "list")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0 and "not there" in lines["sam_vit_b"]
    assert "there" in lines["tiny"] and "not there" not in lines["tiny"]
    (folder / FILE).write_bytes(WRONG)
    code, out, text = run(capsys, "weights", "check")
    assert code == 1 and re.search(rf"^{FILE} +wrong$", out, re.M)
    assert text.startswith("hw1lib: ") and FILE in text and "weights fetch" in text
    assert (folder / FILE).read_bytes() == WRONG  # it is named, not deleted


def test_a_failed_fetch_is_one_paragraph(folder, tmp_path, capsys):
    for name, word in (("tiny", "nothing"), ("other", "tiny")):
        code, _, text = run(capsys, "weights", "fetch", name, "--from", tmp_path / "nothing")
        assert code == 1 and word in text
        assert text.startswith("hw1lib: ") and "\n" not in text and "Traceback" not in text
