"""Chapter 3: sentences and cells follow what was measured, and say what was not."""

import numpy as np
import pytest

from hw1lib.chapters import ch03_embeddings
from tests.chapters.made import classes

MEASURES = {
    "silhouette_first": 0.1, "silhouette_last": 0.2, "purity_first": 0.3, "purity_last": 0.4, "pca_variance": 0.5,
    "trustworthiness_first": 0.9, "trustworthiness_last": 0.95, "purity_chance": 0.125,
}  # fmt: skip


def test_an_outlier_does_not_shrink_the_rest():
    xy = np.random.default_rng(0).random((1000, 2))
    xy[0] = 1e6, -1e6
    axis = ch03_embeddings.scatter({"a": xy}, np.zeros(1000, int), classes(1)).axes[0]
    assert axis.get_xlim()[1] < 1.2 and axis.get_ylim()[0] > -0.2


@pytest.mark.parametrize("gone", [("silhouette",), ("purity", "trustworthiness"), ("silhouette", "purity", "pca")])
def test_what_was_not_measured_is_an_empty_cell_and_a_sentence(gone):
    values = {name: None if name.startswith(gone) else value for name, value in MEASURES.items()}
    text = ch03_embeddings.in_words(values, "E")
    assert "nan" not in text and "None" not in text
    assert ("silhouette was not measured" in text) == ("silhouette" in gone)
    assert ("neighbours were not measured" in text) == ("purity" in gone) and ("none of the" in text) == ("pca" in gone)
    table = ch03_embeddings.table(values).set_index("measure")
    assert all(table.loc[name, ["first", "last"]].isna().all() == (name in gone) for name in table.index)


@pytest.mark.parametrize("change", [-0.002, 0.0, 0.2])
def test_classes_are_better_separated_only_if_the_silhouette_rises(change):
    text = ch03_embeddings.in_words(MEASURES | {"silhouette_last": 0.1 + change, "purity_last": 0.3 + change}, "E")
    assert ("do not become denser" in text) == (change <= 0) and f"from 0.100 to {0.1 + change:.3f}" in text
    assert f"from 30.0 % to {30 + 100 * change:.1f} % (12.5 % by chance)" in text and "50.0 % of the variance" in text
