"""Compare a model's features: find the nearest training images, and project the features to show how the classes lie."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors


def nearest(
    features: NDArray[np.float32], among: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of `among` that are most similar to each row of `features`, by the cosine between them.

    Args:
        features: float32 `[n, features]`.
        among: float32 `[m, features]`.
        count: how many rows of `among` for each row of `features`, at most m.

    Returns:
        Their positions, int64 `[n, count]`, the most similar first, and the cosines, float64 `[n, count]`, -1..1.

    Examples:
        >>> among = np.array([[0, 1], [2, 0], [1, 1]], np.float32)
        >>> positions, cosines = nearest(np.array([[1, 0]], np.float32), among, count=2)
        >>> positions.tolist(), cosines.round(2).tolist()
        ([[1, 2]], [[1.0, 0.71]])
    """
    neighbours = NearestNeighbors(n_neighbors=min(count, len(among)), metric="cosine", algorithm="brute").fit(among)
    distances, positions = neighbours.kneighbors(features)
    return positions.astype(np.int64), 1.0 - distances.astype(np.float64)


def principal_components(
    features: NDArray[np.float32], count: int, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return features, float32 `[n, features]`, projected on the directions in which they vary most.

    Returns:
        The projections, float32 `[n, count]`, and the fraction of the variance that each column has. There are fewer columns than
        `count` if there are fewer rows or features.
    """
    analysis = PCA(min(count, *features.shape), svd_solver="randomized", random_state=seed)
    return analysis.fit_transform(features).astype(np.float32), analysis.explained_variance_ratio_
