"""`python -m cifar_keras.predict --model=WORKDIR FILE...`: the classes of image files, with their probabilities."""

import struct
from collections.abc import Sequence
from pathlib import Path

from cifar_keras import environment, flags
from cifar_keras.errors import UserError

BATCH_SIZE = 32
FILE_BYTES_LIMIT = 64 * 2**20
PIXELS_LIMIT = 100_000_000  # 300 MB when it is decoded


def main(argv: Sequence[str]) -> None:
    """Print a line for each file: its most probable classes."""
    arguments = flags.parse_predict(argv)
    contents = [read_file(path) for path in arguments.files]
    environment.set_tensorflow_variables()
    import tensorflow as tf

    from cifar_keras.saved_model import load_saved_model

    model = load_saved_model(arguments.model)
    for path, content in zip(arguments.files, contents, strict=True):
        check_image(path, content)
    for start in range(0, len(contents), BATCH_SIZE):
        served = model.serve_bytes(tf.constant(contents[start : start + BATCH_SIZE]))
        names = [name.decode() for name in served["class_names"].numpy()]
        for path, probabilities in zip(arguments.files[start:], served["probabilities"].numpy(), strict=False):
            best = sorted(zip(probabilities, names, strict=True), reverse=True)[: arguments.top]
            print(f"{path}  " + "  ".join(f"{name} {probability:.4f}" for probability, name in best))


def read_file(path: Path) -> bytes:
    """Return what is in a file.

    Raises:
        UserError: it cannot be read, or is larger than any image should be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_LIMIT + 1)
    except OSError as error:
        raise UserError(f"the image file cannot be read: {error.strerror}. Received: {path}") from error
    if len(content) > FILE_BYTES_LIMIT:
        raise UserError(f"the image file is larger than {FILE_BYTES_LIMIT >> 20} MiB. Received: {path}")
    return content


def check_image(path: Path, content: bytes) -> None:
    """Check that a file's content is an image that can be decoded, and not into more pixels than memory should hold.

    Raises:
        UserError: it is not.
    """
    import tensorflow as tf

    try:
        height, width = _size_of(content)
        if height * width > PIXELS_LIMIT:
            raise UserError(f"the image has more than {PIXELS_LIMIT:,} pixels: {width} x {height}. Received: {path}")
        tf.io.decode_image(content, channels=3, expand_animations=False)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise UserError(f"the file is no JPEG or PNG image that can be read. Received: {path}") from error


def _size_of(content: bytes) -> tuple[int, int]:
    """Return height and width in pixels from the file's header alone: a few KB can unpack to gigabytes.

    Raises:
        ValueError: it is neither PNG nor JPEG, or its header is cut off.
        tf.errors.InvalidArgumentError: it is a JPEG that cannot be read.
    """
    import tensorflow as tf

    if content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        return height, width
    if content.startswith(b"\xff\xd8"):
        height, width, _ = tf.io.extract_jpeg_shape(content).numpy().tolist()
        return height, width
    raise ValueError("neither PNG nor JPEG")


if __name__ == "__main__":
    flags.run_command(main)
