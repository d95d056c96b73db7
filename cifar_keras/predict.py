"""`python -m cifar_keras.predict --model=WORKDIR FILE...`: the classes of image files, with their probabilities."""

from collections.abc import Sequence
from pathlib import Path

from cifar_keras import environment, flags
from cifar_keras.errors import UserError

BATCH_SIZE = 32


def main(argv: Sequence[str]) -> None:
    """Print a line for each file: its most probable classes."""
    arguments = flags.parse_predict(argv)
    contents = [read_file(path) for path in arguments.files]
    environment.set_tensorflow_variables()
    import tensorflow as tf

    from cifar_keras.export import load_saved_model

    model = load_saved_model(arguments.model)
    for path, content in zip(arguments.files, contents, strict=True):
        try:
            tf.io.decode_image(content, channels=3, expand_animations=False)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"the file is no JPEG or PNG image that can be read. Received: {path}") from error
    for start in range(0, len(contents), BATCH_SIZE):
        served = model.serve_bytes(tf.constant(contents[start : start + BATCH_SIZE]))
        names = [name.decode() for name in served["class_names"].numpy()]
        for path, probabilities in zip(arguments.files[start:], served["probabilities"].numpy(), strict=False):
            best = sorted(zip(probabilities, names, strict=True), reverse=True)[: arguments.top]
            print(f"{path}  " + "  ".join(f"{name} {probability:.4f}" for probability, name in best))


def read_file(path: Path) -> bytes:
    """Return what is in a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the image file cannot be read: {error.strerror}. Received: {path}") from error


if __name__ == "__main__":
    flags.run_command(main)
