"""Segmentation: pictures at their extremes, tables and sentences that agree with the numbers."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from hw1lib.chapters import ch04_segmentation, phrases
from hw1lib.data.landcover import CLASSES, PALETTE, SCORED, UNKNOWN
from hw1lib.metrics import iou
from hw1lib.models.segmenters import SEGMENTERS
from tests.chapters.made import FULL, assert_drawn, image, land, pictures, texts


def scored(last, iou=(0.11, 0.22, 0.33, 0.44, 0.55, None), **more):
    """What a segmentation step stores, or a part of it."""
    iou = dict(zip(SCORED, iou, strict=True))
    return dict(miou=last + 0.05, miou_last=last, iou=iou, iou_last=iou, pixel_accuracy=0.7, epoch=2) | more


def variants(values=(0.3, 0.5, 0.4), control=0.1, **tta):
    """Numbers of the three models and the control; `tta` of a model is its mIoU over flips and turns."""
    found = {name: scored(value, ceiling=0.9) for name, value in zip(SEGMENTERS, values, strict=True)}
    for name, value in tta.items():
        found[name]["tta"] = scored(value)
    return ch04_segmentation.variants(found, scored(control))


def between(rows, half=0.02):
    """Intervals of all mIoUs and of their differences, `half` to either side."""
    last = {name: values["miou_last"] for name, values in rows.items()}
    gaps = {(one, two): last[one] - last[two] for one in rows for two in rows if one != two}
    return {name: (value - half, value + half) for name, value in (last | gaps).items()}


def assert_moved(said, change, half):
    """No sign contradicts a number, and a change whose interval holds zero is not called one."""
    word, size, ends = re.fullmatch(
        r"(gains|loses|moves by) ([+-]?\d\.\d{3}) mIoU \((.*?)\)(?:, which .*)?", said
    ).groups()
    assert (word == "moves by") == ("cannot tell" in said) == (abs(change) <= half)
    assert word == "moves by" or (word == "gains") == (change > 0)
    value = abs(change) if word != "moves by" else change
    found = [float(number) for number in (size, *ends.split(" to "))]
    assert found == pytest.approx([value, value - half, value + half], abs=0.00051)


# --- tables (to the byte: test_published)


@pytest.mark.parametrize("original", [None, {"fcn32s": 0.6867, "deeplabv3": 0.717}])
def test_the_readable_table_has_ceilings_and_the_original_where_it_compares(original):
    rows = variants(fcn32s=0.45) | {("lraspp", "vote"): scored(0.5)}
    shown = ch04_segmentation.readable(rows, between(rows), original)
    fcn, improved, deeplab = FULL.values()
    names = [fcn, f"{fcn}, TTA", improved, deeplab, "colour look-up (control)", f"{improved}, vote"]
    assert shown["model"].tolist() == names and shown["miou_last"].tolist() == [0.3, 0.45, 0.5, 0.4, 0.1, 0.5]
    assert shown["95 % interval"][0] == "0.280 – 0.320"
    assert shown["ceiling"].fillna(0).tolist() == [0.9, 0, 0.9, 0.9, 0, 0] and "nan" not in phrases.markdown(shown)
    assert ("original" in shown) == bool(original)
    assert not original or shown["original"].fillna("–").tolist() == ["0.687", "–", "–", "0.717", "–", "–"]


def test_differences_are_those_of_the_last_epoch_between_models_to_the_control_and_of_variants():
    rows = variants(fcn32s=0.45) | {("lraspp", "vote"): scored(0.5)}
    table = ch04_segmentation.differences(rows, between(rows))
    pairs = "lraspp–fcn32s deeplabv3–fcn32s deeplabv3–lraspp fcn32s–colour lraspp–colour deeplabv3–colour"
    pairs += " fcn32s+tta–fcn32s lraspp+vote–lraspp"
    assert [f"{one}–{two}" for one, two in zip(table["first"], table["second"])] == pairs.split()
    assert table["change"].tolist() == pytest.approx([0.2, 0.1, -0.1, 0.2, 0.4, 0.3, 0.15, 0.0])
    assert (table["high"] - table["low"]).tolist() == pytest.approx([0.04] * 8)
    shown = ch04_segmentation.differences_readable(table).iloc[-2]
    assert shown.tolist() == [f"{FULL['fcn32s']}, TTA", FULL["fcn32s"], "+0.150", "+0.130 … +0.170"]


def test_the_spread_is_that_of_pooled_counts_over_tiles():
    """Who is right everywhere moves nowhere; who is right on half of the tiles moves, places as a whole."""
    masks = np.stack([np.full((4, 4), number % 2, np.uint8) for number in range(20)])
    half = np.where(np.arange(20)[:, None, None] < 10, masks, 1 - masks)
    found = ch04_segmentation.spread({("a", ""): masks, ("b", ""): half}, masks)
    assert found["a", ""] == (1, 1) and 0 < found["b", ""][0] < 1 / 3 < found["b", ""][1] < 1
    assert found[("a", ""), ("b", "")] == pytest.approx(tuple(1 - end for end in found["b", ""][::-1]))
    places = ch04_segmentation.spread({("b", ""): half}, masks, np.arange(20) // 10)["b", ""]
    assert places == (0, 1)


@pytest.mark.parametrize("count", [1, 3])
def test_seeds_of_the_improved_model(count):
    values = np.array([0.5, 0.6, 0.61])[:count]
    text = ch04_segmentation.seeds(pd.DataFrame({"model": "lraspp", "seed": range(count), "miou_last": values}))
    assert FULL["lraspp"] in text and "nan" not in text
    if count == 1:
        assert "not measured" in text and not re.search(r"\d\.\d", text)
    else:
        ends = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        said = re.findall(r"\d\.\d{3}", text)
        assert [float(x) for x in said] == pytest.approx([values.mean(), *ends, 0.5, 0.61], abs=0.00051)


# --- pictures


@pytest.mark.parametrize("case", ["noisy", "right", "unknown"])
def test_errors_lie_where_scored_pixels_are_wrong(case):
    truth = np.full((24, 36), UNKNOWN, dtype=np.uint8) if case == "unknown" else land(24, 36)
    predicted = truth if case == "right" else land(24, 36, seed=1) % UNKNOWN
    figure = ch04_segmentation.errors(image(24, 36).transpose(2, 0, 1), truth, predicted)
    known = truth != UNKNOWN
    wrong = known & (truth != predicted)
    where = np.where(wrong[..., None], PALETTE[predicted], np.where(known, 235, 160)[..., None])
    expected = (image(24, 36), PALETTE[truth], PALETTE[predicted], where)
    assert all(np.array_equal(*pair) for pair in zip(pictures(figure), expected, strict=True))
    assert figure.axes[3].get_title() == f"errors: {wrong.sum() / max(known.sum(), 1):.0%} of the pixels"
    assert_drawn(figure)


@pytest.mark.parametrize(("count", "final"), [(1, "truth"), (3, "early")])
def test_stages_stand_between_the_image_and_the_truth_and_gain_where_the_last_is_higher(count, final):
    at = {"early": 1, "middle": 25, "final": 50}
    rows = {}
    for n in range(count):
        masks = {name: land(24, 30, seed=n + place) for place, name in enumerate(("truth", "early", "middle"))}
        rows[f"{n:04d}"] = {"image": image(24, 30, seed=n).transpose(2, 0, 1), **masks, "final": masks[final]}
    figure = ch04_segmentation.stages(rows, at)
    titles = ["image", *(f"{stage} (epoch {epoch})" for stage, epoch in at.items()), "truth"]
    assert [axis.get_title() for axis in figure.axes[:5]] == titles
    values = {stage: [] for stage in at}
    for row, (number, parts) in enumerate(rows.items()):
        line = figure.axes[5 * row : 5 * row + 5]
        assert line[0].get_ylabel() == number and np.array_equal(line[0].images[0].get_array(), image(24, 30, seed=row))
        for axis, name in zip(line[1:], (*at, "truth"), strict=True):
            assert np.array_equal(axis.images[0].get_array(), PALETTE[parts[name]])
            miou = iou.miou(iou.confusion(parts["truth"], parts[name]))
            assert axis.get_xlabel() == (f"mIoU {miou:.2f}" if name in at else "")
            values.setdefault(name, []).append(miou)
    seen = {CLASSES[c] for parts in rows.values() for name in (*at, "truth") for c in np.unique(parts[name])}
    assert set(texts(figure.legends[0].get_texts())) == seen
    assert_drawn(figure)
    text = ch04_segmentation.stages_in_words(rows, at, "FCN")
    assert all(f"{np.mean(values[stage]):.3f} ({stage})" in text for stage in at)
    assert "FCN" in text and "gain" not in text


# --- sentences


@pytest.mark.parametrize("values", [*itertools.permutations((0.2, 0.4, 0.6, 0.5)), (0.5, 0.5, 0.4, 0.5)])
def test_who_is_best_by_how_much_and_above_what(values):
    """Above or below only where the interval of the difference leaves zero out."""
    *models, control = values
    rows = variants(models, control)
    half = 0.15
    text = ch04_segmentation.in_words(rows, "lraspp", between(rows, half))
    last = dict(zip(SEGMENTERS, models, strict=True)) | {"colour": control}
    best, second = sorted(SEGMENTERS, key=lambda name: (-last[name], name))[:2]
    assert f"{FULL[best]} has the highest mIoU, {last[best]:.3f} ({last[best] - half:.3f} to " in text

    def said(one, two, name):
        gap = last[one] - last[two]
        if abs(gap) <= half:
            return f"cannot be told from {name} on these tiles ({gap:+.3f}, "
        return f"is {abs(gap):.3f} {'above' if gap > 0 else 'below'} {name} ({abs(gap) - half:.3f} to "

    assert f"; it {said(best, second, FULL[second])}" in text
    if {best, second} != {"lraspp", "fcn32s"}:
        assert f"{FULL['lraspp']}, {said('lraspp', 'fcn32s', FULL['fcn32s'])}" in text
    assert f"alone reaches {control:.3f}: " in text
    assert all(f"{FULL[name]} {said(name, 'colour', 'it')}" in text for name in SEGMENTERS)
    assert "The improved" not in ch04_segmentation.in_words(rows, "fcn32s", between(rows)) and "TTA" not in text


@pytest.mark.parametrize("change", [-0.3, -0.0006, 0.0, 0.0006, 0.3])
def test_turning_gains_where_it_gains(change):
    """A sentence more, the others as they were: variants are not ranked."""
    sentence = r" Averaged over eight .*? \(TTA\), (\S+) ((?:gains|loses|moves by) .*?\)(?:, which .*? zero)?)\."
    rows = variants(deeplabv3=0.4 + change, fcn32s=0.3)
    text = ch04_segmentation.in_words(rows, "lraspp", between(rows, 0.01))
    assert re.sub(sentence, "", text) == ch04_segmentation.in_words(variants(), "lraspp", between(variants(), 0.01))
    (first, said), (second, same) = re.findall(sentence, text)
    assert (first, second) == (FULL["deeplabv3"], FULL["fcn32s"])
    assert_moved(said, change, 0.01)
    assert_moved(same, 0.0, 0.01)


@pytest.mark.parametrize("worst", SCORED)
@pytest.mark.parametrize(("absent", "said"), [([], ""), (2, "occur neither"), (1, "occurs neither")])
def test_the_hardest_class_is_the_one_with_the_lowest_iou_of_those_that_occur(worst, absent, said):
    """A class without a hit is hardest, not absent."""
    others = [name for name in SCORED if name != worst]
    missing = others[: absent or 0]
    text = ch04_segmentation.hardest(dict.fromkeys(SCORED, 0.5) | dict.fromkeys(missing) | {worst: 0.0}, "FCN")
    assert f"for FCN is {worst} (IoU 0.000)" in text and (said in text if absent else "left out" not in text)
    assert [name for name in others if name in text.lower()] == missing
