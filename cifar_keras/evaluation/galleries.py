"""Choose the test images that are worth looking at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pair(NamedTuple):
    """A class that is taken for another one, and the images of it."""

    true: int
    predicted: int
    images: NDArray[np.int64]  # positions of the images, the most confident first


def most_confident_errors(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return the positions of the wrong predictions with the largest probabilities, largest first.

    Args:
        probabilities: float64 `[n, classes]`.
        labels: int64 `[n]`.
        count: how many at most.

    Examples:
        >>> probabilities = np.array([[0.4, 0.6], [0.2, 0.8], [0.9, 0.1]])
        >>> most_confident_errors(probabilities, np.array([0, 1, 1]), count=2).tolist()
        [2, 0]
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


def most_confused_pairs(probabilities: NDArray[np.float64], labels: NDArray[np.int64], count: int) -> list[Pair]:
    """Return the most frequent pairs of a true class and a wrong prediction, the most frequent first.

    Pairs that are equally frequent are in the order of their class numbers.

    Args:
        probabilities: float64 `[n, classes]`.
        labels: int64 `[n]`.
        count: how many pairs at most.
    """
    classes = probabilities.shape[1]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    cells = np.bincount((labels * classes + predicted)[predicted != labels], minlength=classes**2)
    pairs = []
    for cell in np.argsort(-cells, kind="stable")[:count]:
        if cells[cell]:
            true, taken_for = divmod(int(cell), classes)
            images = np.flatnonzero((labels == true) & (predicted == taken_for))
            pairs.append(Pair(true, taken_for, images[np.argsort(-confidence[images], kind="stable")]))
    return pairs


def most_confused_classes(confusion_matrix: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the classes with the most errors, as label or as prediction, in rising order.

    Args:
        confusion_matrix: counts `[classes, classes]`, rows are true classes and columns predictions.
        count: how many at most. Of classes with equally many errors, the first are chosen.

    Examples:
        >>> most_confused_classes(np.array([[8, 2, 0], [1, 9, 0], [0, 0, 10]]), count=2).tolist()
        [0, 1]
    """
    errors = confusion_matrix.sum(axis=0) + confusion_matrix.sum(axis=1) - 2 * np.diagonal(confusion_matrix)
    return np.sort(np.argsort(-errors, kind="stable")[:count])


def spread_over_confidence(confidences: NDArray[np.float64], places: int) -> NDArray[np.int64]:
    """Return at most `places` positions, evenly spread over the order from the most to the least confident.

    Examples:
        >>> spread_over_confidence(np.array([0.5, 0.9, 0.7, 0.6, 0.8]), places=3).tolist()
        [1, 2, 0]
    """
    order = np.argsort(-confidences, kind="stable")
    chosen = np.linspace(0, len(order) - 1, min(places, len(order))).round().astype(np.int64)
    return order[chosen]


def names_of(pair: Pair, class_names: Sequence[str]) -> str:
    """Return a pair in words.

    Examples:
        >>> names_of(Pair(true=0, predicted=1, images=np.array([7])), ["cat", "dog"])
        'cat taken for dog'
    """
    return f"{class_names[pair.true]} taken for {class_names[pair.predicted]}"
