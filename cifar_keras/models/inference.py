"""Run many images through a Keras model, in parts, under the strategy in which the model was built."""

from collections.abc import Iterator

import keras
import numpy as np
from numpy.typing import NDArray

from cifar_keras.data.pipeline import input_batches
from cifar_keras.data.types import Images
from cifar_keras.files.progress_bar import progress

BATCHES_AT_A_TIME = 16


def predict_all(model: keras.Model, images: Images, batch_size: int, title: str) -> NDArray[np.float32]:
    """Return a model's outputs for all images, with a progress bar.

    The model runs under the strategy in which it was built.

    Args:
        model: takes uint8 images.
        images: uint8 `[n, height, width, 3]`.
        batch_size: images at a time, over all devices together.
        title: name of the progress bar.

    Returns:
        float32 `[n, ...]`.
    """
    return np.concatenate([predict_part(model, part, batch_size) for part in image_parts(images, batch_size, title)])


def image_parts(images: Images, batch_size: int, title: str) -> Iterator[NDArray[np.uint8]]:
    """Yield images, uint8 `[n, height, width, 3]`, in parts of `BATCHES_AT_A_TIME` batches, with a progress bar."""
    size = BATCHES_AT_A_TIME * batch_size
    for start in progress(range(0, len(images), size), desc=title, unit="part"):
        yield images[start : start + size]


def predict_part(model: keras.Model, part: NDArray[np.uint8], batch_size: int) -> NDArray[np.float32]:
    """Return a model's outputs for one part of the images, as `predict_all` does for all of them."""
    # The last batch is filled up by repeating the images from the first on, because no device may be left without an image.
    filled = np.resize(part, (-(-len(part) // batch_size) * batch_size, *part.shape[1:]))
    return np.asarray(model.predict(input_batches(filled, batch_size), verbose=0))[: len(part)]
