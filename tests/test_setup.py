"""setup.sh explains in one paragraph what a fresh machine lacks."""

import os
import shutil
import subprocess

import pytest

from hw1lib import paths


@pytest.fixture
def clone(tmp_path):
    """The files that setup.sh reads, in a folder with a space, beside a folder for replaced programs."""
    folder = tmp_path / "my homework"
    folder.mkdir()
    for name in ("setup.sh", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(paths.ROOT / name, folder / name)
    (tmp_path / "bin").mkdir()
    return folder


def replace_program(clone, name, script):
    """Replace a program by a shell script."""
    path = clone.parent / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def setup(clone, **variables):
    environment = os.environ | {"PATH": f"{clone.parent}/bin:{os.environ['PATH']}", "PYTHON": "python3"} | variables
    return subprocess.run([clone / "setup.sh"], capture_output=True, text=True, cwd="/", env=environment)


def assert_fails(done, *words):
    text = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert all(word in text for word in words), text
    paragraph = done.stderr.rpartition("\n\n")[2] or done.stderr
    assert all(len(line) <= 81 for line in paragraph.splitlines())


@pytest.mark.parametrize(
    ("program", "script", "words"),
    [
        ("python3", '[ "$1" = -V ] && echo Python 3.8.1; exit 1', "Python 3.8.1, but Python 3.11 or newer"),
        ("python3", 'case "$2" in *venv*) exit 1;; *) exit 0;; esac', "python3-venv"),
        ("df", "echo head; echo /dev/sda 9 9 2097152 9% /", "2 GB are free, but the packages"),
    ],
)
def test_what_a_machine_lacks_is_named(clone, program, script, words):
    replace_program(clone, program, script)
    assert_fails(setup(clone), words)


@pytest.mark.slow
def test_a_missing_network_is_named(clone):
    replace_program(clone, "df", "echo head; echo /dev/sda 9 9 99999999 9% /")
    no_index = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    done = setup(clone, **no_index, PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="")
    assert_fails(done, "could not be installed", "network", "same command again")
    assert not (clone / ".venv" / ".installed").exists()


def test_nothing_is_done_where_the_stamp_matches(clone):
    stamp = clone / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.write_bytes(subprocess.check_output("cat requirements.txt pyproject.toml | cksum", shell=True, cwd=clone))
    done = setup(clone, PYTHON="python9")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    stamp.unlink()
    assert_fails(setup(clone, PYTHON="python9"), "python9 was not found", "PYTHON=")
