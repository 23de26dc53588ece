"""Find and download weight files, without importing torch, so that the command `weights` starts quickly."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from hw1lib import paths
from hw1lib.errors import UserError, did_you_mean, reason, remedy

SERVER = "https://dl.fbaipublicfiles.com/segment_anything"
MIRROR = "HW1_WEIGHTS_MIRROR"  # environment variable: another address that serves the same files
CONNECT_TIMEOUT = 3.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte

SAM_FOLDERS = ("sam-vit-base", "sam-vit-large", "sam-vit-huge")  # as on the Hugging Face hub
SAM_PARTS = ("config.json", "model.safetensors")  # the files of such a folder
SAM_HINT = (
    "SAM's weights are missing: run `.venv/bin/python -m hw1lib weights fetch sam_vit_b` (375 MB), or put Meta's "
    "sam_vit_b_01ec64.pth or the Hugging Face folder sam-vit-base into data/weights."
)


@dataclass(frozen=True)
class Weights:
    """A file of weights that can be downloaded."""

    file: str
    sha256: str
    megabytes: int


_SAM = (  # with the encoders ViT-B, ViT-L and ViT-H
    Weights("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375),
    Weights("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1250),
    Weights("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2565),
)
KNOWN = {known.file[:9]: known for known in _SAM}
SAM_FILES = tuple(weights.file for weights in KNOWN.values())


def find_sam(folder=paths.WEIGHTS):
    """Return the path of SAM's weights for `sam.load`, or None; the smallest model first, a folder before a .pth."""
    complete = [folder / name for name in SAM_FOLDERS if all((folder / name / part).is_file() for part in SAM_PARTS)]
    return next(iter(complete + [folder / name for name in SAM_FILES if (folder / name).is_file()]), None)


def unused(folder=paths.WEIGHTS):
    """Yield a sentence for each entry of the folder of weights that is not used, such as a misspelt name."""
    known = SAM_FOLDERS + SAM_FILES
    names = ", ".join(known)
    for path in sorted(folder.glob("[!.]*")):
        missing = [part for part in SAM_PARTS if not (path / part).is_file()]
        if path.name in SAM_FOLDERS and missing:
            yield f"{path} is not used: it lacks {' and '.join(missing)}."
        elif path.name not in known or (path.name in SAM_FILES and path.is_dir()):
            similar = did_you_mean(path.name, SAM_FOLDERS if path.is_dir() else SAM_FILES)
            yield f"{path} is not used.{similar or f' SAM is read from {names}.'}"


def state(weights, folder):
    """Return "present", "wrong size" or "missing" for one of KNOWN; only the size is checked."""
    path = Path(folder) / weights.file
    if not path.is_file():
        return "missing"
    return "present" if abs(path.stat().st_size / 1e6 - weights.megabytes) < 1 else "wrong size"


def fetch(name, source=None, folder=paths.WEIGHTS):
    """Download weights, unless the folder has the right file already.

    Args:
        name: one of KNOWN.
        source: a file to copy instead of downloading.
        folder: where weights are kept.

    Returns:
        Path of the file, whose SHA-256 has been checked; after any error the folder is unchanged.

    Raises:
        UserError: unknown name, no network, a wrong file, or a full disk.
    """
    if name not in KNOWN:
        raise UserError(f"There are no weights {name!r}. Choose one of {', '.join(KNOWN)}.{did_you_mean(name, KNOWN)}")
    weights = KNOWN[name]
    path, url = Path(folder) / weights.file, f"{(os.environ.get(MIRROR) or SERVER).rstrip('/')}/{weights.file}"

    def download(url, target, _):
        if source:
            shutil.copyfile(source, target)
        else:
            timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
            pooch.HTTPDownloader(sys.stderr.isatty(), chunk_size=2**20, timeout=timeout)(url, target, None)
        os.chmod(target, 0o644)  # only its owner may read pooch's temporary file

    try:
        pooch.retrieve(url, f"sha256:{weights.sha256}", path.name, path.parent, downloader=download)
    except (requests.RequestException, UnicodeError) as error:  # UnicodeError: an impossible host name
        remedies = f"Connect to the network, set {MIRROR} to an address that has it, or copy it with --from FILE"
        raise UserError(f"{url} could not be downloaded ({reason(error)}). {remedies}.") from error
    except ValueError as error:  # raised by pooch for a wrong hash
        mismatch = f"{source or url} is not {path.name}: its SHA-256 does not begin with {weights.sha256[:12]}"
        raise UserError(f"{mismatch}. It was not kept; get the file again.") from error
    except OSError as error:
        if source and error.filename == str(source):
            raise UserError(f"--from {source} cannot be read: {error.strerror}.") from error
        raise UserError(f"{path} could not be written: {error.strerror or error}. {remedy(error)}") from error
    return path
