"""What N images can show: intervals for proportions and a paired test."""

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
