"""What N images, tiles or seeds can show: intervals, a paired test, and what many tests together can."""

import math

import numpy as np
from scipy import stats


def wilson(correct, total, confidence=0.95):
    """Wilson's score interval for a proportion (Wilson 1927, JASA 22:209).

    Args:
        correct: number of successes.
        total: number of trials, at least 1.

    Returns:
        (low, high), both in [0, 1].
    """
    interval = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def share(right, places=None, confidence=0.95):
    """The interval of a share: Wilson's, or a bootstrap over whole places where several images show one.

    Args:
        right: (N,) bool, such as which images were classified rightly.
        places: (N,) which place each shows; None: each another one.

    Returns:
        (low, high), both in [0, 1].
    """
    if places is None:
        return wilson(int(right.sum()), len(right), confidence)
    counts = {"all": np.stack([right, ~right], axis=1)}
    return bootstrap(counts, lambda pooled: pooled[:, 0] / pooled.sum(axis=1), places, confidence=confidence)["all"]


def mcnemar(first, second, places=None):
    """Exact McNemar test: do two classifiers err on the same images equally often?

    Images of one place are no independent witnesses. With places, all answers of a place change sides together: the
    exact sign-flip test on the places' differences, which is McNemar's where each place has one image.

    Args:
        first, second: (N,) bool, which of the same images each got right.
        places: (N,) which place each image shows; None: each another one.

    Returns:
        Two-sided p-value in (0, 1].
    """
    change = first.astype(int) - second
    if places is None:
        only_first, apart = int((change > 0).sum()), int(np.count_nonzero(change))
        return float(stats.binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0
    _, places = np.unique(places, return_inverse=True)
    sizes = np.abs(np.bincount(places, change)).astype(int)
    chance = np.ones(1)  # of each total from -sum(sizes) to sum(sizes)
    for size in sizes:
        chance = (np.pad(chance, (0, 2 * size)) + np.pad(chance, (2 * size, 0))) / 2
    totals = np.arange(len(chance)) - sizes.sum()
    return min(1.0, float(chance[np.abs(totals) >= abs(change.sum())].sum()))


def holm(p_values):
    """p-values adjusted for being many (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Calling those below 5 % real is then wrong about any of them in at most 5 % of cases.

    Args:
        p_values: (M,) of one family of tests.

    Returns:
        (M,) in their order, none below its own p-value, at most 1.
    """
    p_values = np.asarray(p_values, dtype=float)
    order, adjusted = np.argsort(p_values, kind="stable"), np.empty(len(p_values))
    steps = p_values[order] * np.arange(len(p_values), 0, -1)  # the smallest counts M times, the next M - 1 …
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def mean_interval(values, confidence=0.95):
    """Student's t interval for a mean.

    Args:
        values: (N,) of at least two independent runs, such as a difference for each seed.

    Returns:
        (low, high); nan where all values are equal, as their spread is then not known.
    """
    if np.ptp(values) < 1e-9:
        return math.nan, math.nan
    spread = stats.sem(values)
    low, high = stats.t.interval(confidence, len(values) - 1, np.mean(values), spread)
    return float(low), float(high)


def bootstrap(counts, measure, groups=None, draws=2000, confidence=0.95):
    """Percentile intervals of measures of pooled counts, and of their differences (Efron 1979).

    Whole groups are drawn with replacement, the same ones for all, so differences are paired.

    Args:
        counts: dict from a name to (N, …) counts of each of the same N tiles, such as confusion matrices.
        measure: function of pooled counts (draws, …) -> (draws,).
        groups: (N,) which tiles belong together, such as those of one place; None: each by itself.

    Returns:
        Dict from a name to (low, high), and from each pair of names to (low, high) of the first minus the second; nan
        where there are fewer than two groups.
    """
    tiles = len(next(iter(counts.values())))
    _, places = np.unique(np.arange(tiles) if groups is None else groups, return_inverse=True)
    total = places.max() + 1
    draws = draws if total > 1 else 0
    times = np.random.default_rng(0).multinomial(total, np.full(total, 1 / total), draws)  # (draws, groups)
    found = {}
    for name, each in counts.items():
        pooled = np.zeros((total, *np.shape(each)[1:]))
        np.add.at(pooled, places, each)
        found[name] = measure(np.tensordot(times, pooled, axes=1))
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    pairs = {(one, two): found[one] - found[two] for one in found for two in found if one != two}
    return {name: _quantiles(values, ends) for name, values in (found | pairs).items()}


def _quantiles(values, ends):
    values = values[~np.isnan(values)]
    return tuple(map(float, np.quantile(values, ends))) if len(values) else (math.nan, math.nan)
