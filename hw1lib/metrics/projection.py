"""PCA and t-SNE of activations, and numbers for what one sees in them."""

import math

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

NEIGHBOURS = 10


def project(first, last, labels, perplexity, seed):
    """Projects the activations of the first and the last epoch to the plane.

    Both epochs share one frame, for either method: PCA is fitted on both together, and t-SNE lays
    out both together, starting from it.

    Args:
        first, last: (N, D) activations of the same images in the same order.
        labels: (N,) class numbers.
        perplexity: of t-SNE, lowered where there are too few images for it.
        seed: of t-SNE.

    Returns:
        A dict of (N, 2) arrays pca_first, pca_last, tsne_first, tsne_last, and a dict of numbers, None where one
        cannot be measured (see `silhouette` and `purity`; trustworthiness needs four images, too):
        for each epoch the silhouette (-1…1, higher: denser and further apart), the purity (share
        of the 10 nearest neighbours that have an image's own class), both of the activations
        themselves, and t-SNE's trustworthiness (0…1); for PCA the share of variance kept; the purity
        that labels without any meaning would have.
    """
    first, last = np.float64(first), np.float64(last)
    with threadpool_limits(1):  # sums in one order, so that the picture is the same anywhere
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
            kept = trustworthiness(values, plane[f"tsne_{epoch}"], n_neighbors=near) if near > 0 else math.nan
            numbers[f"trustworthiness_{epoch}"] = float(kept)
    return plane, {name: None if math.isnan(value) else value for name, value in numbers.items()}


def tsne(values, start, perplexity, seed):
    """t-SNE's layout of some activations in the plane (van der Maaten & Hinton 2008).

    Args:
        values: (N, D).
        start: (N, 2) layout to begin with, such as PCA's.
        perplexity: about the number of neighbours that count; lowered where there are too few rows for it.
        seed: whole number.

    Returns:
        (N, 2); only who is near whom means anything.
    """
    init = start / max(start[:, 0].std(), 1e-12) * 1e-4
    perplexity = min(perplexity, (len(values) - 1) / 3)
    return TSNE(perplexity=perplexity, init=init, random_state=seed, n_jobs=1).fit_transform(values)


def silhouette(values, labels):
    """Mean silhouette in [-1, 1]; nan with fewer than two classes, or where each image has a class of its own."""
    return float(silhouette_score(values, labels)) if 1 < len(np.unique(labels)) < len(labels) else math.nan


def purity(values, labels, neighbours):
    """Mean share of each row's nearest neighbours that have its own label, in [0, 1]; nan without any neighbours."""
    if neighbours < 1:
        return math.nan
    index = NearestNeighbors(n_neighbors=neighbours).fit(values)
    near = index.kneighbors(return_distance=False)  # (N, neighbours), without the row itself
    return float((labels[near] == labels[:, None]).mean())


def chance(labels):
    """The purity that labels would have on average if they were dealt out to the rows at random."""
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))
