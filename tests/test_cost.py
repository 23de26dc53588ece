"""What a profile costs: counts by hand, and what makes it dearer."""

import dataclasses
import tomllib

import pytest
import torch

from hw1lib import cost, paths, profiles
from hw1lib.chapters import original
from hw1lib.steps import graph, store
from hw1lib.data import layout

COUNTS = cost.Counts(pool=1000, train=60, val=20, tiles_train=8, tiles_validation=4, tile_size=64)
HIDDEN, PROJECTION = 32, 16
SMALL = {"model_scale": 0.125, "pretrain.projection_hidden_size": HIDDEN, "pretrain.projection_size": PROJECTION}
FC = 2048 * 1000  # multiply-adds of the layer that only byol-pytorch's call runs through


def profile(**settings):
    return profiles.get("smoke", SMALL | {k.replace("__", "."): v for k, v in settings.items()})


def flops(counts=COUNTS, **settings):
    return cost.flops(profile(**settings), counts)


def test_a_resnet50_at_224_pixels_has_the_papers_count():
    """4.09 billion multiply-adds (torchvision's table), each two operations."""
    assert cost._forward(1.0, 224) == pytest.approx(2 * 4.09e9, rel=0.02)


def test_the_steps_are_those_that_train_a_network(course_data):
    """Controls, projections and segmenters without a network cost next to nothing."""
    chosen = profile()
    made = graph.Steps(chosen, layout.find(course_data, chosen.data), store.Store("unused"), torch.device("cpu"))
    cheap = {"embed", "segment-colour", "everything"}
    names = [name for name, step in made.all.items() if step.trains and name not in cheap]
    expected = {name for name in names if not name.startswith("control-")}
    assert set(flops()) == expected


@pytest.mark.parametrize("factor", [2, 7])
def test_pretraining_grows_with_epochs_and_pool(factor):
    """Both ways of pre-training; nothing else grows with them."""
    counts = dataclasses.replace(COUNTS, tiles_train=0, tiles_validation=0)
    plain = flops(counts)
    for step, group in (("pretrain", "pretrain"), ("pretrain-supervised", "supervised")):
        more = flops(counts, **{f"{group}__epochs": factor * getattr(profile(), group).epochs})
        assert more == plain | {step: factor * plain[step]}
    pool = flops(dataclasses.replace(counts, pool=factor * COUNTS.pool))
    assert {n for n in plain if pool[n] != plain[n]} == {"pretrain", "pretrain-supervised"}
    assert all(pool[n] == factor * plain[n] for n in ("pretrain", "pretrain-supervised"))


def per_view(**settings):
    """Operations of one view of one image."""
    return cost._byol(profile(**settings)) / 2


def test_momentum_costs_one_forward_more():
    """The target's; SimSiam's projector has one layer more, which is trained."""
    forward = cost._forward(0.125, 32)
    target = forward + 2 * (FC + 2048 * HIDDEN + HIDDEN * PROJECTION)
    third_layer = 3 * 2 * HIDDEN * HIDDEN
    more = per_view(pretrain__use_momentum=True) - per_view()
    assert more == pytest.approx(target - third_layer, rel=1e-6)


def test_the_packages_own_forward_takes_each_view_twice():
    """Without momentum its target is the online network, run again."""
    forward = cost._forward(0.125, 32)
    again = forward + 2 * (FC + 2048 * HIDDEN + HIDDEN * HIDDEN + HIDDEN * PROJECTION)
    more = per_view(pretrain__one_pass=False) - per_view()
    assert more == pytest.approx(again, rel=1e-6)
    both = [per_view(pretrain__use_momentum=True, pretrain__one_pass=one) for one in (True, False)]
    assert both[0] == pytest.approx(both[1], rel=1e-6)  # with momentum there is nothing to spare


def test_a_step_of_pretraining_is_two_views_there_and_back():
    """Backward is twice forward, but for the first layer, which passes no gradient on."""
    forward = cost._forward(0.125, 32)
    assert 2.5 * forward < per_view() - 2 * FC < 3.1 * forward


def test_finetuning_by_hand():
    """Three passes for what is trained, one for what is only looked at."""
    forward, plain = cost._forward(0.125, 32), flops(finetune__epochs=5)
    for setting in "ABC":
        assert plain[f"finetune-{setting}"] == forward * 5 * (3 * 60 + 20)
    for setting in "DE":  # features are computed once
        assert plain[f"finetune-{setting}"] == forward * (60 + 20)


@pytest.mark.parametrize("augmented", [True, False])
def test_frozen_settings_cost_less(augmented):
    found = flops(finetune__epochs=5, finetune__augment_frozen=augmented)
    assert found["finetune-D"] == found["finetune-E"]
    assert found["finetune-D"] < found["finetune-A"] == found["finetune-B"] == found["finetune-C"]
    once = flops(finetune__epochs=5, finetune__augment_frozen=False)
    assert (found["finetune-E"] > once["finetune-E"]) == augmented


TILES = dataclasses.replace(COUNTS, pool=0)  # Problem 2 alone


@pytest.mark.parametrize(
    ("changes", "train", "validate", "turns"),
    [
        ({"crop": 0}, 64, 64, 0),
        ({"crop": 32}, 32, 64, 0),
        ({"crop": 32, "enlarge": 2}, 64, 128, 0),
        ({"crop": 0, "tta": True}, 64, 64, 8),
        ({"crop": 32, "tta": True, "enlarge": 2}, 64, 128, 8),
    ],
)
def test_segmentation_by_hand(changes, train, validate, turns):
    """Four epochs of three passes over eight tiles; validation of four, at last also turned.

    Args:
        train, validate: pixels a side that the network sees.
    """
    chosen = {"epochs": 4, "tta": False, "enlarge": 1} | changes
    found = flops(TILES, **{f"lraspp__{name}": value for name, value in chosen.items()})
    once = {side: cost._segmenter("lraspp", 0.125, side) for side in (train, validate)}
    expected = 4 * 3 * 8 * once[train] + (4 + turns) * 4 * once[validate]
    assert found["segment-lraspp"] == expected


def test_an_enlarged_tile_costs_what_a_larger_one_does():
    larger = dataclasses.replace(TILES, tile_size=128)
    plain = flops(larger, fcn32s__crop=64, fcn32s__enlarge=1)["segment-fcn32s"]
    assert flops(TILES, fcn32s__crop=32, fcn32s__enlarge=2)["segment-fcn32s"] == plain


def test_one_segmenters_settings_change_its_own_cost_alone():
    plain = flops(TILES)
    found = flops(TILES, lraspp__tta=False, lraspp__crop=32, lraspp__enlarge=1)
    assert found["segment-lraspp"] < plain["segment-lraspp"]
    assert {n for n in plain if found[n] != plain[n]} == {"segment-lraspp"}


def test_hours_by_hand():
    """40 TFLOP a second, for an hour."""
    assert cost.SUSTAINED == 40e12
    assert cost.hours(40e12 * 3600) == pytest.approx(1)
    assert cost.hours(0) == 0


def test_the_courses_counts_are_the_files():
    numbers = tomllib.loads(paths.ORIGINAL.read_text(encoding="utf-8"))
    one, two = numbers["problem1"]["course_data"], numbers["problem2"]["course_data"]
    found = cost.of_course(original.numbers())
    assert (found.pool, found.train, found.val) == (one["pool"], one["train"], one["validation"])
    assert (found.tiles_train, found.tiles_validation) == (two["train"], two["validation"])
    assert found == cost.Counts(38_400, 3_951, 406, 2_000, 257, 512)


def test_a_folder_is_counted_as_far_as_it_is_used(course_data, tmp_path):
    def counted(**limits):
        return cost.of_data(layout.find(course_data, profiles.Data(**limits)))

    assert counted() == cost.Counts(12, 12, 6, 4, 3, 32)
    assert counted(pool_limit=5, tile_limit=2) == cost.Counts(5, 12, 6, 2, 2, 32)
    (course_data / "p2_data").rename(tmp_path / "p2_data")
    assert dataclasses.astuple(counted())[:5] == (12, 12, 6, 0, 0)
    (course_data / "p1_data").rename(tmp_path / "p1_data")
    (tmp_path / "p2_data").rename(course_data / "p2_data")
    assert counted() == cost.Counts(0, 0, 0, 4, 3, 32)


def test_what_is_not_there_is_not_counted():
    """Without tiles there is no size of theirs either: `of_data` then says 1."""
    whole = flops()
    second = {n for n in whole if n.startswith("segment-")}
    no_tiles = dataclasses.replace(COUNTS, tiles_train=0, tiles_validation=0, tile_size=1)
    assert flops(no_tiles) == {n: v for n, v in whole.items() if n not in second}
    no_images = dataclasses.replace(COUNTS, pool=0, train=0, val=0)
    assert flops(no_images) == {n: whole[n] for n in second}


def test_counting_draws_nothing_and_keeps_nothing():
    """A plan before a run must not change the run."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    flops()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.empty(1).device.type == "cpu"
