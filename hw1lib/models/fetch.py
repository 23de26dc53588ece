"""Gets optional weights: from their server, a mirror or a file, held against a pinned hash."""

import os
import queue
import shutil
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hw1lib import files, paths
from hw1lib.errors import UserError

SERVER = "https://dl.fbaipublicfiles.com/segment_anything"
MIRROR = "HW1_WEIGHTS_MIRROR"  # environment variable: another address that has the same files
PATIENCE = 3.0  # seconds until a server must have answered
BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Weights:
    """One file of weights."""

    file: str
    sha256: str
    megabytes: int
    about: str


KNOWN = {
    "sam_vit_b": Weights(
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375, "SAM with a ViT-B encoder (Kirillov et al. 2023)",
    ),
    "sam_vit_l": Weights(
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1250, "SAM with a ViT-L encoder",
    ),
    "sam_vit_h": Weights(
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2565, "SAM with a ViT-H encoder",
    ),
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
    wanted = known(name)
    path = Path(folder) / wanted.file
    if path.is_file() and files.digest(path) == wanted.sha256:
        return path
    with files.replacing(path) as temporary:
        with open(temporary, "wb") as target:
            if source:
                _copy(Path(source), target)
            else:
                _download(wanted, target)
        _check(temporary, wanted, source or address(wanted))
    return path


def known(name):
    """The file behind a name."""
    if name not in KNOWN:
        raise UserError(f"There are no weights {name!r}; there are: {', '.join(KNOWN)}.")
    return KNOWN[name]


def address(wanted):
    """Where a file is downloaded from."""
    return f"{(os.environ.get(MIRROR) or SERVER).rstrip('/')}/{wanted.file}"


def _check(path, wanted, origin):
    found = files.digest(path)
    if found != wanted.sha256:
        raise UserError(
            f"{origin} is not {wanted.file}: its SHA-256 begins with {found[:12]}, expected is "
            f"{wanted.sha256[:12]}. It was not kept; get the file again."
        )


def _copy(source, target):
    try:
        with open(source, "rb") as file:
            shutil.copyfileobj(file, target, BLOCK)
    except OSError as error:
        if error.filename is None:  # writing failed, not reading
            raise
        raise UserError(f"--from {source} cannot be read: {error.strerror}.") from error


def _download(wanted, target):
    url = address(wanted)
    print(f"{url} ({wanted.megabytes} MB)")
    try:
        answer = _open(url)
        length = answer.headers.get("Content-Length") or ""
        total = int(length) if length.isdigit() else None
        with answer, tqdm(
            total=total, unit="B", unit_scale=True, desc=wanted.file, disable=None, ncols=80
        ) as bar:
            while block := _read(answer):
                target.write(block)
                bar.update(len(block))
        if total and target.tell() != total:
            raise _NoAnswer(f"it ended after {target.tell():,} of {total:,} bytes")
    except _NoAnswer as error:
        raise UserError(
            f"{url} could not be downloaded ({error}): connect to the network, set {MIRROR} to "
            "an address that has this file, or copy it from elsewhere with --from FILE."
        ) from error


class _NoAnswer(Exception):
    """The server cannot be reached, or stopped in the middle."""


def _read(answer):
    try:
        return answer.read(BLOCK)
    except Exception as error:  # timeouts and broken connections are of many classes
        raise _NoAnswer(_reason(error)) from error


def _open(url):
    """Opens an address; a thread, as looking up a name has no time limit of its own."""
    box = queue.Queue()

    def work():
        try:
            # A wider limit for each later read: only the first answer has to be quick.
            box.put(urllib.request.urlopen(url, timeout=30))
        except Exception as error:
            box.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = box.get(timeout=PATIENCE)
    except queue.Empty:
        raise _NoAnswer(f"no answer in {PATIENCE:g} seconds") from None
    if isinstance(answer, Exception):
        raise _NoAnswer(_reason(answer)) from answer
    return answer


def _reason(error):
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__
