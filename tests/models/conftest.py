"""What several tests of weights need."""

import socket
import urllib.error

import pytest
import torch

from hw1lib.errors import UserError


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a loader of weights connects to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of torch's cache for weights; it does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "cache" / "hub" / "checkpoints"


def offline(*_, **__):
    """Fail as torch's download does without a network."""
    raise urllib.error.URLError("no network in tests")


def refused(load, path, *words):
    """Assert that loading raises one paragraph that names the file and contains these words."""
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert [word for word in (str(path), "cannot be used", *words) if word not in message] == [], message
    assert "\n" not in message


def prefixed(prefix):
    """Return a function that puts a prefix before all names of a state dict."""
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def numbered(build):
    """Return a network's state dict in which each tensor is one repeated number, so its file is small."""
    with torch.device("meta"):
        state = build().state_dict()
    return {name: torch.tensor(float(n) if t.ndim else 0).expand(t.shape) for n, (name, t) in enumerate(state.items())}
