"""Pre-training of the backbone: self-supervised (BYOL) and supervised (labels of the pool)."""

import torch
import torch.nn.functional as F
from torch import nn

from hw1lib.data import images as image_files
from hw1lib.errors import UserError
from hw1lib.loops import augment, training
from hw1lib.loops.batches import ArrayBatches, FileBatches
from hw1lib.loops.probe import probe_of
from hw1lib.models import byol, classifier, weights
from hw1lib.results import representation


def self_supervised(draft, problem1, profile, device):
    """Step `pretrain`: BYOL on the unlabelled pool; keeps the last backbone, not the best loss."""
    settings, size = profile.pretrain, profile.data.image_size
    pool = problem1.pool
    if len(pool) < 2:
        raise UserError(f"{pool.folder} needs at least two images for pre-training.")
    probe, rest = probe_of(pool, size, device)
    pool = rest if settings.hold_out else pool
    training.seed_everything(profile.seed, 0)
    backbone = classifier.backbone(profile.model_scale, settings.zero_init_residual)
    backbone.to(device, memory_format=torch.channels_last)
    before = probe(backbone)
    if settings.augmentation == "original":
        batches, views = _file_batches(pool, profile, settings, device), None
    else:
        views = augment.two_views(size, settings, profile.data.overhead)
        images = torch.from_numpy(image_files.load(pool, size))
        batches = ArrayBatches(
            [images], settings.batch_size, profile.seed, device, names=pool.files
        )
    learner = byol.learner(backbone, size, settings, views).to(device)

    def follow(share):
        if settings.one_pass:
            byol.follow(learner, byol.decay(settings.moving_average_decay, share))
        else:
            learner.update_moving_average()

    history = training.train(
        learner,
        lambda images, *_: byol.loss(learner, images) if settings.one_pass else learner(images),
        batches,
        settings,
        device,
        seed=profile.seed,
        name=draft.step,
        evaluate=lambda epoch: probe(backbone),
        after_step=follow if settings.use_momentum else None,
        checkpoint=draft.checkpoint,
        checkpoint_every=profile.checkpoint_every,
        watch=draft.watch,
    )
    draft.weights(without_fc(backbone))
    draft.history(history)
    last = history[-1]
    collapsed = representation.collapsed(last)
    if collapsed:
        training.say(
            f"{draft.step}  collapsed: the backbone says nearly the same of every image. Another "
            "learning rate may help, or --set pretrain.use_momentum=true"
        )
    draft.metrics(
        {
            "source": "byol",
            "images": len(pool),
            "queries": len(probe.held_out) if probe.asks else 0,
            "before": before,
            "collapsed": collapsed,
            **last,
        }
    )


def supervised(draft, problem1, profile, device):
    """Step `pretrain-supervised`: the backbone of B and D, from where the profile says."""
    settings, file = profile.supervised, problem1.supervised_backbone
    source = settings.source
    if source == "auto":
        source = "file" if file is not None and profile.model_scale == 1 else "pool"
    if source == "pool":
        _supervised_on_pool(draft, problem1.pool, profile, device)
        return
    if profile.model_scale != 1:
        raise UserError(
            f"supervised.source={source} is a whole ResNet50, but profile {profile.name} shrinks "
            f"it (model_scale={profile.model_scale}). Choose --set supervised.source=pool."
        )
    if source == "file":
        if file is None:
            raise UserError(
                f"supervised.source=file: {problem1.pool.folder.parent.parent} has no "
                "pretrain_model_SL.pt. Put it there, or choose --set supervised.source=pool."
            )
        state, name = weights.load_backbone(file), file.name
    else:
        state, name = weights.imagenet_backbone()
    draft.weights(state)
    draft.history([])
    draft.metrics({"source": source, "file": name})


def _supervised_on_pool(draft, pool, profile, device):
    settings = profile.supervised
    if pool.labels is None:
        raise UserError(
            f"Settings B and D need a supervised backbone, but {pool.folder.parent.parent} has "
            "neither pretrain_model_SL.pt (profiles with whole networks use it) nor labels of "
            "the pool in mini/train.csv. Add one of the two (data/README.md)."
        )
    training.seed_everything(profile.seed, 0)
    backbone = classifier.backbone(profile.model_scale)
    backbone.fc = nn.Linear(classifier.FEATURES, len(pool.classes))
    backbone.to(device, memory_format=torch.channels_last)
    history = training.train(
        backbone,
        lambda images, labels: F.cross_entropy(backbone(images).float(), labels),
        labelled_batches(pool, profile, settings, device),
        settings,
        device,
        seed=profile.seed,
        name=draft.step,
        checkpoint=draft.checkpoint,
        checkpoint_every=profile.checkpoint_every,
        watch=draft.watch,
    )
    draft.weights(without_fc(backbone))
    draft.history(history)
    draft.metrics({"source": "pool", "images": len(pool), "classes": len(pool.classes)})


def labelled_batches(split, profile, settings, device):
    """Augmented training batches (images, labels) of a labelled split."""
    if settings.augmentation == "original":
        return _file_batches(split, profile, settings, device)
    data = profile.data
    views = augment.Views(data.image_size, augment.CLASSIFY, data.overhead)
    images = torch.from_numpy(image_files.load(split, data.image_size))
    return ArrayBatches(
        [images, torch.from_numpy(split.labels)], settings.batch_size, profile.seed, device,
        prepare=lambda images, labels: (views(images), labels), names=split.files,
    )


def _file_batches(split, profile, settings, device):
    transform = augment.original(profile.data.image_size)
    return FileBatches(split, transform, settings.batch_size, profile.seed, device)


def without_fc(backbone):
    """A ResNet's state without its last layer, which no setting uses."""
    return {k: v for k, v in backbone.state_dict().items() if not k.startswith("fc.")}
