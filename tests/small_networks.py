"""Networks small enough for the fast tests, with the names and layers that the package looks for."""

import keras


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
