"""Steps: a key changes with what the step depends on and with nothing else; each step runs once."""

import dataclasses
import re

import pytest
import torch

from hw1lib import files, profiles
from hw1lib.data import hashes, layout
from hw1lib.errors import Diverged, UserError
from hw1lib.models import weights
from hw1lib.settings import flatten
from hw1lib.steps import graph, requirements, run, store
from tests.conftest import everything_of
from tests.settings import other
from tests.test_files import fail, held_to_permissions

PROBLEM2 = {"segment-fcn32s", "segment-lraspp", "segment-deeplabv3", "segment-colour", "everything"}
TUNED = {*(f"finetune-{s}" for s in "ABCDE"), "control-random", "control-knn", "embed"}
TUNED |= {"control-colour", "control-simple"}
PROBLEM1 = {"pretrain", "pretrain-supervised", *TUNED}
ALL, CHECKS = PROBLEM1 | PROBLEM2, {"check-problem1", "check-problem2"}
NOT_TRAINED = {"control-knn", "control-simple", "embed", "segment-colour", "everything"}
SEGMENTED = {f"segment-{name}" for name in ("fcn32s", "lraspp", "deeplabv3")}
ON_BYOL = {"finetune-C", "finetune-E", "control-knn", "embed"}  # embed shows setting C
ON_LABELS = {"finetune-B", "finetune-D"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_sam(tmp_path, monkeypatch):
    """Hide SAM's weights of this machine."""
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


def test_every_step_has_a_key_of_its_own_and_the_same_again(course_data, tmp_path):
    steps = make(course_data)
    before = keys(steps, steps.all)
    assert before.keys() == ALL | CHECKS and len(set(before.values())) == len(before)
    again = make(course_data.rename(tmp_path / "moved"), tmp_path / "elsewhere")
    assert keys(again, before) == before


def test_configs_and_versions_do_not_change_unnoticed(course_data):
    """Literals: with another rule or version, no stored result would be found any more."""
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
    assert [steps.step(f"finetune-{s}").run.keywords for s in "ABCDE"] == [{"setting": s} for s in "ABCDE"]
    assert [steps.step(name).run.keywords["name"] for name in sorted(SEGMENTED)] == ["deeplabv3", "fcn32s", "lraspp"]
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
    """A forgotten one would load stale results; one too many would train anew for nothing."""
    before = keys(make(course_data), ALL | CHECKS)
    for name, value in flatten(profiles.get("smoke")).items():
        if name != "only":  # it says which steps there are
            value = 3 if name.endswith("_limit") else other(name, value)
            value = "float16" if name.endswith(".precision") else value  # no processor takes it by itself
            after = keys(make(course_data, settings={name: value}), before)
            expected = READ_BY[name] if name in READ_BY else READ_BY[name.partition(".")[0]]
            assert changed(before, after) == expected, name
    assert keys(make(course_data, data__pool_limit=10_000), before) == before  # there are fewer: nothing changes


def test_settings_that_depend_on_the_device_are_resolved_in_the_key(course_data, tmp_path, monkeypatch):
    """A GPU's result, in another precision or from other masks, is never taken for a CPU's."""
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


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("p1_data/mini/train/00001.jpg", {"pretrain", "pretrain-supervised"} | ON_BYOL | ON_LABELS),
        ("p1_data/mini/train.csv", set()),
        ("p1_data/office/train/Mug00001.jpg", TUNED),
        ("p1_data/office/val/Mug00100.jpg", TUNED),
        ("p1_data/office/val/new.jpg", set()),
        ("p1_data/pretrain_model_SL.pt", {"pretrain-supervised"} | ON_LABELS),
        ("p2_data/train/0001_sat.jpg", PROBLEM2),  # everything: through its model
        ("p2_data/validation/0001_mask.png", PROBLEM2),
        ("p2_data/train/left_over_mask.png", set()),
        ("../sam.pth", {"everything"}),
    ],
)
def test_a_file_changes_exactly_the_steps_that_see_it(course_data, file, expected):
    """The check of its problem sees all but weights."""
    before = keys(make(course_data), ALL | CHECKS)
    with open(course_data / file, "ab") as opened:
        opened.write(b"\n")
    check = set() if file.endswith((".pt", ".pth")) else {f"check-problem{file[1]}"}
    assert changed(before, keys(make(course_data), ALL | CHECKS)) == expected | check


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

        return run

    functions = {name.replace("_", "-"): function for name, function in functions.items()}
    for name, step in steps.all.items():
        steps.all[name] = dataclasses.replace(step, run=functions.get(name) or save_name(name))
    return ran


def test_a_step_runs_what_it_builds_on_first_and_once(course_data, tmp_path):
    steps, again = make(course_data, tmp_path / "out"), make(course_data, tmp_path / "out")
    ran, ran_again = fake(steps), fake(again)
    for _ in range(2):
        assert steps.result("embed").metrics == {"step": "embed"}
    again.result("finetune-E")  # as in another process
    assert ran == ["check-problem1", "pretrain", "finetune-C", "embed"] and ran_again == ["finetune-E"]


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
    ("segment-fcn32s", MemoryError(), "--set fcn32s.batch_size=2"),
    ("segment-deeplabv3", OSError(12, "Cannot allocate memory"), "--set deeplabv3.batch_size=2"),
    ("segment-lraspp", RuntimeError("MPS backend out of memory"), "--set lraspp.batch_size=2"),
    ("pretrain-supervised", RuntimeError("(pid 7) is killed by signal: Killed"), "--set supervised.batch_size=16"),
    ("everything", MemoryError(), "--set everything.points_per_batch=32"),
    ("control-knn", MemoryError(), "--set data.office_limit=1000"),
    ("segment-colour", MemoryError(), "--set data.tile_limit=200"),
    ("check-problem2", MemoryError(), "Close other programs"),
]


@pytest.mark.parametrize(("name", "error", "advice"), MEMORY)
def test_running_out_of_memory_names_what_helps(course_data, tmp_path, name, error, advice):
    """On any device: torch reports it in several ways."""
    steps = make(course_data, tmp_path / "out")
    fake(steps, **{name: fail(error)})
    with pytest.raises(UserError, match=rf"{name}: memory ran out on cpu.*{advice}\. What was finished"):
        steps.result(name)


@pytest.mark.parametrize("name", sorted(ALL - NOT_TRAINED))
def test_a_training_that_diverges_names_its_learning_rate(course_data, tmp_path, name):
    """The setting changes that step; the batch's files are listed beside the checkpoint until the step is done."""
    steps = make(course_data, tmp_path / "out")
    fake(steps, **{name: fail(Diverged("the loss is nan in epoch 2", 0.07, ["a.jpg"]))})
    with pytest.raises(UserError) as caught:
        steps.result(name)
    note = steps.store.folder(name, steps.key(name)) / run.NOT_FINITE
    message = re.fullmatch(
        rf"{name}: the loss is nan in epoch 2\. Please look whether one of the images that {note} names is odd, "
        r"or lower the learning rate \(now 0\.07\), for example --set (\w+)\.lr=0\.007\.",
        str(caught.value),
    )
    assert make(course_data, settings={f"{message[1]}.lr": 0.007}).key(name) != steps.key(name)
    assert files.read_json(note) == {"problem": "the loss is nan in epoch 2", "files": ["a.jpg"]}
    fake(steps)
    assert steps.result(name) and not note.exists() and steps.store.verify() == []


def test_a_full_disk_does_not_hide_why_a_training_stopped(course_data, tmp_path):
    steps, error = make(course_data, tmp_path / "out"), Diverged("the loss is inf", 0.1, ["a.jpg"])
    fake(steps, pretrain=lambda draft, *_: draft.folder.chmod(0o555) or fail(error)())
    with held_to_permissions(), pytest.raises(UserError, match="the loss is inf. Please lower the learning"):
        steps.result("pretrain")


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


def test_only_run_json_holds_times_and_places(course_data, tmp_path):
    result, again = (make(course_data, tmp_path / out).result("segment-colour") for out in ("out", "again"))
    assert result.metrics["miou"] > 0.9  # the colours of the tiles tell their classes
    assert result.run["device"] == "cpu" and result.run["seconds"] >= 0 and result.run["resumed"] is False
    assert result.run["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert everything_of(result.folder) == everything_of(again.folder)


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
    for seconds, name, expected in ((7, "pretrain", 7), (3, "check-problem1", 3), (5, "segment-colour", 5)):
        measure(seconds, name, epochs=8)
        assert steps.expected(name) == expected


def test_each_step_is_watched_under_its_own_name(course_data, tmp_path):
    """A step that is done is not watched again."""
    steps, calls = make(course_data, tmp_path / "out"), []
    steps.watch = lambda step, history: calls.append((step, history))
    fake(steps, **{name: lambda draft, *_: draft.watch(["epoch 1"]) for name in steps.all})
    for _ in range(2):
        steps.result("embed")
    assert calls == [(step, ["epoch 1"]) for step in ("check-problem1", "pretrain", "finetune-C", "embed")]


def test_steps_of_another_seed_share_the_hashes_of_the_data(course_data, tmp_path, monkeypatch):
    steps = make(course_data, tmp_path / "out")
    before = keys(steps)
    monkeypatch.setattr(hashes, "fingerprint", lambda split: pytest.fail("the data is hashed again"))
    other = steps.with_seed(7, "watch")
    assert other.profile == steps.profile.model_copy(update={"seed": 7}) and other.watch == "watch" != steps.watch
    assert set(keys(other).values()) & set(before.values()) == {before["control-simple"]}
    assert keys(steps.with_seed(0)) == before
