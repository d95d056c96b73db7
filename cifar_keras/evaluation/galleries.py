"""Which test images are worth looking at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pair(NamedTuple):
    """A class that is taken for another one."""

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
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


def most_confused_pairs(probabilities: NDArray[np.float64], labels: NDArray[np.int64], count: int) -> list[Pair]:
    """Return the pairs of true and predicted class that occur most often, most often first; equal ones by their numbers.

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
    """Return the classes that take part in the most errors, as label or as prediction: at most `count` of them, rising.

    Args:
        confusion_matrix: counts `[classes, classes]`, rows are true classes and columns predictions.
        count: how many at most; of classes with equally many errors the first.
    """
    errors = confusion_matrix.sum(axis=0) + confusion_matrix.sum(axis=1) - 2 * np.diagonal(confusion_matrix)
    return np.sort(np.argsort(-errors, kind="stable")[:count])


def spread_over_confidence(confidences: NDArray[np.float64], places: int) -> NDArray[np.int64]:
    """Return at most `places` positions, evenly spread over the order from the most to the least confident."""
    order = np.argsort(-confidences, kind="stable")
    chosen = np.linspace(0, len(order) - 1, min(places, len(order))).round().astype(np.int64)
    return order[chosen]


def names_of(pair: Pair, class_names: Sequence[str]) -> str:
    """Return a pair in words."""
    return f"{class_names[pair.true]} taken for {class_names[pair.predicted]}"
