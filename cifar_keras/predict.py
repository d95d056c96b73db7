"""`python -m cifar_keras.predict --model=WORKDIR FILE...`: the classes of image files, with their probabilities."""

import contextlib
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_keras import artifacts, environment, flags, paths
from cifar_keras.errors import UserError

BATCH_SIZE = 32
FILE_BYTES_LIMIT = 64 * 2**20
ORIENTATION = 0x0112  # EXIF's tag, and the quarter turns to the left and then whether to mirror that its values ask for
TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
LONGEST_NAME = 40  # characters of a file's name that are drawn
PIXELS_LIMIT = 100_000_000  # 1.5 GB while it is resized: a byte and a float32 of each of its three colours


def main(argv: Sequence[str]) -> None:
    """Print a line for each file: its most probable classes; and draw what they come from, where a file for it is named."""
    arguments = flags.parse_predict(argv)
    if arguments.attribution:
        paths.check_has_model(arguments.model)
    contents = [read_file(path) for path in arguments.files]
    environment.set_tensorflow_variables()

    from cifar_keras.saved_model import load_saved_model

    model = load_saved_model(arguments.model)
    for path, content in zip(arguments.files, contents, strict=True):
        check_image(path, content)
    contents = [upright(content) for content in contents]
    class_names, probabilities = classify(model, contents)
    for path, row in zip(arguments.files, probabilities, strict=True):
        best = sorted(zip(row, class_names, strict=True), reverse=True)[: arguments.top]
        print(f"{path}  " + "  ".join(f"{name} {probability:.4f}" for probability, name in best))
    if arguments.attribution:
        first, second = probabilities.argsort(axis=1)[:, :-3:-1].T
        titles = [
            f"{class_names[one]} {row[one]:.2f}, {class_names[other]} {row[other]:.2f}\n{path.name[:LONGEST_NAME]}"
            for path, row, one, other in zip(arguments.files, probabilities, first, second, strict=True)
        ]
        classes = [("predicted", first), ("second", second)]
        picture = attribution(model, arguments.model, contents, classes, titles)
        artifacts.write_picture("attribution", arguments.attribution, picture)


def classify(model: Any, contents: Sequence[bytes]) -> tuple[list[str], NDArray[np.float32]]:
    """Return the names of the classes, and the probabilities of files, float32 `[n, classes]`, that a SavedModel serves."""
    import tensorflow as tf

    served = [
        model.serve_bytes(tf.constant(contents[start : start + BATCH_SIZE]))
        for start in range(0, len(contents), BATCH_SIZE)
    ]
    names = [name.decode() for name in served[0]["class_names"].numpy()]
    return names, np.concatenate([batch["probabilities"].numpy() for batch in served])


def upright(content: bytes) -> bytes:
    """Turn a photograph as its EXIF orientation says, which decoders leave to whoever shows it; other files stay as they are.

    Args:
        content: a JPEG or PNG file that can be decoded.

    Returns:
        The file, or a PNG file of the turned pixels.
    """
    import tensorflow as tf

    orientation = _orientation_of(content)
    if orientation not in TURNS:
        return content
    quarter_turns, mirrored = TURNS[orientation]
    pixels = np.rot90(tf.io.decode_image(content, channels=3, expand_animations=False).numpy(), quarter_turns)
    turned: bytes = tf.io.encode_png(pixels[:, ::-1] if mirrored else pixels).numpy()
    return turned


def _orientation_of(content: bytes) -> int:
    from PIL import Image

    # On data that is broken Pillow raises about anything; it then says nothing, and the pixels are those that can be decoded.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content)) as image:
        return int(image.getexif()[ORIENTATION])
    return 1


def attribution(
    model: Any,
    workdir: Path,
    contents: Sequence[bytes],
    classes: Sequence[tuple[str, NDArray[np.int64]]],
    titles: Sequence[str],
) -> bytes:
    """Draw what classes of image files come from.

    Args:
        model: the SavedModel of a run, loaded.
        workdir: of the run.
        contents: JPEG or PNG files. They are drawn as the model sees them: square, and of the size that it was trained with.
        classes: what classes are called, and which they are of each file, int64 `[n]`.
        titles: one for each file.

    Returns:
        A PNG file.
    """
    import keras
    import tensorflow as tf

    from cifar_keras.delivery import draw_attribution

    classifier = keras.models.load_model(workdir / paths.MODEL, compile=False)
    side = classifier.get_layer("resize").height
    pixels = [
        tf.image.resize(tf.io.decode_image(content, channels=3, expand_animations=False), (side, side))
        for content in contents
    ]
    return draw_attribution(
        classifier,
        lambda hidden: model.serve(tf.constant(hidden))["probabilities"].numpy(),
        tf.cast(tf.round(tf.stack(pixels)), tf.uint8).numpy(),
        classes,
        titles,
    )


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
