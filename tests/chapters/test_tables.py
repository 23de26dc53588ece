"""Tables: the promised columns, six digits, empty cells, harmless Markdown."""

import html
import io
import re

import numpy as np
import pandas as pd
import pypandoc
import pytest

from hw1lib.data.landcover import SCORED
from hw1lib.chapters import render as report
from hw1lib.results import tables
from hw1lib.measures.statistics import wilson


def tuned(correct=7, total=9, **more):
    return {
        "correct": correct, "total": total, "epoch": 3, "accuracy": correct / total,
        "correct_last": 1, "accuracy_last": 1 / total, **more,
    }


def segmented(**iou):
    return {
        "miou": 0.5, "miou_last": 1 / 3, "epoch": 2, "pixel_accuracy": 0.7, "confusion": [[1]],
        "confusion_last": [[1]], "stray_pixels": 0, "stages": {},
        "iou": dict.fromkeys(SCORED, 0.25) | iou,
    }


def measured(**changes):
    row = {"method": "slic", "image": "0001", "masks": 64, "coverage": 1.0, "asa": 2 / 3,
           "oracle_miou": 0.5, "vote_miou": 0.4, "model_miou": 0.3, "boundary_recall": 0.2,
           "boundary_precision": None}
    return row | changes


def csv(table, folder):
    tables.write_csv(folder / "table.csv", table)
    return (folder / "table.csv").read_text()


# --- the promised columns, literally: users and checks rely on them


def test_columns_of_finetune():
    table = tables.finetune({"A": tuned(), "knn": tuned()}, "file")
    assert ",".join(table) == (
        "setting,pretraining,finetuning,accuracy,correct,total,ci_low,ci_high,epoch,accuracy_last"
    )
    assert list(table["setting"]) == ["A", "knn"]
    assert (table["ci_low"][0], table["ci_high"][0]) == wilson(7, 9)


def test_columns_of_finetune_seeds():
    """A row for each row of the fine-tuning table and each seed, a setting's seeds together."""
    table = tables.finetune_seeds(
        {4: {"A": tuned(), "B": tuned(2)}, 5: {"A": tuned(3), "B": tuned(4)}}
    )
    assert ",".join(table) == "setting,seed,accuracy,accuracy_last"
    assert table.values.tolist() == [
        ["A", 4, 7 / 9, 1 / 9], ["A", 5, 3 / 9, 1 / 9],
        ["B", 4, 2 / 9, 1 / 9], ["B", 5, 4 / 9, 1 / 9],
    ]


def test_columns_of_segmentation():
    table = tables.segmentation({"fcn32s": segmented()}, {"fcn32s": 5})
    assert ",".join(table) == (
        "model,miou,miou_last,urban,agriculture,rangeland,forest,water,barren,pixel_accuracy,"
        "parameters,epoch"
    )


def test_rows_of_variants_have_their_models_parameters():
    """They are the same network; the look-up table is none."""
    rows = ("fcn32s", "lraspp", "lraspp+tta", "deeplabv3", "deeplabv3+vote", "colour")
    table = tables.segmentation(
        {row: segmented() for row in rows}, {"fcn32s": 7, "lraspp": 8, "deeplabv3": 9}
    )
    assert tuple(table["model"]) == rows  # as they were given
    assert table["parameters"].tolist() == [7, 8, 8, 9, 9, pd.NA]
    assert [tables.base(row) for row in rows] == [
        "fcn32s", "lraspp", "lraspp", "deeplabv3", "deeplabv3", "colour"
    ]


def test_columns_of_everything():
    table = tables.everything([measured()], ["0001"], sam_there=True)
    assert ",".join(table) == (
        "method,image,masks,coverage,asa,oracle_miou,vote_miou,boundary_recall,boundary_precision"
    )


def test_every_row_that_there_may_be_has_its_words():
    names = ["A", "B", "C", "D", "E", "random", "knn", "colour"]
    table = tables.finetune({name: tuned() for name in names}, "pool").set_index("setting")
    assert list(table.index) == names
    assert (table[["pretraining", "finetuning"]].map(len) > 0).all(axis=None)
    frozen = table["finetuning"].str.contains("frozen")
    assert frozen[frozen].index.tolist() == ["D", "E", "random", "knn"]
    assert set(table.index[table["pretraining"].str.contains("trained here")]) == {"B", "D"}
    other = tables.finetune({"B": tuned(), "D": tuned()}, "file")
    assert other["pretraining"].str.contains("the data's file").all()
    foreign = tables.finetune({"A": tuned(), "B": tuned(), "C": tuned()}, "imagenet")
    assert foreign["pretraining"].str.contains("forbids").tolist() == [False, True, False]


# --- seeds

ROWS = (*"ABCDE", "random", "knn", "colour")


def seeded(seeds, order=ROWS):
    """Metrics of every row, another accuracy for each."""
    return {
        seed: {row: tuned(1 + (3 * ROWS.index(row) + seed) % 8) for row in order} for seed in seeds
    }


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2), (7, 8)])
@pytest.mark.parametrize("order", [ROWS, ROWS[::-1]])
def test_every_row_has_every_seed_settings_first(seeds, order, tmp_path):
    found = seeded(seeds, order)
    table = tables.finetune_seeds(found)
    pairs = list(zip(table["setting"], table["seed"]))
    assert pairs == [(row, seed) for row in ROWS for seed in seeds]
    for line in table.itertuples():
        assert line.accuracy == found[line.seed][line.setting]["accuracy"]
        assert line.accuracy_last == found[line.seed][line.setting]["accuracy_last"]
    text = csv(table, tmp_path)
    assert len(text.splitlines()) == 1 + len(pairs) and ",," not in text and "nan" not in text


def test_mean_and_sample_deviation_by_hand():
    """0.5, 0.6, 0.7: mean 0.6, squares 0.01 + 0 + 0.01 over two: deviation 0.1."""
    values = {0: 0.5, 1: 0.6, 2: 0.7}
    table = tables.over_seeds(
        tables.finetune_seeds(
            {s: {"knn": tuned() | {"accuracy": v, "accuracy_last": 0.25},
                 "B": tuned() | {"accuracy": 0.9, "accuracy_last": v}}
             for s, v in values.items()}
        )
    )
    assert table.to_dict("list") == {
        "setting": ["B", "knn"], "seeds": [3, 3],
        "best epoch": ["90.0 ± 0.0 %", "60.0 ± 10.0 %"],
        "last epoch": ["60.0 ± 10.0 %", "25.0 ± 0.0 %"],
    }


@pytest.mark.parametrize("seeds", [(0, 1), (3, 4, 5, 6)])
def test_over_seeds_is_the_mean_of_the_seeds_table(seeds):
    table = tables.finetune_seeds(seeded(seeds))
    short = tables.over_seeds(table)
    assert list(short["setting"]) == list(ROWS) and set(short["seeds"]) == {len(seeds)}
    for column, source in (("best epoch", "accuracy"), ("last epoch", "accuracy_last")):
        for row, text in zip(short["setting"], short[column]):
            values = table.loc[table["setting"] == row, source]
            mean, deviation = 100 * np.mean(values), 100 * np.std(values, ddof=1)
            assert text == f"{mean:.1f} ± {deviation:.1f} %"


def test_one_seed_has_no_deviation():
    """A sample deviation of one value does not exist; none is printed, nor nan."""
    table = tables.over_seeds(tables.finetune_seeds(seeded((0,))))
    text = tables.markdown(table)
    assert "±" not in text and "nan" not in text.lower() and "–" not in text
    assert set(table["seeds"]) == {1} and len(table) == len(ROWS)
    assert table["best epoch"].str.fullmatch(r"\d+\.\d %").all()


# --- CSV


def test_fractions_have_six_digits_and_counts_none(tmp_path):
    text = csv(tables.finetune({"A": tuned(1, 3)}, "file"), tmp_path)
    cells = text.splitlines()[1].split(",")
    assert cells[3:6] == ["0.333333", "1", "3"] and cells[8:] == ["3", "0.333333"]


def test_what_was_not_measured_is_an_empty_cell(tmp_path):
    table = tables.segmentation(
        {"fcn32s": segmented(water=None), "colour": segmented(water=None)}, {"fcn32s": 184_671_054}
    )
    first, second = (line.split(",") for line in csv(table, tmp_path).splitlines()[1:])
    assert first[7] == second[7] == ""  # water
    assert first[10] == "184671054" and second[10] == ""  # the look-up table has no parameters
    assert first[3] == "0.250000"


def test_without_sam_its_rows_are_there_and_empty(tmp_path):
    table = tables.everything([measured(), measured(image="0002")], ["0001", "0002"], False)
    lines = csv(table, tmp_path).splitlines()[1:]
    assert lines[:2] == ["sam,0001,,,,,,,", "sam,0002,,,,,,,"]
    assert lines[2] == "slic,0001,64,1.000000,0.666667,0.500000,0.400000,0.200000,"


def test_names_with_commas_quotes_and_lines_survive(tmp_path):
    table = pd.DataFrame({"setting": ['a,b', 'say "c"', "two\nlines"], "share": [0.1, 0.2, np.nan]})
    read = pd.read_csv(io.StringIO(csv(table, tmp_path)))
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


# --- Markdown

EVIL = [
    "a|b", "<script>alert(1)</script>", "`rm -rf`", "[text](javascript:alert(1))", "![x](y.png)",
    "*bold* _it_ **b**", "$x^2$", "~~gone~~", "H~2~O", "back\\slash", "# head", "x@y.org",
    "two\nlines\r\n\tand tabs", "&lt;b&gt; &amp;", "https://example.org/a_b", "1. one", "- item",
    "www.example.org", "<!-- comment -->", "^[note]", "[^1]", ":smile:", "\\(x\\)", "| --- |",
    "{=html}", "Größe é 漢",
]


@pytest.mark.parametrize("text", EVIL)
def test_any_text_stays_one_cell_in_one_line(text):
    table = pd.DataFrame({"name": [text, "next"], "share": [1.0, 2.0]})
    lines = tables.markdown(table).splitlines()
    assert len(lines) == 4
    bare = lines[2].replace(r"\|", "").replace(r"\\", "")
    assert bare.count("|") == 3


def test_any_text_is_shown_as_it_is():
    """What pandoc makes of the cells is the text again, without a tag and without a link.

    But for quotes, dashes and spaces, which it sets as a printer would.
    """
    def plain(text):
        text = text.translate(str.maketrans("’‘“”–—", "''\"\"--"))
        return re.sub("-+", "-", " ".join(text.split()))

    made = pypandoc.convert_text(
        tables.markdown(pd.DataFrame({"name": EVIL})), "html5", format=report.MARKDOWN
    )
    cells = re.findall(r"<td[^>]*>(.*?)</td>", made, re.S)
    assert len(cells) == len(EVIL)
    shown = {text: html.unescape(cell) for text, cell in zip(EVIL, cells)}
    assert [cell for cell in cells if "<" in cell] == []
    assert {t: s for t, s in shown.items() if plain(t) != plain(s)} == {}


def test_missing_values_are_dashes_and_numbers_stand_right():
    counts = pd.array([1, None], "Int64")
    table = pd.DataFrame({"model": ["a", None], "miou": [0.5, np.nan], "n": counts})
    lines = tables.markdown(table, {"miou": tables.fraction}, {"miou": "mIoU"}).splitlines()
    assert lines == [
        "| model | mIoU | n |", "| :--- | ---: | ---: |", "| a | 0.500 | 1 |", "| – | – | – |",
    ]


def test_percent_and_fraction_round_half_as_printf_does():
    assert [tables.percent(v) for v in (0, 0.4211, 0.99951, 1)] == [
        "0.0 %", "42.1 %", "100.0 %", "100.0 %"
    ]
    assert tables.fraction(0.68671) == "0.687"


def test_timings_are_a_row_a_step():
    run = {"seconds": 1.5, "device": "cpu", "started": "now", "python": "3"}
    table = tables.timings({"pretrain": run, "pretrain, seed 1": run | {"seconds": 2.5}})
    assert table.to_dict("list") == {
        "step": ["pretrain", "pretrain, seed 1"], "seconds": [1.5, 2.5], "device": ["cpu"] * 2,
        "started": ["now"] * 2,
    }
    assert list(tables.timings({})) == ["step", "seconds", "device", "started"]
