"""CIFAR-10 as arrays: its official order, its layout in bytes, and the digests that verify a copy."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_keras.data.types import LabelledImages, PublishedDataset
from cifar_keras.errors import SourceError
from cifar_keras.files import paths

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SHAPE = (32, 32, 3)
TRAIN_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
TEST_BATCH = "test_batch"

# An image in the binary version (https://www.cs.toronto.edu/~kriz/cifar.html): the label, then the red, the green and
# the blue plane, each of 32 rows of 32 pixels.
RECORD_BYTES = 1 + 3 * 32 * 32

TFDS_VERSION = "3.0.2"


class Contents(NamedTuple):
    """The content of a whole copy: the MD5 digest of each batch, in the layout of the binary version."""

    images_per_batch: int
    md5: dict[str, str]  # by the name of the batch


# The digests were computed from the npm tarball that `sources` pins by SHA-512. They find a copy that is broken, not one that was
# forged with effort.
OFFICIAL = Contents(
    images_per_batch=10_000,
    md5={
        "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
)


def folder_of(data_dir: Path) -> Path:
    """Return the folder inside `data_dir` in which TFDS keeps the prepared data set."""
    return data_dir / "cifar10" / TFDS_VERSION


def is_prepared(data_dir: str) -> bool:
    """Return whether the folder that `--data_dir` names holds a prepared data set. It may be broken: its reader verifies it.

    Raises:
        UserError: the folder is no path that can be used.
    """
    return folder_of(paths.expand("data_dir", data_dir)).exists()


def from_planes(planes: NDArray[np.uint8], labels: NDArray[np.uint8]) -> LabelledImages:
    """Return the images and labels of uint8 `[n, 3072]` (red, green, blue plane) and uint8 labels `[n]`."""
    images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return LabelledImages(np.ascontiguousarray(images), labels.astype(np.int64))


def dataset_from_batches(batches: dict[str, LabelledImages]) -> PublishedDataset:
    """Return the data set of the five train batches, joined in their official order, and the test batch."""
    train = [batches[name] for name in TRAIN_BATCHES]
    return PublishedDataset(
        LabelledImages(
            np.concatenate([batch.images for batch in train]), np.concatenate([batch.labels for batch in train])
        ),
        batches[TEST_BATCH],
        CLASS_NAMES,
    )


def batches_of(dataset: PublishedDataset) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each batch, as in the binary version, train batches first."""
    size = len(dataset.train.labels) // len(TRAIN_BATCHES)
    for index, name in enumerate(TRAIN_BATCHES):
        part = slice(index * size, (index + 1) * size)
        yield name, _records(LabelledImages(dataset.train.images[part], dataset.train.labels[part]))
    yield TEST_BATCH, _records(dataset.test)


def verify(dataset: PublishedDataset, contents: Contents) -> None:
    """Check the number, the order, the pixels and the labels of all images of a copy.

    Raises:
        SourceError: the copy is not whole; the message names the first batch that differs.
    """
    counts = (len(dataset.train.labels), len(dataset.test.labels))
    expected = (len(TRAIN_BATCHES) * contents.images_per_batch, contents.images_per_batch)
    if counts != expected:
        raise SourceError(
            f"it holds {counts[0]} train and {counts[1]} test images instead of {expected[0]} and {expected[1]}"
        )
    for name, records in batches_of(dataset):
        digest = hashlib.md5(records, usedforsecurity=False).hexdigest()
        if digest != contents.md5[name]:
            raise SourceError(f"{name} is not the official one (md5 {digest} instead of {contents.md5[name]})")


def _records(batch: LabelledImages) -> bytes:
    planes = batch.images[:].transpose(0, 3, 1, 2).reshape(len(batch.images), -1)
    return np.concatenate([batch.labels.astype(np.uint8)[:, np.newaxis], planes], axis=1).tobytes()
