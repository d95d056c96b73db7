"""Networks small enough for the fast tests, with the names and layers that the package looks for."""

import keras
import numpy as np

from cifar_keras.models.classifier import build_classifier


def small_backbone(image_size: int = 16) -> keras.Model:
    """A two-stage network with BatchNormalization, named as a backbone and its stages are."""
    images = keras.Input((image_size, image_size, 3))
    features = images
    for stage, width in (("conv1", 8), ("conv2", 16)):
        features = keras.layers.Conv2D(width, 3, strides=2, name=f"{stage}_conv")(features)
        features = keras.layers.BatchNormalization(name=f"{stage}_bn")(features)
        features = keras.layers.ReLU(name=f"{stage}_relu")(features)
    features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(images, features, name="backbone")


def small_classifier(dropout: float = 0.0) -> keras.Model:
    """A classifier of the small backbone whose head is not at zero, so that it tells images apart."""
    keras.utils.set_random_seed(3)
    model = build_classifier(small_backbone(), "caffe", class_count=10, dropout=dropout, seed=0)
    head = model.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    return model


def settle_normalizations(backbone: keras.Model) -> None:
    """Make every BatchNormalization like a trained one: no identity, and activations keep their size through it.

    Its statistics are those of noise, moved by some tenths, so that they are nobody's exactly.
    """
    generator = np.random.default_rng(5)
    layers = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        shape = layer.moving_mean.shape
        if layer.scale:
            layer.gamma.assign(generator.uniform(0.5, 1.0, shape))
        if layer.center:
            layer.beta.assign(generator.normal(0.0, 0.3, shape))
        layer.momentum = 0.0  # so that one batch is enough
    backbone(generator.normal(size=(16, *backbone.input_shape[1:])).astype(np.float32), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        deviation = np.sqrt(layer.moving_variance)
        layer.moving_mean.assign(layer.moving_mean + generator.normal(0.0, 0.3, deviation.shape) * deviation)
        layer.moving_variance.assign(layer.moving_variance * generator.uniform(1.0, 2.0, deviation.shape) + 1e-3)
