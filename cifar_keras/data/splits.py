"""Divide the train set into the train split and the validation split."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from cifar_keras.data.types import Corrections, Dataset, LabelledImages, PublishedDataset, origins_of
from cifar_keras.errors import UserError


def make_splits(
    dataset: PublishedDataset, validation_share: float, seed: int, corrections: Corrections | None = None
) -> Dataset:
    """Return the three splits of a data set.

    The validation split is the one that the data set has, or is held out from the train set. The images of both splits come in the
    order of their content. So a run does not depend on the order or on the names of files.

    Args:
        dataset: the data set as it is published.
        validation_share: fraction of the train set that is held out, between 0 and 1.
        seed: decides which images are held out.
        corrections: of the train set. Which of its other images are held out does not depend on them.

    Raises:
        UserError: as in `hold_out`.

    Examples:
        >>> from cifar_keras.data.synthetic import make_dataset
        >>> splits = make_splits(make_dataset(seed=0), validation_share=0.1, seed=0)
        >>> len(splits.train.labels), len(splits.validation.labels), len(splits.test.labels)
        (360, 40, 100)
    """
    order, validation = content_order(dataset.train), dataset.validation

    def part(places: NDArray[np.int64]) -> LabelledImages:
        if corrections is None:
            return dataset.train.at(places)
        return dataset.train._replace(labels=corrections.labels).at(places[corrections.stays[places]])

    if validation is None:
        left, held_out = hold_out(dataset.train.labels[order], validation_share, seed, "validation_share")
        return Dataset(part(order[left]), part(order[held_out]), dataset.test, dataset.class_names)
    return Dataset(part(order), validation.at(content_order(validation)), dataset.test, dataset.class_names)


def content_order(split: LabelledImages) -> NDArray[np.int64]:
    """Return the places of labelled images in the order of the SHA-256 digests of their pixels; equal images by their labels.

    The pixels are those before an image was resized to be stored. So the order does not depend on the size in which it is stored.
    """
    digests = origins_of(split.images).view(">u8")
    order: NDArray[np.int64] = np.lexsort([split.labels, *digests.T[::-1]])
    return order


def hold_out(
    labels: NDArray[np.int64], fraction: float, seed: int, flag: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which images stay, and which are held out for another split.

    Both parts have the same mix of classes.

    Args:
        labels: int64 `[n]`, the class of each image.
        fraction: fraction of the images that is held out, between 0 and 1. The number of images is rounded.
        seed: decides which images are held out. The same seed always gives the same split.
        flag: the flag that names the fraction, for the message.

    Returns:
        The indices of the images that stay and of those that are held out, int64, each in rising order. Together they hold each of
        0..n-1 once.

    Raises:
        UserError: a class would have no image in one of the two parts.
    """
    # A count, because scikit-learn rounds a fraction up: 0.07 of 50,000 is 3,500.0000000000005 and would become 3,501.
    count = round(len(labels) * fraction)
    try:
        left, held_out = train_test_split(
            np.arange(len(labels), dtype=np.int64), test_size=count, stratify=labels, random_state=seed
        )
    # One side has fewer images than there are classes, or a class has a single image.
    except ValueError as error:
        raise _too_small(labels, fraction, flag) from error
    if not np.array_equal(np.unique(labels[left]), np.unique(labels[held_out])):
        raise _too_small(labels, fraction, flag)
    return np.sort(left), np.sort(held_out)


def _too_small(labels: NDArray[np.int64], fraction: float, flag: str) -> UserError:
    classes, counts = np.unique(labels, return_counts=True)
    split = flag.removesuffix("_share")
    return UserError(
        f"--{flag} has to leave at least one image of each of the {len(classes)} classes in the train split and in the {split} split; "
        f"they are taken from {len(labels)} images, {counts.min()} of the smallest class. Received: {fraction}"
    )
