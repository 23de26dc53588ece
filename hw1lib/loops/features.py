"""Frozen backbones: their features, and classification without training."""

import math

import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch.optim.swa_utils import update_bn

from hw1lib.loops import distributed
from hw1lib.loops.device import autocast, to_device
from hw1lib.loops.normalisation import normalise
from hw1lib.loops.seeds import seed_everything
from hw1lib.models import resnet


def initial_backbone(profile, pretrained=None):
    """Return the ResNet50 that a training starts from, on the CPU.

    Args:
        profile: settings.Profile; its seed determines the random weights.
        pretrained: store.Result of a pre-training, whose weights are loaded; its last layer, fc, stays random.
    """
    seed_everything(profile.seed, 0)
    backbone = resnet.backbone(profile.model_scale, profile.zero_init_residual)
    if pretrained is not None:
        backbone.load_state_dict(pretrained.weights(), strict=False)
    return backbone


@torch.no_grad()
def extract(backbone, images, device, batch=256):
    """Return features in eval mode and float32, without augmentation: (N, 3, S, S) uint8 -> (N, 2048) on the CPU.

    The backbone is left in eval mode.
    """

    def extract_shard(images):
        parts = (normalise(to_device(part, device)) for part in images.split(batch))
        return torch.cat([resnet.features(backbone, part).cpu() for part in parts])

    backbone.eval()
    with autocast("float32", device):
        return distributed.map_shards(extract_shard, images)


def calibrate(backbone, images, device, batch=256):
    """Set BatchNorm's running statistics to their mean over batches of some images; return the backbone.

    A random network's statistics are 0 and 1, which makes it an unfairly weak control. As images are often sorted by
    class, batches are drawn at random with a fixed seed. They have nearly equal sizes, as each has the same weight.

    Args:
        images: (N, 3, S, S) uint8.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split(math.ceil(len(images) / batch))
    with autocast("float32", device):
        update_bn((normalise(to_device(images[rows], device)) for rows in parts), backbone)
    return backbone


def before_and_after(images, profile, pretrained, device):
    """Return the features of some images before and after pre-training: two (N, 2048) float32 tensors.

    Args:
        images: (N, 3, S, S) uint8 tensor.
        profile: settings.Profile.
        pretrained: store.Result of step pretrain.
        device: torch device.
    """
    before = calibrate(initial_backbone(profile).to(device), images, device)
    after = initial_backbone(profile, pretrained).to(device)
    return extract(before, images, device), extract(after, images, device)


def nearest_class(bank, labels, queries, neighbours):
    """Classify by k-NN with cosine similarity: the most common class of the neighbours; ties go to the lower class.

    Args:
        bank: (N, D) features with integer labels, (N,).
        queries: (M, D) features.
        neighbours: k; N is used if it is smaller.

    Returns:
        (M,) predicted classes.
    """
    bank, queries = F.normalize(bank), F.normalize(queries)
    model = KNeighborsClassifier(min(neighbours, len(bank)), metric="cosine", algorithm="brute")
    return model.fit(bank.numpy(), labels).predict(queries.numpy())


def colour_statistics(images):
    """Return mean and standard deviation of each channel, in [0, 1]: (N, 3, S, S) uint8 -> (N, 6) float32."""
    pixels = images.float().flatten(2) / 255
    return torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)
