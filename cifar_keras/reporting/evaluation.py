"""Measuring an exported model on a split."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data.cifar10 import LabelledImages
from cifar_keras.export import served_logits
from cifar_keras.reporting.metrics import classification_metrics


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
) -> Evaluation:
    """Run every image of a split exactly once through a loaded SavedModel, and measure.

    Args:
        model: what `export.load_saved_model` returned.
        split: the images, uint8 `[n, height, width, 3]`, and their labels, int64 `[n]`.
        class_names: name of each class.
        batch_size: images at a time.
        title: what the progress bar is called.
    """
    started = time.monotonic()
    logits = served_logits(model, split.images, batch_size, title)
    seconds = time.monotonic() - started
    return Evaluation(logits, classification_metrics(logits, split.labels, class_names), len(logits) / seconds)
