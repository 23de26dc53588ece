"""Sentences about differences: whatever the results, none may contradict the tests."""

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
NOT = "which is not significant"
many_results = pytest.mark.parametrize("seed", range(6))


def results(seed, collapsed=False, images=60):
    """Hits from poor to good, some rows nearly alike; the self-supervised ones are often the best."""
    random = np.random.default_rng(seed)
    base = random.random(images) < random.uniform(0.1, 0.9)
    right = {}
    for row in NAMES:
        flips = random.random(images) < random.choice([0.0, 0.02, 0.1, 0.5])
        right[row] = np.where(flips, random.random(images) < random.uniform(0, 1), base)
        right[row] |= (row in significance.SELF_SUPERVISED) & (random.random(images) < 0.3)
    return pd.DataFrame(right).drop(columns=significance.SELF_SUPERVISED if collapsed else [])


def expected(one, two, right):
    """The difference in percentage points and its p-value, adjusted for all comparisons of the report."""
    family = [*map(set, itertools.combinations("ABCDE", 2)), {"knn", "knn-random"}]
    family += [{"E", control} for control in ("random", "colour", "simple")]
    family = [pair for pair in family if pair <= set(right)]
    p = holm([mcnemar(*(right[name].to_numpy() for name in pair)) for pair in family])[family.index({one, two})]
    return 100 * (right[one].mean() - right[two].mean()), p


def assert_agrees(text, difference, p):
    """A sentence has the direction and the size of a difference, and claims significance only below the level."""
    if difference == 0:
        assert "same accuracy" in text and "significant" not in text
        return
    assert f"{abs(difference):.1f} percentage points {'above' if difference > 0 else 'below'} " in text
    assert (NOT in text) == (p >= phrases.LEVEL) and f"({phrases.p_value(p)})" in text


def test_the_contingency_table_counts_every_image_once():
    one, two = (results(1)[row].to_numpy() for row in "AB")
    table = significance.contingency(one, two, ("A", "B")).set_index("")
    counts = [[(a & b).sum() for b in (two, ~two)] for a in (one, ~one)]
    assert table.loc[["A right", "A wrong"], ["B right", "B wrong"]].values.tolist() == counts


@pytest.mark.parametrize("collapsed", [False, True])
@many_results
def test_comparisons_and_the_ranking_agree_with_the_tests(seed, collapsed):
    """Controls, and settings whose pre-training collapsed, are not ranked, however good they are."""
    right = results(seed, collapsed).assign(random=True)
    tests, order = significance.mcnemar_tests(right), significance.ranked(right)
    assert len(tests) == (3 if collapsed else 14)
    for one, two, *_ in tests.itertuples(index=False):
        difference, p = expected(one, two, right)
        assert_agrees(significance.compare(one, two, tests), difference, p)
        assert_agrees(significance.compare(two, one, tests), -difference, p)
    assert order == sorted("ABD" if collapsed else "ABCDE", key=lambda s: (-right[s].sum(), s))
    text, (best, second, *_) = significance.ranking(tests, right), order
    lead, _ = expected(best, second, right)
    ahead = f"{lead:.1f} percentage points above" if lead else "level with"
    assert f"setting {best} has the highest accuracy, {100 * right[best].mean():.1f} % of 60 validation images" in text
    assert f"{ahead} setting {second}; the order is {', '.join(order)}." in text
    assert ("Settings C and E are not ranked" in text) == collapsed
    for words, significant in (("not significantly", False), ("(?<!not )significantly", True)):
        named = re.search(rf"{words} better than (.*?)(?: but|\s\()", text)
        group = [s for s in order[1:] if (expected(best, s, right)[1] < phrases.LEVEL) == significant]
        assert (re.findall(r"\b[A-E]\b", named[1]) if named else []) == group


@many_results
def test_paragraphs_are_made_of_comparisons(seed):
    right = results(seed)
    tests = significance.mcnemar_tests(right)
    stronger = max("colour", "simple", key=lambda control: right[control].sum())
    for text, pairs in (
        (significance.pretraining(tests), (("B", "A"), ("C", "A"), ("C", "B"))),
        (significance.controls(tests), (("E", "random"), ("E", stronger), ("knn", "knn-random"))),
    ):
        for sentence, pair in zip(re.split(r"(?<=[.]) (?=[A-Zk])", text), pairs, strict=True):
            assert_agrees(sentence, *expected(*pair, right))
    text = significance.domains(tests, "the Americas", "elsewhere")
    for sentence, frozen, tuned in zip(text.split(" Freezing "), "DE", "BC", strict=True):
        difference, p = expected(frozen, tuned, right)
        assert f"{'costs' if difference < 0 else 'gains'} {abs(difference):.1f} percentage points" in sentence
        assert (NOT in sentence) == ("no evidence" in sentence) == (p >= phrases.LEVEL)
        assert ("have to be adapted" in sentence) == (p >= phrases.LEVEL or difference < 0)


def test_nothing_is_compared_with_collapsed_pretraining():
    """No number is given at all."""
    assert significance.SELF_SUPERVISED == ["C", "E", "knn"]
    tests = significance.mcnemar_tests(results(0, collapsed=True))
    for text in (significance.compare("C", "A", tests), significance.controls(tests)):
        assert "are not compared" in text and not re.search(r"above|below|significant|\d", text)
    assert significance.pretraining(tests).count("are not compared") == 2
    assert "E and C are not compared" in significance.domains(tests, "here", "there")


@pytest.mark.parametrize("images", [1, 4])
def test_images_of_one_place_are_kept_together_in_every_test(images):
    """Each image shown four times, as so many images of one place: the evidence stays the same."""
    right, places = results(3), np.arange(60).repeat(images)
    grouped = pd.DataFrame(right.to_numpy().repeat(images, axis=0), index=places, columns=right.columns)
    tests = significance.mcnemar_tests(grouped)
    assert tests["p"].tolist() == pytest.approx(significance.mcnemar_tests(right)["p"].tolist())
    assert ("240 validation images of 60 places" in significance.ranking(tests, grouped)) == (images == 4)


def test_images_that_all_show_one_place_are_no_evidence():
    right = results(3).set_index(np.zeros(60, int))
    text = significance.ranking(significance.mcnemar_tests(right), right)
    assert "60 validation images of one place" in text and "is not significantly better than" in text


# --- seeds


def by_seed(values):
    """A table as tables/finetune_seeds.csv from {row: last accuracies by seed}."""
    rows = [(row, seed, 0.99, value) for row, column in values.items() for seed, value in enumerate(column)]
    return pd.DataFrame(rows, columns=["setting", "seed", "accuracy", "accuracy_last"])


@pytest.mark.parametrize("count", [2, 5])
@many_results
def test_mean_differences_over_seeds_have_students_interval(count, seed):
    random = np.random.default_rng(seed)
    values = {row: random.integers(0, 407, count) / 406 for row in ROWS}
    text = significance.seeds(by_seed(values).sample(frac=1, random_state=0))
    assert f"over {count} seeds" in text and "nan" not in text
    for one, two, name in (("C", "A", "A"), ("E", "random", "control *random*"), ("E", "simple", "control *simple*")):
        change = 100 * (values[one] - values[two])
        mean, half = change.mean(), stats.t.ppf(0.975, count - 1) * change.std(ddof=1) / count**0.5
        assert f"{one} {phrases.comparison(mean, mean - half, mean + half, name, '.1f', ' points')}" in text


def test_seeds_that_agree_have_no_interval_and_those_whose_pretraining_collapsed_are_left_out():
    values = {row: np.array([0.4, 0.5, 0.45]) for row in ROWS}
    text = significance.seeds(by_seed(values))
    assert "C is level with A (no interval, as all seeds agree)" in text and "significant" not in text
    assert significance.seeds(by_seed({row: [0.5] for row in ROWS})).startswith("Only one seed")
    values["C"] = np.array([0.9, 0.5, 0.45])
    text = significance.seeds(by_seed(values), collapsed=[0])
    assert "over 2 seeds" in text and "C is level with A" in text and "Seed 0 is left out" in text
    text = significance.seeds(by_seed(values), collapsed=[0, 2])
    assert "Fewer than two of the 3 seeds" in text and "Seeds 0 and 2 are left out" in text and "points" not in text
