"""Profiles: the four that come with the project, profiles from files, and replaced settings."""

import itertools
import json
import re

import pytest

from hw1lib import paths, profiles, settings
from hw1lib.errors import UserError
from hw1lib.settings import flatten
from hw1lib.steps.store import key_of
from hw1lib.workbook import Workbook
from tests.conftest import refused, run
from tests.settings import other

DEMO = flatten(profiles.get("demo"))
TRAININGS = ("pretrain", "supervised", "finetune", "fcn32s", "lraspp", "deeplabv3")


def as_text(value):
    """Return a value as text for --set, with spaces around it."""
    return ", ".join(value) if isinstance(value, tuple) else f" {value} "


# --- replaced settings


@pytest.mark.parametrize("dotted", DEMO)
def test_replacing_one_setting_keeps_all_others(dotted):
    wanted = other(dotted, DEMO[dotted])
    after = profiles.get("demo", {dotted: as_text(wanted)})
    assert flatten(after) == DEMO | {dotted: wanted}
    assert flatten(profiles.get("demo")) == DEMO
    assert repr(profiles.get("demo", {dotted: json.loads(json.dumps(wanted))})) == repr(after)


@pytest.mark.parametrize(
    "dotted",
    ["nonsense", "pretrain.nonsense", "pretrain.epochs.more", "pretrain", "", ".", "pretrain.", "Pretrain.epochs"]
    + ["name", "needs_data", "ours", "__class__", "data.__dict__", "data.__class__.image_size"],
)
def test_a_name_that_is_no_setting_is_named(dotted):
    with pytest.raises(UserError, match="There is no setting") as caught:
        profiles.get("demo", {dotted: 1})
    assert dotted in str(caught.value)


def test_an_unknown_name_comes_with_those_that_exist():
    with pytest.raises(UserError, match=r"finetune\.epochs\b.*finetune\.lr\b"):
        profiles.get("demo", {"finetune.learning_rate": 1})
    with pytest.raises(UserError, match=r"'dmeo'.*smoke, demo, seed, strong.*\.toml.*Did you mean demo"):
        profiles.get("dmeo")
    with pytest.raises(
        UserError, match=r"settings must be a dict .* not \['seed'\]"
    ):  # papermill's -p settings '[seed]'
        profiles.get("demo", ["seed"])


WRONG = [  # values, and settings that refuse them
    ([0], ["pretrain.epochs", "pretrain.crop_scale", "finetune.batch_size", "finetune.hidden", "controls.knn"]),
    ([0], ["embed.perplexity", "lraspp.crop_scale", "lraspp.enlarge", "data.image_size", "seeds", "model_scale"]),
    ([0], [f"everything.{n}" for n in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor")]),
    ([-1], ["pretrain.warmup_epochs", "finetune.lr", "lraspp.crop", "lraspp.balance", "data.pool_limit", "seed"]),
    ([-1], [f"everything.{n}" for n in ("segments", "crop_n_layers", "min_mask_region_area")]),
    ([-0.1, 1.1], ["lraspp.jitter", "lraspp.balance", "lraspp.average", "finetune.dropout", "model_scale"]),
    ([1.1], ["pretrain.crop_scale", "pretrain.moving_average_decay", "everything.crop_overlap_ratio"]),
    ([1], ["lraspp.average", "finetune.batch_size"]), ([9, 1.5], ["lraspp.enlarge"]), ([7], ["data.image_size"]),
    (["original"], ["fcn32s.augmentation"]), (["maybe", 2, None], ["data.overhead"]),
    (["none"], ["pretrain.augmentation", "pretrain.views", "supervised.source", "embed.setting", "lraspp.loss"]),
    (["p1"], ["lraspp.tta", "segmentation.improved", "everything.refine", "zero_init_residual", "only"]),
    (["many", "2.5", 2.5, True, "", None, [1], 10**400, 10**5000], ["pretrain.epochs", "seed"]),
    (["fast", "0,1", False, {}, "nan", "inf"], ["finetune.lr", "lraspp.average"]),
    ([None, []], ["segmentation.stage_images", "device"]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "names"), WRONG)
def test_a_wrong_value_is_named(values, names):
    for dotted, value in itertools.product(names, values):
        with pytest.raises(UserError, match=re.escape(dotted)) as caught:
            profiles.get("demo", {dotted: value})
        assert "\n" not in str(caught.value)


# --- profiles from files


def write(folder, text, name="mine.toml"):
    (folder / name).write_text(text)
    return folder / name


def test_a_file_lists_what_differs_from_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = 'base = "smoke"\nseed = 3\n[pretrain]\nlr = 1\n[segmentation]\nstage_images = ["0001"]\n[embed]\n'
    write(tmp_path, text)
    changes = {"seed": 3, "pretrain.lr": 1.0, "segmentation.stage_images": ("0001",)}
    profile = profiles.get("mine.toml", {"seeds": 2})
    assert repr(flatten(profile)) == repr(flatten(profiles.get("smoke", changes)) | {"seeds": 2})
    assert (profile.name, profile.about) == ("mine", "profile smoke, changed by mine.toml")
    assert flatten(profiles.get(write(tmp_path, ""))) == flatten(settings.Profile(name="", about=""))


@pytest.mark.parametrize("name", profiles.NAMES)
def test_a_copy_of_a_profile_is_that_profile(name, tmp_path):
    copy = write(tmp_path, (paths.PROFILES / f"{name}.toml").read_text(), f"{name}.toml")
    assert repr(profiles.get(copy)) == repr(profiles.get(name))


BROKEN = {
    "[pretrain]\nepochs = 0": ["pretrain.epochs=0", "from 1 to 1000000"],
    "[pretrain]\nepoch = 3": ["no setting 'pretrain.epoch'", "pretrain.epochs"],
    "[pretrain]\nepochs = 2026-01-01": ["pretrain.epochs", "integer"],
    "pretrain = 3": ["no setting 'pretrain'"],
    'name = "x"': ["no setting 'name'"],
    "ours = 3": ["ours=3", "tuple"],
    "epochs = \nlr = 1": ["line 1", "profiles/demo.toml"],
    'base = "dmeo"': ["no profile dmeo", "smoke, demo, seed, strong"],
    "\udcff": ["utf-8", "profiles/demo.toml"],
}


@pytest.mark.parametrize("content", BROKEN)
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, capsys):
    (tmp_path / "mine.toml").write_bytes(content.encode(errors="surrogateescape"))
    text = refused(capsys, "plan", "--profile", tmp_path / "mine.toml")
    assert [word for word in (str(tmp_path / "mine.toml"), *BROKEN[content]) if word not in text] == []


@pytest.mark.parametrize("name", ["missing.toml", "folder.toml", "a\0.toml"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match=r"missing\.toml: No such file|folder\.toml: Is a dir|null"):
        profiles.get(f"{tmp_path}/{name}")


def test_a_profile_from_a_file_has_a_build_folder_and_runs_by_itself(course_data, tmp_path, monkeypatch, capsys):
    """A step that runs elsewhere, as on a worker, needs no file: its command names a known profile."""
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    file = write(tmp_path, 'base = "smoke"\n[finetune]\nepochs = 1\n')
    book = Workbook(file, course_data)
    assert book.out == tmp_path / "build" / "mine"
    assert run(capsys, "run", "control-colour", "--profile", file, "--data-root", course_data)[0] == 0
    assert book.steps.status("control-colour") == "done"
    command = [word.replace("pretrain", "control-colour") for word in book.steps.command("pretrain")[2:4]]
    assert run(capsys, *command, *book.steps.command("control-colour")[4:])[0] == 0
    assert len(list(book.out.glob("steps/control-colour/*"))) == 1


# --- what the four profiles promise


def test_result_settings_leave_out_where_and_on_what_it_ran():
    chosen = {"only": "problem1", "device": "cuda", "threads": 3, "pretrain.processes": 2}
    one, two = profiles.get("demo"), profiles.get("demo", chosen)
    assert settings.result_settings(one) == settings.result_settings(two)
    assert settings.result_settings(one.pretrain) | {"processes": 1} == dict(one.pretrain)


def test_no_setting_changes_unnoticed():
    """Literals of all settings' names and values: another default is another experiment, with other results."""
    keys = [key_of(settings.result_settings(profiles.get(name))) for name in profiles.NAMES]
    assert keys == ["ac4d6054fe24e7f8", "d6aa2f69829398ea", "5e133156902cd9fd", "5826db9a14bcd9d4"]


def test_seed_names_what_the_original_leaves_open():
    text = "; ".join(profiles.get("seed").ours)
    checkpoints = ("lowest loss", "last full batch")
    transforms = ("draws the same transforms", "never augmented", "eval mode")
    others = ("simplicial", "learning rates", "Adam for fine-tuning", "DeepLabV3", "SAM runs here", "TF32")
    assert all(part in text for part in checkpoints + transforms + others)


def test_smoke_takes_the_demos_code_path_and_does_less():
    smoke = flatten(profiles.get("smoke"))
    sizes = {"model_scale", "pretrain.projection_hidden_size", "embed.perplexity", "segmentation.stage_images"}
    sizes |= {"everything.points_per_side", "data.pool_limit", "data.office_limit", "data.tile_limit"}
    sizes |= {f"{step}.{what}" for step in TRAININGS for what in ("epochs", "batch_size")}
    assert {name for name in DEMO if DEMO[name] != smoke[name]} <= sizes
    assert smoke["model_scale"] < 1 == DEMO["model_scale"]
    assert all(smoke[f"{step}.epochs"] <= DEMO[f"{step}.epochs"] for step in TRAININGS)
    assert min(smoke[f"data.{what}_limit"] for what in ("pool", "office", "tile")) > 0
