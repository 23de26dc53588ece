"""Fine-tuning: tables that say where a number comes from, and pictures at their extremes."""

import numpy as np
import pandas as pd
import pytest
import torch

from hw1lib.chapters import ch02_finetuning, original, phrases
from hw1lib.metrics import iou
from hw1lib.metrics.statistics import wilson
from hw1lib.models import resnet
from hw1lib.variants import ROWS
from tests.chapters.made import assert_drawn, classes, numbers, split, texts


def tuned(correct=7, total=9):
    about = {"correct": correct, "total": total, "epoch": 3, "accuracy": correct / total}
    return about | {"correct_last": 1, "accuracy_last": 1 / total, "interval_last": wilson(1, total)}


def accuracies(rows=tuple(ROWS), source="pool"):
    return ch02_finetuning.accuracies({row: tuned() for row in rows}, source)


# --- tables (to the byte: test_published)


@pytest.mark.parametrize(("source", "said"), [("file", "the data's file"), ("imagenet", "forbids")])
def test_rows_of_the_supervised_backbone_say_where_it_comes_from(source, said):
    table = accuracies(source=source).set_index("setting")
    assert table.index[table["pretraining"].str.contains(said)].tolist() == ["B", "D"]


@pytest.mark.parametrize("published", [None, {"A": 0.4211}])
def test_the_readable_table_has_the_same_numbers(published):
    table = accuracies(["A", "knn"])
    shown = ch02_finetuning.readable(table, published)
    low, high = wilson(1, 9)  # of the last epoch, as nothing was chosen by it
    assert (table["ci_low"][0], table["ci_high"][0]) == (low, high) and shown["correct"][0] == "1 / 9"
    assert (table["correct"][0], table["accuracy"][0], table["accuracy_last"][0]) == (1, 7 / 9, 1 / 9)
    assert shown["95 % interval"][0] == f"{100 * low:.1f} – {100 * high:.1f}"
    assert ("original" in shown) == bool(published)
    assert not published or (shown["original"][0] == "42.1 %" and pd.isna(shown["original"][1]))
    assert shown["best epoch"][0] == "77.8 % (epoch 3)" and "11.1 %" in phrases.markdown(shown)
    assert "nan" not in phrases.markdown(shown) and "nan" not in phrases.markdown(shown)


@pytest.mark.parametrize("some", [True, False])
def test_without_an_interval_the_cell_is_empty_and_says_why(some):
    """All validation images show one place; of an older result the interval may be known."""
    runs = {row: tuned() | {"interval_last": (None, None)} for row in ROWS} | ({"A": tuned()} if some else {})
    table = ch02_finetuning.accuracies(runs, "pool")
    assert table.to_csv(index=False).splitlines()[-1].count(",,,") == 1 and table["ci_low"].dtype == float
    text = phrases.markdown(ch02_finetuning.readable(table))
    assert "nan" not in text and "None" not in text and text.count("no interval from one place") == len(ROWS) - some
    assert_drawn(ch02_finetuning.accuracy_bars(table))


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2), (7, 8)])
def test_over_seeds_stand_mean_and_sample_standard_deviation(seeds):
    """Settings first, in whatever order they came; one value has no deviation, and nothing is printed for it."""
    found = {seed: {row: tuned(1 + (3 * len(row) + seed) % 8) for row in [*ROWS][::-1]} for seed in seeds}
    table = ch02_finetuning.accuracies_of_seeds(found)
    table["accuracy_last"] = np.random.default_rng(0).random(len(table))
    short = ch02_finetuning.over_seeds(table)
    assert list(short["setting"]) == list(ROWS) and set(short["seeds"]) == {len(seeds)}
    for column, source in (("best epoch", "accuracy"), ("last epoch", "accuracy_last")):
        for row, text in zip(short["setting"], short[column]):
            values = 100 * table.loc[table["setting"] == row, source]
            spread = f" ± {np.std(values, ddof=1):.1f}" if values.nunique() > 1 else ""
            assert text == f"{np.mean(values):.1f}{spread} %"


def model(backbone, frozen):
    return resnet.Classifier(backbone, resnet.Head(2, inputs=4, hidden=5), frozen)


def test_learning_parameters_are_counted_from_the_modules():
    models = {name: model(torch.nn.Linear(3, 4, bias=False), ROWS[name].frozen) for name in ("A", "D")}
    table = ch02_finetuning.learning(models).set_index("setting")
    head = 4 * 5 + 5 + 5 * 2 + 2
    assert table.loc["A"].tolist() == ["12", str(head), "100.0 %"]
    assert table.loc["D"].tolist() == ["0", str(head), phrases.percent(head / (head + 12))]


@pytest.mark.parametrize("defect", [None, 0, 1, 2, 3])
def test_each_defect_is_read_off_what_ran(defect):
    backbone = torch.nn.BatchNorm1d(4)
    frozen = model(backbone, True)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    if defect == 2:
        backbone.running_var += 1
    if defect != 3:
        frozen.head.mean += 1
    views = [torch.zeros(3, 2, 2), torch.full((3, 2, 2), float(defect != 0))]
    own = {"loss": 0.5 if defect == 1 else 0.25}
    table = ch02_finetuning.defects(views, own, pd.DataFrame({"loss": [0.5, 0.25]}), before, frozen.state_dict())
    words_of = original.numbers()["defects"]  # none: it is assumed
    assert list(table["original"]) == [f"yes ({'stated' if words_of[name] else 'assumed'})" for name in table["defect"]]
    assert set(table["defect"]) == set(words_of) and len(set(table["original"])) == 2
    assert [n for n, here in enumerate(table["this run"]) if here == "yes"] == [n for n in range(4) if n == defect]


@pytest.mark.parametrize("seed", range(4))
def test_confused_classes_are_counted_by_brute_force(seed):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, 80)
    guessed = np.where(random.random(80) < 0.6, truth, random.integers(0, 3, 80))
    matrix, names = iou.confusion(truth, guessed, 3), ("Couch", "$x$", "a|b")
    pairs = iou.confused_pairs(matrix, 5)
    table = ch02_finetuning.confused(matrix, pairs, names)
    for line, (i, j) in zip(table.to_dict("records"), pairs, strict=True):
        assert line["classes"] == f"{names[i]} – {names[j]}"
        for column, (a, b) in (("taken for the second", (i, j)), ("taken for the first", (j, i))):
            assert line[column] == f"{((truth == a) & (guessed == b)).sum()} of {(truth == a).sum()}"
    assert list(ch02_finetuning.confused(matrix, [], names)) == list(table)  # a heading also where there is no row


# --- pictures


@pytest.mark.parametrize("rows", [("A",), tuple(ROWS)])
def test_bars_are_as_long_as_the_accuracies(rows):
    table, count = accuracies(rows), len(rows)
    table["accuracy"], table["accuracy_last"] = np.linspace(0.2, 0.9, count), np.linspace(0.1, 0.8, count)
    figure = ch02_finetuning.accuracy_bars(table)
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == list(table["accuracy_last"])
    assert [line.get_xdata()[0] for line in axis.lines[:count]] == list(table["accuracy"])
    levels = [lines.get_segments()[0][:, 0] for lines in axis.collections[:count]]
    assert np.allclose(levels, table[["ci_low", "ci_high"]])
    assert texts(axis.get_yticklabels()) == list(rows) and axis.yaxis_inverted()
    assert_drawn(figure)


@pytest.mark.parametrize(
    ("matrix", "names", "shown"),
    [([[3, 1], [0, 0]], classes(2), ["0.75", "0.25", "0.00", "0.00"]), ([[1]], ("$x$",), ["1.00"]),
     (np.eye(65, dtype=int), classes(65), [])],
)  # fmt: skip
def test_rows_of_a_confusion_matrix_are_frequencies_of_their_class(matrix, names, shown):
    figure = ch02_finetuning.confusion(np.array(matrix), names, "a title")
    assert texts(figure.axes[0].texts) == shown and figure.axes[0].get_title() == "a title"
    assert_drawn(figure)


def test_confused_images_are_those_that_were_taken_for_another(tmp_path):
    """A row for each direction that anything went, images in the order of the validation set."""
    one = split(tmp_path, [0, 0, 1, 1, 2, 2, 0], ("Evergreen broadleaf forests", "Fan", "Cropland and its mosaics"))
    guessed = np.array([2, 2, 1, 1, 2, 1, 2])
    figure = ch02_finetuning.confused_images(one, guessed, [(0, 2), (0, 1), (1, 2)], 8, columns=2)
    labels = [" ".join(axis.get_ylabel().split()) for axis in figure.axes[::2]]
    forests, _, cropland = one.classes
    assert labels == [f"{forests} taken for {cropland}: 3", f"{cropland} taken for Fan: 1"]
    assert numbers(figure) == [0, 1, 5] and not figure.axes[3].images
    assert_drawn(figure)


def test_mistakes_are_paged_in_their_order(tmp_path):
    one = split(tmp_path, [0, 1] * 4, ("a", "b"))
    guessed = 1 - one.labels
    guessed[3] = one.labels[3]
    for page, expected in ((1, [0, 1, 2, 4]), (2, [5, 6, 7])):
        figure = ch02_finetuning.mistakes(one, guessed, 8, page, columns=2)
        titles = [axis.get_title() for axis in figure.axes if axis.images]
        assert numbers(figure) == expected and titles == ["ab"[n % 2] + "\n→ " + "ba"[n % 2] for n in expected]
    assert_drawn(figure)
