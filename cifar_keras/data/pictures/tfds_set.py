"""List the pictures of a TFDS data set."""

import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cifar_keras.config import DataConfig, DataSource
from cifar_keras.data.decoding import PictureError
from cifar_keras.data.pictures.listing import SPLITS, Listing, Picture
from cifar_keras.errors import UserError, reason_of
from cifar_keras.files import paths

IMAGE_DTYPES = (np.uint8, np.uint16)


class TfdsPictures:
    """The pictures of a prepared TFDS data set, as encoded files, in the order in which TFDS has them.

    Args:
        builder: of the data set.
        splits: the splits to read.
    """

    def __init__(self, builder: Any, splits: list[str]) -> None:
        self._builder, self._splits = builder, splits

    def __len__(self) -> int:
        return sum(int(self._builder.info.splits[split].num_examples) for split in self._splits)

    def __iter__(self) -> Iterator[Picture]:
        """Read the pictures again from the first one.

        Raises:
            UserError: a file of the data set is damaged.
        """
        try:
            yield from self._pictures()
        except tf.errors.OpError as error:
            raise UserError(
                f"--dataset cannot be read: {reason_of(error)}. Received: {self._builder.data_dir}"
            ) from error

    def _pictures(self) -> Iterator[Picture]:
        features = self._builder.info.features
        for split in self._splits:
            examples = self._builder.as_dataset(
                split=split,
                decoders={"image": tfds.decode.SkipDecoding()},
                # One file after the other, so that the order is always the same.
                read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            )
            for number, example in enumerate(tfds.as_numpy(examples)):
                name, label = f"{split}[{number}]", int(example["label"])
                # Some sets keep the labels of their test split back, and write -1.
                if label < 0:
                    yield Picture(name, "", SPLITS[split], _refuse_unlabelled)
                    continue
                shown = paths.shown(features["label"].int2str(label))
                # `bytes` of bytes are the same object.
                yield Picture(name, shown, SPLITS[split], functools.partial(bytes, example["image"]))


def _refuse_unlabelled() -> bytes:
    raise PictureError("it has no label")


def list_tfds(name: str, data: DataConfig) -> Listing:
    """List the pictures of a TFDS data set that has `image` and `label`.

    Args:
        name: as TFDS knows the set: `NAME` or `NAME/CONFIG`, perhaps with `:VERSION`.
        data: the TFDS folder, and the source of the data. If it is PREPARED, a set that is missing is not downloaded.

    Raises:
        UserError: there is no such set, it is not prepared and cannot be, or it is not for classification.
    """
    folder, received = paths.expand("data_dir", data.data_dir), f"Received: --dataset={data.dataset}"
    builder = _prepared(name, folder, data.data_source is not DataSource.PREPARED, received)
    splits = [split for split in builder.info.splits if split in SPLITS]
    if not splits:
        raise UserError(
            f"--dataset has to name a set with a train split; its splits are {', '.join(builder.info.splits)}. {received}"
        )
    names = tuple(map(paths.shown, builder.info.features["label"].names))
    return Listing(TfdsPictures(builder, splits), [], _fingerprint(Path(builder.data_dir)), names)


def _prepared(name: str, folder: Path, may_download: bool, received: str) -> Any:
    """Return the builder of a set that is prepared."""
    try:
        # TFDS prints its progress to stdout.
        with contextlib.redirect_stdout(sys.stderr):
            builder = tfds.builder(name, data_dir=folder)
            # Before hours of download.
            _check_features(builder.info.features, received)
            if not builder.is_prepared() and may_download:
                builder.download_and_prepare()
        if builder.is_prepared():
            return builder
        reason = f"it is not prepared in {folder}"
    except UserError:
        raise
    # If a set is unknown or its servers do not answer, TFDS may raise almost anything, even an AssertionError.
    except Exception as error:
        reason = reason_of(error)
    raise UserError(
        f"--dataset cannot be read: {reason}. TFDS lists its sets on https://www.tensorflow.org/datasets/catalog/overview. "
        f"{received}"
    )


def _check_features(features: Any, received: str) -> None:
    """Check that a set is for classification.

    Raises:
        UserError: it is not.
    """
    known = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = (known.get(key) for key in ("image", "label"))
    # TFDS stores floating point pixels in four channels of a PNG file.
    is_image = isinstance(image, tfds.features.Image) and image.np_dtype in IMAGE_DTYPES
    if not is_image or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"--dataset has to name a set with an `image` of whole numbers and a class `label`; its features are "
            f"{', '.join(sorted(known)) or 'others'}. {received}"
        )


def _fingerprint(folder: Path) -> str:
    stats = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ctime_ns)
        for file in sorted(folder.iterdir())
        if file.is_file()
    ]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
