import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from small_networks import small_classifier

from cifar_keras.evaluation.attribution import activation_maps, channel_weights, explaining_maps, occlusion_maps
from cifar_keras.evaluation.calibration import softmax
from cifar_keras.models.classifier import feature_maps


def some_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_activation_maps_are_grad_cam() -> None:
    """Against the definition, by automatic differentiation."""
    classifier = small_classifier()
    images, classes = some_images(5), np.array([0, 3, 3, 9, 7])
    backbone = classifier.get_layer("backbone")
    lower = keras.Model(backbone.input, backbone.layers[-1].input)
    pixels: tf.Tensor = tf.constant(images)
    for layer in classifier.layers[1 : classifier.layers.index(backbone)]:
        pixels = layer(pixels)
    with tf.GradientTape() as tape:
        features = lower(pixels, training=False)
        tape.watch(features)
        logits = classifier.get_layer("head")(backbone.layers[-1](features))
        chosen = tf.gather(logits, classes, batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, features), axis=[1, 2], keepdims=True)
    wanted = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1)).numpy()
    wanted /= np.maximum(wanted.max(axis=(1, 2), keepdims=True), 1e-12)
    found = feature_maps(classifier).predict(images, verbose=0)
    np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-4)
    maps = activation_maps(found, channel_weights(classifier, found, classes))
    assert wanted.std() > 0.1
    np.testing.assert_allclose(maps, wanted, atol=1e-5)


def test_where_nothing_speaks_for_a_class_the_map_is_zero() -> None:
    maps = activation_maps(np.ones((2, 3, 4, 5), np.float32), -np.ones((2, 5), np.float32))
    np.testing.assert_array_equal(maps, np.zeros((2, 3, 4)))


def corner_classifier(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Says class 1 as far as the upper left corner of 8 x 8 pixels is bright, and looks at nothing else."""
    brightness = images[:, :8, :8].mean(axis=(1, 2, 3))
    bright: NDArray[np.float64] = 1 / (1 + np.exp(-0.04 * brightness))
    return np.stack([1 - bright, bright], axis=1)


@pytest.mark.parametrize("side", [1, 3, 32, 39, 50])
def test_every_pixel_is_hidden_by_some_square(side: int) -> None:
    """A classifier that says what fraction of the image is white loses a part wherever a square lies."""

    def white(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        fraction = (images == 255).mean(axis=(1, 2, 3))
        return np.stack([1 - fraction, fraction], axis=1)

    falls = occlusion_maps(white, np.full((1, side, side + 5, 3), 255, np.uint8), np.array([1]))
    assert falls.min() > 0


@pytest.mark.slow
def test_the_maps_are_of_the_classes_that_are_named() -> None:
    classifier, images, other = small_classifier(), some_images(3), np.array([2, 0, 5])

    def probabilities_of(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return softmax(classifier.predict(pixels, verbose=0))

    predicted, features = probabilities_of(images).argmax(axis=1), feature_maps(classifier).predict(images, verbose=0)
    classes = [("predicted", predicted), ("true", other)]
    drawn = dict(explaining_maps(classifier, probabilities_of, images, classes))
    kernel = np.asarray(classifier.get_layer("head").kernel)
    assert list(drawn) == ["Grad-CAM, predicted", "Grad-CAM, true", "occlusion, predicted"]
    np.testing.assert_array_equal(drawn["Grad-CAM, predicted"], activation_maps(features, kernel[:, predicted].T))
    np.testing.assert_array_equal(drawn["Grad-CAM, true"], activation_maps(features, kernel[:, other].T))
    np.testing.assert_array_equal(drawn["occlusion, predicted"], occlusion_maps(probabilities_of, images, predicted))


def test_occlusion_finds_the_only_place_that_counts() -> None:
    images = np.full((1, 32, 32, 3), 255, np.uint8)
    fall = occlusion_maps(corner_classifier, images, np.array([1]))[0]
    against = occlusion_maps(corner_classifier, images, np.array([0]))[0]
    np.testing.assert_allclose(against, -fall, atol=1e-6)
    assert fall[:4, :4].min() == fall.max() > 0
    assert fall[:8, :8].min() > 0
    np.testing.assert_allclose(fall[12:, 12:], 0, atol=1e-6)
    # The square over the corner alone: its brightness is 255 before and 128 after.
    before, after = (1 / (1 + np.exp(-0.04 * bright)) for bright in (255, 128))
    assert fall[0, 0] == pytest.approx(before - after, abs=1e-5)
