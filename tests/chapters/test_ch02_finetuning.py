"""Chapter 2: tables of settings and controls, and images of what is confused; the CSV files: test_published."""

import numpy as np
import pytest

from hw1lib.chapters import ch02_finetuning, tables
from hw1lib.metrics import iou
from hw1lib.metrics.statistics import wilson
from hw1lib.variants import ROWS
from tests.chapters.made import assert_drawn, pictures, split


def metrics(correct=7, total=9, interval=wilson(1, 9)):
    best = {"correct": correct, "total": total, "epoch": 3, "accuracy": correct / total}
    return best | {"correct_last": 1, "accuracy_last": 1 / total, "interval_last": interval}


def accuracies(rows=tuple(ROWS), source="pool", **changes):
    return ch02_finetuning.accuracies({row: metrics(**changes) for row in rows}, source)


@pytest.mark.parametrize(("source", "origin"), [("file", "the data's file"), ("imagenet", "forbids")])
def test_settings_with_the_supervised_backbone_name_its_origin(source, origin):
    table = accuracies(source=source).set_index("setting")
    assert table.index[table["pretraining"].str.contains(origin)].tolist() == ["B", "D"]


@pytest.mark.parametrize("published", [None, {"A": 0.4211}])
def test_the_readable_table_shows_the_last_epoch_with_its_interval(published):
    """Where all validation images show one place, the cell says so."""
    low, high = (100 * end for end in wilson(1, 9))
    text = tables.markdown(ch02_finetuning.readable(accuracies(["A", "knn"]), published))
    assert f"| 11.1 % | {low:.1f} to {high:.1f} | 1 / 9 | 77.8 % (epoch 3) |" in text and "nan" not in text
    assert ("original" in text) == ("42.1 %" in text) == bool(published)
    text = tables.markdown(ch02_finetuning.readable(accuracies(interval=(None, None))))
    assert "nan" not in text and text.count("no interval: one place") == len(ROWS)


@pytest.mark.parametrize("seeds", [(0,), (7, 8, 2)])
def test_mean_and_sample_standard_deviation_over_seeds(seeds):
    """Settings come first, in whatever order they ran; a single value has no deviation."""
    runs = {seed: {row: metrics(1 + (3 * len(row) + seed) % 8) for row in [*ROWS][::-1]} for seed in seeds}
    table = ch02_finetuning.accuracies_by_seed(runs)
    table["accuracy_last"] = np.random.default_rng(0).random(len(table))
    means = ch02_finetuning.mean_over_seeds(table)
    assert list(means["setting"]) == list(ROWS) and set(means["seeds"]) == {len(seeds)}
    for row, text in zip(means["setting"], means["last epoch"]):
        values = 100 * table.loc[table["setting"] == row, "accuracy_last"]
        deviation = f" ± {np.std(values, ddof=1):.1f}" if len(seeds) > 1 else ""
        assert text == f"{np.mean(values):.1f}{deviation} %"


@pytest.mark.parametrize("seed", range(2))
def test_confused_classes_by_brute_force(seed):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, 80)
    guessed = np.where(random.random(80) < 0.6, truth, random.integers(0, 3, 80))
    matrix, names = iou.confusion(truth, guessed, 3), ("Couch", "$x$", "a|b")
    pairs = iou.confused_pairs(matrix, 5)
    table = ch02_finetuning.confused_classes(matrix, pairs, names)
    for line, (i, j) in zip(table.to_dict("records"), pairs, strict=True):
        assert line["classes"] == f"{names[i]} – {names[j]}"
        for column, (a, b) in (("first predicted as second", (i, j)), ("second predicted as first", (j, i))):
            assert line[column] == f"{((truth == a) & (guessed == b)).sum()} of {(truth == a).sum()}"
    assert list(ch02_finetuning.confused_classes(matrix, [], names)) == list(table)


def test_confused_images_have_a_row_per_direction_and_mistakes_are_paged(tmp_path):
    val = split(tmp_path, [0, 0, 1, 1, 2, 2, 0], ("Evergreen broadleaf forests", "Fan", "Cropland and its mosaics"))
    guessed = np.array([2, 2, 1, 1, 2, 1, 2])
    figure = ch02_finetuning.confused_images(val, guessed, [(0, 2), (0, 1), (1, 2)], 8, columns=2)
    assert [picture[0, 0, 0] for picture in pictures(figure)] == [0, 1, 5]
    assert_drawn(figure)
    assert_drawn(ch02_finetuning.confused_images(val, val.labels, [], 8))
    for page, expected in ((1, [0, 1]), (2, [5, 6]), (3, [])):
        figure = ch02_finetuning.mistakes(val, guessed, 8, page, columns=1)
        assert [picture[0, 0, 0] for picture in pictures(figure)] == expected
