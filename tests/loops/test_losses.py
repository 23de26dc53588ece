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
some_absent = pytest.mark.parametrize("absent", [(), (0, 3, 6), (1, 2, 3, 4, 5, 6)])
seeds = pytest.mark.parametrize("seed", range(3))


def case(seed=0, shape=(2, 8, 8)):
    """Scores of a batch and its masks, a third of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = shape
    scores = 2 * torch.randn(count, 7, height, width, generator=generator)
    masks = torch.randint(0, UNKNOWN, shape, generator=generator, dtype=torch.uint8)
    masks[torch.rand(shape, generator=generator) < 1 / 3] = UNKNOWN
    return scores.requires_grad_(), masks


def pixels(seed=0, count=60, absent=()):
    """Scores and labels of single pixels; `absent` classes are in no label."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.tensor([c for c in range(7) if c not in absent])
    labels = there[torch.randint(len(there), (count,), generator=generator)]
    return torch.randn(count, 7, generator=generator, dtype=torch.float64), labels


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
    """Whatever their scores, and wherever the known ones stand; without any of these the loss is zero."""
    scores, masks = case()
    unknown = (masks == UNKNOWN)[:, None].expand_as(scores)
    value, gradient = loss_of(scores, masks, kind, weights)
    assert (gradient[unknown] == 0).all() and (gradient[~unknown] != 0).any()
    for filler in (-1e30, float("inf"), float("nan")):
        again, same = loss_of(torch.where(unknown, filler, scores), masks, kind, weights)
        assert torch.equal(again, value) and torch.equal(same, gradient)
    known = masks != UNKNOWN
    chosen = scores.permute(0, 2, 3, 1)[known].T[None, :, None]  # (1, 7, 1, P)
    alone, _ = loss_of(chosen, masks[known][None, None], kind, weights)
    torch.testing.assert_close(alone, value)
    nothing, still = loss_of(scores, torch.full_like(masks, UNKNOWN), kind, weights)
    assert nothing == 0 and not still.any()


@every_kind
def test_a_single_known_pixel_is_enough(kind):
    scores, masks = case()
    masks.fill_(UNKNOWN)
    masks[1, 2, 3] = 4
    value, gradient = loss_of(scores, masks, kind)
    assert value > 0 and gradient.abs().sum(1).nonzero().tolist() == [[1, 2, 3]]


@every_kind
def test_sure_and_right_costs_nothing_and_scores_beyond_all_reason_stay_finite(kind):
    scores, masks = case()
    right = 100.0 * F.one_hot(masks.long(), 7).permute(0, 3, 1, 2).float()
    assert loss_of(right, masks, kind)[0].item() == pytest.approx(0, abs=1e-6)
    assert loss_of(1e4 * scores, masks, kind)[0] > 0


@every_kind
@pytest.mark.parametrize("weights", [None, F.pad(WEIGHTS[:6].clamp_min(0.3), (0, 1))])
def test_every_loss_is_learnt_by_gradient_descent(kind, weights):
    """On scores themselves: from random ones to nearly all known pixels right."""
    scores, masks = case(2)
    start = losses.segmentation(scores, masks, kind, weights)
    optimizer = torch.optim.SGD([scores], lr=20.0)
    for _ in range(100):
        optimizer.zero_grad()
        losses.segmentation(scores, masks, kind, weights).backward()
        optimizer.step()
    assert losses.segmentation(scores, masks, kind, weights) < start / 4
    known = masks != UNKNOWN
    assert (scores.argmax(1)[known] == masks[known]).float().mean() > 0.95


# --- the formulas


@every_weight
@every_kind
def test_the_loss_is_cross_entropy_and_lovasz_without_weights_is_added_to_it(kind, weights):
    """Weights multiply each pixel, and the mean is over all: torch's would divide by the weights of the batch."""
    scores, masks = case(3)
    known = masks != UNKNOWN
    single = F.cross_entropy(scores, masks.long(), reduction="none")
    expected = (single * (1 if weights is None else weights[masks.long()]))[known].mean()
    if kind == "lovasz":
        overlap = losses.lovasz(scores.softmax(1).permute(0, 2, 3, 1)[known], masks[known].long())
        expected = expected + overlap
        assert 0.1 < overlap < 1
    torch.testing.assert_close(losses.segmentation(scores, masks, kind, weights), expected)
    if kind == "cross_entropy":
        torch.testing.assert_close(losses.segmentation(scores, masks, weights=weights), expected)


@some_absent
@seeds
def test_lovasz_of_hard_predictions_is_one_less_iou(seed, absent):
    """What defines the extension: at the corners it is the Jaccard loss itself."""
    guess, labels = pixels(seed, absent=absent)
    chosen = torch.where(torch.arange(60) % 2 == 0, labels, guess.argmax(1))
    found = []
    for number in labels.unique():
        hit = ((chosen == number) & (labels == number)).sum()
        found.append(float(hit / ((chosen == number) | (labels == number)).sum()))
    assert losses.lovasz(F.one_hot(chosen, 7).double(), labels).item() == pytest.approx(1 - np.mean(found))


def naive_lovasz(probabilities, labels):
    """Eqs. 8 and 9 of Berman et al. with sets of pixels, one more error at a time."""
    total = []
    for number in sorted(set(labels.tolist())):
        there = {i for i, label in enumerate(labels.tolist()) if label == number}
        errors = [1 - float(s[number]) if i in there else float(s[number]) for i, s in enumerate(probabilities)]
        wrong, before, value = set(), 0.0, 0.0
        for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
            wrong.add(i)
            after = len(wrong) / len(there | wrong)  # the Jaccard loss of these errors
            value += errors[i] * (after - before)
            before = after
        total.append(value)
    return sum(total) / len(total)


@some_absent
@seeds
def test_lovasz_is_the_papers_algorithm_and_its_gradient_the_slope(seed, absent):
    scores, labels = pixels(seed, 20, absent)
    probabilities = (2 * scores).softmax(1).requires_grad_()
    assert losses.lovasz(probabilities, labels).item() == pytest.approx(naive_lovasz(probabilities, labels))
    assert torch.autograd.gradcheck(lambda p: losses.lovasz(p, labels), probabilities)


# --- weights of the classes


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("absent", [(), (2,), (0, 4, 6)])
def test_weights_are_a_power_of_the_frequency_and_their_mean_is_one(balance, absent):
    """Over the known pixels; what does not occur has none. At 1 each class counts alike, at 0 each pixel."""
    chances = np.array([0 if c in absent else 2.0**-c for c in range(7)])
    masks = np.random.default_rng(0).choice(7, (4, 16, 16), p=chances / chances.sum()).astype(np.uint8)
    found = losses.class_weights(masks, balance)
    assert found.shape == (7,) and found.dtype == torch.float32
    counts = np.bincount(masks.ravel(), minlength=7)[:UNKNOWN].astype(float)
    expected = np.zeros(7)
    expected[:UNKNOWN][counts > 0] = counts[counts > 0] ** -balance
    expected /= (counts * expected[:UNKNOWN]).sum() / counts.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_masks_without_a_known_pixel_give_no_weights():
    assert losses.class_weights(np.full((1, 4, 4), UNKNOWN, np.uint8), 0.5).tolist() == [0] * 7
