"""Everything masks: pictures of the real arrays, tables and sentences that follow the numbers."""

import itertools
import re

import numpy as np
import pytest

from hw1lib.chapters import ch05_segment_anything, phrases
from hw1lib.data import layout
from hw1lib.data.landcover import PALETTE
from tests.chapters.made import assert_drawn, land, pictures, result
from tests.chapters.test_ch04_segmentation import assert_moved
from tests.conftest import write_tile

HALF = 0.01  # of all intervals


def measured(vote=0.4, number="0001", method="slic", **changes):
    return {
        "method": method, "image": number, "masks": 64, "coverage": 1.0, "asa": 0.8, "oracle_miou": 0.5,
        "vote_miou": vote, "model_miou": 0.5, "boundary_recall": 0.2, "boundary_precision": None, **changes,
    }  # fmt: skip


def metrics(rows=(), sam=None, model=0.5, **refined):
    values = {m: {"miou": v, "segments": 10.4 + i} for i, (m, v) in enumerate(refined.items())}
    for found in values.values():
        found["change"] = [found["miou"] - model - HALF, found["miou"] - model + HALF]
    return {"rows": list(rows), "sam": sam, "model_miou": model, "refined": values, "refine": next(iter(values), None)}


# --- tables (to the byte: test_published)


@pytest.mark.parametrize("sam", [None, "sam_vit_b.pth"])
def test_without_sam_its_rows_are_there_and_empty(sam):
    table = ch05_segment_anything.table(metrics([measured(), measured(number="0002")], sam), ["0001", "0002"])
    shown = phrases.markdown(ch05_segment_anything.readable(table)).splitlines()[2:]
    assert shown[-1].startswith("| SLIC | 0002 | 64 | 1.000 | 0.800 |") and shown[-1].endswith("| – |")
    assert len(shown) == (2 if sam else 4) and (sam or shown[0] == "| SAM | 0001 | not measured |" + " – |" * 6)


def test_the_refinement_is_printed_with_its_signs():
    table = ch05_segment_anything.refinement(metrics(model=0.45, felzenszwalb=0.47, slic=0.43))
    shown = ch05_segment_anything.refinement_readable(table)
    assert shown.values.tolist() == [
        ["Felzenszwalb", "10", "0.450", "0.470", "+0.020", "+0.010 … +0.030"],
        ["SLIC", "11", "0.450", "0.430", "-0.020", "-0.030 … -0.010"],
    ]  # fmt: skip
    assert "segments an image" in shown and "mIoU of the model" in shown


# --- pictures


def test_cut_outs_are_the_largest_masks_on_white():
    picture, masks = np.full((30, 30, 3), 7, dtype=np.uint8), np.zeros((12, 30, 30), dtype=bool)
    for number in range(12):
        masks[number, number, : number + 1] = True  # the first three are left out
    sheet = ch05_segment_anything.cut_outs(picture, masks)
    filled = (sheet == 7).all(axis=-1)
    assert sheet.shape == (30, 30, 3) and (filled | (sheet == 255).all(axis=-1)).all()
    sizes = filled.reshape(3, 10, 3, 10).sum(axis=(1, 3)).ravel()
    assert sizes[-3:].tolist() == [6, 5, 4] and (sizes > 0).all()
    assert (ch05_segment_anything.cut_outs(picture, masks[:0]) == 255).all()


@pytest.mark.parametrize("methods", [["slic"], ["sam", "slic", "felzenszwalb"]])
def test_masks_show_the_model_then_each_method_then_the_truth(tmp_path, methods):
    """From the stored arrays to the pixels, in the order that was asked for; what no mask covers is not painted."""
    tiles, asked, arrays, rows = layout.Tiles(tmp_path, ("0001", "0002", "0003")), ["0003", "0001"], {}, []
    predictions = np.stack([land(24, 30, seed=40 + place) for place in range(3)])
    for place, number in enumerate(tiles.numbers):
        write_tile(tmp_path, number, land(24, 30, seed=place))
        for at, method in enumerate(methods):
            labels, key = land(24, 30, seed=9 * place + at), f"{method}_{number}"
            arrays[f"{key}_masks"] = np.packbits(np.stack([labels == c for c in range(6)]), axis=-1)
            arrays |= {f"{key}_labels": labels.astype(np.int32), f"{key}_vote": land(24, 30, seed=70 + 9 * place + at)}
            rows.append(measured(number=number, method=method, masks=7 + 3 * place + at))
    found = ch05_segment_anything.gather(result({"rows": rows}, **arrays), tiles, asked, methods, predictions)
    for number, method in itertools.product(asked, methods):
        labels = arrays[f"{method}_{number}_labels"]
        assert np.array_equal(found[number][method]["labels"], np.where(labels < 6, labels, -1))

    names = {method: ch05_segment_anything.METHODS[method] for method in methods}
    figure, count = ch05_segment_anything.masks_figure(found, names), 3 + 2 * len(methods)
    for row, number in enumerate(asked):
        line, place = np.s_[row * count : (row + 1) * count], int(number) - 1
        axes, shown = figure.axes[line], pictures(figure)[line]
        votes = [arrays[f"{method}_{number}_vote"] for method in methods]
        expected = [predictions[place], *votes, land(24, 30, seed=place)]
        assert np.array_equal(np.stack([*shown[1:-1:2], shown[-1]]), PALETTE[np.stack(expected)])
        assert axes[0].get_ylabel() == number
        masks = [f"{7 + 3 * place + at} masks" for at in range(len(methods))]
        assert [axis.get_xlabel() for axis in axes[2:-1:2]] == masks
    between = [text for name in names.values() for text in (name, "its vote")]
    assert [axis.get_title() for axis in figure.axes] == ["image", "model", *between, "truth"] + [""] * count
    assert_drawn(figure)


# --- sentences

CHANGES = (-0.2, -0.0006, -0.0003, 0.0, 0.0003, 0.0006, 0.2)


@pytest.mark.parametrize("change", CHANGES)
def test_the_vote_is_given_beside_the_model_on_the_mean(change):
    """Of a few images, so nothing is said of gains. One without known pixels, whose ASA is None, is left out."""
    rows = [measured(0.4 + change, masks=10), measured(0.6 + change, "0002", masks=20, asa=None)]
    text = ch05_segment_anything.in_words(metrics(rows, "sam.pth"))
    assert text.startswith("SLIC finds 15 masks an image on average") and "80.0 % of the pixels" in text
    assert f"{0.5 + change:.3f} instead of 0.500." in text
    text = ch05_segment_anything.in_words(metrics([rows[1]], "sam.pth"))
    assert "nan" not in text and "no shown image has a pixel of a known class" in text


def test_each_method_has_its_own_sentence_and_missing_weights_are_said():
    rows = [measured(0.6, masks=10), measured(0.4, method="sam", masks=99)]
    text = ch05_segment_anything.in_words(metrics(rows, "sam.pth"))
    assert re.match("SLIC finds 10 masks.*0.600 instead of.*SAM finds 99 masks.*0.400 instead of", text)
    text = ch05_segment_anything.in_words(metrics(rows[:1]))
    assert text.startswith("**SAM was not measured**") and "weights fetch sam_vit_b" in text


@pytest.mark.parametrize("changes", [*itertools.product(CHANGES, CHANGES[::3])])
def test_the_vote_gains_exactly_where_a_number_rises(changes):
    """The row vote is the chosen method's."""
    found = metrics(felzenszwalb=0.5 + changes[0], slic=0.5 + changes[1])
    text = ch05_segment_anything.refinement_in_words(found, "LRASPP", 257)
    claims = re.findall(r"with (\w+) \((\d+) segments an image\) it (.*?(?:zero|\d\)))(?=[;.])", text)
    assert [claim[:2] for claim in claims] == [("Felzenszwalb", "10"), ("SLIC", "11")]
    for (_, _, said), change in zip(claims, changes):
        assert_moved(said, change, HALF)
    assert "all 257 validation tiles" in text and "LRASPP's prediction" in text
    chosen = ch05_segment_anything.refinement_in_words(found | {"refine": "slic"}, "LRASPP", 3)
    assert "is that of Felzenszwalb" in text and "is that of SLIC" in chosen
