"""Write the exported models of a run, reload them, and check that they are the model that was trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.data.types import Images
from cifar_keras.errors import UserError, reason_of
from cifar_keras.files import writing
from cifar_keras.files.progress_bar import progress
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin

# Largest difference of two logits of the same model, as a fraction of the largest logit. Another graph of the same float32 network
# differs by about 1e-6, another network by about 1.
LOGIT_TOLERANCE = 1e-4


def save_classifier(classifier: keras.Model, path: Path) -> None:
    """Write a classifier as `model.keras`, whole or not at all, without the optimizer and its state."""
    for layer in classifier.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # This is set for training on several devices. Other backends of Keras refuse to load it.
            layer.synchronized = False
    uncompiled = keras.Model(classifier.inputs, classifier.outputs, name=classifier.name)
    with writing.written_beside(path) as beside:
        uncompiled.save(beside)


def save_and_reload(classifier: keras.Model, path: Path) -> keras.Model:
    """Return the classifier as it is read back from `model.keras`, which is written first.

    Raises:
        RuntimeError: the weights that are read back differ from the trained ones.
    """
    save_classifier(classifier, path)
    reloaded = keras.models.load_model(path, compile=False)
    pairs = zip(classifier.get_weights(), reloaded.get_weights(), strict=True)
    if not all(np.array_equal(trained, read) for trained, read in pairs):
        raise RuntimeError(f"the weights are not the trained ones. Received: {path}")
    return reloaded


def export_saved_model(
    classifier: keras.Model, class_names: Sequence[str], path: Path, *, temperature: float = 1.0
) -> None:
    """Write a SavedModel with two signatures, whole or not at all.

    `serve` takes `images` uint8 `[n, height, width, 3]`, RGB, of any size. `serve_bytes` takes `files` string `[n]`, each a JPEG or
    PNG file of any size. Both give `logits` and `probabilities` = `softmax(logits / temperature)`, float32 `[n, classes]`, and
    `class_names` string `[n, classes]`. These names are the same for all images, but every output has to begin with the batch,
    because servers split batches (tensorflow/serving#1047). There is no augmentation, and normalizations are folded into
    convolutions.
    """

    def outputs(logits: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits / temperature),
            "class_names": tf.tile(tf.constant([list(class_names)]), [tf.shape(logits)[0], 1]),
        }

    backbone = classifier.get_layer("backbone")
    size = backbone.input_shape[1]
    twin = fused_twin(backbone, compute_dtype="float32", folded=True)
    whole = assemble(classifier, twin)
    resize = assemble(classifier, None, last="resize")
    classify = assemble(classifier, twin, first="input_transform")

    def decode(file: tf.Tensor) -> tf.Tensor:
        image = _decode_file(file)
        # The classifier's own resize gives all images one size, so that they form a batch.
        return tf.ensure_shape(resize(image[None], training=False)[0], (size, size, 3))

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return outputs(whole(images, training=False))

    def serve_bytes(files: tf.Tensor) -> dict[str, tf.Tensor]:
        # One file after the other, because a photograph of 50 megapixels takes 150 MB while it is resized.
        pixels = tf.map_fn(
            decode, files, parallel_iterations=1, fn_output_signature=tf.TensorSpec((size, size, 3), tf.float32)
        )
        return outputs(classify(pixels, training=False))

    # The archive finds the variables itself. Variables that were given to it too would be stored twice.
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", serve, [tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")])
    archive.add_endpoint("serve_bytes", serve_bytes, [tf.TensorSpec((None,), tf.string, name="files")])
    with writing.written_beside(path) as beside:
        archive.write_out(beside, verbose=False)


def _decode_file(file: tf.Tensor) -> tf.Tensor:
    """Return the pixels of a picture file as `data.decoding` makes them, but not turned: uint8 `[height, width, 3]`."""
    return tf.cond(
        tf.io.is_jpeg(file),
        # TensorFlow's default is a faster transform, whose pixels differ by up to 6 of 255.
        lambda: tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(file, channels=3, expand_animations=False),
    )


def load_saved_model(path: Path, flag: str = "model") -> tf.Module:
    """Return a run's SavedModel, loaded.

    Args:
        path: the run's workdir, or the SavedModel's own folder.
        flag: the flag that named the path, for the messages.

    Raises:
        UserError: there is no SavedModel, it cannot be read, or no run wrote it.
    """
    folder = path / "saved_model" if (path / "saved_model").is_dir() else path
    if not (folder / "saved_model.pb").is_file():
        raise UserError(f"--{flag} has to name a run's workdir, or a folder with saved_model.pb. Received: {path}")
    try:
        loaded = tf.saved_model.load(str(folder))
    except (tf.errors.OpError, OSError, ValueError, KeyError) as error:
        raise UserError(f"--{flag} cannot be loaded: {reason_of(error)}. Received: {path}") from error
    if not {"serve", "serve_bytes"} <= set(loaded.signatures):
        raise UserError(f"--{flag} has no signatures serve and serve_bytes, so no run made it. Received: {path}")
    return loaded


def class_names_of(model: tf.Module) -> tuple[str, ...]:
    """Return the class names of a loaded SavedModel, in the order of its logits."""
    served = model.serve(tf.zeros((1, 32, 32, 3), tf.uint8))
    # The shape is `[1, classes]`. Models that were exported before November 2026 give `[classes]`.
    return tuple(name.decode() for name in served["class_names"].numpy().ravel())


def check_classes(model: tf.Module, class_names: tuple[str, ...], path: str | Path, flag: str = "model") -> None:
    """Check that a loaded SavedModel has the same classes as the images.

    Args:
        model: what `load_saved_model` returned.
        class_names: of the images.
        path: of the model, for the message.
        flag: the flag that named the path, for the message.

    Raises:
        UserError: its classes are others.
    """
    known = class_names_of(model)
    if known != class_names:
        raise UserError(f"--{flag} tells other classes apart: {', '.join(known)}. Received: {path}")


class Served(NamedTuple):
    """The outputs of a SavedModel for a number of images."""

    logits: NDArray[np.float32]  # [n, classes]
    probabilities: NDArray[np.float32]  # [n, classes]


def serve_all(model: tf.Module, images: Images, batch_size: int, title: str) -> Served:
    """Return the outputs of a loaded SavedModel's `serve` for every image, with a progress bar.

    Args:
        model: what `load_saved_model` returned.
        images: uint8 `[n, height, width, 3]`.
        batch_size: images at a time. The last batch is smaller if this does not divide n.
        title: name of the progress bar.
    """
    batches = []
    for start in progress(range(0, len(images), batch_size), desc=title, unit="batch"):
        outputs = model.serve(tf.constant(images[start : start + batch_size]))
        batches.append([outputs[name].numpy() for name in Served._fields])
    return Served(*map(np.concatenate, zip(*batches, strict=True)))


def check_same_logits(trained: NDArray[np.float32], reloaded: NDArray[np.float32], exported: str) -> float:
    """Return the largest difference of the logits, as a fraction of the largest trained logit, or of 1 if that is smaller.

    Args:
        trained: logits `[n, classes]` of the trained model.
        reloaded: logits `[n, classes]` of the exported model, for the same images.
        exported: name of the exported model, for the message.

    Raises:
        RuntimeError: the difference is more than `LOGIT_TOLERANCE`, or not a number. Then the exported model is not the trained one.
    """
    scale = max(1.0, float(np.abs(trained).max()))
    difference = float(np.abs(trained - reloaded).max()) / scale
    # This is also true if the difference is not a number.
    if not difference <= LOGIT_TOLERANCE:
        raise RuntimeError(
            f"{exported} is not the model that was trained: their logits differ by up to {difference:.2g} of the largest. "
            f"Received: {trained.shape[0]} images"
        )
    return difference
