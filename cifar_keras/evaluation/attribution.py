"""Attribution: maps of the parts of an image that speak for a class, by Grad-CAM and by occlusion."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.models.classifier import feature_maps, pooling_of

# A classifier: a function from uint8 images [n, height, width, 3] to probabilities [n, classes].
Probabilities = Callable[[NDArray[np.uint8]], NDArray[np.float64]]


def explaining_maps(
    classifier: keras.Model,
    probabilities_of: Probabilities,
    images: NDArray[np.uint8],
    classes: Sequence[tuple[str, NDArray[np.int64]]],
) -> list[tuple[str, NDArray[np.float32]]]:
    """Return attribution maps with a heading each: Grad-CAM of each entry of `classes`, and occlusion of the first entry.

    Args:
        classifier: a run's `model.keras`.
        probabilities_of: the same model as it is served.
        images: uint8 `[n, height, width, 3]`.
        classes: entries of a name, such as "predicted", and the class of each image under that name, int64 `[n]`.
    """
    # `predict` would start a pipeline of threads.
    features = np.asarray(feature_maps(classifier).predict_on_batch(images))
    maps = [
        (f"Grad-CAM, {called}", activation_maps(features, channel_weights(classifier, features, indices)))
        for called, indices in classes
    ]
    called, indices = classes[0]
    return [*maps, (f"occlusion, {called}", occlusion_maps(probabilities_of, images, indices))]


def channel_weights(
    classifier: keras.Model, features: NDArray[np.float32], classes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the gradient of each image's logit with respect to the mean of each feature map (arXiv:1610.02391, equation 1).

    If only a linear head with the kernel W follows the means, the gradient is W[k, c] for every image, and nothing has to be computed.
    A ConvNeXt normalizes the means before its head.

    Args:
        classifier: a run's `model.keras`.
        features: float32 `[n, rows, columns, channels]`, the last feature maps.
        classes: int64 `[n]`, the class whose logit is explained.

    Returns:
        float32 `[n, channels]`.
    """
    backbone, head = classifier.get_layer("backbone"), classifier.get_layer("head")
    pooling = pooling_of(backbone)
    if pooling.output is backbone.output:
        weights: NDArray[np.float32] = np.asarray(head.kernel).T[classes]
        return weights
    behind = keras.Model(pooling.output, backbone.output)
    means = tf.constant(features.mean(axis=(1, 2)))
    with tf.GradientTape() as tape:
        tape.watch(means)
        logits = tf.gather(head(behind(means, training=False)), classes, batch_dims=1)
    return np.asarray(tape.gradient(logits, means))


def activation_maps(features: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Grad-CAM of each image: relu(sum over k of weights[k] A[k]) (arXiv:1610.02391, equation 2).

    The gradient with respect to a map is the same at each position: the gradient with respect to the map's mean, divided by the number
    of positions. With a linear head the result is the class activation map of arXiv:1512.04150, up to that number.

    Args:
        features: float32 `[n, rows, columns, channels]`, the last feature maps A.
        weights: float32 `[n, channels]`, what `channel_weights` returned.

    Returns:
        float32 `[n, rows, columns]`, 0..1. The largest value of an image is 1; all values are 0 if nothing speaks for the class.

    Examples:
        One image with a single feature map of 1 x 3 positions:

        >>> features = np.array([[[[2.0], [1.0], [-3.0]]]], np.float32)
        >>> activation_maps(features, weights=np.array([[0.5]], np.float32)).tolist()
        [[[1.0, 0.5, 0.0]]]
    """
    maps = np.maximum(np.einsum("nhwk,nk->nhw", features, weights), 0)
    largest = maps.max(axis=(1, 2), keepdims=True)
    fractions: NDArray[np.float32] = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
    return fractions


def occlusion_maps(
    probabilities_of: Probabilities,
    images: NDArray[np.uint8],
    classes: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return how much a class's probability falls when a grey square hides a place (arXiv:1311.2901, section 4.2).

    The square's side is a quarter of the image's shorter side. The square moves by half of its own side, and the last squares end at
    the border. An image of 32 px has 49 such places.

    Args:
        probabilities_of: a classifier, from images `[n, height, width, 3]` to probabilities `[n, classes]`.
        images: uint8 `[n, height, width, 3]`.
        classes: int64 `[n]`, the class whose probability is explained.

    Returns:
        float32 `[n, height, width]`, -1..1: for each pixel, the mean fall over the squares that hide it. It is positive where the place
        speaks for the class.
    """
    count, height, width, _ = images.shape
    patch = max(1, min(height, width) // 4)
    stride = max(1, patch // 2)
    rows, columns = ([*range(0, side - patch, stride), side - patch] for side in (height, width))
    places = [(slice(row, row + patch), slice(column, column + patch)) for row in rows for column in columns]

    def probability(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return probabilities_of(pixels)[np.arange(count), classes]

    whole = probability(images)
    falls, covered = np.zeros((count, height, width), np.float32), np.zeros((height, width), np.float32)
    for place in places:
        hidden = images.copy()
        hidden[:, *place] = 128
        falls[:, *place] += (whole - probability(hidden))[:, None, None]
        covered[place] += 1
    falls /= np.maximum(covered, 1)
    return falls
