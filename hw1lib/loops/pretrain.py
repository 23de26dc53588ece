"""Pre-training of the backbone: self-supervised (BYOL) and supervised (labels of the pool)."""

import torch
import torch.nn.functional as F
from torch import nn

from hw1lib.data import images as image_files
from hw1lib.errors import UserError
from hw1lib.loops import augment, training
from hw1lib.loops.batches import ArrayBatches, FileBatches
from hw1lib.models import byol, classifier, weights

WATCHED = 512  # pool images whose embeddings are watched for collapse


def self_supervised(draft, problem1, profile, device):
    """Step `pretrain`: BYOL on the unlabelled pool; keeps the last backbone, not the best loss."""
    settings, data = profile.pretrain, profile.data
    if len(problem1.pool) < 2:
        raise UserError(f"{problem1.pool.folder} needs at least two images for pre-training.")
    training.seed_everything(profile.seed, 0)
    backbone = classifier.backbone(profile.model_scale)
    backbone.to(device, memory_format=torch.channels_last)
    if settings.augmentation == "original":
        batches, views = _file_batches(problem1.pool, profile, settings, device), None
    else:
        views = augment.Views(data.image_size, augment.BYOL_VIEW, data.overhead)
        images = torch.from_numpy(image_files.load(problem1.pool, data.image_size))
        batches = ArrayBatches([images], settings.batch_size, profile.seed, device)
    learner = byol.learner(backbone, data.image_size, settings, views).to(device)
    watched = image_files.load(problem1.pool.take(WATCHED), data.image_size)
    watched = torch.from_numpy(watched)

    def evaluate(epoch):
        embedded = F.normalize(features_of(backbone, watched, device), dim=1)
        return {"deviation": float(embedded.std(dim=0).mean() * embedded.shape[1] ** 0.5)}

    history = training.train(
        learner,
        lambda images, *_: learner(images),
        batches,
        settings,
        device,
        seed=profile.seed,
        name=draft.step,
        evaluate=evaluate,
        after_step=learner.update_moving_average if settings.use_momentum else None,
        checkpoint=draft.checkpoint,
        checkpoint_every=profile.checkpoint_every,
    )
    draft.weights(without_fc(backbone))
    draft.history(history)
    draft.metrics({"source": "byol", "images": len(problem1.pool), **history[-1]})


def supervised(draft, problem1, profile, device):
    """Step `pretrain-supervised`: the data's own backbone, else one trained on the pool."""
    settings = profile.supervised
    if problem1.supervised_backbone is not None and settings.source == "auto":
        draft.weights(weights.load_backbone(problem1.supervised_backbone))
        draft.history([])
        draft.metrics({"source": "file", "file": problem1.supervised_backbone.name})
        return
    pool = problem1.pool
    if pool.labels is None:
        raise UserError(
            f"Settings B and D need a supervised backbone, but {pool.folder.parent.parent} has "
            "neither pretrain_model_SL.pt nor labels of the pool in mini/train.csv. Add one of "
            "the two (data/README.md)."
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
        prepare=lambda images, labels: (views(images), labels),
    )


def _file_batches(split, profile, settings, device):
    transform = augment.original(profile.data.image_size)
    return FileBatches(split, transform, settings.batch_size, profile.seed, device)


@torch.no_grad()
def features_of(backbone, images, device, batch=256):
    """Frozen features without augmentation: (N, 3, S, S) uint8 -> (N, 2048) float32 on the CPU."""
    was_training = backbone.training
    backbone.eval()
    parts = [
        classifier.features(backbone, augment.normalise(part.to(device))).float().cpu()
        for part in images.split(batch)
    ]
    backbone.train(was_training)
    return torch.cat(parts)


def without_fc(backbone):
    """A ResNet's state without its last layer, which no setting uses."""
    return {k: v for k, v in backbone.state_dict().items() if not k.startswith("fc.")}
