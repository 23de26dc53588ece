"""What N images can show: whatever the results, no sentence may contradict them."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hw1lib.chapters import phrases, significance
from hw1lib.metrics.statistics import holm, mcnemar
from hw1lib.variants import ROWS

NAMES = (*ROWS, "knn-random")
BEHIND = ("C", "E", "knn")  # rows that rest on self-supervised pre-training
OPPOSITE = {"better": "worse", "worse": "better", "no difference": "no difference"}
of_many_results = pytest.mark.parametrize("seed", range(12))
collapsed_or_not = pytest.mark.parametrize("collapsed", [False, True])


def results(seed, collapsed=False, images=60):
    """What each row got right: from poor to good, some rows nearly alike; those of BEHIND are often the best."""
    random = np.random.default_rng(seed)
    base = random.random(images) < random.uniform(0.1, 0.9)
    right = {}
    for row in NAMES:
        flips = random.random(images) < random.choice([0.0, 0.02, 0.1, 0.5])
        right[row] = np.where(flips, random.random(images) < random.uniform(0, 1), base)
        right[row] |= (row in BEHIND) & (random.random(images) < 0.3)
    return pd.DataFrame({row: hit for row, hit in right.items() if not (collapsed and row in BEHIND)})


def verdict(text):
    (word,) = re.findall("better|worse|no difference", text)
    return word


def expected(one, two, right):
    """The verdict that the test supports among all that the text makes, the gap in percentage points, and p."""
    family = [*map(set, itertools.combinations("ABCDE", 2)), {"knn", "knn-random"}]
    family += [{"E", control} for control in ("random", "colour", "simple")]
    family = [pair for pair in family if pair <= set(right)]
    p = holm([mcnemar(*(right[name].to_numpy() for name in pair)) for pair in family])[family.index({one, two})]
    gap = 100 * (right[one].mean() - right[two].mean())
    return "no difference" if p >= 0.05 else "better" if gap > 0 else "worse", gap, phrases.p_value(p)


def test_hits_are_the_right_answers_of_rows_that_may_be_compared():
    labels, predictions = np.arange(50) % 3, {row: np.full(50, n % 3) for n, row in enumerate(NAMES)}
    right, left = (significance.hits(predictions, labels, collapsed) for collapsed in (False, True))
    assert list(right) == list(NAMES) and list(left) == [row for row in NAMES if row not in BEHIND]
    assert all(np.array_equal(found[row], predictions[row] == labels) for found in (right, left) for row in found)


def test_the_table_behind_a_test_counts_every_image_once():
    one, two = (results(1)[row].to_numpy() for row in "AB")
    table = significance.two_by_two(one, two, ("A", "B")).set_index("").loc[["A right", "A wrong"]]
    counts = [[(mine & other).sum() for other in (two, ~two)] for mine in (one, ~one)]
    assert table[["B right", "B wrong"]].values.tolist() == counts


@pytest.mark.slow
@collapsed_or_not
@of_many_results
def test_every_pair_is_tested_once_and_better_is_said_only_where_the_test_supports_it(seed, collapsed):
    right = results(seed, collapsed)
    tests = significance.tested(right)
    assert len(tests) == (4 if collapsed else 14) - collapsed
    for (one, two, gap, p, _), shown in zip(tests.itertuples(index=False), significance.readable(tests).itertuples()):
        assert gap == right[one].mean() - right[two].mean() and p == mcnemar(right[one], right[two])
        word, gap, p = expected(one, two, right)
        text = significance.compare(one, two, right)
        assert verdict(text) == word == OPPOSITE[verdict(significance.compare(two, one, right))]
        assert shown[-1] == p.removeprefix("p ").removeprefix("= ") and f"{p})" in text
        assert float(shown[3]) == pytest.approx(gap, abs=0.051)
        assert f"by {abs(gap):.1f} percentage points" in text if word != "no difference" else "60 images" in text
        assert f"etting {one} ({phrases.percent(right[one].mean())})" in text
        assert f"etting {two} ({phrases.percent(right[two].mean())})" in text


@pytest.mark.parametrize("pair", [("C", "A"), ("B", "C"), ("C", "E"), ("E", "random")])
def test_a_collapsed_setting_is_not_compared(pair):
    """Neither better nor worse nor level: no number is said at all."""
    text = significance.compare(*pair, results(0, collapsed=True))
    assert "are not compared" in text and text.endswith("has collapsed.")
    assert not re.search(r"better|worse|difference|\d", text)
    behind = re.search("behind (.*) has collapsed", text).group(1)
    assert set(re.findall(r"setting ([A-E])", behind)) == set(pair) & set(BEHIND)


@of_many_results
def test_pretraining_and_controls_say_what_each_pair_says(seed):
    right, left = results(seed), results(seed, collapsed=True)
    pairs = (("B", "A"), ("C", "A"), ("C", "B"))
    assert significance.pretraining(right) == " ".join(significance.compare(*pair, right) for pair in pairs)
    text = significance.pretraining(left)
    assert significance.compare("B", "A", left) in text and text.count("are not compared") == 2
    text = significance.controls(right)
    found = re.findall(r" is (better|worse) than |(no difference)|(p [<=] [\d.]+\d)", text)
    stronger = max("colour", "simple", key=lambda control: right[control].sum())
    pairs = (("E", "random"), ("E", stronger), ("knn", "knn-random"))
    said = [expected(*pair, right) for pair in pairs]
    assert ["".join(groups) for groups in found] == [part for word, _, p in said for part in (word, p)]
    text = significance.controls(left)
    assert text.count("are not compared") == 3 and not re.search(r"\d", text)


@collapsed_or_not
@of_many_results
def test_the_ranking_is_that_of_the_accuracies(seed, collapsed):
    """Of the settings alone; and who rests on pre-training that collapsed takes no part, however good."""
    right = results(seed, collapsed).assign(random=True)  # controls are never ranked
    text, order = significance.ranking(right), significance.ranked(right)
    assert order == sorted("ABD" if collapsed else "ABCDE", key=lambda s: (-right[s].sum(), s))
    best, second = order[:2]
    lead = expected(best, second, right)[1]
    ahead = f"{lead:.1f} percentage points ahead of" if lead else "level with"
    assert f"setting {best} has the highest validation accuracy, {100 * right[best].mean():.1f} %, {ahead} " in text
    assert f"{ahead} setting {second}; the order is {', '.join(order)}." in text
    assert ("C and E rest on pre-training that collapsed and take no part." in text) == collapsed
    same = [s for s in order[1:] if expected(best, s, right)[0] == "no difference"]
    named = re.search(r"60 images cannot tell it from (.*?) \(", text)
    assert (re.findall(r"\b[A-E]\b", named.group(1)) if named else []) == same
    assert ("tells it from each of the others" in text) == (not same)


@pytest.mark.parametrize("seed", range(30))
def test_domains_say_what_freezing_does(seed):
    def parts(right):
        text = significance.domains(right, "the Americas", "elsewhere")
        return re.split(r"(?<=[.]) (?=Freezing|The frozen|The self)", text)

    right = results(seed)
    whole, left = parts(right), parts(results(seed, collapsed=True))
    for part, frozen, free in zip(whole, "DE", "BC", strict=True):
        word, gap, p = expected(free, frozen, right)
        said = {
            "no difference": ("changes nothing", "no sign"),
            "better": (f"costs {gap:.1f} percentage points", "do not carry"),
            "worse": (f"even {-gap:.1f} percentage points better",),
        }
        assert all(text in part for text in (*said[word], "the Americas", "elsewhere", p))
        assert re.findall(r"\b[B-E]\b", part)[0] == frozen
    assert left[1:] == ["The self-supervised pre-training has collapsed, so E and C say nothing."]


@pytest.mark.parametrize("images", [1, 4])
def test_places_are_kept_together_in_every_test(images):
    """Each image shown four times, as so many images of one place: nothing more is known than before."""
    right = results(3)
    places = np.arange(60).repeat(images)
    answers = {row: np.repeat(~hit, images) for row, hit in right.items()}
    found = significance.hits(answers, np.zeros(60 * images, bool), places=places)
    assert significance.tested(found)["p"].tolist() == pytest.approx(significance.tested(right)["p"].tolist())
    assert ("240 images of 60 places" in significance.ranking(found) + significance.controls(found)) == (images == 4)


# --- seeds


def by_seed(values):
    """A table as tables/finetune_seeds.csv from {row: last accuracies by seed}."""
    rows = [(row, seed, 0.99, value) for row, found in values.items() for seed, value in enumerate(found)]
    return pd.DataFrame(rows, columns=["setting", "seed", "accuracy", "accuracy_last"])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(12))
def test_what_seeds_say_is_what_the_table_says(count, seed):
    """Means with Student's interval; the order of the table's rows is all one."""
    random = np.random.default_rng(seed)
    values = {row: random.integers(0, 407, count) / 406 for row in ROWS}
    if seed == 0:
        values |= {"C": values["A"]}  # all equal
    text = significance.seeds(by_seed(values).sample(frac=1, random_state=0))
    assert f"Over {count} seeds" in text and "nan" not in text
    for one, two in (("C", "A"), ("E", "random"), ("E", "simple")):
        change = 100 * (values[one] - values[two])
        if not np.ptp(change):
            assert f"{one} − {two} is +0.0 points (no interval, as all seeds agree), not told from zero" in text
            continue
        found = re.search(rf"{one} − {two} is (\S+) points \((\S+) to (\S+)\), ([^.;]*)", text).groups()
        half = stats.t.ppf(0.975, count - 1) * change.std(ddof=1) / count**0.5
        ends = change.mean() + np.array([0, -half, half])
        assert [float(number) for number in found[:3]] == pytest.approx(ends, abs=0.051) and found[0][0] in "+-"
        told = "above zero" if ends[1] > 0 else "below zero" if ends[2] < 0 else "not told from zero"
        assert found[3] == told


def test_a_collapsed_seed_takes_no_part():
    """Its numbers may be the best of all; none of them counts, and the text says so."""
    values = {row: np.array([0.4, 0.5, 0.45]) for row in ROWS} | {"C": np.array([0.9, 0.5, 0.45])}
    text = significance.seeds(by_seed(values), collapsed=[0])
    assert "Over 2 seeds" in text and "C − A is +0.0 points" in text and text.endswith("pre-training: seed 0.")
    text = significance.seeds(by_seed(values), collapsed=[0, 2])
    assert "Too few of the 3 seeds" in text and "seed 0 and seed 2." in text and "points" not in text
