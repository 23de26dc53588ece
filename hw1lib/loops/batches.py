"""Where batches come from: arrays on the device, or image files through torchvision transforms.

Both are functions of the epoch and of the step to begin with: the order follows from (seed, epoch)
alone, so a resumed run sees what an uninterrupted one would have seen. Both can name the files of
the batch that they gave last.
"""

import itertools

import torch
from torch.utils.data import DataLoader, Dataset

from hw1lib.data import images as image_files
from hw1lib.errors import UserError


class ArrayBatches:
    """Shuffled batches of tensors that are in memory already.

    Args:
        tensors: tensors of one length, such as uint8 images and labels.
        batch_size: images a batch; what is left at the end of an epoch is dropped unless it is
            all there is, as BatchNorm wants full batches.
        seed: of the order.
        device: where batches are moved.
        prepare: function of a batch's tensors, such as augmentation; its result is the batch.
        names: of the files behind the tensors' rows.
    """

    def __init__(self, tensors, batch_size, seed, device, prepare=None, names=()):
        self.tensors = tensors
        self.batch_size = min(batch_size, len(tensors[0]))
        self.seed = seed
        self.device = device
        self.prepare = prepare or (lambda *batch: batch)
        self.names = names
        self._chosen = ()

    def __len__(self):
        return len(self.tensors[0]) // self.batch_size

    def __call__(self, epoch, start=0):
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(len(self.tensors[0]), generator=generator)
        for step in range(start, len(self)):
            self._chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            batch = [t[self._chosen].to(self.device, non_blocking=True) for t in self.tensors]
            yield self.prepare(*batch)

    def files(self):
        """Names of the files in the last batch."""
        return [self.names[i] for i in self._chosen] if self.names else []


class FileBatches:
    """Shuffled batches of image files, each through a transform of PIL images.

    NOTE: only with workers, whose draws are their own, is a run that was stopped inside an epoch
    resumed to the bit.
    """

    def __init__(self, split, transform, batch_size, seed, device, workers=2):
        self.split = split
        self.transform = transform
        self.batch_size = min(batch_size, len(split))
        self.seed = seed
        self.device = device
        self.workers = workers
        self._chosen = ()

    def __len__(self):
        return len(self.split) // self.batch_size

    def __call__(self, epoch, start=0):
        how = dict(shuffle=True, drop_last=True, num_workers=self.workers)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        loader = DataLoader(_Files(self.split, self.transform), self.batch_size, generator=generator, **how)
        # The workers' draws depend on the batches before: those are made again, and left out.
        try:
            for images, labels, self._chosen in itertools.islice(loader, start, None):
                yield images.to(self.device), labels.to(self.device)
        except UserError as error:  # a worker's comes with its whole traceback
            raise UserError(str(error).rpartition("UserError: ")[2].removesuffix("\\n")) from None

    def files(self):
        """Names of the files in the last batch."""
        return [self.split.files[i] for i in self._chosen]


class _Files(Dataset):
    def __init__(self, split, transform):
        self.paths = split.paths
        self.labels = split.labels
        self.transform = transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        label = -1 if self.labels is None else int(self.labels[index])
        return self.transform(image_files.open_rgb(self.paths[index])), label, index
