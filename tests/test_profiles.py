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


def test_replacing_one_setting_keeps_all_others():
    demo = profiles.get("demo")
    for dotted, value in DEMO.items():
        wanted = other(dotted, value)
        after = settings.replace(demo, dotted, as_text(wanted))
        assert flatten(after) == DEMO | {dotted: wanted}
        assert repr(settings.replace(demo, dotted, json.loads(json.dumps(wanted)))) == repr(after)
    assert flatten(demo) == DEMO


def test_an_unknown_name_comes_with_those_that_exist():
    names = ("nonsense", "pretrain.nonsense", "pretrain.epochs.more", "pretrain", "", "pretrain.", "needs_data")
    for dotted in (*names, "__class__", "data.__dict__", "data.__class__.image_size"):
        with pytest.raises(UserError, match=re.escape(f"There is no setting {dotted!r}")):
            profiles.get("demo", {dotted: 1})
    with pytest.raises(UserError, match=r"finetune\.epochs\b.*finetune\.lr\b"):
        profiles.get("demo", {"finetune.learning_rate": 1})
    with pytest.raises(UserError, match=r"'dmeo'.*smoke, demo, seed, strong.*\.toml.*Did you mean demo"):
        profiles.get("dmeo")
    with pytest.raises(UserError, match=r"settings must be a dict .* not \['seed'\]"):
        profiles.get("demo", ["seed"])  # papermill's -p settings '[seed]'


WRONG = [  # values, and settings that refuse them
    ([0], ["pretrain.epochs", "pretrain.crop_scale", "finetune.batch_size", "finetune.hidden", "embed.perplexity"]),
    ([0], ["lraspp.enlarge", "data.image_size", "seeds", "model_scale", "everything.points_per_side"]),
    ([-1], ["finetune.lr", "lraspp.crop", "data.pool_limit", "seed", "everything.segments"]),
    ([-0.1, 1.1], ["lraspp.jitter", "finetune.dropout", "pretrain.crop_scale", "model_scale"]),
    ([1], ["lraspp.average"]), ([9, 1.5], ["lraspp.enlarge"]), (["maybe", 2, None], ["data.overhead"]),
    (["original"], ["fcn32s.augmentation"]), (["none"], ["pretrain.augmentation", "supervised.source", "only"]),
    (["many", "2.5", 2.5, True, "", None, [1], 10**400, 10**5000], ["pretrain.epochs", "seed"]),
    (["fast", "0,1", False, {}, "nan", "inf"], ["finetune.lr", "lraspp.average"]),
    ([None, []], ["segmentation.stage_images", "device"]),
]  # fmt: skip


def test_a_wrong_value_is_named():
    demo = profiles.get("demo")
    for dotted, value in ((n, value) for values, names in WRONG for n, value in itertools.product(names, values)):
        with pytest.raises(UserError, match=re.escape(dotted)) as caught:
            settings.replace(demo, dotted, value)
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
    "[pretrain]\nepochs = 0": ["pretrain.epochs=0", "greater than or equal to 1"],
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
def test_what_is_wrong_with_a_file_is_named(tmp_path, content):
    (tmp_path / "mine.toml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        profiles.get(tmp_path / "mine.toml")
    expected = (str(tmp_path / "mine.toml"), *BROKEN[content])
    assert [word for word in expected if word not in str(caught.value)] == []


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "folder.toml").mkdir()
    for name, reason in {"missing": "No such file", "folder": "Is a dir", "a\0": "null"}.items():
        with pytest.raises(UserError, match=reason):
            profiles.get(f"{tmp_path}/{name}.toml")
    assert "missing.toml" in refused(capsys, "plan", "--profile", tmp_path / "missing.toml")


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


def test_smoke_takes_the_demos_code_path_and_does_less():
    smoke = flatten(profiles.get("smoke"))
    sizes = {"model_scale", "pretrain.projection_hidden_size", "embed.perplexity", "segmentation.stage_images"}
    sizes |= {"everything.points_per_side", "data.pool_limit", "data.office_limit", "data.tile_limit"}
    sizes |= {f"{step}.{what}" for step in TRAININGS for what in ("epochs", "batch_size")}
    assert {name for name in DEMO if DEMO[name] != smoke[name]} <= sizes
    assert smoke["model_scale"] < 1 == DEMO["model_scale"]
    assert min(smoke[f"data.{what}_limit"] for what in ("pool", "office", "tile")) > 0
