"""Profiles: dotted replacement, its errors, and what the four profiles promise."""

import dataclasses
import json
import typing

import pytest

from hw1lib import profiles, settings
from hw1lib.errors import UserError
from tests.settings import leaves, other


def as_text(value):
    return ",".join(value) if isinstance(value, tuple) else str(value)


def kinds(part=settings.Profile, prefix=""):
    """Dotted name -> declared type of every setting."""
    found = {}
    for name, kind in typing.get_type_hints(part).items():
        inside = dataclasses.is_dataclass(kind)
        found |= kinds(kind, f"{prefix}{name}.") if inside else {prefix + name: kind}
    return found


NAMES = [name for name, _ in leaves(profiles.get("demo"))]


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_every_setting_survives_text(name):
    profile = profiles.get(name)
    texts = {dotted: as_text(value) for dotted, value in leaves(profile)}
    blank = dataclasses.replace(settings.Profile(name, profile.about), ours=profile.ours, needs_data=profile.needs_data)
    assert blank != profile  # so that the text had something to say
    for dotted, value in texts.items():
        blank = settings.replaced(blank, dotted, value)
    assert blank == profile


@pytest.mark.parametrize("dotted", NAMES)
def test_replacing_one_setting_keeps_all_others(dotted):
    before = dict(leaves(profiles.get("demo")))
    wanted = other(dotted, before[dotted])
    after = dict(leaves(profiles.get("demo", {dotted: as_text(wanted)})))
    assert after == before | {dotted: wanted}
    assert dict(leaves(profiles.get("demo"))) == before  # the profile itself stays


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_every_value_has_its_declared_type(name):
    """Else a setting that is set to what it is gives another key: JSON tells 1 from 1.0."""
    declared = kinds()
    wrong = {
        dotted: value
        for dotted, value in leaves(profiles.get(name))
        if type(value) is not (typing.get_origin(declared[dotted]) or declared[dotted])
    }
    assert not wrong


@pytest.mark.parametrize("dotted", NAMES)
def test_json_values_give_what_text_gives(dotted):
    value = other(dotted, dict(leaves(profiles.get("demo")))[dotted])
    by_json = profiles.get("demo", {dotted: json.loads(json.dumps(value))})
    assert by_json == profiles.get("demo", {dotted: as_text(value)})


def test_later_settings_join_earlier_ones():
    both = profiles.get("seed", {"finetune.lr": 0.5, "finetune.epochs": "7"})
    assert both.finetune == dataclasses.replace(profiles.get("seed").finetune, lr=0.5, epochs=7)


@pytest.mark.parametrize(
    "dotted",
    [
        "nonsense",
        "pretrain.nonsense",
        "pretrain.epochs.more",
        "pretrain",
        "",
        ".",
        "pretrain.",
        "Pretrain.epochs",
        "name",
        "needs_data",
        "ours",
        "__class__",
        "data.__dict__",
    ],
)
def test_a_name_that_is_no_setting_is_named(dotted):
    with pytest.raises(UserError) as caught:
        profiles.get("demo", {dotted: 1})
    assert repr(dotted) in str(caught.value)


def test_an_unknown_name_comes_with_its_neighbours():
    with pytest.raises(UserError, match=r"\bepochs\b.*\blr\b"):
        profiles.get("demo", {"finetune.learning_rate": 1})


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("pretrain.epochs", "many"),
        ("pretrain.epochs", "2.5"),
        ("pretrain.epochs", 2.5),
        ("pretrain.epochs", True),
        ("pretrain.epochs", ""),
        ("pretrain.epochs", None),
        ("pretrain.epochs", [1]),
        ("finetune.lr", "fast"),
        ("finetune.lr", "0,1"),
        ("finetune.lr", False),
        ("finetune.lr", {}),
        ("data.overhead", "maybe"),
        ("data.overhead", 2),
        ("data.overhead", None),
        ("seed", "one"),
        ("everything.images", 5),
        ("segmentation.stage_images", None),
    ],
)
def test_a_value_of_the_wrong_type_is_named(dotted, value):
    with pytest.raises(UserError, match=dotted.replace(".", r"\.")):
        profiles.get("demo", {dotted: value})


def test_an_unknown_profile_comes_with_the_known_ones():
    with pytest.raises(UserError) as caught:
        profiles.get("dmeo")
    assert all(word in str(caught.value) for word in ("dmeo", *profiles.PROFILES))


def test_tuples_lose_the_spaces_of_their_text():
    assert profiles.get("demo", {"everything.images": "0013, 0062"}).everything.images == ("0013", "0062")


def test_smoke_takes_the_demos_code_path():
    """Only sizes differ: every choice by name or yes and no is the demo's."""
    demo, smoke = dict(leaves(profiles.get("demo"))), dict(leaves(profiles.get("smoke")))
    differing = {name for name in demo if demo[name] != smoke[name]}
    sizes = {
        "model_scale",
        "data.pool_limit",
        "data.office_limit",
        "data.tile_limit",
        "pretrain.projection_hidden_size",
        "embed.perplexity",
        "segmentation.stage_images",
        "everything.points_per_side",
    }
    steps = ("pretrain", "supervised", "finetune", *("fcn32s", "lraspp", "deeplabv3"))
    sizes |= {f"{step}.{what}" for step in steps for what in ("epochs", "batch_size")}
    assert differing <= sizes


def test_smoke_does_less_than_the_demo():
    demo, smoke = profiles.get("demo"), profiles.get("smoke")
    assert smoke.model_scale < 1 == demo.model_scale
    for step in ("pretrain", "supervised", "finetune", *("fcn32s", "lraspp", "deeplabv3")):
        assert getattr(smoke, step).epochs <= getattr(demo, step).epochs
    limits = (smoke.data.pool_limit, smoke.data.office_limit, smoke.data.tile_limit)
    assert min(limits) > 0


def test_seed_has_the_values_of_the_original_report():
    seed = profiles.get("seed")
    for step in (seed.pretrain, seed.supervised):
        assert (step.batch_size, step.epochs, step.optimizer, step.lr) == (64, 10, "adam", 1e-3)
        assert (step.weight_decay, step.schedule, step.warmup_epochs) == (0, "constant", 0)
        assert step.augmentation == "original"
    tuned = seed.finetune
    assert (tuned.epochs, tuned.batch_size, tuned.lr, tuned.weight_decay) == (200, 128, 1e-4, 1e-4)
    assert (tuned.hidden, tuned.dropout) == (256, 0.5)
    assert tuned.augment_frozen and not tuned.standardise  # the head alone, as it was
    assert tuned.augmentation == "original"
    assert not seed.pretrain.one_pass  # the package's own forward
    assert not seed.pretrain.hold_out and not seed.pretrain.zero_init_residual
    assert not seed.pretrain.use_momentum  # "turn off momentum in the target encoder"
    assert seed.data.image_size == 128 and not seed.data.overhead
    assert seed.data.pool_limit == seed.data.office_limit == seed.data.tile_limit == 0
    assert seed.segmentation.stage_images == ("0013", "0062", "0104")
    assert seed.segmentation.improved == "deeplabv3"
    assert seed.model_scale == 1 and seed.needs_data


@pytest.mark.parametrize("name", ("fcn32s", "lraspp", "deeplabv3"))
def test_seed_trains_segmenters_without_anything_of_ours(name):
    """Tiles as they are, plain cross-entropy, one network, one look."""
    plain = getattr(profiles.get("seed"), name)
    assert (plain.optimizer, plain.lr, plain.batch_size, plain.epochs) == ("adam", 1e-4, 8, 50)
    assert plain.pretrained and plain.augmentation == "none" and plain.loss == "cross_entropy"
    assert (plain.crop, plain.enlarge, plain.balance, plain.average) == (0, 1, 0, 0)
    assert not plain.tta and plain.norm_momentum == 0


def test_a_group_of_settings_is_replaced_like_a_profile():
    group = settings.replaced(settings.Segment(), "average", "0.99")
    assert group == settings.Segment(average=0.99)
    with pytest.raises(UserError, match="average=2"):
        settings.replaced(group, "average", 2)


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_every_value_of_a_profile_is_one_that_may_be_set(name):
    """Ranges are checked for what is set; what stands in a profile must keep to them, too."""
    profile = profiles.get(name)
    for dotted, value in leaves(profile):
        assert settings.replaced(profile, dotted, value) == profile


def test_only_profiles_for_real_data_need_it():
    needy = {name for name, profile in profiles.PROFILES.items() if profile.needs_data}
    assert needy == {"seed", "strong"}


@pytest.mark.parametrize(
    "setting",
    [
        # These would end in a traceback, some after minutes …
        "seed=-1",
        "data.pool_limit=-5",
        "data.image_size=0",
        "pretrain.epochs=0",
        "finetune.epochs=-1",
        "finetune.batch_size=0",
        "finetune.batch_size=-4",
        "finetune.lr=-1",
        "finetune.hidden=0",
        "finetune.dropout=2",
        "controls.knn=0",
        "embed.perplexity=0",
        "lraspp.epochs=0",
        "lraspp.crop=-8",
        "everything.segments=-1",
        "everything.points_per_side=0",
        "everything.points_per_batch=0",
        # … and these would be taken for something else without a word.
        "data.tile_limit=-1",
        "model_scale=0",
        "model_scale=-1",
        "lraspp.crop_scale=-1",
        "finetune.lr=nan",
        "pretrain.warmup_epochs=-1",
        "pretrain.augmentation=bached",
        "pretrain.augmentation=none",
        "fcn32s.augmentation=original",
        "supervised.source=pol",
        "embed.setting=knn",
        "segmentation.improved=unet",
        "pretrain.views=simclr",
        "seeds=0",
        "seeds=-1",
        "seeds=1.5",
        "pretrain.crop_scale=0",
        "pretrain.crop_scale=1.1",
        "pretrain.zero_init_residual=maybe",
        "pretrain.moving_average_decay=1.1",
        "lraspp.enlarge=0",
        "lraspp.enlarge=9",
        "lraspp.enlarge=1.5",
        "lraspp.jitter=-0.1",
        "lraspp.jitter=1.1",
        "lraspp.loss=iou",
        "lraspp.balance=-1",
        "lraspp.balance=1.1",
        "lraspp.average=1",
        "lraspp.average=-0.1",
        "lraspp.average=nan",
        "lraspp.tta=both",
        "lraspp.crop_scale=0",
        "everything.crop_overlap_ratio=1.5",
        "everything.crop_n_layers=-1",
        "everything.crop_n_points_downscale_factor=0",
        "everything.min_mask_region_area=-1",
        "everything.refine=unet",
    ],
)
def test_a_value_that_can_mean_nothing_is_named(setting):
    dotted, _, value = setting.partition("=")
    with pytest.raises(UserError, match=dotted.replace(".", r"\.")):
        profiles.get("demo", {dotted: value})
