"""ResNet50 backbone and the one head that all settings A–E share."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from hw1lib.models import fast_conv

FEATURES = 2048  # channels that ResNet50's average pooling gives


def backbone(scale=1.0, zero_init_residual=False):
    """A ResNet50 with random weights.

    Args:
        scale: 1 for the real network; less gives one block a stage and narrower bottlenecks
            with the same 2048 outputs, for tests.
        zero_init_residual: whether the last BatchNorm of each block starts at zero, so that the
            block begins as identity (Goyal et al. 2017; the SimSiam authors' code has it, too).

    Returns:
        torchvision's ResNet with its own fc layer, which only byol-pytorch's call runs through.
    """
    blocks, width = ([3, 4, 6, 3], 64) if scale == 1 else ([1, 1, 1, 1], max(8, int(64 * scale)))
    network = ResNet(Bottleneck, blocks, width_per_group=width, zero_init_residual=zero_init_residual)
    network.fc.requires_grad_(False)  # no loss depends on it, and processes wait for each gradient
    return fast_conv.quicken(network)


def features(network, images):
    """The backbone's pooled features: (B, 3, S, S) float images -> (B, 2048)."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))  # (B, 64, S/4, S/4)
    x = network.layer4(network.layer3(network.layer2(network.layer1(x))))  # (B, 2048, S/32, S/32)
    return torch.flatten(network.avgpool(x), 1)


class Head(nn.Module):
    """The original's classifier: Conv1d(2048, 256, 1), ReLU, Dropout(0.5), Linear(256, classes).

    Its input may be standardised by a fixed mean and deviation (see `standardise_by`), which
    frozen features need: those of a random network are scaled so badly that nothing trains.
    """

    def __init__(self, classes, inputs=FEATURES, hidden=256, dropout=0.5):
        super().__init__()
        self.conv = nn.Conv1d(inputs, hidden, 1)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, classes)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))

    def standardise_by(self, features):
        """Fixes mean and deviation from the training features, (N, inputs).

        Nearly constant features are not blown up: no deviation counts as less than a tenth of
        the average one.
        """
        deviation = features.std(dim=0)
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(deviation.clamp_min(0.1 * deviation.mean().clamp_min(1e-6)))

    def activations(self, features):
        """The second-last layer's output: what enters the last Linear, (B, 2048) -> (B, 256)."""
        x = (features - self.mean) / self.deviation
        hidden = F.linear(x, self.conv.weight.squeeze(-1), self.conv.bias)  # the Conv1d, several times as quick on CPUs
        return self.dropout(self.relu(hidden))

    def scores(self, activations):
        """The last layer, in float32 wherever the others run: (B, hidden) -> (B, classes)."""
        device = "cpu" if activations.is_meta else activations.device.type  # no autocast on meta
        with torch.autocast(device, enabled=False):
            return self.linear(activations.float())

    def forward(self, features):
        return self.scores(self.activations(features))


class Classifier(nn.Module):
    """A backbone under the head; a frozen one stays in eval mode and gets no gradient."""

    def __init__(self, backbone, head, frozen=False):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = frozen
        backbone.requires_grad_(not frozen)
        backbone.fc = nn.Identity()
        self.train()

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.backbone.eval()  # else BatchNorm's running statistics would drift
        return self

    def features(self, images):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return features(self.backbone, images)

    def forward(self, images):
        return self.head(self.features(images))  # (B, 3, S, S) -> (B, classes)
