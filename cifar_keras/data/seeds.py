"""Seeds of random draws inside a `tf.data` graph."""

from typing import Any

import keras
import tensorflow as tf


class KeyedSeeds(keras.random.SeedGenerator):
    """Seeds without any state in TensorFlow: each depends only on a key and on how many seeds were drawn before.

    The Keras layers take their seeds only from a `SeedGenerator` or a Python int, and inside a `tf.data` graph the key is a tensor.
    The base class is left uninitialised on purpose, because its constructor would only create the variable.

    Args:
        key: int64 `[2]`.
    """

    def __init__(self, key: tf.Tensor) -> None:
        self._key = key
        self._drawn = 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Return the next seed, int32 `[2]`. Keras passes int32 on unchanged, and folds any other type to 31 bits."""
        key = tf.random.experimental.stateless_fold_in(self._key, tf.constant(self._drawn, tf.int64))
        self._drawn += 1
        return tf.random.stateless_uniform([2], key, minval=None, maxval=None, dtype=tf.int32)

    # The layers of keras-cv call this method of tf.random.Generator, and no other.
    def uniform(self, shape: Any, minval: Any = 0.0, maxval: Any = 1.0, dtype: tf.DType = tf.float32) -> tf.Tensor:
        """Return numbers in [minval, maxval), drawn with the next seed."""
        return tf.random.stateless_uniform(shape, self.next(), minval, maxval, dtype)
