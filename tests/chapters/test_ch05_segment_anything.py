"""Chapter 5: everything masks as stored and drawn, tables and sentences that follow the numbers."""

import re
import types

import numpy as np
import pytest

from hw1lib.chapters import ch05_segment_anything, tables
from hw1lib.data import layout
from hw1lib.data.landcover import PALETTE
from tests.chapters.made import assert_drawn, image, land, pictures
from tests.conftest import write_tile


def measured(vote=0.4, number="0001", method="slic", **changes):
    return {
        "method": method, "image": number, "masks": 64, "coverage": 1.0, "asa": 0.8, "oracle_miou": 0.5,
        "vote_miou": vote, "model_miou": 0.5, "boundary_recall": 0.2, "boundary_precision": None, **changes,
    }  # fmt: skip


def metrics(rows=(), sam=None, model=0.5, half=0.01, **refined):
    values = {m: {"miou": v, "segments": 10.4 + i} for i, (m, v) in enumerate(refined.items())}
    for vote in values.values():
        vote["change"] = [vote["miou"] - model - half, vote["miou"] - model + half]
    return {"rows": list(rows), "sam": sam, "model_miou": model, "refined": values}


@pytest.mark.parametrize("sam", [None, "sam_vit_b.pth"])
def test_without_sam_its_rows_are_empty(sam):
    table = ch05_segment_anything.table(metrics([measured(), measured(number="0002")], sam), ["0001", "0002"])
    lines = tables.markdown(ch05_segment_anything.readable(table)).splitlines()[2:]
    assert lines[-1].startswith("| SLIC | 0002 | 64 | 1.000 | 0.800 |") and lines[-1].endswith("| – |")
    assert len(lines) == (2 if sam else 4) and (sam or lines[0] == "| SAM | 0001 |" + " – |" * 7)


def test_masks_are_drawn_from_the_stored_arrays(tmp_path):
    """In the order that was asked for; pixels without a mask keep the image."""
    methods = ["sam", "slic"]
    tiles, asked, arrays = layout.Tiles(tmp_path, ("0001", "0002", "0003")), ["0003", "0001"], {}
    predictions = np.stack([land(24, 30, seed=40 + place) for place in range(3)])
    for place, number in enumerate(tiles.numbers):
        write_tile(tmp_path, number, land(24, 30, seed=place))
        for at, method in enumerate(methods):
            labels, key = land(24, 30, seed=9 * place + at), f"{method}_{number}"
            arrays[f"{key}_masks"] = np.packbits(np.stack([labels == c for c in range(6)]), axis=-1)
            arrays |= {f"{key}_labels": labels.astype(np.int32), f"{key}_vote": land(24, 30, seed=70 + 9 * place + at)}
    result = types.SimpleNamespace(array=arrays.__getitem__)
    for number in asked:
        labels, masks = ch05_segment_anything.load_masks(result, "slic", number)
        stored = arrays[f"slic_{number}_labels"]
        assert np.array_equal(labels, np.where(stored < 6, stored, -1)) and masks.shape == (6, 24, 30)
    figure, count = ch05_segment_anything.masks_figure(result, tiles, asked, methods, predictions), 3 + 2 * len(methods)
    for row, number in enumerate(asked):
        _, model, *pairs, truth = pictures(figure)[row * count : (row + 1) * count]
        place = int(number) - 1
        expected = [predictions[place], *(arrays[f"{m}_{number}_vote"] for m in methods), land(24, 30, seed=place)]
        assert np.array_equal([model, *pairs[1::2], truth], PALETTE[np.stack(expected)])
    assert_drawn(figure)
    points, masks = np.array([[1, 2], [3, 4]]), masks[masks.any(axis=(1, 2))]
    assert_drawn(ch05_segment_anything.method_figure(image(24, 30), points, points, labels, masks, "SLIC"))


def test_each_method_has_a_sentence_and_so_have_missing_weights_and_images_without_known_pixels():
    rows = [measured(0.6, masks=10), measured(0.4, method="sam", masks=99)]
    text = ch05_segment_anything.in_words(metrics(rows, "sam.pth"))
    assert re.match("SLIC finds 10 masks.*an mIoU of 0.600 .*SAM finds 99 masks.*an mIoU of 0.400 ", text)
    text = ch05_segment_anything.in_words(metrics(rows[:1]))
    assert text.startswith("**SAM was not measured**") and "weights fetch sam_vit_b" in text
    rows = [measured(masks=10), measured(0.6, "0002", masks=20, asa=None)]
    text = ch05_segment_anything.in_words(metrics(rows, "sam.pth"))
    assert "finds 15 masks" in text and "80.0 % on the pixel accuracy" in text and "mIoU of 0.500 with" in text
    text = ch05_segment_anything.in_words(metrics([rows[1]], "sam.pth"))
    assert "nan" not in text and "no pixel of these images has a known class" in text


def test_the_vote_is_a_signed_change_that_is_significant_only_without_zero():
    table = ch05_segment_anything.refinement(metrics(felzenszwalb=0.4994, slic=0.3))
    text = ch05_segment_anything.refinement_in_words(table, "slic", "LRASPP", 257)
    first, second = text.partition("; ")[::2]
    assert "with Felzenszwalb (10 segments per image) by −0.001 (95 % interval −0.011 to +0.009), which is not" in first
    assert second.startswith("with SLIC (11 segments per image) by −0.200 (95 % interval −0.210 to −0.190).")
    assert "all 257 validation tiles" in text and "uses SLIC" in text
