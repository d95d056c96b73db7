"""What a model's features say: which training images are near, and how the classes lie to one another."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors


def nearest(
    features: NDArray[np.float32], among: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the most similar rows of others, by the cosine between features.

    Args:
        features: float32 `[n, features]`.
        among: float32 `[m, features]`.
        count: how many of them for each row, at most m.

    Returns:
        Their positions, int64 `[n, count]`, the most similar first, and the cosines, float64 `[n, count]`, -1..1.
    """
    neighbours = NearestNeighbors(n_neighbors=min(count, len(among)), metric="cosine", algorithm="brute").fit(among)
    distances, positions = neighbours.kneighbors(features)
    return positions.astype(np.int64), 1.0 - distances.astype(np.float64)


def principal_components(
    features: NDArray[np.float32], count: int, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Project features, float32 `[n, features]`, on the directions in which they vary most.

    Returns:
        float32 `[n, count]`, or fewer columns where there are not as many rows or features; and the fraction of the variance that
        each column has.
    """
    analysis = PCA(min(count, *features.shape), svd_solver="randomized", random_state=seed)
    return analysis.fit_transform(features).astype(np.float32), analysis.explained_variance_ratio_
