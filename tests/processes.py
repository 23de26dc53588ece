"""Functions in several processes that are joined as torchrun joins them, and arithmetic that hardly rounds."""

import contextlib
import os
import pickle
import socket
from unittest import mock

import torch
from torch import multiprocessing

from hw1lib.loops import augment, distributed


def run(processes, function, *arguments, folder):
    """What function(*arguments) gives in each of so many processes: a list.

    Args:
        folder: for what they leave.
    """
    multiprocessing.spawn(_work, (processes, free_port(), function, arguments, folder), processes)
    return [pickle.loads((folder / f"found_{rank}").read_bytes()) for rank in range(processes)]


def free_port():
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _work(rank, processes, port, function, arguments, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(processes)}
    os.environ["TORCHELASTIC_RUN_ID"] = "tests"
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers, as under torchrun
    with distributed.group():
        (folder / f"found_{rank}").write_bytes(pickle.dumps(function(*arguments)))


@contextlib.contextmanager
def float64():
    """Computes in float64 instead of float32, in which another order of a sum changes the sixteenth digit."""
    torch.set_default_dtype(torch.float64)
    augment._constants.cache_clear()
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        augment._constants.cache_clear()
