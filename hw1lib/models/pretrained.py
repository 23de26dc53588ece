"""Weights that training starts from: the course's ResNet50 and torchvision's networks.

No file's code is ever run, and every state dict is checked against the network that it is for.
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
        "file again, or remove it and have one trained on the labelled pool: --set supervised.source=pool."
    )
    with torch.device("meta"):
        expected = _without_fc(resnet50(weights=None).state_dict())
    with readable_errors(path, "The backbone", remedy):
        content = read_pickle(path)
        candidates = find_state_dicts(content, "layer1.0.conv1.weight")
        for place, state in find_state_dicts(content, "4.0.conv1.weight").items():
            children = {name: name.partition(".") for name in state}
            candidates[place] = {f"{_SEQUENTIAL.get(c[0], c[0])}.{c[2]}": state[name] for name, c in children.items()}
        candidates = {place: _with_counters(_without_fc(state), expected) for place, state in candidates.items()}
        fitting = {place: state for place, state in candidates.items() if not _misfit(state, expected)}
        tensors = the_only(fitting or candidates, content, "a ResNet50")
        check_fit(tensors, expected, "resnet50", content)
        if bad := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
            raise ValueError(f"{bad} holds values that are not finite")
    return tensors


def _without_fc(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _with_counters(state, expected):
    """Add BatchNorm's counters where they are missing, as in files from old versions of torch."""
    counters = {name: torch.tensor(0) for name in expected if name.endswith(".num_batches_tracked")}
    return state | {name: zero for name, zero in counters.items() if name not in state}


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
    """Load torchvision's weights into its network, from torch's cache or else from their server.

    Args:
        network: nn.Module, changed in place.
        url: address of the file.
        name: of the network, for messages.
        instead: setting that does without the weights, such as lraspp.pretrained=false.

    Raises:
        UserError: the weights cannot be downloaded, or the file is damaged, holds code or is for another network.
    """
    path, expected = download(url, f"The weights of {name}", instead), network.state_dict()
    remedy = f"Delete it, so that it is downloaded again, or train from scratch with --set {instead}."
    with readable_errors(path, f"The weights of {name}", remedy):
        content = read_pickle(path)
        state = _with_counters(content, expected)
        check_fit(state, expected, name, content)
        network.load_state_dict(state)


def cached(url):
    """Return the path at which torch caches a download."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def download(url, what, instead):
    """Return the path of a file in torch's cache, downloading it first where it is missing.

    Args:
        url: address of the file, whose name ends in the first digits of its SHA-256.
        what: begins the message of an error.
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


def read_pickle(path):
    """Read the dict in a file of torch.save without running code; large files are memory-mapped.

    Raises:
        ValueError: the file is damaged, holds code or something other than a dict: a phrase that says so.
    """
    with open(path, "rb") as file:  # raises OSError where the file cannot be read at all
        begin = file.read(64)
    if not begin:
        raise ValueError("it is empty")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if not is_damage(error):
            raise
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise ValueError("it holds a pickled object whose loading would run code") from error
        if "TorchScript" in str(error):
            raise ValueError("it is a TorchScript archive, which holds code") from error
        page = " (it is a web page)" if begin.lstrip()[:1] == b"<" else ""
        raise ValueError(f"it is damaged or no file of torch.save{page}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict of tensors")
    return content


def find_state_dicts(content, anchor, place=""):
    """Find every state dict that has a certain tensor, and remove the prefix that this tensor's name shows.

    Args:
        content: nested dicts.
        anchor: end of the tensor's name, such as layer1.0.conv1.weight.
        place: the keys that lead to `content`.

    Returns:
        {keys and prefix: {name without prefix: tensor}}.
    """
    state = {n: t for n, t in content.items() if isinstance(n, str) and isinstance(t, torch.Tensor)}
    prefixes = [n.removesuffix(anchor) for n in state if n == anchor or n.endswith(f".{anchor}")]
    states = {place + p: {n.removeprefix(p): t for n, t in state.items() if n.startswith(p)} for p in prefixes}
    for key, value in content.items():
        if isinstance(value, dict):
            states |= find_state_dicts(value, anchor, f"{place}{key}.")
    return states


def the_only(states, content, network):
    """Return the one state dict that `find_state_dicts` found in a file's content; ValueError for none or several."""
    if len(states) > 1:
        places = ", ".join(place.rstrip(".") or "the whole" for place in states)
        raise ValueError(f"it holds {network} more than once ({places}): save one of them alone")
    if not states:
        raise ValueError(f"{_summary(content)}, which are not those of {network}")
    return next(iter(states.values()))


def check_fit(state, expected, network, content):
    """Check the names and shapes of a state dict.

    Args:
        state: {name: tensor}.
        expected: state dict of the network.
        network: its name.
        content: of the whole file, as nested dicts.

    Raises:
        ValueError: a phrase that says what the file holds, and the first tensor that does not fit.
    """
    unexpected = (f"{name} is unexpected" for name in state if name not in expected)
    if fault := _misfit(state, expected) or next(unexpected, ""):
        raise ValueError(f"{_summary(content)}, which do not fit {network}: {fault}")


def _misfit(state, expected):
    """Describe the first tensor that is missing or has another shape; return "" if there is none."""
    for name, tensor in expected.items():
        if name not in state:
            return f"{name} is missing"
        if state[name].shape != tensor.shape:
            return f"{name} has the shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
    return ""


def _summary(content):
    names = _tensor_names(content)
    first = f" (first {', '.join(names[:3])})" if names else ""
    return f"it holds {len(names)} tensors{first}"


def _tensor_names(content):
    inner = [name for value in content.values() if isinstance(value, dict) for name in _tensor_names(value)]
    return [str(name) for name, value in content.items() if isinstance(value, torch.Tensor)] + inner


@contextlib.contextmanager
def readable_errors(path, what, remedy):
    """Turn the many exceptions that a damaged file of weights causes into one UserError; others pass."""
    try:
        yield
    except Exception as error:
        reason = "it is damaged or holds something else"
        if isinstance(error, OSError) and error.errno and not is_damage(error):
            reason, remedy = error.strerror, errors.remedy(error)
        elif not is_damage(error):
            raise
        elif type(error) is ValueError:  # raised by the checks above
            reason = str(error)
        raise UserError(f"{what} in {path} cannot be used: {reason}. {remedy}") from error
