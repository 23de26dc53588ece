"""Fine-tuning on Office: settings A–E, and the control `random` (a frozen random backbone)."""

import torch

from hw1lib.data import images as image_files
from hw1lib.loops import augment, classification, features, loop
from hw1lib.loops.batches import ArrayBatches, FileBatches
from hw1lib.loops.checkpoint import train_options
from hw1lib.models import resnet
from hw1lib.variants import ROWS


def run(draft, problem1, profile, device, pretrained=None, *, setting):
    """Run step `finetune-A` … `finetune-E` or `control-random`.

    Args:
        draft: store.Draft of the step.
        problem1: layout.Problem1.
        profile: settings.Profile.
        device: torch device.
        pretrained: store.Result of the pre-training; None for a random backbone.
        setting: A … E or random, a key of variants.ROWS.
    """
    settings, frozen, train = profile.finetune, ROWS[setting].frozen, problem1.train
    backbone = features.initial_backbone(profile, pretrained)
    head = resnet.Head(len(problem1.classes), hidden=settings.hidden, dropout=settings.dropout)
    model = resnet.Classifier(backbone, head, frozen)
    model.to(device, memory_format=torch.channels_last)

    size, labels = profile.data.image_size, torch.from_numpy(train.labels)
    images = inputs = [torch.from_numpy(image_files.load(split, size)) for split in (train, problem1.val)]
    if frozen:  # the features never change, so they are computed once
        if pretrained is None:
            features.calibrate(backbone, images[0], device)
        inputs = [features.extract(backbone, split, device) for split in images]
        if settings.standardise:
            head.standardise_by(inputs[0].to(device))

    module, options = model, (settings.micro_batch, profile.seed, device)
    if frozen and not settings.augment_frozen:
        module, batches = head, ArrayBatches([inputs[0], labels], *options, names=train.files)
    elif settings.augmentation == "original":
        batches = FileBatches(image_files.Resized(train, size), train, augment.original(size), *options)
    else:
        view = augment.Views(size, augment.CLASSIFY, profile.data.overhead)
        batches = ArrayBatches([images[0], labels], *options, lambda x, labels: (view(x), labels), train.files)

    def embed(inputs):
        return inputs if frozen else model.features(augment.normalise(inputs))

    evaluate = classification.evaluation(draft, head, embed, inputs, problem1.val.labels, settings.epochs, device)
    options = train_options(draft, profile) | {"evaluate": evaluate}
    history = loop.train(module, classification.cross_entropy, batches, settings, device, **options)
    draft.weights(model)
    classification.save_results(draft, history, problem1.val)
