"""Losses: each is its formula, unknown pixels never count, and classes weigh what was asked."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hw1lib.data.landcover import UNKNOWN
from hw1lib.loops import losses
from hw1lib.settings import Segment

KINDS = Segment.__dataclass_fields__["loss"].metadata["choices"]
SEEDS = range(5)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0, 0.7, 0.0])


def case(seed=0, shape=(2, 8, 8), unknown=1 / 3):
    """Scores of a batch and its masks, a third of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = shape
    scores = 2 * torch.randn(count, 7, height, width, generator=generator)
    masks = torch.randint(0, UNKNOWN, shape, generator=generator, dtype=torch.uint8)
    masks[torch.rand(shape, generator=generator) < unknown] = UNKNOWN
    return scores.requires_grad_(), masks


def pixels(seed=0, count=60, classes=7, absent=()):
    """Scores and labels of single pixels; `absent` classes are in no label."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.tensor([c for c in range(classes) if c not in absent])
    labels = there[torch.randint(len(there), (count,), generator=generator)]
    return torch.randn(count, classes, generator=generator, dtype=torch.float64), labels


def hard(seed, classes=7, absent=()):
    """Probabilities that are 0 or 1, right for about half of the pixels, and labels."""
    _, labels = pixels(seed, classes=classes, absent=absent)
    generator = torch.Generator().manual_seed(seed + 100)
    wrong = torch.randint(classes, labels.shape, generator=generator)
    chosen = torch.where(torch.rand(labels.shape, generator=generator) < 0.5, labels, wrong)
    return F.one_hot(chosen, classes).double(), labels, chosen


# --- unknown pixels, for every loss


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("kind", KINDS)
def test_unknown_pixels_give_neither_loss_nor_gradient(kind, weights):
    """Whatever their scores: even if those are no numbers at all."""
    scores, masks = case()
    unknown = (masks == UNKNOWN)[:, None].expand_as(scores)
    value = losses.segmentation(scores, masks, kind, weights)
    value.backward()
    assert (scores.grad[unknown] == 0).all() and (scores.grad[~unknown] != 0).any()
    for filler in (1e6, -1e30, float("inf"), float("nan")):
        other = torch.where(unknown, filler, scores.detach()).requires_grad_()
        again = losses.segmentation(other, masks, kind, weights)
        again.backward()
        assert torch.equal(again, value) and torch.equal(other.grad, scores.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_known_pixels_alone(kind):
    """Where they stand, and how many unknown ones there are, plays no part."""
    scores, masks = case(1)
    known = masks != UNKNOWN
    chosen = scores.permute(0, 2, 3, 1)[known].T[None, :, None]  # (1, 7, 1, P)
    expected = losses.segmentation(chosen, masks[known][None, None], kind, WEIGHTS)
    torch.testing.assert_close(losses.segmentation(scores, masks, kind, WEIGHTS), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_known_pixel_the_loss_is_zero_and_its_gradient_too(kind, weights):
    scores, masks = case()
    value = losses.segmentation(scores, torch.full_like(masks, UNKNOWN), kind, weights)
    value.backward()
    assert value.shape == () and value.item() == 0 and (scores.grad == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_known_pixel_is_enough(kind):
    scores, masks = case()
    masks.fill_(UNKNOWN)
    masks[1, 2, 3] = 4
    value = losses.segmentation(scores, masks, kind)
    value.backward()
    assert value.shape == () and value.isfinite() and value > 0 and scores.grad.isfinite().all()
    assert scores.grad.abs().sum(1).nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_beyond_all_reason_stay_finite(kind):
    scores, masks = case()
    huge = (1e4 * scores.detach()).requires_grad_()
    value = losses.segmentation(huge, masks, kind)
    value.backward()
    assert value.isfinite() and huge.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_sure_and_right_costs_nothing(kind):
    _, masks = case()
    right = 100.0 * F.one_hot(masks.long(), 7).permute(0, 3, 1, 2).float()
    assert losses.segmentation(right, masks, kind).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, WEIGHTS[:6].clamp_min(0.3)])
def test_every_loss_is_learnt_by_gradient_descent(kind, weights):
    """On scores themselves: from random ones to nearly all known pixels right."""
    scores, masks = case(2)
    weights = None if weights is None else F.pad(weights, (0, 1))
    optimizer = torch.optim.SGD([scores], lr=20.0)
    values = []
    for _ in range(150):
        value = losses.segmentation(scores, masks, kind, weights)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] / 4
    known = masks != UNKNOWN
    assert (scores.argmax(1)[known] == masks[known]).float().mean() > 0.95


# --- cross-entropy


@pytest.mark.parametrize("seed", SEEDS)
def test_cross_entropy_is_torchs(seed):
    scores, masks = case(seed)
    expected = F.cross_entropy(scores, masks.long(), ignore_index=UNKNOWN)
    torch.testing.assert_close(losses.segmentation(scores, masks), expected)
    (ours,) = torch.autograd.grad(losses.segmentation(scores, masks), scores)
    (theirs,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(ours, theirs)


def test_weights_multiply_each_pixel_and_the_mean_is_over_all():
    """Not torch's weighted mean, which would divide by the weights of the batch."""
    scores, masks = case(3)
    single = F.cross_entropy(scores, masks.long(), reduction="none")
    known = masks != UNKNOWN
    expected = (single * WEIGHTS[masks.long()])[known].mean()
    torch.testing.assert_close(losses.segmentation(scores, masks, weights=WEIGHTS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_change_nothing(kind):
    scores, masks = case(4)
    plain, weighed = (losses.segmentation(scores, masks, kind, w) for w in (None, torch.ones(7)))
    torch.testing.assert_close(weighed, plain)


# --- focal loss


@pytest.mark.parametrize("seed", SEEDS)
def test_focal_is_its_formula(seed):
    """Lin et al. 2017, eq. 5: -α (1 - p)² log p."""
    scores, labels = pixels(seed)
    share = scores.softmax(1)[torch.arange(len(labels)), labels]
    each = -((1 - share) ** 2) * share.log()
    torch.testing.assert_close(losses.focal(scores, labels), each.mean())
    weights = WEIGHTS.double()
    torch.testing.assert_close(losses.focal(scores, labels, weights), (weights[labels] * each).mean())


def test_focal_is_cross_entropy_where_all_is_wrong_and_a_quarter_at_even_odds():
    labels = torch.tensor([1])
    for p, factor in ((1e-9, 1.0), (0.5, 0.25), (0.9, 0.01)):
        scores = torch.tensor([[1 - p, p]], dtype=torch.float64).log()
        entropy = F.cross_entropy(scores, labels)
        assert losses.focal(scores, labels).item() == pytest.approx(factor * entropy.item())


def test_focal_without_focus_is_cross_entropy(monkeypatch):
    monkeypatch.setattr(losses, "FOCUS", 0.0)
    scores, masks = case(5)
    torch.testing.assert_close(
        losses.segmentation(scores, masks, "focal", WEIGHTS),
        losses.segmentation(scores, masks, "cross_entropy", WEIGHTS),
    )


# --- Dice and Lovász are added to cross-entropy


@pytest.mark.parametrize("kind", ["dice", "lovasz"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_overlap_is_added_to_cross_entropy_without_weights_of_its_own(kind, weights):
    scores, masks = case(6)
    known = masks != UNKNOWN
    shares = scores.softmax(1).permute(0, 2, 3, 1)[known]
    overlap = getattr(losses, kind)(shares, masks[known].long())
    expected = losses.segmentation(scores, masks, weights=weights) + overlap
    torch.testing.assert_close(losses.segmentation(scores, masks, kind, weights), expected)
    assert 0.1 < overlap < 1


@pytest.mark.parametrize("absent", [(), (6,), (0, 3, 6), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("seed", SEEDS)
def test_dice_of_hard_predictions_is_counted(seed, absent):
    shares, labels, chosen = hard(seed, absent=absent)
    found = []
    for number in labels.unique().tolist():
        hit = sum(int(a == b == number) for a, b in zip(chosen.tolist(), labels.tolist()))
        both = chosen.tolist().count(number) + labels.tolist().count(number)
        found.append(2 * hit / both)
    assert losses.dice(shares, labels).item() == pytest.approx(1 - np.mean(found))


@pytest.mark.parametrize("absent", [(), (6,), (0, 3, 6), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("seed", SEEDS)
def test_lovasz_of_hard_predictions_is_one_less_iou(seed, absent):
    """What defines the extension: at the corners it is the Jaccard loss itself."""
    shares, labels, chosen = hard(seed, absent=absent)
    found = []
    for number in labels.unique():
        hit = ((chosen == number) & (labels == number)).sum()
        found.append(float(hit / ((chosen == number) | (labels == number)).sum()))
    assert losses.lovasz(shares, labels).item() == pytest.approx(1 - np.mean(found))


def naive_lovasz(shares, labels):
    """Eqs. 8 and 9 of Berman et al. with sets of pixels, one more error at a time."""
    total = []
    for number in sorted(set(labels.tolist())):
        there = {i for i, label in enumerate(labels.tolist()) if label == number}
        errors = [1 - float(s[number]) if i in there else float(s[number]) for i, s in enumerate(shares)]
        order = sorted(range(len(errors)), key=lambda i: -errors[i])
        wrong, before, value = set(), 0.0, 0.0
        for i in order:
            wrong.add(i)
            after = len(wrong) / len(there | wrong)  # the Jaccard loss of these errors
            value += errors[i] * (after - before)
            before = after
        total.append(value)
    return sum(total) / len(total)


@pytest.mark.parametrize("absent", [(), (0, 6)])
@pytest.mark.parametrize("seed", SEEDS)
def test_lovasz_is_the_papers_algorithm(seed, absent):
    scores, labels = pixels(seed, absent=absent)
    shares = (2 * scores).softmax(1)
    assert losses.lovasz(shares, labels).item() == pytest.approx(naive_lovasz(shares, labels))


@pytest.mark.parametrize("kind", ["dice", "lovasz"])
def test_overlaps_gradient_is_the_slope(kind):
    scores, labels = pixels(7, count=12)
    shares = scores.softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: getattr(losses, kind)(s, labels), shares)


@pytest.mark.parametrize("kind", ["dice", "lovasz"])
@pytest.mark.parametrize("seed", SEEDS)
def test_overlap_lies_between_all_right_and_all_wrong(kind, seed):
    scores, labels = pixels(seed)
    right = F.one_hot(labels, 7).double()
    wrong = right.roll(1, dims=1)
    loss = getattr(losses, kind)
    assert loss(right, labels).item() == pytest.approx(0, abs=1e-12)
    assert loss(wrong, labels).item() == pytest.approx(1)
    assert 0 < loss(scores.softmax(1), labels) < 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = loss(scores.softmax(1)[order], labels[order])
    torch.testing.assert_close(shuffled, loss(scores.softmax(1), labels))


# --- weights of the classes


def rare(seed=0, absent=()):
    """Masks with classes of very different frequency, and unknown pixels."""
    random = np.random.default_rng(seed)
    chances = np.array([0 if c in absent else 2.0**-c for c in range(7)])
    return random.choice(7, (4, 16, 16), p=chances / chances.sum()).astype(np.uint8)


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("absent", [(), (2,), (0, 4, 6)])
def test_the_weights_mean_over_known_pixels_is_one(balance, absent):
    masks = rare(absent=absent)
    weights = losses.class_weights(masks, balance)
    assert weights.shape == (7,) and weights.dtype == torch.float32
    known = masks[masks != UNKNOWN]
    assert weights.numpy()[known].mean() == pytest.approx(1, rel=1e-5)
    assert all(weights[c] == 0 for c in (*absent, UNKNOWN))
    assert all(weights[c] > 0 for c in range(UNKNOWN) if c not in absent)


def test_without_balance_all_pixels_weigh_alike():
    assert losses.class_weights(rare(absent=(1,)), 0.0).tolist() == [1, 0, 1, 1, 1, 1, 0]


def test_at_full_balance_each_class_counts_alike():
    masks = rare(absent=(3,))
    weights = losses.class_weights(masks, 1.0).double().numpy()
    counts = np.bincount(masks.ravel(), minlength=7)[:UNKNOWN]
    sums = (counts * weights[:UNKNOWN])[counts > 0]
    np.testing.assert_allclose(sums, counts.sum() / 5, rtol=1e-5)


def test_between_them_weights_are_a_power_of_the_frequency():
    masks = rare()
    weights = losses.class_weights(masks, 0.5).double().numpy()
    counts = np.bincount(masks.ravel(), minlength=7)
    for a in range(UNKNOWN):
        assert weights[a] / weights[0] == pytest.approx((counts[0] / counts[a]) ** 0.5, rel=1e-5)


def test_masks_without_a_known_pixel_give_no_weights():
    assert losses.class_weights(np.full((1, 4, 4), UNKNOWN, np.uint8), 0.5).tolist() == [0] * 7
