"""Where batches come from: arrays in memory, or images through torchvision transforms one by one.

Both are functions of the epoch and of the step to begin with. The order follows from (seed, epoch), everything
that is drawn in a step from (seed, epoch, step), so a resumed run sees what an uninterrupted one would have seen.
"""

import shutil

import torch
from torch.utils.data import DataLoader, Dataset

from hw1lib import cpus
from hw1lib.data import images as image_files
from hw1lib.loops import distributed
from hw1lib.loops.device import fits, send
from hw1lib.loops.loop import seed_everything

SHARED = "/dev/shm"
PREFETCH = 2  # batches that each of torch's loading processes prepares


class _Shuffled:
    """The order of each epoch.

    Args:
        rows: whole numbers, what there is to choose from.
        batch_size: images a batch; what is left at the end of an epoch is dropped unless it is
            all there is, as BatchNorm wants full batches.
        seed: of the order.
        names: of the files behind the rows.
    """

    def __init__(self, rows, batch_size, seed, names):
        self.rows = torch.as_tensor(rows)
        self.batch_size = min(batch_size, len(self.rows))
        self.seed = seed
        self.names = names

    def __len__(self):
        return len(self.rows) // self.batch_size

    def order(self, epoch):
        """The rows of each batch, (steps, batch size)."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(len(self.rows), generator=generator)
        return self.rows[order[: len(self) * self.batch_size]].view(-1, self.batch_size)

    def begin(self, epoch, step):
        """Seeds what is drawn in a step, and says how large its batch is."""
        distributed.seed(seed_everything(self.seed, epoch, step))
        distributed.part(self.batch_size, note=True)

    def files(self, epoch, step):
        """Names of the files in a batch; steps count from 1."""
        return [self.names[row] for row in self.order(epoch)[step - 1].tolist()] if self.names else []


class ArrayBatches(_Shuffled):
    """Shuffled batches of tensors that are in memory already, or mapped into it.

    A device with room keeps all of them; else each batch is copied ahead, while the one before is worked on.

    Args:
        tensors: tensors of one length, such as uint8 images and labels.
        batch_size, seed, names: see `_Shuffled`.
        device: where batches are moved.
        prepare: function of a batch's tensors, such as augmentation; its result is the batch.
        rows: which rows of the tensors are used; None: all.
    """

    def __init__(self, tensors, batch_size, seed, device, prepare=None, names=(), rows=None):
        super().__init__(range(len(tensors[0])) if rows is None else rows, batch_size, seed, names)
        self.resident = fits(tensors, device)
        self.tensors = [tensor.to(device) for tensor in tensors] if self.resident else tensors
        self.device = device
        self.prepare = prepare or (lambda *batch: batch)

    def __call__(self, epoch, start=0):
        order = self.order(epoch)[start:, distributed.part(self.batch_size)]
        parts = list(send(order, self.device) if self.resident else order)
        ahead = self._taken(parts[0]) if parts else None
        for step, following in enumerate([*parts[1:], None], start + 1):
            batch, ahead = ahead, None if following is None else self._taken(following)
            self.begin(epoch, step)
            yield self.prepare(*batch)

    def _taken(self, rows):
        batch = [tensor[rows] for tensor in self.tensors]
        return batch if self.resident else [send(tensor, self.device) for tensor in batch]


class FileBatches(_Shuffled):
    """Shuffled batches of images, each through a transform of PIL images, its draws from (seed, epoch, its place).

    Args:
        workers: processes that load images; they change no image. None: as many as CPUs and shared memory allow.
    """

    def __init__(self, split, size, transform, batch_size, seed, device, workers=None):
        super().__init__(range(len(split)), batch_size, seed, split.files)
        self.images = _Images(image_files.Resized(split, size), split.labels, transform, seed)
        self.device = device
        self.workers = workers
        if workers is None:
            rows = -(-self.batch_size // distributed.count())
            self.workers = loaders(device, bytes_ahead=PREFETCH * rows * 3 * size**2 * 4)

    def __call__(self, epoch, start=0):
        places = torch.arange(len(self) * self.batch_size).view(-1, self.batch_size)
        mine = distributed.part(self.batch_size)
        parts = zip(places[start:, mine].tolist(), self.order(epoch)[start:, mine].tolist())
        order = [[(epoch, *both) for both in zip(*part)] for part in parts]
        how = dict(num_workers=self.workers, pin_memory=self.device.type == "cuda")
        how |= {"prefetch_factor": PREFETCH} if self.workers else {}
        for step, (images, labels) in enumerate(DataLoader(self.images, batch_sampler=order, **how), start + 1):
            self.begin(epoch, step)
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def loaders(device, bytes_ahead, shared=SHARED):
    """Return how many processes load images for this one: a GPU's share of the CPUs, few beside a network on the CPU.

    Args:
        device: torch device that the network trains on.
        bytes_ahead: shared memory that each of them may fill.
        shared: folder of the shared memory; containers often have little.
    """
    several = distributed.local_count() > 1  # torchrun sets OMP_NUM_THREADS to 1
    share = cpus.share(distributed.local_count(), threads=not several)
    count = min(share - 1, 2) if device.type == "cpu" else min(share, 16)
    try:
        return min(count, int(shutil.disk_usage(shared).free / 2 / distributed.local_count() / bytes_ahead))
    except OSError:  # systems without such a folder share memory in another way
        return count


class _Images(Dataset):
    def __init__(self, images, labels, transform, seed):
        self.images = images
        self.labels = labels
        self.transform = transform
        self.seed = seed

    def __len__(self):
        return len(self.images)

    def __getitem__(self, where):
        epoch, place, row = where
        label = -1 if self.labels is None else int(self.labels[row])
        seed_everything(self.seed, epoch, place, 1)  # 1: of an image, not of a step
        return self.transform(self.images[row]), label
