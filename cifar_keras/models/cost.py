"""Count the floating point operations of a network, from its layers alone."""

import math
from typing import NamedTuple

import keras

from cifar_keras.models.graph import readers_of


class Cost(NamedTuple):
    """Floating point operations for one image, two for each multiply-accumulate of a convolution or a dense layer."""

    forward: int
    backward: int  # of a training step: the gradients of kernels that learn, and of the inputs of layers above them
    forward_learning: int  # the part of `forward` in layers that learn, and in those above them


def cost_per_image(network: keras.Model) -> Cost:
    """Return what an image costs in a network, as its layers are frozen now.

    A layer costs as much forward, for the gradient of its kernel, and for the gradient of its input. The last one is computed if
    something below learns. Everything else, such as normalizations, takes under 2 % of a ResNet's operations and is left out.

    Args:
        network: a functional model of known input size; what `build_backbone` returned, or a classifier of it.
    """
    readers = readers_of(network)
    reached: set[str] = set()  # operations whose inputs depend on weights that learn
    forward = backward = learning = 0
    for operation in network.operations:
        learns = bool(getattr(operation, "trainable_weights", ()))
        cost = 2 * _multiplications(operation)
        forward += cost
        backward += cost * (learns + (operation.name in reached))
        if learns or operation.name in reached:
            learning += cost
            reached |= {reader.name for reader in readers[operation.name]}
    return Cost(forward, backward, learning)


def cost_of_classifier(classifier: keras.Model, image_size: int | None = None) -> Cost:
    """Return what an image costs in a classifier: in its backbone and in its head, as they are frozen now.

    The resize and the input transform are left out. The transform takes 18 of a ResNet50's 163,000 operations for a pixel.

    Args:
        classifier: what `build_classifier` returned.
        image_size: side in pixels at which the backbone computes; None: its own.
    """
    backbone = classifier.get_layer("backbone")
    if image_size not in (None, backbone.input_shape[1]):
        # A layer that is used twice has the shape of its first use. The clone's layers are new, and as frozen as those of the backbone.
        backbone = keras.models.clone_model(backbone, keras.Input((image_size, image_size, 3)))
    forward, backward, learning = cost_per_image(backbone)
    of_head = 2 * _multiplications(classifier.get_layer("head"))
    return Cost(forward + of_head, backward + of_head * (1 + (backward > 0)), learning + of_head)


def _multiplications(operation: keras.Operation) -> int:
    """Return the multiply-accumulates of a layer for one image."""
    kernels = [getattr(operation, name, None) for name in ("kernel", "depthwise_kernel", "pointwise_kernel")]
    if not any(kernel is not None for kernel in kernels):
        return 0
    positions: int = math.prod(operation.output.shape[1:-1])
    return positions * sum(int(math.prod(kernel.shape)) for kernel in kernels if kernel is not None)
