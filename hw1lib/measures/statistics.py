"""What N images, tiles or seeds can show: intervals, a paired test, and what many tests together can."""

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


def mcnemar(first, second):
    """Exact McNemar test: do two classifiers err on the same images equally often?

    Args:
        first, second: (N,) bool, which of the same images each got right.

    Returns:
        Two-sided p-value in (0, 1]: binomial test on the images that only one got right.
    """
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


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
        (low, high).
    """
    spread = stats.sem(values)
    if not spread:
        return float(np.mean(values)), float(np.mean(values))
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
        Dict from a name to (low, high), and from each pair of names to (low, high) of the first minus the second.
    """
    tiles = len(next(iter(counts.values())))
    _, places = np.unique(np.arange(tiles) if groups is None else groups, return_inverse=True)
    total = places.max() + 1
    times = np.random.default_rng(0).multinomial(total, np.full(total, 1 / total), draws)  # (draws, groups)
    found = {}
    for name, each in counts.items():
        pooled = np.zeros((total, *np.shape(each)[1:]))
        np.add.at(pooled, places, each)
        found[name] = measure(np.tensordot(times, pooled, axes=1))
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    pairs = {(one, two): found[one] - found[two] for one in found for two in found if one != two}
    return {name: tuple(map(float, np.nanquantile(values, ends))) for name, values in (found | pairs).items()}
