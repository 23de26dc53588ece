"""PCA and t-SNE share one frame and are reproducible to the bit; their metrics equal scikit-learn's."""

import json

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from hw1lib.metrics import projection

LABELS = np.arange(60) % 3


def activations(spread, seed=0, features=12):
    """Draw three clusters at a distance of 10."""
    noise = np.random.default_rng(seed).standard_normal((60, features))
    return (10 * np.eye(3, features)[LABELS] + spread * noise).astype(np.float32)


FIRST, LAST = activations(8.0), activations(0.5, 1)  # loose and dense clusters
BOTH = np.concatenate([FIRST, LAST]).astype(np.float64)


@pytest.fixture(scope="module")
def projected():
    return projection.project(FIRST, LAST, LABELS, 10.0, 0)


def joined(plane, method):
    return np.concatenate([plane[f"{method}_first"], plane[f"{method}_last"]])


def test_both_epochs_share_one_pca_frame(projected):
    """PCA is fitted on both together."""
    plane, numbers = projected
    points = joined(plane, "pca")
    np.testing.assert_allclose(points, PCA(2, svd_solver="full").fit(BOTH).transform(BOTH), atol=1e-9)
    assert numbers["pca_variance"] == pytest.approx(points.var(axis=0).sum() / BOTH.var(axis=0).sum())


def test_the_projection_does_not_depend_on_the_number_of_threads(projected):
    with threadpool_limits(2):
        plane, numbers = projection.project(FIRST, LAST, LABELS, 10.0, 0)
    assert numbers == projected[1] and all(np.array_equal(plane[name], projected[0][name]) for name in plane)


def test_tsne_embeds_both_epochs_together_from_their_pca(projected):
    """The start is scaled down so that t-SNE can move it."""
    start = joined(projected[0], "pca")
    start = start / start[:, 0].std() * 1e-4
    with threadpool_limits(1):
        expected = TSNE(perplexity=10.0, init=start, random_state=0, n_jobs=1).fit_transform(BOTH)
    assert np.array_equal(joined(projected[0], "tsne"), expected)


def test_denser_clusters_have_higher_numbers(projected):
    """Silhouette and purity are of the activations, trustworthiness of their embedding."""
    plane, numbers = projected
    assert numbers["purity_last"] == 1 > numbers["purity_first"]
    assert numbers["silhouette_last"] > 0.7 > numbers["silhouette_first"]
    for epoch, values in (("first", FIRST), ("last", LAST)):
        values = values.astype(np.float64)
        assert numbers[f"silhouette_{epoch}"] == pytest.approx(silhouette_score(values, LABELS))
        assert numbers[f"purity_{epoch}"] == projection.purity(values, LABELS, 10)
        flat = plane[f"tsne_{epoch}"]
        assert numbers[f"trustworthiness_{epoch}"] == pytest.approx(trustworthiness(values, flat, n_neighbors=10))
    assert projection.purity(plane["tsne_last"], LABELS, 5) == 1


def test_purity_by_brute_force():
    random = np.random.default_rng(0)
    values, labels = random.standard_normal((40, 5)), random.integers(0, 4, 40)
    parts = []
    for row in range(40):
        distances = np.linalg.norm(values - values[row], axis=1)
        distances[row] = np.inf  # no image is its own neighbour
        parts.append((labels[np.argsort(distances)[:7]] == labels[row]).mean())
    assert projection.purity(values, labels, 7) == pytest.approx(np.mean(parts))


@pytest.mark.parametrize("labels", [[0, 1], [1, 1, 1], range(6), [0, 1, 1, 2, 2]])
@pytest.mark.parametrize("spread", [1.0, 0.0])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_numbers_that_few_images_cannot_have_are_none(labels, spread):
    """Two images, one class, one image per class, or equal activations; the result is JSON without NaN."""
    first, labels = spread * np.random.default_rng(0).random((len(labels), 5)), np.array(labels)
    plane, numbers = projection.project(first, first[::-1], labels, 10.0, 0)
    assert all(np.isfinite(points).all() and points.shape == (len(labels), 2) for points in plane.values())
    json.dumps(numbers, allow_nan=False)
    for epoch in ("first", "last"):
        measurable = 1 < len(set(labels.tolist())) < len(labels)
        assert (numbers[f"silhouette_{epoch}"] is not None) == measurable
        near = [numbers[f"{measure}_{epoch}"] is not None for measure in ("purity", "trustworthiness")]
        assert near == [len(labels) > 3] * 2
    assert (numbers["pca_variance"] is None) == (spread == 0)


def test_chance_is_the_mean_purity_of_shuffled_labels():
    random = np.random.default_rng(0)
    values, labels = random.random((40, 3)), np.arange(40) % 7 // 2
    purities = [projection.purity(values, random.permutation(labels), 5) for _ in range(100)]
    assert projection.chance(labels) == pytest.approx(np.mean(purities), abs=0.02)
