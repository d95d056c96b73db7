"""Split a classifier into a frozen part and a part that learns. The frozen part's outputs can be computed once for many epochs."""

from typing import Any, NamedTuple

import keras

from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.graph import readers_of


class Partition(NamedTuple):
    """The two parts of a classifier, which share its variables."""

    frozen: keras.Model  # uint8 images [n, height, width, 3] to float32 features [n, ...]; its kernels are its own
    trainable: keras.Model  # features to float32 logits [n, classes]


def find_boundary(backbone: keras.Model) -> Any | None:
    """Return the one tensor of Keras's graph between the frozen layers and those that learn.

    If nothing learns, it is the tensor of the features. If there are several such tensors, or all layers learn, the result is None.
    """
    readers = readers_of(backbone)
    learning: set[str] = set()
    # The operations come in the order of the graph, so for the inputs of an operation it has been decided before whether they learn.
    for operation in backbone.operations:
        if getattr(operation, "trainable_weights", ()) or operation.name in learning:
            learning |= {operation.name} | {reader.name for reader in readers[operation.name]}
    if not learning:
        return backbone.output
    # If only layers without weights lie below, such as padding, there is nothing to save.
    if not any(layer.weights for layer in backbone.layers if layer.name not in learning):
        return None
    crossing = [
        operation.output
        for operation in backbone.operations
        if operation.name not in learning and any(reader.name in learning for reader in readers[operation.name])
    ]
    return crossing[0] if len(crossing) == 1 else None


def partition(classifier: keras.Model, *, compute_dtype: str, image_size: int) -> Partition | None:
    """Return the two parts of a classifier as fused twins, or None if it has no boundary.

    Args:
        classifier: what `build_classifier` returned. It is split where the trainable layers of its backbone begin.
        compute_dtype: dtype of the twins' activations.
        image_size: side in pixels to which the frozen part resizes its images.
    """
    backbone = classifier.get_layer("backbone")
    boundary = find_boundary(backbone)
    if boundary is None:
        return None
    below = keras.Model(backbone.input, boundary, name="backbone")
    size = (image_size, image_size, 3)
    frozen_twin = fused_twin(below, compute_dtype=compute_dtype, input_shape=size, folded=True)
    frozen = assemble(classifier, frozen_twin, last="backbone")
    if boundary is backbone.output:
        after = classifier.layers[classifier.layers.index(backbone) + 1]
        return Partition(frozen, assemble(classifier, None, first=after.name))
    learning = keras.Model(boundary, backbone.output, name="backbone")
    trainable_twin = fused_twin(learning, compute_dtype=compute_dtype, input_shape=frozen.output_shape[1:])
    return Partition(frozen, assemble(classifier, trainable_twin, first="backbone"))
