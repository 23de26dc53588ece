"""Notebook 02: which differences between settings and controls are significant.

A difference is called significant only if the exact McNemar test on the same validation images, at 5 % and after Holm's
adjustment for all comparisons of the report, says so. Images of one place are kept together where places are known.
All tests and rankings use the last epoch, which involved no selection.
"""

import itertools

import pandas as pd

from hw1lib.chapters.phrases import LEVEL, capital, comparison, listed, p_value, percent, points
from hw1lib.metrics.statistics import holm, mcnemar, mean_interval
from hw1lib.variants import ROWS, SETTINGS

PAIRS = (  # all comparisons of the report: settings with each other, self-supervised features with controls
    *((later, earlier) for earlier, later in itertools.combinations(SETTINGS, 2)),
    *(("E", control) for control in ("random", "colour", "simple")),
    ("knn", "knn-random"),
)
ONE_SEED = "Only one seed was run, so the variation between seeds was not measured; `--seeds 3` adds two more."
SELF_SUPERVISED = [name for name, row in ROWS.items() if row.pretraining == "pretrain"]


def contingency(first, second, names):
    """Return the 2 × 2 table that McNemar's test uses.

    Args:
        first, second: (N,) bool, which of the same images each classifies correctly.
        names: their names.
    """
    one, two = names
    columns = {f"{two} right": second, f"{two} wrong": ~second}
    counts = {name: [(first & column).sum(), (~first & column).sum()] for name, column in columns.items()}
    return pd.DataFrame({"": [f"{one} right", f"{one} wrong"]} | counts)


def mcnemar_tests(right):
    """Return exact McNemar tests of all PAIRS.

    Args:
        right: DataFrame of bool, which validation images each setting and control (its columns) classifies correctly at
            its last epoch. Its index is the place that each image shows, unique where places are unknown. If
            self-supervised pre-training collapsed, leave out the columns SELF_SUPERVISED: they must not win.

    Returns:
        DataFrame with columns first, second, difference (of their accuracies), p and adjusted (p after Holm).
    """
    pairs = [pair for pair in PAIRS if set(pair) <= set(right)]
    table = pd.DataFrame(pairs, columns=["first", "second"])
    table["difference"] = [right[first].mean() - right[second].mean() for first, second in pairs]
    places = None if right.index.is_unique else right.index
    table["p"] = [mcnemar(right[first].to_numpy(), right[second].to_numpy(), places) for first, second in pairs]
    return table.assign(adjusted=holm(table["p"]))


def _test(tests, first, second):
    """Return first minus second and the adjusted p-value; None if pre-training collapsed, so no test was made."""
    for row in tests.itertuples():
        if {row.first, row.second} == {first, second}:
            return (row.difference if row.first == first else -row.difference), row.adjusted
    return None


def _verdict(p):
    """The end of a clause about a difference."""
    return f" ({p_value(p)})" if p < LEVEL else f", which is not significant ({p_value(p)})"


def compare(first, second, tests, names=None):
    """Return a sentence on whether `first` differs from `second`.

    Args:
        first, second: settings or controls.
        tests: table returned by `mcnemar_tests`.
        names: dict from setting or control to its name in the sentence.
    """
    one, two = ((names or {}).get(name, f"setting {name}") for name in (first, second))
    test = _test(tests, first, second)
    if test is None:
        return f"{capital(one)} and {two} are not compared, as self-supervised pre-training collapsed."
    difference, p = test
    if difference == 0:
        return f"{capital(one)} and {two} have the same accuracy."
    return f"{capital(one)} is {points(abs(difference))} {'above' if difference > 0 else 'below'} {two}{_verdict(p)}."


def ranked(right):
    """Return the settings A–E in `right` by descending accuracy; `right` as in `mcnemar_tests`."""
    return sorted((s for s in right if s in SETTINGS), key=lambda s: (-right[s].mean(), s))


def ranking(tests, right):
    """Return a paragraph on the best of the settings A–E and the significance of its lead.

    Args:
        tests: table returned by `mcnemar_tests`.
        right: as in `mcnemar_tests`.
    """
    best, second, *_ = order = ranked(right)
    lead, _ = _test(tests, best, second)
    places = right.index.nunique()
    images = f"{len(right)} validation images"
    if places < len(right):
        images += " of one place" if places == 1 else f" of {places} places"
    ahead = f"{points(lead)} above" if lead > 0 else "level with"
    text = (
        f"At the last epoch setting {best} has the highest accuracy, {percent(right[best].mean())} of {images}, "
        f"{ahead} setting {second}; the order is {', '.join(order)}."
    )
    if absent := [setting for setting in SETTINGS if setting not in right]:
        text += f" Settings {listed(absent)} are not ranked, as their pre-training collapsed."
    groups = {"": [], "not ": []}
    for setting in order[1:]:
        groups["" if _test(tests, best, setting)[1] < LEVEL else "not "].append(setting)
    verdicts = [f"{word}significantly better than {listed(group)}" for word, group in groups.items() if group]
    return f"{text} It is {' but '.join(verdicts)} (exact McNemar test, Holm-adjusted)."


def pretraining(tests):
    """Return a paragraph on the effect of pre-training: B and C against A, C against B."""
    return " ".join(compare(*pair, tests) for pair in (("B", "A"), ("C", "A"), ("C", "B")))


def domains(tests, pool, target):
    """Return a paragraph on what frozen against fine-tuned backbones say about the two domains.

    Args:
        tests: table returned by `mcnemar_tests`.
        pool, target: names of the domains of pre-training and of fine-tuning.
    """
    sentences = []
    for frozen, tuned, kind in (("D", "B", "supervised"), ("E", "C", "self-supervised")):
        test = _test(tests, frozen, tuned)
        if test is None:
            sentences.append(f"{frozen} and {tuned} are not compared, as {kind} pre-training collapsed.")
            continue
        difference, p = test
        meaning = f"features learnt on {pool} have to be adapted to {target}"
        if p >= LEVEL:
            meaning = f"no evidence that {meaning}"
        elif difference > 0:
            meaning = f"features learnt on {pool} suit {target} better as they are than fine-tuned on so few images"
        effect = f"{'costs' if difference < 0 else 'gains'} {points(abs(difference))}"
        effect += f" compared with fine-tuning it ({tuned}){_verdict(p)}"
        sentences.append(f"Freezing the {kind} backbone ({frozen}) {effect}: {meaning}.")
    return " ".join(sentences)


def controls(tests):
    """Return a paragraph on whether the self-supervised features beat the controls.

    Args:
        tests: table returned by `mcnemar_tests`.
    """
    names = {
        "E": "a head on the frozen self-supervised features (E)",
        "random": "the same head on a frozen random backbone",
        "colour": "the same head on colour statistics alone",
        "simple": "the best simple classifier of colour and texture",
        "knn": "k-NN on the self-supervised features",
        "knn-random": "k-NN on the features of a random backbone",
    }
    leads = tests[(tests["first"] == "E") & tests["second"].isin(("colour", "simple"))]
    strongest = leads.loc[leads["difference"].idxmin(), "second"] if len(leads) else "simple"
    pairs = (("E", "random"), ("E", strongest), ("knn", "knn-random"))
    return " ".join(compare(*pair, tests, names) for pair in pairs)


def seeds(table, collapsed=()):
    """Return a paragraph on the differences that remain on average over seeds.

    Args:
        table: accuracies by setting and seed, returned by ch02_finetuning.accuracies_by_seed.
        collapsed: seeds whose pre-training collapsed; they are left out.
    """
    total = table["seed"].nunique()
    last = table[~table["seed"].isin(collapsed)].pivot(index="seed", columns="setting", values="accuracy_last")
    excluded = f" Pre-training collapsed with {listed(f'seed {s}' for s in collapsed)}, left out." if collapsed else ""
    if total == 1:
        return ONE_SEED
    if len(last) < 2:
        return f"Too few of the {total} seeds are left for a comparison.{excluded}"
    clauses = []
    for first, second in (("C", "A"), ("E", "random"), ("E", "simple")):
        differences = 100 * (last[first] - last[second])
        ends = mean_interval(differences)
        other = second if second in SETTINGS else f"control *{second}*"
        phrase = comparison(differences.mean(), *ends, other, ".1f", " points", "no interval, as all seeds agree")
        clauses.append(f"{first} {phrase}")
    return (
        f"On average over {len(last)} seeds, each with its own pre-training, {'; '.join(clauses)}. Intervals are "
        f"Student's t at the last epoch, not adjusted for the number of comparisons.{excluded}"
    )
