"""Batches, loss, evaluation and results of supervised pre-training, fine-tuning and the controls."""

import numpy as np
import torch
import torch.nn.functional as F

from hw1lib.data import images as image_files
from hw1lib.loops import augment, distributed
from hw1lib.loops.batches import ArrayBatches, FileBatches
from hw1lib.loops.device import to_device
from hw1lib.metrics import statistics


def load(problem1, profile):
    """Return the training and the validation images of Office, each (N, 3, S, S) uint8."""
    splits = problem1.train, problem1.val
    return [torch.from_numpy(image_files.load(split, profile.data.image_size)) for split in splits]


def image_batches(split, profile, settings, device):
    """Return batches of augmented, normalised images, (B, 3, S, S), and their labels, -1 for images without.

    Args:
        split: layout.Split.
        profile: settings.Profile.
        settings: settings.Optimization; its augmentation may be that of the original report.
        device: torch device of the batches.
    """
    size = profile.data.image_size
    if settings.augmentation == "original":
        files = image_files.Resized(split, size)
        return FileBatches(files, split, augment.original(size), settings.micro_batch, profile.seed, device)
    view = augment.Views(size, augment.CLASSIFY, profile.data.overhead)
    images = torch.from_numpy(image_files.load(split, size))
    return array_batches(images, split, profile, settings, device, lambda images, labels: (view(images), labels))


def array_batches(inputs, split, profile, settings, device, prepare=None):
    """Return batches of a labelled split's images or features, (N, …), and labels; `prepare` as for ArrayBatches."""
    tensors = [inputs, torch.from_numpy(split.labels)]
    return ArrayBatches(tensors, settings.micro_batch, profile.seed, device, prepare, split.files)


def cross_entropy(module, inputs, labels):
    """Return the mean cross-entropy of a classifier on a batch."""
    return F.cross_entropy(module(inputs), labels)


def evaluation(draft, head, embed, inputs, labels, epochs, device):
    """Return evaluate(epoch) for `loop.train`: validation loss, accuracy and predictions of each epoch.

    It also saves the second-last layer's activations on the training images after the first and the last epoch.

    Args:
        draft: store.Draft of the step.
        head: resnet.Head.
        embed: function of a batch of inputs on the device -> inputs of the head, (B, features).
        inputs: pair of training and validation images or features, without augmentation, on the CPU.
        labels: (N,) validation labels, NumPy.
        epochs: number of epochs of the training.
        device: torch device of the head.
    """
    labels = torch.from_numpy(labels)

    def activations(inputs):
        parts = [head.activations(embed(to_device(part, device))) for part in inputs.split(256)]  # (B, hidden)
        return torch.cat([part.float() for part in parts])

    def evaluate(epoch):
        for name, when in (("activations_first", 1), ("activations_last", epochs)):
            if epoch == when:
                draft.array(name, distributed.map_shards(activations, inputs[0]).cpu().numpy())
        logits = head.scores(distributed.map_shards(activations, inputs[1])).cpu()  # (N, classes)
        predicted = logits.argmax(dim=1)
        return {
            "val_loss": float(F.cross_entropy(logits, labels)),
            "accuracy": float((predicted == labels).double().mean()),
            "predictions": predicted.tolist(),
        }

    return evaluate


def save_results(draft, history, val, **more):
    """Save the predictions of every epoch, the history, and the accuracy of the best and the last epoch.

    Args:
        draft: store.Draft of the step.
        history: one dict for each epoch, with "epoch" and "predictions", which are removed.
        val: layout.Split of the validation images. If they all show one place, the interval is None.
        more: further metrics.
    """
    predictions = np.array([row.pop("predictions") for row in history], dtype=np.int16)  # (epochs, N)
    correct, total = (predictions == val.labels).sum(axis=1), len(val)  # (epochs,)
    best, last = int(correct.argmax()), int(correct[-1])
    interval = statistics.share(predictions[-1] == val.labels, val.groups)
    draft.array("predictions", predictions)
    draft.history(history)
    draft.metrics(
        {
            "correct": int(correct[best]),
            "total": total,
            "epoch": history[best]["epoch"],
            "accuracy": int(correct[best]) / total,
            "correct_last": last,
            "accuracy_last": last / total,
            "interval_last": [None if np.isnan(end) else end for end in interval],
            **more,
        }
    )
