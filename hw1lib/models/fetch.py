"""Gets optional weights: from their server, a mirror or a file, held against a pinned hash."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from hw1lib import files, paths
from hw1lib.errors import UserError, did_you_mean

SERVER = "https://dl.fbaipublicfiles.com/segment_anything"
MIRROR = "HW1_WEIGHTS_MIRROR"  # environment variable: another address that has the same files
PATIENCE = 3.0  # seconds until a server must be reached
STALL = 30.0  # seconds that it may stay silent
BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Weights:
    """One file of weights."""

    file: str
    sha256: str
    megabytes: int
    about: str


def _sam(size, version, sha256, megabytes):
    about = f"SAM with a ViT-{size.upper()} encoder (Kirillov et al. 2023)"
    return Weights(f"sam_vit_{size}_{version}.pth", sha256, megabytes, about)


KNOWN = {
    "sam_vit_b": _sam("b", "01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375),
    "sam_vit_l": _sam("l", "0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1250),
    "sam_vit_h": _sam("h", "4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2565),
}


def fetch(name, source=None, folder=paths.WEIGHTS):
    """Gets weights by name, unless the right file is there already.

    Args:
        name: of KNOWN.
        source: a file to copy instead of downloading.
        folder: where weights lie.

    Returns:
        Path of the file. It holds exactly what its hash says; on any failure nothing is left.

    Raises:
        UserError: unknown name, no network, a wrong file, a full disk.
    """
    if name not in KNOWN:
        raise UserError(f"There are no weights {name!r}; there are: {', '.join(KNOWN)}.{did_you_mean(name, KNOWN)}")
    wanted = KNOWN[name]
    path = Path(folder) / wanted.file
    if path.is_file() and files.digest(path) == wanted.sha256:
        return path

    origin = source or address(wanted)
    with files.replacing(path) as temporary:
        if source:
            _copy(source, temporary)
        else:
            print(f"{origin} ({wanted.megabytes} MB)")
            _download(origin, temporary)
        if (found := files.digest(temporary)) != wanted.sha256:
            begins = f"its SHA-256 begins with {found[:12]}, expected is {wanted.sha256[:12]}"
            raise UserError(f"{origin} is not {wanted.file}: {begins}. It was not kept; get the file again.")
    return path


def state(known, folder):
    """Whether a file of weights is there, by its size alone: there, wrong size or not there."""
    path = Path(folder) / known.file
    if not path.is_file():
        return "not there"
    return "there" if abs(path.stat().st_size / 1e6 - known.megabytes) < 1 else "wrong size"


def address(wanted):
    """Where a file is downloaded from."""
    return f"{(os.environ.get(MIRROR) or SERVER).rstrip('/')}/{wanted.file}"


def _copy(source, target):
    try:
        file = open(source, "rb")  # noqa: SIM115 (an error while writing is another one)
    except OSError as error:
        raise UserError(f"--from {source} cannot be read: {error.strerror}.") from error
    with file, open(target, "wb") as out:
        shutil.copyfileobj(file, out, BLOCK)


def _download(url, target):
    try:
        pooch.HTTPDownloader(sys.stderr.isatty(), BLOCK, timeout=(PATIENCE, STALL))(url, str(target), None)
    except (requests.RequestException, UnicodeError) as error:  # the latter: no such name can be
        ways = f"connect to the network, set {MIRROR} to an address that has it, or copy it with --from FILE"
        raise UserError(f"{url} could not be downloaded ({_reason(error)}): {ways}.") from error


def _reason(error):
    """The innermost reason of a failed request, in a few words."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    if isinstance(inner, Exception):
        return _reason(inner)
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
