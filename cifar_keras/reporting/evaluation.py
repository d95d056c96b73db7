"""Measuring an exported model on a split."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data.cifar10 import LabelledImages
from cifar_keras.reporting.calibration import calibration_error_by_chance, softmax
from cifar_keras.reporting.metrics import classification_metrics
from cifar_keras.saved_model import served_logits

CALIBRATED = ("loss", "brier", "calibration_error")  # what depends on a temperature


class Evaluation(NamedTuple):
    """What an exported model says of a split, and how good that is."""

    logits: NDArray[np.float32]  # [n, classes]
    metrics: dict[str, Any]  # of `reporting.metrics.classification_metrics`
    images_per_second: float


def evaluate(
    model: tf.Module,
    split: LabelledImages,
    class_names: Sequence[str],
    batch_size: int,
    title: str,
    *,
    seed: int,
) -> Evaluation:
    """Run every image of a split exactly once through a loaded SavedModel, and measure.

    Args:
        model: what `saved_model.load_saved_model` returned.
        split: the images, uint8 `[n, height, width, 3]`, and their labels, int64 `[n]`.
        class_names: name of each class.
        batch_size: images at a time.
        title: what the progress bar is called.
        seed: of the resamples that the intervals come from.
    """
    started = time.monotonic()
    logits = served_logits(model, split.images, batch_size, title)
    seconds = time.monotonic() - started
    return Evaluation(
        logits, classification_metrics(logits, split.labels, class_names, seed=seed), len(logits) / seconds
    )


def calibrated_metrics(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    """Return those of `classification_metrics` that depend on the temperature of the probabilities, and their intervals.

    And `calibration_error_by_chance`, the mean of what right probabilities would show on so many images.
    """
    metrics = classification_metrics(logits / np.float32(temperature), labels, class_names, seed=seed)
    by_chance, _ = calibration_error_by_chance(softmax(logits, temperature), seed=seed)
    intervals = {name: metrics["intervals"][name] for name in CALIBRATED}
    figures = {name: metrics[name] for name in CALIBRATED}
    return figures | {"calibration_error_by_chance": by_chance, "intervals": intervals}
