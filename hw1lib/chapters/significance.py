"""Notebook 02: what N validation images can show of settings and controls.

"Better" is said only where an exact McNemar test on the same images, places kept together where they are known,
supports it at 5 %, after Holm's adjustment for all comparisons that the text makes. Rankings and tests use the last
epoch, which no selection used.
"""

import itertools

import pandas as pd

from hw1lib.chapters.phrases import LEVEL, capital, ends, listed, p_number, p_value, percent, points
from hw1lib.metrics.statistics import holm, mcnemar, mean_interval
from hw1lib.variants import ROWS, SETTINGS

FAMILY = (  # all that the text compares: it ranks A–E, and holds the self-supervised features against controls
    *((later, earlier) for earlier, later in itertools.combinations(SETTINGS, 2)),
    *(("E", control) for control in ("random", "colour", "simple")),
    ("knn", "knn-random"),
)


def hits(predictions, labels, collapsed=False, places=None):
    """Which validation images each row gets right at its last epoch.

    Args:
        predictions: dict from row to (N,) predicted classes.
        labels: (N,) true classes.
        collapsed: whether self-supervised pre-training collapsed: then what rests on it is left out, so that none of
            it wins a comparison.
        places: (N,) which place each image shows; None: each another one.

    Returns:
        DataFrame with a column of bool for each row, and an image's place as index.
    """
    rests = {name for name, row in ROWS.items() if row.pretraining == "pretrain"} if collapsed else set()
    right = {name: found == labels for name, found in predictions.items() if name not in rests}
    return pd.DataFrame(right, index=pd.RangeIndex(len(labels)) if places is None else places)


def two_by_two(one, two, names):
    """The validation images by who gets them right: what McNemar's test looks at.

    Args:
        one, two: (N,) bool, which of the same images each gets right.
        names: what the two are called.
    """
    first, second = names
    columns = {f"{second} right": two, f"{second} wrong": ~two}
    counts = {name: [(one & those).sum(), (~one & those).sum()] for name, those in columns.items()}
    return pd.DataFrame({"": [f"{first} right", f"{first} wrong"]} | counts)


def tested(right):
    """Exact McNemar tests of the comparisons that the text makes.

    Args:
        right: as of `hits`.

    Returns:
        DataFrame with first and second, the difference of their accuracies, p, and p adjusted for all of them.
    """
    pairs = [pair for pair in FAMILY if set(pair) <= set(right)]
    table = pd.DataFrame(pairs, columns=["first", "second"])
    table["difference"] = [right[one].mean() - right[two].mean() for one, two in pairs]
    places = None if right.index.is_unique else right.index
    table["p"] = [mcnemar(right[one].to_numpy(), right[two].to_numpy(), places) for one, two in pairs]
    return table.assign(adjusted=holm(table["p"]))


def readable(tests):
    """The same for reading; `tests` as of `tested`."""
    shown = tests.assign(**{name: tests[name].map(p_number) for name in ("p", "adjusted")})
    shown["difference"] = [f"{100 * gap:+.1f}" for gap in tests["difference"]]
    names = {"first": "setting", "second": "against", "difference": "difference in points", "adjusted": "p after Holm"}
    return shown.rename(columns=names)


def adjusted(one, two, right):
    """The p-value of one comparison after Holm's adjustment, in whichever order its two rows are named."""
    tests = tested(right)
    return float(tests.loc[tests["first"].isin((one, two)) & tests["second"].isin((one, two)), "adjusted"].item())


def compare(first, second, right, names=None):
    """Says whether `first` differs from `second`.

    Args:
        first, second: rows of the table.
        right: as of `hits`. A row that is not there rests on pre-training that collapsed; it wins no comparison.
        names: dict from row to how the sentence calls it.
    """
    one, two = ((names or {}).get(row, f"setting {row}") for row in (first, second))
    out = [text for row, text in ((first, one), (second, two)) if row not in right]
    if out:
        return f"{capital(one)} and {two} are not compared: the pre-training behind {listed(out)} has collapsed."
    gap, p = right[first].mean() - right[second].mean(), adjusted(first, second, right)
    mine, other = (percent(right[row].mean()) for row in (first, second))
    if p >= LEVEL:
        shown = f"no difference that {_images(right)} can show ({p_value(p)})"
        return f"Between {one} ({mine}) and {two} ({other}) there is {shown}."
    word = "better" if gap > 0 else "worse"
    return f"{capital(one)} ({mine}) is {word} than {two} ({other}) by {points(abs(gap))} ({p_value(p)})."


def _images(right):
    """336 images, or 336 images of 18 places where several show one."""
    places = right.index.nunique()
    of = "one place" if places == 1 else f"{places} places"
    return f"{len(right)} images" + (f" of {of}" if places < len(right) else "")


def ranked(right):
    """The settings A–E that may be compared, the best at the last epoch first."""
    return sorted((s for s in right if s in SETTINGS), key=lambda s: (-right[s].mean(), s))


def ranking(right):
    """Names the best of the settings A–E and what it can be told apart from."""
    best, second, *_ = order = ranked(right)
    same = [s for s in order[1:] if adjusted(best, s, right) >= LEVEL]
    lead = right[best].mean() - right[second].mean()
    ahead = f"{points(lead)} ahead of" if lead > 0 else "level with"
    text = f"At the last epoch setting {best} has the highest validation accuracy, {percent(right[best].mean())}, "
    text += f"{ahead} setting {second}; the order is {', '.join(order)}."
    absent = [s for s in SETTINGS if s not in right]
    if absent:
        text += f" {listed(absent)} rest on pre-training that collapsed and take no part."
    if same:
        return f"{text} {_images(right)} cannot tell it from {listed(same)} (exact McNemar test, Holm)."
    return f"{text} The exact McNemar test, adjusted after Holm, tells it from each of the others."


def pretraining(right):
    """What pre-training brings when everything is fine-tuned: B and C against A, C against B."""
    return " ".join(compare(*pair, right) for pair in (("B", "A"), ("C", "A"), ("C", "B")))


def domains(right, pool, target):
    """What frozen against unfrozen says about the two domains, which `pool` and `target` name."""
    parts = []
    for frozen, free, kind in (("D", "B", "supervised"), ("E", "C", "self-supervised")):
        if free not in right:
            parts.append(f"The {kind} pre-training has collapsed, so {frozen} and {free} say nothing.")
            continue
        gap, p = right[free].mean() - right[frozen].mean(), adjusted(free, frozen, right)
        freezing = f"Freezing the {kind} backbone ({frozen} against {free})"
        if p >= LEVEL:
            both = f"{percent(right[frozen].mean())} against {percent(right[free].mean())}, {p_value(p)}"
            found = f"{freezing} changes nothing that {_images(right)} can show ({both})"
            meaning = f"no sign here that {pool} and {target} ask for other features"
        elif gap > 0:
            found = f"{freezing} costs {points(gap)} ({p_value(p)})"
            meaning = f"features learnt on {pool} do not carry over to {target} whole, they have to be adapted"
        else:
            better = f"{points(-gap)} better than the fine-tuned one ({free}; {p_value(p)})"
            found = f"The frozen {kind} backbone ({frozen}) is even {better}"
            after = "after fine-tuning on these few labelled images"
            meaning = f"its features of {pool} serve {target} better as they are than {after}"
        parts.append(f"{found}: {meaning}.")
    return " ".join(parts)


def controls(right):
    """Whether the self-supervised features hold more than the controls do."""
    names = {
        "E": "a head on the frozen self-supervised features (E)",
        "random": "the same head on a frozen random backbone",
        "colour": "the same head on colour statistics alone",
        "simple": "the best simple classifier of colour and texture",
        "knn": "k-NN on the self-supervised features",
        "knn-random": "k-NN on those of a random backbone",
    }
    strongest = max(("colour", "simple"), key=lambda control: right[control].mean())
    pairs = (("E", "random"), ("E", strongest), ("knn", "knn-random"))
    return " ".join(compare(*pair, right, names) for pair in pairs)


def seeds(table, collapsed=()):
    """What remains of the differences when everything is repeated with other seeds.

    Args:
        table: as of `accuracies_of_seeds`.
        collapsed: seeds whose pre-training has collapsed; they take no part.
    """
    total = table["seed"].nunique()
    table = table[~table["seed"].isin(collapsed)]
    last = table.pivot(index="seed", columns="setting", values="accuracy_last")
    left_out = f" Left out for collapsed pre-training: {listed(f'seed {s}' for s in collapsed)}." if collapsed else ""
    if total == 1:
        return (
            "One seed was run. The tests above say what these validation images show of these very networks; how far "
            "another start, another order of the images or another machine's rounding would move them was not "
            "measured. `--seeds 3` repeats pre-training, fine-tuning and controls with two more."
        )
    if len(last) < 2:
        return f"Too few of the {total} seeds are left for a comparison.{left_out}"

    parts = []
    for one, two in (("C", "A"), ("E", "random"), ("E", "simple")):
        change = last[one] - last[two]
        low, high = mean_interval(change)
        sign = "above zero" if low > 0 else "below zero" if high < 0 else "not told from zero"
        around = ends(100 * low, 100 * high, form="+.1f", without="no interval, as all seeds agree")
        parts.append(f"{one} − {two} is {100 * change.mean():+.1f} points ({around}), {sign}")
    each = (
        "each with a pre-training of its own (mean difference at the last epoch, 95 % t intervals, not adjusted for "
        "being three)"
    )
    return f"Over {len(last)} seeds, {each}: {'; '.join(parts)}.{left_out}"
