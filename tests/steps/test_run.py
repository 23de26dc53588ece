"""Steps: keys change with what a step depends on and with nothing else; each runs once."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from hw1lib import files, profiles
from hw1lib.data import hashes, layout
from hw1lib.errors import Diverged, UserError
from hw1lib.metrics import projection
from hw1lib.models import weights
from hw1lib.settings import flatten
from hw1lib.steps import requirements, run, store
from tests.conftest import everything_of
from tests.settings import other
from tests.test_files import held_to_permissions

PROBLEM2 = {"segment-fcn32s", "segment-lraspp", "segment-deeplabv3", "segment-colour", "everything"}
TUNED = {*(f"finetune-{s}" for s in "ABCDE"), "control-random", "control-knn", "embed"}
TUNED |= {"control-colour", "control-simple"}
PROBLEM1 = {"pretrain", "pretrain-supervised", *TUNED}
CHECKS = {"check-problem1", "check-problem2"}
ON_BYOL = {"finetune-C", "finetune-E", "control-knn", "embed"}  # embed shows setting C
ON_LABELS = {"finetune-B", "finetune-D"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_sam(tmp_path, monkeypatch):
    """Whether this machine has SAM's weights must not matter."""
    file = tmp_path / "sam.pth"
    monkeypatch.setattr(weights, "find_sam", lambda: file if file.exists() else None)


def make(root, out="unused", fit=True, **settings):
    settings = {k.replace("__", "."): v for k, v in settings.items()}
    profile = profiles.get("smoke", settings)
    data = layout.find(root, profile.data, profile.only)
    profile = requirements.fitted(profile, data, settings)[0] if fit else profile
    return run.Steps(profile, data, store.Store(out), CPU)


def keys(made, names=None):
    """The keys of the training steps, or of those named."""
    return {name: made.key(name) for name in names or made.all.keys() - CHECKS}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_every_step_has_a_key_of_its_own_and_the_same_again(course_data, tmp_path):
    made = make(course_data)
    found = keys(made, made.all)
    assert found.keys() == ALL | CHECKS and len(set(found.values())) == len(found)
    again = make(course_data.rename(tmp_path / "moved"), tmp_path / "elsewhere")
    assert keys(again, found) == found


def test_keys_are_those_of_the_results_that_there_are(course_data):
    """A literal, as those of the smoke profile: with another rule all stored results would be unfound."""
    made = make(course_data, fit=False)
    config = made.config("finetune-C")
    shared = {"seed": 0, "model_scale": 0.25, "tf32": False, "cudnn_benchmark": False}  # on a CPU
    assert config["settings"]["profile"] == shared | {"image_size": 32, "overhead": True, "zero_init_residual": True}
    assert config["upstream"] == {"pretrain": made.key("pretrain")} and list(config["data"]) == [
        "train",
        "val",
        "groups",
    ]
    assert made.config("segment-colour")["settings"] == {"profile": shared}
    assert made.config("check-problem1")["settings"] == {"profile": {}}
    assert made.config("control-simple")["settings"] == {"profile": {}, "data.image_size": 32}
    assert made.config("segment-fcn32s")["settings"]["segmentation.stage_images"] == ("0001", "0003", "0005")
    tuned = {name: 7 for name in made.all if name.startswith(("finetune-", "pretrain-", "control-"))}
    sixes = dict.fromkeys(SEGMENTED, 6)
    special = {"pretrain": 8, "control-colour": 4, "embed": 3, "segment-colour": 2, "everything": 5}
    ones = dict.fromkeys(("control-simple", "check-problem1", "check-problem2"), 1)
    assert {name: step.version for name, step in made.all.items()} == tuned | sixes | special | ones


ALL, SEGMENTED = PROBLEM1 | PROBLEM2, {f"segment-{name}" for name in ("fcn32s", "lraspp", "deeplabv3")}
READ_BY = {
    **dict.fromkeys(("seed", "model_scale"), ALL - {"control-simple"}),
    **{
        name: set() for name in ("device", "threads", "checkpoint_every", "seeds", "tf32", "cudnn_benchmark")
    },  # on a CPU
    **{name: set() for name in flatten(profiles.get("smoke")) if name.endswith(".processes")},
    **{
        "data.image_size": PROBLEM1,
        "data.overhead": PROBLEM1 - {"control-simple"},
        "zero_init_residual": PROBLEM1 - {"control-simple"},
        "data.tile_limit": PROBLEM2,
        "data.office_limit": TUNED,
    },
    "data.pool_limit": {"pretrain", "pretrain-supervised"} | ON_BYOL | ON_LABELS,
    "pretrain": {"pretrain"} | ON_BYOL,
    "supervised": {"pretrain-supervised"} | ON_LABELS,
    "finetune": TUNED - {"control-knn", "control-simple"},
    **{"controls": {"control-knn"}, "embed": {"embed"}},
    **{"fcn32s": {"segment-fcn32s"}, "deeplabv3": {"segment-deeplabv3"}},
    "lraspp": {"segment-lraspp", "everything"},  # smoke's improved model
    "segmentation.stage_images": SEGMENTED | {"everything"},
    **{"segmentation.improved": {"everything"}, "everything": {"everything"}},
}


@pytest.mark.slow
def test_each_setting_changes_exactly_the_steps_that_depend_on_it(course_data):
    """A forgotten one would load stale results; one too many would train anew for nothing."""
    before = keys(make(course_data), ALL | CHECKS)
    for name, value in flatten(profiles.get("smoke")).items():
        if name != "only":  # it says which steps there are
            value = 3 if name.endswith("_limit") else other(name, value)
            value = "float16" if name.endswith(".precision") else value  # no processor takes it by itself
            after = keys(make(course_data, **{name.replace(".", "__"): value}), before)
            expected = READ_BY[name] if name in READ_BY else READ_BY[name.partition(".")[0]]
            assert changed(before, after) == expected, name
    assert keys(make(course_data, data__pool_limit=10_000), before) == before  # there are fewer: nothing changes


def test_what_depends_on_the_device_is_what_it_is_there(course_data, tmp_path, monkeypatch):
    """So a GPU's result, in another precision or by other masks, is never taken for a CPU's."""
    precisions = {"auto": torch.float16, "bfloat16": torch.bfloat16, "float32": None}
    monkeypatch.setattr(run.device, "dtype", lambda precision, _: precisions[precision])
    (tmp_path / "sam.pth").touch()
    here, there = (make(course_data, lraspp__precision="float32") for _ in range(2))
    there.device = torch.device("cuda")
    assert here.config("pretrain")["settings"]["pretrain"]["precision"] == "float16"
    made = [[each.config(name)["settings"] for name in ("segment-lraspp", "everything")] for each in (here, there)]
    assert [found[1]["everything"]["refine"] for found in made] == ["felzenszwalb", "sam"]
    assert [found[0]["profile"]["tf32"] for found in made] == [False, True]
    assert here.key("segment-lraspp") != there.key("segment-lraspp")
    ran = [each._precision(each.step(name)) for each in (here, there) for name in ("segment-lraspp", "finetune-A")]
    assert ran == ["float32", "float16", "float32, products in TF32", "float16"]
    assert here._precision(here.step("control-knn")) is None


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


@pytest.mark.parametrize(("gone", "left"), [("p1_data", PROBLEM2), ("p2_data", PROBLEM1)])
def test_with_one_problem_alone_its_keys_stay(course_data, tmp_path, gone, left):
    before = keys(make(course_data))
    asked = keys(make(course_data, only="problem2" if gone == "p1_data" else "problem1"))
    (course_data / gone).rename(tmp_path / "away")
    made = make(course_data)
    assert asked == keys(made) == {name: before[name] for name in left}
    with pytest.raises(UserError, match="There is no step"):
        made.key((PROBLEM1 | PROBLEM2).difference(left).pop())


# --- running


def faked(made, ran, **others):
    """The same steps, but each only notes that it ran; `others` are functions for some."""

    def fake(name):
        def run(draft, *_):
            ran.append(name)
            draft.metrics({"step": name})
            draft.history([])

        return others.get(name.replace("-", "_"), run)

    made.all = {n: dataclasses.replace(step, run=fake(n)) for n, step in made.all.items()}
    return made


def fail(error):
    def run(*_):
        raise error

    return run


def test_a_step_runs_what_it_builds_on_first_and_once(course_data, tmp_path):
    ran = []
    made = faked(make(course_data, tmp_path / "out"), ran)
    assert made.result("embed").metrics == {"step": "embed"}
    assert ran == ["check-problem1", "pretrain", "finetune-C", "embed"]
    made.result("embed")
    faked(make(course_data, tmp_path / "out"), ran).result("finetune-E")  # as a new process would
    assert ran == ["check-problem1", "pretrain", "finetune-C", "embed", "finetune-E"]


OURS, LABELS = ("pretrain",), ("pretrain-supervised",)


@pytest.mark.slow
def test_each_loop_is_given_its_data_and_what_it_builds_on(course_data, tmp_path, monkeypatch):
    made, called = make(course_data, tmp_path, seed=3, segmentation__improved="deeplabv3"), {}

    def loop(draft, data, profile, *words, **which):
        assert (data, profile) == (getattr(made.data, f"problem{made.step(draft.step).problem}"), made.profile)
        called[draft.step] = [
            word.step if isinstance(word, store.Result) else word for word in (*words, *which.values())
        ]
        draft.weights({"of": torch.tensor(len(draft.step))})
        for number, name in enumerate(("activations_first", "activations_last", "predictions")):
            draft.array(name, np.array([number, len(draft.step)]))

    def project(*words):
        return {"plane": words[0] + words[1]}, {"words": [np.ravel(word).tolist() for word in words]}

    for name in ("pretrain.self_supervised", "pretrain.supervised", "finetune.run", "controls.knn", "controls.colour"):
        monkeypatch.setattr(f"hw1lib.loops.{name}", loop)
    for name in ("segment", "everything"):
        monkeypatch.setattr(f"hw1lib.loops.{name}.run", loop)
    monkeypatch.setattr(projection, "project", project)
    results = {name: made.result(name) for name in made.all}

    for name, pretrained in zip("ABCDE", ((), LABELS, OURS, LABELS, OURS)):
        assert called[f"finetune-{name}"] == [CPU, *pretrained, name]
    assert called["control-random"] == [CPU, "random"] and called["control-colour"] == [CPU]
    assert called["control-knn"] == [CPU, *OURS]
    assert [called[f"segment-{name}"] for name in ("fcn32s", "lraspp")] == [[CPU, "fcn32s"], [CPU, "lraspp"]]
    predictions, sam, device = called["everything"]
    assert predictions.tolist() == [2, len("segment-deeplabv3")] and sam is None and device == CPU
    embedded = [[0, 10], [1, 10], made.data.problem1.train.labels.tolist(), [10.0], [3]]  # perplexity and seed
    assert results["embed"].metrics["words"] == embedded
    assert results["embed"].array("plane").tolist() == [1, 20] and results["embed"].history.empty
    assert {"warnings", "train"} <= results["check-problem1"].metrics.keys()


def test_data_with_errors_trains_nothing(course_data, tmp_path):
    """Also where the step is run by itself, and whatever was done before."""
    broken = course_data / "p1_data" / "office" / "val" / "Mug00100.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    ran, made = [], make(course_data, tmp_path / "out")
    faked(made, ran, check_problem1=made.all["check-problem1"].run)
    for name in ("pretrain", "control-colour", "embed"):
        with pytest.raises(UserError, match=r"Mug00100\.jpg.*data check"):
            made.result(name)
    made.result("segment-colour")  # the other problem
    assert ran == ["check-problem2", "segment-colour"]


def test_a_failure_keeps_what_was_finished(course_data, tmp_path):
    ran = []
    made = faked(make(course_data, tmp_path / "out"), ran, finetune_C=fail(RuntimeError("odd")))
    with pytest.raises(RuntimeError, match="^odd$"):  # none of those that a user can mend
        made.result("embed")
    assert made.status("pretrain") == "done"
    assert made.status("finetune-C") == made.status("embed") == "to run"
    faked(make(course_data, tmp_path / "out"), ran).result("embed")
    assert ran == ["check-problem1", "pretrain", "finetune-C", "embed"]


def test_data_that_changes_meanwhile_makes_no_result(course_data, tmp_path):
    """It would be kept under the key of the data that was there before."""
    path = course_data / "p1_data" / "office" / "val" / "Mug00100.jpg"
    content = path.read_bytes()

    def run(draft, *_):
        draft.metrics({})
        draft.checkpoint.write_bytes(b"trained on either")
        path.write_bytes(content + b" ")

    made = faked(make(course_data, tmp_path / "out"), [], control_colour=run)
    with pytest.raises(UserError, match="control-colour: the data changed while it ran"):
        made.result("control-colour")
    path.write_bytes(content)
    assert make(course_data, tmp_path / "out").status("control-colour") == "to run"


@pytest.mark.parametrize(
    ("name", "error", "setting"),
    [
        ("pretrain", torch.OutOfMemoryError("CUDA out of memory."), "pretrain.batch_size=16"),
        ("finetune-A", RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "finetune.batch_size=16"),
        ("segment-fcn32s", MemoryError(), "fcn32s.batch_size=2"),
        ("segment-deeplabv3", OSError(12, "Cannot allocate memory"), "deeplabv3.batch_size=2"),
        ("segment-lraspp", RuntimeError("MPS backend out of memory"), "lraspp.batch_size=2"),
        ("pretrain-supervised", RuntimeError("(pid 7) is killed by signal: Killed"), "supervised.batch_size=16"),
        ("everything", MemoryError(), "everything.points_per_batch=32"),
        ("control-knn", MemoryError(), "data.office_limit=1000"),
        ("segment-colour", MemoryError(), "data.tile_limit=200"),
        ("check-problem2", MemoryError(), ""),
    ],
)
def test_running_out_of_memory_names_what_helps(course_data, tmp_path, name, error, setting):
    """On any device: torch says it in several ways."""
    made = faked(make(course_data, tmp_path / "out"), [], **{name.replace("-", "_"): fail(error)})
    helps = rf"--set {setting}\." if setting else r"Close other programs\."
    with pytest.raises(UserError, match=f"{name}: memory ran out on cpu.*{helps} What was finished"):
        made.result(name)


@pytest.mark.parametrize(
    "name", sorted((PROBLEM1 | PROBLEM2) - {"control-knn", "control-simple", "embed", "segment-colour", "everything"})
)
def test_a_training_that_diverges_names_its_own_learning_rate(course_data, tmp_path, name):
    """The setting exists, and it changes that step; the files of the batch stand beside the checkpoint."""
    made = make(course_data, tmp_path / "out")
    faked(made, [], **{name.replace("-", "_"): fail(Diverged("the loss is nan in epoch 2", 0.07, ["a.jpg"]))})
    with pytest.raises(UserError) as caught:
        made.result(name)
    note = made.store.folder(name, made.key(name)) / run.NOT_FINITE
    found = re.fullmatch(
        rf"{name}: the loss is nan in epoch 2\. Please look whether one of the images that {note} names is odd, "
        r"or lower the learning rate \(now 0\.07\), for example --set (\w+)\.lr=0\.007\.",
        str(caught.value),
    )
    assert make(course_data, **{f"{found[1]}__lr": 0.007}).key(name) != made.key(name)
    assert files.read_json(note) == {"problem": "the loss is nan in epoch 2", "files": ["a.jpg"]}
    faked(made, []).result(name)  # the cause is mended
    assert not note.exists() and made.store.verify() == []


def test_a_full_disk_does_not_hide_why_a_training_stopped(course_data, tmp_path):
    made, error = make(course_data, tmp_path / "out"), Diverged("the loss is inf", 0.1, ["a.jpg"])
    faked(made, [], pretrain=lambda draft, *_: draft.folder.chmod(0o555) or fail(error)())
    with held_to_permissions(), pytest.raises(UserError, match="the loss is inf. Please lower the learning"):
        made.result("pretrain")


def test_a_step_by_itself_has_the_same_key_on_another_processor(course_data, monkeypatch):
    """One that would choose another precision; so have the steps that it builds on."""

    def chooses(auto):
        monkeypatch.setattr(run.device, "dtype", lambda asked, _: auto if asked == "auto" else getattr(torch, asked))

    chooses(torch.bfloat16)
    made = make(course_data, pretrain__epochs=3)
    key, words = made.key("finetune-C"), made.command("finetune-C")
    chooses(torch.float32)
    assert make(course_data, pretrain__epochs=3).key("finetune-C") != key
    given = (word.split("=") for word in words[words.index("--set") + 1 :])
    assert make(course_data, **{name.replace(".", "__"): value for name, value in given}).key("finetune-C") == key


def test_times_and_places_stand_in_run_json_alone(course_data, tmp_path):
    result, again = (make(course_data, tmp_path / out).result("segment-colour") for out in ("out", "again"))
    assert result.metrics["miou"] > 0.9  # the folder's colours tell its classes
    assert result.run["device"] == "cpu" and result.run["seconds"] >= 0 and result.run["resumed"] is False
    assert result.run["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert everything_of(result.folder) == everything_of(again.folder)


def test_the_expected_time_is_what_was_measured(course_data, tmp_path):
    """Of this key, else the median of others by epochs; what was resumed or damaged says nothing."""

    def ran(seconds, name="pretrain", resumed=False, epochs=2, **settings):
        made = make(course_data, tmp_path, pretrain__epochs=epochs, **settings)
        running = {name.replace("-", "_"): lambda draft, *_: draft.history([{"epoch": n} for n in range(epochs)])}
        result = faked(made, [], **running).result(name)
        files.write_json(result.folder / "run.json", result.run | {"seconds": seconds, "resumed": resumed})
        return result.folder / "run.json"

    asked = make(course_data, tmp_path, pretrain__epochs=8)
    assert asked.expected("pretrain") is None
    for seconds, lr in ((10, 0.1), (30, 0.2), (20, 0.3)):
        ran(seconds, pretrain__lr=lr)
    ran(1000, pretrain__lr=0.4, resumed=True)
    ran(1000, pretrain__lr=0.5).write_text("{")
    assert asked.expected("pretrain") == 20 * 8 / 2
    ran(7, epochs=8)
    assert asked.expected("pretrain") == 7
    ran(3, "check-problem1", seed=1)
    ran(5, "segment-colour", seed=1)
    assert asked.expected("check-problem1") == 3 and asked.expected("segment-colour") == 5


def test_each_step_is_watched_under_its_own_name(course_data, tmp_path):
    """Those that it builds on under theirs; a step that is done is not watched again."""
    made, seen = make(course_data, tmp_path / "out"), []
    made.watch = lambda step, history: seen.append((step, history))
    running = {name.replace("-", "_"): lambda draft, *_: draft.watch(["epoch 1"]) for name in made.all}
    faked(made, [], **running).result("embed")
    made.result("embed")
    assert seen == [(step, ["epoch 1"]) for step in ("check-problem1", "pretrain", "finetune-C", "embed")]


def test_other_seeds_share_the_data_and_watch_for_themselves(course_data, tmp_path, monkeypatch):
    made = make(course_data, tmp_path / "out")
    before = keys(made)
    monkeypatch.setattr(hashes, "fingerprint", lambda split: pytest.fail("the data is hashed again"))
    other = made.of_seed(7, "watch")
    assert other.profile == made.profile.model_copy(update={"seed": 7}) and other.watch == "watch" != made.watch
    assert set(keys(other).values()) & set(before.values()) == {before["control-simple"]}
    assert keys(made.of_seed(0)) == before
