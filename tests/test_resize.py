"""The crop and resize against Pillow, against Keras's own layer, and against itself where nothing shrinks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from small_networks import small_classifier

from cifar_keras.exporting.conversion import _resized
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.resize import Resize


def some_images(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (2, height, width, 3), np.uint8)


def by_pillow(images: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """Pillow rounds twice to whole levels, so that it is known to one level."""
    height, width = images.shape[1:3]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    resized = [Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in resized]).astype(np.float64)


def traced(layer: Resize) -> tf.types.experimental.GenericFunction:
    """The layer as a server has it, which does not know the size of what comes."""
    return tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])


@pytest.mark.parametrize(("height", "width"), [(300, 400), (33, 32), (20, 400), (400, 20), (47, 53), (1, 99)])
def test_what_shrinks_is_smoothed_as_pillow_does_it(height: int, width: int) -> None:
    images = some_images(height, width)
    wanted = by_pillow(images, 32)
    squeezed = tf.image.resize(images, (32, 32), antialias=True).numpy()
    if height != width:
        assert np.abs(squeezed - wanted).mean() > 5  # without the crop it is another picture
    side = min(height, width)
    plain = tf.image.resize(tf.image.resize_with_crop_or_pad(images, side, side), (32, 32)).numpy()
    if side > 64:
        assert np.abs(plain - wanted).mean() > 20  # without smoothing it is another picture
    for resize in (Resize(32), traced(Resize(32))):
        np.testing.assert_allclose(resize(tf.constant(images)), wanted, atol=1.01)
    np.testing.assert_allclose(_resized(tf.cast(images, tf.float32), 32), wanted, atol=1.01)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (32, 32), (8, 32), (31, 5), (33, 32), (100, 20)])
def test_it_is_the_layer_that_is_saved(height: int, width: int) -> None:
    images = tf.constant(some_images(height, width))
    layer = keras.layers.Resizing(32, 32, crop_to_aspect_ratio=True, antialias=True, dtype="float32")
    wanted = layer(tf.cast(images, tf.float32))
    for resize in (Resize(32), traced(Resize(32))):
        np.testing.assert_allclose(resize(images), wanted, atol=1e-3)


@pytest.mark.parametrize("side", [32, 24, 1])
def test_what_grows_is_bit_for_bit_what_it_was_before_there_was_smoothing(side: int) -> None:
    images = tf.constant(some_images(side, side))
    for size in (32, 64, 96):
        for resize in (Resize(size), traced(Resize(size))):
            np.testing.assert_array_equal(resize(images), tf.image.resize(images, (size, size)))


def test_training_and_use_see_the_same_picture_of_a_large_image() -> None:
    """What a phase fits, and what is saved."""
    classifier = small_classifier()
    twin = assemble(classifier, fused_twin(classifier.get_layer("backbone"), compute_dtype="float32"))
    images = some_images(70, 50)
    np.testing.assert_allclose(
        twin.predict(images, verbose=0), classifier.predict(images, verbose=0), rtol=1e-4, atol=1e-4
    )
