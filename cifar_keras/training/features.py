"""Features that are computed once and learned from for many epochs."""

import keras
import numpy as np
import tensorflow as tf

from cifar_keras.data.pipeline import Batch, Examples, of_views
from cifar_keras.models.inference import image_parts, predict_part


def features_gib(frozen: keras.Model, count: int, dtype: str) -> float:
    """Return the GiB that so many features of a frozen part take."""
    return float(count * np.prod(frozen.output_shape[1:]) * tf.as_dtype(dtype).size / 2**30)


def compute_features(
    frozen: keras.Model, examples: Examples, *, mirrored: bool, dtype: str, batch_size: int, title: str
) -> Examples:
    """Run the frozen part of a classifier once over a split.

    Args:
        frozen: the frozen part.
        examples: the split.
        mirrored: also over the mirror images.
        dtype: in which the features are kept.
        batch_size: images at a time, over all devices together.
        title: what the progress bar is called.

    Returns:
        The features `[n, views, ...]` in place of the images, with the same targets. While they are made they take their
        memory twice.
    """
    made = []
    for part in image_parts(np.asarray(examples.inputs), batch_size, title):
        views = [part, part[:, :, ::-1]] if mirrored else [part]
        features = np.stack([predict_part(frozen, view, batch_size) for view in views], axis=1)
        # Around the features alone: a GPU's model that is called in here would be computed on the CPU.
        with tf.device("CPU"):
            made.append(tf.cast(features, dtype))
    with tf.device("CPU"):
        return examples._replace(inputs=tf.concat(made, axis=0))


def only_view(examples: Examples) -> Examples:
    """Take the first view of each: features `[n, views, ...]` to `[n, ...]`."""
    with tf.device("CPU"):
        return examples._replace(inputs=examples.inputs[:, 0])


def choose_view(batch: Batch, key: tf.Tensor) -> Batch:
    """Choose one view of each image, `[n, views, ...]` to `[n, ...]`: the augmentation that `flip` is to images.

    Args:
        batch: of features.
        key: int64 `[2]`, on which the choice depends.
    """
    count, views = batch.inputs.shape[:2]
    chosen = tf.random.stateless_uniform([count], key, maxval=views, dtype=tf.int32)
    return Batch(tf.gather(batch.inputs, chosen, batch_dims=1), of_views(batch.targets, chosen))
