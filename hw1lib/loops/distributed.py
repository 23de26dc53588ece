"""Data-parallel training that computes what a single process would.

torchrun starts the processes. Without it, the functions of this module behave as for a single process.

Batches, random draws and BatchNorm's statistics are those of the global batch, and the loss is its mean, so learning
rate and batch size keep their meaning. Sums are rounded in another order: the same number of processes gives the same
bits, another number the same results up to rounding.
"""

import contextlib
import datetime
import os
import re
import warnings
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from hw1lib import processes, progress
from hw1lib.errors import UserError

CONNECT_TIMEOUT = datetime.timedelta(minutes=10)  # for the other processes to start
CONTROL_TIMEOUT = datetime.timedelta(days=1)  # for what rank 0 does alone, such as a step without training
ERROR_GRACE = datetime.timedelta(seconds=10)  # for rank 0 to report an error that the other ranks see, too
ERROR_KEY = "hw1lib/failed"  # in the store: the rank that reports the error
LOST_PEER = re.compile("gloo|NCCL|c10d|[Cc]onnection|Broken pipe")  # in torch's errors when a process is gone


_state = SimpleNamespace(
    store=None,  # torchrun's key-value store
    control_group=None,  # gloo group for plain data and barriers; None: no group was joined
    batch_size=0,  # of the current global batch
    generator=torch.Generator(),  # for draws that all ranks share
)


# --- the process group


@contextlib.contextmanager
def process_group():
    """Join torchrun's processes for one step; without torchrun, do nothing.

    All ranks leave together. An error in one rank ends all of them and is raised in one rank only.

    Raises:
        SystemExit: another rank raises the error.
    """
    if not processes.under_torchrun():
        yield
        return
    _join()
    try:
        yield
        barrier()  # a rank that left earlier would break the connections of the others
    except Exception as error:
        lost_peer = isinstance(error, RuntimeError) and bool(LOST_PEER.search(str(error)))
        if not _reports_error(lost_peer):
            raise SystemExit(1) from error
        if lost_peer:
            raise UserError(
                "Another process of this step ended without an error message; memory may have run out. Run the same "
                "command again: the step resumes from its last checkpoint."
            ) from error
        raise
    finally:
        _state.store = _state.control_group = None
        progress.muted = False
        dist.destroy_process_group()


def _join():
    warnings.filterwarnings("ignore", "Grad strides do not match")  # harmless: strides of dimensions of size 1
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=CONNECT_TIMEOUT))
        # After a restart, torchrun's store still holds the addresses of dead processes. Each of several machines counts
        # restarts separately (pytorch#135712).
        several_machines = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
        restarts = "0" if several_machines else os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        _state.store = dist.PrefixStore(restarts, store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=_state.store, rank=rank, world_size=world_size)
        _state.control_group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"The other processes of torchrun cannot be reached at {address} ({str(error).splitlines()[0]}). Start all "
            "of them again with one torchrun command, or run the step without torchrun."
        ) from error
    progress.muted = rank > 0


def _reports_error(lost_peer):
    """Return whether this rank reports its error; the others give rank 0 time to be the first."""
    try:
        if rank() or lost_peer:
            with contextlib.suppress(dist.DistStoreError):  # no rank has failed before
                _state.store.wait([ERROR_KEY], ERROR_GRACE)
        return _state.store.compare_set(ERROR_KEY, "", str(rank())) == str(rank()).encode()
    except RuntimeError:  # the process that held the store is gone
        return rank() == 0


def world_size():
    """Return the number of processes that work on this step."""
    return 1 if _state.control_group is None else dist.get_world_size()


def rank():
    """Return this process's rank; rank 0 writes results and reports progress."""
    return 0 if _state.control_group is None else dist.get_rank()


def local_world_size():
    """Return the number of processes on this machine."""
    return 1 if _state.control_group is None else int(os.environ["LOCAL_WORLD_SIZE"])


def local_device(device):
    """Return this rank's own GPU in a process group, else `device`."""
    if device.type == "cuda" and _state.control_group is not None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


# --- control


def broadcast(value):
    """Return rank 0's `value`, plain data, in all ranks."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_state.control_group)
    return values[0]


def barrier():
    """Wait until all ranks reach this call."""
    if world_size() > 1:
        dist.barrier(group=_state.control_group)


@contextlib.contextmanager
def rank0_first():
    """Run the block in rank 0 first, then in the other ranks, which end with rank 0 if it fails."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


@contextlib.contextmanager
def single_process():
    """Make the functions of this module act as without a process group, for what one rank does alone."""
    group, _state.control_group = _state.control_group, None
    try:
        yield
    finally:
        _state.control_group = group


# --- batches and random draws


def begin_step(seed, batch_size):
    """Seed one training step, and store the size of its global batch for `rand` and `batch_fraction`.

    The ranks share the draws of `rand`; what each draws from torch's global generator, such as dropout, differs.
    With one process, nothing is seeded here: both come from the global generator.
    """
    _state.batch_size = batch_size
    if world_size() > 1:
        _state.generator.manual_seed(seed)
        torch.manual_seed(seed + rank())


def share_seed():
    """Give torch's global generator the same seed in all ranks, for code that draws once for a whole batch."""
    if world_size() > 1:
        torch.manual_seed(_state.generator.initial_seed())


def rand(rows, columns):
    """Return uniform random numbers, (rows, columns): this rank's columns of those for the global batch."""
    if world_size() == 1:
        return torch.rand(rows, columns)
    return torch.rand(rows, _state.batch_size, generator=_state.generator)[:, shard(_state.batch_size)]


def shard(total):
    """Return this rank's slice of `total` rows."""
    index, size = rank(), world_size()
    return slice(total * index // size, total * (index + 1) // size)


def batch_fraction(rows):
    """Return what fraction of the global batch `rows` rows are."""
    return 1 if world_size() == 1 else rows / _state.batch_size


# --- differentiable collectives


class _AllReduce(torch.autograd.Function):
    """The sum over all ranks. torch.distributed.nn has the same function, deprecated."""

    @staticmethod
    def forward(context, tensor):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(context, gradient):
        return _AllReduce.apply(gradient)


def all_reduce(tensor):
    """Return the sum of a tensor over all ranks; gradients are summed, too."""
    return tensor if world_size() == 1 else _AllReduce.apply(tensor)


def all_gather(rows, total):
    """Concatenate the shards of all ranks, (n, …) -> (total, …); gradients flow back to each shard's rank."""
    if world_size() == 1:
        return rows
    zeros, own = rows.new_zeros(total, *rows.shape[1:]), shard(total)
    return _AllReduce.apply(torch.cat([zeros[: own.start], rows, zeros[own.stop :]]))


def map_shards(function, rows):
    """Return function(rows), (N, …) -> (N, …), where each rank computes its shard."""
    if len(rows) < world_size():
        return function(rows)
    return all_gather(function(rows[shard(len(rows))]), len(rows))


# --- training


def data_parallel(module, loss, device):
    """Return loss(module, *batch) as a function of this rank's shard of a batch.

    Its value is the mean over the global batch in every rank, and so are its gradients, which DistributedDataParallel
    averages. BatchNorm layers of `module` are converted to use the global batch.
    """
    if world_size() == 1:
        return partial(loss, module)
    sync_batchnorm(module, device)
    return DistributedDataParallel(_LossModule(module, loss), forward_sync_buffers=False)


def no_sync(loss, enabled):
    """Return a context in which ranks keep the gradients of `loss` local: for all micro-batches but the last."""
    return loss.no_sync() if enabled and isinstance(loss, DistributedDataParallel) else contextlib.nullcontext()


class _LossModule(nn.Module):
    """Module whose forward pass returns the loss: DistributedDataParallel synchronises only what forward() computes."""

    def __init__(self, module, loss):
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, *batch):
        return _AllReduce.apply(self.loss(self.module, *batch) * len(batch[0])) / _state.batch_size


def sync_batchnorm(module, device):
    """Convert the BatchNorm layers of a module to SyncBatchNorm, or on CPUs to CPUSyncBatchNorm."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = CPUSyncBatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """BatchNorm over the global batch in two passes: the mean, then the mean of squared deviations."""

    def _check_input_dim(self, inputs):
        pass  # both (B, C) and (B, C, H, W)

    def forward(self, inputs):
        if not self.training or world_size() == 1:
            return super().forward(inputs)
        channels, dims, shape = inputs.shape[1], [0, *range(2, inputs.ndim)], [1, -1] + [1] * (inputs.ndim - 2)
        values = inputs.float()
        size = values.new_tensor([inputs.numel() / channels])
        sums, total = _AllReduce.apply(torch.cat([values.sum(dims), size])).split([channels, 1])
        mean = sums / total
        centred = values - mean.view(shape)
        variance = _AllReduce.apply(centred.square().sum(dims)) / total
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_((variance * total / (total - 1)).detach(), self.momentum)
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (centred * scale.view(shape)).to(inputs.dtype)
        return (centred * (scale * self.weight).view(shape) + self.bias.view(shape)).to(inputs.dtype)
