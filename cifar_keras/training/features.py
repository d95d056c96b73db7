"""Features that are computed once and learned from for many epochs."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data.pipeline import Examples, input_batches
from cifar_keras.files.progress_bar import progress

BATCHES_AT_A_TIME = 16


def predict_all(model: keras.Model, images: NDArray[np.uint8], batch_size: int, title: str) -> NDArray[np.float32]:
    """Run every image through a model, under the strategy that it was made in, with a progress bar.

    Args:
        model: takes uint8 images.
        images: uint8 `[n, height, width, 3]`.
        batch_size: images at a time, over all devices together.
        title: what the bar is called.

    Returns:
        float32 `[n, ...]`.
    """
    return np.concatenate([_predict(model, part, batch_size) for part in _parts(images, batch_size, title)])


def features_gib(lower: keras.Model, count: int, dtype: str) -> float:
    """Return the GiB that so many features of a frozen half take."""
    return float(count * np.prod(lower.output_shape[1:]) * tf.as_dtype(dtype).size / 2**30)


def compute_features(
    lower: keras.Model, examples: Examples, *, mirrored: bool, dtype: str, batch_size: int, title: str
) -> Examples:
    """Run the frozen half of a classifier once over a split.

    Args:
        lower: the frozen half.
        examples: the split.
        mirrored: also over the mirror images.
        dtype: in which the features are kept.
        batch_size: images at a time, over all devices together.
        title: what the progress bar is called.

    Returns:
        The features `[n, views, ...]` in place of the images, with the same labels. While they are made they take their
        memory twice.
    """
    made = []
    for part in _parts(np.asarray(examples.inputs), batch_size, title):
        views = [part, part[:, :, ::-1]] if mirrored else [part]
        features = np.stack([_predict(lower, view, batch_size) for view in views], axis=1)
        with tf.device("CPU"):  # around them alone: a GPU's model that is called in here would be computed on the CPU
            made.append(tf.cast(features, dtype))
    with tf.device("CPU"):
        return examples._replace(inputs=tf.concat(made, axis=0))


def only_view(examples: Examples) -> Examples:
    """Take the first view of each: features `[n, views, ...]` to `[n, ...]`."""
    with tf.device("CPU"):
        return examples._replace(inputs=examples.inputs[:, 0])


def choose_view(features: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Choose one view of each image, `[n, views, ...]` to `[n, ...]`: what `flip` does to images.

    Args:
        features: of a batch.
        key: int64 `[2]`, on which the choice depends.
    """
    count, views = features.shape[:2]
    chosen = tf.random.stateless_uniform([count], key, maxval=views, dtype=tf.int32)
    return tf.gather(features, chosen, batch_dims=1)


def _parts(images: NDArray[np.uint8], batch_size: int, title: str) -> Iterator[NDArray[np.uint8]]:
    size = BATCHES_AT_A_TIME * batch_size
    for start in progress(range(0, len(images), size), desc=title, unit="part"):
        yield images[start : start + size]


def _predict(model: keras.Model, part: NDArray[np.uint8], batch_size: int) -> NDArray[np.float32]:
    # Whole batches only, filled up with the first images again: no device may be left without an image.
    filled = np.resize(part, (-(-len(part) // batch_size) * batch_size, *part.shape[1:]))
    return np.asarray(model.predict(input_batches(filled, batch_size), verbose=0))[: len(part)]
