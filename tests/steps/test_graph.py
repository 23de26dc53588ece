"""Steps: keys change with what a step depends on and with nothing else; each runs once."""

import dataclasses

import pytest
import torch
from PIL import Image

from hw1lib import profiles
from hw1lib.steps import graph, store
from hw1lib.data import layout
from hw1lib.errors import UserError
from hw1lib.models import weights
from tests.settings import leaves, other

PROBLEM2 = {"segment-fcn32s", "segment-lraspp", "segment-deeplabv3", "segment-colour", "everything"}
TUNED = {*(f"finetune-{s}" for s in "ABCDE"), "control-random", "control-knn", "control-colour", "embed"}
PROBLEM1 = {"pretrain", "pretrain-supervised", *TUNED}
CHECKS = {"check-problem1", "check-problem2"}
ON_BYOL = {"finetune-C", "finetune-E", "control-knn", "embed"}  # embed shows setting C
ON_LABELS = {"finetune-B", "finetune-D"}


@pytest.fixture(autouse=True)
def no_sam(monkeypatch):
    """Whether this machine has SAM's weights must not matter."""
    monkeypatch.setattr(weights, "find_sam", lambda: None)


def make(root, out="unused", **settings):
    profile = profiles.get("smoke", {k.replace("__", "."): v for k, v in settings.items()})
    data = layout.find(root, profile.data)
    return graph.Steps(profile, data, store.Store(out), torch.device("cpu"))


def keys(made, names=None):
    """The keys of the training steps, or of those named."""
    return {name: made.key(name) for name in names or made.all.keys() - CHECKS}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_the_steps_are_those_of_the_two_problems(course_data):
    assert set(make(course_data).all) == PROBLEM1 | PROBLEM2 | CHECKS


def test_every_key_is_one_of_its_own(course_data):
    made = make(course_data)
    found = keys(made, made.all)
    assert len(set(found.values())) == len(found)


def test_keys_are_the_same_again(course_data, tmp_path):
    assert keys(make(course_data)) == keys(make(course_data, tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("seed", 1, PROBLEM1 | PROBLEM2),
        ("model_scale", 0.5, PROBLEM1 | PROBLEM2),
        ("device", "cpu", set()),
        ("checkpoint_every", 1.0, set()),
        ("seeds", 3, set()),  # how often, not what
        ("data.image_size", 24, PROBLEM1),
        ("data.overhead", False, PROBLEM1),
        ("data.pool_limit", 8, {"pretrain", "pretrain-supervised"} | ON_BYOL | ON_LABELS),
        ("data.office_limit", 5, TUNED),
        ("data.tile_limit", 2, PROBLEM2),
        ("data.pool_limit", 10_000, set()),  # more than there are: nothing changes
        ("pretrain.epochs", 9, {"pretrain"} | ON_BYOL),
        ("pretrain.use_momentum", True, {"pretrain"} | ON_BYOL),
        ("pretrain.one_pass", False, {"pretrain"} | ON_BYOL),
        ("pretrain.hold_out", False, {"pretrain"} | ON_BYOL),
        ("pretrain.views", "byol", {"pretrain"} | ON_BYOL),  # smoke's are geometry
        ("pretrain.zero_init_residual", False, {"pretrain"} | ON_BYOL),
        ("pretrain.crop_scale", 0.5, {"pretrain"} | ON_BYOL),
        ("supervised.lr", 1.0, {"pretrain-supervised"} | ON_LABELS),
        ("finetune.lr", 1.0, TUNED - {"control-knn"}),
        ("finetune.hidden", 17, TUNED - {"control-knn"}),
        ("controls.knn", 3, {"control-knn"}),
        ("embed.perplexity", 7.0, {"embed"}),
        ("embed.setting", "B", {"embed"}),
        ("fcn32s.lr", 1.0, {"segment-fcn32s"}),
        ("lraspp.lr", 1.0, {"segment-lraspp", "everything"}),  # smoke's improved model
        ("deeplabv3.lr", 1.0, {"segment-deeplabv3"}),
        ("fcn32s.tta", True, {"segment-fcn32s"}),
        ("deeplabv3.average", 0.5, {"segment-deeplabv3"}),
        ("lraspp.loss", "dice", {"segment-lraspp", "everything"}),
        ("segmentation.improved", "deeplabv3", {"everything"}),
        ("everything.points_per_side", 3, {"everything"}),
        ("everything.refine", "slic", {"everything"}),
        ("everything.images", "0001", {"everything"}),
    ],
)
def test_a_setting_changes_exactly_the_steps_that_depend_on_it(course_data, setting, value, expected):
    before, after = make(course_data), make(course_data, **{setting.replace(".", "__"): value})
    assert changed(keys(before), keys(after)) == expected


def test_everything_follows_the_improved_model(course_data):
    """The other side of lraspp.lr: with another improved model it is not `everything`'s."""
    made = make(course_data, segmentation__improved="deeplabv3")
    after = make(course_data, segmentation__improved="deeplabv3", lraspp__lr=1.0)
    assert changed(keys(made), keys(after)) == {"segment-lraspp"}


def test_every_setting_counts_for_some_step(course_data):
    """But those that only say where and how often: a forgotten one would load stale results."""
    before = keys(make(course_data))
    for name, value in leaves(profiles.get("smoke")):
        if "." in name:
            value = 3 if name.endswith("_limit") else other(name, value)
            after = keys(make(course_data, **{name.replace(".", "__"): value}))
            assert changed(before, after), name


# --- data


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("p1_data/mini/train/00001.jpg", {"pretrain", "pretrain-supervised"} | ON_BYOL | ON_LABELS),
        ("p1_data/office/train/Mug00001.jpg", TUNED),
        ("p1_data/office/val/Mug00100.jpg", TUNED),
        ("p2_data/train/0001_sat.jpg", PROBLEM2),  # everything: through its model
        ("p2_data/validation/0001_mask.png", PROBLEM2),
    ],
)
def test_an_image_changes_exactly_the_steps_that_see_it(course_data, file, expected):
    before = keys(make(course_data))
    with Image.open(course_data / file) as image:
        other = Image.new(image.mode, image.size)
    other.save(course_data / file)
    assert changed(before, keys(make(course_data))) == expected


@pytest.mark.parametrize(
    ("file", "check"),
    [
        ("p1_data/mini/train/00001.jpg", "check-problem1"),
        ("p1_data/mini/train.csv", "check-problem1"),
        ("p1_data/office/val/new.jpg", "check-problem1"),
        ("p2_data/validation/0001_mask.png", "check-problem2"),
        ("p2_data/train/left_over_mask.png", "check-problem2"),
    ],
)
def test_any_file_changes_the_check_of_its_problem(course_data, file, check):
    """Also one that no training reads."""
    before = keys(make(course_data), CHECKS)
    with open(course_data / file, "ab") as opened:
        opened.write(b"\n")
    assert changed(before, keys(make(course_data), CHECKS)) == {check}


def test_no_setting_changes_a_check(course_data):
    before = keys(make(course_data), CHECKS)
    after = make(course_data, seed=3, model_scale=0.5, data__image_size=24, data__tile_limit=2)
    assert keys(after, CHECKS) == before


def test_a_moved_label_changes_what_reads_labels(course_data):
    before = keys(make(course_data))
    table = course_data / "p1_data" / "mini" / "train.csv"
    text = table.read_text()
    table.write_text(text.replace("00001.jpg,100", "00001.jpg,200"))
    assert table.read_text() != text
    assert changed(before, keys(make(course_data))) >= {"pretrain-supervised"} | ON_LABELS


def test_the_courses_backbone_changes_what_builds_on_it(course_data):
    before = keys(make(course_data))
    (course_data / "p1_data" / "pretrain_model_SL.pt").write_bytes(b"weights")
    assert changed(before, keys(make(course_data))) == {"pretrain-supervised"} | ON_LABELS


def test_sams_weights_change_only_everything(course_data, tmp_path, monkeypatch):
    before = keys(make(course_data))
    file = tmp_path / "sam.pth"
    file.write_bytes(b"weights")
    monkeypatch.setattr(weights, "find_sam", lambda: file)
    assert changed(before, keys(make(course_data))) == {"everything"}


def test_the_same_data_elsewhere_has_the_same_keys(course_data, tmp_path):
    before = keys(make(course_data))
    assert keys(make(course_data.rename(tmp_path / "moved"))) == before


@pytest.mark.parametrize(("gone", "left"), [("p1_data", PROBLEM2), ("p2_data", PROBLEM1)])
def test_with_one_problem_alone_its_keys_stay(course_data, tmp_path, gone, left):
    before = keys(make(course_data))
    (course_data / gone).rename(tmp_path / "away")
    made = make(course_data)
    assert keys(made) == {name: before[name] for name in left}
    with pytest.raises(UserError, match="There is no step"):
        made.key((PROBLEM1 | PROBLEM2).difference(left).pop())


# --- running


def faked(made, ran, broken=()):
    """The same steps, but each only notes that it ran."""

    def fake(name):
        def run(draft, context):
            if name in broken:
                raise RuntimeError(name)
            ran.append(name)
            draft.metrics({"step": name})
            draft.history([])

        return run

    made.all = {n: dataclasses.replace(step, run=fake(n)) for n, step in made.all.items()}
    return made


def test_a_step_runs_what_it_builds_on_first_and_once(course_data, tmp_path):
    ran = []
    made = faked(make(course_data, tmp_path / "out"), ran)
    assert made.done("embed").metrics == {"step": "embed"}
    assert ran == ["check-problem1", "pretrain", "finetune-C", "embed"]
    made.done("embed")
    faked(make(course_data, tmp_path / "out"), ran).done("finetune-E")  # as a new process would
    assert ran == ["check-problem1", "pretrain", "finetune-C", "embed", "finetune-E"]


def test_data_with_errors_trains_nothing(course_data, tmp_path):
    """Also where the step is run by itself, and whatever was done before."""
    broken = course_data / "p1_data" / "office" / "val" / "Mug00100.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    for name in ("pretrain", "control-colour", "embed"):
        ran = []
        made = make(course_data, tmp_path / "out")
        check = made.all["check-problem1"]
        made = faked(made, ran)
        made.all["check-problem1"] = check
        with pytest.raises(UserError, match="Mug00100.jpg.*data check"):
            made.done(name)
        assert not ran
    faked(make(course_data, tmp_path / "out"), ran).done("segment-colour")  # the other problem
    assert ran == ["check-problem2", "segment-colour"]


def test_a_failure_keeps_what_was_finished(course_data, tmp_path):
    ran = []
    made = faked(make(course_data, tmp_path / "out"), ran, broken={"finetune-C"})
    with pytest.raises(RuntimeError):
        made.done("embed")
    assert made.status("pretrain") == "done"
    assert made.status("finetune-C") == made.status("embed") == "to run"
    faked(make(course_data, tmp_path / "out"), ran).done("embed")
    assert ran == ["check-problem1", "pretrain", "finetune-C", "embed"]


def test_data_that_changes_meanwhile_makes_no_result(course_data, tmp_path):
    """It would be kept under the key of the data that was there before."""
    made = faked(make(course_data, tmp_path / "out"), [])
    path = course_data / "p1_data" / "office" / "val" / "Mug00100.jpg"
    content = path.read_bytes()

    def run(draft, context):
        draft.metrics({})
        draft.checkpoint.write_bytes(b"trained on either")
        path.write_bytes(content + b" ")

    made.all["control-colour"] = dataclasses.replace(made.all["control-colour"], run=run)
    with pytest.raises(UserError, match="control-colour: the data changed while it ran"):
        made.done("control-colour")
    path.write_bytes(content)
    assert make(course_data, tmp_path / "out").status("control-colour") == "to run"


def test_running_out_of_memory_names_the_setting_to_change(course_data, tmp_path):
    """On any device: torch says it in several ways."""
    cases = [
        ("pretrain", torch.OutOfMemoryError("CUDA out of memory."), "pretrain.batch_size=16"),
        ("finetune-A", RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "finetune.batch_size=16"),
        ("segment-fcn32s", MemoryError(), "fcn32s.batch_size=2"),
        ("segment-lraspp", RuntimeError("MPS backend out of memory"), "lraspp.batch_size=2"),
        (
            "pretrain-supervised",
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed"),
            "supervised.batch_size=16",
        ),
    ]
    for name, error, setting in cases:
        made = faked(make(course_data, tmp_path / "out"), [])

        def run(draft, context):
            raise error

        made.all[name] = dataclasses.replace(made.all[name], run=run)
        with pytest.raises(UserError, match=f"{name}: memory ran out.*--set {setting}\\."):
            made.done(name)
        assert make(course_data, **{setting.partition("=")[0].replace(".", "__"): 2})  # it exists


def test_other_errors_stay_what_they_are(course_data, tmp_path):
    made = faked(make(course_data, tmp_path / "out"), [], broken={"pretrain"})
    with pytest.raises(RuntimeError, match="^pretrain$"):
        made.done("pretrain")


@pytest.mark.parametrize("name", sorted(PROBLEM1 | PROBLEM2))
def test_each_step_knows_what_needs_less_memory(course_data, name):
    made = make(course_data)
    text = made.for_less_memory(name)
    setting, value = text.partition("--set ")[2].rstrip(".").split("=")
    changed = make(course_data, **{setting.replace(".", "__"): value})  # it exists
    assert setting.endswith("_limit") or changed.key(name) != made.key(name)


def test_times_and_places_stand_in_run_json_alone(course_data, tmp_path):
    made = faked(make(course_data, tmp_path / "out"), [])
    result = made.done("segment-colour")
    assert result.run["device"] == "cpu" and result.run["seconds"] >= 0
    again = faked(make(course_data, tmp_path / "again"), []).done("segment-colour")
    for path in result.folder.iterdir():
        if path.name not in ("run.json", "done.json", ".lock", ".holder"):
            assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name


def test_the_real_colour_step_runs_and_is_loaded(course_data, tmp_path):
    first = make(course_data, tmp_path / "out").done("segment-colour")
    assert first.metrics["miou"] > 0.9  # the folder's colours tell its classes
    stamp = (first.folder / "done.json").stat().st_mtime_ns
    again = make(course_data, tmp_path / "out").done("segment-colour")
    assert (again.folder / "done.json").stat().st_mtime_ns == stamp


def test_each_step_is_watched_under_its_own_name(course_data, tmp_path):
    """Those that it builds on under theirs; a step that is done is not watched again."""
    made = make(course_data, tmp_path / "out")
    seen = []
    made.watch = lambda step, history: seen.append((step, len(history)))

    def run(draft, context):
        history = []
        for epoch in (1, 2):
            history.append({"epoch": epoch})
            draft.watch(history)
        draft.metrics({})

    made.all = {n: dataclasses.replace(step, run=run) for n, step in made.all.items()}
    made.done("embed")
    names = ("check-problem1", "pretrain", "finetune-C", "embed")
    assert seen == [(name, epoch) for name in names for epoch in (1, 2)]
    made.done("embed")
    assert len(seen) == 8


@pytest.mark.parametrize("name", ["control-colour", "segment-lraspp"])
def test_a_real_step_is_watched_epoch_by_epoch(course_data, tmp_path, name):
    made = make(
        course_data,
        tmp_path / "out",
        model_scale=0.125,
        finetune__epochs=3,
        lraspp__epochs=3,
        lraspp__batch_size=2,
        lraspp__crop=0,
        segmentation__stage_images="0001",
    )
    seen = []
    made.watch = lambda step, history: seen.append((step, [row["epoch"] for row in history]))
    made.done(name)
    assert seen == [(name, [1]), (name, [1, 2]), (name, [1, 2, 3])]


def test_without_a_watch_a_draft_has_none(course_data, tmp_path):
    made = make(course_data, tmp_path / "out")
    drafts = []

    def run(draft, context):
        drafts.append(draft.watch)
        draft.metrics({})

    made.all = {n: dataclasses.replace(step, run=run) for n, step in made.all.items()}
    made.done("pretrain")
    assert drafts == [None, None]  # the data's check, and the step


def test_a_misspelt_upstream_setting_is_a_clear_error(course_data):
    with pytest.raises(UserError, match="embed.setting"):
        make(course_data, embed__setting="Z").key("embed")
