"""The one end-to-end smoke run that all tests which need it share."""

import os
import subprocess
import sys

import pytest

from hw1lib import paths


def hw1lib(*words, build=None, **options):
    """Runs the command line in a process of its own."""
    environment = os.environ | ({"HW1_BUILD": str(build)} if build else {})
    return subprocess.run(
        [sys.executable, "-m", "hw1lib", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=paths.ROOT,
        env=environment,
        **options,
    )


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """The build folder of a finished smoke run, in a path with a space."""
    build = tmp_path_factory.mktemp("smoke run")
    done = hw1lib("report", "--profile", "smoke", build=build)
    assert done.returncode == 0, done.stdout + done.stderr
    return build / "smoke"
