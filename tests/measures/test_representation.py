"""Spread of features: what counts as collapsed, against singular values and by hand."""

import numpy as np
import pytest

from hw1lib.measures import representation


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def turn(columns, seed=1):
    """A random rotation."""
    return np.linalg.qr(noise(columns, columns, seed).astype(np.float64))[0]


def directions(count, columns=12, copies=5):
    """Points ± along `count` axes: centred, and equally spread along each of them."""
    axes = np.eye(columns)[:count]
    return np.tile(np.concatenate([axes, -axes]), (copies, 1))


def same(rows=50, columns=16):
    """All rows are one, as float32 features are."""
    return np.repeat(noise(1, columns), rows, axis=0)


# --- deviation


def test_equal_rows_have_no_deviation():
    assert representation.deviation(same()) == pytest.approx(0, abs=1e-6)
    lengths = np.linspace(1, 5, 50, dtype=np.float32)[:, None]
    assert representation.deviation(lengths * same()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("columns", [64, 512, 2048])
def test_noise_is_spread_over_the_sphere(columns):
    """Chen & He 2020: there it is 1/√D, here 1 whatever the dimension."""
    assert representation.deviation(noise(400, columns)) == pytest.approx(1, abs=0.02)


def test_the_deviation_does_not_know_the_scale():
    features = noise(60, 16) + 1
    expected = representation.deviation(features)
    assert 0.2 < expected < 0.9
    scales = np.random.default_rng(2).uniform(0.01, 100, (60, 1))  # of each image by itself
    assert representation.deviation(scales * features) == pytest.approx(expected, rel=1e-5)


def test_features_that_share_a_part_deviate_less_the_larger_it_is():
    values = [representation.deviation(noise(300, 32) + shared) for shared in (0, 1, 3, 10, 100)]
    assert values == sorted(values, reverse=True) and values[-1] < representation.COLLAPSED


# --- effective rank


def test_equal_rows_have_no_rank():
    """Whatever they are equal to: rounding errors of the mean are no directions."""
    for value in (0.0, 0.1, 1e-8, 1e8):
        assert representation.effective_rank(np.full((50, 16), value, dtype=np.float32)) == 0
    assert representation.effective_rank(same()) == 0
    assert representation.effective_rank(noise(1, 16)) == 0


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_equal_orthogonal_directions_are_counted(count):
    assert representation.effective_rank(directions(count)) == pytest.approx(count, abs=1e-5)


def test_unequal_directions_count_less():
    """Two of them, one three times as long: the entropy of (3/4, 1/4)."""
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    found = representation.effective_rank(directions(2) * ([3, 1] + [0] * 10))
    assert found == pytest.approx(np.exp(entropy), rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (25, 25)])
def test_the_rank_knows_no_rotation_shift_and_scale(shape):
    features = noise(*shape) * np.linspace(0.1, 2, shape[1])
    expected = representation.effective_rank(features)
    shift = 5 * noise(1, shape[1], seed=3)
    for changed in (features @ turn(shape[1]), features + shift, 1e4 * features, 1e-4 * features):
        assert representation.effective_rank(changed) == pytest.approx(expected, rel=1e-4)
    order = np.random.default_rng(0).permutation(shape[0])
    assert representation.effective_rank(features[order]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (2, 30), (30, 1), (25, 25)])
def test_the_rank_is_that_of_the_singular_values_and_at_most_full(shape):
    """Roy & Vetterli 2007, by the singular values themselves."""
    features = noise(*shape)
    found = representation.effective_rank(features)
    values = np.linalg.svd(np.float64(features) - features.mean(axis=0), compute_uv=False)
    shares = values[values > 1e-9 * values.max()] / values.sum()
    assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert 1 - 1e-9 <= found <= min(shape[0] - 1, shape[1]) + 1e-4


# --- the verdict


def verdict(features):
    numbers = {
        name: getattr(representation, name)(features) for name in ("deviation", "effective_rank")
    }
    return representation.collapsed(numbers)


def test_either_way_of_collapsing_is_seen():
    """To a point, or onto a line, which a deviation alone takes for a wide spread."""
    line = noise(200, 1) * noise(1, 64, seed=1)
    assert verdict(same()) and verdict(noise(200, 64) + 100)
    assert verdict(line) and representation.deviation(line) > 0.5
    assert not verdict(noise(200, 64)) and not verdict(directions(3))


@pytest.mark.parametrize(
    ("deviation", "rank", "expected"),
    [(0.5, 50.0, False), (0.01, 50.0, True), (0.05, 50.0, False), (0.5, 1.5, True),
     (0.0, 0.0, True),
     (representation.COLLAPSED, representation.LEAST_RANK, False)],
)
def test_the_verdict_is_that_of_its_two_thresholds(deviation, rank, expected):
    numbers = {"deviation": deviation, "effective_rank": rank, "knn": 0.9}
    assert representation.collapsed(numbers) is expected
