"""The original's numbers stand beside ours only where the data has the course's counts."""

import types

import pytest

from hw1lib.chapters import original, words


def data(validation, classes=65, tiles=257):
    one = types.SimpleNamespace(val=range(validation), classes=range(classes))
    return types.SimpleNamespace(problem1=one, problem2=types.SimpleNamespace(validation=range(tiles)))


@pytest.mark.parametrize(
    ("found", "problem", "same"),
    [
        (data(406), 1, True),
        (data(405), 1, False),
        (data(406, 64), 1, False),
        (data(1), 2, True),
        (data(1, tiles=256), 2, False),
    ],
)
def test_numbers_stand_beside_ours_where_the_counts_are_the_courses(found, problem, same):
    beside = original.beside(found, problem)
    text = original.compare(found, problem, "images", "baselines", words.percent)
    assert bool(beside) == same == ("do not compare" not in text)
    if same:
        expected = {1: ("A B C D E", 0.4113, "36.0 % (simple) and 40.0 % (strong)")}
        expected |= {2: ("fcn32s deeplabv3", 0.717, "69.0 % (simple) and 73.0 % (strong)")}
        names, value, baselines = expected[problem]
        assert " ".join(beside) == names and value in beside.values() and baselines in text


def test_the_table_names_its_rows():
    table = original.table(2, "model", "miou", {"fcn32s": "FCN"})
    assert table.to_dict("list") == {"model": ["FCN", "deeplabv3"], "miou": [0.6867, 0.717]}
    assert original.table(1, "setting", "accuracy")["setting"].tolist() == list("ABCDE")
