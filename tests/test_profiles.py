"""Profiles: dotted replacement, its errors, and what the four profiles promise."""

import dataclasses
import itertools
import json
import re

import pytest

from hw1lib import profiles, settings
from hw1lib.errors import UserError
from hw1lib.settings import leaves
from hw1lib.steps.store import key_of
from tests.settings import other

DEMO = dict(leaves(profiles.get("demo")))
SEGMENTERS = ("fcn32s", "lraspp", "deeplabv3")
TRAININGS = ("pretrain", "supervised", "finetune", *SEGMENTERS)


def as_text(value):
    """As from --set; space around it is no part of it."""
    return ", ".join(value) if isinstance(value, tuple) else f" {value} "


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_every_setting_survives_text(name):
    """Also its type: a setting that is set to what it is must not give another key, and JSON tells 1 from 1.0."""
    profile = profiles.get(name)
    blank = settings.Profile(name, profile.about, ours=profile.ours, needs_data=profile.needs_data)
    assert blank != profile  # so that the text had something to say
    for dotted, value in leaves(profile):
        blank = settings.replaced(blank, dotted, as_text(value))
    assert blank == profile and repr(blank) == repr(profile)


@pytest.mark.parametrize("dotted", DEMO)
def test_replacing_one_setting_keeps_all_others(dotted):
    wanted = other(dotted, DEMO[dotted])
    after = profiles.get("demo", {dotted: as_text(wanted)})
    assert dict(leaves(after)) == DEMO | {dotted: wanted}
    assert dict(leaves(profiles.get("demo"))) == DEMO  # the profile itself stays
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


def test_an_unknown_name_comes_with_its_neighbours():
    with pytest.raises(UserError, match=r"finetune\.epochs\b.*finetune\.lr\b"):
        profiles.get("demo", {"finetune.learning_rate": 1})
    with pytest.raises(UserError) as caught:
        profiles.get("dmeo")
    assert all(word in str(caught.value) for word in ("dmeo", *profiles.PROFILES))


def test_settings_that_are_no_dict_are_refused():
    """As papermill passes on what follows -p settings."""
    with pytest.raises(UserError, match=r"\['seed'\] is no dict"):
        profiles.get("demo", ["seed"])


WRONG = [  # values, and settings that can be none of them
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
def test_a_value_that_can_mean_nothing_is_named(values, names):
    """It would end in a traceback, some after minutes, or be taken for something else without a word."""
    for dotted, value in itertools.product(names, values):
        with pytest.raises(UserError, match=re.escape(dotted)) as caught:
            profiles.get("demo", {dotted: value})
        assert "\n" not in str(caught.value)


def test_the_plain_dump_says_neither_where_it_ran_nor_what_was_looked_at():
    one, other = (profiles.get("demo", {"only": only, "device": d}) for only, d in (("", "cpu"), ("problem1", "cuda")))
    assert settings.plain(one) == settings.plain(other)
    assert settings.plain(one)["device"] is None and "only" not in settings.plain(one)
    assert settings.plain(one)["pretrain"] | {"processes": 1} == dataclasses.asdict(one.pretrain)


def test_no_setting_changes_unnoticed():
    """Literals of all settings' names and values: a new default is another experiment, with other results."""
    found = {name: key_of(settings.plain(profile)) for name, profile in profiles.PROFILES.items()}
    keys = ("ac4d6054fe24e7f8", "d6aa2f69829398ea", "5e133156902cd9fd", "5826db9a14bcd9d4")
    assert found == dict(zip(("smoke", "demo", "seed", "strong"), keys))


def test_seed_names_what_it_does_not_to_the_letter():
    """Or where the original is silent; the report prints the list."""
    said = "; ".join(profiles.get("seed").ours)
    checkpoints = ("lowest loss", "last full batch")
    transforms = ("draws the same transforms", "never augmented", "eval mode")
    others = ("simplicial", "learning rates", "Adam for fine-tuning", "DeepLabV3", "SAM runs here", "TF32")
    assert all(part in said for part in checkpoints + transforms + others)


def test_smoke_takes_the_demos_code_path_and_does_less():
    """Only sizes differ: every choice by name or yes and no is the demo's."""
    smoke = dict(leaves(profiles.get("smoke")))
    sizes = {"model_scale", "pretrain.projection_hidden_size", "embed.perplexity", "segmentation.stage_images"}
    sizes |= {"everything.points_per_side", "data.pool_limit", "data.office_limit", "data.tile_limit"}
    sizes |= {f"{step}.{what}" for step in TRAININGS for what in ("epochs", "batch_size")}
    assert {name for name in DEMO if DEMO[name] != smoke[name]} <= sizes
    assert smoke["model_scale"] < 1 == DEMO["model_scale"]
    assert all(smoke[f"{step}.epochs"] <= DEMO[f"{step}.epochs"] for step in TRAININGS)
    assert min(smoke[f"data.{what}_limit"] for what in ("pool", "office", "tile")) > 0
