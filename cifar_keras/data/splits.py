"""Divide the train set into the train split and the validation split."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from cifar_keras.data.types import Dataset, LabelledImages, PublishedDataset
from cifar_keras.errors import UserError


def make_splits(dataset: PublishedDataset, validation_share: float, seed: int) -> Dataset:
    """Return the three splits of a data set. `split_train` divides the train set; the test set is the test split.

    Args:
        dataset: the data set as it is published.
        validation_share: fraction of the train set that is held out, between 0 and 1.
        seed: decides which images are held out.

    Raises:
        UserError: as in `split_train`.

    Examples:
        >>> from cifar_keras.data.synthetic import make_dataset
        >>> splits = make_splits(make_dataset(seed=0), validation_share=0.1, seed=0)
        >>> len(splits.train.labels), len(splits.validation.labels), len(splits.test.labels)
        (360, 40, 100)
    """
    images, labels = dataset.train
    train, validation = (
        LabelledImages(images[part], labels[part]) for part in split_train(labels, validation_share, seed)
    )
    return Dataset(train, validation, dataset.test, dataset.class_names)


def split_train(
    labels: NDArray[np.int64], validation_share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which images of the train set are for training, and which are held out for validation.

    Both parts have the same mix of classes.

    Args:
        labels: int64 `[n]`, the class of each image of the train set.
        validation_share: fraction of the images that is held out, between 0 and 1. The number of images is rounded.
        seed: decides which images are held out. The same seed always gives the same split.

    Returns:
        The indices of the train split and of the validation split, int64, each in rising order. Together they hold each of 0..n-1
        once.

    Raises:
        UserError: a class would have no image in one of the two splits.
    """
    # A count, because scikit-learn rounds a fraction up: 0.07 of 50,000 is 3,500.0000000000005 and would become 3,501.
    validation_count = round(len(labels) * validation_share)
    try:
        train, validation = train_test_split(
            np.arange(len(labels), dtype=np.int64), test_size=validation_count, stratify=labels, random_state=seed
        )
    # One side has fewer images than there are classes, or a class has a single image.
    except ValueError as error:
        raise _too_small(labels, validation_share) from error
    if not np.array_equal(np.unique(labels[train]), np.unique(labels[validation])):
        raise _too_small(labels, validation_share)
    return np.sort(train), np.sort(validation)


def _too_small(labels: NDArray[np.int64], validation_share: float) -> UserError:
    return UserError(
        f"--validation_share has to leave at least one image of each of the {len(np.unique(labels))} classes in the train split and "
        f"in the validation split; the train set has {len(labels)} images. Received: {validation_share}"
    )
