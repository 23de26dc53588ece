"""What N images can show: whatever the results, no sentence may contradict them."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from hw1lib.chapters import comparisons, words
from hw1lib.comparison import ROWS
from hw1lib.measures.statistics import mcnemar

NAMES = (*ROWS, "knn-random")
BEHIND = ("C", "E", "knn")  # rows that rest on self-supervised pre-training
SEEDS = range(12)
OPPOSITE = {"better": "worse", "worse": "better", "no difference": "no difference"}


def results(seed, images=60):
    """What each row got right: from poor to good, some rows nearly alike; those of BEHIND are often the best."""
    random = np.random.default_rng(seed)
    base = random.random(images) < random.uniform(0.1, 0.9)
    right = {}
    for row in NAMES:
        flips = random.random(images) < random.choice([0.0, 0.02, 0.1, 0.5])
        right[row] = np.where(flips, random.random(images) < random.uniform(0, 1), base)
        right[row] |= (row in BEHIND) & (random.random(images) < 0.3)
    return right


def without_collapsed(seed):
    return {row: hit for row, hit in results(seed).items() if row not in BEHIND}


def differ(one, two):
    return mcnemar(one, two) < 0.05


def verdict(text):
    (word,) = re.findall("better|worse|no difference", text)
    return word


def percents(text):
    return [float(number) for number in re.findall(r"(\d+\.\d) %", text)]


# --- which images


@pytest.mark.parametrize("collapsed", [False, True])
def test_hits_are_the_right_answers_of_rows_that_may_be_compared(collapsed):
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 3, 50), {row: random.integers(0, 3, 50) for row in NAMES}
    right = comparisons.hits(predictions, labels, collapsed)
    assert list(right) == [row for row in NAMES if not (collapsed and row in BEHIND)]
    assert all(np.array_equal(right[row], predictions[row] == labels) for row in right)


def test_the_table_behind_a_test_counts_every_image_once():
    right = results(1)
    one, two = right["A"], right["B"]
    table = comparisons.two_by_two(one, two, ("A", "B"))
    assert list(table) == ["", "B right", "B wrong"] and table[""].tolist() == ["A right", "A wrong"]
    for (row, mine), (column, other) in itertools.product(((0, one), (1, ~one)), (("B right", two), ("B wrong", ~two))):
        assert table[column][row] == (mine & other).sum()


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_table_of_p_values_is_the_test_of_every_pair_once_and_sentences_agree(seed, collapsed):
    right = without_collapsed(seed) if collapsed else results(seed)
    table, rows = comparisons.p_values(right).set_index("setting"), list(right)
    assert list(table.columns) == rows[:-1] and list(table.index) == rows[1:]
    for column, line in itertools.product(rows[:-1], rows[1:]):
        cell = table.loc[line, column]
        if rows.index(line) <= rows.index(column):
            assert cell == ""
            continue
        assert cell == words.p_number(mcnemar(right[column], right[line]))
        text = comparisons.compare(column, line, right)
        assert f"p {cell})" in text or f"p = {cell})" in text
        assert (verdict(text) != "no difference") == (float(cell.removeprefix("< ")) < words.LEVEL)


# --- comparisons


@pytest.mark.parametrize("seed", SEEDS)
def test_better_is_said_only_where_the_test_supports_it(seed):
    right = results(seed)
    for one, two in itertools.permutations("ABC", 2):
        text = comparisons.compare(one, two, right)
        gap = right[one].mean() - right[two].mean()
        if differ(right[one], right[two]):
            assert verdict(text) == ("better" if gap > 0 else "worse")
            assert f"by {abs(gap) * 100:.1f} percentage points" in text
        else:
            assert verdict(text) == "no difference" and "60 images" in text
        assert percents(text)[:2] == [round(right[r].mean() * 100, 1) for r in (one, two)]
        assert verdict(comparisons.compare(two, one, right)) == OPPOSITE[verdict(text)]
        assert f"etting {one} (" in text and f"etting {two} (" in text


@pytest.mark.parametrize("pair", [("C", "A"), ("B", "C"), ("C", "E"), ("E", "random")])
def test_a_collapsed_setting_is_not_compared(pair):
    """Neither better nor worse nor level: no number is said at all."""
    text = comparisons.compare(*pair, without_collapsed(0))
    assert "are not compared" in text and text.endswith("has collapsed.")
    assert not re.search(r"better|worse|difference|\d", text)
    behind = re.search("behind (.*) has collapsed", text).group(1)
    assert set(re.findall(r"setting ([A-E])", behind)) == set(pair) & set(BEHIND)


@pytest.mark.parametrize("seed", SEEDS)
def test_pretraining_and_controls_say_what_each_pair_says(seed):
    right, left = results(seed), without_collapsed(seed)
    pairs = (("B", "A"), ("C", "A"), ("C", "B"))
    assert comparisons.pretraining(right) == " ".join(comparisons.compare(*pair, right) for pair in pairs)
    text = comparisons.pretraining(left)
    assert comparisons.compare("B", "A", right) in text and text.count("are not compared") == 2
    pairs = (("E", "random"), ("E", "colour"), ("knn", "knn-random"))
    text = comparisons.controls(right)
    assert re.findall(r"p [<=] [\d.]+\d", text) == [words.p_value(mcnemar(right[a], right[b])) for a, b in pairs]
    found = re.findall(" is (better|worse) than |(no difference)", text)
    for (one, two), said in zip(pairs, ("".join(groups) for groups in found), strict=True):
        gap = right[one].mean() - right[two].mean()
        expected = ("better" if gap > 0 else "worse") if differ(right[one], right[two]) else "no difference"
        assert said == expected
    text = comparisons.controls(left)
    assert text.count("are not compared") == 3 and not re.search(r"\d", text)


# --- rankings


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_ranking_is_that_of_the_accuracies(seed, collapsed):
    """Of the settings alone; and who rests on pre-training that collapsed takes no part, however good."""
    right = without_collapsed(seed) if collapsed else results(seed)
    right["random"] = np.ones(60, bool)  # controls are never ranked
    text, names = comparisons.ranking(right), "ABD" if collapsed else "ABCDE"
    order = comparisons.ranked(right)
    assert order == sorted(names, key=lambda s: (-right[s].sum(), s))
    best, second = order[:2]
    lead = 100 * (right[best].mean() - right[second].mean())
    ahead = f"{lead:.1f} percentage points ahead of" if lead else "level with"
    assert f"setting {best} has the highest validation accuracy, {100 * right[best].mean():.1f} %, {ahead} " in text
    assert f"{ahead} setting {second}; the order is {', '.join(order)}." in text
    assert ("C and E rest on pre-training that collapsed and take no part." in text) == collapsed
    same = [s for s in order[1:] if not differ(right[best], right[s])]
    named = re.search(r"60 images cannot tell it from (.*?) \(", text)
    assert (re.findall(r"\b[A-E]\b", named.group(1)) if named else []) == same
    assert ("tells it from each of the others" in text) == (not same)


def test_of_equals_the_earlier_letter_is_first_and_nobody_ahead():
    right = {s: np.array([True, False, True]) for s in "EDCBA"}
    assert comparisons.ranked(right) == list("ABCDE")
    assert "setting A has the highest validation accuracy, 66.7 %, level with setting B" in comparisons.ranking(right)


# --- domains


def parts_of_domains(right):
    return re.split(
        r"(?<=[.]) (?=Freezing|The frozen|The self)", comparisons.domains(right, "the Americas", "elsewhere")
    )


@pytest.mark.parametrize("seed", range(30))
def test_domains_say_what_freezing_does(seed):
    right = results(seed)
    for part, frozen, free in zip(parts_of_domains(right), "DE", "BC", strict=True):
        gap = 100 * (right[free].mean() - right[frozen].mean())
        if not differ(right[free], right[frozen]):
            assert "changes nothing" in part and "no sign" in part
        elif gap > 0:
            assert f"costs {gap:.1f} percentage points" in part and "do not carry" in part
        else:
            assert f"even {-gap:.1f} percentage points better" in part
        assert re.findall(r"\b[B-E]\b", part)[0] == frozen
        assert "the Americas" in part and "elsewhere" in part
        assert words.p_value(mcnemar(right[free], right[frozen])) in part
    whole, left = parts_of_domains(right), parts_of_domains(without_collapsed(seed))
    assert left == [whole[0], "The self-supervised pre-training has collapsed, so E and C say nothing."]


# --- seeds


def by_seed(values):
    """A table as tables/finetune_seeds.csv from {row: last accuracies by seed}."""
    rows = [(row, seed, 0.99, value) for row, found in values.items() for seed, value in enumerate(found)]
    return pd.DataFrame(rows, columns=["setting", "seed", "accuracy", "accuracy_last"])


CLAIM = re.compile(r"(\w+) − (\w+) is ([+-]\d+\.\d) ± (\d+\.\d) points, above zero (each time|(\d+) of (\d+) times)")


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_what_seeds_say_is_what_the_table_says(count, seed):
    """Every number parsed back: means, sample standard deviations, and how often."""
    random = np.random.default_rng(seed)
    values = {row: random.integers(0, 407, count) / 406 for row in ROWS}
    if seed == 0:
        values |= {"C": values["A"], "E": values["random"] + 0.001}  # all equal; always above
    table = by_seed(values)
    text = comparisons.seeds(table)
    assert text == comparisons.seeds(table.sample(frac=1, random_state=0))
    claims = CLAIM.findall(text)
    assert [claim[:2] for claim in claims] == [("C", "A"), ("E", "random"), ("E", "colour")]
    assert f"Over {count} seeds" in text and "nan" not in text
    for one, two, mean, spread, often, times, of in claims:
        change = values[one] - values[two]
        assert float(mean) == pytest.approx(100 * change.mean(), abs=0.051)
        assert float(spread) == pytest.approx(100 * change.std(ddof=1), abs=0.051)
        above = int((change > 0).sum())
        assert (often == "each time") == (above == count)
        assert often == "each time" or (int(times), int(of)) == (above, count)


def test_one_seed_claims_no_spread():
    text = comparisons.seeds(by_seed({row: [0.5] for row in ROWS}))
    assert text.startswith("One seed was run") and "--seeds" in text
    assert not re.search(r"±|−|nan|above zero", text)


def test_a_collapsed_seed_takes_no_part():
    """Its numbers may be the best of all; none of them counts, and the text says so."""
    values = {row: np.array([0.4, 0.5, 0.45]) for row in ROWS} | {"C": np.array([0.9, 0.5, 0.45])}
    text = comparisons.seeds(by_seed(values), collapsed=[0])
    assert "Over 2 seeds" in text and "C − A is +0.0 ± 0.0" in text and text.endswith("pre-training: seed 0.")
    text = comparisons.seeds(by_seed(values), collapsed=[0, 2])
    assert "Too few of the 3 seeds" in text and "seed 0 and seed 2." in text and "±" not in text
