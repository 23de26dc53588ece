"""The average of a network's weights: its formula, and which of the two networks is run."""

import copy

import pytest
import torch
from torch import nn

from hw1lib.loops import training
from hw1lib.models import average
from hw1lib.models.average import Averaged
from hw1lib.settings import Optimization


def network(seed=0):
    """Weights, running statistics and a counter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))


def images(seed=0):
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, seed):
    """Changes everything that a module holds, as a training step might."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value += torch.rand(value.shape, generator=generator)
        else:
            value += 1 + seed
    return copied(module)


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- follow


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.999, 1.0])
def test_follow_is_its_formula_for_parameters_and_statistics(decay):
    target, source = network(0), network(1)
    changed(source, 3)
    before, online = copied(target), copied(source)
    average.follow(target, source, decay)
    for name, value in target.state_dict().items():
        if value.is_floating_point():
            expected = decay * before[name] + (1 - decay) * online[name]
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(value, online[name]) and not torch.equal(value, before[name]), name
    assert_same(copied(source), online)
    kinds = {name.rpartition(".")[2] for name in before}
    assert {"running_mean", "running_var", "num_batches_tracked"} <= kinds


def test_follow_leaves_no_trace_in_the_graph():
    target, source = network(0), network(1)
    source(images()).sum().backward()
    gradients = [p.grad.clone() for p in source.parameters()]
    average.follow(target, source, 0.5)
    assert all(p.grad_fn is None and p.grad is None for p in target.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(source.parameters(), gradients))
    assert all(p.requires_grad for p in target.parameters())  # as it was


# --- the module


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_the_average_is_the_recursion_with_its_warm_up(decay):
    """It begins as the network; the n-th step's decay is at most (1 + n) / (10 + n)."""
    made = Averaged(network(), decay)
    assert_same(copied(made.average), copied(made.network))
    expected = copied(made.average)
    for step in range(1, 40):
        online = changed(made.network, step)
        made.follow(step)
        now = min(decay, (1 + step) / (10 + step))
        for name, value in online.items():
            kept = now * expected[name] + (1 - now) * value
            expected[name] = kept if value.is_floating_point() else value
    for name, value in made.average.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)


def test_early_steps_forget_the_start():
    """At a decay of 0.999 a third of it would be left after a thousand steps."""
    made = Averaged(network(), 0.999)
    with torch.no_grad():
        for value in made.network.parameters():
            value.add_(1)
    gap = [p.clone() for p in made.network.parameters()]
    for step in range(1, 51):
        made.follow(step)
    assert all((a - g).abs().max() < 1e-3 for a, g in zip(made.average.parameters(), gap))


def test_training_runs_the_network_and_evaluation_the_average():
    made = Averaged(network(), 0.9)
    changed(made.network, 1)
    plain = copy.deepcopy(made.network)
    for mode in (True, False, True):
        made.train(mode)
        chosen = (plain if mode else copy.deepcopy(made.average)).train(mode)
        assert torch.equal(made(images()), chosen(images()))
    made.eval()
    assert not torch.equal(made(images()), plain.eval()(images()))


def test_running_the_one_leaves_the_other_alone():
    """BatchNorm counts in the network only; evaluation counts nowhere."""
    made = Averaged(network(), 0.9)
    before = copied(made.average)
    made.train()(images())
    assert_same(copied(made.average), before)
    assert made.network[1].num_batches_tracked == 1
    state = copied(made)
    made.eval()(images())
    assert_same(copied(made), state)


def test_the_average_gets_no_gradient_and_shares_nothing():
    given = network()
    made = Averaged(given, 0.9)
    assert made.network is given
    made.train()(images()).square().mean().backward()
    assert all(p.grad is not None for p in made.network.parameters())
    assert all(p.grad is None and not p.requires_grad for p in made.average.parameters())
    made.eval()
    assert not made(images()).requires_grad
    pointers = [{p.data_ptr() for p in m.state_dict().values()} for m in (given, made.average)]
    assert not pointers[0] & pointers[1]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_optimizer_does_not_see_the_average(name):
    """Else weight decay alone would move it."""
    made = Averaged(network(), 0.9)
    optimizer = training.make_optimizer(
        made, Optimization(optimizer=name, weight_decay=0.5, lr=0.1)
    )
    seen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert seen == {id(p) for p in made.network.parameters()}
    before = copied(made.average)
    made.train()(images()).square().mean().backward()
    optimizer.step()
    assert_same(copied(made.average), before)


def test_both_survive_their_state(tmp_path):
    """As a checkpoint keeps them: then the average goes on from where it was."""
    made = Averaged(network(), 0.9)
    for step in (1, 2):
        changed(made.network, step)
        made.follow(step)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    again = Averaged(network(7), 0.9)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(copied(again), copied(made))
    for each in (made, again):
        changed(each.network, 3)
        each.follow(3)
    assert_same(copied(again), copied(made))
    assert not torch.equal(made.network[0].weight, made.average[0].weight)
