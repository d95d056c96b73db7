"""Small residual networks for small pictures: ResNet-20 and ResNet-9. They have no ImageNet weights."""

from typing import Any

import keras

# Channels of ResNet-20's block groups conv2, conv3 and conv4.
WIDTHS = (16, 32, 64)
# Blocks in each of its block groups.
BLOCKS = 3


def build_resnet9(input_shape: tuple[int, int, int], *, name: str) -> keras.Model:
    """Return ResNet-9, a network of few wide layers that learns in few epochs: Page's for CIFAR-10 at half width, without classifier.

    The original is in "How to Train Your ResNet 4: Architecture" (myrtle.ai, 2018). It has eight convolutions, maximum pooling where
    the width grows, and a residual block in its second and in its last group. At the end this network takes means over positions,
    where the original takes maxima. It has 1.64 million weights.

    Args:
        input_shape: height, width, 3.
        name: of the model.

    Returns:
        A model from float32 `[n, height, width, 3]` to float32 `[n, 256]`. The names of its layers begin with conv1 to conv4.
    """
    images = keras.Input(input_shape)
    features = _activated(images, 32, 1, "conv1")
    for group, width, residual in (("conv2", 64, True), ("conv3", 128, False), ("conv4", 256, True)):
        features = _activated(features, width, 1, group)
        features = keras.layers.MaxPooling2D(name=f"{group}_pool")(features)
        if residual:
            block = _activated(features, width, 1, f"{group}_block1_1")
            block = _activated(block, width, 1, f"{group}_block1_2")
            features = keras.layers.Add(name=f"{group}_block1_out")([features, block])
    pooled = keras.layers.GlobalAveragePooling2D(name="avg_pool")(features)
    return keras.Model(images, pooled, name=name)


def build_resnet20(input_shape: tuple[int, int, int], *, name: str) -> keras.Model:
    """Return ResNet-20, the 20-layer network for CIFAR-10 of He et al. (arXiv:1512.03385, section 4.2), without its classifier.

    Where the width grows, the shortcut is a 1x1 convolution (their option B). The network has 0.27 million weights.

    Args:
        input_shape: height, width, 3.
        name: of the model.

    Returns:
        A model from float32 `[n, height, width, 3]` to float32 `[n, 64]`. The names of its layers begin with conv1 to conv4.
    """
    images = keras.Input(input_shape)
    features = _activated(images, WIDTHS[0], 1, "conv1")
    for group, width in enumerate(WIDTHS, start=2):
        for block in range(1, BLOCKS + 1):
            stride = 2 if block == 1 and group > 2 else 1
            features = _block(features, width, stride, f"conv{group}_block{block}")
    pooled = keras.layers.GlobalAveragePooling2D(name="avg_pool")(features)
    return keras.Model(images, pooled, name=name)


def _block(features: Any, width: int, stride: int, name: str) -> Any:
    shortcut = features
    if stride > 1:
        shortcut = _normalized(features, width, 1, stride, f"{name}_0")
    features = _activated(features, width, stride, f"{name}_1")
    features = _normalized(features, width, 3, 1, f"{name}_2")
    summed = keras.layers.Add(name=f"{name}_add")([shortcut, features])
    return keras.layers.ReLU(name=f"{name}_out")(summed)


def _activated(features: Any, width: int, stride: int, name: str) -> Any:
    return keras.layers.ReLU(name=f"{name}_relu")(_normalized(features, width, 3, stride, name))


def _normalized(features: Any, width: int, kernel: int, stride: int, name: str) -> Any:
    """Return features after a convolution without bias and its BatchNormalization."""
    features = keras.layers.Conv2D(
        width,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(features)
    return keras.layers.BatchNormalization(name=f"{name}_bn")(features)
