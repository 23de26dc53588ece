"""Shuffled training batches, of arrays in memory or of image files.

Batches are functions of (epoch, batches to skip). Their order depends on (seed, epoch), all random draws of a step on
(seed, epoch, step), so a resumed training sees the same batches as an uninterrupted one.
"""

import shutil

import torch
from torch.utils.data import DataLoader

from hw1lib import cpus
from hw1lib.loops import distributed
from hw1lib.loops.device import to_device
from hw1lib.loops.seeds import seed_everything

SHARED_MEMORY = "/dev/shm"
PREFETCH = 2  # batches that each worker of a DataLoader prepares: torch's default


class _Shuffled:
    """Batches of row numbers, shuffled again in each epoch.

    Args:
        rows: the row numbers to draw from.
        batch_size: rows in each batch. Rows left over at the end of an epoch are dropped, as BatchNorm needs full
            batches; if there are fewer rows than that, all of them are one batch.
        seed: seed of the order.
        names: file names of all rows, or ().
    """

    def __init__(self, rows, batch_size, seed, names):
        self.rows = torch.as_tensor(rows)
        self.batch_size = min(batch_size, len(self.rows))
        self.seed = seed
        self.names = names

    def __len__(self):
        return len(self.rows) // self.batch_size

    def order(self, epoch):
        """Return the rows of each batch, (batches, batch size)."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(len(self.rows), generator=generator)
        return self.rows[order[: len(self) * self.batch_size]].view(-1, self.batch_size)

    def begin_step(self, epoch, step):
        """Seed all random draws of a step."""
        distributed.begin_step(seed_everything(self.seed, epoch, step), self.batch_size)

    def files(self, epoch, step):
        """Return the file names of an epoch's batch number `step`, from 1; [] if they are not known."""
        return [self.names[row] for row in self.order(epoch)[step - 1].tolist()] if self.names else []


class ArrayBatches(_Shuffled):
    """Shuffled batches of tensors in memory, which may be memory-mapped.

    Each batch is copied to the device while the previous one is in use.

    Args:
        tensors: tensors of one length, such as uint8 images and labels.
        batch_size, seed, names: see `_Shuffled`.
        device: torch device of the batches.
        prepare: function of a batch's tensors that returns the batch, such as augmentation.
        rows: the rows of the tensors to use; None for all.
    """

    def __init__(self, tensors, batch_size, seed, device, prepare=None, names=(), rows=None):
        super().__init__(range(len(tensors[0])) if rows is None else rows, batch_size, seed, names)
        self.tensors = tensors
        self.device = device
        self.prepare = prepare or (lambda *batch: batch)

    def __call__(self, epoch, start=0):
        shards = self.order(epoch)[start:, distributed.shard(self.batch_size)]
        batches = ([to_device(tensor[rows], self.device) for tensor in self.tensors] for rows in shards)
        following = next(batches, None)
        for step in range(start + 1, len(self) + 1):
            batch, following = following, next(batches, None)
            self.begin_step(epoch, step)
            yield self.prepare(*batch)


class FileBatches(_Shuffled):
    """Shuffled batches of images and labels, where torchvision transforms each image by itself.

    Args:
        images: images.Resized of the split.
        split: layout.Split; where it has no labels, they are -1.
        transform: function of a PIL image; its draws depend on the seed, the epoch and the image's position in it.
        batch_size, seed: see `_Shuffled`.
        device: torch device of the batches.
        workers: number of processes that load images, without effect on the result; None for `worker_count`.
    """

    def __init__(self, images, split, transform, batch_size, seed, device, workers=None):
        super().__init__(range(len(split)), batch_size, seed, split.files)
        self.images = images
        self.labels = split.labels
        self.transform = transform
        self.device = device
        self.workers = workers
        if workers is None:
            rows, side = -(-self.batch_size // distributed.world_size()), int(images.shapes.min())
            self.workers = worker_count(device, PREFETCH * rows * 3 * side**2 * 4)

    def __call__(self, epoch, start=0):
        positions = torch.arange(len(self) * self.batch_size).view(-1, self.batch_size)
        shard = distributed.shard(self.batch_size)
        shards = zip(positions[start:, shard].tolist(), self.order(epoch)[start:, shard].tolist())
        keys = [[(epoch, position, row) for position, row in zip(*pair)] for pair in shards]
        pin = self.device.type == "cuda"
        loader = DataLoader(self, batch_sampler=keys, num_workers=self.workers, pin_memory=pin)
        for step, batch in enumerate(loader, start + 1):
            self.begin_step(epoch, step)
            yield [tensor.to(self.device, non_blocking=True) for tensor in batch]

    def __getitem__(self, key):
        """Return a transformed image and its label by (epoch, position in the epoch, row), for the DataLoader."""
        epoch, position, row = key
        seed_everything(self.seed, epoch, position, 1)  # the fourth number tells an image from a step
        return self.transform(self.images[row]), -1 if self.labels is None else int(self.labels[row])


def worker_count(device, bytes_ahead, shared_memory=SHARED_MEMORY):
    """Return the number of image-loading processes: up to 16 beside a GPU, up to 2 beside training on the CPU.

    Args:
        device: torch device of the network.
        bytes_ahead: shared memory that each worker may fill.
        shared_memory: folder of the shared memory, which is often small in containers.
    """
    processes = distributed.local_world_size()
    share = cpus.share(processes, threads=processes == 1)  # torchrun sets OMP_NUM_THREADS to 1
    count = min(share - 1, 2) if device.type == "cpu" else min(share, 16)
    try:
        return min(count, int(shutil.disk_usage(shared_memory).free / 2 / processes / bytes_ahead))
    except OSError:  # systems without such a folder share memory in another way
        return count
