"""Losses: each equals its formula, unknown pixels never contribute, and class weights follow the frequencies."""

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


def batch(seed=0):
    """Scores, and masks a third of which is unknown."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(2, 7, 8, 8, generator=generator)
    masks = torch.randint(0, UNKNOWN, (2, 8, 8), generator=generator, dtype=torch.uint8)
    masks[torch.rand(2, 8, 8, generator=generator) < 1 / 3] = UNKNOWN
    return scores, masks


def loss_and_gradient(scores, masks, kind, weights=None):
    scores = scores.detach().requires_grad_()
    value = losses.segmentation(scores, masks, kind, weights)
    value.backward()
    assert value.shape == () and value.isfinite() and scores.grad.isfinite().all()
    return value.detach(), scores.grad


@every_weight
@every_kind
def test_unknown_pixels_have_neither_loss_nor_gradient(kind, weights):
    """Whatever their scores are. If all pixels are unknown, the loss is 0."""
    scores, masks = batch()
    unknown = (masks == UNKNOWN)[:, None].expand_as(scores)
    value, gradient = loss_and_gradient(scores, masks, kind, weights)
    assert (gradient[unknown] == 0).all() and (gradient[~unknown] != 0).any()
    for filler in (-1e30, float("inf"), float("nan")):
        again = loss_and_gradient(torch.where(unknown, filler, scores), masks, kind, weights)
        assert torch.equal(again[0], value) and torch.equal(again[1], gradient)
    value, gradient = loss_and_gradient(scores, torch.full_like(masks, UNKNOWN), kind, weights)
    assert value == 0 and not gradient.any()


@every_weight
@every_kind
@pytest.mark.parametrize("scale", [1, 1e4])
def test_the_loss_is_weighted_cross_entropy_plus_lovasz(kind, weights, scale):
    """The mean is over pixels, where torch would divide by the sum of weights; also for probabilities of exactly 0."""
    scores, masks = batch(3)
    scores *= scale
    known = masks != UNKNOWN
    pixel_losses = F.cross_entropy(scores, masks.long(), reduction="none")
    expected = (pixel_losses * (1 if weights is None else weights[masks.long()]))[known].mean()
    if kind == "lovasz":
        expected += losses.lovasz(scores.softmax(1), masks.long())
    torch.testing.assert_close(loss_and_gradient(scores, masks, kind, weights)[0], expected)


def naive_lovasz(probabilities, labels):
    """Equations 8 and 9 of Berman et al. with sets of pixels, adding one error at a time."""
    total = []
    for number in set(labels):
        positives = {i for i, label in enumerate(labels) if label == number}
        errors = [1 - row[number] if i in positives else row[number] for i, row in enumerate(probabilities)]
        wrong, before, value = set(), 0.0, 0.0
        for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
            wrong.add(i)
            after = len(wrong) / len(positives | wrong)  # the Jaccard loss of these errors
            value += errors[i] * (after - before)
            before = after
        total.append(value)
    return sum(total) / len(total)


@pytest.mark.parametrize("classes", [range(6), range(7), (1, 2, 4, UNKNOWN), (0,)])
@pytest.mark.parametrize("seed", range(3))
def test_lovasz_is_the_papers_algorithm_with_its_gradient(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(len(classes), (2, 3, 4), generator=generator)]
    probabilities = (2 * torch.randn(2, 7, 3, 4, generator=generator, dtype=torch.float64)).softmax(1)
    known = labels != UNKNOWN
    expected = naive_lovasz(probabilities.movedim(1, -1)[known].tolist(), labels[known].tolist())
    assert losses.lovasz(probabilities, labels).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda p: losses.lovasz(p, labels), probabilities.requires_grad_())


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("absent", [(), (2,), (0, 4, 6), range(6)])
def test_class_weights_are_a_power_of_the_frequency_with_mean_one(balance, absent):
    """Over the known pixels; absent classes have weight 0."""
    chances = np.array([0 if c in absent else 2.0**-c for c in range(7)])
    masks = np.random.default_rng(0).choice(7, (4, 16, 16), p=chances / chances.sum()).astype(np.uint8)
    weights = losses.class_weights(masks, balance)
    assert weights.shape == (7,) and weights.dtype == torch.float32
    counts = np.bincount(masks.ravel(), minlength=7) * (np.arange(7) != UNKNOWN)
    expected = np.where(counts > 0, np.maximum(counts, 1.0) ** -balance, 0)
    expected /= max((counts * expected).sum(), 1e-9) / max(counts.sum(), 1)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
