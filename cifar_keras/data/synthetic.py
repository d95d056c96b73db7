"""A small set that can be learned in seconds, of as many classes as are asked for."""

import colorsys

import numpy as np
from numpy.typing import NDArray

from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.types import LabelledImages, PublishedDataset

TRAIN_IMAGES = 40  # of each class
TEST_IMAGES = 10
SIDE = 32  # pixels

_CONTRAST = 45.0  # of the colour and of the stripes, in levels of 255
_NOISE = 30.0  # standard deviation, in levels of 255
_PERIOD = 8.0  # of the stripes, in pixels
MOST_ALONG_A_LINE = 10  # classes whose hue tells the direction too


def make_dataset(seed: int, classes: int = 10) -> PublishedDataset:
    """Draw 40 train and 10 test images of each class, as a function of `seed` and the number of classes alone.

    A class is a hue and a direction of stripes. The position of the stripes and the noise differ from image to image. Ten
    classes have the names of CIFAR-10's.
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
    """Return for each class a step around the circle of colours and one of half a turn, and how many steps both have."""
    indices = np.arange(classes)
    if classes <= MOST_ALONG_A_LINE:
        return indices, indices, classes
    steps = int(np.ceil(np.sqrt(classes)))
    return indices % steps, indices // steps, steps


def _stripes(angles: NDArray[np.float64], phases: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sine waves `[n, SIDE, SIDE]`, -1..1, that run in the direction of `angles` (radians) and start at `phases`."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    along = np.cos(angles)[:, np.newaxis, np.newaxis] * columns + np.sin(angles)[:, np.newaxis, np.newaxis] * rows
    waves: NDArray[np.float64] = np.sin(2 * np.pi / _PERIOD * along + phases[:, np.newaxis, np.newaxis])
    return waves
