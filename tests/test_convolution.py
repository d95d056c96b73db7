import itertools
from typing import Any, Literal

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.models.convolution import Geometry, KernelGradient, convolve, crop_kernel, matmul_kernel_gradient

PADDINGS: tuple[Literal["same", "valid"], ...] = ("same", "valid")
GEOMETRIES = [
    Geometry(strides, padding, dilations)
    for padding in PADDINGS
    for strides, dilations in (((1, 1), (1, 1)), ((1, 1), (2, 2)), ((1, 1), (1, 2)), ((2, 2), (1, 1)), ((1, 2), (1, 1)))
]
KERNEL_SIZES = [(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (3, 1)]
IMAGE_SIZES = [(15, 18), (16, 13), (17, 15), (14, 16)]  # odd and even, wide and high
CHANNELS, FILTERS = 3, 5


def name_of(value: Any) -> str:
    if isinstance(value, Geometry):
        return f"strides{value.strides}-{value.padding}-dilations{value.dilations}".replace(" ", "")
    return str(value).replace(" ", "")


def noise(*shape: int, seed: int = 0, dtype: Any = "float32") -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def exact_convolution(inputs: tf.Tensor, kernel: tf.Tensor, geometry: Geometry) -> tf.Tensor:
    """TensorFlow's own in float64, which oneDNN has no part in.

    In float32 the gradient of a strided 1x1 kernel of fewer than 8 channels is wrong by its own size where oneDNN computes
    it with AVX2 (TensorFlow 2.21).
    """
    inputs, kernel = tf.cast(inputs, "float64"), tf.cast(kernel, "float64")
    return tf.nn.convolution(inputs, kernel, geometry.strides, geometry.padding.upper(), dilations=geometry.dilations)


def outputs_and_gradients(function: Any, inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[NDArray[np.float32], ...]:
    """Give the outputs, and the gradients of inputs and kernel for a fixed gradient of the outputs."""
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernel])
        outputs = function(inputs, kernel)
    upstream = noise(*outputs.shape, seed=9, dtype=outputs.dtype)
    return np.asarray(outputs), *map(np.asarray, tape.gradient(outputs, [inputs, kernel], output_gradients=upstream))


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    """Compare within a fraction of the largest value, since single sums can cancel to nothing."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=name_of)
@pytest.mark.parametrize("kernel_size", KERNEL_SIZES, ids=name_of)
def test_the_matmul_gradient_is_tensorflows(kernel_size: tuple[int, int], geometry: Geometry) -> None:
    kernel = noise(*kernel_size, CHANNELS, FILTERS, seed=1)
    for image_size in IMAGE_SIZES:
        inputs = noise(2, *image_size, CHANNELS)
        outputs, _, wanted = outputs_and_gradients(lambda x, k: exact_convolution(x, k, geometry), inputs, kernel)
        found = matmul_kernel_gradient(inputs, noise(*outputs.shape, seed=9), kernel_size, geometry)
        assert_close(found, wanted)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=name_of)
def test_convolve_gives_the_same_either_way(geometry: Geometry) -> None:
    inputs, kernel = noise(2, 15, 18, CHANNELS), noise(3, 3, CHANNELS, FILTERS, seed=1)
    wanted = outputs_and_gradients(lambda x, k: exact_convolution(x, k, geometry), inputs, kernel)

    def by(kernel_gradient: KernelGradient) -> Any:
        return lambda x, k: convolve(x, k, geometry, depthwise=False, kernel_gradient=kernel_gradient)

    ways: tuple[KernelGradient, ...] = ("convolution", "matmul")
    for way in ways:
        for found, expected in zip(outputs_and_gradients(by(way), inputs, kernel), wanted, strict=True):
            assert_close(found, expected)


@pytest.mark.parametrize("geometry", GEOMETRIES[:5], ids=name_of)
@pytest.mark.parametrize("kernel_size", [*KERNEL_SIZES, (2, 2), (4, 3)], ids=name_of)
def test_of_one_position_the_kernel_has_one_place(kernel_size: tuple[int, int], geometry: Geometry) -> None:
    assert geometry.padding == "same"
    inputs, kernel = noise(4, 1, 1, CHANNELS), noise(*kernel_size, CHANNELS, FILTERS, seed=1)
    wanted = outputs_and_gradients(lambda x, k: exact_convolution(x, k, geometry), inputs, kernel)

    def cropped(x: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
        part, moves = crop_kernel((1, 1), k, geometry)
        met_by_none = any(
            size % 2 == 0 and step > 1 for size, step in zip(kernel_size, geometry.dilations, strict=True)
        )
        assert tuple(part.shape[:2]) == (kernel_size if met_by_none else (1, 1))
        return convolve(x, part, moves, depthwise=False, kernel_gradient="matmul")

    for found, expected in zip(outputs_and_gradients(cropped, inputs, kernel), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 3), (None, None), (1, None)])
def test_of_more_positions_the_kernel_is_whole(size: tuple[int | None, int | None]) -> None:
    kernel, geometry = noise(3, 3, CHANNELS, FILTERS), Geometry((1, 1), "same", (1, 1))
    assert crop_kernel(size, kernel, geometry) == (kernel, geometry)


@pytest.mark.parametrize(
    ("geometry", "before"),
    [
        (Geometry((1, 1), "valid", (1, 1)), (0, 0)),
        (Geometry((2, 2), "same", (1, 1)), (1, 0)),  # 5 rows: one before and one after; 4 columns: only one after
        (Geometry((1, 1), "same", (2, 2)), (2, 2)),
    ],
    ids=name_of,
)
def test_the_matmul_gradient_is_the_sum_that_defines_it(geometry: Geometry, before: tuple[int, int]) -> None:
    """Written out in NumPy: each output reads each place of the kernel once, and what lies outside is nothing."""
    rows, columns = 5, 4
    inputs = np.random.default_rng(0).normal(size=(2, rows, columns, 2))
    outputs = exact_convolution(tf.constant(inputs), tf.zeros((3, 3, 2, 3), "float64"), geometry)
    upstream = np.random.default_rng(1).normal(size=outputs.shape)
    wanted = np.zeros((3, 3, 2, 3))
    for image, y, x, i, j in itertools.product(range(2), *map(range, outputs.shape[1:3]), range(3), range(3)):
        row = geometry.strides[0] * y + geometry.dilations[0] * i - before[0]
        column = geometry.strides[1] * x + geometry.dilations[1] * j - before[1]
        if 0 <= row < rows and 0 <= column < columns:
            wanted[i, j] += np.outer(inputs[image, row, column], upstream[image, y, x])
    found = matmul_kernel_gradient(tf.constant(inputs), tf.constant(upstream), (3, 3), geometry)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("geometry", [Geometry((2, 2), "same", (1, 1)), Geometry((1, 1), "valid", (2, 2))], ids=name_of)
def test_the_number_of_images_may_be_unknown(geometry: Geometry) -> None:
    kernel = noise(3, 3, CHANNELS, FILTERS, seed=1)

    @tf.function(input_signature=[tf.TensorSpec((None, 15, 18, CHANNELS))])
    def gradients(inputs: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = convolve(inputs, kernel, geometry, depthwise=False, kernel_gradient="matmul")
        return outputs, *tape.gradient(outputs, [inputs, kernel], output_gradients=tf.sin(outputs))

    for count in (1, 4):
        inputs = noise(count, 15, 18, CHANNELS)
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = exact_convolution(inputs, kernel, geometry)
        wanted = outputs, *tape.gradient(outputs, [inputs, kernel], output_gradients=tf.sin(outputs))
        for found, expected in zip(gradients(inputs), wanted, strict=True):
            assert_close(found, expected)


def test_the_matmul_gradient_of_bfloat16_is_bfloat16_and_near_the_exact_one() -> None:
    geometry = Geometry((1, 1), "same", (1, 1))
    inputs, kernel = noise(2, 15, 18, CHANNELS, dtype="bfloat16"), noise(3, 3, CHANNELS, FILTERS, dtype="bfloat16")
    upstream = noise(2, 15, 18, FILTERS, seed=9, dtype="bfloat16")
    found = matmul_kernel_gradient(inputs, upstream, kernel.shape[:2], geometry)
    assert found.dtype == tf.bfloat16
    exact = matmul_kernel_gradient(tf.cast(inputs, "float64"), tf.cast(upstream, "float64"), (3, 3), geometry)
    assert_close(tf.cast(found, "float64"), exact, tolerance=0.01)  # sums of 540 products, rounded to 8 bits once


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((1, 1), "same", (1, 1)),
        Geometry((2, 2), "same", (1, 1)),
        Geometry((2, 2), "valid", (1, 1)),
        Geometry((1, 1), "valid", (2, 2)),
    ],
    ids=name_of,
)
def test_a_depthwise_convolution_is_one_of_each_channel(geometry: Geometry, multiplier: int) -> None:
    inputs, kernel = noise(2, 15, 18, CHANNELS), noise(3, 3, CHANNELS, multiplier, seed=1)

    def channel_by_channel(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        each = [exact_convolution(inputs[..., i : i + 1], kernel[:, :, i : i + 1], geometry) for i in range(CHANNELS)]
        return tf.concat(each, axis=-1)

    def tensorflows(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        strides, padding = [1, *geometry.strides, 1], geometry.padding.upper()
        return tf.nn.depthwise_conv2d(inputs, kernel, strides, padding, dilations=geometry.dilations)

    def ours(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return convolve(inputs, kernel, geometry, depthwise=True, kernel_gradient="matmul")

    found = outputs_and_gradients(ours, inputs, kernel)
    for function in (channel_by_channel, tensorflows):
        for value, wanted in zip(found, outputs_and_gradients(function, inputs, kernel), strict=True):
            assert_close(value, wanted)


def test_a_layers_own_settings_are_a_geometry() -> None:
    """What Keras's layers hold is what TensorFlow's convolution takes, padding "same" with an odd total included."""
    for layer in (
        keras.layers.Conv2D(4, 3, 2, "same"),
        keras.layers.Conv2D(4, (3, 5), 1, "valid", dilation_rate=(2, 1)),
    ):
        inputs = noise(2, 16, 17, CHANNELS)
        wanted = layer(inputs)
        geometry = Geometry(layer.strides, layer.padding, layer.dilation_rate)
        kernel = tf.convert_to_tensor(layer.kernel)
        assert_close(convolve(inputs, kernel, geometry, depthwise=False, kernel_gradient="matmul"), wanted)
