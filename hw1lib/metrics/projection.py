"""PCA and t-SNE of activations, and metrics of their clusters."""

import math

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

NEIGHBOURS = 10


def project(first, last, labels, perplexity, seed):
    """Project the activations of the first and the last epoch to the plane.

    PCA is fitted on both epochs together, and t-SNE embeds both together, starting from PCA, so that the plots of
    both epochs can be compared.

    Args:
        first, last: (N, D) activations of the same images in the same order.
        labels: (N,) class numbers.
        perplexity: t-SNE's perplexity, lowered if there are too few images.
        seed: t-SNE's random seed.

    Returns:
        A dict of (N, 2) arrays pca_first, pca_last, tsne_first and tsne_last, and a dict of numbers:

        - silhouette_* and purity_* of each epoch's activations (see `silhouette` and `purity`, of 10 neighbours)
        - trustworthiness_* of each epoch's t-SNE, 0…1
        - pca_variance: fraction of the variance that PCA keeps
        - purity_chance: purity of shuffled labels

        A number that is undefined for so few images is None.
    """
    first, last = np.float64(first), np.float64(last)
    with threadpool_limits(1):  # several threads would vary the order of sums, and so the result
        both = np.concatenate([first, last])
        pca = PCA(2, svd_solver="full").fit(both)
        start = pca.transform(both)
        flat = tsne(both, start, perplexity, seed)
        plane = {}
        for method, points in (("pca", start), ("tsne", flat)):
            plane[f"{method}_first"], plane[f"{method}_last"] = np.split(points, 2)
        numbers = {"pca_variance": float(pca.explained_variance_ratio_.sum()), "purity_chance": chance(labels)}
        near = min(NEIGHBOURS, len(first) // 2 - 1)
        for epoch, values in (("first", first), ("last", last)):
            numbers[f"silhouette_{epoch}"] = silhouette(values, labels)
            numbers[f"purity_{epoch}"] = purity(values, labels, near)
            trust = trustworthiness(values, plane[f"tsne_{epoch}"], n_neighbors=near) if near > 0 else math.nan
            numbers[f"trustworthiness_{epoch}"] = float(trust)
    return plane, {name: None if math.isnan(value) else value for name, value in numbers.items()}


def tsne(values, start, perplexity, seed):
    """Embed activations in the plane by t-SNE (van der Maaten & Hinton 2008).

    Args:
        values: (N, D).
        start: (N, 2) initial embedding, such as PCA's.
        perplexity: roughly the number of neighbours considered; lowered if there are too few rows.
        seed: random seed.

    Returns:
        (N, 2); only neighbourhoods are meaningful.
    """
    init = start / max(start[:, 0].std(), 1e-12) * 1e-4
    perplexity = min(perplexity, (len(values) - 1) / 3)
    return TSNE(perplexity=perplexity, init=init, random_state=seed, n_jobs=1).fit_transform(values)


def silhouette(values, labels):
    """Compute the mean silhouette in [-1, 1]; NaN with fewer than two classes, or if no two rows share one."""
    return float(silhouette_score(values, labels)) if 1 < len(np.unique(labels)) < len(labels) else math.nan


def purity(values, labels, neighbours):
    """Compute the mean fraction of each row's nearest neighbours that have its label; NaN without neighbours."""
    if neighbours < 1:
        return math.nan
    index = NearestNeighbors(n_neighbors=neighbours).fit(values)
    near = index.kneighbors(return_distance=False)  # (N, neighbours), without the row itself
    return float((labels[near] == labels[:, None]).mean())


def chance(labels):
    """Compute the expected purity of shuffled labels."""
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))
