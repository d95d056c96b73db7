"""`python -m cifar_keras.predict --model=WORKDIR FILE...`: print the most probable classes of image files."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_keras import command, flags
from cifar_keras.data import decoding
from cifar_keras.errors import UserError
from cifar_keras.files import environment, paths, writing

# Files in a batch.
BATCH_SIZE = 32
# Pixels and bytes of a batch, added up. A large photograph is a batch of its own, so that its line is printed as soon as it is known.
BATCH_PIXELS = 4_000_000
FILE_BYTES_LIMIT = 64 * 2**20
# Characters of a file's name that are drawn.
LONGEST_NAME = 40
# Formats that the SavedModel's `serve_bytes` decodes, to the same pixels as `decoding`.
SERVED_FORMATS = ("JPEG", "PNG", "BMP", "GIF")


class PictureFile(NamedTuple):
    """A file, and what its beginning says."""

    path: Path
    content: bytes | UserError  # the error about a file that is not a picture
    as_stored: bool = False  # `serve_bytes` takes the file as it is


def main(argv: Sequence[str]) -> None:
    """Print a line with the most probable classes of each file. With `--attribution`, also draw the pixels that they come from.

    A file that is no image is named on stderr, and the other files are classified. The exit status is then 2.
    """
    arguments = flags.parse_predict(argv)
    if arguments.attribution:
        paths.check_has_model(arguments.model)
    # Before TensorFlow is imported, which takes seconds.
    files = [path for path in arguments.files if not _say(problem_of(path))]
    if not files:
        sys.exit(command.BAD_INPUT_STATUS)
    environment.load_keras()

    from cifar_keras.exporting.saved_model import class_names_of, load_saved_model

    model = load_saved_model(arguments.model)
    class_names = class_names_of(model)
    drawn: list[tuple[Path, NDArray[np.float32]]] = []
    classified = 0
    for path, row in classify(model, files):
        if isinstance(row, UserError):
            _say(row)
            continue
        classified += 1
        best = sorted(zip(row, class_names, strict=True), reverse=True)[: arguments.top]
        line = "  ".join(f"{name} {probability:.4f}" for probability, name in best)
        print(f"{paths.shown(path)}  {line}", flush=True)
        if arguments.attribution:
            drawn.append((path, row))
    if arguments.attribution and drawn:
        picture = attribution(model, arguments.model, drawn, class_names)
        writing.write_picture("attribution", arguments.attribution, picture)
    if classified < len(arguments.files):
        sys.exit(command.BAD_INPUT_STATUS)


def _say(problem: UserError | None) -> bool:
    """Print the problem with a file, if there is one, and return whether there is."""
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    return problem is not None


def problem_of(path: Path) -> UserError | None:
    """Return why a file cannot be read, or None. The file is not opened, because opening a pipe would wait."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        if not is_folder and os.access(path, os.R_OK):
            return None
        reason = os.strerror(errno.EISDIR if is_folder else errno.EACCES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"the image file cannot be read: {reason}. Received: {paths.shown(path)}")


def classify(model: Any, files: Sequence[Path]) -> Iterator[tuple[Path, NDArray[np.float32] | UserError]]:
    """Yield each file with its probabilities, float32 `[classes]`, or with the error about it.

    Files come in order, as soon as they are known.

    Args:
        model: a SavedModel, loaded.
        files: picture files. At most `BATCH_SIZE` of them are in memory at a time, of at most `BATCH_PIXELS` pixels and bytes
            together; or one larger file.
    """
    for batch in _batches(files):
        yield from zip((file.path for file in batch), _classify(model, batch), strict=True)


def _batches(files: Sequence[Path]) -> Iterator[list[PictureFile]]:
    batch: list[PictureFile] = []
    filled = 0
    for path in files:
        try:
            content = read_file(path)
            header = header_of(path, content)
            weight = len(content) + header.pixels
            file = PictureFile(path, content, header.format in SERVED_FORMATS and header.upright)
        except UserError as error:
            file, weight = PictureFile(path, error), 0
        if batch and (len(batch) == BATCH_SIZE or filled + weight > BATCH_PIXELS):
            yield batch
            batch, filled = [], 0
        batch.append(file)
        filled += weight
    if batch:
        yield batch


def _classify(model: Any, batch: Sequence[PictureFile]) -> list[NDArray[np.float32] | UserError]:
    """Return for each file of a batch its probabilities, float32 `[classes]`, or the error about it."""
    import tensorflow as tf

    found: dict[int, NDArray[np.float32] | UserError] = {}
    as_stored = {place: file.content for place, file in enumerate(batch) if file.as_stored}
    if as_stored:
        # If one file cannot be decoded, each is tried alone below.
        with contextlib.suppress(tf.errors.InvalidArgumentError):
            served = model.serve_bytes(tf.constant(list(as_stored.values())))["probabilities"].numpy()
            found = dict(zip(as_stored, served, strict=True))
    for place, file in enumerate(batch):
        if place not in found:
            try:
                found[place] = model.serve(decode(file.path, file.content)[None])["probabilities"].numpy()[0]
            except UserError as error:
                found[place] = error
    return [found[place] for place in range(len(batch))]


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


def _no_picture(path: Path, error: decoding.PictureError) -> UserError:
    return UserError(f"the file is not a picture that can be read: {error}. Received: {paths.shown(path)}")


def attribution(
    model: Any, workdir: Path, classified: Sequence[tuple[Path, NDArray[np.float32]]], class_names: Sequence[str]
) -> bytes:
    """Return a picture that shows which pixels the two most probable classes of image files come from.

    Args:
        model: the SavedModel of a run, loaded.
        workdir: of the run.
        classified: files with their probabilities, float32 `[classes]`. They are drawn as the model sees them: square, in the size
            of its training images.
        class_names: of the model.

    Returns:
        A PNG file.
    """
    import keras
    import tensorflow as tf

    from cifar_keras.evaluation.attribution import explaining_maps
    from cifar_keras.models.resize import central_square
    from cifar_keras.reporting.figures import attribution_picture

    classifier = keras.models.load_model(workdir / paths.MODEL, compile=False)
    side = classifier.get_layer("resize").height
    files = [path for path, _ in classified]
    probabilities = np.stack([row for _, row in classified])
    first, second = probabilities.argsort(axis=1)[:, :-3:-1].T
    titles = [
        f"{class_names[one]} {row[one]:.2f}, {class_names[other]} {row[other]:.2f}\n{paths.shown(path.name)[:LONGEST_NAME]}"
        for path, row, one, other in zip(files, probabilities, first, second, strict=True)
    ]
    squares = [central_square(tf.constant(decode(path, read_file(path)))[None]) for path in files]
    pixels = tf.concat([tf.image.resize(square, (side, side), antialias=True) for square in squares], axis=0)
    images = tf.cast(tf.round(pixels), tf.uint8).numpy()
    maps = explaining_maps(
        classifier,
        lambda hidden: model.serve(tf.constant(hidden))["probabilities"].numpy(),
        images,
        [("predicted", first), ("second", second)],
    )
    return attribution_picture(images, maps, titles)


def read_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: the file cannot be read, or is larger than `FILE_BYTES_LIMIT`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_LIMIT + 1)
    except OSError as error:
        raise UserError(f"the image file cannot be read: {error.strerror}. Received: {paths.shown(path)}") from error
    if len(content) > FILE_BYTES_LIMIT:
        raise UserError(f"the image file is larger than {FILE_BYTES_LIMIT >> 20} MiB. Received: {paths.shown(path)}")
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


if __name__ == "__main__":
    command.run(main)
