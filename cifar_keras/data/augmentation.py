"""Augmentation: random changes to a batch of training images. The result depends only on the batch and its key.

Keras's preprocessing layers keep their random state in a variable. In a parallel `Dataset.map` a batch would get whichever state is
there when it runs. The layers have two public parts: `get_random_transformation` draws, and `transform_images` applies what was
drawn. So we can pass in the seeds.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import tensorflow as tf

from cifar_keras.config import AugmentationConfig
from cifar_keras.data.mixing import make_mixing
from cifar_keras.data.pipeline import Augmentation, Batch, of_views
from cifar_keras.data.seeds import KeyedSeeds
from cifar_keras.errors import UserError

# Cutout and the grid mask paint this mid-grey. The models' input transforms map it close to 0, as in arXiv:1708.04552.
BLANK = 128
# The middle of the range 0..255.
MID_GREY = 127.5
# The number that seeds the draws of mixing; those of the operations are in `_operations`.
MIXING = 7


# Takes float32 images [batch, height, width, 3], 0..255, and the seeds of this batch and operation. Returns images of the same shape and
# dtype, not yet clipped.
Operation = Callable[[tf.Tensor, KeyedSeeds], tf.Tensor]


def is_flip_alone(config: AugmentationConfig) -> bool:
    """Return whether augmentation flips images at most, so that each image has one or two views."""
    others = dataclasses.replace(
        config,
        flip=False,
        resized_crop_ratio=AugmentationConfig.resized_crop_ratio,
        unmixed_share=AugmentationConfig.unmixed_share,
    )
    return others == AugmentationConfig(flip=False, crop_padding=0)


def without_mixing(config: AugmentationConfig) -> AugmentationConfig:
    """Return the settings of the same augmentation with whole images."""
    return dataclasses.replace(config, mixup_alpha=0.0, cutmix_alpha=0.0)


def check_fits(config: AugmentationConfig, side: int) -> None:
    """Check that images are large enough for their augmentation.

    Args:
        config: which operations are on, and how strong they are.
        side: the shorter side of the images, in pixels.

    Raises:
        UserError: an operation needs larger images.
    """
    # A reflection ends where the image ends.
    if config.crop_padding >= side:
        raise UserError(
            f"--crop_padding has to be less than {side}, the side of the images in pixels. Received: {config.crop_padding}"
        )
    if config.cutout > side:
        raise UserError(
            f"--cutout has to be at most {side}, the side of the images in pixels. Received: {config.cutout}"
        )


def make_augmentation(config: AugmentationConfig) -> Augmentation:
    """Return the function that augments a batch. Every image has its own random draws.

    Args:
        config: which operations are on, and how strong they are.

    Returns:
        A function from a batch of images, uint8 `[batch, height, width, 3]`, and its key to a batch of images of the same shape and
        dtype. If every operation is off, it returns the images unchanged.
    """
    operations, mix = _operations(config), make_mixing(config)

    def seeds_of(key: tf.Tensor, number: int) -> KeyedSeeds:
        return KeyedSeeds(tf.random.experimental.stateless_fold_in(key, tf.constant(number, tf.int64)))

    def augment(batch: Batch, key: tf.Tensor) -> Batch:
        images, views = batch.inputs, tf.zeros(tf.shape(batch.inputs)[:1], tf.int32)
        if config.flip or config.crop_padding:
            images, views = _flip_and_crop(images, config.flip, config.crop_padding, seeds_of(key, 0))
        targets = of_views(batch.targets, views)
        if not operations and mix is None:
            return Batch(images, targets)
        changed = tf.cast(images, tf.float32)
        for number, operation in operations:
            changed = operation(changed, seeds_of(key, number))
        changed = tf.clip_by_value(changed, 0.0, 255.0)
        if mix is not None:
            changed, targets = mix(Batch(changed, targets), seeds_of(key, MIXING))
        return Batch(tf.cast(tf.round(changed), tf.uint8), targets)

    return augment


def _operations(config: AugmentationConfig) -> list[tuple[int, Operation]]:
    """Return the operations that are on, in their order. The number before each seeds its draws.

    A number belongs to its operation for good. So the draws of an operation do not change when another one is turned on, or a new one
    comes before it.
    """
    operations = []
    # The crop comes first: what is blanked out keeps its size.
    if config.resized_crop_scale < 1:
        operations.append((6, _resized_crop(config.resized_crop_scale, config.resized_crop_ratio)))
    # float32 even if the model's policy is mixed: bfloat16 has 8 bits, too few for fractions of a pixel value.
    if config.rotation_degrees:
        layer = keras.layers.RandomRotation(config.rotation_degrees / 360, dtype="float32")
        operations.append((1, _keras_operation(layer)))
    if config.zoom:
        operations.append((2, _keras_operation(keras.layers.RandomZoom(config.zoom, dtype="float32"))))
    if config.color_jitter:
        operations.append((3, _color_jitter(config.color_jitter)))
    if config.cutout:
        operations.append((4, _cutout(config.cutout)))
    if config.grid_mask:
        operations.append((5, _grid_mask(config.grid_mask)))
    return operations


def _keras_operation(layer: keras.layers.Layer) -> Operation:
    def operation(images: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
        transformation = layer.get_random_transformation(images, training=True, seed=seeds)
        return layer.transform_images(images, transformation, training=True)

    return operation


def _flip_and_crop(images: tf.Tensor, flip: bool, padding: int, seeds: KeyedSeeds) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the images after a random flip and a random shift.

    Half of the images are mirrored. Then each is shifted by up to `padding` pixels, and its reflection fills the border, as in
    `numpy.pad` with mode "reflect". Pixels only move, so this works on bytes. Flip and shift together take 17 us per image on one
    core; Keras's RandomFlip alone took 45 us (`tf.reverse`). Keras's RandomCrop draws one place for the whole batch, and its
    RandomTranslation interpolates between pixels.

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
    """Return indices, with those outside of 0..size - 1 reflected at the border.

    -1, -2.. become 1, 2.., and size, size + 1.. become size - 2, size - 3... An index has to be less than `size` outside.
    """
    return (size - 1) - tf.abs((size - 1) - tf.abs(indices))


def _resized_crop(smallest_area: float, largest_ratio: float) -> Operation:
    """Return the operation that enlarges a random part of each image to the size of the image (arXiv:1409.4842, section 6).

    The part's area, as a fraction of the image's, is uniform in `smallest_area`..1. Its aspect ratio, as a multiple of the image's, is
    log-uniform in 1 / `largest_ratio`..`largest_ratio`, or in the narrower range in which a part of this area fits into the image. Its
    place is uniform. Torchvision draws area and ratio again while the part does not fit, at most ten times, and so prefers small areas.
    """

    def operation(images: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
        batch = tf.shape(images)[:1]
        area = seeds.uniform(batch, smallest_area)
        # A part of area a and ratio r has the sides sqrt(a / r) and sqrt(a * r), of which neither may be above 1.
        widest = tf.minimum(math.log(largest_ratio), -tf.math.log(area))
        ratio = tf.exp(widest * seeds.uniform(batch, -1.0, 1.0))
        sides = tf.sqrt(tf.stack([area / ratio, area * ratio], axis=1))
        corners = (1 - sides) * tf.stack([seeds.uniform(batch), seeds.uniform(batch)], axis=1)
        return _enlarged(images, corners, sides)

    return operation


def _enlarged(images: tf.Tensor, corners: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
    """Return a part of each image, enlarged to the size of the image by bilinear interpolation.

    The part is read out of the whole image. So at its edge the interpolation sees the next pixel outside; beyond the image's own edge
    the last pixel goes on. A part never shrinks, so nothing has to be smoothed. This takes 25 us for an image of 32 px and 1.2 ms for
    one of 256 px on one core. `ImageProjectiveTransformV3` took 44 us and 2.3 ms.

    Args:
        images: float32 `[batch, height, width, 3]`.
        corners: float32 `[batch, 2]`, top and left of each part, as fractions of height and width.
        sides: float32 `[batch, 2]`, height and width of each part, as fractions.
    """
    size = tf.shape(images)[1:3]
    pixels = tf.cast(size, tf.float32)
    # `crop_and_resize` wants the centres of the first and the last pixel, as fractions of the distance between the centres of the
    # image's first and last. With one more pixel around the image all of them lie inside it.
    first = corners * pixels + sides / 2 + 0.5
    boxes = tf.concat([first, first + sides * (pixels - 1)], axis=1) / tf.tile(pixels + 1, [2])
    framed = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    enlarged = tf.image.crop_and_resize(framed, boxes, tf.range(tf.shape(images)[0]), size)
    return tf.ensure_shape(enlarged, images.shape)


def _color_jitter(strength: float) -> Operation:
    """Return the operation that changes brightness, contrast and saturation, in this order, by a fraction of up to `strength` each.

    Brightness adds up to `strength` of mid-grey. Contrast multiplies the distance from the image's mean colour. Saturation
    multiplies the distance from each pixel's own grey (ITU-R BT.601). All three together are one affine function of a pixel's
    colour, and take 13 us per image on one core. Keras's layers RandomBrightness, RandomContrast and RandomColorDegeneration took
    39 us.
    """

    def operation(images: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
        shape = tf.shape(images)
        brightness, contrast, saturation = (1 + seeds.uniform([shape[0], 1, 1], -strength, strength) for _ in range(3))
        # One plane for each channel: if the channels are the last axis, TensorFlow's products and sums are three times as slow.
        planes = tf.transpose(tf.reshape(images, [shape[0], -1, 3]), [0, 2, 1])
        mean = tf.reduce_mean(planes, axis=2, keepdims=True)
        to_grey = tf.tile(tf.constant([[0.299, 0.587, 0.114]]), [3, 1])
        saturate = saturation * tf.eye(3) + (1 - saturation) * to_grey
        offset = (1 - contrast) * mean + (brightness - 1) * MID_GREY
        changed = (contrast * saturate) @ planes + saturate @ offset
        return tf.reshape(tf.transpose(changed, [0, 2, 1]), shape)

    return operation


def _cutout(side: int) -> Operation:
    """Return the operation that blanks out a square around a random pixel, cut off at the border (arXiv:1708.04552)."""
    import keras_cv

    # The layer itself would draw from TensorFlow's global generator. Its `augment_images` takes the draws as arguments.
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
    """Return the operation that blanks out a rotated grid of squares, whose side is `ratio` of the grid's (arXiv:2001.04086)."""
    import keras_cv

    # With equal bounds the ratio is not drawn. All other draws go through the attribute `_random_generator`, which `masked` replaces.
    layer = keras_cv.layers.GridMask(ratio_factor=(ratio, ratio), fill_value=BLANK, dtype="float32")

    def masked(image_and_key: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, key = image_and_key
        layer._random_generator = layer.random_rotate._random_generator = KeyedSeeds(key)
        return layer.augment_image(image, transformation=layer.get_random_transformation(image=image))

    def operation(images: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
        keys = tf.random.stateless_uniform([tf.shape(images)[0], 2], seeds.next(), None, None, tf.int64)
        return tf.map_fn(masked, (images, keys), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32))

    return operation
