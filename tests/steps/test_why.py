"""Why a step has to run: what `plan` says."""

import pytest

from hw1lib.steps import store, why
from tests.test_steps import make

CONFIG = {
    "step": "finetune-C",
    "version": 1,
    "settings": {"profile": {"seed": 0, "model_scale": 1.0}, "finetune": {"lr": 1e-3, "epochs": 5}},
    "data": {"train": "aa", "val": "bb"},
    "upstream": {"pretrain": "0123"},
}


def altered(**changes):
    """The config with some of its groups replaced, as JSON gives it back."""
    return CONFIG | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2}, "its code computes something else now"),
        ({"data": {"train": "aa", "val": "cc"}}, "the data changed (val)"),
        ({"upstream": {"pretrain": "4567"}}, "pretrain is another"),
        ({"settings": CONFIG["settings"] | {"finetune": {"lr": 5e-4, "epochs": 5}}}, "finetune.lr 0.001 → 0.0005"),
        ({"settings": CONFIG["settings"] | {"profile": {"seed": 1, "model_scale": 1.0}}}, "seed 0 → 1"),
        ({"settings": CONFIG["settings"] | {"finetune": {"lr": 1e-3, "epochs": 5, "new": 1}}}, "finetune.new is new"),
        ({"settings": CONFIG["settings"] | {"finetune": {"lr": 1e-3}}}, "finetune.epochs is gone"),
        (
            {"settings": CONFIG["settings"] | {"segmentation.stage_images": ["1", "2"]}},
            "segmentation.stage_images is new",
        ),
        (
            {"version": 2, "data": {"train": "x", "val": "y"}},
            "its code computes something else now; the data changed (train); the data changed (val)",
        ),
    ],
)
def test_the_reason_is_what_differs(changes, expected):
    assert why.reason(altered(**changes), [CONFIG]) == expected


def test_tuples_are_what_json_makes_of_them():
    now = altered(settings={"segmentation.stage_images": ("1", "2")})
    before = altered(settings={"segmentation.stage_images": ["1", "3"]})
    assert why.reason(now, [before]) == "segmentation.stage_images 1,3 → 1,2"


def test_the_most_similar_result_is_compared():
    far = altered(version=7, data={"train": "x", "val": "y"})
    near = altered(upstream={"pretrain": "89ab"})
    assert why.reason(CONFIG, [far, near]) == "pretrain is another"


def test_without_a_result_it_never_ran():
    assert why.reason(CONFIG, []) == "it never ran to its end"


# --- for real steps


def run_colour(root, out, **settings):
    made = make(root, out, **settings)
    made.done("segment-colour")
    return made


def test_what_is_done_has_no_reason(course_data, tmp_path):
    made = run_colour(course_data, tmp_path)
    assert made.why("segment-colour") == made.why("check-problem2") == ""
    assert made.why("segment-lraspp") == "it never ran to its end"


def test_a_changed_seed_changed_data_and_damage_are_told_apart(course_data, tmp_path):
    run_colour(course_data, tmp_path)
    assert make(course_data, tmp_path, seed=3).why("segment-colour") == "seed 0 → 3"
    assert make(course_data, tmp_path, seed=3).why("check-problem2") == ""  # the same data
    limited = make(course_data, tmp_path, data__tile_limit=2)
    assert "the data changed (tiles_train)" in limited.why("segment-colour")
    made = make(course_data, tmp_path)
    (made.done("segment-colour").folder / "predictions.npy").unlink()
    assert made.why("segment-colour") == "predictions.npy is missing"


def test_a_checkpoint_is_the_reason_to_resume(course_data, tmp_path):
    made = make(course_data, tmp_path)
    folder = made.store.folder("pretrain", made.key("pretrain"))
    folder.mkdir(parents=True)
    (folder / store.CHECKPOINT).touch()
    assert made.why("pretrain") == "it was interrupted; its checkpoint is there"


def test_a_damaged_step_is_run_again(course_data, tmp_path, capsys):
    """Whatever was altered: its result is then as it was."""
    made = run_colour(course_data, tmp_path)
    folder = made.done("segment-colour").folder
    whole = {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
    for name in sorted(whole):
        (folder / name).write_bytes(whole[name][:-1] + b"?")
        again = run_colour(course_data, tmp_path).done("segment-colour").folder
        assert f"{name} was altered" in capsys.readouterr().out or name == store.DONE
        for other in whole.keys() - {"run.json", store.DONE}:
            assert (again / other).read_bytes() == whole[other], (name, other)
        whole = {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
        assert made.store.verify() == []
