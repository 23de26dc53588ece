"""Steps: a key changes with what the step depends on and with nothing else; each step runs once."""

import dataclasses
import re

import pytest
import torch

from hw1lib import files, profiles
from hw1lib.data import hashes, layout
from hw1lib.errors import Diverged, UserError
from hw1lib.models import weights
from hw1lib.settings import flatten, replace
from hw1lib.steps import graph, requirements, run, store
from tests.settings import other
from tests.test_files import fail

PROBLEM2 = {"segment-fcn32s", "segment-lraspp", "segment-deeplabv3", "segment-colour", "everything"}
TUNED = {*(f"finetune-{s}" for s in "ABCDE"), "control-random", "control-knn", "embed"}
TUNED |= {"control-colour", "control-simple"}
PROBLEM1 = {"pretrain", "pretrain-supervised", *TUNED}
ALL, CHECKS = PROBLEM1 | PROBLEM2, {"check-problem1", "check-problem2"}
SEGMENTED = {f"segment-{name}" for name in ("fcn32s", "lraspp", "deeplabv3")}
ON_BYOL = {"finetune-C", "finetune-E", "control-knn", "embed"}  # embed shows setting C
ON_LABELS = {"finetune-B", "finetune-D"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_sam(tmp_path, monkeypatch):
    """Hide this machine's SAM weights."""
    file = tmp_path / "sam.pth"
    monkeypatch.setattr(weights, "find_sam", lambda: file if file.exists() else None)


def make(root, out="unused", settings=(), fit=True, **more):
    """Return the steps of profile smoke on a data root; `more` are settings with __ for the dot."""
    settings = dict(settings) | {name.replace("__", "."): value for name, value in more.items()}
    profile = profiles.get("smoke", settings)
    data = layout.find(root, profile.data, profile.only)
    profile = requirements.fit(profile, data, settings)[0] if fit else profile
    return run.Steps(graph.steps, profile, data, store.Store(out), CPU)


def keys(steps, names=None):
    """Return {name: key} of the training steps, or of those named."""
    return {name: steps.key(name) for name in names or steps.all.keys() - CHECKS}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_every_key_is_unique_and_reproducible(course_data, tmp_path):
    steps = make(course_data)
    before = keys(steps, steps.all)
    assert before.keys() == ALL | CHECKS and len(set(before.values())) == len(before)
    again = make(course_data.rename(tmp_path / "moved"), tmp_path / "elsewhere")
    assert keys(again, before) == before


def test_configs_and_versions_do_not_change_unnoticed(course_data):
    """Literals: with another rule or version, stored results would no longer be found."""
    steps = make(course_data, fit=False)
    shared = {"seed": 0, "model_scale": 0.25, "tf32": False, "cudnn_benchmark": False}  # on a CPU
    problem1 = shared | {"image_size": 32, "overhead": True, "zero_init_residual": True}
    for name, settings in {
        "segment-colour": {"profile": shared},
        "check-problem1": {"profile": {}},
        "control-simple": {"profile": {}, "data.image_size": 32},
        "embed": {"profile": problem1, "embed": {"setting": "C", "perplexity": 10.0}},
    }.items():
        assert steps.config(name)["settings"] == settings
    assert steps.config("segment-fcn32s")["settings"]["segmentation.stage_images"] == ("0001", "0003", "0005")
    config = steps.config("finetune-C")
    assert config["upstream"] == {"pretrain": steps.key("pretrain")}
    assert list(config["data"]) == ["train", "val", "groups"]
    versions = {name: 7 for name in steps.all if name.startswith(("finetune-", "pretrain-", "control-"))}
    versions |= dict.fromkeys(SEGMENTED, 6) | dict.fromkeys(("control-simple", *CHECKS), 1)
    versions |= {"pretrain": 8, "control-colour": 4, "embed": 3, "segment-colour": 2, "everything": 5}
    assert {name: step.version for name, step in steps.all.items()} == versions


def test_each_step_builds_on_the_results_that_it_needs(course_data):
    steps = make(course_data, segmentation__improved="deeplabv3", embed__setting="D")
    ours, labels = ("pretrain",), ("pretrain-supervised",)
    upstream = {"finetune-B": labels, "finetune-C": ours, "finetune-D": labels, "finetune-E": ours, "control-knn": ours}
    upstream |= {"embed": ("finetune-D",), "everything": ("segment-deeplabv3",)}
    assert {name: step.upstream for name, step in steps.all.items() if step.upstream} == upstream
    parallel = {"pretrain", "pretrain-supervised", "finetune-A", "finetune-B", "finetune-C", *SEGMENTED}
    assert {name for name, step in steps.all.items() if step.parallel} == parallel


READ_BY = {
    **dict.fromkeys(("seed", "model_scale"), ALL - {"control-simple"}),
    **{key: set() for key in ("device", "threads", "checkpoint_every", "seeds", "tf32", "cudnn_benchmark")},  # on a CPU
    **{name: set() for name in flatten(profiles.get("smoke")) if name.endswith(".processes")},
    **dict.fromkeys(("data.overhead", "zero_init_residual"), PROBLEM1 - {"control-simple"}),
    "data.image_size": PROBLEM1,
    "data.tile_limit": PROBLEM2,
    "data.office_limit": TUNED,
    "data.pool_limit": {"pretrain", "pretrain-supervised"} | ON_BYOL | ON_LABELS,
    "pretrain": {"pretrain"} | ON_BYOL,
    "supervised": {"pretrain-supervised"} | ON_LABELS,
    "finetune": TUNED - {"control-knn", "control-simple"},
    "controls": {"control-knn"},
    "embed": {"embed"},
    "fcn32s": {"segment-fcn32s"},
    "deeplabv3": {"segment-deeplabv3"},
    "lraspp": {"segment-lraspp", "everything"},  # smoke's improved model
    "segmentation.stage_images": SEGMENTED | {"everything"},
    **{key: {"everything"} for key in ("segmentation.improved", "everything")},
}


@pytest.mark.slow
def test_each_setting_changes_exactly_the_steps_that_depend_on_it(course_data):
    """A missing dependency would load stale results; a needless one would repeat training."""
    steps = make(course_data)
    before = keys(steps, ALL | CHECKS)
    for name, value in flatten(steps.profile).items():
        if name != "only":  # it says which steps there are
            value = 3 if name.endswith("_limit") else other(name, value)
            value = "float16" if name.endswith(".precision") else value  # no processor takes it by itself
            profile = replace(steps.profile, name, value)
            data = layout.find(course_data, profile.data) if name.startswith("data.") else steps.data
            after = keys(run.Steps(graph.steps, profile, data, steps.store, CPU), before)
            expected = READ_BY[name] if name in READ_BY else READ_BY[name.partition(".")[0]]
            assert changed(before, after) == expected, name
    assert keys(make(course_data, data__pool_limit=10_000), before) == before  # there are fewer: nothing changes


def test_settings_that_depend_on_the_device_are_resolved_in_the_key(course_data, tmp_path, monkeypatch):
    """A GPU's result, in another precision or from other masks, is never used for a CPU's."""
    precisions = {"auto": torch.float16, "bfloat16": torch.bfloat16, "float32": None}
    monkeypatch.setattr(run.device, "dtype", lambda precision, _: precisions[precision])
    (tmp_path / "sam.pth").touch()
    cpu, cuda = (make(course_data, lraspp__precision="float32") for _ in range(2))
    cuda.device = torch.device("cuda")
    assert cpu.config("pretrain")["settings"]["pretrain"]["precision"] == "float16"
    refine = [steps.config("everything")["settings"]["everything"]["refine"] for steps in (cpu, cuda)]
    tf32 = [steps.config("segment-lraspp")["settings"]["profile"]["tf32"] for steps in (cpu, cuda)]
    assert refine == ["felzenszwalb", "sam"] and tf32 == [False, True]
    assert cpu.key("segment-lraspp") != cuda.key("segment-lraspp")


# --- data


SEEN_BY = {
    "p1_data/mini/train/00001.jpg": {"pretrain", "pretrain-supervised"} | ON_BYOL | ON_LABELS,
    "p1_data/mini/train.csv": set(),
    "p1_data/office/train/Mug00001.jpg": TUNED,
    "p1_data/office/val/Mug00100.jpg": TUNED,
    "p1_data/office/val/new.jpg": set(),
    "p1_data/pretrain_model_SL.pt": {"pretrain-supervised"} | ON_LABELS,
    "p2_data/train/0001_sat.jpg": PROBLEM2,  # everything: through its model
    "p2_data/validation/0001_mask.png": PROBLEM2,
    "p2_data/train/left_over_mask.png": set(),
    "../sam.pth": {"everything"},
}


def test_a_file_changes_exactly_the_steps_that_see_it(course_data):
    """The check of its problem sees all but weights."""
    for weights_file in ("p1_data/pretrain_model_SL.pt", "../sam.pth"):
        (course_data / weights_file).touch()
    before = keys(make(course_data), ALL | CHECKS)
    for file, expected in SEEN_BY.items():
        with open(course_data / file, "ab") as opened:
            opened.write(b"\n")
        check = set() if file.endswith((".pt", ".pth")) else {f"check-problem{file[1]}"}
        after = keys(make(course_data), before)
        assert changed(before, after) == expected | check, file
        before = after


def test_notes_on_groups_csv_change_the_key_of_the_check(course_data, monkeypatch):
    """The check's result holds them."""
    before = keys(make(course_data), CHECKS)
    monkeypatch.setattr(layout.Layout, "group_notes", lambda self, problem: ("2 rows are not used",))
    assert changed(before, keys(make(course_data), CHECKS)) == CHECKS


@pytest.mark.parametrize(("gone", "left"), [("p1_data", PROBLEM2), ("p2_data", PROBLEM1)])
def test_with_one_problem_alone_its_keys_stay(course_data, tmp_path, gone, left):
    before = keys(make(course_data))
    asked = keys(make(course_data, only="problem2" if gone == "p1_data" else "problem1"))
    (course_data / gone).rename(tmp_path / "away")
    steps = make(course_data)
    assert asked == keys(steps) == {name: before[name] for name in left}
    with pytest.raises(UserError, match="There is no step"):
        steps.key((ALL - left).pop())


# --- running


def fake(steps, **functions):
    """Replace the functions of all steps: by those given, by name, or by one that saves the step's name.

    Returns:
        The names of the steps that ran, a list that grows.
    """
    ran = []

    def save_name(name):
        def run(draft, *_):
            ran.append(name)
            draft.metrics({"step": name})
            draft.history([])
            if draft.watch:
                draft.watch(["epoch 1"])

        return run

    functions = {name.replace("_", "-"): function for name, function in functions.items()}
    for name, step in steps.all.items():
        steps.all[name] = dataclasses.replace(step, run=functions.get(name) or save_name(name))
    return ran


def test_a_step_runs_what_it_builds_on_first_and_once(course_data, tmp_path):
    """Each is watched under its own name."""
    steps, again, calls = make(course_data, tmp_path / "out"), make(course_data, tmp_path / "out"), []
    steps.watch = lambda step, history: calls.append((step, history))
    ran, ran_again = fake(steps), fake(again)
    for _ in range(2):
        assert steps.result("embed").metrics == {"step": "embed"}
    again.result("finetune-E")  # as in another process
    assert ran == ["check-problem1", "pretrain", "finetune-C", "embed"] and ran_again == ["finetune-E"]
    assert calls == [(step, ["epoch 1"]) for step in ran]


def test_data_with_errors_trains_nothing(course_data, tmp_path):
    """Not even a step that is run by itself; steps of the other problem run."""
    broken = course_data / "p1_data" / "office" / "val" / "Mug00100.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    steps = make(course_data, tmp_path / "out")
    ran = fake(steps, check_problem1=steps.step("check-problem1").run)
    for name in ("pretrain", "control-colour", "embed"):
        with pytest.raises(UserError, match=r"Mug00100\.jpg.*data check"):
            steps.result(name)
    steps.result("segment-colour")
    assert ran == ["check-problem2", "segment-colour"]


def test_a_failure_keeps_what_was_finished(course_data, tmp_path):
    steps, again = make(course_data, tmp_path / "out"), make(course_data, tmp_path / "out")
    fake(steps, finetune_C=fail(RuntimeError("odd")))
    with pytest.raises(RuntimeError, match="^odd$"):  # no error that a user can fix
        steps.result("embed")
    assert [steps.status(name) for name in ("pretrain", "finetune-C", "embed")] == ["done", "to run", "to run"]
    ran = fake(again)
    again.result("embed")
    assert ran == ["finetune-C", "embed"]


def test_data_that_changes_while_a_step_runs_makes_no_result(course_data, tmp_path):
    """It would be stored under the key of the earlier data."""
    path = course_data / "p1_data" / "office" / "val" / "Mug00100.jpg"
    content, steps = path.read_bytes(), make(course_data, tmp_path / "out")

    def run(draft, *_):
        draft.metrics({})
        draft.checkpoint.write_bytes(b"trained on either")
        path.write_bytes(content + b" ")

    fake(steps, control_colour=run)
    with pytest.raises(UserError, match="control-colour: the data changed while it ran"):
        steps.result("control-colour")
    path.write_bytes(content)
    assert make(course_data, tmp_path / "out").status("control-colour") == "to run"


MEMORY = [
    ("pretrain", torch.OutOfMemoryError("CUDA out of memory."), "--set pretrain.batch_size=16"),
    ("finetune-A", RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "--set finetune.batch_size=16"),
    ("segment-deeplabv3", OSError(12, "Cannot allocate memory"), "--set deeplabv3.batch_size=2"),
    ("everything", MemoryError(), "--set everything.points_per_batch=32"),
    ("control-knn", MemoryError(), "--set data.office_limit=1000"),
    ("check-problem2", MemoryError(), "Close other programs"),
]


@pytest.mark.parametrize(("name", "error", "advice"), MEMORY)
def test_running_out_of_memory_names_what_helps(course_data, tmp_path, name, error, advice):
    """On any device: torch reports it in several ways."""
    steps = make(course_data, tmp_path / "out")
    fake(steps, **{name: fail(error)})
    with pytest.raises(UserError, match=rf"{name}: memory ran out on cpu.*{advice}\. What was finished"):
        steps.result(name)


@pytest.mark.parametrize("name", ["pretrain", "finetune-D", "segment-fcn32s"])
def test_a_training_that_diverges_names_its_learning_rate_and_images(course_data, tmp_path, capsys, name):
    """The setting changes that step."""
    steps = make(course_data, tmp_path / "out")
    fake(steps, **{name: fail(Diverged("the loss is nan in epoch 2", 0.07, ["a.jpg", "b\n.jpg"]))})
    text = rf"{name}: the loss is nan in epoch 2\. Look for .* \(now 0\.07\), .* --set (\w+)\.lr=0\.007\.$"
    with pytest.raises(UserError, match=text) as caught:
        steps.result(name)
    setting = re.search(text, str(caught.value))[1]
    assert make(course_data, settings={f"{setting}.lr": 0.007}).key(name) != steps.key(name)
    assert rf"{name}: the images of this batch are a.jpg, b\n.jpg" in capsys.readouterr().out


def test_a_step_that_is_run_by_its_command_has_the_same_key_on_another_processor(course_data, monkeypatch):
    """Even one on which "auto" means another precision."""

    def set_auto(dtype):
        monkeypatch.setattr(run.device, "dtype", lambda asked, _: dtype if asked == "auto" else getattr(torch, asked))

    set_auto(torch.bfloat16)
    steps = make(course_data, pretrain__epochs=3)
    key, words = steps.key("finetune-C"), steps.command("finetune-C")
    set_auto(torch.float32)
    assert make(course_data, pretrain__epochs=3).key("finetune-C") != key
    settings = dict(word.split("=") for word in words[words.index("--set") + 1 :])
    assert make(course_data, settings=settings).key("finetune-C") == key


def test_the_expected_time_is_what_was_measured(course_data, tmp_path):
    """Under this key, else the median over other keys per epoch; resumed and damaged results do not count."""

    def measure(seconds, name="pretrain", resumed=False, epochs=2, **settings):
        steps = make(course_data, tmp_path, pretrain__epochs=epochs, **settings)
        fake(steps, **{name: lambda draft, *_: draft.history([{"epoch": n} for n in range(epochs)])})
        result = steps.result(name)
        files.write_json(result.folder / "run.json", result.run | {"seconds": seconds, "resumed": resumed})
        return result.folder / "run.json"

    steps = make(course_data, tmp_path, pretrain__epochs=8)
    assert steps.expected("pretrain") is None
    for seconds, lr in ((10, 0.1), (30, 0.2), (20, 0.3)):
        measure(seconds, pretrain__lr=lr)
    measure(1000, pretrain__lr=0.4, resumed=True)
    measure(1000, pretrain__lr=0.5).write_text("{")
    assert steps.expected("pretrain") == 20 * 8 / 2
    for seconds, name in ((7, "pretrain"), (3, "check-problem1")):
        measure(seconds, name, epochs=8)
        assert steps.expected(name) == seconds


def test_steps_of_another_seed_share_the_hashes_of_the_data(course_data, tmp_path, monkeypatch):
    steps = make(course_data, tmp_path / "out")
    before = keys(steps)
    monkeypatch.setattr(hashes, "fingerprint", lambda split: pytest.fail("the data is hashed again"))
    other = steps.with_seed(7, "watch")
    assert other.profile == steps.profile.model_copy(update={"seed": 7}) and other.watch == "watch" != steps.watch
    assert set(keys(other).values()) & set(before.values()) == {before["control-simple"]}
    assert keys(steps.with_seed(0)) == before
