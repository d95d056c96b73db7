"""Choose how a model is computed on this machine, by measurement where the settings say AUTO.

There are two choices: the dtype of the activations, and the method for the gradients of convolution kernels.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from cifar_keras.config import ComputeDtype, KernelGradientChoice
from cifar_keras.errors import UserError
from cifar_keras.files.environment import instruction_sets
from cifar_keras.models.convolution import Geometry, KernelGradient, convolve, crop_kernel
from cifar_keras.models.fused import FusedConvolution

# The least gain in speed for which bfloat16 is chosen. bfloat16 rounds to 8 bits where float32 has 24, so a gain within the noise of
# the measurement is not worth it. Processors are far from this limit: those with fast instructions gained a factor of about 2, and
# others lost (0.6).
WORTHWHILE = 1.2
# A matrix product is chosen if it takes less than this fraction of the convolution's time. If both methods are about as fast, the margin
# keeps the choice, and with it the rounding, from changing with every measurement. It costs at most a tenth of one convolution.
CLEARLY_FASTER = 0.9
TIMED_CALLS = 3
MEASURED_IMAGES = 32


def choose_compute_dtype(wanted: ComputeDtype, *, deterministic: bool) -> tuple[str, str]:
    """Return the dtype of the activations, and the reason for it in words.

    Args:
        wanted: the setting. AUTO chooses bfloat16 where it is faster.
        deterministic: AUTO chooses bfloat16 wherever the hardware has instructions for it. A measurement could come out differently
            each time.

    Raises:
        UserError: float16 is asked for, and there is no GPU. TensorFlow's CPU kernels do not train in float16.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if wanted is ComputeDtype.FLOAT16 and not gpus:
        raise UserError("--compute_dtype=float16 needs a GPU. Received: no GPU")
    if wanted is not ComputeDtype.AUTO:
        return str(wanted), "as asked"
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        able = all(detail.get("compute_capability", (0, 0)) >= (8, 0) for detail in details)
    else:
        able = bool({"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_sets()))
    if not able:
        return "float32", f"the {'GPU' if gpus else 'processor'} has no bfloat16 instructions"
    if deterministic:
        return "bfloat16", f"the {'GPU' if gpus else 'processor'} has instructions for it"
    gain = _step_seconds("float32") / _step_seconds("bfloat16")
    return (
        "bfloat16" if gain >= WORTHWHILE else "float32",
        f"bfloat16 makes a convolution's step {gain:.1f} times as fast",
    )


def choose_kernel_gradients(model: keras.Model, wanted: KernelGradientChoice, compute_dtype: str, images: int) -> None:
    """Set the method by which each learning fused convolution computes the gradient of its kernel.

    Args:
        model: the model that a phase fits, not traced yet.
        wanted: the setting. AUTO measures each distinct shape, which takes some milliseconds each. On a GPU it leaves all to cuDNN.
        compute_dtype: dtype of the activations.
        images: images of a step on one device.
    """
    measured: dict[Any, KernelGradient] = {}
    on_gpu = bool(tf.config.get_visible_devices("GPU"))
    for layer in _learning_convolutions(model):
        shape = (tuple(layer.input.shape[1:]), tuple(layer.convolution.kernel.shape), layer.geometry)
        if wanted is not KernelGradientChoice.AUTO or on_gpu:
            layer.kernel_gradient = "matmul" if wanted is KernelGradientChoice.MATMUL else "convolution"
            continue
        if shape not in measured:
            measured[shape] = faster_kernel_gradient(*shape, compute_dtype, images)
        layer.kernel_gradient = measured[shape]


def kernel_gradients(model: keras.Model) -> dict[str, KernelGradient]:
    """Return the gradient method of each learning fused convolution, by the layer's name."""
    return {layer.name: layer.kernel_gradient for layer in _learning_convolutions(model)}


def set_kernel_gradients(model: keras.Model, ways: Mapping[str, KernelGradient]) -> None:
    """Set the gradient method of each learning fused convolution to what `kernel_gradients` returned.

    The model must not be traced yet.
    """
    for layer in _learning_convolutions(model):
        layer.kernel_gradient = ways[layer.name]


def _learning_convolutions(model: keras.Model) -> list[FusedConvolution]:
    try:
        layers = model.get_layer("backbone").layers
    except ValueError:
        # The model is a head alone.
        return []
    return [
        layer
        for layer in layers
        if isinstance(layer, FusedConvolution)
        and layer.convolution.trainable_weights
        and isinstance(layer.convolution, keras.layers.Conv2D)
        and layer.convolution.groups == 1
    ]


def faster_kernel_gradient(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], geometry: Geometry, compute_dtype: str, images: int
) -> KernelGradient:
    """Return the faster gradient method for one convolution, by timing both.

    A matrix product is returned only if it is clearly faster (`CLEARLY_FASTER`).
    """
    generator = tf.random.Generator.from_seed(0)
    inputs = tf.cast(generator.normal([min(images, MEASURED_IMAGES), *input_shape]), compute_dtype)
    whole = tf.cast(generator.normal(kernel_shape), compute_dtype)
    kernel, geometry = crop_kernel((input_shape[0], input_shape[1]), whole, geometry)
    seconds: dict[KernelGradient, float] = {}
    for way in ("convolution", "matmul"):

        @tf.function
        def gradient(way: KernelGradient = way) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                outputs = convolve(inputs, kernel, geometry, depthwise=False, kernel_gradient=way)
            return tape.gradient(outputs, kernel, output_gradients=outputs)

        seconds[way] = _fastest(gradient)
    return "matmul" if seconds["matmul"] < CLEARLY_FASTER * seconds["convolution"] else "convolution"


def _step_seconds(dtype: str) -> float:
    generator = tf.random.Generator.from_seed(0)
    inputs = tf.cast(generator.normal([MEASURED_IMAGES, 16, 16, 256]), dtype)
    kernel = tf.cast(generator.normal([3, 3, 256, 256]), dtype)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = tf.nn.relu(tf.nn.conv2d(inputs, kernel, 1, "SAME"))
        return tape.gradient(outputs, [inputs, kernel])

    return _fastest(step)


def _fastest(function: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of `TIMED_CALLS` calls. An untimed call before them traces the function."""
    seconds = []
    for _ in range(1 + TIMED_CALLS):
        started = time.perf_counter()
        for tensor in keras.tree.flatten(function()):
            # Reading the value waits for a GPU.
            tensor.numpy()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
