"""Pre-training of the backbone: self-supervised (BYOL), or supervised with the labels of the pool."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import progress
from hw1lib.data import images as image_files
from hw1lib.loops import augment, classification, distributed, features, loop
from hw1lib.loops.batches import ArrayBatches
from hw1lib.loops.checkpoint import Checkpoint
from hw1lib.loops.device import no_autocast
from hw1lib.metrics import collapse
from hw1lib.models import byol, pretrained, resnet

BANK_SIZE = 2000  # pool images whose features the probe measures, and among which it finds neighbours
QUERIES = 500  # pool images that the k-NN probe classifies, at most a tenth of the pool
NEIGHBOURS = 20
MIN_IMAGES = 10  # of a pool with a k-NN probe; with fewer, the effective rank cannot show a collapse


# --- self-supervised


def self_supervised(draft, problem1, profile, device):
    """Run step `pretrain`: BYOL on the unlabelled pool. The result is the last epoch's backbone.

    Args:
        draft: store.Draft of the step.
        problem1: layout.Problem1.
        profile: settings.Profile.
        device: torch device.
    """
    settings, size = profile.pretrain, profile.data.image_size
    probe = Probe(problem1.pool, size, device)
    pool = probe.rest if settings.hold_out else problem1.pool
    backbone = features.initial_backbone(profile).to(device, memory_format=torch.channels_last)
    before = distributed.broadcast(draft.earlier_metrics().get("before"))  # a resumed step does not probe again
    if before is None:
        before = probe(features.calibrate(copy.deepcopy(backbone), probe.images, device))
        draft.metrics({"before": before})
    original = settings.augmentation == "original"
    batches = (classification.image_batches if original else pool_batches)(pool, profile, settings, device)
    learner = byol.learner(backbone, size, settings, views(profile)).to(device)

    def batch_loss(learner, images, *_):  # batches of files have labels
        return loss(learner, images, settings)

    def update_target(epoch, step, steps):
        if not settings.use_momentum:
            return
        if settings.one_pass:
            done = (epoch - 1 + step / steps) / settings.epochs
            byol.follow(learner, byol.decay(settings.moving_average_decay, done))
        else:
            learner.update_moving_average()

    def evaluate(epoch):
        due = epoch % settings.probe_every == 0 or epoch == settings.epochs
        return probe(backbone) if due else {}

    checkpoint = Checkpoint(draft, profile.checkpoint_every)
    history = loop.train(learner, batch_loss, batches, settings, device, checkpoint, evaluate, update_target)
    draft.weights(without_fc(backbone))
    draft.history(history)
    queries = len(probe.held_out) if probe.held_out else 0
    collapsed = len(probe.bank) >= MIN_IMAGES - 1 and collapse.collapsed(history[-1])
    if collapsed:
        text = "collapsed: the backbone maps all images to nearly the same features. Try another learning rate, or"
        progress.say(draft.label, f"{text} --set pretrain.use_momentum=true", separator="  ")
    summary = {"source": "byol", "images": len(pool), "queries": queries, "before": before, "collapsed": collapsed}
    draft.metrics(summary | history[-1])


def views(profile):
    """Return the two modules that draw views of images; None where byol-pytorch draws its own."""
    if profile.pretrain.augmentation == "original":
        return None
    return augment.two_views(profile.data.image_size, profile.pretrain, profile.data.overhead)


def inputs(pool, profile):
    """Return the images of a layout.Split as inputs of the learner.

    Returns:
        (N, 3, S, S) uint8; or float32, normalised, after the original report's transforms.
    """
    size = profile.data.image_size
    if profile.pretrain.augmentation == "original":
        transform = augment.original(size)
        return torch.stack([transform(image_files.open_rgb(path)) for path in pool.paths])
    return torch.from_numpy(image_files.load(pool, size))


def pool_batches(pool, profile, settings, device):
    """Return batches of the pool's images, (B, 3, S, S) uint8; those of a part of the pool are not copied."""
    whole = pool if pool.whole is None else pool.whole
    images = [inputs(whole, profile)]
    return ArrayBatches(images, settings.micro_batch, profile.seed, device, names=whole.files, rows=pool.rows)


def loss(learner, images, settings):
    """Return the loss of pre-training, in [0, 8]: by `byol.loss` or byol-pytorch's forward pass."""
    if settings.augmentation == "original":
        distributed.share_seed()  # byol-pytorch draws one augmentation for the whole batch
    return byol.loss(learner, images) if settings.one_pass else learner(images)


class Probe:
    """Measure whether pre-training learns: k-NN accuracy inside the pool, and the spread of the features.

    Office images are not used. Without labels, or in a pool of fewer than MIN_IMAGES, there is no k-NN probe.

    Args:
        pool: layout.Split.
        size: side of the images in pixels.
        device: torch device of the backbones.

    Attributes:
        held_out: layout.Split of the images that the k-NN probe classifies, or None.
        rest: layout.Split of the other images of the pool.
        bank: layout.Split of the images whose features are measured, part of `rest`.
    """

    def __init__(self, pool, size, device):
        self.device, labelled = device, pool.labelled()
        self.held_out, self.rest, bank = None, pool, pool
        if labelled is not None and len(labelled) >= MIN_IMAGES:
            self.held_out = labelled.take(min(QUERIES, len(labelled) // 10))
            self.rest = pool.without(self.held_out)
            self.queries, bank = torch.from_numpy(image_files.load(self.held_out, size)), self.rest.labelled()
        self.bank = bank.take(BANK_SIZE)
        self.images = torch.from_numpy(image_files.load(self.bank, size))

    def __call__(self, backbone):
        """Return a dict with deviation, effective_rank and, where there are labels, knn (accuracy in [0, 1])."""
        bank = features.extract(backbone, self.images, self.device)
        spread = collapse.deviation(bank.numpy())
        numbers = {"deviation": spread, "effective_rank": collapse.effective_rank(bank.numpy())}
        if self.held_out:
            queries = features.extract(backbone, self.queries, self.device)
            predicted = features.nearest_class(bank, self.bank.labels, queries, NEIGHBOURS)
            numbers["knn"] = float((predicted == self.held_out.labels).mean())
        return numbers


# --- supervised


def supervised(draft, problem1, profile, device):
    """Run step `pretrain-supervised`: the backbone of settings B and D, from a file, ImageNet or the pool's labels."""
    source, file = supervised_source(profile, problem1), problem1.supervised_backbone
    if source == "pool":
        _train_on_labels(draft, problem1.pool.labelled(), profile, device)
        return
    if source == "file":
        state, name = pretrained.load_backbone(file), file.name
    else:
        state, name = pretrained.imagenet_backbone()
    draft.weights(state)
    draft.history([])
    draft.metrics({"source": source, "file": name})


def supervised_source(profile, problem1):
    """Return where the backbone of settings B and D comes from: file, pool or imagenet."""
    if profile.supervised.source != "auto":
        return profile.supervised.source
    return "file" if problem1.supervised_backbone is not None and profile.model_scale == 1 else "pool"


def _train_on_labels(draft, pool, profile, device):
    settings, backbone = profile.supervised, features.initial_backbone(profile)
    backbone.fc = nn.Linear(resnet.FEATURES, len(pool.classes))
    backbone.to(device, memory_format=torch.channels_last)

    def cross_entropy(backbone, images, labels):
        embeddings = resnet.features(backbone, images)
        with no_autocast(device):
            return F.cross_entropy(backbone.fc(embeddings.float()), labels)

    batches = classification.image_batches(pool, profile, settings, device)
    checkpoint = Checkpoint(draft, profile.checkpoint_every)
    history = loop.train(backbone, cross_entropy, batches, settings, device, checkpoint)
    draft.weights(without_fc(backbone))
    draft.history(history)
    draft.metrics({"source": "pool", "images": len(pool), "classes": len(pool.classes)})


def without_fc(backbone):
    """Return a ResNet's state without its last layer, which no setting uses."""
    return {name: value for name, value in backbone.state_dict().items() if not name.startswith("fc.")}
