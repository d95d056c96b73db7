"""The exported models of a run: written whole, reloaded, and checked to be the model that was trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.errors import UserError, reason_of
from cifar_keras.files import writing
from cifar_keras.files.progress_bar import progress
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin

# Largest difference of two logits of the same model, as a fraction of the largest logit. Another graph of the same
# float32 network differs by about 1e-6 of it; another network by about 1.
LOGIT_TOLERANCE = 1e-4


def save_classifier(classifier: keras.Model, path: Path) -> None:
    """Write `model.keras` whole or not at all, without the optimizer and its state."""
    for layer in classifier.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = False  # of training on several devices; other backends of Keras refuse to load it
    uncompiled = keras.Model(classifier.inputs, classifier.outputs, name=classifier.name)
    with writing.written_beside(path) as beside:
        uncompiled.save(beside)


def save_and_reload(classifier: keras.Model, path: Path) -> keras.Model:
    """Write `model.keras`, and return the model that is read back from it.

    Raises:
        RuntimeError: the weights that are read back are not the trained ones.
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

    `serve`: `images` uint8 `[n, height, width, 3]`, RGB, of any size. `serve_bytes`: `files` string `[n]`, each a JPEG or
    PNG file of any size. Both give `logits` and `probabilities` float32 `[n, classes]`, `softmax(logits / temperature)`, and
    `class_names` string `[n, classes]`: the same for all images, but every output has to begin with the batch, because servers take
    batches apart (tensorflow/serving#1047). No augmentation is inside, and normalizations are folded into convolutions.
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
        image = tf.io.decode_image(file, channels=3, expand_animations=False)
        # One size for all of them, made by the classifier's own resize, so that they form a batch.
        return tf.ensure_shape(resize(image[None], training=False)[0], (size, size, 3))

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return outputs(whole(images, training=False))

    def serve_bytes(files: tf.Tensor) -> dict[str, tf.Tensor]:
        # One after the other: a photograph of 50 megapixels takes 150 MB while it is resized.
        pixels = tf.map_fn(
            decode, files, parallel_iterations=1, fn_output_signature=tf.TensorSpec((size, size, 3), tf.float32)
        )
        return outputs(classify(pixels, training=False))

    archive = (
        keras.export.ExportArchive()
    )  # finds the variables itself; those that are given to it as well are stored twice
    archive.add_endpoint("serve", serve, [tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")])
    archive.add_endpoint("serve_bytes", serve_bytes, [tf.TensorSpec((None,), tf.string, name="files")])
    with writing.written_beside(path) as beside:
        archive.write_out(beside, verbose=False)


def load_saved_model(path: Path, flag: str = "model") -> tf.Module:
    """Load a run's SavedModel, from the run's workdir or from the SavedModel's own folder, which a flag has named.

    Raises:
        UserError: there is none, it cannot be read, or it is not one of ours.
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
    """Return the names of the classes that a loaded SavedModel tells apart, in the order of its logits."""
    served = model.serve(tf.zeros((1, 32, 32, 3), tf.uint8))
    # `[1, classes]`; models that were exported before November 2026 give `[classes]`.
    return tuple(name.decode() for name in served["class_names"].numpy().ravel())


def check_classes(model: tf.Module, class_names: tuple[str, ...], path: str | Path, flag: str = "model") -> None:
    """Check that a loaded SavedModel, which a flag has named, tells the classes apart that the images have.

    Raises:
        UserError: it tells others apart.
    """
    known = class_names_of(model)
    if known != class_names:
        raise UserError(f"--{flag} tells other classes apart: {', '.join(known)}. Received: {path}")


class Served(NamedTuple):
    """What a SavedModel gives of images."""

    logits: NDArray[np.float32]  # [n, classes]
    probabilities: NDArray[np.float32]  # [n, classes]


def serve_all(model: tf.Module, images: NDArray[np.uint8], batch_size: int, title: str) -> Served:
    """Run every image once through the `serve` of a loaded SavedModel, with a progress bar.

    Args:
        model: what `load_saved_model` returned.
        images: uint8 `[n, height, width, 3]`.
        batch_size: images at a time; the last batch is smaller where it does not divide n.
        title: what the progress bar is called.
    """
    batches = []
    for start in progress(range(0, len(images), batch_size), desc=title, unit="batch"):
        outputs = model.serve(tf.constant(images[start : start + batch_size]))
        batches.append([outputs[name].numpy() for name in Served._fields])
    return Served(*map(np.concatenate, zip(*batches, strict=True)))


def check_same_logits(trained: NDArray[np.float32], reloaded: NDArray[np.float32], exported: str) -> float:
    """Return the largest difference of the logits, as a fraction of the largest trained logit.

    Raises:
        RuntimeError: it is more than `LOGIT_TOLERANCE`, or not a number: the exported model is not the model that was trained.
    """
    scale = max(1.0, float(np.abs(trained).max()))
    difference = float(np.abs(trained - reloaded).max()) / scale
    if not difference <= LOGIT_TOLERANCE:  # also when it is not a number
        raise RuntimeError(
            f"{exported} is not the model that was trained: their logits differ by up to {difference:.2g} of the largest. "
            f"Received: {trained.shape[0]} images"
        )
    return difference
