"""Notebook 02: which differences between settings and controls are significant.

A difference is called significant only if the exact McNemar test on the same validation images gives p < 0.05 after
Holm's adjustment for all comparisons of the report. Where places are known, predictions are swapped by place. All tests
and rankings use the last epoch, which involved no selection.
"""

import itertools

import pandas as pd

from hw1lib.chapters.phrases import ALL_AGREE, LEVEL, comparison, p_value, sentences
from hw1lib.metrics.statistics import holm, mcnemar, mean_interval
from hw1lib.variants import ROWS, SETTINGS

PAIRS = (  # all comparisons of the report: settings with each other, self-supervised features with controls
    *((later, earlier) for earlier, later in itertools.combinations(SETTINGS, 2)),
    *(("E", control) for control in ("random", "colour", "simple")),
    ("knn", "knn-random"),
)
SELF_SUPERVISED = [name for name, row in ROWS.items() if row.pretraining == "pretrain"]


def contingency(first, second, names):
    """Return the 2 × 2 table of McNemar's test: how many images both, one or neither classify correctly.

    Args:
        first, second: (N,) bool, which of the same images each classifies correctly.
        names: pair of their names.
    """
    one, two = names
    rows = ((f"{one} right", first), (f"{one} wrong", ~first))
    counts = [(name, (row & second).sum(), (row & ~second).sum()) for name, row in rows]
    return pd.DataFrame(counts, columns=["", f"{two} right", f"{two} wrong"])


def mcnemar_tests(right):
    """Return exact McNemar tests of all PAIRS.

    Args:
        right: DataFrame of bool, which validation images each setting and control (its columns) classifies correctly at
            its last epoch. Its index is the place that each image shows, unique where places are unknown. If
            self-supervised pre-training collapsed, leave out the columns SELF_SUPERVISED.

    Returns:
        DataFrame with columns first, second, difference (of accuracies, first minus second), p and adjusted (p after
        Holm's adjustment).
    """
    pairs = [pair for pair in PAIRS if set(pair) <= set(right)]
    table = pd.DataFrame(pairs, columns=["first", "second"])
    table["difference"] = [right[first].mean() - right[second].mean() for first, second in pairs]
    places = None if right.index.is_unique else right.index
    table["p"] = [mcnemar(right[first].to_numpy(), right[second].to_numpy(), places) for first, second in pairs]
    return table.assign(adjusted=holm(table["p"]))


def _test(tests, first, second):
    """Return difference, significant and verdict (text) of a test, a dict; None if a collapse left it out."""
    for row in tests.itertuples():
        if {row.first, row.second} == {first, second}:
            significant = row.adjusted < LEVEL
            return {
                "difference": row.difference if row.first == first else -row.difference,
                "significant": significant,
                "verdict": f"{'' if significant else ', which is not significant'} ({p_value(row.adjusted)})",
            }
    return None


def compare(first, second, tests):
    """Return a sentence on whether `first` differs from `second`.

    Args:
        first, second: settings or controls.
        tests: table returned by `mcnemar_tests`.
    """
    return sentences("compare", first=first, second=second, test=_test(tests, first, second))


def ranked(right):
    """Return the settings A–E in `right` by descending accuracy; `right` as in `mcnemar_tests`."""
    return sorted((s for s in right if s in SETTINGS), key=lambda s: (-right[s].mean(), s))


def ranking(tests, right):
    """Return a paragraph on the best of the settings A–E and the significance of its lead.

    Args:
        tests: table returned by `mcnemar_tests`.
        right: as in `mcnemar_tests`.
    """
    best, *others = ranked(right)
    results = {other: _test(tests, best, other) for other in others}
    better = [other for other in others if results[other]["significant"]]
    return sentences(
        "ranking", order=[best, *others], accuracy=right[best].mean(), lead=results[others[0]]["difference"],
        better=better, not_better=[other for other in others if other not in better],
        images=len(right), places=right.index.nunique(), absent=[name for name in SETTINGS if name not in right],
    )  # fmt: skip


def pretraining(tests):
    """Return a paragraph on the effect of pre-training: B and C against A, C against B."""
    return " ".join(compare(*pair, tests) for pair in (("B", "A"), ("C", "A"), ("C", "B")))


def domains(tests, pool, target):
    """Return a paragraph on transfer between the domains: frozen against fine-tuned backbones.

    Args:
        tests: table returned by `mcnemar_tests`.
        pool, target: names of the domains of pre-training and of fine-tuning.
    """
    pairs = (("D", "B", "supervised"), ("E", "C", "self-supervised"))
    comparisons = [(frozen, tuned, kind, _test(tests, frozen, tuned)) for frozen, tuned, kind in pairs]
    return sentences("domains", comparisons=comparisons, pool=pool, target=target)


def controls(tests):
    """Return a paragraph on whether the self-supervised features beat the controls.

    Args:
        tests: table returned by `mcnemar_tests`.
    """
    leads = tests[(tests["first"] == "E") & tests["second"].isin(("colour", "simple"))]
    strongest = leads.loc[leads["difference"].idxmin(), "second"] if len(leads) else "simple"
    pairs = (("E", "random"), ("E", strongest), ("knn", "knn-random"))
    return " ".join(compare(*pair, tests) for pair in pairs)


def seeds(table, collapsed=()):
    """Return a paragraph on differences averaged over seeds.

    Args:
        table: accuracies by setting and seed, returned by ch02_finetuning.accuracies_by_seed.
        collapsed: seeds whose pre-training collapsed, which are left out.
    """
    last = table[~table["seed"].isin(collapsed)].pivot(index="seed", columns="setting", values="accuracy_last")
    comparisons = []
    for first, second in (("C", "A"), ("E", "random"), ("E", "simple")) if len(last) > 1 else ():
        differences = 100 * (last[first] - last[second])
        numbers = differences.mean(), *mean_interval(differences)
        other = second if second in SETTINGS else f"control *{second}*"
        comparisons.append(f"{first} {comparison(*numbers, other, '.1f', ' points', ALL_AGREE)}")
    counts = {"total": table["seed"].nunique(), "left": len(last)}
    return sentences("finetune_seeds", comparisons=comparisons, collapsed=collapsed, **counts)
