"""The fused twin of a backbone: the same function, with the same variables, in fewer passes over memory.

Keras 3 computes a frozen BatchNormalization as separate operations, each of which reads and writes all activations. But it is
only the function x * scale + shift, with two constants per channel. So

    activation(BN(convolution(x, kernel))) = activation(convolution(x, kernel * scale) + shift),
    scale = gamma / sqrt(variance + epsilon),    shift = beta + (bias - mean) * scale

(arXiv:1712.05877, section 3.2). TensorFlow runs the right side as one kernel. The gradient of `kernel` is the same on both
sides, because the scale stays a separate factor.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cifar_keras.models.convolution import Geometry, KernelGradient, convolve, crop_kernel
from cifar_keras.models.graph import readers_of


class Fusion(NamedTuple):
    """A convolution and the layers after it that can be computed with it: nothing else reads the activations between them."""

    convolution: keras.layers.Layer
    normalization: keras.layers.BatchNormalization | None  # frozen
    activation: keras.layers.Layer | None


class FusedConvolution(keras.layers.Layer):
    """One fusion as one layer. It has no variables of its own, and uses those of the layers that it replaces.

    Outputs have the activation dtype. Kernel, scale and shift are computed in float32 and then rounded.
    """

    def __init__(self, fusion: Fusion, name: str, activation_dtype: str) -> None:
        # The layer is float32: in a layer of another dtype Keras would round the variables before they are multiplied.
        super().__init__(name=name, dtype="float32", autocast=False)
        self._activation_dtype = activation_dtype
        self.convolution, self.normalization, self.activation = fusion
        # This may be set until the layer is traced. The traced graph keeps the value of that moment.
        self.kernel_gradient: KernelGradient = "convolution"
        self._depthwise = isinstance(self.convolution, keras.layers.DepthwiseConv2D)

    @property
    def geometry(self) -> Geometry:
        """The strides, padding and dilations of the convolution."""
        return Geometry(self.convolution.strides, self.convolution.padding, self.convolution.dilation_rate)

    def build(self, input_shape: Any) -> None:
        """Do nothing: the layers that this one replaces are built already."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the convolution's outputs."""
        return self.convolution.compute_output_shape(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the activations: convolved, scaled, shifted, activated."""
        # Crop the kernel before it is scaled; otherwise each step would read and write the whole kernel once more.
        whole = tf.convert_to_tensor(self.convolution.kernel)
        cropped, geometry = crop_kernel(tuple(inputs.shape[1:3]), whole, self.geometry)
        kernel, shift = self._scaled_and_shift(cropped)
        outputs = convolve(
            tf.cast(inputs, self._activation_dtype),
            tf.cast(kernel, self._activation_dtype),
            geometry,
            depthwise=self._depthwise,
            kernel_gradient=self.kernel_gradient,
        )
        if shift is not None:
            outputs = tf.nn.bias_add(outputs, tf.cast(shift, self._activation_dtype))
        # The convolution's own activation would come before a normalization. In that case no normalization is fused.
        outputs = self.convolution.activation(outputs)
        return outputs if self.activation is None else self.activation(outputs)

    def _scaled_and_shift(self, kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        bias = tf.convert_to_tensor(self.convolution.bias) if self.convolution.use_bias else None
        if self.normalization is None:
            return kernel, bias
        scale, shift = scale_and_shift(self.normalization)
        per_channel = tf.reshape(scale, kernel.shape[2:]) if self._depthwise else scale
        return kernel * per_channel, shift if bias is None else shift + bias * scale


class FusedNormalization(keras.layers.Layer):
    """A learning BatchNormalization in TensorFlow's single kernel for it. Keras computes it in many operations.

    It has the variables of that layer and updates its statistics in the same way. Outputs have the activation dtype.
    """

    def __init__(self, normalization: keras.layers.BatchNormalization, activation_dtype: str) -> None:
        super().__init__(name=normalization.name, dtype="float32", autocast=False)
        self._activation_dtype = activation_dtype
        self.normalization = normalization

    def build(self, input_shape: Any) -> None:
        """Do nothing: the layer that this one replaces is built already."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Return inputs normalized by the batch in training, else by the statistics. A mask is refused: pictures have none."""
        assert mask is None
        layer = self.normalization
        mean, variance = (tf.convert_to_tensor(values) for values in (layer.moving_mean, layer.moving_variance))
        normalized = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(inputs, self._activation_dtype),
            scale=tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones_like(mean),
            offset=tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros_like(mean),
            mean=[] if training else mean,
            variance=[] if training else variance,
            epsilon=layer.epsilon,
            is_training=bool(training),
        )
        if training:
            # The kernel divides by the number of values less one, to estimate the population's variance. Keras does not.
            values = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
            of_batch = normalized.batch_variance * (values - 1) / values
            for variable, statistic in ((layer.moving_mean, normalized.batch_mean), (layer.moving_variance, of_batch)):
                variable.assign(variable * layer.momentum + statistic * (1 - layer.momentum))
        return normalized.y


class SharedDropout(keras.layers.Layer):
    """A Dropout in another dtype. It draws from the seeds of the layer that it replaces, whose state is in the checkpoints."""

    def __init__(self, dropout: keras.layers.Dropout, activation_dtype: str) -> None:
        super().__init__(name=dropout.name, dtype="float32", autocast=False)
        self._activation_dtype = activation_dtype
        self.dropout = dropout

    def build(self, input_shape: Any) -> None:
        """Do nothing: the layer that this one replaces is built already."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return inputs with dropout in training. Stochastic depth drops whole images, by its noise shape."""
        inputs, layer = tf.cast(inputs, self._activation_dtype), self.dropout
        if not training:
            return inputs
        return keras.random.dropout(inputs, layer.rate, noise_shape=layer.noise_shape, seed=layer.seed_generator)


def scale_and_shift(normalization: keras.layers.BatchNormalization) -> tuple[tf.Tensor, tf.Tensor]:
    """Return scale and shift, float32 `[channels]`, of a frozen BatchNormalization."""
    scale = tf.math.rsqrt(tf.convert_to_tensor(normalization.moving_variance) + normalization.epsilon)
    if normalization.scale:
        scale *= tf.convert_to_tensor(normalization.gamma)
    shift = -tf.convert_to_tensor(normalization.moving_mean) * scale
    if normalization.center:
        shift += tf.convert_to_tensor(normalization.beta)
    return scale, shift


def find_fusions(backbone: keras.Model, *, inference: bool = False) -> dict[str, Fusion]:
    """Return the fusions of a backbone, by the name of their convolution.

    Every convolution has one. A BatchNormalization that learns is in no fusion, because its statistics need the activations
    before it. With `inference`, none counts as learning.
    """
    readers = readers_of(backbone)

    def follower(layer: keras.layers.Layer) -> keras.Operation | None:
        only = readers[layer.name]
        return only[0] if len(only) == 1 else None

    fusions = {}
    for layer in backbone.layers:
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            continue
        end, normalization, activation = layer, None, None
        following = follower(end)
        if _is_normalization(following, inference=inference) and layer.activation is keras.activations.linear:
            end = normalization = following
            following = follower(end)
        if _is_plain_activation(following) and (normalization or layer.activation is keras.activations.linear):
            activation = following
        fusions[layer.name] = Fusion(layer, normalization, activation)
    return fusions


def fusions_in_words(backbone: keras.Model) -> str:
    """Return a line that says how many of a backbone's normalizations are fused into a convolution while frozen."""
    fused = sum(fusion.normalization is not None for fusion in find_fusions(backbone, inference=True).values())
    total = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in backbone.layers)
    left = f"; {total - fused} cannot be and stay as they are" if fused < total else ""
    return f"{fused} of {total} normalizations are part of a convolution while they are frozen{left}"


def fused_twin(
    backbone: keras.Model,
    *,
    compute_dtype: str,
    input_shape: tuple[int, ...] | None = None,
    folded: bool = False,
) -> keras.Model:
    """Return the fused twin of a backbone, for the layers that are frozen now.

    Args:
        backbone: a functional model whose layers are each called once. It does not change, and shares its variables.
        compute_dtype: dtype of the activations: float32, bfloat16 or float16. Variables stay float32.
        input_shape: height, width and channels of the inputs; None takes the backbone's. Convolutions take any size.
        folded: for inference: give the twin variables of its own, scales multiplied in. It no longer follows the backbone.

    Returns:
        A model with the backbone's name, inputs and outputs. Features are float32, whatever the compute dtype.
    """
    fusions = find_fusions(backbone, inference=folded)
    readers = readers_of(backbone)
    passed = {layer.name for fusion in fusions.values() for layer in (fusion.normalization, fusion.activation) if layer}

    def fuse(fusion: Fusion) -> FusedConvolution:
        end = fusion.activation or fusion.normalization or fusion.convolution
        dtype = compute_dtype if readers[end.name] else "float32"
        if fusion.activation is not None:
            fusion = fusion._replace(activation=_with_dtype(fusion.activation, dtype))
        return FusedConvolution(_folded(fusion) if folded else fusion, fusion.convolution.name, dtype)

    def twin_of(layer: keras.Operation) -> keras.Operation:
        if layer.name in fusions:
            return fuse(fusions[layer.name])
        if layer.name in passed or not isinstance(layer, keras.layers.Layer):
            return layer
        if not folded and _is_one_kernel(layer):
            return FusedNormalization(layer, compute_dtype if readers[layer.name] else "float32")
        if isinstance(layer, keras.layers.Dropout):
            # A frozen layer drops nothing, even in training.
            dropped = not folded and layer.trainable
            return SharedDropout(layer, compute_dtype) if dropped else keras.layers.Identity(name=layer.name)
        if layer.weights:
            return _copied(layer) if folded else layer
        return _with_dtype(layer, compute_dtype) if readers[layer.name] else layer

    def call(layer: keras.Operation, *inputs: Any, **settings: Any) -> Any:
        return inputs[0] if layer.name in passed else layer(*inputs, **settings)

    inputs = keras.Input(input_shape or backbone.input.shape[1:])
    return keras.models.clone_model(backbone, inputs, clone_function=twin_of, call_function=call)


def _with_dtype(layer: keras.layers.Layer, compute_dtype: str) -> keras.layers.Layer:
    """Return a copy of a layer without variables that computes in another dtype."""
    policy = compute_dtype if compute_dtype == "float32" else f"mixed_{compute_dtype}"
    return type(layer).from_config({**layer.get_config(), "dtype": policy})


def _copied(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return a frozen copy of a layer, with variables of its own."""
    copy = type(layer).from_config({**layer.get_config(), "trainable": False})
    copy.build_from_config(layer.get_build_config())
    copy.set_weights(layer.get_weights())
    return copy


def _folded(fusion: Fusion) -> Fusion:
    """Return a fusion that computes the same with a new convolution and without a normalization."""
    convolution, normalization, activation = fusion
    settings = convolution.get_config() | {"use_bias": True, "dtype": "float32", "trainable": False}
    twin = type(convolution).from_config(settings)
    twin.build(convolution.input.shape)
    kernel = np.asarray(convolution.kernel, np.float64)
    bias = np.asarray(convolution.bias, np.float64) if convolution.use_bias else np.zeros(twin.bias.shape)
    if normalization is not None:
        scale, shift = (np.asarray(values, np.float64) for values in scale_and_shift(normalization))
        depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)
        kernel, bias = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale), bias * scale + shift
    twin.set_weights([kernel, bias])
    return Fusion(twin, None, activation)


def _is_normalization(layer: keras.Operation | None, *, inference: bool) -> bool:
    if not isinstance(layer, keras.layers.BatchNormalization) or layer.axis not in (-1, 3):
        return False
    return inference or not layer.trainable


def _is_one_kernel(layer: keras.layers.Layer) -> bool:
    """Return whether one TensorFlow kernel computes a layer: a learning BatchNormalization of pictures, with statistics per device."""
    return (
        isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and layer.axis in (-1, 3)
        and len(layer.output.shape) == 4
        and not (layer.synchronized or layer.renorm)
    )


def _is_plain_activation(layer: keras.Operation | None) -> bool:
    return isinstance(layer, keras.layers.Activation | keras.layers.ReLU)
