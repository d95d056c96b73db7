"""The classifier: uint8 pixels of any size in, logits out. Only standard Keras layers, so that it loads anywhere."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from cifar_keras.config import ModelConfig
from cifar_keras.models.backbones import BACKBONES, Backbone, InputConvention
from cifar_keras.models.resize import Resize
from cifar_keras.models.small_resnet import build_resnet9, build_resnet20
from cifar_keras.models.weights import load_weights

# Mean of the ImageNet training pixels in BGR order, 0..255, as keras.applications' "caffe" preprocessing subtracts it.
_IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
# Of the pixels in RGB order, 0..1, as PyTorch's models were trained.
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALL_NETWORKS = {"resnet9": build_resnet9, "resnet20": build_resnet20}


def build_backbone(name: str, image_size: int) -> keras.Model:
    """Build a headless network with random weights and average-pooled features.

    Args:
        name: a row of `BACKBONES`.
        image_size: side of the square input, in pixels.

    Returns:
        A model called "backbone" from float32 `[n, image_size, image_size, 3]`, in the network's own input convention,
        to float32 features `[n, features]`.
    """
    row, shape = BACKBONES[name], (image_size, image_size, 3)
    if not row.application:
        return _SMALL_NETWORKS[name](shape, name="backbone")
    whole = build_application(row, shape)
    if row.preprocessing == "cut off":
        # Layers of its own, because those of the whole have the whole's tensors for their inputs and outputs.
        whole = keras.models.clone_model(keras.Model(after_preprocessing(whole), whole.output))
    # Named afterwards: EfficientNetV2 takes a name that begins with "b" for one of its variants B0 to B3.
    return keras.Model(whole.input, whole.output, name="backbone")


def build_application(row: Backbone, shape: tuple[int, ...] | None = None) -> keras.Model:
    """Build a headless network of keras.applications as it comes, with random weights and without preprocessing if that can be."""
    settings = {"include_preprocessing": False} if row.preprocessing == "left out" else {}
    constructor = getattr(keras.applications, row.application)
    return constructor(weights=None, include_top=False, pooling="avg", input_shape=shape, **settings)


def after_preprocessing(application: keras.Model) -> Any:
    """Return the tensor, of Keras's graph, behind the layers that scale the pixels and have a network's statistics of them."""
    scales = keras.layers.Rescaling | keras.layers.Normalization
    return next(layer.input for layer in application.layers[1:] if not isinstance(layer, scales))


def pooling_of(backbone: keras.Model) -> keras.layers.Layer:
    """Return the layer that takes means over positions; behind it a ConvNeXt still normalizes."""
    return next(layer for layer in reversed(backbone.layers) if isinstance(layer, keras.layers.GlobalAveragePooling2D))


def build_classifier(
    backbone: keras.Model, convention: InputConvention, class_count: int, dropout: float, seed: int
) -> keras.Model:
    """Put the input transform before a backbone and a new head behind it. Images that shrink are smoothed first (antialiasing).

    The head starts at zero (BiT, arXiv:1912.11370, section 3.3): the first logits are 0 and the first loss is
    ln(class_count), whatever the backbone.

    Args:
        backbone: what `build_backbone` made.
        convention: the input convention that the backbone was trained with.
        class_count: number of logits.
        dropout: fraction of the features that is dropped in training, 0 <= dropout < 1.
        seed: seed of the dropout.

    Returns:
        A model from uint8 `[n, height, width, 3]`, RGB, 0..255, of any height and width, to float32 logits
        `[n, class_count]`.
    """
    image_size = backbone.input_shape[1]
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    # Rescaling by 1 turns the pixels into floats first: Resizing would round its result back to uint8.
    pixels = keras.layers.Rescaling(1.0, dtype="float32", name="to_float")(images)
    pixels = keras.layers.Resizing(
        image_size, image_size, interpolation="bilinear", antialias=True, dtype="float32", name="resize"
    )(pixels)
    transform = _input_transform()
    pixels = transform(pixels)
    transform.set_weights(list(input_transform_weights(convention)))
    features = backbone(pixels)
    if dropout:
        features = keras.layers.Dropout(dropout, seed=seed, name="dropout")(features)
    logits = keras.layers.Dense(class_count, kernel_initializer="zeros", dtype="float32", name="head")(features)
    return keras.Model(images, logits, name="classifier")


def make_classifier(
    settings: ModelConfig, class_count: int, *, seed: int, timeout_seconds: float, fetch: bool = True
) -> keras.Model:
    """Build a classifier with its starting weights, in the strategy's scope that is open.

    Args:
        settings: which backbone and which weights.
        class_count: number of logits.
        seed: seed of the dropout.
        timeout_seconds: seconds of standstill after which a source of weights on the network is given up.
        fetch: weights may come from the network.

    Raises:
        UserError: no source has the weights.
    """
    backbone = build_backbone(settings.backbone, settings.image_size)
    load_weights(backbone, settings.backbone, settings.weights, timeout_seconds, fetch=fetch)
    convention = BACKBONES[settings.backbone].input_convention
    return build_classifier(backbone, convention, class_count, settings.dropout, seed)


def assemble(
    classifier: keras.Model, backbone: keras.Model | None, *, first: str = "to_float", last: str = "head"
) -> keras.Model:
    """Put a classifier's layers together again with another backbone, all of them or a part; images get the size that it takes.

    The resize becomes `models.resize.Resize`, which takes the pixels as they are.

    Args:
        classifier: what `build_classifier` made; it is left as it is, and shares its layers.
        backbone: takes the place of the classifier's; None where the part has none.
        first: name of the part's first layer.
        last: name of the part's last layer.
    """
    names = [layer.name for layer in classifier.layers]
    layers = classifier.layers[names.index(first) : names.index(last) + 1]
    size = (classifier.get_layer("backbone") if backbone is None else backbone).input.shape[1]
    others = {"backbone": backbone or classifier.get_layer("backbone"), "resize": Resize(size)}
    layers = [others.get(layer.name, layer) for layer in layers]
    outputs = inputs = keras.Input(layers[0].input.shape[1:], dtype=layers[0].input.dtype)
    for layer in layers:
        if layer.name != "to_float":
            outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="classifier")


def feature_maps(classifier: keras.Model) -> keras.Model:
    """Return what a classifier computes before it takes means over positions, from images to `[n, rows, columns, channels]`."""
    backbone = classifier.get_layer("backbone")
    maps = pooling_of(backbone).input
    return assemble(classifier, keras.Model(backbone.input, maps, name="backbone"), last="backbone")


def input_transform_weights(convention: InputConvention) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the 1x1 convolution that turns RGB pixels, 0..255, into what a network family was trained on.

    Equal to `keras.applications.<family>.preprocess_input`, or to the layers that the network begins with where that does nothing.

    Returns:
        kernel float32 `[1, 1, 3, 3]` (input channel, output channel last) and bias float32 `[3]`.

    Raises:
        ValueError: there is no such convention.
    """
    mean, deviation = np.asarray(_IMAGENET_MEAN), np.asarray(_IMAGENET_DEVIATION)
    transforms = {
        "caffe": (np.eye(3)[::-1], -np.asarray(_IMAGENET_MEAN_BGR)),
        "tf": (np.eye(3) / 127.5, -np.ones(3)),
        "torch": (np.diag(1 / (255 * deviation)), -mean / deviation),
        "efficientnet_v2": (np.eye(3) / 128, -np.ones(3)),
    }
    if convention not in transforms:
        raise ValueError(f"an input convention has to be one of {', '.join(transforms)}. Received: {convention}")
    kernel, bias = transforms[convention]
    return kernel.reshape(1, 1, 3, 3).astype(np.float32), bias.astype(np.float32)


def _input_transform() -> keras.layers.Layer:
    # A convolution says "reverse the channels, scale, shift" in one standard layer that is saved with the model, so a
    # program without this package loads it. It costs 18 of a ResNet50's 163,000 FLOPs a pixel.
    return keras.layers.Conv2D(3, 1, trainable=False, dtype="float32", name="input_transform")
