"""Embeddings: one frame for both epochs, and words that follow the numbers."""

import numpy as np
import pytest

from hw1lib.chapters import ch03_embeddings
from tests.chapters.made import assert_drawn, classes


@pytest.mark.parametrize(("count", "points"), [(2, 2), (10, 60), (65, 130)])
@pytest.mark.parametrize("panels", [("first",), ("first", "last")])
def test_every_point_is_drawn_in_its_classes_colour(count, points, panels):
    random, labels = np.random.default_rng(0), np.arange(points) % count
    planes = {title: place * 5 + random.random((points, 2)) for place, title in enumerate(panels)}
    figure = ch03_embeddings.planes(planes, labels, classes(count))
    for axis, (title, xy) in zip(figure.axes, planes.items(), strict=True):
        groups, drawn = axis.collections, np.zeros_like(xy)
        for number, group in enumerate(groups):
            drawn[labels == number] = group.get_offsets()
        inner = (xy > np.sort(xy, axis=0)[1]) & (xy < np.sort(xy, axis=0)[-2])
        assert np.allclose(drawn[inner], xy[inner]) and np.abs(drawn - xy).max() < 0.1
        assert axis.get_title() == title and [g.get_label() for g in groups] == list(classes(count))
        assert len({(*g.get_facecolor()[0], g.get_paths()[0].vertices.tobytes()) for g in groups}) == count
        limits = np.array([axis.get_xlim(), axis.get_ylim()])
        assert (limits[:, 0] < drawn.min(axis=0)).all() and (limits[:, 1] > drawn.max(axis=0)).all()
    assert_drawn(figure)


def test_a_stray_point_does_not_shrink_the_rest():
    """It is moved to the edge: of 1,000 points, five on each side of an axis may be."""
    xy = np.random.default_rng(0).random((1000, 2))
    xy[0] = 1e6, -1e6
    axis = ch03_embeddings.planes({"a": xy}, np.zeros(1000, int), classes(1)).axes[0]
    drawn = np.asarray(axis.collections[0].get_offsets())
    assert axis.get_xlim()[1] < 1.2 and axis.get_ylim()[0] > -0.2 and (drawn != xy).sum(axis=0).tolist() == [10, 10]
    assert drawn[0].tolist() == [drawn[:, 0].max(), drawn[:, 1].min()]


def test_components_hold_the_variance_together():
    values = {"first": np.array([6.0, 3, 1]), "last": np.linspace(9, 1, 50)}
    figure = ch03_embeddings.explained(values, most=30)
    first, last = figure.axes[0].lines
    assert first.get_ydata() == pytest.approx([0.6, 0.9, 1.0]) and first.get_xdata().tolist() == [1, 2, 3]
    assert len(last.get_ydata()) == 30 and last.get_ydata()[-1] < 1
    assert_drawn(figure)


def numbers(**changes):
    return {
        "silhouette_first": 0.1, "silhouette_last": 0.2, "purity_first": 0.3, "purity_last": 0.4, "pca_variance": 0.5,
        "trustworthiness_first": 0.9, "trustworthiness_last": 0.95, "purity_chance": 0.125,
    } | changes  # fmt: skip


@pytest.mark.parametrize("gone", [("silhouette",), ("purity", "trustworthiness"), ("silhouette", "purity", "pca"), ()])
def test_what_was_not_measured_is_said_and_its_cell_is_empty(gone):
    values = {name: None if name.startswith(gone or ("x",)) else value for name, value in numbers().items()}
    text = ch03_embeddings.in_words(values, "E")
    assert "nan" not in text and "None" not in text
    assert ("silhouette was not measured" in text) == ("silhouette" in gone)
    assert ("too few images" in text) == ("purity" in gone) and ("none of the variance" in text) == ("pca" in gone)
    table = ch03_embeddings.table(values).set_index("measure")
    assert all(table.loc[name, ["first", "last"]].isna().all() == (name in gone) for name in table.index)


@pytest.mark.parametrize(("change", "word"), [(-0.2, "Fewer"), (-0.002, "Fewer"), (0.0, "As many"), (0.2, "More")])
def test_words_follow_the_numbers(change, word):
    """Denser only where the silhouette rises, more neighbours only where the purity does."""
    text = ch03_embeddings.in_words(numbers(silhouette_last=0.1 + change, purity_last=0.3 + change), "E")
    assert ("not denser" in text) == (change <= 0) and f"from 0.100 to {0.1 + change:.3f}" in text
    assert (
        f"{word} of an" in text
        and f"{30 + 100 * change:.1f} % after 30.0 %; 12.5 % by chance" in text
        and "setting E" in text
    )
    assert "50.0 % of the variance" in text and "0.900 and 0.950" in text
