"""A run's SavedModel in the formats of other runtimes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

ONNX_OPSET = 18  # onnxruntime runs it since 1.14


def convert(
    format_name: str, model: tf.Module, path: Path, *, examples: NDArray[np.uint8], class_names: Sequence[str]
) -> None:
    """Write a model in another format.

    Args:
        format_name: a key of `formats.FORMATS` whose file no run writes.
        model: what `saved_model.load_saved_model` returned.
        path: of the file to be written.
        examples: uint8 `[n, height, width, 3]`, training images from which int8 learns the ranges of the activations.
        class_names: of the model.
    """
    if format_name == "onnx":
        to_onnx(model, path, class_names)
    else:
        to_litert(model, path, examples, integers=format_name == "litert_int8")


def to_onnx(model: tf.Module, path: Path, class_names: Sequence[str]) -> None:
    """Write ONNX: `images` uint8 `[n, height, width, 3]`, RGB, of any size, to `logits` and `probabilities` float32 `[n, classes]`.

    The names of the classes are its metadata `class_names`, one a line.
    """
    import onnx
    import tf2onnx

    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")]
    made, _ = tf2onnx.convert.from_function(
        tf.function(_served(model, ("logits", "probabilities")), input_signature=signature),
        input_signature=signature,
        opset=ONNX_OPSET,
    )
    onnx.helper.set_model_props(made, {"class_names": "\n".join(class_names)})
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())


def to_litert(model: tf.Module, path: Path, examples: NDArray[np.uint8], *, integers: bool) -> None:
    """Write LiteRT: one uint8 image `[1, height, width, 3]`, RGB, of the examples' size, to its logits float32 `[1, classes]`.

    Args:
        model: what `saved_model.load_saved_model` returned.
        path: of the file.
        examples: uint8 `[n, height, width, 3]`.
        integers: weights and activations are int8, in ranges that the examples fill.
    """
    signature = tf.TensorSpec((1, *examples.shape[1:]), tf.uint8, name="images")
    function = tf.function(_served(model, ("logits",)), input_signature=[signature]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    if integers:

        def representative() -> Iterator[list[NDArray[np.uint8]]]:
            for image in examples:
                yield [image[None]]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
    path.write_bytes(converter.convert())


def _served(model: tf.Module, names: Sequence[str]) -> Any:
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        served = model.serve(images)
        return {name: served[name] for name in names}

    return serve
