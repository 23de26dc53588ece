"""Chapter 1: figures of what was measured, collapse exactly where the numbers say so, neighbours by brute force."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from hw1lib import profiles
from hw1lib.chapters import ch01_pretraining
from hw1lib.loops import augment
from hw1lib.metrics import collapse
from tests.chapters.made import assert_drawn, counted, pictures


def uint8(count, side=6):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.manual_seed(0)).to(torch.uint8)


def arrays(images):
    """(B, 3, S, S) tensor -> (B, S, S, 3) array."""
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("labelled", "trained", "epochs"), [(True, True, 9), (True, False, 1), (False, True, 1)])
def test_curves_have_a_panel_per_measured_quantity(labelled, trained, epochs):
    """A pool without labels has no probe; a backbone from a file has no supervised loss."""
    table = {"epoch": range(1, epochs + 1)} | dict.fromkeys(("loss", "lr", "deviation", "effective_rank"), 0.5)
    table = pd.DataFrame(table | ({"knn": 0.4} if labelled else {}))
    figure = ch01_pretraining.curves(table, {"deviation": 0.05, "knn": 0.3}, table if trained else None)
    assert sum(axis.get_visible() for axis in figure.axes) == 4 + labelled + trained
    assert_drawn(figure)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (2, 3)])
def test_spectra_are_shares_of_the_singular_values(shape):
    features = np.random.default_rng(0).normal(size=shape)
    figure = ch01_pretraining.spectra({"trained": features, "random": torch.tensor(features)})
    expected = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    for line in figure.axes[0].lines:
        assert line.get_ydata() == pytest.approx(expected / expected.sum(), abs=1e-6)
    assert_drawn(figure)


def test_nearest_neighbours_by_brute_force():
    features = np.random.default_rng(0).normal(size=(30, 5)) * np.linspace(0.1, 9, 30)[:, None]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for query, rows in zip((4, 0, 29), ch01_pretraining.nearest(features, [4, 0, 29], 6), strict=True):
        others = [n for n in np.argsort(-(unit @ unit[query]), kind="stable") if n != query]
        assert rows.tolist() == others[:6]


def test_views_and_neighbours_are_drawn_beside_their_images_and_compared_by_class():
    images, nearest = uint8(9), {"trained": np.array([[1, 2], [3, 4]]), "random": np.array([[5, 6], [7, 8]])}
    views = ch01_pretraining.views(images, images / 255, 1 - images / 255)
    assert np.array_equal(pictures(views), arrays(torch.cat([images, images, 255 - images])))
    figure = ch01_pretraining.neighbours(images, [0, 8], nearest)
    assert np.array_equal(pictures(figure), arrays(images)[[0, 1, 2, 0, 5, 6, 8, 3, 4, 8, 7, 8]])
    labels = np.array([0, 0, 1, 2, 1, 3, 3, 3, 1])
    assert ch01_pretraining.same_class(labels, [0, 8], nearest) == {"trained": 0.5, "random": 0.25}


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


def test_the_forward_pass_is_that_of_the_settings():
    def text(**changes):
        return ch01_pretraining.forward(profiles.get("demo").pretrain.model_copy(update=changes))

    assert "byol-pytorch's own" in text(one_pass=False)
    averaged = text(one_pass=True, use_momentum=True, moving_average_decay=0.97)
    assert "from 0.97 to 1" in averaged and "SimSiam" not in averaged
    assert "Without momentum" in text(one_pass=True, use_momentum=False)


@pytest.mark.parametrize("rank", [0.0, 1.99, 2.0, 90.0])
@pytest.mark.parametrize("spread", [0.0, 0.0199, 0.02, 0.5])
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
    [({"source": "pool", "images": 5977, "classes": 8}, "trained here on the pool's 5,977 images"),
     ({"source": "file", "file": "pretrain_model_SL.pt"}, "with the data: pretrain_model_SL.pt."),
     ({"source": "imagenet", "file": "resnet50.pth"}, "**Not allowed by the course:**")],
)  # fmt: skip
def test_the_origin_of_the_supervised_backbone(metrics, origin):
    text = ch01_pretraining.supervised(metrics)
    assert origin in text and (metrics["source"] == "imagenet") == ("no answer" in text)
