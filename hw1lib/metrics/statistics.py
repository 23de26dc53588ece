"""Confidence intervals, a paired test, and its correction for multiple tests."""

import math

import numpy as np
from scipy import stats


def wilson(correct, total, confidence=0.95):
    """Compute Wilson's score interval for a proportion (Wilson 1927, JASA 22:209).

    Args:
        correct: number of successes.
        total: number of trials, at least 1.
        confidence: confidence level of the interval.

    Returns:
        (low, high), both in [0, 1].
    """
    interval = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def share(right, places=None, confidence=0.95):
    """Compute the interval of a proportion: Wilson's, or a bootstrap over places if these are given.

    Args:
        right: (N,) bool, whether each image was classified correctly.
        places: (N,) place of each image; None: each shows a different one.

    Returns:
        (low, high), both in [0, 1].
    """
    if places is None:
        return wilson(int(right.sum()), len(right), confidence)
    counts = {"all": np.stack([right, ~right], axis=1)}
    return bootstrap(counts, lambda pooled: pooled[:, 0] / pooled.sum(axis=1), places, confidence=confidence)["all"]


def mcnemar(first, second, places=None):
    """Test exactly whether two classifiers are equally accurate (McNemar 1947).

    Images of one place are not independent. This is the exact sign-flip test on the places' differences, which is
    McNemar's exact test if each place has one image.

    Args:
        first, second: (N,) bool, which of the same images each classified correctly.
        places: (N,) place of each image; None: each shows a different one.

    Returns:
        Two-sided p-value in (0, 1].
    """
    change = first.astype(int) - second
    _, places = np.unique(np.arange(len(change)) if places is None else places, return_inverse=True)
    sizes = np.abs(np.bincount(places, change)).astype(int)
    probabilities = np.ones(1)  # of each total from -sum(sizes) to sum(sizes)
    for size in sizes:
        probabilities = (np.pad(probabilities, (0, 2 * size)) + np.pad(probabilities, (2 * size, 0))) / 2
    totals = np.arange(len(probabilities)) - sizes.sum()
    return min(1.0, float(probabilities[np.abs(totals) >= abs(change.sum())].sum()))


def holm(p_values):
    """Adjust p-values for multiple tests (Holm 1979, Scandinavian Journal of Statistics 6:65).

    The probability of any false rejection at level α is then at most α.

    Args:
        p_values: (M,) p-values of one family of tests.

    Returns:
        (M,) adjusted p-values in the same order, at most 1.
    """
    p_values = np.asarray(p_values, dtype=float)
    order, adjusted = np.argsort(p_values, kind="stable"), np.empty(len(p_values))
    steps = p_values[order] * np.arange(len(p_values), 0, -1)  # Holm: the smallest times M, the next times M - 1, …
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def mean_interval(values, confidence=0.95):
    """Compute Student's t interval for a mean.

    Args:
        values: (N,) values of at least two independent runs, such as a difference for each seed.

    Returns:
        (low, high); NaN if all values are equal, as their variance is then unknown.
    """
    if np.ptp(values) < 1e-9:
        return math.nan, math.nan
    spread = stats.sem(values)
    low, high = stats.t.interval(confidence, len(values) - 1, np.mean(values), spread)
    return float(low), float(high)


def bootstrap(counts, measure, groups=None, draws=2000, confidence=0.95):
    """Compute percentile intervals of a metric of pooled counts, and of paired differences (Efron 1979).

    Whole groups are drawn with replacement, and the same ones for all names.

    Args:
        counts: {name: (N, …) counts of the same N tiles, such as confusion matrices}.
        measure: function from pooled counts to the metric, (draws, …) -> (draws,).
        draws: number of bootstrap samples.
        groups: (N,) group of each tile, such as its place; None: each tile is a group.

    Returns:
        {name: (low, high)} and {(first, second): (low, high) of first minus second}; NaN with fewer than two groups.
    """
    tiles = len(next(iter(counts.values())))
    _, places = np.unique(np.arange(tiles) if groups is None else groups, return_inverse=True)
    total = places.max() + 1
    draws = draws if total > 1 else 0
    weights = np.random.default_rng(0).multinomial(total, np.full(total, 1 / total), draws)  # (draws, groups)
    values = {}
    for name, per_tile in counts.items():
        pooled = np.zeros((total, *np.shape(per_tile)[1:]))
        np.add.at(pooled, places, per_tile)
        values[name] = measure(np.tensordot(weights, pooled, axes=1))
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    differences = {(a, b): values[a] - values[b] for a in values for b in values if a != b}
    return {name: _quantiles(sample, ends) for name, sample in (values | differences).items()}


def _quantiles(values, ends):
    values = values[~np.isnan(values)]
    return tuple(map(float, np.quantile(values, ends))) if len(values) else (math.nan, math.nan)
