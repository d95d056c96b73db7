"""A small synthetic data set that a network learns in seconds, with any number of classes."""

import colorsys

import numpy as np
from numpy.typing import NDArray

from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.types import LabelledImages, PublishedDataset

TRAIN_IMAGES = 40  # of each class
TEST_IMAGES = 10
SIDE = 32  # pixels

# Contrast of the colour and of the stripes, in levels of 255.
_CONTRAST = 45.0
# Standard deviation of the noise, in levels of 255.
_NOISE = 30.0
# Period of the stripes, in pixels.
_PERIOD = 8.0
# Up to this number of classes, each has its own hue and its own direction. With more classes, several share a hue or a direction.
MOST_ALONG_A_LINE = 10


def make_dataset(seed: int, classes: int = 10) -> PublishedDataset:
    """Return a set of 40 train images and 10 test images for each class. It depends only on `seed` and the number of classes.

    A class is a hue and a direction of stripes. The position of the stripes and the noise differ from image to image. If there are
    ten classes, they have the names of CIFAR-10's classes.

    Args:
        seed: draws the images.
        classes: number of classes.

    Examples:
        >>> dataset = make_dataset(seed=0, classes=3)
        >>> dataset.train.images.shape, dataset.test.images.shape
        ((120, 32, 32, 3), (30, 32, 32, 3))
        >>> dataset.class_names
        ('class 0', 'class 1', 'class 2')
    """
    train_seed, test_seed = np.random.SeedSequence(seed).spawn(2)
    names = CLASS_NAMES if classes == len(CLASS_NAMES) else tuple(f"class {index}" for index in range(classes))
    return PublishedDataset(
        _draw(TRAIN_IMAGES * classes, classes, train_seed), _draw(TEST_IMAGES * classes, classes, test_seed), names
    )


def _draw(count: int, classes: int, seed: np.random.SeedSequence) -> LabelledImages:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes)
    hue, direction, steps = _hues_and_directions(classes)
    hues = np.array([colorsys.hsv_to_rgb(step / steps, 1, 1) for step in hue.tolist()]) * 2 - 1  # [classes, 3], -1..1
    stripes = _stripes(np.pi * direction[labels] / steps, generator.uniform(0, 2 * np.pi, count))
    clean = 127.5 + _CONTRAST * (hues[labels][:, np.newaxis, np.newaxis, :] + stripes[..., np.newaxis])
    noisy = clean + generator.normal(0, _NOISE, (count, SIDE, SIDE, 3))
    return LabelledImages(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), labels.astype(np.int64))


def _hues_and_directions(classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return for each class its step around the circle of colours and its step of half a turn, and the number of steps in each."""
    indices = np.arange(classes)
    if classes <= MOST_ALONG_A_LINE:
        return indices, indices, classes
    steps = int(np.ceil(np.sqrt(classes)))
    return indices % steps, indices // steps, steps


def _stripes(angles: NDArray[np.float64], phases: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sine waves `[n, SIDE, SIDE]`, -1..1, in the directions `angles` (radians) and with the phases `phases` (radians)."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    along = np.cos(angles)[:, np.newaxis, np.newaxis] * columns + np.sin(angles)[:, np.newaxis, np.newaxis] * rows
    waves: NDArray[np.float64] = np.sin(2 * np.pi / _PERIOD * along + phases[:, np.newaxis, np.newaxis])
    return waves
