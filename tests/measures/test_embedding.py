"""PCA and t-SNE: one frame, honest numbers, the same to the bit."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from hw1lib import paths
from hw1lib.measures import embedding

LABELS = np.arange(60) % 3


def activations(spread, seed=0, features=12):
    """Three clusters, `spread` wide, that are 10 apart."""
    noise = np.random.default_rng(seed).standard_normal((60, features))
    return (10 * np.eye(3, features)[LABELS] + spread * noise).astype(np.float32)


FIRST, LAST = activations(8.0), activations(0.5, 1)  # from loose clusters to dense ones, as training should
BOTH = np.concatenate([FIRST, LAST]).astype(np.float64)


@pytest.fixture(scope="module")
def projected():
    return embedding.project(FIRST, LAST, LABELS, 10.0, 0)


def joined(plane, method):
    return np.concatenate([plane[f"{method}_first"], plane[f"{method}_last"]])


def test_both_epochs_share_one_pca_frame(projected):
    """Fitted on both together: a distance means the same in both pictures."""
    plane, numbers = projected
    found = joined(plane, "pca")
    np.testing.assert_allclose(found, PCA(2, svd_solver="full").fit(BOTH).transform(BOTH), atol=1e-9)
    assert numbers["pca_variance"] == pytest.approx(found.var(axis=0).sum() / BOTH.var(axis=0).sum())


def test_tsne_lays_both_epochs_out_at_once_from_their_pca(projected, monkeypatch):
    """Small enough for t-SNE to move it: the first axis has a standard deviation of 1e-4."""
    seen = []

    class Noted(embedding.TSNE):
        def fit_transform(self, values):
            seen.append((self.init, self.random_state, self.perplexity))
            return super().fit_transform(values)

    monkeypatch.setattr(embedding, "TSNE", Noted)
    start = joined(projected[0], "pca")
    with threadpool_limits(1):
        flat = embedding.tsne(BOTH, start, 10.0, 0)
    assert np.array_equal(flat, joined(projected[0], "tsne"))
    ((init, seed, perplexity),) = seen
    np.testing.assert_allclose(init, start / start[:, 0].std() * 1e-4)
    assert (seed, perplexity) == (0, 10.0)


def test_what_did_not_move_stays_where_it_was():
    """One layout for both epochs: a class that training leaves alone keeps its place."""
    last = LAST.copy()
    last[LABELS == 2] += 30 * np.eye(12, dtype=np.float32)[5]
    plane, _ = embedding.project(LAST, last, LABELS, 10.0, 0)
    moved = np.linalg.norm(plane["tsne_last"] - plane["tsne_first"], axis=1)
    assert np.median(moved[LABELS == 2]) > 5 * np.median(moved[LABELS != 2])
    still = LABELS != 2
    np.testing.assert_allclose(plane["pca_first"][still], plane["pca_last"][still], atol=1e-9)


def test_denser_clusters_have_higher_numbers(projected):
    """Both of the activations themselves; trustworthiness of their layout."""
    plane, numbers = projected
    assert numbers["purity_last"] == 1 > numbers["purity_first"]
    assert numbers["silhouette_last"] > 0.7 > numbers["silhouette_first"]
    for epoch, values in (("first", FIRST), ("last", LAST)):
        values = values.astype(np.float64)
        assert numbers[f"silhouette_{epoch}"] == pytest.approx(silhouette_score(values, LABELS))
        assert numbers[f"purity_{epoch}"] == embedding.purity(values, LABELS, 10)
        flat = plane[f"tsne_{epoch}"]
        assert numbers[f"trustworthiness_{epoch}"] == pytest.approx(trustworthiness(values, flat, n_neighbors=10))
    assert embedding.purity(plane["tsne_last"], LABELS, 5) == 1


ALONE = """
import hashlib, json
import numpy as np
from hw1lib.measures import embedding
random = np.random.default_rng(0)
first, last = random.standard_normal((2, 120, 256)).astype(np.float32)
plane, numbers = embedding.project(first, last, np.arange(120) % 3, 10.0, 0)
digest = {name: hashlib.sha256(points.tobytes()).hexdigest() for name, points in plane.items()}
print(json.dumps([digest, numbers]))
"""


@pytest.mark.slow
def test_the_same_to_the_bit_in_processes_with_other_threads():
    """Large enough for a library to share it out, and limited from its start."""
    said = set()
    for threads in ("1", "2"):
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        command = [sys.executable, "-c", ALONE]
        said.add(
            subprocess.run(command, env=os.environ | limits, cwd=paths.ROOT, stdout=-1, text=True, check=True).stdout
        )
    assert len(said) == 1 and len(json.loads(said.pop())[0]) == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_to_the_bit_for_any_number_of_threads(projected, threads):
    with threadpool_limits(threads):
        plane, numbers = embedding.project(FIRST, LAST, LABELS, 10.0, 0)
    assert numbers == projected[1] and all(np.array_equal(plane[name], projected[0][name]) for name in plane)


def test_purity_by_brute_force():
    random = np.random.default_rng(0)
    values, labels = random.standard_normal((40, 5)), random.integers(0, 4, 40)
    parts = []
    for row in range(40):
        distances = np.linalg.norm(values - values[row], axis=1)
        distances[row] = np.inf  # an image is no neighbour of its own
        parts.append((labels[np.argsort(distances)[:7]] == labels[row]).mean())
    assert embedding.purity(values, labels, 7) == pytest.approx(np.mean(parts))


@pytest.mark.parametrize("count", [6, 9, 25])
def test_a_perplexity_too_high_for_the_images_is_lowered(count):
    values = activations(1.0)[:count]
    plane, _ = embedding.project(values, values, LABELS[:count], 30.0, 0)
    assert plane["tsne_last"].shape == (count, 2) and np.isfinite(plane["tsne_last"]).all()


def test_activations_that_all_died_are_no_fault():
    """As a ReLU layer's may: then nothing is apart from anything."""
    with np.errstate(invalid="ignore"):
        plane, numbers = embedding.project(np.zeros((60, 12), np.float32), activations(1.0), LABELS, 10.0, 0)
    assert numbers["silhouette_first"] == 0 < numbers["silhouette_last"]
    assert all(np.isfinite(points).all() for points in plane.values())
