"""One step on many processes: each has its part of every batch, and all of them compute what one would.

torchrun starts the processes; without it there is one, and nothing in here does anything. Batches and draws are those
of the global batch, BatchNorm looks at all of it, and the loss is its mean, so that learning rate and batch size mean
what they mean in one process. Sums are rounded in another order: the same number of processes gives the same bits,
another one the same up to rounding.
"""

import contextlib
import datetime
import os
import re
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from hw1lib import processes, progress
from hw1lib.errors import UserError

PATIENCE = datetime.timedelta(days=1)  # longest wait for what one process does alone, such as a step without training
CONNECT = datetime.timedelta(minutes=10)  # longest wait for the other processes to start
GRACE = datetime.timedelta(seconds=10)  # for the first process to report an error that others see, too
FAILED = "hw1lib/failed"  # key of the store: rank of the process that reports the error
LOST = re.compile("gloo|NCCL|c10d|[Cc]onnection|Broken pipe")  # what torch says when a process is gone
common = torch.Generator()  # of draws that all processes share, such as augmentation of the global batch
_batch = None  # size of the global batch that is worked on
_alone = False
_store = None  # torchrun's, of this attempt
_talk = None  # group over the CPU that plain data and barriers go through; None: this process has not joined


@contextlib.contextmanager
def group():
    """Work with the processes that torchrun started for one step; without torchrun there is just this one.

    The processes leave together. An error of one ends all of them, and is raised in one of them alone.

    Raises:
        SystemExit: another process raises the error.
    """
    if not processes.under_torchrun():
        yield
        return
    _join()
    try:
        yield
        wait()  # who left earlier would break off what the others still say
    except Exception as error:
        if not _is_first_to_fail(error):
            raise SystemExit(1) from error
        if _is_lost(error):
            raise UserError(
                "Another process of this step ended without an error message; memory may have run out. Run the same "
                "command again: the step goes on from its last checkpoint."
            ) from error
        raise
    finally:
        _leave()


def _join():
    global _store, _talk
    warnings.filterwarnings("ignore", "Grad strides do not match")  # strides of one entry say nothing
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=CONNECT))
        _store = dist.PrefixStore(_attempt(), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=world)
        _talk = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"The other processes of torchrun cannot be reached at {address} ({str(error).splitlines()[0]}). Start all "
            "of them again with one torchrun command, or run the step without torchrun."
        ) from error
    progress.muted = rank > 0


def _leave():
    global _store, _talk
    _store = _talk = None
    progress.muted = False
    dist.destroy_process_group()


def _is_lost(error):
    return isinstance(error, RuntimeError) and bool(LOST.search(str(error)))


def _is_first_to_fail(error):
    """Whether this process is the one to report its error; the first process is preferred, others wait for it."""
    try:
        if rank() or _is_lost(error):
            with contextlib.suppress(dist.DistStoreError):  # nobody failed before
                _store.wait([FAILED], GRACE)
        return _store.compare_set(FAILED, "", str(rank())) == str(rank()).encode()
    except RuntimeError:  # the store is gone, and with it the process or agent that kept it
        return rank() == 0


def own_device(device):
    """Return this process's device: of several processes on GPUs, each has one."""
    if device.type == "cuda" and _talk is not None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def _attempt():
    """Names what processes tell each other first: torchrun's store still has the addresses of those that died.

    Raises:
        UserError: torchrun's restarts would meet at such an address, as agents of several machines count them each by
            itself (pytorch#135712).
    """
    environment = os.environ
    if environment.get("GROUP_WORLD_SIZE", "1") == "1":
        return environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    if environment["TORCHELASTIC_USE_AGENT_STORE"] == "True" and environment["TORCHELASTIC_MAX_RESTARTS"] != "0":
        raise UserError(
            "torchrun --max-restarts on several machines needs export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each of "
            "them: otherwise processes that start again may wait for those that died."
        )
    return "0"


def count():
    """How many processes work on this step."""
    return 1 if _alone or _talk is None else dist.get_world_size()


def rank():
    """Which of them this one is, from 0; the first one writes results and reports progress."""
    return 0 if _talk is None else dist.get_rank()


def local_count():
    """How many of them run on this machine."""
    return 1 if _talk is None else int(os.environ["LOCAL_WORLD_SIZE"])


def agreed(value):
    """What the first process says, plain data."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_talk)
    return box[0]


def wait():
    """Until all processes are here."""
    if count() > 1:
        dist.barrier(group=_talk)


@contextlib.contextmanager
def first():
    """Let the first process run the block before the others do.

    Raises:
        SystemExit: in the others, where the block failed in the first process, which reports it.
    """
    if rank():
        if agreed(None):
            raise SystemExit(1)
        yield
        return
    try:
        yield
    except BaseException:
        with contextlib.suppress(RuntimeError):  # they may be gone
            agreed("failed")
        raise
    agreed(None)


@contextlib.contextmanager
def alone():
    """What is in here, the first process does by itself."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def part(total, note=False):
    """This process's slice of so many rows.

    Args:
        note: the rows are a batch, whose draws `draw` makes from now on.
    """
    global _batch
    if note:
        _batch = total
    processes = count()
    mine = rank() if processes > 1 else 0
    return slice(total * mine // processes, total * (mine + 1) // processes)


def seed(number):
    """Seeds what processes draw together, and what each draws by itself, such as dropout; one process: both are one."""
    if count() > 1:
        common.manual_seed(number)
        torch.manual_seed(number + rank())


def total(number):
    """The sum of a scalar tensor over all processes."""
    return number if count() == 1 else _Sum.apply(number)


def share(rows):
    """Which part of the batch so many rows are."""
    return 1 if count() == 1 else rows / _batch


def draw(rows, columns):
    """Uniform random numbers for this process's part of the batch, (rows, columns), cut out of those of the whole."""
    if count() == 1:
        return torch.rand(rows, columns)
    return torch.rand(rows, _batch, generator=common)[:, part(_batch)]


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(context, values):
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(context, gradient):
        return _Sum.apply(gradient)


def joined(mine, total):
    """The rows of all processes in their order, (n, …) -> (total, …); gradients go back to whose they are."""
    if count() == 1:
        return mine
    whole = torch.zeros(total, *mine.shape[1:], dtype=mine.dtype, device=mine.device)
    return _Sum.apply(torch.cat([whole[: part(total).start], mine, whole[part(total).stop :]]))


def sharded(function, rows):
    """function(rows), (N, …) -> (N, …), each process for its part of the rows."""
    if len(rows) < count():
        return function(rows)
    return joined(function(rows[part(len(rows))]), len(rows))


def wrapped(module, loss, device):
    """loss(module, *batch) as a function of this process's part of a batch: the mean over all of it, everywhere.

    Its gradients are those of the global batch: DistributedDataParallel averages them. BatchNorm of `module` is made to
    look at the global batch.
    """
    if count() == 1:
        return _Loss(module, loss)
    synchronise(module, device)
    return DistributedDataParallel(_Loss(module, loss), forward_sync_buffers=False)


def apart(loss, yes):
    """For the loss of a part of a step: where more of them follow, processes keep its gradients to themselves."""
    return loss.no_sync() if yes and isinstance(loss, DistributedDataParallel) else contextlib.nullcontext()


class _Loss(nn.Module):
    """DistributedDataParallel sees only a module's own call."""

    def __init__(self, module, loss):
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, *batch):
        value = self.loss(self.module, *batch)
        if count() == 1:
            return value
        rows = len(batch[0])
        return _Sum.apply(value * rows) / _batch


def synchronise(module, device):
    """Lets each BatchNorm of a module look at the global batch: torch's own way, or `Norm`, as that refuses CPUs."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = Norm


class Norm(_BatchNorm):
    """BatchNorm over the global batch, in two passes: mean, then the mean square of what is left."""

    def _check_input_dim(self, values):
        pass  # maps and vectors both

    def forward(self, values):
        if not self.training or count() == 1:
            return super().forward(values)
        over = [0, *range(2, values.ndim)]
        shape = [1, -1] + [1] * (values.ndim - 2)
        wide = values.float()
        size = wide.new_tensor([values.numel() / values.shape[1]])
        sums, total = _Sum.apply(torch.cat([wide.sum(over), size])).split([values.shape[1], 1])
        mean = sums / total
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(over)) / total
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * total / (total - 1), share)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
            centred = centred * scale.view(shape) + self.bias.view(shape)
        else:
            centred = centred * scale.view(shape)
        return centred.to(values.dtype)
