"""Tables of the report from stored predictions: they agree with the tests and the sentences."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from hw1lib import answers, gallery, profiles, prose
from hw1lib.chapters import original
from hw1lib.data import layout
from hw1lib.data.landcover import SCORED
from hw1lib.models import segmenters
from hw1lib.measures import metrics, statistics
from hw1lib.chapters import style as figures
from hw1lib.results import sentences
from tests.conftest import write_problem2

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


# --- Problem 2


def scored(miou, last=None, **more):
    """What a segmentation step stores, or a part of it."""
    iou = dict(zip(SCORED, (0.11, 0.22, 0.33, 0.44, 0.55, None)))
    last = miou if last is None else last
    return {"miou": miou, "miou_last": last, "iou": iou, "iou_last": iou,
            "pixel_accuracy": 0.7, "epoch": 2, **more}


def landcover_book(tta=(), improved="lraspp", tiles=9, strays=0, **refined):
    """A workbook with the numbers of Problem 2: three models, the control and the masks' vote.

    Args:
        tta: models that were also scored over flips and turns.
        refined: mIoU after the vote by method, the chosen one first.
    """
    refined = refined or {"felzenszwalb": 0.47, "slic": 0.43}
    found = {
        f"segment-{m}": scored(0.6 - place / 10, 0.55 - place / 10, ceiling=0.9 - place / 100)
        for place, m in enumerate(profiles.SEGMENTERS)
    }
    for model in tta:
        found[f"segment-{model}"]["tta"] = scored(0.456)
    found["segment-colour"] = scored(0.3, stray_pixels=strays)
    found["everything"] = {
        "refine": next(iter(refined)),
        "refined": {m: scored(v, segments=60.4) for m, v in refined.items()},
        "model_miou": found[f"segment-{improved}"]["miou_last"], "sam": None,
        "rows": [
            {"method": "slic", "image": "0001", "masks": 9, "coverage": 1.0, "asa": 0.8,
             "oracle_miou": 0.7, "vote_miou": 0.6, "model_miou": 0.5, "boundary_recall": 0.4,
             "boundary_precision": None}
        ],
    }
    profile = profiles.get("smoke", {"segmentation.improved": improved, "everything.images": "1"})
    return SimpleNamespace(
        profile=profile, metrics=found.__getitem__,
        data=SimpleNamespace(problem2=SimpleNamespace(validation=range(tiles))),
    )


def cells(text):
    """A printed table: its heading and its rows."""
    lines = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in text.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return lines[0], lines[2:]


@pytest.mark.parametrize(("tta", "improved", "expected"), [
    ((), "lraspp", "fcn32s lraspp deeplabv3 lraspp+vote colour"),
    (("lraspp",), "lraspp", "fcn32s lraspp lraspp+tta deeplabv3 lraspp+vote colour"),
    (("fcn32s", "deeplabv3"), "deeplabv3",
     "fcn32s fcn32s+tta lraspp deeplabv3 deeplabv3+tta deeplabv3+vote colour"),
])
def test_the_segmentation_table_has_a_row_for_each_variant(tta, improved, expected):
    shown = landcover_book(tta, improved, slic=0.5, felzenszwalb=0.7)
    table = answers.TABLES["segmentation"](shown)
    assert ",".join(table) == (
        "model,miou,miou_last,urban,agriculture,rangeland,forest,water,barren,pixel_accuracy,"
        "parameters,epoch"
    )
    assert " ".join(table["model"]) == expected
    rows = table.set_index("model")
    for model in profiles.SEGMENTERS:
        stored = shown.metrics(f"segment-{model}")
        assert (rows.loc[model, "miou"], rows.loc[model, "miou_last"]) == (
            stored["miou"], stored["miou_last"]
        )
        assert rows.loc[model, "parameters"] == segmenters.parameters(model)
    for model in tta:
        assert rows.loc[f"{model}+tta", "miou"] == 0.456
        assert rows.loc[f"{model}+tta", "parameters"] == segmenters.parameters(model)
    assert rows.loc[f"{improved}+vote", "miou"] == 0.5  # the chosen method's, not the best one's
    assert rows.loc[f"{improved}+vote", "epoch"] == getattr(shown.profile, improved).epochs
    models = answers.TABLES["segmentation_models"](shown)
    assert " ".join(models["model"]) == expected.replace(f" {improved}+vote", "")


@pytest.mark.parametrize("tiles", [9, 257])
def test_the_printed_models_have_ceilings_and_the_original_where_it_compares(tiles):
    shown = landcover_book(("lraspp",), tiles=tiles)
    for name in ("segmentation", "segmentation_models"):
        table = answers.TABLES[name](shown)
        before = table.copy()
        head, rows = cells(answers.printed(shown, name, table))
        assert table.equals(before)  # printing it does not change what is saved
        assert "ceiling" in head and "parameters" not in head and "nan" not in str(rows)
        assert head.index("ceiling") == head.index("last epoch") + 1
        ceilings = [row[head.index("ceiling")] for row in rows]
        assert ceilings[:4] == ["0.900", "0.890", "–", "0.880"] and set(ceilings[4:]) == {"–"}
        names = [row[0] for row in rows]
        assert names[:4] == [
            segmenters.NAMES["fcn32s"], segmenters.NAMES["lraspp"],
            segmenters.NAMES["lraspp"] + ", TTA", segmenters.NAMES["deeplabv3"],
        ]
        assert names[-1] == "colour look-up (control)" and len(set(names)) == len(names)
        assert ("original" in head) == (tiles == 257)
        if tiles == 257:
            seed = original.numbers()["problem2"]["miou"]
            values = [row[head.index("original")] for row in rows]
            assert values[0] == f"{seed['fcn32s']:.3f}" and values[3] == f"{seed['deeplabv3']:.3f}"
            assert {*values[1:3], *values[4:]} == {"–"}


def test_the_refinement_is_printed_with_its_signs():
    shown = landcover_book(felzenszwalb=0.47, slic=0.43)  # the model has 0.45
    table = answers.TABLES["refinement"](shown)
    assert ",".join(table) == "method,segments,model_miou,vote_miou,change"
    assert table["change"].tolist() == pytest.approx([0.02, -0.02])
    head, rows = cells(answers.printed(shown, "refinement", table))
    assert rows == [
        ["Felzenszwalb", "60", "0.450", "0.470", "+0.020"],
        ["SLIC", "60", "0.450", "0.430", "-0.020"],
    ]
    assert head[0] == "method" and "segments an image" in head


def test_everything_without_sam_is_printed_as_not_measured():
    shown = landcover_book()
    table = answers.TABLES["everything"](shown)
    head, rows = cells(answers.printed(shown, "everything", table))
    assert rows[0][:3] == ["SAM", "1", "not measured"] and set(rows[0][3:]) == {"–"}
    assert rows[1][:3] == ["SLIC", "0001", "9"] and rows[1][-1] == "–"


def test_sentences_and_tables_of_problem_2_name_the_same_numbers():
    shown = landcover_book(("lraspp",))
    text = prose.SENTENCES["segmentation"](shown)
    assert "(TTA)" in text and "gains 0.006 mIoU" in text and "reaches 0.300" in text
    text = prose.SENTENCES["refinement"](shown)
    assert "with Felzenszwalb (60 segments an image) it gains 0.020 mIoU" in text
    assert "with SLIC (60 segments an image) it loses 0.020 mIoU" in text
    assert "all 9 validation tiles" in text and segmenters.NAMES["lraspp"] in text
    text = prose.SENTENCES["everything"](shown)
    assert text.startswith("**SAM was not measured**") and "weights fetch sam_vit_b" in text


@pytest.mark.parametrize(("strays", "word"), [(0, "Every pixel"), (1234567, "1,234,567 pixels")])
def test_pixels_of_no_class_are_counted(strays, word):
    text = prose.SENTENCES["strays"](landcover_book(strays=strays))
    assert text.startswith(word) and ("no class" in text) == (strays > 0)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The table of networks for tiles of 32 pixels that lraspp sees enlarged; and its workbook."""
    root = tmp_path_factory.mktemp("networks")
    write_problem2(root / "p2_data")
    shown = landcover_book()
    shown.data = layout.find(root, profiles.Data())
    shown.profile = profiles.get("smoke", {"lraspp.enlarge": 2, "fcn32s.enlarge": 1})
    return answers.TABLES["networks"](shown), shown


def test_the_table_of_networks_is_counted_from_them(networks):
    table, shown = networks
    rows = table.set_index("model")
    assert list(rows.index) == list(profiles.SEGMENTERS)
    for model in profiles.SEGMENTERS:
        enlarge = getattr(shown.profile, model).enlarge
        row = rows.loc[model]
        assert row["parameters"] == sum(p.numel() for p in segmenters.real(model).parameters())
        assert row["multiply_adds"] == segmenters.multiply_adds(model, 32 * enlarge)
        assert row["stride"] == segmenters.STRIDE[model] // enlarge
        assert row["ceiling"] == shown.metrics(f"segment-{model}")["ceiling"]
    assert not any(" " in name for name in table)
    head, printed = cells(answers.printed(shown, "networks", table))
    assert head[-3:] == list(segmenters.NAMES.values())
    assert len(printed) == len(table.columns) - 1 and "nan" not in str(printed)


def test_the_sentence_on_the_models_says_what_the_table_does(networks):
    table, shown = networks
    text = prose.SENTENCES["models"](shown)
    rows = table.set_index("model")
    share = 100 * rows["parameters"] / rows.loc["fcn32s", "parameters"]
    for model in ("lraspp", "deeplabv3"):
        assert f"{share[model]:.3g} % of the parameters" in text
    assert f"{rows.loc['fcn32s', 'convolutions']} convolutions" in text
    assert f"The improved model of this report is {segmenters.NAMES['lraspp']}." in text
    assert "nan" not in text.lower()
