"""Find labels that look wrong, by confident learning (Northcutt, Jiang and Chuang, arXiv:1911.00068)."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
# Principal components of a ResNet50's 2,048 features. The cost of a regression grows with their number.
COMPONENTS = 256


def out_of_sample_probabilities(
    features: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int
) -> NDArray[np.float64]:
    """Return class probabilities of each image, by a logistic regression that has not seen its label.

    Args:
        features: float32 `[n, features]`, of a network that has not seen the labels either.
        labels: int64 `[n]`, 0..classes - 1; at least `FOLDS` of each class.
        seed: seed of the projection and of the folds.

    Returns:
        float64 `[n, classes]`; rows sum to 1.
    """
    components = PCA(min(COMPONENTS, *features.shape), svd_solver="randomized", random_state=seed)
    # The projection may use all images, because it looks at no label.
    reduced = components.fit_transform(features).astype(np.float64)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities: NDArray[np.float64] = cross_val_predict(
        regression, reduced, labels, cv=folds, method="predict_proba"
    )
    return probabilities


def suspect_labels(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images whose labels look wrong: those that the paper's confident joint counts off its diagonal.

    A class is likely for an image if its probability is at least the class's mean probability over the images labelled with it. An image
    is suspect if its label is neither the most probable of its likely classes nor the most probable of all classes.

    Args:
        probabilities: float64 `[n, classes]`, out of sample; rows sum to 1.
        labels: int64 `[n]`; each class occurs.

    Returns:
        Positions of the suspects, those with the least probable label first, and the class that is likely in place of each label.

    Examples:
        The last image is labelled 1, but looks like class 0:

        >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.95, 0.05]])
        >>> positions, likely = suspect_labels(probabilities, np.array([0, 0, 1, 1, 1]))
        >>> positions.tolist(), likely.tolist()
        ([4], [0])
    """
    classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == index, index].mean() for index in range(classes)])
    likely = np.where(probabilities >= thresholds, probabilities, -np.inf)
    best = likely.argmax(axis=1)
    known = np.isfinite(likely.max(axis=1))
    suspect = np.flatnonzero(known & (best != labels) & (probabilities.argmax(axis=1) != labels))
    order = suspect[np.argsort(probabilities[suspect, labels[suspect]], kind="stable")]
    return order, best[order]
