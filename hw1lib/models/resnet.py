"""The ResNet50 backbone, and the classifier that settings A–E share."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from hw1lib.models import fast_conv

FEATURES = 2048  # channels after ResNet50's average pooling


def backbone(scale=1.0, zero_init_residual=False):
    """Build a ResNet50 with random weights.

    Args:
        scale: 1 for the real network; less gives one block per stage and narrower bottlenecks with the same 2048
            outputs, for tests.
        zero_init_residual: whether the last BatchNorm of each block starts at zero, so that the block starts as the
            identity (Goyal et al. 2017, as in the SimSiam authors' code).

    Returns:
        torchvision's ResNet. Only byol-pytorch's forward runs its fc layer.
    """
    blocks, width = ([3, 4, 6, 3], 64) if scale == 1 else ([1, 1, 1, 1], max(8, int(64 * scale)))
    network = ResNet(Bottleneck, blocks, width_per_group=width, zero_init_residual=zero_init_residual)
    network.fc.requires_grad_(False)  # no loss depends on it, and DDP waits for the gradient of each parameter
    return fast_conv.use_in(network)


def features(network, images):
    """Compute pooled features: (B, 3, S, S) float images -> (B, 2048)."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))  # (B, 64, S/4, S/4)
    x = network.layer4(network.layer3(network.layer2(network.layer1(x))))  # (B, 2048, S/32, S/32)
    return torch.flatten(network.avgpool(x), 1)


class Head(nn.Module):
    """The original report's classifier: Conv1d(2048, 256, 1), ReLU, Dropout(0.5), Linear(256, classes).

    Frozen features need `standardise_by`: those of a random network are scaled so badly that a head cannot train.
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
        """Set the mean and standard deviation that standardise inputs to those of (N, inputs) training features.

        Deviations are at least a tenth of their average, so that nearly constant features are not amplified.
        """
        deviation = features.std(dim=0)
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(deviation.clamp_min(0.1 * deviation.mean().clamp_min(1e-6)))

    def activations(self, features):
        """Compute the input of the last layer: (B, inputs) features -> (B, hidden)."""
        x = (features - self.mean) / self.deviation
        hidden = F.linear(x, self.conv.weight.squeeze(-1), self.conv.bias)  # faster than Conv1d on CPUs
        return self.dropout(self.relu(hidden))

    def scores(self, activations):
        """Compute class scores in float32, also under autocast: (B, hidden) -> (B, classes)."""
        device = "cpu" if activations.is_meta else activations.device.type  # autocast does not know the meta device
        with torch.autocast(device, enabled=False):
            return self.linear(activations.float())

    def forward(self, features):
        return self.scores(self.activations(features))


class Classifier(nn.Module):
    """A backbone with a head; a frozen backbone stays in eval mode and gets no gradients."""

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
            self.backbone.eval()  # otherwise BatchNorm's running statistics would drift
        return self

    def features(self, images):
        """Compute pooled features as the function `features` does, without gradients if the backbone is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return features(self.backbone, images)

    def forward(self, images):
        return self.head(self.features(images))  # (B, 3, S, S) -> (B, classes)
