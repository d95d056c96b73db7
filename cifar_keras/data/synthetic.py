"""A small set that looks like CIFAR-10 to the rest of the package and can be learned in seconds."""

import colorsys

import numpy as np
from numpy.typing import NDArray

from cifar_keras.data import types
from cifar_keras.data.cifar10 import layout

TRAIN_IMAGES = 400
TEST_IMAGES = 100

_CONTRAST = 45.0  # of the colour and of the stripes, in levels of 255
_NOISE = 30.0  # standard deviation, in levels of 255
_PERIOD = 8.0  # of the stripes, in pixels


def make_dataset(seed: int) -> types.PublishedDataset:
    """Draw 400 train and 100 test images of ten classes, equally many of each, as a function of `seed` alone.

    A class is a hue and a direction of stripes. The position of the stripes and the noise differ from image to image.
    """
    train_seed, test_seed = np.random.SeedSequence(seed).spawn(2)
    return types.PublishedDataset(_draw(TRAIN_IMAGES, train_seed), _draw(TEST_IMAGES, test_seed), layout.CLASS_NAMES)


def _draw(count: int, seed: np.random.SeedSequence) -> types.LabelledImages:
    generator = np.random.default_rng(seed)
    classes = len(layout.CLASS_NAMES)
    labels = generator.permutation(np.arange(count) % classes)
    hues = np.array([colorsys.hsv_to_rgb(index / classes, 1, 1) for index in range(classes)]) * 2 - 1  # [10, 3], -1..1
    stripes = _stripes(np.pi * labels / classes, generator.uniform(0, 2 * np.pi, count))
    clean = 127.5 + _CONTRAST * (hues[labels][:, np.newaxis, np.newaxis, :] + stripes[..., np.newaxis])
    noisy = clean + generator.normal(0, _NOISE, (count, *layout.IMAGE_SHAPE))
    return types.LabelledImages(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), labels.astype(np.int64))


def _stripes(angles: NDArray[np.float64], phases: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sine waves [n, 32, 32], -1..1, that run in the direction of `angles` (radians) and start at `phases`."""
    rows, columns = np.mgrid[:32, :32]
    along = np.cos(angles)[:, np.newaxis, np.newaxis] * columns + np.sin(angles)[:, np.newaxis, np.newaxis] * rows
    waves: NDArray[np.float64] = np.sin(2 * np.pi / _PERIOD * along + phases[:, np.newaxis, np.newaxis])
    return waves
