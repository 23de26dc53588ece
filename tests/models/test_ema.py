"""The average of a network's weights: its formula, and which of the two networks is run."""

import copy

import pytest
import torch
from torch import nn

from hw1lib.loops import loop
from hw1lib.models.ema import Averaged
from hw1lib.settings import Optimization


def network(seed=0):
    """Weights, running statistics and a counter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))


def images():
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def changed(module, seed):
    """Changes everything that a module holds, as a training step might; returns a copy of it."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        value += torch.rand(value.shape, generator=generator) if value.is_floating_point() else 1 + seed
    return copy.deepcopy(module.state_dict())


def assert_state(module, expected, tolerance=0.0):
    torch.testing.assert_close(dict(module.state_dict()), dict(expected), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5, 0.999])
def test_the_average_is_the_recursion_with_its_warm_up(decay):
    """It begins as the network; the n-th step's decay is at most (1 + n) / (10 + n); counters are copied."""
    made = Averaged(network(), decay)
    expected = copy.deepcopy(made.network.state_dict())
    assert_state(made.average, expected)
    for step in range(1, 40):
        online, share = changed(made.network, step), min(decay, (1 + step) / (10 + step))
        for name, value in online.items():
            expected[name] = torch.lerp(value, expected[name], share) if value.is_floating_point() else value
        made.follow(step)
        assert_state(made.network, online)
    assert_state(made.average, expected, 1e-4)
    assert all(p.grad_fn is None for p in made.average.parameters())


def test_training_runs_the_network_and_evaluation_the_average():
    """Neither leaves a trace in the other; BatchNorm counts in the network only."""
    given = network()
    made = Averaged(given, 0.9)
    changed(given, 1)
    states = {True: given.state_dict(), False: made.average.state_dict()}
    for mode in (True, False, True):
        chosen = network()
        chosen.load_state_dict(states[mode])
        other = copy.deepcopy(states[not mode])
        assert torch.equal(made.train(mode)(images()), chosen.train(mode)(images()))
        assert_state(made.average if mode else made.network, other)
    assert given[1].num_batches_tracked == 2 + 2  # `changed` added two


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_average_is_not_trained(name):
    """Weight decay alone would move it; only the network gets gradients, and the two share nothing."""
    made = Averaged(network(), 0.9)
    before = copy.deepcopy(made.average.state_dict())
    optimizer = loop.make_optimizer(made, Optimization(optimizer=name, weight_decay=0.5, lr=0.1))
    made.train()(images()).square().mean().backward()
    optimizer.step()
    assert_state(made.average, before)
    assert all(p.grad is not None for p in made.network.parameters())
    assert not torch.equal(made.network[0].weight, made.average[0].weight)
    assert not made.eval()(images()).requires_grad
