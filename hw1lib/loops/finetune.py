"""Fine-tuning on Office: settings A–E, and the controls that they must beat."""

import numpy as np
import torch
import torch.nn.functional as F

from hw1lib.data import images as image_files
from hw1lib.loops import augment, distributed, features, loop
from hw1lib.loops.batches import ArrayBatches
from hw1lib.loops.device import send
from hw1lib.loops.pretrain import initial, labelled_batches
from hw1lib.metrics import statistics
from hw1lib.models import resnet
from hw1lib.variants import ROWS


def run(draft, problem1, profile, device, pretrained=None, *, setting):
    """Steps `finetune-A` … `finetune-E` and `control-random`.

    Args:
        draft: store.Draft of the step.
        problem1: layout.Problem1.
        profile: settings.Profile.
        device: torch device.
        pretrained: store.Result of the pre-training; None for a random backbone.
        setting: A … E or random.
    """
    settings, frozen = profile.finetune, ROWS[setting].frozen
    network = _backbone(profile, pretrained)
    head = resnet.Head(len(problem1.classes), hidden=settings.hidden, dropout=settings.dropout)
    model = resnet.Classifier(network, head, frozen)
    model.to(device, memory_format=torch.channels_last)

    inputs = pixels_of(problem1, profile)
    if frozen and pretrained is None:
        features.calibrate(network, inputs[0], device)
    if frozen:  # the features never change, so they are computed once
        inputs = [features.extract(network, images, device) for images in inputs]
        if settings.standardise:
            head.standardise_by(inputs[0].to(device))
    if frozen and not settings.augment_frozen:
        module, batches = head, _feature_batches(inputs[0], problem1.train, profile, device)
    else:
        module, batches = model, labelled_batches(problem1.train, profile, settings, device)

    def embed(images):
        return images if frozen else model.features(augment.normalise(images))

    history = _fit(draft, module, head, embed, batches, inputs, problem1, profile, device)
    draft.weights(model)
    finish(draft, history, problem1)


def colour(draft, problem1, profile, device):
    """Step `control-colour`: the same head on mean and standard deviation of each colour channel."""
    loop.seed_everything(profile.seed, 0)
    settings = profile.finetune
    inputs = [features.colour_statistics(images) for images in pixels_of(problem1, profile)]
    head = resnet.Head(len(problem1.classes), inputs[0].shape[1], settings.hidden, settings.dropout)
    head.standardise_by(inputs[0])
    head.to(device)
    batches = _feature_batches(inputs[0], problem1.train, profile, device)
    history = _fit(draft, head, head, lambda found: found, batches, inputs, problem1, profile, device)
    finish(draft, history, problem1)


def knn(draft, problem1, profile, device, pretrained):
    """Step `control-knn`: k-NN by cosine on frozen features; no training.

    On the self-supervised features and, to know what they are worth, on those of the random
    backbone that setting A starts from.
    """
    images, truth = pixels_of(problem1, profile), problem1.val.labels
    found = {}
    for source, result in (("pretrain", pretrained), ("random", None)):
        network = _backbone(profile, result).to(device, memory_format=torch.channels_last)
        if result is None:
            features.calibrate(network, images[0], device)
        train, val = (features.extract(network, part, device) for part in images)
        found[source] = features.nearest_class(train, problem1.train.labels, val, profile.controls.knn)
    draft.array("predictions_random", found["random"].astype(np.int16)[None])
    right = int((found["random"] == truth).sum())
    row = {"epoch": 0, "predictions": found["pretrain"].tolist()}
    finish(draft, [row], problem1, correct_random=right, accuracy_random=right / len(truth))


def pixels_of(problem1, profile):
    """The training and the validation images, each an (N, 3, S, S) uint8 tensor."""
    splits = problem1.train, problem1.val
    return [torch.from_numpy(image_files.load(split, profile.data.image_size)) for split in splits]


def _backbone(profile, pretrained):
    """A backbone with a result's weights; without one, the random one of the profile's seed."""
    network = initial(profile)
    if pretrained is not None:
        network.load_state_dict(pretrained.weights(), strict=False)  # all but fc
    return network


def _loss(module, inputs, labels):
    return F.cross_entropy(module(inputs), labels)


def _feature_batches(features, split, profile, device):
    tensors, size = [features, torch.from_numpy(split.labels)], profile.finetune.micro_batch
    return ArrayBatches(tensors, size, profile.seed, device, names=split.files)


def _fit(draft, module, head, embed, batches, inputs, problem1, profile, device):
    """Trains; notes the validation predictions after each epoch, and the training images' activations after two.

    Args:
        module: what is trained: the head, or the whole classifier.
        head: classifier.Head.
        embed: function of a part of `inputs` on the device -> what enters the head, (B, features).
        batches: of `module`'s inputs and labels.
        inputs: training and validation images or features, without augmentation.
    """
    settings, labels = profile.finetune, torch.from_numpy(problem1.val.labels)

    def second_last(inputs):
        parts = [head.activations(embed(send(part, device))) for part in inputs.split(256)]  # each (B, hidden)
        return torch.cat([part.float() for part in parts])

    def evaluate(epoch):
        for name, at in (("activations_first", 1), ("activations_last", settings.epochs)):
            if epoch == at:
                draft.array(name, distributed.sharded(second_last, inputs[0]).cpu().numpy())
        logits = head.scores(distributed.sharded(second_last, inputs[1])).cpu()  # (N, classes)
        predicted = logits.argmax(dim=1)
        return {
            "val_loss": float(F.cross_entropy(logits, labels)),
            "accuracy": float((predicted == labels).double().mean()),
            "predictions": predicted.tolist(),
        }

    step = loop.for_step(draft, profile)
    return loop.train(module, _loss, batches, settings, device, evaluate=evaluate, **step)


def finish(draft, history, problem1, **more):
    """Saves the predictions of every epoch, and the accuracy of the best and of the last one.

    The interval of the last one is None where all images show one place.
    """
    predictions = np.array([row.pop("predictions") for row in history], dtype=np.int16)  # (epochs, N)
    correct = (predictions == problem1.val.labels).sum(axis=1)  # (epochs,)
    best, total = int(correct.argmax()), len(problem1.val)
    draft.array("predictions", predictions)
    draft.history(history)
    right, last = int(correct[best]), int(correct[-1])
    interval = statistics.share(predictions[-1] == problem1.val.labels, problem1.val.groups)
    interval = [None if np.isnan(end) else end for end in interval]
    found = {"correct": right, "total": total, "epoch": history[best]["epoch"], "accuracy": right / total}
    draft.metrics(found | {"correct_last": last, "accuracy_last": last / total, "interval_last": interval} | more)
