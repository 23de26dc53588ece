"""Whether pre-training learns: a k-NN probe inside the pool, and the spread of the embedding.

The fine-tuning task and its validation images are never looked at.
"""

import torch

from hw1lib.data import images as image_files
from hw1lib.errors import UserError
from hw1lib.loops import features
from hw1lib.metrics import collapse

BANK = 2000  # pool images whose features are watched, and neighbours found among
QUERIES = 500  # other pool images whose labels are asked for; at most a tenth of it
NEIGHBOURS = 20
FEWEST = 10  # images; of fewer there is no k-NN probe, and the effective rank cannot tell a collapse


def probe_of(pool, size, device):
    """The probe of a pool, and the pool without the images whose labels the probe asks for."""
    labelled = pool.labelled()
    if labelled is None or len(labelled) < FEWEST:
        return Probe(pool, None, size, device), pool
    held_out = labelled.take(min(QUERIES, len(labelled) // 10))
    rest = pool.without(held_out)
    return Probe(rest.labelled(), held_out, size, device), rest


class Probe:
    """Looks at a backbone's features of some pool images.

    Args:
        pool: layout.Split that neighbours are found in.
        held_out: layout.Split with labels that are asked for, or None: then there is no k-NN
            probe, only the spread.
        size: side of the images in pixels.
        device: torch device that backbones are on.
    """

    def __init__(self, pool, held_out, size, device):
        self.bank, self.held_out = pool.take(BANK), held_out
        self.device = device
        self.images = torch.from_numpy(image_files.load(self.bank, size))
        self.asks = held_out is not None
        if self.asks:
            self.queries = torch.from_numpy(image_files.load(held_out, size))

    def __call__(self, backbone):
        """Returns a dict of numbers: deviation, effective_rank and, with labels, knn."""
        bank = features.extract(backbone, self.images, self.device)
        if not bank.isfinite().all():
            raise UserError(
                "pretrain: the backbone's features are not finite any more; the training has "
                "diverged. Lower its learning rate, --set pretrain.lr=…"
            )
        spread = collapse.deviation(bank.numpy())
        numbers = {"deviation": spread, "effective_rank": collapse.effective_rank(bank.numpy())}
        if self.asks:
            queries = features.extract(backbone, self.queries, self.device)
            found = features.nearest_class(bank, self.bank.labels, queries, NEIGHBOURS)
            numbers["knn"] = float((found == self.held_out.labels).mean())
        return numbers
