"""How spread out a set of features is: what tells a collapsed network from one that learnt."""

import numpy as np

COLLAPSED = 0.02  # a standard deviation below it: all images look nearly alike to the network
LEAST_RANK = 2.0  # an effective rank below it: they differ along one line only


def deviation(features):
    """Standard deviation of the normalised features, times √D (as Chen & He 2020, section 4.1).

    NOTE: they measure the projection. Here it is the representation, which ReLU keeps from being
    negative, so it stays well below 1; a random ResNet50 has about 0.05.

    Args:
        features: (N, D).

    Returns:
        From 0, where all are the same, to 1, where they are spread evenly over the sphere.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return float(unit.std(axis=0).mean() * np.sqrt(features.shape[1]))


def spectrum(features):
    """The centred features' singular values, the largest first.

    Args:
        features: (N, D).

    Returns:
        (min(N, D),) float64.
    """
    centred = np.float64(features) - features.mean(axis=0, dtype=np.float64)
    short = centred if len(centred) <= centred.shape[1] else centred.T
    # Their squares are the Gram matrix's eigenvalues, which are quicker to find.
    return np.sqrt(np.linalg.eigvalsh(short @ short.T).clip(0))[::-1]


def effective_rank(features):
    """exp of the entropy of the centred features' singular values (Roy & Vetterli 2007).

    Args:
        features: (N, D).

    Returns:
        From 1 (a line) to min(N - 1, D); 0 where all features are the same.
    """
    values = spectrum(features)[::-1]
    if values.max() <= 1e-6 * max(np.abs(features).max(), 1e-12):
        return 0.0
    probabilities = values / values.sum()
    probabilities = probabilities[probabilities > 0]
    return float(np.exp(-(probabilities * np.log(probabilities)).sum()))


def collapsed(numbers):
    """Whether an embedding with this standard deviation and effective rank has collapsed."""
    return numbers["deviation"] < COLLAPSED or numbers["effective_rank"] < LEAST_RANK
