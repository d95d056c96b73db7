"""Types: labelled images, published data sets, and the splits of a run."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LabelledImages(NamedTuple):
    """Images and their labels, in the same order."""

    images: NDArray[np.uint8]  # [n, height, width, 3], RGB, 0..255
    labels: NDArray[np.int64]  # [n], index of the class name


class PublishedDataset(NamedTuple):
    """A data set as its authors publish it, without a validation split. Both parts are in the published order."""

    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]


class Dataset(NamedTuple):
    """The three splits of a run. `fit` learns from train, choices are made on validation, and metrics are reported on test."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]
