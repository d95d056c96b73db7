"""A run's classifier in the formats of other runtimes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin

ONNX_OPSET = 18  # onnxruntime runs it since 1.14


def convert(
    format_name: str,
    classifier: keras.Model,
    path: Path,
    *,
    examples: NDArray[np.uint8],
    class_names: Sequence[str],
    temperature: float,
) -> None:
    """Write a classifier in another format, as the SavedModel has it: normalizations are folded into the convolutions before them.

    Args:
        format_name: a key of `formats.FORMATS` whose file no run writes.
        classifier: a run's `model.keras`.
        path: of the file to be written.
        examples: uint8 `[n, height, width, 3]`, training images from which int8 learns the ranges of the activations.
        class_names: of the classifier.
        temperature: of the probabilities.
    """
    backbone = classifier.get_layer("backbone")
    twin = fused_twin(backbone, compute_dtype="float32", folded=True)
    classify = assemble(classifier, twin, first="input_transform")
    if format_name == "onnx":
        to_onnx(classify, path, class_names, temperature)
    else:
        to_litert(classify, path, examples, integers=format_name == "litert_int8")


def to_onnx(classify: keras.Model, path: Path, class_names: Sequence[str], temperature: float) -> None:
    """Write ONNX: `images` uint8 `[n, height, width, 3]`, RGB, of any size, to `logits` and `probabilities` float32 `[n, classes]`.

    The names of the classes are its metadata `class_names`, one a line.

    Args:
        classify: from pixels float32 `[n, size, size, 3]`, 0..255, to logits.
        path: of the file.
        class_names: of the classifier.
        temperature: of the probabilities.
    """
    import onnx
    import tf2onnx

    size = classify.input.shape[1]

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = classify(tf.image.resize(tf.cast(images, tf.float32), (size, size)), training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits / temperature)}

    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")]
    made, _ = tf2onnx.convert.from_function(
        tf.function(serve, input_signature=signature), input_signature=signature, opset=ONNX_OPSET
    )
    resize = next(node for node in made.graph.node if node.op_type == "Resize")  # the first: a backbone may have others
    # tf2onnx does not know TensorFlow's kernel that smooths. ONNX's operator is the same function with these attributes; without the second
    # it would count the pixels at the border more than once.
    smoothing = {"antialias": 1, "exclude_outside": 1}
    others = [attribute for attribute in resize.attribute if attribute.name not in smoothing]
    del resize.attribute[:]
    resize.attribute.extend([*others, *(onnx.helper.make_attribute(*each) for each in smoothing.items())])
    onnx.helper.set_model_props(made, {"class_names": "\n".join(class_names)})
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())


def to_litert(classify: keras.Model, path: Path, examples: NDArray[np.uint8], *, integers: bool) -> None:
    """Write LiteRT: one uint8 image `[1, height, width, 3]`, RGB, of the examples' size, to its logits float32 `[1, classes]`.

    Args:
        classify: from pixels float32 `[n, size, size, 3]`, 0..255, to logits.
        path: of the file.
        examples: uint8 `[n, height, width, 3]`.
        integers: weights and activations are int8, in ranges that the examples fill.
    """
    size = classify.input.shape[1]

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": classify(_resized(tf.cast(images, tf.float32), size), training=False)}

    signature = tf.TensorSpec((1, *examples.shape[1:]), tf.uint8, name="images")
    function = tf.function(serve, input_signature=[signature]).get_concrete_function()
    holder = tf.Module()  # a Keras model in its place is not found to hold its variables
    holder.kept = [variable.value for variable in classify.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    if integers:

        def representative() -> Iterator[list[NDArray[np.uint8]]]:
            for image in examples:
                yield [image[None]]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
    path.write_bytes(converter.convert())


def _resized(images: tf.Tensor, size: int) -> tf.Tensor:
    """Resize images `[n, height, width, 3]` of known sides by what LiteRT has: where they shrink, by two matrix products."""
    height, width = images.shape[1:3]
    if max(height, width) <= size:
        return tf.image.resize(images, (size, size))
    rows, columns = (tf.constant(_smoothing_weights(side, size)) for side in (height, width))
    return tf.einsum("yh,nhwc,xw->nyxc", rows, images, columns)


def _smoothing_weights(inputs: int, outputs: int) -> NDArray[np.float32]:
    """Return how much each of `inputs` pixels of a line counts for each of `outputs`, `[outputs, inputs]`; rows sum to 1.

    The weights fall linearly from the middle of an output pixel to 0 at a distance of one output pixel, or of one input pixel where
    these are larger: bilinear interpolation with antialiasing, as Pillow and TensorFlow have it.
    """
    ratio = inputs / outputs
    middles = (np.arange(outputs) + 0.5) * ratio - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(inputs) - middles[:, None]) / max(1.0, ratio))
    normalized: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalized
