"""Learning from a teacher (Hinton, Vinyals and Dean, arXiv:1503.02531): its logits, and the distance from them."""

import contextlib
import io
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import DistillationConfig
from cifar_keras.data.pipeline import Examples
from cifar_keras.data.types import Dataset, LabelledImages
from cifar_keras.exporting.saved_model import serve_all
from cifar_keras.files import writing

SPLITS = ("train", "validation")


def teacher_logits(teacher: tf.Module, dataset: Dataset, batch_size: int) -> dict[str, NDArray[np.float32]]:
    """Return the teacher's logits of train and validation, `[n, classes]`: means over an image and its mirror image.

    Args:
        teacher: a SavedModel, loaded.
        dataset: of the run.
        batch_size: images at a time.
    """
    count = sum(len(getattr(dataset, name).labels) for name in SPLITS)
    print(f"teacher: logits of {count:,} images and of their mirror images", flush=True)
    return {name: _both_ways(teacher, getattr(dataset, name), batch_size, name) for name in SPLITS}


def keep_teacher_logits(logits: dict[str, NDArray[np.float32]], file: Path) -> None:
    """Write logits into a file, so that a run that goes on does not compute them again."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **logits)
    file.parent.mkdir(exist_ok=True)
    writing.write_whole(file, content.getvalue())


def read_teacher_logits(file: Path) -> dict[str, NDArray[np.float32]] | None:
    """Return what `keep_teacher_logits` wrote; None where there is no such file, or not all of it."""
    with contextlib.suppress(OSError, KeyError, ValueError, zipfile.BadZipFile), np.load(file) as kept:
        return {name: kept[name] for name in SPLITS}
    return None


def _both_ways(teacher: tf.Module, split: LabelledImages, batch_size: int, name: str) -> NDArray[np.float32]:
    mirrored = np.ascontiguousarray(split.images[:, :, ::-1])
    plain = serve_all(teacher, split.images, batch_size, f"teacher, {name}").logits
    other = serve_all(teacher, mirrored, batch_size, f"teacher, {name} mirrored").logits
    return (plain + other) / np.float32(2)


def with_teacher(examples: Examples, logits: NDArray[np.float32]) -> Examples:
    """Put a teacher's logits, `[n, classes]`, behind the labels: `[n, 2 * classes]`."""
    with tf.device("CPU"):
        return examples._replace(labels=tf.concat([examples.labels, logits], axis=1))


class DistillationLoss(keras.losses.Loss):
    """The loss of a student: `(1 - w) * H(labels, p) + w * T^2 * KL(teacher at T, student at T)` (section 2).

    With T^2 the gradients of both parts keep their proportion whatever the temperature T.

    Args:
        config: w and T.
        label_smoothing: of the labels.
    """

    def __init__(self, config: DistillationConfig, label_smoothing: float) -> None:
        super().__init__(name="loss")
        self._weight, self._temperature = config.distillation_weight, config.distillation_temperature
        self._label_smoothing = label_smoothing

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each example, `[n]`, for labels and the teacher's logits, `[n, 2 * classes]`."""
        classes = y_pred.shape[-1]
        teacher, student = y_true[:, classes:] / self._temperature, y_pred / self._temperature
        distance = tf.reduce_sum(
            tf.nn.softmax(teacher) * (tf.nn.log_softmax(teacher) - tf.nn.log_softmax(student)), axis=-1
        )
        from_labels = keras.losses.categorical_crossentropy(
            y_true[:, :classes], y_pred, from_logits=True, label_smoothing=self._label_smoothing
        )
        return (1 - self._weight) * from_labels + self._weight * self._temperature**2 * distance
