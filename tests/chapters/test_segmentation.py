"""Segmentation: published tables to the byte, pictures at their extremes, sentences that agree with the numbers."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from hw1lib import profiles
from hw1lib.chapters import segmentation, words
from hw1lib.data.landcover import CLASSES, PALETTE, SCORED, UNKNOWN
from hw1lib.measures import metrics
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS
from tests.chapters.made import assert_drawn, columns, csv, history, image, land

FULL = {name: about.full for name, about in SEGMENTERS.items()}
MOVED = re.compile(r"(?:(gains|loses) (\d\.\d{3}) mIoU|(stays as it is))")


def scored(last, iou=(0.11, 0.22, 0.33, 0.44, 0.55, None), **more):
    """What a segmentation step stores, or a part of it."""
    iou = dict(zip(SCORED, iou, strict=True))
    return {
        "miou": last + 0.05,
        "miou_last": last,
        "iou": iou,
        "iou_last": iou,
        "pixel_accuracy": 0.7,
        "epoch": 2,
        **more,
    }


def variants(values=(0.3, 0.5, 0.4), control=0.1, **tta):
    """Numbers of the three models and the control; `tta` of a model is its mIoU over flips and turns."""
    found = {name: scored(value, ceiling=0.9) for name, value in zip(SEGMENTERS, values, strict=True)}
    for name, value in tta.items():
        found[name]["tta"] = scored(value)
    return segmentation.variants(found, scored(control))


# --- tables


def test_the_published_table_is_made_again_to_the_byte(demo):
    """Its row vote is that of the everything step, and the control stands last."""
    rows = segmentation.variants(
        {name: demo.steps[f"segment-{name}"] for name in SEGMENTERS}, demo.steps["segment-colour"]
    )
    masks = demo.steps["everything"]
    vote = masks["refined"][masks["refine"]] | {"epoch": demo.settings["lraspp"]["epochs"]}
    control = {("colour", ""): rows.pop(("colour", ""))}
    assert csv(segmentation.table(rows | {("lraspp", "vote"): vote} | control)) == demo.table("segmentation")


def test_the_published_table_of_networks_is_made_again_to_the_byte(demo):
    found = {name: demo.steps[f"segment-{name}"] for name in SEGMENTERS}
    table = segmentation.networks(128, {name: demo.settings[name]["enlarge"] for name in found}, found)
    assert csv(table) == demo.table("networks")


@pytest.mark.parametrize(
    ("tta", "expected"),
    [((), "fcn32s lraspp deeplabv3 colour"), (("lraspp",), "fcn32s lraspp lraspp+tta deeplabv3 colour"),
     (("fcn32s", "deeplabv3"), "fcn32s fcn32s+tta lraspp deeplabv3 deeplabv3+tta colour")],
)  # fmt: skip
def test_the_table_has_a_row_for_each_variant(tta, expected):
    rows = variants(**dict.fromkeys(tta, 0.456))
    table = segmentation.table(rows | {("lraspp", "vote"): scored(0.5)})
    assert columns(table) == (
        "model,miou,miou_last,urban,agriculture,rangeland,forest,water,barren,pixel_accuracy,parameters,epoch"
    )
    assert " ".join(table["model"]) == f"{expected} lraspp+vote"
    for line, (model, variant) in zip(table.to_dict("records"), [*rows, ("lraspp", "vote")]):
        assert model == "colour" or line["parameters"] == segmenters.parameters(model)
        assert model != "colour" or pd.isna(line["parameters"])  # the look-up table is no network
        assert variant != "tta" or line["miou_last"] == 0.456
        assert line["water"] == 0.55 and pd.isna(line["barren"])
    assert csv(table).splitlines()[1].split(",")[8] == ""  # what was not measured is an empty cell


@pytest.mark.parametrize("original", [None, {"fcn32s": 0.6867, "deeplabv3": 0.717}])
def test_the_readable_table_has_ceilings_and_the_original_where_it_compares(original):
    rows = variants(lraspp=0.45) | {("lraspp", "vote"): scored(0.5)}
    shown = segmentation.readable(rows, original)
    assert list(shown["model"]) == [
        FULL["fcn32s"], FULL["lraspp"], FULL["lraspp"] + ", TTA", FULL["deeplabv3"], "colour look-up (control)",
        FULL["lraspp"] + ", vote",
    ]  # fmt: skip
    assert shown.columns.get_loc("ceiling") == shown.columns.get_loc("miou_last") + 1 and "parameters" not in shown
    assert [c if c == c else None for c in shown["ceiling"]] == [0.9, 0.9, None, 0.9, None, None]
    assert ("original" in shown) == bool(original)
    if original:
        assert shown["original"].fillna("–").tolist() == ["0.687", "–", "–", "0.717", "–", "–"]
    assert "nan" not in words.markdown(shown)


@pytest.fixture(scope="module")
def networks():
    """The table of networks for tiles of 32 pixels that lraspp sees enlarged."""
    values = {name: {"ceiling": 0.9 - place / 10} for place, name in enumerate(SEGMENTERS)}
    return segmentation.networks(32, {"fcn32s": 1, "lraspp": 2, "deeplabv3": 16}, values)


def test_networks_are_counted_from_their_modules(networks):
    rows = networks.set_index("model")
    assert list(rows.index) == list(SEGMENTERS) and not any(" " in name for name in networks)
    for (model, about), enlarge, ceiling in zip(SEGMENTERS.items(), (1, 2, 16), (0.9, 0.8, 0.7), strict=True):
        row = rows.loc[model]
        assert row["parameters"] == sum(p.numel() for p in segmenters.real(model).parameters())
        assert row["multiply_adds"] == segmenters.multiply_adds(model, 32 * enlarge)
        assert row["stride"] == max(1, about.stride // enlarge) and row["ceiling"] == pytest.approx(ceiling)
    shown = segmentation.networks_readable(networks)
    assert list(shown)[1:] == list(FULL.values()) and len(shown) == len(networks.columns) - 1
    cells = shown.set_index("")[FULL["lraspp"]]
    assert cells["parameters"] == f"{segmenters.parameters('lraspp'):,}"
    assert cells["output stride in the tile"] == "4 pixels" and cells["ceiling of the mIoU there"] == "0.800"
    assert float(cells["multiply-adds for one tile"].split()[0]) == pytest.approx(
        rows.loc["lraspp", "multiply_adds"] / 1e9, 0.01
    )


def test_the_sentence_on_the_networks_says_what_the_table_does(networks):
    text, rows = segmentation.networks_in_words(networks, "lraspp"), networks.set_index("model")
    for column, name in (("parameters", "parameters"), ("multiply_adds", "multiply-adds")):
        for model in ("lraspp", "deeplabv3"):
            assert f"{100 * rows.loc[model, column] / rows.loc['fcn32s', column]:.3g} % of the {name}" in text
    assert f"{rows.loc['fcn32s', 'convolutions']} convolutions with {rows.loc['fcn32s', 'BatchNorm_layers']}" in text
    assert f"{rows.loc['lraspp', 'inverted_residuals']} inverted residuals" in text
    assert f"{rows.loc['deeplabv3', 'residual_bottlenecks']} residual bottlenecks" in text and "nan" not in text.lower()
    assert f"The improved model of this report is {FULL['lraspp']}." in text


def test_settings_stand_side_by_side():
    settings = {name: getattr(profiles.get("demo"), name) for name in SEGMENTERS}
    table = segmentation.settings_table(settings).set_index("setting")
    assert all(table.loc["lr", FULL[name]] == str(settings[name].lr) for name in SEGMENTERS)


# --- pictures


@pytest.mark.parametrize("name", SEGMENTERS)
def test_architectures_have_a_box_for_each_block(name):
    blocks = segmenters.outline(name)
    figure = segmentation.architecture(blocks, FULL[name])
    axis = figure.axes[0]
    boxes = [patch.get_bbox() for patch in axis.patches if hasattr(patch, "get_boxstyle")][: len(blocks)]
    sizes = np.array([(block["shape"][0], block["shape"][1]) for block in blocks])
    for drawn, counted in (([box.width for box in boxes], sizes[:, 0]), ([box.height for box in boxes], sizes[:, 1])):
        order = np.argsort(counted, kind="stable")
        assert (np.diff(np.array(drawn)[order]) >= -1e-9).all()
    shown = [text.get_text() for text in axis.texts]
    assert all(f"{c}\n{h}²" in shown for c, h in sizes) and all(block["label"] in shown for block in blocks)
    assert all(one.x1 < two.x0 for one, two in itertools.pairwise(boxes))
    assert_drawn(figure)


@pytest.mark.parametrize(("models", "epochs", "control"), [(["lraspp"], 1, 0.0), ([*SEGMENTERS], 50, 0.4321)])
def test_the_curves_show_the_control_on_the_miou_alone(models, epochs, control):
    figure = segmentation.curves({name: history(epochs) for name in models}, control)
    loss, miou = figure.axes
    assert len(loss.lines) == len(models) == len(miou.lines) - 1
    for axis, column in ((loss, "loss"), (miou, "miou")):
        for line, name in zip(axis.lines, models):
            assert line.get_label() == FULL[name] and line.get_ydata() == pytest.approx(history(epochs)[column])
    level = miou.lines[-1]
    assert set(level.get_ydata()) == {control} and list(level.get_xdata()) == [0, 1]
    assert [text.get_text() for text in miou.texts] == ["colours alone"]
    assert miou.get_ylim()[0] <= control <= miou.get_ylim()[1]
    assert_drawn(figure)


@pytest.mark.parametrize(
    ("models", "absent"),
    [([*SEGMENTERS], ["urban"]), (["lraspp"], [c for c in SCORED if c != "water"]), ([*SEGMENTERS], [])],
)
def test_bars_of_the_classes_are_as_high_as_their_iou(models, absent):
    """A group for each class that any model has, a bar for each model over it, the control as a line."""
    random = np.random.default_rng(0)
    values = {name: dict(zip(SCORED, random.random(6).tolist())) for name in (*models, "colour")}
    for of_model in values.values():
        of_model.update(dict.fromkeys(absent))
    shown = [c for c in SCORED if c not in absent]
    if not absent:
        values["lraspp"]["forest"] = None  # it is in neither labels nor this model's predictions
    figure = segmentation.class_iou(values)
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == shown and axis.get_ylim() == (0, 1)
    for container, model in zip(axis.containers, models, strict=True):
        assert container.get_label() == FULL[model]
        assert [bar.get_height() for bar in container] == [values[model][name] or 0 for name in shown]
        centres = [bar.get_x() + bar.get_width() / 2 for bar in container]
        assert np.abs(np.array(centres) - np.arange(len(shown))).max() < 0.5
    assert [text.get_text() for text in axis.texts].count("–") == (not absent)
    levels = [lines.get_segments()[0] for lines in axis.collections]
    assert [level[0, 1] for level in levels] == [values["colour"][name] for name in shown]
    assert all(low < place < high for place, ((low, _), (high, _)) in enumerate(levels))
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for c in axis.containers for bar in c)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(edges))
    assert_drawn(figure)


@pytest.mark.parametrize("case", ["noisy", "right", "unknown"])
def test_errors_lie_where_scored_pixels_are_wrong(case):
    truth = np.full((24, 36), UNKNOWN, dtype=np.uint8) if case == "unknown" else land(24, 36)
    predicted = truth if case == "right" else land(24, 36, seed=1) % UNKNOWN
    figure = segmentation.errors(image(24, 36).transpose(2, 0, 1), truth, predicted)
    pictures = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert np.array_equal(pictures[0], image(24, 36))
    assert np.array_equal(pictures[1], PALETTE[truth]) and np.array_equal(pictures[2], PALETTE[predicted])
    known = truth != UNKNOWN
    wrong = known & (truth != predicted)
    assert (pictures[3][wrong] == PALETTE[predicted][wrong]).all()
    assert (pictures[3][known & ~wrong] == 235).all() and (pictures[3][~known] == 160).all()
    assert figure.axes[3].get_title() == f"errors: {wrong.sum() / max(known.sum(), 1):.0%} of the pixels"
    assert_drawn(figure)


def stage_rows(count):
    parts = ("truth", "early", "middle", "final")
    return {
        f"{n:04d}": {"image": image(24, 30, seed=n).transpose(2, 0, 1)}
        | {name: land(24, 30, seed=n + place) for place, name in enumerate(parts)}
        for n in range(count)
    }


@pytest.mark.parametrize("count", [1, 3])
def test_stages_stand_between_the_image_and_the_truth(count):
    rows, at = stage_rows(count), {"early": 1, "middle": 25, "final": 50}
    figure = segmentation.stages(rows, at)
    assert [axis.get_title() for axis in figure.axes[:5]] == [
        "image",
        *(f"{s} (epoch {e})" for s, e in at.items()),
        "truth",
    ]
    for row, (number, parts) in enumerate(rows.items()):
        line = figure.axes[5 * row : 5 * row + 5]
        assert line[0].get_ylabel() == number and np.array_equal(line[0].images[0].get_array(), image(24, 30, seed=row))
        for axis, name in zip(line[1:], (*at, "truth"), strict=True):
            assert np.array_equal(axis.images[0].get_array(), PALETTE[parts[name]])
            miou = metrics.miou(metrics.confusion(parts["truth"], parts[name]))
            assert axis.get_xlabel() == (f"mIoU {miou:.2f}" if name in at else "")
    seen = {CLASSES[c] for parts in rows.values() for name in (*at, "truth") for c in np.unique(parts[name])}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == seen
    assert_drawn(figure)


# --- sentences


@pytest.mark.parametrize("values", [*itertools.permutations((0.2, 0.4, 0.6, 0.5)), (0.5, 0.5, 0.4, 0.5)])
def test_who_is_best_by_how_much_and_above_what(values):
    *models, control = values
    text = segmentation.in_words(variants(models, control), "lraspp")
    last = dict(zip(SEGMENTERS, models, strict=True))
    order = sorted(last, key=lambda name: (-last[name], name))
    first, second = (last[name] for name in order[:2])
    assert (
        f"{FULL[order[0]]} is best with a mIoU of {first:.3f}, {first - second:.3f} ahead of {FULL[order[1]]}." in text
    )
    gain = last["lraspp"] - last["fcn32s"]
    assert f"{FULL['lraspp']}, is {abs(gain):.3f} {'above' if gain >= 0 else 'below'} {FULL['fcn32s']}" in text
    said = re.search(r"alone reaches ([\d.]+); (.*?)\. (?:The hardest)", text)
    assert said.group(1) == f"{control:.3f}"
    assert {name for name in last if FULL[name] in said.group(2)} == {name for name in last if last[name] > control}
    assert ("no model" in said.group(2)) == (first <= control)
    assert "The improved" not in segmentation.in_words(variants(models, control), "fcn32s") and "TTA" not in text


@pytest.mark.parametrize("change", [-0.3, -0.0006, -0.0004, 0.0, 0.0004, 0.0006, 0.3])
def test_turning_gains_where_it_gains(change):
    """A sentence more, the others as they were: variants are not ranked."""
    plain = segmentation.in_words(variants(), "lraspp")
    text = segmentation.in_words(variants(deeplabv3=0.4 + change, fcn32s=0.3), "lraspp")
    found = re.findall(
        rf" Averaged over eight .*? \(TTA\), ({FULL['deeplabv3']}|{FULL['fcn32s']}) (.*?)\.(?= [A-Z])", text
    )
    assert re.sub(r" Averaged over eight .*? \(TTA\), .*?\.(?= [A-Z])", "", text) == plain
    assert found[0] == (FULL["deeplabv3"], segmentation.moved(change)) and found[1] == (
        FULL["fcn32s"],
        "stays as it is",
    )
    word, size, same = MOVED.fullmatch(found[0][1]).groups()
    assert bool(same) == (abs(change) < 0.0005)
    assert same or (
        (word == "gains") == (change > 0) and float(size) == pytest.approx(abs(change), abs=0.00051) and float(size) > 0
    )


@pytest.mark.parametrize("worst", SCORED)
def test_the_hardest_class_is_the_one_with_the_lowest_iou(worst):
    """Of those that occur; a class without a hit is hardest, not absent."""
    for low in (0.0, 0.123):
        text = segmentation.hardest(dict.fromkeys(SCORED, 0.5) | {worst: low}, "FCN")
        assert f"for FCN is {worst} (IoU {low:.3f})" in text and "left out" not in text
        assert not any(name in text for name in SCORED if name != worst)


@pytest.mark.parametrize(
    ("absent", "said"), [(["urban", "water"], "Urban and water occur neither"), (["urban"], "Urban occurs neither")]
)
def test_absent_classes_are_listed_and_never_the_hardest(absent, said):
    text = segmentation.hardest(dict.fromkeys(SCORED, 0.5) | {"barren": 0.2} | dict.fromkeys(absent), "FCN")
    assert "is barren" in text and said in text and f"{'are' if len(absent) > 1 else 'is'} left out of" in text


@pytest.mark.parametrize("final", ["early", "truth"])
def test_stages_gain_only_where_the_last_is_higher(final):
    rows = stage_rows(3)
    rows = {number: parts | {"final": parts[final]} for number, parts in rows.items()}
    text = segmentation.stages_in_words(rows, {"early": 1, "middle": 2, "final": 3}, "FCN")
    for stage in ("early", "middle", "final"):
        values = [metrics.miou(metrics.confusion(parts["truth"], parts[stage])) for parts in rows.values()]
        assert f"{np.mean(values):.3f} ({stage})" in text
    assert ("does not gain" in text) == (final == "early") and "FCN" in text
