"""Tables of the report from stored predictions: they agree with the tests and the sentences."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from hw1lib import answers, gallery, profiles
from hw1lib.data import layout
from hw1lib.results import figures, metrics, sentences, statistics

BEHIND = {"C", "E", "knn"}  # rows that rest on self-supervised pre-training
CLASSES = ("Couch", "Alarm_Clock", "Mug")


def book(truth, predicted, collapsed=False, val=None):
    """A workbook of which only the last predictions are real; its first epoch is always wrong.

    Args:
        truth: (N,) class numbers.
        predicted: dict from row, or knn-random, to (N,) class numbers.
    """
    arrays = {answers.step_of(r): {"predictions": p} for r, p in predicted.items()}
    arrays["control-knn"]["predictions_random"] = predicted["knn-random"]

    def result(step):
        found = arrays[step]
        return SimpleNamespace(
            array=lambda name: np.stack([(truth + 1) % len(CLASSES), found[name]])
        )

    val = val or SimpleNamespace(labels=truth, classes=CLASSES)
    return SimpleNamespace(
        profile=profiles.get("smoke"),
        result=result,
        metrics=lambda step: {"collapsed": collapsed} if step == "pretrain" else {},
        data=SimpleNamespace(problem1=SimpleNamespace(val=val, classes=CLASSES)),
    )


def made(seed, collapsed=False, images=80):
    """Rows from poor to good, some nearly alike; the self-supervised ones are the best of all."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, images)
    base = random.integers(0, 3, images)
    predicted = {}
    for row in (*answers.rows(), "knn-random"):
        good = random.random(images) < (0.97 if row in BEHIND else random.choice([0, 0.1, 0.6]))
        predicted[row] = np.where(good, truth, base)
    return book(truth, predicted, collapsed), truth, predicted


SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_right_is_the_last_epoch_against_the_labels(seed):
    shown, truth, predicted = made(seed)
    right = answers.right(shown)
    assert set(right) == {*"ABCDE", "random", "knn", "colour", "knn-random"}
    assert all(np.array_equal(right[row], predicted[row] == truth) for row in right)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_whose_pretraining_collapsed_win_nothing(seed):
    """However good their numbers are."""
    whole, _, _ = made(seed)
    assert answers.most_confused(whole)[0] in BEHIND  # else this would prove nothing
    fallen, _, _ = made(seed, collapsed=True)
    right = answers.right(fallen)
    assert set(right) == set(answers.right(whole)) - BEHIND
    assert answers.most_confused(fallen)[0] in "ABD"
    table = answers.mcnemar(fallen)
    assert BEHIND.isdisjoint({*table["setting"], *table.columns})
    assert not re.search(r"setting [CE] has the highest", sentences.ranking(right))


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_mcnemar_table_is_the_test_of_every_pair_once(seed, collapsed):
    shown, truth, predicted = made(seed, collapsed)
    table = answers.mcnemar(shown).set_index("setting")
    rows = list(answers.right(shown))
    assert [*table.columns, table.index[-1]] == rows and [table.columns[0], *table.index] == rows
    filled = 0
    for one in table.columns:
        for two in table.index:
            p = statistics.mcnemar(predicted[one] == truth, predicted[two] == truth)
            upper = rows.index(two) <= rows.index(one)
            assert table.loc[two, one] == ("" if upper else sentences.p_number(p))
            filled += not upper
    assert filled == len(rows) * (len(rows) - 1) / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_sentences_agree_with_the_mcnemar_table(seed):
    """The same p in both, and better or worse exactly where the table's is below the level."""
    shown, _, _ = made(seed)
    right, table = answers.right(shown), answers.mcnemar(shown).set_index("setting")
    for one in table.columns:
        for two in table.index:
            cell = table.loc[two, one]
            if cell:
                text = sentences.compare(one, two, right)
                assert f"p {cell})" in text or f"p = {cell})" in text
                told = float(cell.removeprefix("< ")) < sentences.LEVEL
                assert bool(re.search("better|worse", text)) == told


def test_tables_print_without_nan():
    shown, _, _ = made(0)
    for name in ("mcnemar", "confused"):
        text = answers.printed(shown, name, answers.TABLES[name](shown))
        assert "nan" not in text.lower() and "None" not in text
        assert len({line.count("|") for line in text.replace(r"\|", "").splitlines()}) == 1


# --- confused classes


@pytest.mark.parametrize("seed", SEEDS)
def test_confused_counts_by_brute_force(seed):
    shown, truth, predicted = made(seed)
    best, guessed, matrix, pairs = answers.most_confused(shown)
    shares = {s: (predicted[s] == truth).mean() for s in "ABCDE"}
    assert shares[best] == max(shares.values()) and np.array_equal(guessed, predicted[best])
    table = answers.confused(shown)
    assert len(table) == len(pairs)
    for line, (i, j) in zip(table.to_dict("records"), pairs):
        assert line["classes"] == f"{CLASSES[i]} – {CLASSES[j]}"
        for column, (a, b) in (("taken for the second", (i, j)), ("taken for the first", (j, i))):
            times, of = ((truth == a) & (guessed == b)).sum(), (truth == a).sum()
            assert line[column] == f"{times} of {of}"


def flawless():
    truth = np.arange(6) % 3
    return book(truth, dict.fromkeys((*answers.rows(), "knn-random"), truth))


def test_without_any_confusion_the_table_is_still_one():
    """A heading and no row: pandoc would print bare lines of pipes as text."""
    table = answers.confused(flawless())
    assert len(table) == 0
    assert list(table) == ["classes", "taken for the second", "taken for the first"]


def test_shown_images_are_those_that_were_taken_for_another(course_data, monkeypatch):
    """In the order of the validation set; a direction that nothing went has no row."""
    val = layout.find(course_data, profiles.Data()).problem1.val
    guessed = val.labels.copy()
    guessed[[0, 1]] = 2  # both Couches are taken for Mugs
    guessed[5] = 1  # one Mug for an Alarm_Clock
    assert val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    shown = book(
        val.labels, dict.fromkeys((*answers.rows(), "knn-random"), guessed), val=val
    )
    rows = []
    monkeypatch.setattr(gallery.one, "confused_pairs", lambda found, columns: rows.extend(found))
    gallery.confused_pairs(shown)
    labels = [row[:3] for row in rows]
    assert labels == [("Couch", "Mug", 2), ("Mug", "Alarm_Clock", 1)]
    assert [len(row[3]) for row in rows] == [2, 1]
    assert all(image.shape == (32, 32, 3) for row in rows for image in row[3])
    matrix = metrics.confusion(val.labels, guessed, 3)
    assert [row[2] for row in rows] == [matrix[0, 2], matrix[2, 1]]


def test_the_pictures_of_a_flawless_setting_are_drawn():
    with figures.style():
        assert figures.png(gallery.confused_pairs(flawless()), dpi=40)
        assert figures.png(gallery.confusion_best(flawless()), dpi=40)
