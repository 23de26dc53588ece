"""Pre-training: panels for what was measured, collapse said where the numbers say so, neighbours by brute force."""

import numpy as np
import pytest
import torch

from hw1lib import profiles
from hw1lib.chapters import ch01_pretraining
from hw1lib.metrics import collapse
from tests.chapters.made import assert_drawn, history, panels, pictures, texts

BEFORE = {"deviation": 0.05, "effective_rank": 3.0}
SETTINGS = profiles.get("demo").pretrain


def uint8(count, side=6):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.manual_seed(0)).to(torch.uint8)


def shown_as(images):
    """(B, 3, S, S) uint8 tensor as the arrays that pictures hold."""
    return images.permute(0, 2, 3, 1).numpy()


# --- pictures


@pytest.mark.parametrize("count", [1, 5])
def test_views_stand_below_their_images(count):
    images = uint8(count)
    figure = ch01_pretraining.views(images, images / 255, 1 - images / 255)
    assert [figure.axes[row * count].get_ylabel() for row in range(3)] == ["image", "view 1", "view 2"]
    assert np.array_equal(pictures(figure), shown_as(torch.cat([images, images, 255 - images])))
    assert_drawn(figure)


@pytest.mark.parametrize(
    ("labelled", "trained", "epochs"), [(True, True, 9), (True, False, 1), (False, True, 1), (False, False, 9)]
)
def test_curves_have_a_panel_for_what_was_measured(labelled, trained, epochs):
    """No probe without labels; no supervised loss where the backbone came from a file."""
    columns = {"knn": np.linspace(0.2, 0.6, epochs)} if labelled else {}
    table, own = history(epochs, **columns), history(epochs, loss=np.linspace(2, 1, epochs))
    figure = ch01_pretraining.curves(table, BEFORE | ({"knn": 0.3} if labelled else {}), own if trained else None)
    found = panels(figure)
    keys = {"self-supervised loss (0…8)": "loss", "k-NN probe inside the pool": "knn", "learning rate": "lr",
            "standard deviation × √d": "deviation", "effective rank": "effective_rank"}  # fmt: skip
    assert set(found) == {t for t, k in keys.items() if k in table} | ({"supervised loss"} if trained else set())
    for title, axis in found.items():
        values = own["loss"] if title == "supervised loss" else table[keys[title]]
        assert axis.lines[0].get_xdata().tolist() == [*range(1, epochs + 1)] and axis.get_ylim()[0] == 0
        assert axis.lines[0].get_ydata() == pytest.approx(values)
    assert_drawn(figure)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (2, 3)])
def test_spectra_are_the_parts_of_their_sum(shape):
    features = np.random.default_rng(0).normal(size=shape)
    figure = ch01_pretraining.spectra({"trained": features, "random": torch.tensor(features)})
    expected = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    for line in figure.axes[0].lines:
        assert line.get_ydata() == pytest.approx(expected / expected.sum(), abs=1e-6) and line.get_xdata()[0] == 1
    assert texts(figure.axes[0].get_legend().get_texts()) == ["trained", "random"]
    assert_drawn(figure)


# --- neighbours


def test_nearest_by_brute_force():
    features = np.random.default_rng(0).normal(size=(30, 5)) * np.linspace(0.1, 9, 30)[:, None]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for query, rows in zip((4, 0, 29), ch01_pretraining.nearest(features, [4, 0, 29], 6), strict=True):
        others = [n for n in np.argsort(-(unit @ unit[query]), kind="stable") if n != query]
        assert rows.tolist() == others[:6]


def test_neighbours_stand_beside_their_query_and_their_classes_are_counted():
    images, found = uint8(9), {"trained": np.array([[1, 2], [3, 4]]), "random": np.array([[5, 6], [7, 8]])}
    figure = ch01_pretraining.neighbours(images, [0, 8], found)
    assert np.array_equal(pictures(figure), shown_as(images)[[0, 1, 2, 0, 5, 6, 8, 3, 4, 8, 7, 8]])
    rows = [figure.axes[3 * row].get_ylabel() for row in range(4)]
    assert rows == ["trained (1)", "random (1)", "trained (2)", "random (2)"]
    labels = np.array([0, 0, 1, 2, 1, 3, 3, 3, 1])
    assert ch01_pretraining.same_class(labels, [0, 8], found) == {"trained": 0.5, "random": 0.25}


# --- tables and sentences


def test_the_forward_pass_is_the_one_that_runs():
    def text(**changes):
        return ch01_pretraining.forward(SETTINGS.model_copy(update=changes))

    assert "the package's own forward pass" in text(one_pass=False) and "our own" not in text(one_pass=False)
    averaged = text(one_pass=True, use_momentum=True, moving_average_decay=0.97)
    assert "from 0.97 to 1" in averaged and "SimSiam" not in averaged
    assert "Without momentum" in text(one_pass=True, use_momentum=False)


@pytest.mark.parametrize("rank", [0.0, 1.99, 2.0, 2.01, 90.0])
@pytest.mark.parametrize("spread", [0.0, 0.0199, 0.02, 0.0201, 0.5])
@pytest.mark.parametrize("knn", [None, 0.4321])
def test_collapse_is_said_exactly_where_the_numbers_say_so(spread, rank, knn):
    """And the probe is named only where it was asked: a pool without labels has none."""
    found, before = {"loss": 1.2, "deviation": spread, "effective_rank": rank}, BEFORE | {"effective_rank": 12.0}
    if knn:
        found, before = found | {"knn": knn, "queries": 200}, before | {"knn": 0.25}
    text = ch01_pretraining.collapse(found | {"before": before, "collapsed": collapse.collapsed(found)})
    fallen = spread < collapse.COLLAPSED or rank < collapse.LEAST_RANK
    assert ("**has collapsed**" in text) == fallen == ("has not collapsed" not in text)
    assert f"is {spread:.2f} (" in text and f"rank {rank:.0f} (" in text and "1.200 (from 0 to 8" in text
    assert "before training 0.05" in text and "before training 12" in text
    assert ("probe" in text) == ("gets 43.2 % of 200 images right, before training 25.0 %." in text) == bool(knn)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [({"source": "pool", "images": 5977, "classes": 8}, "trained here on the pool's 5,977 images and their 8 labels"),
     ({"source": "file", "file": "pretrain_model_SL.pt"}, "is the data's own pretrain_model_SL.pt."),
     ({"source": "imagenet", "file": "resnet50.pth"}, "**Not allowed by the course:**")],
)  # fmt: skip
def test_the_supervised_backbone_comes_from_where_it_comes(metrics, said):
    text = ch01_pretraining.supervised(metrics)
    assert said in text and "settings B and D" in text
    assert (metrics["source"] == "imagenet") == ("no answer" in text) and metrics.get("file", "pool") in text
