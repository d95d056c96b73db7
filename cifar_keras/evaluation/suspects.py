"""Which labels look wrong: confident learning (Northcutt, Jiang and Chuang, arXiv:1911.00068)."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
COMPONENTS = 256  # of a ResNet50's 2,048 features; what a regression takes grows with their number


def out_of_sample_probabilities(
    features: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int
) -> NDArray[np.float64]:
    """Predict each image by a logistic regression that has not seen its label.

    Args:
        features: float32 `[n, features]`, of a network that has not seen the labels either.
        labels: int64 `[n]`, 0..classes - 1; of each class at least `FOLDS`.
        seed: of the folds.

    Returns:
        float64 `[n, classes]`; rows sum to 1.
    """
    components = PCA(min(COMPONENTS, *features.shape), svd_solver="randomized", random_state=seed)
    reduced = components.fit_transform(features).astype(np.float64)  # looks at no label
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities: NDArray[np.float64] = cross_val_predict(
        regression, reduced, labels, cv=folds, method="predict_proba"
    )
    return probabilities


def suspect_labels(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the images that are counted off the diagonal of the confident joint of the paper.

    A class is likely for an image if its probability is at least the mean that the class has over the images with its label.
    An image is suspect if the most probable of its likely classes is not its label, and neither is the most probable of all.

    Args:
        probabilities: float64 `[n, classes]`, out of sample; rows sum to 1.
        labels: int64 `[n]`; each class occurs.

    Returns:
        Positions of the suspects, those whose label is least probable first, and the class that is likely in place of each.
    """
    classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == index, index].mean() for index in range(classes)])
    likely = np.where(probabilities >= thresholds, probabilities, -np.inf)
    best = likely.argmax(axis=1)
    known = np.isfinite(likely.max(axis=1))
    suspect = np.flatnonzero(known & (best != labels) & (probabilities.argmax(axis=1) != labels))
    order = suspect[np.argsort(probabilities[suspect, labels[suspect]], kind="stable")]
    return order, best[order]
