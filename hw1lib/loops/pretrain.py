"""Pre-training of the backbone: self-supervised (BYOL) and supervised (labels of the pool)."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from hw1lib import progress
from hw1lib.data import images as image_files
from hw1lib.loops import augment, distributed, features, loop
from hw1lib.loops.batches import ArrayBatches, FileBatches
from hw1lib.loops.device import exact
from hw1lib.loops.probe import FEWEST, probe_of
from hw1lib.metrics import collapse
from hw1lib.models import byol, pretrained, resnet


def self_supervised(draft, problem1, profile, device):
    """Step `pretrain`: BYOL on the unlabelled pool; keeps the last backbone, not the best loss."""
    settings, size = profile.pretrain, profile.data.image_size
    pool = problem1.pool
    probe, rest = probe_of(pool, size, device)
    pool = rest if settings.hold_out else pool
    backbone = initial(profile).to(device, memory_format=torch.channels_last)
    before = probe(features.calibrate(copy.deepcopy(backbone), probe.images, device))
    make = _file_batches if settings.augmentation == "original" else pool_batches
    batches = make(pool, profile, settings, device)
    learner = byol.learner(backbone, size, settings, views(profile)).to(device)

    def follow(done):
        if settings.one_pass:
            byol.follow(learner, byol.decay(settings.moving_average_decay, done))
        else:
            learner.update_moving_average()

    def step_loss(learner, images, *_):
        return loss(learner, images, settings)

    def evaluate(epoch):
        due = epoch % settings.probe_every == 0 or epoch == settings.epochs
        return probe(backbone) if due else {}

    after, step = follow if settings.use_momentum else None, loop.for_step(draft, profile)
    history = loop.train(learner, step_loss, batches, settings, device, evaluate=evaluate, after_step=after, **step)
    draft.weights(without_fc(backbone))
    draft.history(history)
    queries = len(probe.held_out) if probe.asks else 0
    collapsed = len(probe.bank) >= FEWEST - 1 and collapse.collapsed(history[-1])
    if collapsed:
        progress.say(
            draft.label,
            "collapsed: the backbone says nearly the same of every image. Another "
            "learning rate may help, or --set pretrain.use_momentum=true",
            separator="  ",
        )
    found = {"source": "byol", "images": len(pool), "queries": queries, "before": before, "collapsed": collapsed}
    draft.metrics(found | history[-1])


def initial(profile):
    """The backbone that every training starts from, and the random control: random weights, by the profile's seed."""
    loop.seed_everything(profile.seed, 0)
    return resnet.backbone(profile.model_scale, profile.zero_init_residual)


def views(profile):
    """The two modules that draw the views of each image, or None where the package draws its own."""
    if profile.pretrain.augmentation == "original":
        return None
    return augment.two_views(profile.data.image_size, profile.pretrain, profile.data.overhead)


def inputs(pool, profile):
    """The images of a layout.Split as the learner takes them.

    Returns:
        (N, 3, S, S) uint8; where the original's transforms run first, float32, normalised.
    """
    size = profile.data.image_size
    if profile.pretrain.augmentation == "original":
        transform = augment.original(size)
        return torch.stack([transform(image_files.open_rgb(path)) for path in pool.paths])
    return torch.from_numpy(image_files.load(pool, size))


def pool_batches(pool, profile, settings, device):
    """Batches of the pool's images, (B, 3, S, S) uint8, without labels; a part of it is not copied out of the whole."""
    whole = pool if pool.whole is None else pool.whole
    images = [inputs(whole, profile)]
    return ArrayBatches(images, settings.micro_batch, profile.seed, device, names=whole.files, rows=pool.rows)


def loss(learner, images, settings):
    """What pre-training minimises: our forward pass or the package's own, in [0, 8]."""
    if settings.augmentation == "original" and distributed.count() > 1:
        torch.manual_seed(distributed.common.initial_seed())  # the package draws once for all of the batch
    return byol.loss(learner, images) if settings.one_pass else learner(images)


def supervised(draft, problem1, profile, device):
    """Step `pretrain-supervised`: the backbone of B and D, from where the profile says."""
    source, file = supervised_source(profile, problem1), problem1.supervised_backbone
    if source == "pool":
        _supervised_on_pool(draft, problem1.pool, profile, device)
        return
    if source == "file":
        state, name = pretrained.load_backbone(file), file.name
    else:
        state, name = pretrained.imagenet_backbone()
    draft.weights(state)
    draft.history([])
    draft.metrics({"source": source, "file": name})


def supervised_source(profile, problem1):
    """Where the backbone of B and D comes from: file, pool or imagenet."""
    if profile.supervised.source != "auto":
        return profile.supervised.source
    return "file" if problem1.supervised_backbone is not None and profile.model_scale == 1 else "pool"


def _supervised_on_pool(draft, pool, profile, device):
    settings, pool = profile.supervised, pool.labelled()
    backbone = initial(profile)
    backbone.fc = nn.Linear(resnet.FEATURES, len(pool.classes))
    backbone.to(device, memory_format=torch.channels_last)

    def loss(backbone, images, labels):
        found = resnet.features(backbone, images)
        with exact(device):
            return F.cross_entropy(backbone.fc(found.float()), labels)

    batches = labelled_batches(pool, profile, settings, device)
    history = loop.train(backbone, loss, batches, settings, device, **loop.for_step(draft, profile))
    draft.weights(without_fc(backbone))
    draft.history(history)
    draft.metrics({"source": "pool", "images": len(pool), "classes": len(pool.classes)})


def labelled_batches(split, profile, settings, device):
    """Augmented training batches of a labelled split: (B, 3, S, S) normalised images and (B,) labels."""
    if settings.augmentation == "original":
        return _file_batches(split, profile, settings, device)

    size = profile.data.image_size
    view = augment.Views(size, augment.CLASSIFY, profile.data.overhead)
    tensors = [torch.from_numpy(image_files.load(split, size)), torch.from_numpy(split.labels)]

    def prepare(images, labels):
        return view(images), labels

    return ArrayBatches(tensors, settings.micro_batch, profile.seed, device, prepare, split.files)


def _file_batches(split, profile, settings, device):
    size = profile.data.image_size
    return FileBatches(split, size, augment.original(size), settings.micro_batch, profile.seed, device)


def without_fc(backbone):
    """A ResNet's state without its last layer, which no setting uses."""
    return {k: v for k, v in backbone.state_dict().items() if not k.startswith("fc.")}
