"""Cached features: the frozen part of a classifier computes them once, and many epochs learn from them."""

import keras
import numpy as np
import tensorflow as tf

from cifar_keras.data.pipeline import Batch, Examples, of_views
from cifar_keras.models.inference import image_parts, predict_part


def features_gib(frozen: keras.Model, count: int, dtype: str) -> float:
    """Return the memory in GiB that the features of `count` images take in a dtype."""
    return float(count * np.prod(frozen.output_shape[1:]) * tf.as_dtype(dtype).size / 2**30)


def compute_features(
    frozen: keras.Model, examples: Examples, *, mirrored: bool, dtype: str, batch_size: int, title: str
) -> Examples:
    """Return a split whose images are replaced by the features that a frozen part computes from them.

    Args:
        frozen: the frozen part of a classifier.
        examples: the split.
        mirrored: whether to compute the features of the mirror images too.
        dtype: dtype in which the features are kept.
        batch_size: images at a time, over all devices together.
        title: title of the progress bar.

    Returns:
        The features `[n, views, ...]` with the targets of the split. While they are computed, they take twice their memory.
    """
    made = []
    for part in image_parts(examples.images, batch_size, title):
        views = [part, part[:, :, ::-1]] if mirrored else [part]
        features = np.stack([predict_part(frozen, view, batch_size) for view in views], axis=1)
        # Only the cast is in this block: a GPU's model that is called in here would run on the CPU.
        with tf.device("CPU"):
            made.append(tf.cast(features, dtype))
    with tf.device("CPU"):
        return examples._replace(inputs=tf.concat(made, axis=0))


def only_view(examples: Examples) -> Examples:
    """Return examples with only the first view of each image: features `[n, views, ...]` become `[n, ...]`."""
    with tf.device("CPU"):
        return examples._replace(inputs=tf.gather(examples.inputs, 0, axis=1))


def choose_view(batch: Batch, key: tf.Tensor) -> Batch:
    """Return a batch with one random view of each image: features `[n, views, ...]` become `[n, ...]`.

    This augments cached features as `flip` augments images.

    Args:
        batch: a batch of features.
        key: int64 `[2]`, the key on which the choice depends.
    """
    count, views = batch.inputs.shape[:2]
    chosen = tf.random.stateless_uniform([count], key, maxval=views, dtype=tf.int32)
    return Batch(tf.gather(batch.inputs, chosen, batch_dims=1), of_views(batch.targets, chosen))
