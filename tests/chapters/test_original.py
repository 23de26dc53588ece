"""The original report: numbers only where they are comparable, settings in its own words, defects by the results."""

import types

import pandas as pd
import pytest
import torch

from hw1lib import profiles
from hw1lib.chapters import original, phrases
from hw1lib.data import layout
from hw1lib.models import resnet

SEED = profiles.get("seed")


@pytest.mark.parametrize(
    ("images", "classes", "tiles", "same"),
    [(406, 65, 0, {1}), (406, 64, 0, set()), (1, 1, 257, {2}), (1, 1, 256, set())],
)
def test_numbers_are_comparable_where_the_data_has_the_courses_counts(images, classes, tiles, same, tmp_path):
    """But not where the course's tiles were split again."""
    one = types.SimpleNamespace(val=range(images), classes=range(classes))
    data = types.SimpleNamespace(root=tmp_path, problem1=one, problem2=types.SimpleNamespace(validation=range(tiles)))
    for problem, names, baselines in ((1, "ABCDE", "36.0 % (simple)"), (2, ("fcn32s", "deeplabv3"), "69.0 % (simple)")):
        text = original.compare(data, problem, "images", "baselines", phrases.percent)
        assert ("not comparable" not in text) == (baselines in text) == (problem in same)
        assert list(original.beside(data, problem)) == (list(names) if problem in same else [])
    (tmp_path / layout.SPLIT).touch()
    assert not original.beside(data, 2)


@pytest.mark.parametrize("group", ["pretrain", "finetune"])
def test_settings_are_those_of_profile_seed_and_marked_where_the_original_does_not_state_them(group):
    stated = original.numbers()["stated"][group]
    for name, fact in stated.items():
        assert getattr(SEED.data if name == "image_size" else getattr(SEED, group), name) == fact["value"], name
    table = original.settings_table(profiles.get("demo"), SEED, group).set_index("setting")
    for name, value in table["original"].items():
        assert value.endswith(" (assumed)") == (name not in stated and value != "–"), name
    assert not table["this run"].str.contains("assumed").any() and set(stated) <= set(table.index)


@pytest.mark.parametrize("defect", [None, 0, 1, 2, 3])
def test_each_defect_is_found_in_the_results(defect):
    backbone = torch.nn.BatchNorm1d(4)
    frozen = resnet.Classifier(backbone, resnet.Head(2, inputs=4, hidden=5), True)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    if defect == 2:
        backbone.running_var += 1
    if defect != 3:
        frozen.head.mean += 1
    views = [torch.zeros(3, 2, 2), torch.full((3, 2, 2), float(defect != 0))]
    metrics, history = {"loss": 0.5 if defect == 1 else 0.25}, pd.DataFrame({"loss": [0.5, 0.25]})
    table = original.defects(views, metrics, history, before, frozen.state_dict())
    quotes = original.numbers()["defects"]
    assert list(table["original"]) == [f"yes ({'stated' if quotes[name] else 'assumed'})" for name in table["defect"]]
    assert set(table["defect"]) == set(quotes)
    assert [n for n, here in enumerate(table["this run"]) if here == "yes"] == [n for n in range(4) if n == defect]
