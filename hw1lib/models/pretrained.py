"""Weights that training starts from: the course's ResNet50, or torchvision's. Only `imagenet_backbone` may download.

Every file is read without running code from it.
"""

import contextlib
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.models import ResNet50_Weights, resnet50

from hw1lib import errors
from hw1lib.errors import UserError, is_damage

IMAGENET = ResNet50_Weights.DEFAULT.url

# The children of nn.Sequential(*resnet50().children()), as lightly and others wrap it.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def load_backbone(path):
    """Load the course's supervised ResNet50, `pretrain_model_SL.pt`, without its classifier.

    Args:
        path: a state dict of torchvision's resnet50, saved with torch.save. It may lie in a dict, such as
            {"model_state_dict": …}, its names may share a prefix, such as "module.encoder.", or be those of
            nn.Sequential(*resnet50().children()), and fc may have any size.

    Returns:
        {name: tensor} with exactly the names and shapes of torchvision's resnet50, less fc.

    Raises:
        UserError: the file is damaged, needs code to load, or holds another network or several.
    """
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in resnet50(weights=None).state_dict().items()}
    expected = {name: shape for name, shape in expected.items() if not name.startswith("fc.")}
    remedy = (
        "It must be the state dict of torchvision's resnet50, saved as torch.save(model.state_dict(), path); get the "
        "file again, or remove it and have one trained on the labelled pool: --set supervised.source=pool."
    )
    with naming(path, "The backbone", remedy):
        content = read_pickle(path)
        candidates = state_dicts(content, "layer1.0.conv1.weight")
        for place, state in state_dicts(content, "4.0.conv1.weight").items():
            children = {name: name.partition(".") for name in state}
            candidates[place] = {f"{_SEQUENTIAL.get(c[0], c[0])}.{c[2]}": state[name] for name, c in children.items()}
        for state in candidates.values():
            for name in expected:
                if name.endswith(".num_batches_tracked"):  # files from old versions lack them
                    state.setdefault(name, torch.tensor(0))
        faults = {place: _fault(state, expected) for place, state in candidates.items()}
        backbones = {place: state for place, state in candidates.items() if not faults[place]}
        if candidates and not backbones:
            raise ValueError(f"{content_of(_names(content))}, but {next(iter(faults.values()))}")
        state = only(backbones, content, "a ResNet50")
        tensors = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        if extra := [name for name in tensors if name not in expected]:
            raise ValueError(f"{content_of(_names(content))}, but resnet50 has no {extra[0]}")
        if odd := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
            raise ValueError(f"{odd} holds values that are not finite")
    return tensors


def _fault(tensors, expected):
    """The first of the expected {name: shape} that tensors do not have, as a phrase; empty if they have all."""
    for name, shape in expected.items():
        if name not in tensors:
            return f"resnet50's {name} is not among them"
        if tensors[name].shape != shape:
            return f"{name} has the shape {tuple(tensors[name].shape)}, resnet50's {tuple(shape)}"
    return ""


def check_download(url):
    """Check that torch's cache has a file of weights, or that its server answers.

    Raises:
        ValueError: neither is so, or the cached file is damaged: a phrase that says why.
    """
    path = cached(url)
    if path.is_file():
        try:
            read_pickle(path)
        except ValueError as error:
            raise ValueError(f"{path} in torch's cache cannot be used ({error}): delete it") from error
        return
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"{url} cannot be reached ({getattr(reason, 'strerror', None) or reason})") from error


def cached(url):
    """Where torch keeps a file that it downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def imagenet_backbone():
    """Loads torchvision's ImageNet ResNet50, from torch's cache or else from its server.

    Returns:
        What `load_backbone` gives, and the file's name.

    Raises:
        UserError: it cannot be downloaded.
    """
    url, path = IMAGENET, cached(IMAGENET)
    if not path.is_file():
        digest = path.stem.rpartition("-")[2]  # the file's name ends in its hash's first digits
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is not
            remedy = f"Put that file into {path.parent}, or choose --set supervised.source=pool."
            raise UserError(f"supervised.source=imagenet: {url} could not be downloaded ({error}). {remedy}") from error
    return load_backbone(path), path.name


def read_pickle(path):
    """What a file of torch.save holds, a dict; code in it is refused, not run. Large files are mapped, not read."""
    with open(path, "rb") as file:  # where it is not there, or not to be read, the system says it best
        begin = file.read(64)
    if not begin:
        raise ValueError("it is empty")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if not is_damage(error):
            raise
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise ValueError("it holds a pickled object whose loading would run code") from error
        if "TorchScript" in str(error):
            raise ValueError("it is a TorchScript archive, which holds code") from error
        page = " (it is a web page)" if begin.lstrip()[:1] == b"<" else ""
        raise ValueError(f"it is damaged or no file of torch.save{page}") from error
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not a dict of tensors")
    return state


def state_dicts(content, anchor, place=""):
    """Every state dict in a file that has a certain tensor, less the prefix that this tensor's name shows.

    Args:
        content: nested dicts.
        anchor: end of the tensor's name, such as layer1.0.conv1.weight.
        place: the keys that lead to `content`.

    Returns:
        {keys and prefix: {name without prefix: tensor}}.
    """
    state = {n: t for n, t in content.items() if isinstance(n, str) and isinstance(t, torch.Tensor)}
    prefixes = [n.removesuffix(anchor) for n in state if n == anchor or n.endswith(f".{anchor}")]
    found = {place + p: {n.removeprefix(p): t for n, t in state.items() if n.startswith(p)} for p in prefixes}
    for key, value in content.items():
        if isinstance(value, dict):
            found |= state_dicts(value, anchor, f"{place}{key}.")
    return found


def _names(content):
    """Names of all tensors in nested dicts, without the keys that lead to them."""
    inner = [name for value in content.values() if isinstance(value, dict) for name in _names(value)]
    return [str(name) for name, value in content.items() if isinstance(value, torch.Tensor)] + inner


def only(states, content, network):
    """The one state dict among those found in a file."""
    if len(states) > 1:
        places = ", ".join(place.rstrip(".") or "the whole" for place in states)
        raise ValueError(f"it holds {network} more than once ({places}): save one of them alone")
    if not states:
        raise ValueError(f"{content_of(_names(content))}, which are not those of {network}")
    return next(iter(states.values()))


def content_of(names):
    """What a file holds, as a phrase."""
    return f"it holds {len(names)} tensors" + (f" (first {', '.join(names[:3])})" if names else "")


@contextlib.contextmanager
def naming(path, what, remedy):
    """Turn damage of a file of weights, which shows in many exceptions, into one clear error; others pass."""
    try:
        yield
    except Exception as error:
        reason = "it is damaged or holds something else"
        if isinstance(error, OSError) and error.errno and not is_damage(error):
            reason, remedy = error.strerror, errors.remedy(error)
        elif not is_damage(error):
            raise
        elif type(error) is ValueError:  # ours
            reason = str(error)
        elif isinstance(error, KeyError):
            reason = f"it has no {error.args[0]}"
        raise UserError(f"{what} in {path} cannot be used: {reason}. {remedy}") from error
