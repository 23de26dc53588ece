"""Losses: each is its formula, unknown pixels never count, and classes weigh what was asked."""

import typing

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hw1lib.data.landcover import UNKNOWN
from hw1lib.loops import losses
from hw1lib.settings import Segment

WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0, 0.7, 0.0])
every_kind = pytest.mark.parametrize("kind", typing.get_args(Segment.__annotations__["loss"]))
every_weight = pytest.mark.parametrize("weights", [None, WEIGHTS])


def case(seed=0):
    """Scores of a batch and its masks, a third of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(2, 7, 8, 8, generator=generator)
    masks = torch.randint(0, UNKNOWN, (2, 8, 8), generator=generator, dtype=torch.uint8)
    masks[torch.rand(2, 8, 8, generator=generator) < 1 / 3] = UNKNOWN
    return scores, masks


def loss_of(scores, masks, kind, weights=None):
    """The loss and its gradient by the scores."""
    scores = scores.detach().requires_grad_()
    value = losses.segmentation(scores, masks, kind, weights)
    value.backward()
    assert value.shape == () and value.isfinite() and scores.grad.isfinite().all()
    return value.detach(), scores.grad


# --- unknown pixels, for every loss


@every_weight
@every_kind
def test_unknown_pixels_give_neither_loss_nor_gradient(kind, weights):
    """Whatever their scores; where all are unknown the loss is zero."""
    scores, masks = case()
    unknown = (masks == UNKNOWN)[:, None].expand_as(scores)
    value, gradient = loss_of(scores, masks, kind, weights)
    assert (gradient[unknown] == 0).all() and (gradient[~unknown] != 0).any()
    for filler in (-1e30, float("inf"), float("nan")):
        again, same = loss_of(torch.where(unknown, filler, scores), masks, kind, weights)
        assert torch.equal(again, value) and torch.equal(same, gradient)
    nothing, still = loss_of(scores, torch.full_like(masks, UNKNOWN), kind, weights)
    assert nothing == 0 and not still.any()


# --- the formulas


@every_weight
@every_kind
@pytest.mark.parametrize("scale", [1, 1e4])
def test_the_loss_is_cross_entropy_and_lovasz_without_weights_is_added_to_it(kind, weights, scale):
    """Weights multiply each pixel, and the mean is over all: torch's would divide by the weights of the batch.

    Also of scores beyond all reason, where a probability is exactly 0.
    """
    scores, masks = case(3)
    scores *= scale
    known = masks != UNKNOWN
    single = F.cross_entropy(scores, masks.long(), reduction="none")
    expected = (single * (1 if weights is None else weights[masks.long()]))[known].mean()
    if kind == "lovasz":
        expected += losses.lovasz(scores.softmax(1), masks.long())
    torch.testing.assert_close(loss_of(scores, masks, kind, weights)[0], expected)


def naive_lovasz(probabilities, labels):
    """Eqs. 8 and 9 of Berman et al. with sets of pixels, one more error at a time."""
    total = []
    for number in set(labels):
        there = {i for i, label in enumerate(labels) if label == number}
        errors = [1 - shares[number] if i in there else shares[number] for i, shares in enumerate(probabilities)]
        wrong, before, value = set(), 0.0, 0.0
        for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
            wrong.add(i)
            after = len(wrong) / len(there | wrong)  # the Jaccard loss of these errors
            value += errors[i] * (after - before)
            before = after
        total.append(value)
    return sum(total) / len(total)


@pytest.mark.parametrize("there", [range(6), range(7), (1, 2, 4, UNKNOWN), (0,)])
@pytest.mark.parametrize("seed", range(3))
def test_lovasz_is_the_papers_algorithm_and_its_gradient_the_slope(seed, there):
    """Over the known pixels alone."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(there)[torch.randint(len(there), (2, 3, 4), generator=generator)]
    probabilities = (2 * torch.randn(2, 7, 3, 4, generator=generator, dtype=torch.float64)).softmax(1)
    known = labels != UNKNOWN
    expected = naive_lovasz(probabilities.movedim(1, -1)[known].tolist(), labels[known].tolist())
    assert losses.lovasz(probabilities, labels).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda p: losses.lovasz(p, labels), probabilities.requires_grad_())


# --- weights of the classes


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("absent", [(), (2,), (0, 4, 6), range(6)])
def test_weights_are_a_power_of_the_frequency_and_their_mean_is_one(balance, absent):
    """Over the known pixels; what does not occur has none. At 1 each class counts alike, at 0 each pixel."""
    chances = np.array([0 if c in absent else 2.0**-c for c in range(7)])
    masks = np.random.default_rng(0).choice(7, (4, 16, 16), p=chances / chances.sum()).astype(np.uint8)
    found = losses.class_weights(masks, balance)
    assert found.shape == (7,) and found.dtype == torch.float32
    counts = np.bincount(masks.ravel(), minlength=7) * (np.arange(7) != UNKNOWN)
    expected = np.where(counts > 0, np.maximum(counts, 1.0) ** -balance, 0)
    expected /= max((counts * expected).sum(), 1e-9) / max(counts.sum(), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
