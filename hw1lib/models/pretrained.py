"""Weights that training starts from: the course's ResNet50 and torchvision's networks.

Code in a file is never run, and every state dict is checked against its network.
"""

import contextlib
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ResNet50_Weights, resnet50

from hw1lib import errors
from hw1lib.errors import UserError, is_damage, reason

IMAGENET = ResNet50_Weights.DEFAULT.url

# The children of nn.Sequential(*resnet50().children()), as lightly and others wrap it.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4", "9": "fc"}


def load_backbone(path):
    """Load the course's supervised ResNet50, `pretrain_model_SL.pt`, without its classifier.

    Args:
        path: a state dict of torchvision's resnet50, saved with torch.save. It may be nested in a dict, such as
            {"model_state_dict": …}, its names may share a prefix, such as "module.encoder.", or be those of
            nn.Sequential(*resnet50().children()), and fc may have any size or be missing.

    Returns:
        {name: tensor} with exactly the names and shapes of torchvision's resnet50, less fc.

    Raises:
        UserError: the file is damaged, needs code to load, or holds another network or several.
    """
    remedy = (
        "It must be the state dict of torchvision's resnet50, saved as torch.save(model.state_dict(), path); get the "
        "file again, or train one on the labelled pool with --set supervised.source=pool."
    )
    with torch.device("meta"):
        network = resnet50(weights=None)
    network.fc = nn.Identity()
    with readable_errors(path, "The backbone", remedy):
        tensors = read_tensors(path)
        candidates = find_networks(tensors, "layer1.0.conv1.weight")
        for prefix, state in find_networks(tensors, "4.0.conv1.weight").items():
            children = {name: name.partition(".") for name in state}
            candidates[prefix] = {f"{_SEQUENTIAL.get(c[0], c[0])}.{c[2]}": state[name] for name, c in children.items()}
        state = the_only(candidates, tensors, "a ResNet50")
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        fill(network, state, "resnet50", tensors)
        if bad := next((name for name, tensor in state.items() if not tensor.isfinite().all()), None):
            raise ValueError(f"{bad} holds values that are not finite")
    return network.state_dict()


def imagenet_backbone():
    """Load torchvision's ImageNet ResNet50, from torch's cache or else from its server.

    Returns:
        The tensors as returned by `load_backbone`, and the file's name.

    Raises:
        UserError: it cannot be downloaded or is damaged.
    """
    path = download(IMAGENET, "supervised.source=imagenet", "supervised.source=pool")
    return load_backbone(path), path.name


def load_published(network, url, name, instead):
    """Load published weights into a network of torchvision, from torch's cache or else from their server.

    Args:
        network: nn.Module, changed in place.
        url: address of the file.
        name: the network's name, for messages.
        instead: setting that does without the weights, such as lraspp.pretrained=false.

    Raises:
        UserError: the weights cannot be downloaded, or the file is damaged, holds code or is for another network.
    """
    path = download(url, f"The weights of {name}", instead)
    remedy = f"Delete it, so that it is downloaded again, or train from scratch with --set {instead}."
    with readable_errors(path, f"The weights of {name}", remedy):
        tensors = read_tensors(path)
        fill(network, tensors, name, tensors)


def cached(url):
    """Return the path at which torch caches a download."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def download(url, what, instead):
    """Return the path of a file in torch's cache, downloading it first where it is missing.

    Args:
        url: address of the file, whose name ends in the first digits of its SHA-256.
        what: subject of the error message, such as "The weights of LR-ASPP".
        instead: setting that does without the file.

    Raises:
        UserError: the download failed, or its hash is wrong.
    """
    path = cached(url)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:  # URLError is an OSError; torch raises RuntimeError for a wrong hash
            if errors.out_of_memory(error):
                raise
            remedy = f"{errors.remedy(error)} " if getattr(error, "errno", None) else ""
            remedy += f"Put that file into torch's cache, {path.parent}, or choose --set {instead}."
            raise UserError(f"{what}: {url} could not be downloaded: {error}. {remedy}") from error
    return path


def check_download(url):
    """Check that torch's cache has an intact file of weights, or else that the server answers.

    Raises:
        ValueError: neither is the case; the message is a phrase that says why.
    """
    path = cached(url)
    if path.is_file():
        try:
            read_tensors(path)
        except ValueError as error:
            raise ValueError(f"{path} in torch's cache cannot be used ({error}): delete it") from error
        return
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        raise ValueError(f"{url} cannot be reached ({reason(error)})") from error


def read_tensors(path):
    """Read the tensors in a file of torch.save without running code; large files are memory-mapped.

    Returns:
        {name: tensor}; names in nested dicts follow their keys, as in "model.conv1.weight".

    Raises:
        ValueError: the file is damaged, needs code to load or holds no dict; the message is a phrase that says which.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if not is_damage(error):
            raise
        if any(sign in str(error) for sign in ("Unsupported global", "Unsupported class", "TorchScript")):
            raise ValueError("it holds more than tensors, and loading it would run code") from error
        raise ValueError("it is damaged or was not written by torch.save") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict of tensors")
    return _flatten(content)


def _flatten(content, prefix=""):
    tensors = {}
    for key, value in content.items():
        if isinstance(value, dict):
            tensors |= _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            tensors[f"{prefix}{key}"] = value
    return tensors


def find_networks(tensors, anchor):
    """Find every network that has a certain tensor.

    Args:
        tensors: as returned by `read_tensors`.
        anchor: the tensor's name in the network, such as layer1.0.conv1.weight.

    Returns:
        {prefix of its names: {name without prefix: tensor}}.
    """
    prefixes = [name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")]
    return {p: {name.removeprefix(p): t for name, t in tensors.items() if name.startswith(p)} for p in prefixes}


def the_only(networks, tensors, name):
    """Return the state dict of the one network in a file; ValueError for none or several."""
    if len(networks) > 1:
        places = ", ".join(prefix.rstrip(".") or "top level" for prefix in networks)
        raise ValueError(f"it holds {name} more than once ({places}): save one of them alone")
    if not networks:
        raise ValueError(f"{_summary(tensors)}, which are not those of {name}")
    return next(iter(networks.values()))


def fill(network, state, name, tensors):
    """Load a state dict into a network, whose meta tensors are replaced by those of the state dict.

    Args:
        network: nn.Module, changed in place.
        state: {name: tensor}. BatchNorm's counters may be missing, as in files from old versions of torch.
        name: the network's name, for messages.
        tensors: all tensors of the file, for messages.

    Raises:
        ValueError: a tensor does not fit; the message is a phrase with the file's contents and the first such tensor.
    """
    expected = network.state_dict()
    if fault := next(_misfits(state, expected), None):
        raise ValueError(f"{_summary(tensors)}, which do not fit {name}: {fault}")
    network.load_state_dict(state, assign=next(network.parameters()).is_meta)


def _misfits(state, expected):
    for name, tensor in expected.items():
        if name in state and state[name].shape != tensor.shape:
            yield f"{name} has the shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        if name not in state and not name.endswith(".num_batches_tracked"):
            yield f"{name} is missing"
    yield from (f"{name} is unexpected" for name in state if name not in expected)


def _summary(tensors):
    first = f" (first {', '.join(list(tensors)[:3])})" if tensors else ""
    return f"it holds {len(tensors)} tensors{first}"


@contextlib.contextmanager
def readable_errors(path, what, remedy):
    """Re-raise the many exceptions that a damaged file of weights causes as a UserError; others pass through."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno and not is_damage(error):
            fault, remedy = error.strerror, errors.remedy(error)
        elif not is_damage(error):
            raise
        else:  # the checks above raise ValueError
            fault = str(error) if type(error) is ValueError else "it is damaged or holds something else"
        raise UserError(f"{what} in {path} cannot be used: {fault}. {remedy}") from error
