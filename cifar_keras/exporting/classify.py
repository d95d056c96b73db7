"""Classify picture files with a loaded SavedModel. Files are read and decoded while the network computes."""

import io
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from cifar_keras.data import decoding
from cifar_keras.errors import UserError
from cifar_keras.files import paths

# Files in a batch.
BATCH_SIZE = 32
# Pixels and bytes of a batch, added up. A large photograph is a batch of its own, so that its line is printed as soon as it is known.
BATCH_PIXELS = 4_000_000
# Pixels and bytes of all batches that are decoded at the same time: about 0.5 GB. One larger picture is decoded alone.
PIXELS_AT_ONCE = 32_000_000
# Formats that the SavedModel's `serve_bytes` decodes, to the same pixels as `decoding`.
SERVED_FORMATS = ("JPEG", "PNG", "BMP", "GIF")
# Batches that are computed side by side, so that one is decoded while another is in the network. A batch is decoded by one core.
WORKERS = min(8, max(2, os.cpu_count() or 1))

# float32 [classes], or why there are none.
Row = NDArray[np.float32] | UserError


class FileContent(NamedTuple):
    """A file that was read, and what its beginning says."""

    path: Path
    content: bytes | UserError  # the error about a file that is not a picture
    as_stored: bool = False  # `serve_bytes` takes the file as it is


class _Batch(NamedTuple):
    files: list[FileContent]
    weight: int  # pixels and bytes


def classify(model: Any, files: Iterable[Path]) -> Iterator[tuple[Path, Row]]:
    """Yield each file with its probabilities, float32 `[classes]`, or with the error about it.

    Files come in order, as soon as they are known. The memory does not depend on their number. Probabilities are those of the
    SavedModel's `serve_bytes` for the file alone, up to the rounding of float32, which depends on the size of a batch: at most
    1e-4 (measured: 1.4e-5 on 10,000 drawn JPEG files, by a ResNet50 with random weights).

    Args:
        model: a SavedModel, loaded.
        files: picture files. At most `WORKERS + 1` batches of them are in memory at a time, of at most `PIXELS_AT_ONCE` pixels and
            bytes together; or one larger file. A pipe is opened after all files before it are known.
    """
    for _, group in itertools.groupby(enumerate(files), key=_kind):
        yield from _side_by_side(model, (path for _, path in group))


def _kind(numbered: tuple[int, Path]) -> int:
    """Return a number that all files in a row share, and that nothing else has: opening a pipe may wait for ever."""
    number, path = numbered
    return -1 if paths.is_file(path) else number


def _side_by_side(model: Any, files: Iterable[Path]) -> Iterator[tuple[Path, Row]]:
    pool = ThreadPoolExecutor(WORKERS)
    pending: deque[tuple[_Batch, Future[list[Row]]]] = deque()

    def take_first() -> Iterator[tuple[Path, Row]]:
        batch, rows = pending.popleft()
        return zip((file.path for file in batch.files), rows.result(), strict=True)

    try:
        for batch in _batches(files):
            while pending and (_is_full(pending, batch) or pending[0][1].done()):
                yield from take_first()
            pending.append((batch, pool.submit(_classify, model, batch.files)))
        while pending:
            yield from take_first()
    finally:
        pool.shutdown(cancel_futures=True)


def _is_full(pending: Iterable[tuple[_Batch, Any]], batch: _Batch) -> bool:
    weights = [each.weight for each, _ in pending]
    return len(weights) > WORKERS or sum(weights) + batch.weight > PIXELS_AT_ONCE


def _batches(files: Iterable[Path]) -> Iterator[_Batch]:
    batch: list[FileContent] = []
    filled = 0
    for path in files:
        file, weight = _read(path)
        if batch and filled + weight > BATCH_PIXELS:
            yield _Batch(batch, filled)
            batch, filled = [], 0
        batch.append(file)
        filled += weight
        if len(batch) == BATCH_SIZE or filled >= BATCH_PIXELS:
            yield _Batch(batch, filled)
            batch, filled = [], 0
    if batch:
        yield _Batch(batch, filled)


def _read(path: Path) -> tuple[FileContent, int]:
    """Return a file, and its bytes and pixels added up."""
    try:
        content = read_file(path)
        header = header_of(path, content)
    except UserError as error:
        return FileContent(path, error), 0
    as_stored = header.format in SERVED_FORMATS and header.upright
    return FileContent(path, content, as_stored), len(content) + header.pixels


def _classify(model: Any, batch: Sequence[FileContent]) -> list[Row]:
    """Return for each file of a batch its probabilities, float32 `[classes]`, or the error about it."""
    return _classify_served(model, batch, [_servable(file) for file in batch])


def _classify_served(model: Any, batch: Sequence[FileContent], served: Sequence[bytes | UserError]) -> list[Row]:
    """Return what `_classify` does, given what `serve_bytes` takes of each file."""
    try:
        return _serve(model, served)
    # A file is damaged behind its header. It is found by halving the batch, so that each other file is served as it would be alone:
    # TensorFlow decodes some GIF files that Pillow refuses.
    except tf.errors.InvalidArgumentError:
        if len(batch) == 1:
            return _serve(model, [_as_bitmap(batch[0])])  # Pillow says why
        middle = len(batch) // 2
        halves = (slice(middle), slice(middle, None))
        return [row for half in halves for row in _classify_served(model, batch[half], served[half])]


def _serve(model: Any, files: Sequence[bytes | UserError]) -> list[Row]:
    contents = [each for each in files if isinstance(each, bytes)]
    rows = iter(model.serve_bytes(tf.constant(contents))["probabilities"].numpy() if contents else ())
    return [next(rows) if isinstance(each, bytes) else each for each in files]


def _servable(file: FileContent) -> bytes | UserError:
    """Return the content of a file as `serve_bytes` takes it, or the error about the file."""
    return file.content if file.as_stored else _as_bitmap(file)


def _as_bitmap(file: FileContent) -> bytes | UserError:
    """Return the pixels of a file as a BMP file, which keeps every one, or the error about the file."""
    try:
        pixels = decode(file.path, file.content)
    except UserError as error:
        return error
    bitmap = io.BytesIO()
    Image.fromarray(pixels).save(bitmap, "BMP")
    return bitmap.getvalue()


def decode(path: Path, content: bytes | UserError) -> NDArray[np.uint8]:
    """Return the pixels of a picture, uint8 `[height, width, 3]`, as `decoding.decode` makes them.

    Args:
        path: of the file, for the message.
        content: of the file, or the error about it.

    Raises:
        UserError: the content is that error, or is not a picture.
    """
    if isinstance(content, UserError):
        raise content
    try:
        return decoding.decode(content)
    except decoding.PictureError as error:
        raise _no_picture(path, error) from error


def read_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: the file cannot be read, or is larger than `decoding.FILE_BYTES_LIMIT`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(decoding.FILE_BYTES_LIMIT + 1)
    # A ValueError: no file can have this name.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"the image file cannot be read: {reason}. Received: {paths.shown(path)}") from error
    if len(content) > decoding.FILE_BYTES_LIMIT:
        raise UserError(
            f"the image file is larger than {decoding.FILE_BYTES_LIMIT >> 20} MiB. Received: {paths.shown(path)}"
        )
    return content


def header_of(path: Path, content: bytes) -> decoding.Header:
    """Return the format and size of a picture.

    Raises:
        UserError: the content is not a picture, or has too many pixels.
    """
    try:
        return decoding.read_header(content)
    except decoding.PictureError as error:
        raise _no_picture(path, error) from error


def _no_picture(path: Path, error: decoding.PictureError) -> UserError:
    return UserError(f"the file is not a picture that can be read: {error}. Received: {paths.shown(path)}")
