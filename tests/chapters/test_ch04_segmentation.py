"""Chapter 4: tables, sentences and pictures of the models and their networks; the CSV files: test_published."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from hw1lib.chapters import architectures, ch04_segmentation, phrases, tables
from hw1lib.data.landcover import PALETTE, SCORED, UNKNOWN
from hw1lib.models.segmenters import SEGMENTERS
from tests.chapters.made import assert_drawn, image, land, pictures

FULL = {name: segmenter.full for name, segmenter in SEGMENTERS.items()}


def metrics(last, **more):
    """What a segmentation step stores, in part."""
    iou = dict(zip(SCORED, (0.11, 0.22, 0.33, 0.44, 0.55, None), strict=True))
    return dict(miou=last + 0.05, miou_last=last, iou=iou, iou_last=iou, pixel_accuracy=0.7, epoch=2) | more


def variants(values=(0.3, 0.5, 0.4), control=0.1, **tta):
    """Metrics of the three models, of the TTA of some, of a vote and of the control, by name."""
    steps = {name: metrics(value, ceiling=0.9) for name, value in zip(SEGMENTERS, values, strict=True)}
    for name, value in tta.items():
        steps[name]["tta"] = metrics(value)
    return ch04_segmentation.variants(steps, metrics(control), {"lraspp+vote": metrics(0.5)})


def intervals(rows, half=0.02):
    """Intervals of all mIoUs and of their differences, `half` to either side."""
    last = {name: values["miou_last"] for name, values in rows.items()}
    gaps = {(one, two): last[one] - last[two] for one, two in itertools.permutations(rows, 2)}
    return {name: (value - half, value + half) for name, value in (last | gaps).items()}


def in_words(rows, half, improved="lraspp"):
    return ch04_segmentation.in_words(ch04_segmentation.table(rows), intervals(rows, half), improved)


def test_the_description_and_the_readable_table_have_the_counts_of_the_table():
    table = architectures.table(32, dict(zip(SEGMENTERS, (1, 2, 16))), {name: {"ceiling": 0.9} for name in SEGMENTERS})
    rows, text = table.set_index("model").to_dict("index"), architectures.in_words(table, "lraspp")
    assert table["stride"].tolist() == [32, 4, 1] and len(text.split("\n\n")) == 4
    for model, column in itertools.product(("lraspp", "deeplabv3"), ("parameters", "multiply_adds")):
        share = 100 * rows[model][column] / rows["fcn32s"][column]
        assert f"{share:.3g} % of the {column.replace('_', '-')}" in text
    assert f"{rows['lraspp']['inverted_residuals']} inverted residuals" in text and "nan" not in text.lower()
    assert f"The improved model of this report is {FULL['lraspp']}." in text
    cells = architectures.readable(table).set_index("")[FULL["lraspp"]]
    assert cells["parameters"] == f"{rows['lraspp']['parameters']:,}" and cells["output stride"] == "4 pixels"


@pytest.mark.parametrize("original", [None, {"fcn32s": 0.6867, "deeplabv3": 0.717}])
def test_the_readable_table_has_intervals_ceilings_and_the_original_where_comparable(original):
    rows = variants(fcn32s=0.45)
    shown = ch04_segmentation.readable(rows, intervals(rows), original)
    fcn, improved, deeplab = FULL.values()
    names = [fcn, f"{fcn}, TTA", improved, deeplab, f"{improved}, vote", "colour look-up (control)"]
    assert shown["model"].tolist() == names and shown["miou_last"].tolist() == [0.3, 0.45, 0.5, 0.4, 0.5, 0.1]
    assert shown["95 % interval"][0] == "0.280 to 0.320" and "nan" not in tables.markdown(shown)
    assert shown["ceiling"].fillna(0).tolist() == [0.9, 0, 0.9, 0.9, 0, 0]
    assert not original or shown["original"].fillna("–").tolist() == ["0.687", "–", "–", "0.717", "–", "–"]


def test_differences_of_models_controls_and_variants():
    rows = variants(fcn32s=0.45)
    table = ch04_segmentation.differences(ch04_segmentation.table(rows), intervals(rows))
    pairs = "lraspp–fcn32s deeplabv3–fcn32s deeplabv3–lraspp fcn32s–colour lraspp–colour deeplabv3–colour"
    pairs += " fcn32s+tta–fcn32s lraspp+vote–lraspp"
    assert [f"{one}–{two}" for one, two in zip(table["first"], table["second"])] == pairs.split()
    assert table["change"].tolist() == pytest.approx([0.2, 0.1, -0.1, 0.2, 0.4, 0.3, 0.15, 0.0])
    last = tables.markdown(ch04_segmentation.readable_differences(table)).splitlines()[-2]
    assert last == f"| {FULL['fcn32s']}, TTA | {FULL['fcn32s']} | +0.150 | +0.130 to +0.170 |"


def test_intervals_are_those_of_pooled_counts_over_tiles_or_places():
    masks = np.stack([np.full((4, 4), number % 2, np.uint8) for number in range(20)])
    half = np.where(np.arange(20)[:, None, None] < 10, masks, 1 - masks)  # right on the first ten tiles
    low, high = ch04_segmentation.intervals({"b": half}, masks)["b"]
    assert 0 < low < 1 / 3 < high < 1
    assert ch04_segmentation.intervals({"b": half}, masks, np.arange(20) // 10)["b"] == (0, 1)


@pytest.mark.parametrize("values", [(0.2, 0.4, 0.6, 0.5), (0.6, 0.5, 0.2, 0.4), (0.4, 0.2, 0.5, 0.6), (0.5,) * 4])
def test_comparisons_have_the_right_direction_and_interval(values):
    *models, control = values
    rows = variants(models, control, deeplabv3=0.45)
    text, ends = in_words(rows, 0.15), intervals(rows, 0.15)
    last = {name: metrics["miou_last"] for name, metrics in rows.items()}
    best, second = sorted(SEGMENTERS, key=lambda name: (-last[name], name))[:2]

    def expected(one, two, name):
        return phrases.comparison(last[one] - last[two], *ends[one, two], name)

    assert f"{FULL[best]} has the highest mIoU, {last[best]:.3f} ({phrases.confidence(*ends[best])}); it " in text
    assert f"; it {expected(best, second, FULL[second])}." in text
    if {best, second} != {"lraspp", "fcn32s"}:
        assert f"{FULL['lraspp']}, {expected('lraspp', 'fcn32s', FULL['fcn32s'])}." in text
    assert all(f"{FULL[name]} {expected(name, 'colour', 'it')}" in text for name in SEGMENTERS)
    change = phrases.change(last["deeplabv3+tta"] - last["deeplabv3"], *ends["deeplabv3+tta", "deeplabv3"])
    assert text.endswith(f"changes the mIoU of {FULL['deeplabv3']} by {change}.") and text.count("TTA") == 1
    assert "The improved" not in in_words(rows, 0.15, "fcn32s")


def test_without_intervals_nothing_is_said_about_significance():
    """All tiles show one place."""
    text = in_words(variants(lraspp=0.6), np.nan)
    assert "significant" not in text and "nan" not in text and "no interval: one place" in text


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.6, 0.61), (0.5, 0.5, 0.5)])
def test_seeds_of_the_improved_model(values):
    last = np.array(values)
    table = pd.DataFrame({"model": "lraspp", "seed": range(len(last)), "miou_last": last})
    text = ch04_segmentation.seeds(table)
    assert "nan" not in text and text.startswith("Only one seed") == (len(last) == 1)
    if np.ptp(last):
        ends = scipy.stats.ttest_1samp(last, 0).confidence_interval(0.95)
        numbers = [float(number) for number in re.findall(r"\d\.\d{3}", text)]
        assert numbers == pytest.approx([last.mean(), *ends, 0.5, 0.61], abs=0.00051)


def test_the_hardest_class_is_the_one_with_the_lowest_iou_of_those_that_occur():
    """A class without a hit is hardest, not absent."""
    iou = dict.fromkeys(SCORED, 0.5) | {"water": 0.0}
    assert ch04_segmentation.hardest(iou, "FCN") == "The hardest class for FCN is water (IoU 0.000)."
    assert "Urban occurs in neither" in ch04_segmentation.hardest(iou | {"urban": None}, "FCN")
    assert "Urban and barren occur in neither" in ch04_segmentation.hardest(
        iou | {"urban": None, "barren": None}, "FCN"
    )


@pytest.mark.parametrize("case", ["noisy", "right", "unknown"])
def test_errors_show_the_wrong_pixels_that_are_scored(case):
    truth = np.full((24, 36), UNKNOWN, dtype=np.uint8) if case == "unknown" else land(24, 36)
    predicted = truth if case == "right" else land(24, 36, seed=1) % UNKNOWN
    figure = ch04_segmentation.errors(image(24, 36).transpose(2, 0, 1), truth, predicted)
    known = truth != UNKNOWN
    wrong = known & (truth != predicted)
    expected = np.where(wrong[..., None], PALETTE[predicted], np.where(known, 235, 160)[..., None])
    assert np.array_equal(pictures(figure)[3], expected)
    assert_drawn(figure)


def test_stages_show_image_predictions_and_labels_with_the_mean_in_words():
    at = {"early": 1, "middle": 25, "final": 50}
    rows = {}
    for n in range(3):
        masks = {name: land(24, 30, seed=n + k) for k, name in enumerate(("truth", "early", "middle"))}
        rows[f"{n:04d}"] = {"image": image(24, 30).transpose(2, 0, 1), **masks, "final": masks["truth"]}
    figure = ch04_segmentation.stages(rows, at)
    expected = [PALETTE[tile[name]] for tile in rows.values() for name in (*at, "truth")]
    assert np.array_equal([picture for n, picture in enumerate(pictures(figure)) if n % 5], expected)
    assert_drawn(figure)
    text = ch04_segmentation.stages_in_words(rows, at, "FCN")
    early = np.mean([float(axis.get_xlabel().removeprefix("mIoU ")) for axis in figure.axes[1::5]])
    assert "1.000 (final)" in text and float(re.search(r"is (\S+) \(early", text)[1]) == pytest.approx(early, abs=0.006)
