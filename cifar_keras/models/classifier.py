"""The classifier: uint8 pixels of any size in, logits out. It has only standard Keras layers, so that it loads anywhere."""

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
# Mean and standard deviation of the pixels in RGB order, 0..1, with which PyTorch's models were trained.
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALL_NETWORKS = {"resnet9": build_resnet9, "resnet20": build_resnet20}


def build_backbone(name: str, image_size: int) -> keras.Model:
    """Return a headless network with random weights and average-pooled features.

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
        # Clone the layers, because the originals keep the inputs and outputs of the whole network.
        whole = keras.models.clone_model(keras.Model(after_preprocessing(whole), whole.output))
    # The name is set afterwards: EfficientNetV2 mistakes a name that begins with "b" for one of its variants B0 to B3.
    return keras.Model(whole.input, whole.output, name="backbone")


def build_application(row: Backbone, shape: tuple[int, ...] | None = None) -> keras.Model:
    """Return a headless network of keras.applications with random weights, without preprocessing layers if they can be left out."""
    settings = {"include_preprocessing": False} if row.preprocessing == "left out" else {}
    constructor = getattr(keras.applications, row.application)
    return constructor(weights=None, include_top=False, pooling="avg", input_shape=shape, **settings)


def after_preprocessing(application: keras.Model) -> Any:
    """Return the tensor of Keras's graph behind the preprocessing layers, which rescale and normalize the pixels."""
    scales = keras.layers.Rescaling | keras.layers.Normalization
    return next(layer.input for layer in application.layers[1:] if not isinstance(layer, scales))


def pooling_of(backbone: keras.Model) -> keras.layers.Layer:
    """Return the layer that takes means over positions. In a ConvNeXt a normalization follows it."""
    return next(layer for layer in reversed(backbone.layers) if isinstance(layer, keras.layers.GlobalAveragePooling2D))


def build_classifier(
    backbone: keras.Model, convention: InputConvention, class_count: int, dropout: float, seed: int
) -> keras.Model:
    """Return a classifier: the input transform, a backbone, and a new head.

    The central square of an image is resized. Images that shrink are smoothed first (antialiasing). The head starts at zero (BiT,
    arXiv:1912.11370, section 3.3). So the first logits are 0 and the first loss is ln(class_count), whatever the backbone.

    Args:
        backbone: what `build_backbone` returned.
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
    # Rescaling by 1 turns the pixels into floats. Given uint8, Resizing would round its result back to uint8.
    pixels = keras.layers.Rescaling(1.0, dtype="float32", name="to_float")(images)
    pixels = keras.layers.Resizing(
        image_size,
        image_size,
        interpolation="bilinear",
        crop_to_aspect_ratio=True,
        antialias=True,
        dtype="float32",
        name="resize",
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
    """Return a classifier with its starting weights. Call it in the scope of the strategy.

    Args:
        settings: which backbone and which weights.
        class_count: number of logits.
        seed: seed of the dropout.
        timeout_seconds: seconds without progress after which a source of weights on the network is given up.
        fetch: whether weights may come from the network.

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
    """Return a classifier's layers, all of them or a part, with another backbone. Images are resized to the size that it takes.

    The resize becomes `models.resize.Resize`, which takes the pixels as they are.

    Args:
        classifier: what `build_classifier` returned. It does not change, and shares its layers.
        backbone: takes the place of the classifier's backbone; None keeps that one, or is for a part without a backbone.
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
    """Return the model from images to the features before means over positions are taken: `[n, rows, columns, channels]`."""
    backbone = classifier.get_layer("backbone")
    maps = pooling_of(backbone).input
    return assemble(classifier, keras.Model(backbone.input, maps, name="backbone"), last="backbone")


def input_transform_weights(convention: InputConvention) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weights of the 1x1 convolution that applies an input convention to RGB pixels, 0..255.

    It equals `keras.applications.<family>.preprocess_input`. Where that function does nothing, it equals the network's own first layers.

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
    # One convolution can reverse the channels, scale and shift. It is a standard layer that is saved with the model, so programs
    # without this package can load it. It costs 18 of a ResNet50's 163,000 FLOPs per pixel.
    return keras.layers.Conv2D(3, 1, trainable=False, dtype="float32", name="input_transform")
