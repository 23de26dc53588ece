"""Fine-tuning: promised columns, the published tables to the byte, and pictures at their extremes."""

import numpy as np
import pandas as pd
import pytest
import torch

from hw1lib.chapters import finetuning, words
from hw1lib.comparison import ROWS
from hw1lib.measures import metrics
from hw1lib.measures.statistics import wilson
from hw1lib.models import classifier
from tests.chapters.made import assert_drawn, classes, columns, csv, history, split


def tuned(correct=7, total=9, **more):
    return {
        "correct": correct, "total": total, "epoch": 3, "accuracy": correct / total, "correct_last": 1,
        "accuracy_last": 1 / total, **more,
    }  # fmt: skip


def accuracies(rows=tuple(ROWS), source="pool"):
    return finetuning.accuracies({row: tuned() for row in rows}, source)


def seeded(seeds, order=tuple(ROWS)):
    """Metrics of every row, another accuracy for each."""
    return {seed: {row: tuned(1 + (3 * list(ROWS).index(row) + seed) % 8) for row in order} for seed in seeds}


# --- tables


def test_published_tables_are_made_again_to_the_byte(demo):
    of_seed = {0: "{}".format, 1: "{}, seed 1".format, 2: "{}, seed 2".format}
    found = {s: {name: demo.steps[label(row.step)] for name, row in ROWS.items()} for s, label in of_seed.items()}
    table = finetuning.accuracies(found[0], demo.steps["pretrain-supervised"]["source"])
    assert csv(table) == demo.table("finetune")
    assert csv(finetuning.accuracies_of_seeds(found)) == demo.table("finetune_seeds")


def test_the_table_of_accuracies():
    """Its columns literally: users and checks rely on them."""
    table = finetuning.accuracies({"A": tuned(), "knn": tuned(1, 3)}, "file")
    assert columns(table) == "setting,pretraining,finetuning,accuracy,correct,total,ci_low,ci_high,epoch,accuracy_last"
    assert list(table["setting"]) == ["A", "knn"]
    assert (table["ci_low"][0], table["ci_high"][0]) == wilson(7, 9)
    cells = csv(table).splitlines()[2].split(",")
    assert cells[3:6] == ["0.333333", "1", "3"] and cells[8:] == ["3", "0.333333"]


def test_every_row_says_where_it_comes_from_and_what_learns():
    table = accuracies().set_index("setting")
    assert list(table.index) == [*"ABCDE", "random", "knn", "colour"]
    frozen = table["finetuning"].str.contains("frozen")
    assert frozen[frozen].index.tolist() == ["D", "E", "random", "knn"]
    assert set(table.index[table["pretraining"].str.contains("trained here")]) == {"B", "D"}
    assert set(table.index[table["pretraining"] == "self-supervised"]) == {"C", "E", "knn"}
    assert table.loc["colour", "pretraining"] == "none"
    for source, words_of in (("file", "the data's file"), ("imagenet", "forbids")):
        found = accuracies(source=source)["pretraining"].str.contains(words_of)
        assert found.tolist() == [row in ("B", "D") for row in ROWS]


@pytest.mark.parametrize("original", [None, {"A": 0.4211}])
def test_the_readable_table_has_the_same_numbers(original):
    table = accuracies(["A", "knn"])
    shown = finetuning.readable(table, original)
    low, high = wilson(7, 9)
    assert shown["95 % interval"][0] == f"{100 * low:.1f} – {100 * high:.1f}" and shown["correct"][0] == "7 / 9"
    assert ("original" in shown) == bool(original)
    assert not original or (shown["original"][0] == "42.1 %" and pd.isna(shown["original"][1]))
    assert "77.8 %" in words.markdown(shown) and "nan" not in words.markdown(shown)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2), (7, 8)])
@pytest.mark.parametrize("order", [tuple(ROWS), tuple(ROWS)[::-1]])
def test_every_row_has_every_seed_settings_first(seeds, order):
    found = seeded(seeds, order)
    table = finetuning.accuracies_of_seeds(found)
    assert columns(table) == "setting,seed,accuracy,accuracy_last"
    assert list(zip(table["setting"], table["seed"])) == [(row, seed) for row in ROWS for seed in seeds]
    for line in table.itertuples():
        own = found[line.seed][line.setting]
        assert (line.accuracy, line.accuracy_last) == (own["accuracy"], own["accuracy_last"])


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (3, 4, 5, 6)])
def test_over_seeds_is_the_mean_and_the_sample_standard_deviation(seeds):
    """One value has none; nothing is printed for it."""
    table = finetuning.accuracies_of_seeds(seeded(seeds))
    table["accuracy_last"] = np.random.default_rng(0).random(len(table))
    short = finetuning.over_seeds(table)
    assert list(short["setting"]) == list(ROWS) and set(short["seeds"]) == {len(seeds)}
    for column, source in (("best epoch", "accuracy"), ("last epoch", "accuracy_last")):
        for row, text in zip(short["setting"], short[column]):
            values = 100 * table.loc[table["setting"] == row, source]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(seeds) > 1 else ""
            assert text == f"{np.mean(values):.1f}{spread} %"


def models():
    return {
        name: classifier.Classifier(
            torch.nn.Linear(3, 4, bias=False), classifier.Head(2, inputs=4, hidden=5), frozen=ROWS[name].frozen
        )
        for name in ("A", "D")
    }


def test_learning_parameters_are_counted_from_the_modules():
    table = finetuning.learning(models()).set_index("setting")
    head = 4 * 5 + 5 + 5 * 2 + 2
    assert table.loc["A"].tolist() == ["12", str(head), "100.0 %"]
    assert table.loc["D"].tolist() == ["0", str(head), words.percent(head / (head + 12))]


@pytest.mark.parametrize("defect", [None, 0, 1, 2, 3])
def test_each_defect_is_read_off_what_ran(defect):
    backbone = torch.nn.BatchNorm1d(4)
    model = classifier.Classifier(backbone, classifier.Head(2, inputs=4, hidden=5), frozen=True)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    if defect == 2:
        backbone.running_var += 1
    if defect != 3:
        model.head.mean += 1
    views = [torch.zeros(3, 2, 2), torch.full((3, 2, 2), float(defect != 0))]
    own = {"loss": 0.5 if defect == 1 else 0.25}
    table = finetuning.defects(views, own, pd.DataFrame({"loss": [0.5, 0.25]}), before, model.state_dict())
    assert columns(table) == "defect,original,this run" and set(table["original"]) == {"yes"}
    assert [n for n, here in enumerate(table["this run"]) if here == "yes"] == [n for n in range(4) if n == defect]


def guesses(seed, images=80):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, images)
    return truth, np.where(random.random(images) < 0.6, truth, random.integers(0, 3, images))


@pytest.mark.parametrize("seed", range(4))
def test_confused_classes_are_counted_by_brute_force(seed):
    truth, guessed = guesses(seed)
    matrix, names = metrics.confusion(truth, guessed, 3), ("Couch", "$x$", "a|b")
    pairs = metrics.confused_pairs(matrix, 5)
    table = finetuning.confused(matrix, pairs, names)
    assert columns(table) == "classes,taken for the second,taken for the first" and len(table) == len(pairs) > 0
    for line, (i, j) in zip(table.to_dict("records"), pairs):
        assert line["classes"] == f"{names[i]} – {names[j]}"
        for column, (a, b) in (("taken for the second", (i, j)), ("taken for the first", (j, i))):
            assert line[column] == f"{((truth == a) & (guessed == b)).sum()} of {(truth == a).sum()}"


def test_without_any_confusion_the_table_has_a_heading_and_no_row():
    table = finetuning.confused(np.eye(3, dtype=int), [], classes(3))
    assert columns(table) == "classes,taken for the second,taken for the first" and len(table) == 0
    assert len(words.markdown(table).splitlines()) == 2


# --- pictures


@pytest.mark.parametrize("rows", [("A",), tuple(ROWS)])
def test_bars_are_as_long_as_the_accuracies(rows):
    table = accuracies(rows)
    table["accuracy"], table["accuracy_last"] = np.linspace(0.2, 0.9, len(rows)), np.linspace(0.1, 0.8, len(rows))
    figure = finetuning.accuracy_bars(table)
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == list(table["accuracy"])
    assert [line.get_xdata()[0] for line in axis.lines[: len(rows)]] == list(table["accuracy_last"])
    levels = [lines.get_segments()[0][:, 0] for lines in axis.collections[: len(rows)]]
    assert np.allclose(levels, table[["ci_low", "ci_high"]])
    assert [label.get_text() for label in axis.get_yticklabels()] == list(rows) and axis.yaxis_inverted()
    assert_drawn(figure)


@pytest.mark.parametrize(("settings", "epochs"), [("A", 1), ("ABCDE", 200)])
def test_curves_have_a_line_each_dashed_where_frozen(settings, epochs):
    histories = {s: history(epochs, loss=np.linspace(n, 1, epochs)) for n, s in enumerate(settings)}
    figure = finetuning.curves(histories)
    for axis, column in zip(figure.axes, ("loss", "accuracy"), strict=True):
        for line, (name, table) in zip(axis.lines, histories.items(), strict=True):
            assert line.get_ydata() == pytest.approx(table[column]) and line.get_label() == name
            assert line.get_linestyle() == ("--" if name in "DE" else "-")
    assert_drawn(figure)


@pytest.mark.parametrize(
    ("matrix", "names", "shown"),
    [(np.array([[3, 1], [0, 0]]), classes(2), ["0.75", "0.25", "0.00", "0.00"]), (np.array([[1]]), ("$x$",), ["1.00"]),
     (np.eye(65, dtype=int), classes(65), [])],
)  # fmt: skip
def test_rows_of_a_confusion_matrix_are_frequencies_of_their_class(matrix, names, shown):
    figure = finetuning.confusion(matrix, names, "a title")
    assert [text.get_text() for text in figure.axes[0].texts] == shown
    assert figure.axes[0].get_title() == "a title"
    assert_drawn(figure)


def test_confused_images_are_those_that_were_taken_for_another(tmp_path):
    """A row for each direction that anything went, images in the order of the validation set."""
    one = split(tmp_path, [0, 0, 1, 1, 2, 2, 0], ("Couch", "Fan", "Mug"))
    guessed = np.array([2, 2, 1, 1, 2, 1, 2])
    figure = finetuning.confused_images(one, guessed, [(0, 2), (0, 1), (1, 2)], 8, columns=2)
    labels = [" ".join(axis.get_ylabel().split()) for axis in figure.axes[::2]]
    assert labels == ["Couch taken for Mug: 3", "Mug taken for Fan: 1"]
    shown = [[int(axis.images[0].get_array()[0, 0, 0])] if axis.images else [] for axis in figure.axes]
    assert shown == [[0], [1], [5], []]
    assert_drawn(figure)


def test_five_pairs_of_long_names_still_fit(tmp_path):
    one = split(tmp_path, [0] * 9 + [1] * 9, ("Evergreen broadleaf forests", "Cropland and its mosaics"))
    assert_drawn(finetuning.confused_images(one, 1 - one.labels, [(0, 1)] * 5, 8))


@pytest.mark.parametrize("pairs", [[], [(0, 1)]])
def test_without_confusion_it_says_so(tmp_path, pairs):
    one = split(tmp_path, [0, 1], classes(2))
    figure = finetuning.confused_images(one, one.labels, pairs, 8)
    assert "no image" in figure.axes[0].texts[0].get_text() and not figure.axes[0].images
    assert_drawn(figure)
    assert not any(axis.images for axis in finetuning.mistakes(one, one.labels, 8).axes)


def test_mistakes_are_paged_in_their_order(tmp_path):
    one = split(tmp_path, [0, 1] * 4, ("a", "b"))
    guessed = 1 - one.labels
    guessed[3] = one.labels[3]
    for page, expected in ((1, [0, 1, 2, 4]), (2, [5, 6, 7])):
        figure = finetuning.mistakes(one, guessed, 8, page, columns=2)
        shown = [axis for axis in figure.axes if axis.images]
        assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in shown] == expected
        assert [axis.get_title() for axis in shown] == ["ab"[n % 2] + "\n→ " + "ba"[n % 2] for n in expected]
    assert_drawn(figure)
