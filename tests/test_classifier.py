import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import small_backbone

from cifar_keras.models.backbones import InputConvention
from cifar_keras.models.classifier import build_classifier


def some_images(count: int = 3, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def bilinear(images: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """Half-pixel bilinear interpolation with smoothing, written out: triangles as wide as two pixels of the smaller picture."""

    def weights(old: int) -> NDArray[np.float64]:
        matrix = np.zeros((size, old))
        for new in range(size):
            center, reach = (new + 0.5) * old / size, max(1.0, old / size)
            for pixel in range(old):
                matrix[new, pixel] = max(0.0, reach - abs(pixel + 0.5 - center))
            matrix[new] /= matrix[new].sum()
        return matrix

    rows, columns = weights(images.shape[1]), weights(images.shape[2])
    resized: NDArray[np.float64] = np.einsum("yh,nhwc,xw->nyxc", rows, images.astype(np.float64), columns)
    return resized


@pytest.mark.parametrize("convention", ["caffe", "tf"])
def test_the_input_transform_is_the_familys_own_on_resized_pixels(convention: InputConvention) -> None:
    classifier = build_classifier(small_backbone(), convention, class_count=10, dropout=0.0, seed=0)
    transform = keras.Model(classifier.inputs, classifier.get_layer("input_transform").output)
    images = some_images(height=24, width=40)
    module = keras.applications.resnet if convention == "caffe" else keras.applications.resnet_v2
    # The central square of 24 rows and 40 columns.
    wanted = module.preprocess_input(bilinear(images[:, :, 8:32], 16))
    np.testing.assert_allclose(transform.predict(images, verbose=0), wanted, atol=2e-4)


def test_the_head_starts_at_zero_logits_of_float32() -> None:
    classifier = build_classifier(small_backbone(), "caffe", class_count=7, dropout=0.2, seed=0)
    logits = classifier(some_images())
    assert logits.dtype == "float32"
    np.testing.assert_array_equal(logits, np.zeros((3, 7)))


def test_images_of_any_size_and_shape_are_taken() -> None:
    classifier = build_classifier(small_backbone(), "tf", class_count=10, dropout=0.0, seed=0)
    for height, width in ((1, 1), (7, 200), (64, 48)):
        assert classifier(some_images(2, height, width)).shape == (2, 10)


def test_dropout_acts_in_training_only() -> None:
    classifier = build_classifier(small_backbone(), "tf", class_count=10, dropout=0.5, seed=0)
    head = classifier.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    images = some_images()
    np.testing.assert_array_equal(classifier(images, training=False), classifier(images, training=False))
    assert np.abs(np.asarray(classifier(images, training=True)) - np.asarray(classifier(images))).max() > 1e-3
