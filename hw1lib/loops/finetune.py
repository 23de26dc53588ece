"""Fine-tuning on Office: settings A–E, and the control `random` (a frozen random backbone)."""

import torch

from hw1lib.loops import augment, classification, features, loop
from hw1lib.loops.checkpoint import Checkpoint
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
    settings, frozen = profile.finetune, ROWS[setting].frozen
    backbone = features.initial_backbone(profile, pretrained)
    head = resnet.Head(len(problem1.classes), hidden=settings.hidden, dropout=settings.dropout)
    model = resnet.Classifier(backbone, head, frozen)
    model.to(device, memory_format=torch.channels_last)

    images = inputs = classification.load(problem1, profile)
    if frozen:  # the features never change, so they are computed once
        if pretrained is None:
            features.calibrate(backbone, images[0], device)
        inputs = [features.extract(backbone, split, device) for split in images]
        if settings.standardise:
            head.standardise_by(inputs[0].to(device))

    if frozen and not settings.augment_frozen:
        module, batches = head, classification.array_batches(inputs[0], problem1.train, profile, settings, device)
    else:
        module, batches = model, classification.image_batches(problem1.train, profile, settings, device)

    def embed(inputs):
        return inputs if frozen else model.features(augment.normalise(inputs))

    evaluate = classification.evaluation(draft, head, embed, inputs, problem1.val.labels, settings.epochs, device)
    checkpoint = Checkpoint(draft, profile.checkpoint_every)
    history = loop.train(module, classification.cross_entropy, batches, settings, device, checkpoint, evaluate)
    draft.weights(model)
    classification.save_results(draft, history, problem1.val)
