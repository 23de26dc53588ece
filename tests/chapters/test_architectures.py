"""The description of the networks agrees with the table of their counts."""

from hw1lib.chapters import architectures
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS
from tests.chapters.made import assert_drawn


def test_the_description_and_the_readable_table_have_the_counts_of_the_table():
    table = architectures.table(32, dict(zip(SEGMENTERS, (1, 2, 16))), {name: {"ceiling": 0.9} for name in SEGMENTERS})
    rows, text = table.set_index("model").to_dict("index"), architectures.in_words(table, "lraspp")
    assert table["stride"].tolist() == [32, 4, 1]
    for model in ("lraspp", "deeplabv3"):
        for column, name in (("parameters", "parameters"), ("multiply_adds", "multiply-adds")):
            assert f"{100 * rows[model][column] / rows['fcn32s'][column]:.3g} % of the {name}" in text
    improved = rows["lraspp"]
    assert f"{improved['inverted_residuals']} inverted residuals" in text and "nan" not in text.lower()
    assert f"The improved model of this report is {SEGMENTERS['lraspp'].full}." in text
    cells = architectures.readable(table).set_index("")[SEGMENTERS["lraspp"].full]
    assert cells["parameters"] == f"{improved['parameters']:,}" and cells["output stride"] == "4 pixels"


def test_diagrams_are_drawn():
    assert_drawn(architectures.diagram(segmenters.outline("lraspp", 64), "a title"))
