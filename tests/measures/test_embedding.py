"""PCA and t-SNE: one frame, honest numbers, the same to the bit."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from hw1lib import paths
from hw1lib.measures import embedding

LABELS = np.arange(60) % 3


def activations(spread, seed=0, features=12):
    """Three clusters, `spread` wide, that are 10 apart."""
    random = np.random.default_rng(seed)
    centres = 10 * np.eye(3, features)
    values = centres[LABELS] + spread * random.standard_normal((60, features))
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def projected():
    """From loose clusters to dense ones, as training should."""
    return embedding.project(activations(8.0), activations(0.5, 1), LABELS, 10.0, 0)


def test_both_epochs_share_one_pca_frame(projected):
    """Fitted on both together: a distance means the same in both pictures."""
    plane, numbers = projected
    both = np.concatenate([activations(8.0), activations(0.5, 1)]).astype(np.float64)
    reference = PCA(2, svd_solver="full").fit(both)
    expected = reference.transform(both)
    found = np.concatenate([plane["pca_first"], plane["pca_last"]])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    variance = found.var(axis=0, ddof=1).sum() / both.var(axis=0, ddof=1).sum()
    assert numbers["pca_variance"] == pytest.approx(variance)


def nearest(points, count=10):
    """Each point's nearest others, as sets."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return [set(row) for row in distances.argsort(axis=1)[:, :count]]


def test_the_same_activations_lie_on_the_same_places():
    """Exactly with PCA; with t-SNE an image and its twin are the closest of neighbours."""
    same = activations(2.0)
    plane, numbers = embedding.project(same, same, LABELS, 10.0, 0)
    assert np.array_equal(plane["pca_first"], plane["pca_last"])
    both = np.concatenate([plane["tsne_first"], plane["tsne_last"]])
    twins = np.linalg.norm(plane["tsne_first"] - plane["tsne_last"], axis=1)
    assert np.median(twins) < 0.05 * both.std()
    shared = [
        len(a & b) / 10 for a, b in zip(nearest(plane["tsne_first"]), nearest(plane["tsne_last"]))
    ]
    assert np.mean(shared) > 0.8
    for name in ("silhouette", "purity"):
        assert numbers[f"{name}_first"] == numbers[f"{name}_last"]
    trust = [numbers[f"trustworthiness_{epoch}"] for epoch in ("first", "last")]
    assert trust[0] == pytest.approx(trust[1], abs=0.02)


def test_tsne_lays_both_epochs_out_at_once_from_their_pca(monkeypatch):
    """Small enough for t-SNE to move it: the first axis has a deviation of 1e-4."""
    seen = []

    class Noted(embedding.TSNE):
        def fit_transform(self, values):
            seen.append((self.init, values))
            return super().fit_transform(values)

    monkeypatch.setattr(embedding, "TSNE", Noted)
    first, last = activations(8.0), activations(0.5, 1)
    plane, _ = embedding.project(first, last, LABELS, 10.0, 0)
    ((start, values),) = seen
    assert np.array_equal(values, np.concatenate([first, last]).astype(np.float64))
    assert start[:, 0].std() == pytest.approx(1e-4)
    pca = np.concatenate([plane["pca_first"], plane["pca_last"]])
    np.testing.assert_allclose(start * pca[:, 0].std() / 1e-4, pca, atol=1e-9)


def test_what_did_not_move_stays_where_it_was():
    """One layout for both epochs: a class that training leaves alone keeps its place."""
    first = activations(0.5)
    last = first.copy()
    last[LABELS == 2] += 30 * np.eye(12, dtype=np.float32)[5]
    plane, _ = embedding.project(first, last, LABELS, 10.0, 0)
    moved = np.linalg.norm(plane["tsne_last"] - plane["tsne_first"], axis=1)
    assert np.median(moved[LABELS == 2]) > 5 * np.median(moved[LABELS != 2])


def test_denser_clusters_have_higher_numbers(projected):
    _, numbers = projected
    assert numbers["purity_last"] == 1 > numbers["purity_first"]
    assert numbers["silhouette_last"] > 0.7 > numbers["silhouette_first"]
    assert numbers["silhouette_last"] == pytest.approx(
        silhouette_score(activations(0.5, 1).astype(np.float64), LABELS)
    )
    assert all(0 <= numbers[f"trustworthiness_{e}"] <= 1 for e in ("first", "last"))
    assert 0 < numbers["pca_variance"] <= 1


def test_tsne_keeps_separate_clusters_apart(projected):
    plane, _ = projected
    assert embedding.purity(plane["tsne_last"], LABELS, 5) == 1


def test_the_same_to_the_bit_for_any_number_of_threads(projected):
    for threads in (1, 2):
        with threadpool_limits(threads):
            plane, numbers = embedding.project(
                activations(8.0), activations(0.5, 1), LABELS, 10.0, 0
            )
        assert numbers == projected[1]
        assert all(np.array_equal(plane[name], projected[0][name]) for name in plane)


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


def test_the_same_to_the_bit_in_processes_with_other_threads():
    """Large enough for a library to share it out, and limited from its start."""
    said = set()
    for threads in ("1", "2"):
        limits = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads
        )
        done = subprocess.run(
            [sys.executable, "-c", ALONE], env=os.environ | limits, cwd=paths.ROOT,
            capture_output=True, text=True,
        )
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert len(said) == 1 and len(json.loads(said.pop())[0]) == 4


def test_the_seed_is_that_of_tsne():
    """PCA draws nothing."""
    values = activations(8.0), activations(4.0, 1)
    one, two = (embedding.project(*values, LABELS, 10.0, seed)[0] for seed in (0, 0))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    other = embedding.project(*values, LABELS, 10.0, 1)[0]
    assert np.array_equal(one["pca_last"], other["pca_last"])


def test_purity_by_brute_force():
    random = np.random.default_rng(0)
    values, labels = random.standard_normal((40, 5)), random.integers(0, 4, 40)
    shares = []
    for row in range(40):
        distances = np.linalg.norm(values - values[row], axis=1)
        distances[row] = np.inf  # an image is no neighbour of its own
        shares.append((labels[np.argsort(distances)[:7]] == labels[row]).mean())
    assert embedding.purity(values, labels, 7) == pytest.approx(np.mean(shares))


def test_labels_without_meaning_have_the_purity_of_chance():
    random = np.random.default_rng(0)
    values = random.standard_normal((2000, 5))
    assert embedding.purity(values, np.arange(2000) % 4, 10) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("count", [6, 9, 25])
def test_a_perplexity_too_high_for_the_images_is_lowered(count):
    values = activations(1.0)[:count]
    plane, _ = embedding.project(values, values, LABELS[:count], 30.0, 0)
    assert plane["tsne_last"].shape == (count, 2) and np.isfinite(plane["tsne_last"]).all()


def test_activations_that_all_died_are_no_fault():
    """As a ReLU layer's may: then nothing is apart from anything."""
    dead = np.zeros((60, 12), dtype=np.float32)
    with np.errstate(invalid="ignore"):
        plane, numbers = embedding.project(dead, activations(1.0), LABELS, 10.0, 0)
    assert numbers["silhouette_first"] == 0 < numbers["silhouette_last"]
    assert all(np.isfinite(points).all() for points in plane.values())
