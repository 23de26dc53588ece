"""The course's metrics, compared with brute force and scikit-learn."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from hw1lib.data.landcover import SCORED, UNKNOWN
from hw1lib.metrics import iou

SEEDS = range(3)


def masks(seed, shape=(3, 16, 16), absent=()):
    """Draw truth and a noisy prediction, both without some classes."""
    random = np.random.default_rng(seed)
    classes = [c for c in range(7) if c not in absent]
    truth, wrong = (random.choice(classes, shape).astype(np.uint8) for _ in range(2))
    return truth, np.where(random.random(shape) < 0.6, truth, wrong).astype(np.uint8)


def test_confusion_is_scikit_learns(monkeypatch):
    """Also in chunks, and beyond the range of uint8, which does not hold 64 · 65 + 64."""
    truth, predicted = masks(0)
    expected = confusion_matrix(truth.ravel(), predicted.ravel(), labels=range(7))
    assert np.array_equal(iou.confusion(truth, predicted), expected)
    monkeypatch.setattr(iou, "CHUNK", 100)
    assert np.array_equal(iou.confusion(truth, predicted), expected)
    numbers = np.arange(65, dtype=np.uint8)
    assert np.array_equal(iou.confusion(numbers, numbers, 65), np.eye(65))


@pytest.mark.parametrize("absent", [(), (2,), (0, 5), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("seed", SEEDS)
def test_iou_by_brute_force_and_by_scikit_learn(seed, absent):
    """Predictions on unknown pixels are false positives; classes in neither have no IoU and do not count."""
    truth, predicted = masks(seed, absent=absent)
    matrix = iou.confusion(truth, predicted)
    values, present = iou.iou(matrix), [c for c in range(6) if c not in absent]
    for number in present:
        hit = np.sum((truth == number) & (predicted == number))
        assert values[number] == pytest.approx(hit / (np.sum(predicted == number) + np.sum(truth == number) - hit))
    assert np.flatnonzero(np.isnan(values)).tolist() == list(absent) and values.shape == (6,)
    assert iou.miou(matrix) == pytest.approx(
        jaccard_score(truth.ravel(), predicted.ravel(), labels=present, average="macro")
    )
    known = truth != UNKNOWN
    assert iou.pixel_accuracy(matrix) == pytest.approx(accuracy_score(truth[known], predicted[known]))


def test_a_class_that_is_only_predicted_counts_and_only_unknown_pixels_give_nan():
    matrix = iou.confusion(np.array([0, 0, 1]), np.array([0, 2, 1]))
    assert iou.iou(matrix)[:3].tolist() == [0.5, 1, 0] and iou.miou(matrix) == 0.5
    unknown = iou.confusion(np.array([UNKNOWN]), np.array([UNKNOWN]))
    assert np.isnan(iou.miou(unknown)) and iou.pixel_accuracy(unknown) == 0


# --- confused pairs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("highest", [0, 1, 3, 1000])  # few values: many ties and zeros
@pytest.mark.parametrize("classes", [1, 2, 9])
def test_confused_pairs_by_brute_force(seed, highest, classes):
    """Both directions count, the diagonal does not; ties are in the order of classes."""
    random = np.random.default_rng(seed)
    matrix = random.integers(0, highest + 1, (classes, classes))
    pairs = itertools.combinations(range(classes), 2)
    times = {pair: matrix[pair] + matrix[pair[::-1]] for pair in pairs}
    expected = sorted((pair for pair in times if times[pair]), key=lambda pair: (-times[pair], pair))
    for count in (1, 5, 36, 100):
        result = iou.confused_pairs(matrix, count)
        assert result == expected[:count] and all(type(number) is int for pair in result for number in pair)
    with_diagonal = matrix + np.diag(random.integers(0, 9999, classes))
    assert iou.confused_pairs(with_diagonal.T, 36) == expected


# --- the ceiling of an output stride


def ceiling_by_hand(masks, stride):
    """Give each block its commonest known class, the lower of equals, and compute the mIoU from sets."""
    best = np.full_like(masks, UNKNOWN)
    starts = (range(0, masks.shape[1], stride), range(0, masks.shape[2], stride))
    for number, top, left in itertools.product(range(len(masks)), *starts):
        block = np.s_[number, top : top + stride, left : left + stride]
        known = [c for c in masks[block].ravel().tolist() if c != UNKNOWN]
        if known:
            best[block] = min(set(known), key=lambda c: (-known.count(c), c))
    pairs = [(masks == c, best == c) for c in range(UNKNOWN)]
    return np.mean([(one & two).sum() / (one | two).sum() for one, two in pairs if (one | two).any()])


@pytest.mark.parametrize("absent", [(), (1, 2, 3, 4, 5)])  # few classes: many equals
@pytest.mark.parametrize("stride", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 7, 10), (1, 1, 5)])
def test_the_ceiling_by_hand(shape, stride, absent):
    """For strides that divide the sides, do not divide them, or exceed them."""
    for seed in SEEDS:
        truth, _ = masks(seed, shape, absent)
        assert iou.ceiling(truth, stride) == pytest.approx(ceiling_by_hand(truth, stride))


def test_the_summary_has_the_best_and_the_last_epoch():
    """The best is the first of equals; an absent class has no IoU."""
    good, bad = np.diag([5, 5, 0, 5, 5, 5, 0]), np.full((7, 7), 2)
    matrices = enumerate((bad, good, good, bad), 1)
    history = [{"epoch": n, "miou": iou.miou(matrix), "confusion": matrix.tolist()} for n, matrix in matrices]
    summary = iou.summarise(history)
    assert (summary["epoch"], summary["miou"], summary["pixel_accuracy"]) == (2, 1, 1)
    assert summary["miou_last"] == iou.miou(bad)
    assert (summary["confusion"], summary["confusion_last"]) == (good.tolist(), bad.tolist())
    assert summary["iou"] == {name: None if name == "rangeland" else 1.0 for name in SCORED}
    assert summary["iou_last"] == iou.iou_by_class(bad) != summary["iou"]
