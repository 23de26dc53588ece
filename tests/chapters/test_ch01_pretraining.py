"""Chapter 1: collapse exactly where the numbers say so, neighbours by brute force, views and sentences."""

import dataclasses

import numpy as np
import pytest
import torch

from hw1lib import profiles
from hw1lib.chapters import ch01_pretraining
from hw1lib.loops import augment
from hw1lib.metrics import collapse
from tests.chapters.made import counted, pictures


def test_nearest_neighbours_by_brute_force():
    features = np.random.default_rng(0).normal(size=(30, 5)) * np.linspace(0.1, 9, 30)[:, None]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for query, rows in zip((4, 0, 29), ch01_pretraining.nearest(features, [4, 0, 29], 6), strict=True):
        others = [n for n in np.argsort(-(unit @ unit[query]), kind="stable") if n != query]
        assert rows.tolist() == others[:6]


def test_views_and_neighbours_are_drawn_beside_their_images():
    images = torch.randint(0, 256, (9, 3, 6, 6), generator=torch.manual_seed(0)).to(torch.uint8)
    drawn = pictures(ch01_pretraining.views(images, images / 255, 1 - images / 255))
    assert np.array_equal(drawn, torch.cat([images, images, 255 - images]).permute(0, 2, 3, 1))
    nearest = {"trained": np.array([[1, 2], [3, 4]]), "random": np.array([[5, 6], [7, 8]])}
    drawn = pictures(ch01_pretraining.neighbours(images, [0, 8], nearest))
    assert np.array_equal(drawn, images[[0, 1, 2, 0, 5, 6, 8, 3, 4, 8, 7, 8]].permute(0, 2, 3, 1))


def test_augmentations_have_a_probability_per_view():
    views = augment.two_views(32, profiles.get("demo").pretrain.model_copy(update={"views": "byol"}), True)
    table = ch01_pretraining.augmentations(*views).set_index("augmentation")
    assert list(table) == ["probability in view 1", "probability in view 2", "strength"]
    assert table.loc["rotation"].tolist()[:2] == ["0.75", "0.75"]
    assert not table["probability in view 1"].equals(table["probability in view 2"])
    assert "probability" in ch01_pretraining.augmentations(views[0])
    assert list(ch01_pretraining.augmentations(augment.original(32))) == ["augmentation"]


def test_queries_are_of_different_classes():
    assert ch01_pretraining.queries(counted([-1, 0, 0, 1, 2], "abc"), 2) == [1, 4]
    unlabelled = dataclasses.replace(counted([0] * 9, "a"), labels=None)
    assert ch01_pretraining.queries(unlabelled, 3) == [0, 4, 8]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"one_pass": False}, "byol-pytorch's own"), ({"use_momentum": False}, "Without momentum"),
     ({"use_momentum": True, "moving_average_decay": 0.97}, "from 0.97 to 1")],
)  # fmt: skip
def test_the_forward_pass_is_that_of_the_settings(changes, words):
    settings = profiles.get("demo").pretrain.model_copy(update={"one_pass": True} | changes)
    assert words in ch01_pretraining.forward(settings)


@pytest.mark.parametrize(("spread", "rank"), [(0.0, 0.0), (0.0199, 90.0), (0.02, 2.0), (0.5, 1.99), (0.5, 90.0)])
@pytest.mark.parametrize("knn", [None, 0.4321])
def test_collapse_is_reported_exactly_where_it_happened(spread, rank, knn):
    """The probe is mentioned only if it was measured: a pool without labels has none."""
    metrics, before = {"loss": 1.2, "deviation": spread, "effective_rank": rank}, {"deviation": 0.05}
    before |= {"effective_rank": 12.0, "knn": 0.25}
    metrics |= {"knn": knn, "queries": 200} if knn else {}
    collapsed = collapse.collapsed(metrics)
    text = ch01_pretraining.collapse(metrics | {"before": before, "collapsed": collapsed})
    assert ("**has collapsed**" in text) == collapsed == ("has not collapsed" not in text)
    assert f"is {spread:.2f} (0.05 before training" in text and f"is {rank:.0f} (12 before training" in text
    assert ("43.2 % of 200 pool images correctly (25.0 % before training)" in text) == ("k-NN" in text) == bool(knn)


@pytest.mark.parametrize(
    ("metrics", "origin"),
    [({"source": "pool", "images": 5977, "classes": 8}, "trained in this run on the pool's 5,977 images"),
     ({"source": "file", "file": "pretrain_model_SL.pt"}, "with the data: pretrain_model_SL.pt."),
     ({"source": "imagenet", "file": "resnet50.pth"}, "**Not allowed by the course:**")],
)  # fmt: skip
def test_the_origin_of_the_supervised_backbone(metrics, origin):
    assert origin in ch01_pretraining.supervised(metrics)
