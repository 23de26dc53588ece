"""Run functions in joined processes, as torchrun joins them, and compute in float64."""

import contextlib
import os
import pickle
import socket
from unittest import mock

import torch
from torch import multiprocessing

from hw1lib.loops import distributed, normalisation


def run(processes, function, *arguments, folder):
    """Return function(*arguments) of each of several processes, a list in order of rank.

    Args:
        folder: where they leave their results.
    """
    multiprocessing.spawn(_work, (processes, free_port(), function, arguments, folder), processes)
    return [pickle.loads((folder / f"result_{rank}").read_bytes()) for rank in range(processes)]


def free_port():
    """Return a port of this machine that is not in use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def join(rank, processes, port):
    """Set torchrun's variables in one of several processes of this machine."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(processes)}
    os.environ["TORCHELASTIC_RUN_ID"] = "tests"


def _work(rank, processes, port, function, arguments, folder):
    join(rank, processes, port)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of DataLoader workers, as under torchrun
    with distributed.process_group():
        (folder / f"result_{rank}").write_bytes(pickle.dumps(function(*arguments)))


@contextlib.contextmanager
def float64():
    """Compute in float64 instead of float32, so that a sum in another order differs in the 16th digit only."""
    torch.set_default_dtype(torch.float64)
    normalisation._constants.cache_clear()
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        normalisation._constants.cache_clear()
