"""The original's numbers stand beside ours only where the data has the course's counts."""

import types

import pytest

from hw1lib import profiles
from hw1lib.chapters import ch01_pretraining, original, phrases
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
        text = original.compare(found, problem, "images", "baselines", phrases.percent)
        assert ("do not compare" not in text) == (baselines in text) == (problem in same)
        assert " ".join(beside) == names * (problem in same) and (value in beside.values() or problem not in same)
    (tmp_path / layout.SPLIT).touch()
    assert not original.beside(found, 2)


def test_the_table_names_its_rows():
    table = original.table(2, "model", "miou", {"fcn32s": "FCN"})
    assert table.to_dict("list") == {"model": ["FCN", "deeplabv3"], "miou": [0.6867, 0.717]}


SEED = profiles.get("seed")


@pytest.mark.parametrize("group", original.numbers()["stated"])
def test_what_the_original_states_is_what_profile_seed_sets_and_in_its_words(group):
    for name, fact in original.numbers()["stated"][group].items():
        assert getattr(SEED.data if name == "image_size" else getattr(SEED, group), name) == fact["value"], name
        if fact["value"] != "original":  # its transforms, whose words are a list
            assert str(fact["value"]).lower() in fact["words"].lower().replace("(", " "), name


@pytest.mark.parametrize(
    ("group", "stated", "assumed"),
    [("pretrain", {"lr": "0.001", "epochs": "10", "image_size": "128"}, {"schedule": "constant", "accumulate": "1"}),
     ("finetune", {"lr": "0.0001", "dropout": "0.5"}, {"optimizer": "adam", "image_size": "128"})],
)  # fmt: skip
def test_a_table_of_settings_marks_what_the_original_does_not_state(group, stated, assumed):
    """And nothing of this run's own settings."""
    table = ch01_pretraining.settings_table(profiles.get("demo"), SEED, group).set_index("setting")
    facts = original.numbers()["stated"][group]
    for name, value in table["original"].items():
        assert value.endswith(" (assumed)") == (name not in facts and value != "–"), name
    assert all(table.loc[name, "original"] == value for name, value in stated.items())
    assert all(table.loc[name, "original"] == f"{value} (assumed)" for name, value in assumed.items())
    assert not table["this run"].str.contains("assumed").any() and set(facts) <= set(table.index)
