"""What the networks are: counts that agree with the sentences, and their diagrams."""

import itertools

import numpy as np
import pytest

from hw1lib.chapters import networks
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS
from tests.chapters.made import FULL, assert_drawn, texts


def test_networks_are_compared_in_words_as_in_the_table():
    enlarge = dict(zip(SEGMENTERS, (1, 2, 16)))
    table = networks.table(32, enlarge, {name: {"ceiling": 0.9} for name in SEGMENTERS})
    rows, text = table.set_index("model").to_dict("index"), networks.in_words(table, "lraspp")
    assert table["stride"].tolist() == [32, 4, 1]
    for model in ("lraspp", "deeplabv3"):
        for column, name in (("parameters", "parameters"), ("multiply_adds", "multiply-adds")):
            assert f"{100 * rows[model][column] / rows['fcn32s'][column]:.3g} % of the {name}" in text
    improved = rows["lraspp"]
    assert f"{improved['inverted_residuals']} inverted residuals" in text and "nan" not in text.lower()
    assert f"The improved model of this report is {FULL['lraspp']}." in text

    shown = networks.readable(table)
    assert list(shown)[1:] == list(FULL.values()) and len(shown) == len(table.columns) - 1
    cells = shown.set_index("")[FULL["lraspp"]]
    assert cells["parameters"] == f"{improved['parameters']:,}" and cells["output stride in the tile"] == "4 pixels"


@pytest.mark.parametrize("name", SEGMENTERS)
def test_architectures_have_a_box_for_each_block(name):
    """Wider has more channels, taller is larger in space."""
    blocks = segmenters.outline(name)
    figure = networks.architecture(blocks, FULL[name])
    axis = figure.axes[0]
    boxes = [patch.get_bbox() for patch in axis.patches if hasattr(patch, "get_boxstyle")][: len(blocks)]
    sizes, shown = np.array([block["shape"][:2] for block in blocks]), texts(axis.texts)
    for drawn, counted in zip(np.transpose([(box.width, box.height) for box in boxes]), sizes.T):
        assert (np.diff(drawn[np.argsort(counted, kind="stable")]) >= -1e-9).all()
    assert all(f"{c}\n{h}²" in shown for c, h in sizes) and all(block["label"] in shown for block in blocks)
    assert all(one.x1 < two.x0 for one, two in itertools.pairwise(boxes))
    assert_drawn(figure)
