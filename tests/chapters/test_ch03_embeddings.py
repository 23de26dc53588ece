"""Chapter 3: scatter plots at their extremes, and sentences that follow the numbers."""

import numpy as np
import pytest

from hw1lib.chapters import ch03_embeddings
from tests.chapters.made import assert_drawn, classes


@pytest.mark.parametrize(("count", "points"), [(1, 5), (10, 60), (65, 130)])
def test_every_point_is_drawn_and_each_class_looks_different(count, points):
    random, labels = np.random.default_rng(0), np.arange(points) % count
    planes = {title: random.random((points, 2)) for title in ("first", "last")}
    figure = ch03_embeddings.scatter(planes, labels, classes(count))
    for axis in figure.axes:
        assert sum(len(group.get_offsets()) for group in axis.collections) == points
        looks = {(*g.get_facecolor()[0], g.get_paths()[0].vertices.tobytes()) for g in axis.collections}
        assert len(looks) == count
    assert_drawn(figure)


def test_an_outlier_does_not_shrink_the_rest():
    xy = np.random.default_rng(0).random((1000, 2))
    xy[0] = 1e6, -1e6
    axis = ch03_embeddings.scatter({"a": xy}, np.zeros(1000, int), classes(1)).axes[0]
    assert axis.get_xlim()[1] < 1.2 and axis.get_ylim()[0] > -0.2


def test_explained_variance_is_cumulative():
    figure = ch03_embeddings.explained_variance({"a": np.array([6.0, 3, 1]), "b": np.linspace(9, 1, 50)}, limit=30)
    short, long = figure.axes[0].lines
    assert short.get_ydata() == pytest.approx([0.6, 0.9, 1.0]) and len(long.get_ydata()) == 30
    assert_drawn(figure)


def measures(**changes):
    return {
        "silhouette_first": 0.1, "silhouette_last": 0.2, "purity_first": 0.3, "purity_last": 0.4, "pca_variance": 0.5,
        "trustworthiness_first": 0.9, "trustworthiness_last": 0.95, "purity_chance": 0.125,
    } | changes  # fmt: skip


@pytest.mark.parametrize("gone", [("silhouette",), ("purity", "trustworthiness"), ("silhouette", "purity", "pca"), ()])
def test_what_was_not_measured_is_an_empty_cell_and_a_sentence(gone):
    values = {name: None if name.startswith(gone or ("x",)) else value for name, value in measures().items()}
    text = ch03_embeddings.in_words(values, "E")
    assert "nan" not in text and "None" not in text
    assert ("silhouette was not measured" in text) == ("silhouette" in gone)
    assert ("neighbours were not measured" in text) == ("purity" in gone) and ("none of the" in text) == ("pca" in gone)
    table = ch03_embeddings.table(values).set_index("measure")
    assert all(table.loc[name, ["first", "last"]].isna().all() == (name in gone) for name in table.index)


@pytest.mark.parametrize("change", [-0.2, -0.002, 0.0, 0.2])
def test_classes_are_better_separated_only_if_the_silhouette_rises(change):
    text = ch03_embeddings.in_words(measures(silhouette_last=0.1 + change, purity_last=0.3 + change), "E")
    assert ("not denser" in text) == (change <= 0) and f"from 0.100 to {0.1 + change:.3f}" in text
    assert f"from 30.0 % to {30 + 100 * change:.1f} % (12.5 % by chance)" in text and "50.0 % of the variance" in text
