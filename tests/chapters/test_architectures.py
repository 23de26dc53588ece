"""What the networks are: counts that agree with the sentences, and their diagrams."""

from hw1lib.chapters import architectures
from hw1lib.models.segmenters import SEGMENTERS
from tests.chapters.made import FULL


def test_networks_are_compared_in_words_as_in_the_table():
    enlarge = dict(zip(SEGMENTERS, (1, 2, 16)))
    table = architectures.table(32, enlarge, {name: {"ceiling": 0.9} for name in SEGMENTERS})
    rows, text = table.set_index("model").to_dict("index"), architectures.in_words(table, "lraspp")
    assert table["stride"].tolist() == [32, 4, 1]
    for model in ("lraspp", "deeplabv3"):
        for column, name in (("parameters", "parameters"), ("multiply_adds", "multiply-adds")):
            assert f"{100 * rows[model][column] / rows['fcn32s'][column]:.3g} % of the {name}" in text
    improved = rows["lraspp"]
    assert f"{improved['inverted_residuals']} inverted residuals" in text and "nan" not in text.lower()
    assert f"The improved model of this report is {FULL['lraspp']}." in text

    shown = architectures.readable(table)
    assert list(shown)[1:] == list(FULL.values()) and len(shown) == len(table.columns) - 1
    cells = shown.set_index("")[FULL["lraspp"]]
    assert cells["parameters"] == f"{improved['parameters']:,}" and cells["output stride in the tile"] == "4 pixels"
