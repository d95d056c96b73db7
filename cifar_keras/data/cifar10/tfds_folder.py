"""The TensorFlow Datasets folder of CIFAR-10. It is verified when it is read, and appears whole or not at all."""

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification.cifar import Cifar10

from cifar_keras.data import types
from cifar_keras.data.cifar10 import layout
from cifar_keras.data.cifar10.layout import folder_of
from cifar_keras.errors import SourceError, reason_of
from cifar_keras.files import paths

_NAME = f"cifar10:{layout.TFDS_VERSION}"
# Size of cifar-10-binary.tar.gz, which TFDS records as the size of its download.
ARCHIVE_BYTES = 170_052_171


def read_folder(data_dir: Path, contents: layout.Contents = layout.OFFICIAL) -> types.PublishedDataset:
    """Return the prepared data set, read with `tfds.load` and verified.

    TFDS keeps the images shuffled. Their ids (`train_00000` to `train_49999`) restore the official order.

    Raises:
        SourceError: there is no such folder, or it is not whole; the message names the folder.
    """
    folder = folder_of(data_dir)
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}")
    try:
        with _quiet():
            splits, info = tfds.load(_NAME, data_dir=data_dir, download=False, batch_size=-1, with_info=True)
        dataset = types.PublishedDataset(
            _in_official_order(splits["train"], "train"),
            _in_official_order(splits["test"], "test"),
            tuple(info.features["label"].names),
        )
        if dataset.class_names != layout.CLASS_NAMES:
            raise SourceError(f"its classes are {dataset.class_names}")
        layout.verify(dataset, contents)
    # On a broken folder TFDS may raise almost anything, even an AssertionError.
    except Exception as error:
        raise SourceError(f"{folder} is not a whole CIFAR-10: {reason_of(error)}") from error
    return dataset


def write_folder(
    dataset: types.PublishedDataset, data_dir: Path, contents: layout.Contents = layout.OFFICIAL
) -> types.PublishedDataset:
    """Write the TFDS folder from arrays in memory, with TFDS's own CIFAR-10 builder, and return what is read back.

    The builder gets the files that it would have unpacked. So ids, features, class names and shuffling are the builder's own.

    Raises:
        SourceError: the written folder does not verify, or another process has put a broken folder in its place.
        OSError: the disk is full or cannot be written.
    """
    with paths.scratch_folder(data_dir) as scratch:
        unpacked = scratch / "unpacked"
        _write_unpacked_archive(dataset, unpacked)
        with _quiet():
            _local_builder(unpacked, data_dir=scratch).download_and_prepare()
        return _install(scratch, data_dir, contents)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send the output of TFDS to stderr, without its progress bars if that is no terminal: there, each state of a bar is a line."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _install(scratch: Path, data_dir: Path, contents: layout.Contents) -> types.PublishedDataset:
    """Move the prepared data set from `scratch` to `data_dir` once it verifies, and return it. A folder that is already there stays."""
    dataset = read_folder(scratch, contents)
    target = folder_of(data_dir)
    target.parent.mkdir(exist_ok=True)
    try:
        folder_of(scratch).rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another process was faster.
        return read_folder(data_dir, contents)
    return dataset


def _in_official_order(examples: dict[str, Any], split: str) -> types.LabelledImages:
    ids = examples["id"].numpy()
    order = np.argsort(ids)
    expected = [f"{split}_{index:05d}".encode() for index in range(len(ids))]
    if ids[order].tolist() != expected:
        raise SourceError(f"the ids of its {split} images are not {expected[0].decode()} to {expected[-1].decode()}")
    return types.LabelledImages(examples["image"].numpy()[order], examples["label"].numpy()[order])


def _write_unpacked_archive(dataset: types.PublishedDataset, folder: Path) -> None:
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    for name, records in layout.batches_of(dataset):
        (batches / f"{name}.bin").write_bytes(records)
    (batches / "batches.meta.txt").write_text("\n".join(dataset.class_names) + "\n")


def _local_builder(unpacked: Path, data_dir: Path) -> tfds.core.DatasetBuilder:
    class UnpackedArchive:
        """The part of TFDS's download manager that the CIFAR-10 builder uses, without any network."""

        downloaded_size = ARCHIVE_BYTES

        def download_and_extract(self, _url: str) -> str:
            return str(unpacked)

    with tfds.core.registered.skip_registration():

        class LocalCifar10(Cifar10):
            """TFDS's builder, reading the images that we verified. The folder keeps the name and the module of the original."""

            name = Cifar10.name
            __module__ = Cifar10.__module__

            def _make_download_manager(self, **_settings: Any) -> UnpackedArchive:
                return UnpackedArchive()

    return LocalCifar10(data_dir=data_dir)
