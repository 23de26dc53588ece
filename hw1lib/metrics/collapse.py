"""The spread of features, which tells whether a network has collapsed."""

import numpy as np

MIN_DEVIATION = 0.02  # below it, all images look nearly the same to the network
MIN_RANK = 2.0  # below it, features differ along one line only


def deviation(features):
    """Compute the standard deviation of normalised features, times √D (Chen & He 2020, section 4.1).

    The paper measures projections. Representations are non-negative after ReLU, and so stay well below 1: a random
    ResNet50's are at about 0.05.

    Args:
        features: (N, D).

    Returns:
        Float from 0, if all are the same, to 1, if they are spread evenly over the sphere.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return float(unit.std(axis=0).mean() * np.sqrt(features.shape[1]))


def spectrum(features):
    """Compute the singular values of the centred features, the largest first.

    Args:
        features: (N, D).

    Returns:
        (min(N, D),) float64.
    """
    centred = np.float64(features) - features.mean(axis=0, dtype=np.float64)
    short = centred if len(centred) <= centred.shape[1] else centred.T
    # The eigenvalues of the Gram matrix are the squared singular values, and faster to compute.
    return np.sqrt(np.linalg.eigvalsh(short @ short.T).clip(0))[::-1]


def effective_rank(features):
    """Compute exp of the entropy of the centred features' singular values (Roy & Vetterli 2007).

    Args:
        features: (N, D).

    Returns:
        Float from 1 (a line) to min(N - 1, D); 0 if all features are the same.
    """
    values = spectrum(features)[::-1]
    if values.max() <= 1e-6 * max(np.abs(features).max(), 1e-12):
        return 0.0
    probabilities = values / values.sum()
    probabilities = probabilities[probabilities > 0]
    return float(np.exp(-(probabilities * np.log(probabilities)).sum()))


def collapsed(numbers):
    """Return whether features have collapsed, given their "deviation" and "effective_rank"."""
    return numbers["deviation"] < MIN_DEVIATION or numbers["effective_rank"] < MIN_RANK
