"""The course's measures against brute force and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from hw1lib.data.landcover import UNKNOWN
from hw1lib.measures import metrics


def masks(seed, shape=(3, 16, 16), absent=()):
    """Truth and prediction with unknown in both, noisy; `absent` classes occur in neither."""
    random = np.random.default_rng(seed)
    there = [c for c in range(7) if c not in absent]
    truth = random.choice(there, shape).astype(np.uint8)
    wrong = random.choice(there, shape).astype(np.uint8)
    return truth, np.where(random.random(shape) < 0.6, truth, wrong).astype(np.uint8)


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_confusion_is_scikit_learns(seed):
    truth, predicted = masks(seed)
    expected = confusion_matrix(truth.ravel(), predicted.ravel(), labels=range(7))
    assert np.array_equal(metrics.confusion(truth, predicted), expected)


def test_confusion_counts_beyond_the_range_of_its_input():
    """Masks are uint8: 6 · 7 + 6 fits, but 64 · 65 + 64 would not."""
    numbers = np.arange(65, dtype=np.uint8)
    assert np.array_equal(metrics.confusion(numbers, numbers, 65), np.eye(65))
    many = np.zeros(70_000, dtype=np.uint8)
    assert metrics.confusion(many, many)[0, 0] == 70_000


def test_confusions_of_parts_add_up():
    truth, predicted = masks(0)
    parts = sum(metrics.confusion(t, p) for t, p in zip(truth, predicted))
    assert np.array_equal(parts, metrics.confusion(truth, predicted))


@pytest.mark.parametrize("seed", SEEDS)
def test_iou_by_brute_force_and_by_scikit_learn(seed):
    """The course's script: predictions on unknown pixels are false positives."""
    truth, predicted = masks(seed)
    found = metrics.iou(metrics.confusion(truth, predicted))
    for number in range(UNKNOWN):
        hit = np.sum((truth == number) & (predicted == number))
        positives, there = np.sum(predicted == number), np.sum(truth == number)
        assert found[number] == pytest.approx(hit / (positives + there - hit))
    expected = jaccard_score(truth.ravel(), predicted.ravel(), labels=range(6), average=None)
    np.testing.assert_allclose(found, expected)
    assert metrics.miou(metrics.confusion(truth, predicted)) == pytest.approx(expected.mean())


def test_answers_where_the_truth_is_unknown_cost_iou():
    truth = np.array([0, 0, 6, 6])
    right, cautious = np.array([0, 0, 0, 0]), np.array([0, 0, 6, 6])
    assert metrics.iou(metrics.confusion(truth, right))[0] == 0.5
    assert metrics.iou(metrics.confusion(truth, cautious))[0] == 1


@pytest.mark.parametrize("absent", [(2,), (0, 5), (1, 2, 3, 4, 5)])
def test_an_absent_class_has_no_iou_and_is_left_out(absent):
    truth, predicted = masks(1, absent=absent)
    matrix = metrics.confusion(truth, predicted)
    found = metrics.iou(matrix)
    assert np.flatnonzero(np.isnan(found)).tolist() == list(absent)
    there = [c for c in range(6) if c not in absent]
    expected = jaccard_score(truth.ravel(), predicted.ravel(), labels=there, average="macro")
    assert metrics.miou(matrix) == pytest.approx(expected)


def test_a_class_that_is_only_predicted_counts_as_zero():
    truth, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    assert metrics.iou(metrics.confusion(truth, predicted))[2] == 0
    assert metrics.miou(metrics.confusion(truth, predicted)) == pytest.approx((0.5 + 1 + 0) / 3)


def test_without_any_scored_class_there_is_no_mean():
    unknown = np.full(4, UNKNOWN)
    assert np.isnan(metrics.miou(metrics.confusion(unknown, unknown)))


@pytest.mark.parametrize("seed", SEEDS)
def test_pixel_accuracy_is_over_known_pixels(seed):
    truth, predicted = masks(seed)
    known = truth != UNKNOWN
    expected = accuracy_score(truth[known], predicted[known])
    assert metrics.pixel_accuracy(metrics.confusion(truth, predicted)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_renaming_classes_renames_their_iou(seed):
    truth, predicted = masks(seed)
    names = np.append(np.random.default_rng(seed).permutation(6), 6)
    one = metrics.iou(metrics.confusion(truth, predicted))
    two = metrics.iou(metrics.confusion(names[truth], names[predicted]))
    np.testing.assert_allclose(two[names[:6]], one)


# --- confused pairs


def by_brute_force(matrix):
    """Every pair that is confused at all, by how often; equal ones by their numbers."""
    found = [
        (int(matrix[i, j] + matrix[j, i]), i, j)
        for i in range(len(matrix)) for j in range(i + 1, len(matrix))
    ]
    return [(i, j) for times, i, j in sorted(found, key=lambda f: (-f[0], *f[1:])) if times]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("highest", [1, 3, 1000])  # few values: many ties and zeros
def test_confused_pairs_by_brute_force(seed, highest):
    random = np.random.default_rng(seed)
    matrix = random.integers(0, highest + 1, (9, 9))
    expected = by_brute_force(matrix)
    for count in (1, 5, 36, 100):
        found = metrics.confused_pairs(matrix, count)
        assert found == expected[:count]
        assert all(type(number) is int for pair in found for number in pair)
    assert metrics.confused_pairs(matrix.T, 36) == expected  # either direction counts alike
    right = matrix + np.diag(random.integers(0, 9999, 9))
    assert metrics.confused_pairs(right, 36) == expected  # what is right is no confusion


def test_equally_confused_pairs_come_by_number():
    assert metrics.confused_pairs(np.ones((4, 4), int), 4) == [(0, 1), (0, 2), (0, 3), (1, 2)]


@pytest.mark.parametrize("classes", [1, 2, 65])
def test_without_confusion_there_is_no_pair(classes):
    assert metrics.confused_pairs(7 * np.eye(classes, dtype=int), 5) == []


def test_fewer_pairs_than_asked_for_are_all():
    matrix = np.diag([5, 5, 5])
    matrix[2, 0] = 1
    assert metrics.confused_pairs(matrix, 5) == [(0, 2)]


# --- the ceiling of an output stride


def blocky(seed, shape, unknown=0.2, classes=7):
    """Masks of patches of a few pixels, some of them unknown."""
    random = np.random.default_rng(seed)
    count, height, width = shape
    small = random.integers(0, classes, (count, height // 3 + 1, width // 3 + 1))
    masks = small.repeat(3, 1).repeat(3, 2)[:, :height, :width]
    masks[random.random(shape) < unknown] = UNKNOWN
    return masks.astype(np.uint8)


def ceiling_by_hand(masks, stride):
    """Block by block: the commonest known class, of equals the lower; then IoU from sets."""
    best = np.full_like(masks, UNKNOWN)
    count, height, width = masks.shape
    for number in range(count):
        for top in range(0, height, stride):
            for left in range(0, width, stride):
                block = masks[number, top : top + stride, left : left + stride]
                known = [c for c in block.ravel().tolist() if c != UNKNOWN]
                if known:
                    winner = min(set(known), key=lambda c: (-known.count(c), c))
                    best[number, top : top + stride, left : left + stride] = winner
    scores = []
    for c in range(UNKNOWN):
        one, two = masks == c, best == c
        if (one | two).any():
            scores.append((one & two).sum() / (one | two).sum())
    return np.mean(scores)


@pytest.mark.parametrize("classes", [2, 7])  # few classes: many equals
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7, 8, 50])
@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 7, 10), (1, 1, 5)])
def test_the_ceiling_by_hand(shape, stride, classes):
    """Strides that divide the sides, that do not, and that are larger."""
    for seed in SEEDS:
        masks = blocky(seed, shape, classes=classes)
        assert metrics.ceiling(masks, stride) == pytest.approx(ceiling_by_hand(masks, stride))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stride_of_one_can_be_perfect(seed):
    """Blocks that hold nothing known are not paid for, either."""
    masks = blocky(seed, (2, 9, 9), unknown=0.5)
    assert metrics.ceiling(masks, 1) == 1


def test_masks_of_whole_blocks_can_be_perfect():
    masks = np.random.default_rng(0).integers(0, 7, (3, 4, 4)).repeat(8, 1).repeat(8, 2)
    assert metrics.ceiling(masks, 8) == metrics.ceiling(masks, 4) == 1
    assert metrics.ceiling(masks[:, 1:], 8) < 1  # the blocks no longer lie on the grid


def test_a_block_costs_what_it_cannot_show():
    """Three pixels of four are right; the fourth class is never shown."""
    assert metrics.ceiling(np.array([[[0, 0], [0, 1]]]), 2) == pytest.approx((3 / 4 + 0) / 2)
    unknown = np.array([[[0, 0], [0, UNKNOWN]]])
    assert metrics.ceiling(unknown, 2) == pytest.approx(3 / 4)  # a false positive
    assert np.isnan(metrics.ceiling(np.full((1, 4, 4), UNKNOWN), 2))
