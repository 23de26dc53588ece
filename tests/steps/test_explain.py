"""The reasons why a step has to run, as shown by `plan`."""

import json

import pytest

from hw1lib.steps import explain, store
from tests.steps.test_run import make

CONFIG = {
    "step": "finetune-C",
    "version": 1,
    "settings": {"profile": {"seed": 0, "stages": ("1", "3")}, "finetune": {"lr": 1e-3, "epochs": 5}},
    "data": {"train": "aa", "val": "bb"},
    "upstream": {"pretrain": "0123"},
}
STORED = json.loads(json.dumps(CONFIG))  # JSON has no tuples
FAR = STORED | {"version": 7, "data": {}, "upstream": {}, "settings": {}}


def with_settings(**groups):
    return {"settings": CONFIG["settings"] | groups}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2}, "its code changed"),
        ({"upstream": {"pretrain": "4567"}}, "pretrain changed"),
        (with_settings(profile={"seed": 1, "stages": ("1",)}), "seed 0 → 1; stages ['1', '3'] → ['1']"),
        (with_settings(finetune={"lr": 1e-3, "new": 1}), "finetune.epochs 5 → –; finetune.new – → 1"),
        ({}, "its result is missing"),
    ],
)
def test_the_reason_is_how_the_most_similar_result_differs(changes, expected):
    reasons = {explain.reason(CONFIG | changes, results) for results in ([FAR, STORED], [STORED, FAR])}
    assert reasons <= {expected, "; ".join(reversed(expected.split("; ")))} and len(reasons) == 1


def test_steps_explain_why_they_are_not_done(course_data, tmp_path):
    steps = make(course_data, tmp_path)
    folder = steps.result("segment-colour").folder
    assert steps.why("segment-colour") == steps.why("check-problem2") == ""
    assert steps.why("segment-lraspp") == "it has never finished"
    other = make(course_data, tmp_path, seed=3)
    assert other.why("segment-colour") == "seed 0 → 3" and other.why("check-problem2") == ""
    assert "the data changed (tiles_train)" in make(course_data, tmp_path, data__tile_limit=2).why("segment-colour")
    (folder / "predictions.npy").unlink()
    assert steps.why("segment-colour") == "predictions.npy is missing"
    begun = steps.store.folder("pretrain", steps.key("pretrain"))
    begun.mkdir(parents=True)
    (begun / store.CHECKPOINT).touch()
    assert steps.why("pretrain") == "it was interrupted and has a checkpoint"
