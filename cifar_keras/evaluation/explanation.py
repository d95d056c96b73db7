"""Explain a run's predictions: compute features, find labels that look wrong, and choose the images to look at."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from cifar_keras.data.types import Images, LabelledImages
from cifar_keras.errors import UserError
from cifar_keras.evaluation.suspects import FOLDS, out_of_sample_probabilities, suspect_labels
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.inference import predict_all

# A function from images, and the title of the progress bar, to their features.
Features = Callable[[Images, str], NDArray[np.float32]]


class Suspects(NamedTuple):
    """Labels that look wrong, the least probable first."""

    positions: NDArray[np.int64]  # [n], among the images that were looked at
    likely: NDArray[np.int64]  # [n], the class in place of each label
    probabilities: NDArray[np.float64]  # [m, classes], of all images that were looked at


def features_of(classifier: keras.Model, batch_size: int) -> Features:
    """Return the function that computes the pooled features of a classifier's backbone, float32 `[n, features]`."""
    twin = fused_twin(classifier.get_layer("backbone"), compute_dtype="float32", folded=True)
    model = assemble(classifier, twin, last="backbone")
    return lambda images, title: predict_all(model, images, batch_size, title)


def find_suspects(features: Features, split: LabelledImages, class_count: int, *, seed: int) -> Suspects:
    """Return the labels that look wrong, judged by features of a network that has not learned from them.

    Raises:
        UserError: the split has fewer than `FOLDS` images of a class.
    """
    images, labels = split
    if np.bincount(labels, minlength=class_count).min() < FOLDS:
        raise UserError(
            f"--train_images has to leave {FOLDS} images of each class for the suspect labels; 0 takes all. Received: {len(labels)}"
        )
    probabilities = out_of_sample_probabilities(features(images, "labels"), labels, seed=seed)
    positions, likely = suspect_labels(probabilities, labels)
    return Suspects(positions, likely, probabilities)


def choose(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return the positions of the images to look at, in rising order.

    There are `count` of them, drawn by the seed. If `count` is 0, or not less than `total`, it is all images.
    """
    if count == 0 or count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
