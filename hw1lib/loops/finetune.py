"""Fine-tuning on Office: settings A–E, and the controls that they must beat."""

import numpy as np
import torch
import torch.nn.functional as F

from hw1lib.data import images as image_files
from hw1lib.loops import augment, features, training
from hw1lib.loops.batches import ArrayBatches
from hw1lib.loops.pretrain import labelled_batches
from hw1lib.models import classifier

# What each row of the table starts from, and whether its backbone is frozen.
PLAN = {
    "A": (None, False),
    "B": ("pretrain-supervised", False),
    "C": ("pretrain", False),
    "D": ("pretrain-supervised", True),
    "E": ("pretrain", True),
    "random": (None, True),
    "knn": ("pretrain", True),
}


def run(draft, problem1, profile, setting, backbone_weights, device):
    """Steps `finetune-A` … `finetune-E` and `control-random`.

    Args:
        draft: store.Draft of the step.
        setting: A … E or random.
        backbone_weights: state of the pre-trained backbone, or None for a random one.
    """
    settings, data = profile.finetune, profile.data
    frozen = PLAN[setting][1]
    network = _backbone(profile, backbone_weights)
    head = classifier.Head(
        len(problem1.classes), hidden=settings.hidden, dropout=settings.dropout
    )
    model = classifier.Classifier(network, head, frozen)
    model.to(device, memory_format=torch.channels_last)
    inputs = tuple(
        torch.from_numpy(image_files.load(split, data.image_size))
        for split in (problem1.train, problem1.val)
    )
    if frozen:  # the features never change, so they are computed once
        inputs = tuple(features.extract(network, images, device) for images in inputs)
        if settings.standardise:
            head.standardise_by(inputs[0].to(device))
    if frozen and not settings.augment_frozen:
        module = head
        batches = _feature_batches(inputs[0], problem1.train, profile, device)
    else:
        module = model
        batches = labelled_batches(problem1.train, profile, settings, device)
    history = _fit(draft, module, batches, inputs, problem1, profile, device, model)
    draft.weights(model)
    _finish(draft, history, problem1)


def colour(draft, problem1, profile, device):
    """Step `control-colour`: the same head on mean and deviation of each colour channel."""
    training.seed_everything(profile.seed, 0)
    size = profile.data.image_size
    inputs = tuple(
        features.colour_statistics(torch.from_numpy(image_files.load(split, size)))
        for split in (problem1.train, problem1.val)
    )
    settings = profile.finetune
    head = classifier.Head(
        len(problem1.classes), inputs[0].shape[1], settings.hidden, settings.dropout
    )
    head.standardise_by(inputs[0])
    head.to(device)
    batches = _feature_batches(inputs[0], problem1.train, profile, device)
    history = _fit(draft, head, batches, inputs, problem1, profile, device)
    _finish(draft, history, problem1)


def knn(draft, problem1, profile, backbone_weights, device):
    """Step `control-knn`: k-NN by cosine on frozen features; no training.

    On the self-supervised features and, to know what they are worth, on those of the random
    backbone that setting A starts from.
    """
    size = profile.data.image_size
    splits = (problem1.train, problem1.val)
    images = [torch.from_numpy(image_files.load(split, size)) for split in splits]
    found = {}
    for source, state in (("pretrain", backbone_weights), ("random", None)):
        network = _backbone(profile, state).to(device, memory_format=torch.channels_last)
        train, val = (features.extract(network, part, device) for part in images)
        found[source] = features.nearest_class(
            train, problem1.train.labels, val, profile.controls.knn
        )
    draft.array("predictions_random", found["random"].astype(np.int16)[None])
    right = int((found["random"] == problem1.val.labels).sum())
    _finish(
        draft, [{"epoch": 0, "predictions": found["pretrain"].tolist()}], problem1,
        correct_random=right, accuracy_random=right / len(problem1.val),
    )


def _backbone(profile, state):
    """A backbone with these weights; without any, the random one of the profile's seed."""
    training.seed_everything(profile.seed, 0)
    network = classifier.backbone(profile.model_scale)
    if state is not None:
        network.load_state_dict(state, strict=False)  # all but fc
    return network


def _loss(module):
    return lambda inputs, labels: F.cross_entropy(module(inputs).float(), labels)


def _feature_batches(features, split, profile, device):
    return ArrayBatches(
        [features, torch.from_numpy(split.labels)],
        profile.finetune.batch_size, profile.seed, device, names=split.files,
    )


def _fit(draft, module, batches, inputs, problem1, profile, device, model=None):
    """Trains, and notes after each epoch the validation predictions; keeps two activations."""
    settings = profile.finetune
    frozen = inputs[0].dtype != torch.uint8
    head = model.head if model is not None else module

    def second_last(images):
        features = images.to(device)
        if not frozen:
            features = model.features(augment.normalise(features))
        return head.activations(features)

    def evaluate(epoch):
        for name, at in (("activations_first", 1), ("activations_last", settings.epochs)):
            if epoch == at:
                parts = [second_last(part).float().cpu() for part in inputs[0].split(256)]
                draft.array(name, torch.cat(parts).numpy())
        parts = [head.linear(second_last(part)).float() for part in inputs[1].split(256)]
        logits = torch.cat(parts).cpu()
        labels = torch.from_numpy(problem1.val.labels)
        predicted = logits.argmax(dim=1)
        return {
            "val_loss": float(F.cross_entropy(logits, labels)),
            "accuracy": float((predicted == labels).double().mean()),
            "predictions": predicted.tolist(),
        }

    return training.train(
        module, _loss(module), batches, settings, device,
        seed=profile.seed, name=draft.step, evaluate=evaluate,
        checkpoint=draft.checkpoint, checkpoint_every=profile.checkpoint_every,
        watch=draft.watch,
    )


def _finish(draft, history, problem1, **more):
    """Saves the predictions of every epoch, and the accuracy of the best and of the last one."""
    predictions = np.array([row.pop("predictions") for row in history], dtype=np.int16)
    correct = (predictions == problem1.val.labels).sum(axis=1)  # (epochs,)
    best = int(correct.argmax())
    total = len(problem1.val)
    draft.array("predictions", predictions)
    draft.history(history)
    draft.metrics(
        {
            "correct": int(correct[best]),
            "total": total,
            "epoch": history[best]["epoch"],
            "accuracy": int(correct[best]) / total,
            "correct_last": int(correct[-1]),
            "accuracy_last": int(correct[-1]) / total,
            **more,
        }
    )
