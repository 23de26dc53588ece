"""The average of a network's weights: its formula, and which of the two networks is run."""

import copy

import pytest
import torch
from torch import nn

from hw1lib.loops import loop
from hw1lib.models.ema import Averaged
from hw1lib.settings import Optimization


def network():
    """A network with weights, running statistics and a counter."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))


def images():
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def perturb(module, seed):
    """Change all tensors of a module, as a training step might; return a copy of them."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        value += torch.rand(value.shape, generator=generator) if value.is_floating_point() else 1 + seed
    return copy.deepcopy(module.state_dict())


def assert_state(module, expected, tolerance=0.0):
    torch.testing.assert_close(dict(module.state_dict()), dict(expected), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_is_the_recursion_with_its_warm_up(decay):
    """It starts as the network; after n steps the decay is at most (1 + n) / (10 + n); counters are copied."""
    model = Averaged(network(), decay)
    expected = copy.deepcopy(model.network.state_dict())
    assert_state(model.average, expected)
    for step in range(1, 40):
        online, weight = perturb(model.network, step), min(decay, (1 + step) / (10 + step))
        for name, value in online.items():
            expected[name] = torch.lerp(value, expected[name], weight) if value.is_floating_point() else value
        model.follow(step)
        assert_state(model.network, online)
    assert_state(model.average, expected, 1e-4)


def test_training_runs_the_network_and_evaluation_the_average():
    """Neither changes the other; only the network's BatchNorm counts batches."""
    model = Averaged(network(), 0.9)
    perturb(model.network, 1)
    states = {True: model.network.state_dict(), False: model.average.state_dict()}
    for mode in (True, False, True):
        reference = network()
        reference.load_state_dict(states[mode])
        other = copy.deepcopy(states[not mode])
        assert torch.equal(model.train(mode)(images()), reference.train(mode)(images()))
        assert_state(model.average if mode else model.network, other)
    assert model.network[1].num_batches_tracked == 2 + 2  # `perturb` added two


def test_the_average_is_not_trained():
    """Not even by weight decay."""
    model = Averaged(network(), 0.9)
    before = copy.deepcopy(model.average.state_dict())
    optimizer = loop.make_optimizer(model, Optimization(optimizer="adamw", weight_decay=0.5, lr=0.1))
    model.train()(images()).square().mean().backward()
    optimizer.step()
    assert_state(model.average, before)
    assert all(p.grad is not None for p in model.network.parameters())
    assert not torch.equal(model.network[0].weight, model.average[0].weight)
    assert not model.eval()(images()).requires_grad
