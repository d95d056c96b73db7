"""Augmentation: random changes to a batch of training images, each a function of the batch and its key alone.

Keras's preprocessing layers keep their random state in a variable, so in a parallel `Dataset.map` a batch gets whichever state is
there when it runs. Their two public parts, `get_random_transformation` (which draws) and `transform_images` (which works), let
us hand in the seeds instead.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from cifar_keras.config import AugmentationConfig
from cifar_keras.data.pipeline import Augmentation, Batch, of_views

# What cutout and the grid mask paint: a mid-grey, which the models' input transforms take near 0, as arXiv:1708.04552 does.
BLANK = 128
MID_GREY = 127.5  # of the range 0..255


class KeyedSeeds(keras.random.SeedGenerator):
    """Seeds that are a function of a key and of how many were drawn before, without any state in TensorFlow.

    The Keras layers take their seeds from a `SeedGenerator` or from a Python int only; inside a `tf.data` graph the key is a
    tensor. The base class is left uninitialised on purpose, since all it would do is make the variable.

    Args:
        key: int64 `[2]`.
    """

    def __init__(self, key: tf.Tensor) -> None:
        self._key = key
        self._drawn = 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Return the next seed, int32 `[2]`: Keras passes int32 on as it is and folds any other type to 31 bits."""
        key = tf.random.experimental.stateless_fold_in(self._key, tf.constant(self._drawn, tf.int64))
        self._drawn += 1
        return tf.random.stateless_uniform([2], key, minval=None, maxval=None, dtype=tf.int32)

    def uniform(
        self, shape: Any, minval: Any = 0.0, maxval: Any = 1.0, dtype: tf.DType = tf.float32
    ) -> tf.Tensor:  # the one method of tf.random.Generator that the layers of keras-cv call
        """Draw numbers of [minval, maxval) with the next seed."""
        return tf.random.stateless_uniform(shape, self.next(), minval, maxval, dtype)


# float32 images [batch, height, width, 3] of 0..255, and the seeds of this batch and operation -> images alike, not yet clipped
Operation = Callable[[tf.Tensor, KeyedSeeds], tf.Tensor]


def is_flip_alone(config: AugmentationConfig) -> bool:
    """Return whether augmentation flips at most, so that an image has one or two views."""
    return dataclasses.replace(config, flip=False) == AugmentationConfig(flip=False, crop_padding=0)


def make_augmentation(config: AugmentationConfig) -> Augmentation:
    """Build the function that augments a batch, each image by its own draws.

    Args:
        config: which operations, and how strong.

    Returns:
        A function of a batch of images, uint8 `[batch, height, width, 3]`, that returns images of the same shape and dtype. It is
        the identity where every operation is off.
    """
    operations = _operations(config)

    def seeds_of(key: tf.Tensor, number: int) -> KeyedSeeds:
        return KeyedSeeds(tf.random.experimental.stateless_fold_in(key, tf.constant(number, tf.int64)))

    def augment(batch: Batch, key: tf.Tensor) -> Batch:
        images, views = batch.inputs, tf.zeros(tf.shape(batch.inputs)[:1], tf.int32)
        if config.flip or config.crop_padding:
            images, views = _flip_and_crop(images, config.flip, config.crop_padding, seeds_of(key, 0))
        targets = of_views(batch.targets, views)
        if not any(operations):
            return Batch(images, targets)
        changed = tf.cast(images, tf.float32)
        # The number of an operation is its place among all, so that turning one on leaves the draws of the others as they were.
        for number, operation in enumerate(operations, start=1):
            if operation is not None:
                changed = operation(changed, seeds_of(key, number))
        return Batch(tf.cast(tf.round(tf.clip_by_value(changed, 0.0, 255.0)), tf.uint8), targets)

    return augment


def _operations(config: AugmentationConfig) -> list[Operation | None]:
    # float32 also where the model's policy is mixed: bfloat16 has 8 bits, too few for a pixel's fractions.
    return [
        _keras_operation(keras.layers.RandomRotation(config.rotation_degrees / 360, dtype="float32"))
        if config.rotation_degrees
        else None,
        _keras_operation(keras.layers.RandomZoom(config.zoom, dtype="float32")) if config.zoom else None,
        _color_jitter(config.color_jitter) if config.color_jitter else None,
        _cutout(config.cutout) if config.cutout else None,
        _grid_mask(config.grid_mask) if config.grid_mask else None,
    ]


def _keras_operation(layer: keras.layers.Layer) -> Operation:
    def operation(images: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
        transformation = layer.get_random_transformation(images, training=True, seed=seeds)
        return layer.transform_images(images, transformation, training=True)

    return operation


def _flip_and_crop(images: tf.Tensor, flip: bool, padding: int, seeds: KeyedSeeds) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirror half of the images, then shift by up to `padding` pixels and fill what comes into view with the image's reflection.

    The reflection is that of `numpy.pad` with mode "reflect". Pixels only move, so it works on bytes: both together take 17 us an
    image of one core, where Keras's RandomFlip alone took 45 (`tf.reverse`). Keras's RandomCrop draws one place for the whole
    batch, and its RandomTranslation interpolates between pixels.

    Returns:
        The images, and which of them are mirrored: int32 `[batch]`, 0 or 1.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    flip_seed, shift_seed = seeds.next(), seeds.next()
    shifts = tf.random.stateless_uniform([batch, 2], shift_seed, -padding, padding + 1, tf.int32)
    rows = _reflected(tf.range(height) + shifts[:, :1], height)
    columns = _reflected(tf.range(width) + shifts[:, 1:], width)
    mirrored = tf.zeros([batch, 1], tf.int32)
    if flip:
        mirrored = tf.random.stateless_uniform([batch, 1], flip_seed, 0, 2, tf.int32)
        columns += mirrored * (width - 1 - 2 * columns)
    moved = tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    return tf.ensure_shape(moved, images.shape), mirrored[:, 0]


def _reflected(indices: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Fold -1, -2.. to 1, 2.. and size, size + 1.. to size - 2, size - 3.., for indices less than `size` outside."""
    return (size - 1) - tf.abs((size - 1) - tf.abs(indices))


def _color_jitter(strength: float) -> Operation:
    """Change brightness, contrast and saturation by a fraction of up to `strength` each, in this order.

    Brightness adds up to `strength` of mid-grey; contrast multiplies the distance from the image's mean colour, saturation the
    distance from each pixel's own grey (ITU-R BT.601). All three together are one affine function of a pixel's colour: 13 us an
    image of one core, where Keras's layers RandomBrightness, RandomContrast and RandomColorDegeneration took 39.
    """

    def operation(images: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
        shape = tf.shape(images)
        brightness, contrast, saturation = (1 + seeds.uniform([shape[0], 1, 1], -strength, strength) for _ in range(3))
        # A plane a channel: over the last of three short axes TensorFlow's products and sums are three times as slow.
        planes = tf.transpose(tf.reshape(images, [shape[0], -1, 3]), [0, 2, 1])
        mean = tf.reduce_mean(planes, axis=2, keepdims=True)
        to_grey = tf.tile(tf.constant([[0.299, 0.587, 0.114]]), [3, 1])
        saturate = saturation * tf.eye(3) + (1 - saturation) * to_grey
        offset = (1 - contrast) * mean + (brightness - 1) * MID_GREY
        changed = (contrast * saturate) @ planes + saturate @ offset
        return tf.reshape(tf.transpose(changed, [0, 2, 1]), shape)

    return operation


def _cutout(side: int) -> Operation:
    """Blank out a square around a random pixel, cut off at the border (arXiv:1708.04552)."""
    import keras_cv

    # The layer's own draws come from TensorFlow's global generator; its work takes the draws as arguments.
    layer = keras_cv.layers.RandomCutout(1.0, 1.0, fill_value=BLANK, dtype="float32")

    def operation(images: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
        batch, height, width = tf.unstack(tf.shape(images)[:3])
        sides = tf.fill([batch], side)
        transformations = {
            "centers_x": tf.random.stateless_uniform([batch], seeds.next(), 0, width, tf.int32),
            "centers_y": tf.random.stateless_uniform([batch], seeds.next(), 0, height, tf.int32),
            "rectangles_height": sides,
            "rectangles_width": sides,
        }
        return layer.augment_images(images, transformations=transformations)

    return operation


def _grid_mask(ratio: float) -> Operation:
    """Blank out a turned grid of squares, whose side is `ratio` of the grid's (arXiv:2001.04086)."""
    import keras_cv

    # With equal bounds the ratio is not drawn, and all other draws go through the attribute `_random_generator`.
    layer = keras_cv.layers.GridMask(ratio_factor=(ratio, ratio), fill_value=BLANK, dtype="float32")

    def masked(image_and_key: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, key = image_and_key
        layer._random_generator = layer.random_rotate._random_generator = KeyedSeeds(key)
        return layer.augment_image(image, transformation=layer.get_random_transformation(image=image))

    def operation(images: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
        keys = tf.random.stateless_uniform([tf.shape(images)[0], 2], seeds.next(), None, None, tf.int64)
        return tf.map_fn(masked, (images, keys), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32))

    return operation
