"""Spread of features, compared with singular values and by hand."""

import numpy as np
import pytest

from hw1lib.metrics import collapse


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def same(rows=50, columns=16):
    """Repeat one row."""
    return np.repeat(noise(1, columns), rows, axis=0)


def test_the_deviation_is_0_for_equal_features_and_1_over_the_sphere():
    """It depends neither on the scale of each image nor on the number of dimensions."""
    lengths = np.linspace(1, 5, 50, dtype=np.float32)[:, None]
    assert collapse.deviation(lengths * same()) == pytest.approx(0, abs=1e-5)
    assert [collapse.deviation(noise(400, d)) for d in (64, 2048)] == pytest.approx([1, 1], abs=0.02)
    features = noise(50, 16) + 1
    assert collapse.deviation(lengths * features) == pytest.approx(collapse.deviation(features), rel=1e-5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert collapse.deviation(features) == pytest.approx(unit.std(axis=0).mean() * 4, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (30, 1)])
def test_spectrum_and_rank_are_those_of_the_singular_values(shape):
    """Roy & Vetterli 2007. Neither depends on order, rotation or shift, nor the rank on scale."""
    features = noise(*shape)
    values = np.linalg.svd(np.float64(features) - np.float64(features).mean(axis=0), compute_uv=False)
    spectrum = collapse.spectrum(features)
    assert spectrum.dtype == np.float64 and spectrum == pytest.approx(values, abs=1e-5)
    parts = values[values > 1e-9 * values.max()] / values.sum()
    rank = collapse.effective_rank(features)
    assert rank == pytest.approx(np.exp(-(parts * np.log(parts)).sum()), rel=1e-5)
    rotated = features @ np.linalg.qr(noise(shape[1], shape[1], 1).astype(np.float64))[0]
    for changed in (rotated, features + 5 * noise(1, shape[1], 3), 1e4 * features, 1e-4 * features, features[::-1]):
        assert collapse.effective_rank(changed) == pytest.approx(rank, rel=1e-4)


def test_the_rank_counts_equal_directions():
    for count in (1, 2, 5, 12):
        points = np.concatenate([np.eye(12)[:count], -np.eye(12)[:count]])  # ±1 along several axes
        assert collapse.effective_rank(points) == pytest.approx(count, abs=1e-5)


@pytest.mark.parametrize("features", [*(np.full((50, 16), v, np.float32) for v in (0, 0.1, 1e8)), same(), noise(1, 16)])
def test_equal_rows_have_rank_0(features):
    """Rounding errors of the mean do not count."""
    assert collapse.effective_rank(features) == 0


@pytest.mark.parametrize(
    ("deviation", "rank", "expected"), [(0.02, 2.0, False), (0.0199, 50.0, True), (0.5, 1.99, True), (0.0, 0.0, True)]
)
def test_collapse_is_decided_by_two_thresholds(deviation, rank, expected):
    assert collapse.collapsed({"deviation": deviation, "effective_rank": rank, "knn": 0.9}) is expected
