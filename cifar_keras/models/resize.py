"""The classifier's resize layer, as training and serving compute it."""

from typing import Any

import keras
import tensorflow as tf


class Resize(keras.layers.Layer):
    """A faster `keras.layers.Resizing(size, size, antialias=True)`: only images that shrink are smoothed.

    If no side shrinks, smoothing changes nothing, but TensorFlow's kernel that smooths takes five times as long. For 64 images from
    32 to 64 px on two cores it took 7.8 ms, against 1.1 ms. A batch is smoothed if either of its sides shrinks.

    Args:
        size: side of the square, in pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__(name="resize", dtype="float32", autocast=False)
        self.size = size

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return `[n, size, size, channels]`."""
        return (input_shape[0], self.size, self.size, input_shape[3])

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Return images `[n, height, width, channels]` of any dtype as float32 `[n, size, size, channels]`."""

        def resized(antialias: bool) -> tf.Tensor:
            # The images stay bytes until here: a photograph of 12 megapixels as float32 would take another 144 MB.
            return tf.image.resize(images, (self.size, self.size), antialias=antialias)

        height, width = images.shape[1:3]
        if height is not None and width is not None:
            return resized(antialias=max(height, width) > self.size)
        shrinks = tf.reduce_max(tf.shape(images)[1:3]) > self.size
        return tf.cond(shrinks, lambda: resized(antialias=True), lambda: resized(antialias=False))
