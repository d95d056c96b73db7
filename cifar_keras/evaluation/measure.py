"""Measure an exported model on a split."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data.types import LabelledImages
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.exporting.saved_model import serve_all

CALIBRATED = ("loss", "brier", "calibration_error")  # the metrics that depend on a temperature
# Probabilities in float32 and float64 differ by 1e-6. Another temperature moves some of them by more than this limit.
SAME_PROBABILITY = 1e-5


class Evaluation(NamedTuple):
    """What an exported model returns for a split, and how good its logits are."""

    logits: NDArray[np.float32]  # [n, classes]
    probabilities: NDArray[np.float32]  # [n, classes], at the temperature that the model serves with
    metrics: dict[str, Any]  # of `metrics.classification_metrics`
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
    """Run every image of a split exactly once through a loaded SavedModel, and return its outputs and metrics.

    Args:
        model: what `saved_model.load_saved_model` returned.
        split: the images, uint8 `[n, height, width, 3]`, and their labels, int64 `[n]`.
        class_names: name of each class.
        batch_size: images at a time.
        title: title of the progress bar.
        seed: seed of the resamples that the intervals come from.
    """
    started = time.monotonic()
    served = serve_all(model, split.images, batch_size, title)
    seconds = time.monotonic() - started
    metrics = classification_metrics(served.logits, split.labels, class_names, seed=seed)
    return Evaluation(*served, metrics, len(split.labels) / seconds)


def serves_at(found: Evaluation, temperature: float) -> bool:
    """Return whether the probabilities that a model returned are `softmax(logits / temperature)`."""
    return bool(np.abs(found.probabilities - softmax(found.logits, temperature)).max() <= SAME_PROBABILITY)


def calibrated_metrics(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics that depend on the temperature of the probabilities, and their intervals.

    These are the metrics of `classification_metrics` that `CALIBRATED` names. `calibration_error_by_chance` is returned too.
    """
    metrics = classification_metrics(logits / np.float32(temperature), labels, class_names, seed=seed)
    intervals = {name: metrics["intervals"][name] for name in CALIBRATED}
    kept = {name: metrics[name] for name in (*CALIBRATED, "calibration_error_by_chance")}
    return kept | {"intervals": intervals}
