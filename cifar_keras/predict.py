"""`python -m cifar_keras.predict --model=WORKDIR FILE...`: the classes of image files, with their probabilities."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    import tensorflow as tf

    from cifar_keras.saved_model import load_saved_model

    model = load_saved_model(arguments.model)
    for path, content in zip(arguments.files, contents, strict=True):
        check_image(path, content)
    contents = [upright(content) for content in contents]
    for start in range(0, len(contents), BATCH_SIZE):
        served = model.serve_bytes(tf.constant(contents[start : start + BATCH_SIZE]))
        names = [name.decode() for name in served["class_names"].numpy()]
        for path, probabilities in zip(arguments.files[start:], served["probabilities"].numpy(), strict=False):
            best = sorted(zip(probabilities, names, strict=True), reverse=True)[: arguments.top]
            print(f"{path}  " + "  ".join(f"{name} {probability:.4f}" for probability, name in best))
    if arguments.attribution:
        names = [path.name[:LONGEST_NAME] for path in arguments.files]
        picture = attribution(model, arguments.model, contents, names)
        artifacts.write_picture("attribution", arguments.attribution, picture)


def upright(content: bytes) -> bytes:
    """Turn a photograph as its EXIF orientation says, which decoders leave to whoever shows it; other files stay as they are.

    Args:
        content: a JPEG or PNG file that can be decoded.

    Returns:
        The file, or a PNG file of the turned pixels.
    """
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
    quarter_turns, mirrored = TURNS.get(orientation, (0, False))
    if (quarter_turns, mirrored) == (0, False):
        return content
    pixels = np.rot90(tf.io.decode_image(content, channels=3, expand_animations=False).numpy(), quarter_turns)
    turned: bytes = tf.io.encode_png(pixels[:, ::-1] if mirrored else pixels).numpy()
    return turned


def attribution(model: Any, workdir: Path, contents: Sequence[bytes], names: Sequence[str]) -> bytes:
    """Draw what the two most probable classes of images come from.

    Args:
        model: the SavedModel of a run, loaded.
        workdir: of the run.
        contents: JPEG or PNG files. They are drawn as the model sees them: square, and of the size that it was trained with.
        names: of the files, as they are drawn.

    Returns:
        A PNG file.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from cifar_keras.delivery import draw_attribution

    classifier = keras.models.load_model(workdir / paths.MODEL, compile=False)
    side = classifier.get_layer("resize").height
    pixels = [
        tf.image.resize(tf.io.decode_image(content, channels=3, expand_animations=False), (side, side))
        for content in contents
    ]
    images = tf.cast(tf.round(tf.stack(pixels)), tf.uint8).numpy()
    served = model.serve(images)
    class_names = [name.decode() for name in served["class_names"].numpy()]
    probabilities = served["probabilities"].numpy()
    second = np.argsort(probabilities, axis=1)[:, -2]
    titles = [
        f"{class_names[row.argmax()]} {row.max():.2f}, {class_names[other]} {row[other]:.2f}\n{name}"
        for name, row, other in zip(names, probabilities, second, strict=True)
    ]
    return draw_attribution(
        classifier,
        lambda pixels: model.serve(tf.constant(pixels))["probabilities"].numpy(),
        images,
        ("second", second),
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
