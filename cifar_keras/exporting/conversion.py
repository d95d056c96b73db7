"""Convert a run's classifier to the formats of other runtimes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.resize import central_square

# onnxruntime runs this opset since version 1.14.
ONNX_OPSET = 18


def convert(
    format_name: str,
    classifier: keras.Model,
    path: Path,
    *,
    examples: NDArray[np.uint8],
    class_names: Sequence[str],
    temperature: float,
) -> None:
    """Write a classifier in another format.

    As in the SavedModel, normalizations are folded into the convolutions before them.

    Args:
        format_name: a key of `formats.FORMATS` whose row says `converted`. A run writes the other formats itself.
        classifier: a run's `model.keras`.
        path: of the file to be written.
        examples: uint8 `[n, height, width, 3]`, training images from which int8 takes the ranges of the activations.
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
    """Write an ONNX file.

    The input is `images` uint8 `[n, height, width, 3]`, RGB, of any size. The outputs are `logits` and `probabilities`, float32
    `[n, classes]`. The metadata `class_names` has the names of the classes, one on each line.

    Args:
        classify: a model from pixels float32 `[n, size, size, 3]`, 0..255, to logits.
        path: of the file.
        class_names: of the classifier.
        temperature: of the probabilities.
    """
    import onnx
    import tf2onnx

    size = classify.input.shape[1]

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        squares = tf.cast(central_square(images), tf.float32)
        logits = classify(tf.image.resize(squares, (size, size)), training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits / temperature)}

    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")]
    made, _ = tf2onnx.convert.from_function(
        tf.function(serve, input_signature=signature), input_signature=signature, opset=ONNX_OPSET
    )
    # The classifier's resize is the first one; a backbone may have others.
    resize = next(node for node in made.graph.node if node.op_type == "Resize")
    # tf2onnx does not know TensorFlow's kernel that smooths. With these attributes ONNX's operator is the same function; without the
    # second one it would count the pixels at the border more than once.
    smoothing = {"antialias": 1, "exclude_outside": 1}
    others = [attribute for attribute in resize.attribute if attribute.name not in smoothing]
    del resize.attribute[:]
    resize.attribute.extend([*others, *(onnx.helper.make_attribute(*each) for each in smoothing.items())])
    onnx.helper.set_model_props(made, {"class_names": "\n".join(class_names)})
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())


def to_litert(classify: keras.Model, path: Path, examples: NDArray[np.uint8], *, integers: bool) -> None:
    """Write a LiteRT file.

    The input is one uint8 image `[1, height, width, 3]`, RGB, of the examples' size. The output is its logits, float32
    `[1, classes]`.

    Args:
        classify: a model from pixels float32 `[n, size, size, 3]`, 0..255, to logits.
        path: of the file.
        examples: uint8 `[n, height, width, 3]`.
        integers: quantize weights and activations to int8, in the ranges that the examples fill.
    """
    size = classify.input.shape[1]

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": classify(_resized(tf.cast(images, tf.float32), size), training=False)}

    signature = tf.TensorSpec((1, *examples.shape[1:]), tf.uint8, name="images")
    function = tf.function(serve, input_signature=[signature]).get_concrete_function()
    # The converter does not find the variables of a Keras model, so a module holds them.
    holder = tf.Module()
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
    """Return the central squares of images `[n, height, width, 3]` of known sides, resized with LiteRT's operations.

    These are two matrix products if the squares shrink.
    """
    squares = central_square(images)
    side = squares.shape[1]
    if side <= size:
        return tf.image.resize(squares, (size, size))
    weights = tf.constant(_smoothing_weights(side, size))
    return tf.einsum("yh,nhwc,xw->nyxc", weights, squares, weights)


def _smoothing_weights(inputs: int, outputs: int) -> NDArray[np.float32]:
    """Return the weights `[outputs, inputs]` that resize a line of `inputs` pixels to `outputs` pixels. Rows sum to 1.

    This is bilinear interpolation with antialiasing, as in Pillow and TensorFlow. The weights fall linearly from the middle of an
    output pixel to 0, at a distance of one output pixel. If input pixels are larger, the distance is one input pixel.
    """
    ratio = inputs / outputs
    middles = (np.arange(outputs) + 0.5) * ratio - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(inputs) - middles[:, None]) / max(1.0, ratio))
    normalized: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalized
