"""Several processes on one step: what they compute is what one would, up to rounding."""

import numpy as np
import pytest
import torch
from torch import nn

from hw1lib import parallel, profiles
from hw1lib.data import layout
from hw1lib.loops import training
from hw1lib.steps.graph import Steps
from hw1lib.steps.store import Store
from tests import processes

CPU = torch.device("cpu")
BATCH = 10  # on three processes 3, 3 and 4
TINY = {"model_scale": 0.125, "checkpoint_every": 1e9, "data.tile_limit": 0}


# --- BatchNorm


def normalised(maps, affine):
    """Outputs, gradients and running statistics of two steps on this process's part, with channels of any kind."""
    torch.manual_seed(0)
    norm = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(4, affine=affine)
    values = torch.randn(BATCH, 4, *(5, 6) * maps) * 3 + 100
    mine = values[parallel.part(BATCH)].requires_grad_()
    parallel.synchronise(norm, CPU)
    for _ in range(2):
        found = norm(mine)
    weight = torch.arange(1, BATCH + 1)[parallel.part(BATCH)].view(-1, 1, *(1, 1) * maps)
    parallel.joined((found.sin() * weight).flatten(1).sum(1, keepdim=True), BATCH).sum().backward()
    state = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    with torch.no_grad():
        outputs, gradient = (parallel.joined(part, BATCH) for part in (found, mine.grad))
    evaluated = norm.eval()(mine)
    return outputs, gradient / parallel.count(), state, parallel.joined(evaluated.detach(), BATCH)


@pytest.mark.parametrize(("maps", "affine"), [(True, True), (False, False)])
def test_batchnorm_over_all_processes_is_that_of_the_whole_batch(tmp_path, maps, affine):
    """In outputs, gradients and running statistics, for parts that differ in size."""
    expected = normalised(maps, affine)
    for found in processes.run(3, normalised, maps, affine, folder=tmp_path):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- trainings


def trained(root, out, step, chosen):
    """The losses of all optimizer steps, and the step's history."""
    losses, note = [], training.Finite.note

    def noting(self, value, epoch, place):
        losses.append(value.item())
        note(self, value, epoch, place)

    training.Finite.note = noting
    profile = profiles.get("smoke", TINY | chosen)
    steps = Steps(profile, layout.find(root, profile.data), Store(out), CPU)
    result = steps.result(step)
    training.Finite.note = note
    return losses, result.history.drop(columns="lr").to_numpy(), result.run["processes"]


FLOAT = {"precision": "float32", "batch_size": BATCH, "optimizer": "sgd", "lr": 0.02, "warmup_epochs": 0}
CASES = {
    "BYOL": ("pretrain", {"use_momentum": False}),
    "BYOL with a target network": ("pretrain", {"use_momentum": True, "moving_average_decay": 0.9}),
    "the package's own pass": ("pretrain", {"one_pass": False, "augmentation": "original"}),
    "supervised": ("pretrain-supervised", {}),
    "LR-ASPP": ("segment-lraspp", {"average": 0.5}),
    "fine-tuning": ("finetune-A", {"dropout": 0.0}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from tests.conftest import write_course_data

    return write_course_data(tmp_path_factory.mktemp("parallel"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [2, 3])
def test_processes_take_the_steps_that_one_would(data, tmp_path, case, count):
    """Twenty of them, whose losses differ by rounding alone, and so do the numbers after each epoch."""
    step, more = CASES[case]
    group = {"segment-lraspp": "lraspp", "pretrain-supervised": "supervised"}.get(step, step.partition("-")[0])
    chosen = {f"{group}.{name}": value for name, value in (FLOAT | more).items()}
    one, several = (
        processes.run(number, trained, data, tmp_path / str(number), step, chosen, folder=tmp_path)
        for number in (1, count)
    )
    (losses, history, alone), (found, theirs, together) = one[0], several[0]
    assert len(losses) >= 20 and (alone, together) == (1, count)
    assert found == pytest.approx(losses, rel=2e-3)
    np.testing.assert_allclose(theirs, history, rtol=0.05, atol=0.05)
    assert all(other[0] == found for other in several[1:])
