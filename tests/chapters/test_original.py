"""The original's numbers stand beside ours only where the data has the course's counts."""

import types

import pytest

from hw1lib.chapters import original, words
from hw1lib.data import layout


@pytest.mark.parametrize(
    ("images", "classes", "tiles", "same"),
    [(406, 65, 0, {1}), (405, 65, 0, ()), (406, 64, 0, ()), (1, 1, 257, {2}), (1, 1, 256, ())],
)
def test_numbers_stand_beside_ours_where_the_counts_are_the_courses(images, classes, tiles, same, tmp_path):
    """But not where the course's tiles were dealt out anew."""
    one = types.SimpleNamespace(val=range(images), classes=range(classes))
    found = types.SimpleNamespace(root=tmp_path, problem1=one, problem2=types.SimpleNamespace(validation=range(tiles)))
    for problem, names, value, baselines in (
        (1, "A B C D E", 0.4113, "36.0 % (simple) and 40.0 % (strong)"),
        (2, "fcn32s deeplabv3", 0.717, "69.0 % (simple) and 73.0 % (strong)"),
    ):
        beside = original.beside(found, problem)
        text = original.compare(found, problem, "images", "baselines", words.percent)
        assert ("do not compare" not in text) == (baselines in text) == (problem in same)
        assert " ".join(beside) == names * (problem in same) and (value in beside.values() or problem not in same)
    (tmp_path / layout.SPLIT).touch()
    assert not original.beside(found, 2)


def test_the_table_names_its_rows():
    table = original.table(2, "model", "miou", {"fcn32s": "FCN"})
    assert table.to_dict("list") == {"model": ["FCN", "deeplabv3"], "miou": [0.6867, 0.717]}
