"""A convolution that can compute the gradient of its kernel in two ways."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import tensorflow as tf

# "convolution" is TensorFlow's own gradient. "matmul" sums x^T dy over all positions, in one matrix product for each place of the
# kernel. On processors with AMX, oneDNN multiplies matrices several times as fast as it computes a backward-weights convolution.
KernelGradient = Literal["convolution", "matmul"]


class Geometry(NamedTuple):
    """How a kernel moves over its input: strides, padding and dilations."""

    strides: tuple[int, int]
    padding: Literal["same", "valid"]
    dilations: tuple[int, int]


def convolve(
    inputs: tf.Tensor, kernel: tf.Tensor, geometry: Geometry, *, depthwise: bool, kernel_gradient: KernelGradient
) -> tf.Tensor:
    """Return the convolution of inputs and kernel. The gradient of the kernel is computed as `kernel_gradient` says.

    Args:
        inputs: `[n, height, width, channels]`.
        kernel: `[height, width, channels, filters]` of the same dtype. The last axis of a depthwise kernel is the multiplier.
        geometry: strides, padding and dilations.
        depthwise: convolve each channel with its own kernels. The gradient is then always TensorFlow's.
        kernel_gradient: "matmul" needs a kernel that reads all channels (no groups).
    """
    padding = geometry.padding.upper()
    if depthwise:
        strides = [1, *geometry.strides, 1]
        return tf.nn.depthwise_conv2d(inputs, kernel, strides, padding, dilations=geometry.dilations)

    def convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(inputs, kernel, geometry.strides, padding, dilations=geometry.dilations)

    def with_matmul_gradient(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            to_inputs = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(inputs),
                filter=kernel,
                out_backprop=upstream,
                strides=[1, *geometry.strides, 1],
                padding=padding,
                dilations=[1, *geometry.dilations, 1],
            )
            return to_inputs, matmul_kernel_gradient(inputs, upstream, kernel.shape[:2], geometry)

        return convolution(inputs, kernel), gradients

    if kernel_gradient == "convolution":
        return convolution(inputs, kernel)
    return tf.custom_gradient(with_matmul_gradient)(inputs, kernel)


def crop_kernel(
    input_size: tuple[int | None, int | None], kernel: tf.Tensor, geometry: Geometry
) -> tuple[tf.Tensor, Geometry]:
    """Return the part of a kernel that can lie over pixels, and how it moves. For an input of a single position this is one place.

    The kernel's other places then lie over padding, whatever the strides. With a 3x3 kernel, 8 of 9 products would be with zero. In
    ResNet50 at 32 px these are 6 of the 79 million products per image. The cropped kernel gives the same outputs and gradients.

    Args:
        input_size: height and width of the inputs; None for one that is not known.
        kernel: `[height, width, channels, filters]`.
        geometry: strides, padding and dilations.
    """
    if input_size != (1, 1) or geometry.padding == "valid":
        return kernel, geometry
    paddings = _paddings((1, 1), (1, 1), kernel.shape[:2], geometry)
    places = [divmod(before, dilation) for (before, _), dilation in zip(paddings, geometry.dilations, strict=True)]
    # Such a kernel, dilated and of even size, lies over padding only.
    if any(rest for _, rest in places):
        return kernel, geometry
    (row, _), (column, _) = places
    return kernel[row : row + 1, column : column + 1], geometry._replace(padding="valid")


def matmul_kernel_gradient(
    inputs: tf.Tensor, upstream: tf.Tensor, kernel_size: Sequence[int], geometry: Geometry
) -> tf.Tensor:
    """Return the gradient of a kernel, computed by matrix products.

    At the kernel's place (i, j) it is the sum over images and positions (y, x) of
    `inputs[n, stride * y + dilation * i - padding, stride * x + dilation * j - padding] * upstream[n, y, x]`.

    Args:
        inputs: `[n, height, width, channels]`, the inputs of the convolution.
        upstream: `[n, output height, output width, filters]`, the gradient of its outputs.
        kernel_size: height and width of the kernel.
        geometry: strides, padding and dilations.

    Returns:
        `[*kernel_size, channels, filters]`.
    """
    paddings = _paddings(inputs.shape[1:3], upstream.shape[1:3], kernel_size, geometry)
    padded = tf.pad(inputs, [[0, 0], *paddings, [0, 0]]) if any(map(any, paddings)) else inputs
    flat_upstream = tf.reshape(upstream, [-1, upstream.shape[-1]])
    places = []
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            rows, columns = (
                slice(place * dilation, place * dilation + (size - 1) * stride + 1, stride)
                for place, size, stride, dilation in zip(
                    (row, column), upstream.shape[1:3], geometry.strides, geometry.dilations, strict=True
                )
            )
            seen = tf.reshape(padded[:, rows, columns], [-1, inputs.shape[-1]])
            places.append(tf.matmul(seen, flat_upstream, transpose_a=True))
    return tf.reshape(tf.stack(places), [*kernel_size, inputs.shape[-1], upstream.shape[-1]])


def _paddings(
    input_size: Sequence[int], output_size: Sequence[int], kernel_size: Sequence[int], geometry: Geometry
) -> list[list[int]]:
    """Return the padding before and after, for each axis, as TensorFlow has it: if the total is odd, the larger part comes after."""
    paddings = []
    for size, outputs, kernel, stride, dilation in zip(
        input_size, output_size, kernel_size, geometry.strides, geometry.dilations, strict=True
    ):
        total = max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - size)
        paddings.append([total // 2, total - total // 2])
    return paddings
