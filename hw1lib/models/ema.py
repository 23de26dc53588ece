"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


@torch.no_grad()
def follow(average, network, decay):
    """Set `average` to decay · average + (1 - decay) · network, in place; both have the same structure.

    This includes BatchNorm's running statistics; integer counters are copied.
    """
    pairs = list(zip(average.state_dict().values(), network.state_dict().values()))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_(*map(list, zip(*floats)), 1 - decay)
    if counters := [pair for pair in pairs if not pair[0].is_floating_point()]:
        torch._foreach_copy_(*map(list, zip(*counters)))


class Averaged(nn.Module):
    """A network for training, and the average of its weights for evaluation (Polyak and Juditsky 1992).

    A call runs the network in training mode, and the average in eval mode.

    Args:
        network: nn.Module to train.
        decay: decay of the average; at most (1 + n) / (10 + n) after n steps, so that the random initial weights are
            soon forgotten.
    """

    def __init__(self, network, decay):
        super().__init__()
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay

    def forward(self, images):
        return (self.network if self.training else self.average)(images)

    def follow(self, step):
        """Update the average after optimizer step number `step`, counted from 1."""
        follow(self.average, self.network, min(self.decay, (1 + step) / (10 + step)))
