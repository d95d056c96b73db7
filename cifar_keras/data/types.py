"""Types: images in memory or on disk, labelled images, published data sets, and the splits of a run."""

import hashlib
import itertools
import os
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

# What selects some images: a slice, or their indices.
Selection = slice | NDArray[np.integer]


class StoredImages:
    """Images of equal size in a file, which are read from the disk when they are indexed.

    The file is read, not mapped into memory: mapped pages would count as memory of the process, and a file that is cut off would kill
    the process. The system still keeps what was read in its cache, as long as there is room.

    Args:
        path: of the file: the pixels of each image, uint8, one image after the other.
        shape: height, width and channels of each image.
        rows: int64 `[n]`, the places of the images in the file.
        digests: uint8 `[n, 32]`, the SHA-256 digest of each image's pixels.
        origins: uint8 `[n, 32]`, the same of the picture from which the image was resized; None if no image was resized.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        rows: NDArray[np.int64],
        digests: NDArray[np.uint8],
        origins: NDArray[np.uint8] | None = None,
    ) -> None:
        self._path, self._image_shape, self._rows, self.digests = path, shape, rows, digests
        self.origins = digests if origins is None else origins
        # Open as long as the object lives, so that a file that is removed during a run can still be read.
        self._file = path.open("rb")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number, height, width and channels."""
        return (len(self._rows), *self._image_shape)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, chosen: int | np.integer) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, chosen: Selection) -> NDArray[np.uint8]: ...
    def __getitem__(self, chosen: int | np.integer | Selection) -> NDArray[np.uint8]:
        """Read some images, uint8 `[m, height, width, 3]`, or one, uint8 `[height, width, 3]`."""
        rows = np.atleast_1d(self._rows[chosen])
        images = np.empty((len(rows), *self._image_shape), np.uint8)
        # Images that follow each other in the file are read at once.
        bounds = [*np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist(), len(rows)]
        for start, stop in itertools.pairwise(bounds):
            self._read(images[start:stop], int(rows[start]))
        return images if np.ndim(self._rows[chosen]) else images[0]

    def _read(self, images: NDArray[np.uint8], row: int) -> None:
        """Fill `images` with those that begin at a row of the file."""
        wanted, place = images.reshape(-1).data, row * int(np.prod(self._image_shape))
        while wanted:
            # Linux reads 2 GiB at most at a time.
            count = os.preadv(self._file.fileno(), [wanted], place)
            if count == 0:
                raise OSError(f"{self._path} is shorter than it was")
            wanted, place = wanted[count:], place + count

    def at(self, places: Selection) -> "StoredImages":
        """Return some of the images, without reading them."""
        return StoredImages(
            self._path, self._image_shape, self._rows[places], self.digests[places], self.origins[places]
        )


# uint8 [n, height, width, 3], RGB, 0..255. Both kinds have `shape`, `dtype`, `len`, and images at an index, a slice or an array of indices.
Images = NDArray[np.uint8] | StoredImages


class LabelledImages(NamedTuple):
    """Images and their labels, in the same order."""

    images: Images
    labels: NDArray[np.int64]  # [n], index of the class name

    def at(self, places: Selection) -> "LabelledImages":
        """Return some of the images with their labels. Stored images stay on the disk."""
        images = self.images.at(places) if isinstance(self.images, StoredImages) else self.images[places]
        return LabelledImages(images, self.labels[places])


def digests_of(images: Images) -> NDArray[np.uint8]:
    """Return the SHA-256 digest of each image's pixels, uint8 `[n, 32]`."""
    if isinstance(images, StoredImages):
        return images.digests
    digests = b"".join(hashlib.sha256(image.tobytes()).digest() for image in images)
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def origins_of(images: Images) -> NDArray[np.uint8]:
    """Return the SHA-256 digest of each image's pixels before it was resized to be stored, uint8 `[n, 32]`."""
    return images.origins if isinstance(images, StoredImages) else digests_of(images)


class Skipped(NamedTuple):
    """A file that a data set leaves out."""

    path: str
    reason: str


class PublishedDataset(NamedTuple):
    """A data set as its authors publish it. The parts are in the published order."""

    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]
    validation: LabelledImages | None = None  # None: it is taken from the train set
    # Of the images of `train`: the path of a file in the data set, or `train[PLACE]` in the published order.
    names: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()


class Corrections(NamedTuple):
    """What somebody says of the labels of a train set."""

    labels: NDArray[np.int64]  # [n], the right ones
    stays: NDArray[np.bool_]  # [n], false for an image that is left out


class Contents(NamedTuple):
    """What a data set holds, as a run's workdir keeps it."""

    # SHA-256 of the class names, and of the pixels and labels of each split. The order of images does not count.
    digest: str = ""
    images: tuple[tuple[str, int], ...] = ()  # the name of each split, and the number of its images
    skipped: tuple[Skipped, ...] = ()


class Dataset(NamedTuple):
    """The three splits of a run. `fit` learns from train, choices are made on validation, and metrics are reported on test."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]
    contents: Contents = Contents()


def contents_of(dataset: Dataset, skipped: tuple[Skipped, ...] = ()) -> Contents:
    """Return what a data set holds.

    Args:
        dataset: the data set.
        skipped: the files that it leaves out.
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    whole = hashlib.sha256(repr(dataset.class_names).encode())
    for split in splits.values():
        whole.update(repr((len(split.labels), *split.images.shape[1:])).encode())
        rows = sorted(zip(map(bytes, digests_of(split.images)), split.labels.tolist(), strict=True))
        whole.update(b"".join(digest + str(label).encode() for digest, label in rows))
    images = tuple((name, len(split.labels)) for name, split in splits.items())
    return Contents(whole.hexdigest(), images, skipped)
