import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray
from small_networks import settle_normalizations, small_backbone

from cifar_keras.config import FinetuneConfig
from cifar_keras.models.classifier import assemble, build_classifier
from cifar_keras.models.convolution import KernelGradient
from cifar_keras.models.fused import (
    FusedConvolution,
    FusedNormalization,
    find_fusions,
    fused_twin,
    fusions_in_words,
    scale_and_shift,
)
from cifar_keras.training.fit import set_trainable


class Family(NamedTuple):
    """A network of keras.applications, and what of it can be fused, counted from its paper."""

    image_size: int
    convolutions: int
    normalized: int
    activated: int  # by a layer of their own


FAMILIES = {
    # 1 + 16 blocks of 3 + 4 shortcuts; the last ReLU of a block comes after its sum.
    "ResNet50": Family(32, 53, 53, 33),
    # The same convolutions, but only the first two of a block are followed by a normalization.
    "ResNet50V2": Family(32, 53, 32, 32),
    "VGG16": Family(32, 13, 0, 0),
    "InceptionV3": Family(75, 94, 94, 94),
    # 1 + 16 expansions + 17 depthwise + 17 projections, which are linear, + 1.
    "MobileNetV2": Family(32, 52, 52, 35),
    # 1 + 58 layers of 2 + 3 transitions; what ends a layer or a transition is not normalized by itself.
    "DenseNet121": Family(32, 120, 59, 59),
    # 1 + 10 expansions + 11 depthwise + 11 projections + 1, and 9 times squeeze and excite, whose sigmoid is written with
    # operators, which are no layers.
    "MobileNetV3Small": Family(32, 52, 34, 32),
}
SLOW = ("DenseNet121", "InceptionV3", "MobileNetV3Small", "ResNet50V2")


def build_family(name: str, image_size: int) -> keras.Model:
    keras.utils.set_random_seed(1)
    shape = (image_size, image_size, 3)
    application = getattr(keras.applications, name)
    return application(weights=None, include_top=False, pooling="avg", input_shape=shape, name="backbone")


@functools.cache
def family(name: str) -> keras.Model:
    """One of each for all tests, frozen."""
    backbone = build_family(name, FAMILIES[name].image_size)
    settle_normalizations(backbone)
    backbone.trainable = False
    return backbone


def noise(model: keras.Model, count: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(size=(count, *model.input_shape[1:])).astype(np.float32)


def difference(found: Any, wanted: Any) -> float:
    """Give the largest difference as a fraction of the largest value."""
    assert found.shape == wanted.shape
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def identities(variables: Iterable[Any]) -> set[int]:
    return {id(variable) for variable in variables}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
)
def test_the_twins_give_the_features_of_the_plain_backbone(name: str) -> None:
    backbone = family(name)
    pixels = noise(backbone)
    wanted = np.asarray(backbone(pixels, training=False))
    assert difference(wanted[:1], wanted[1:]) > 0.01, "the features have to say something of the images"
    for folded in (False, True):
        twin = fused_twin(backbone, compute_dtype="float32", folded=folded)
        assert twin.name == "backbone"
        assert (twin.input_shape, twin.output_shape) == (backbone.input_shape, backbone.output_shape)
        features = twin(pixels, training=False)
        assert features.dtype == "float32"
        assert difference(features, wanted) < 1e-4, folded


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
)
def test_as_much_is_fused_as_the_networks_paper_has(name: str) -> None:
    fusions = find_fusions(family(name)).values()
    normalized = sum(fusion.normalization is not None for fusion in fusions)
    activated = sum(fusion.activation is not None for fusion in fusions)
    assert (len(fusions), normalized, activated) == FAMILIES[name][1:]


def test_the_normalizations_of_a_resnet_are_those_of_their_convolutions() -> None:
    fusions = find_fusions(family("ResNet50"))
    assert {name: fusion.normalization.name for name, fusion in fusions.items() if fusion.normalization} == {
        name: name.replace("_conv", "_bn") for name in fusions
    }


# Small graphs, each with what of it is one layer: by the name of the convolution, its normalization and its activation.


def chain(x: Any) -> Any:
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(x))
    return layers.ReLU(name="relu")(x)


def biased(x: Any) -> Any:
    x = layers.Conv2D(4, 3, bias_initializer="normal", name="conv")(x)
    return layers.BatchNormalization(scale=False, center=False, name="bn")(x)


def depthwise(x: Any) -> Any:
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="normal", name="conv")(x)
    return layers.ReLU(6.0, name="relu")(layers.BatchNormalization(name="bn")(x))


def dilated_and_grouped(x: Any) -> Any:
    x = layers.BatchNormalization(name="bn1")(layers.Conv2D(8, 3, dilation_rate=2, name="conv1")(x))
    return layers.BatchNormalization(name="bn2")(layers.Conv2D(4, (1, 3), groups=2, use_bias=False, name="conv2")(x))


def unnormalized(x: Any) -> Any:
    return layers.Activation("tanh", name="tanh")(layers.Conv2D(4, 3, bias_initializer="normal", name="conv")(x))


def activated_before_its_normalization(x: Any) -> Any:
    return layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, activation="relu", name="conv")(x))


def activated_twice(x: Any) -> Any:
    return layers.ReLU(name="relu")(layers.Conv2D(4, 3, activation="tanh", name="conv")(x))


def normalized_before(x: Any) -> Any:
    return layers.Conv2D(4, 3, name="conv")(layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x)))


def normalized_by_row(x: Any) -> Any:
    return layers.BatchNormalization(axis=1, name="bn")(layers.Conv2D(4, 3, name="conv")(x))


def another_activation(x: Any) -> Any:
    return layers.LeakyReLU(name="leaky")(layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(x)))


def convolution_read_twice(x: Any) -> Any:
    x = layers.Conv2D(4, 3, name="conv")(x)
    return layers.Add(name="sum")([layers.BatchNormalization(name="bn")(x), x])


def convolution_read_by_an_operator(x: Any) -> Any:
    x = layers.Conv2D(4, 3, name="conv")(x)
    return layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x) + 0.5 * x)


def normalization_read_twice(x: Any) -> Any:
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(x))
    return layers.Concatenate(name="both")([layers.ReLU(name="relu")(x), x])


def activation_read_twice(x: Any) -> Any:
    x = layers.BatchNormalization(name="bn1")(layers.Conv2D(4, 3, name="conv1")(x))
    x = layers.ReLU(name="relu1")(x)
    y = layers.BatchNormalization(name="bn2")(layers.Conv2D(4, 3, padding="same", name="conv2")(x))
    return layers.ReLU(name="relu2")(layers.Add(name="sum")([x, y]))


GRAPHS: dict[Callable[[Any], Any], dict[str, tuple[str | None, str | None]]] = {
    chain: {"conv": ("bn", "relu")},
    biased: {"conv": ("bn", None)},
    depthwise: {"conv": ("bn", "relu")},
    dilated_and_grouped: {"conv1": ("bn1", None), "conv2": ("bn2", None)},
    unnormalized: {"conv": (None, "tanh")},
    activated_before_its_normalization: {"conv": (None, None)},
    activated_twice: {"conv": (None, None)},
    normalized_before: {"conv": (None, None)},
    normalized_by_row: {"conv": (None, None)},
    another_activation: {"conv": ("bn", None)},
    convolution_read_twice: {"conv": (None, None)},
    convolution_read_by_an_operator: {"conv": (None, None)},
    normalization_read_twice: {"conv": ("bn", None)},
    activation_read_twice: {"conv1": ("bn1", "relu1"), "conv2": ("bn2", None)},
}


def build_graph(graph: Callable[[Any], Any]) -> keras.Model:
    """Settled, with frozen normalizations, as everywhere outside `train_batch_norm`."""
    keras.utils.set_random_seed(4)
    images = keras.Input((9, 10, 3))
    model = keras.Model(images, graph(images), name="backbone")
    settle_normalizations(model)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    return model


def outputs_and_gradients(model: keras.Model, pixels: NDArray[np.float32], variables: list[Any]) -> list[Any]:
    """Give the outputs, and the gradients of the pixels and of some variables for a fixed gradient of the outputs."""
    inputs = tf.constant(pixels)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = model(inputs, training=True)
    upstream = np.random.default_rng(6).normal(size=outputs.shape).astype(np.float32)
    sources = [inputs, *(variable.value for variable in variables)]
    return [outputs, *tape.gradient(outputs, sources, output_gradients=tf.constant(upstream))]


@pytest.mark.parametrize("kernel_gradient", ["convolution", "matmul"])
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_small_graphs_are_fused_as_they_can_be(graph: Callable[[Any], Any], kernel_gradient: KernelGradient) -> None:
    model = build_graph(graph)
    found = {name: tuple(layer and layer.name for layer in fusion[1:]) for name, fusion in find_fusions(model).items()}
    assert found == GRAPHS[graph]
    twin = fused_twin(model, compute_dtype="float32")
    for layer in twin.layers:
        if isinstance(layer, FusedConvolution) and getattr(layer.convolution, "groups", 1) == 1:
            layer.kernel_gradient = kernel_gradient
    assert identities(twin.trainable_variables) == identities(model.trainable_variables)
    pixels, variables = noise(model), model.trainable_variables
    pairs = zip(
        outputs_and_gradients(twin, pixels, variables), outputs_and_gradients(model, pixels, variables), strict=True
    )
    for given, wanted in pairs:
        assert difference(given, wanted) < 1e-5


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_small_graphs_can_be_folded_and_do_not_follow_any_more(graph: Callable[[Any], Any]) -> None:
    model = build_graph(graph)
    model.trainable = True  # for inference no normalization learns
    pixels = noise(model)
    wanted = np.asarray(model(pixels, training=False))
    twin = fused_twin(model, compute_dtype="float32", folded=True)
    features = np.asarray(twin(pixels, training=False))
    assert difference(features, wanted) < 1e-5
    assert not identities(twin.variables) & identities(model.variables)
    for variable in model.variables:
        variable.assign(variable + 1.0)
    np.testing.assert_array_equal(twin(pixels, training=False), features)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_small_graphs_in_bfloat16(graph: Callable[[Any], Any]) -> None:
    model = build_graph(graph)
    pixels = noise(model)
    for folded in (False, True):
        twin = fused_twin(model, compute_dtype="bfloat16", folded=folded)
        features = twin(pixels, training=False)
        assert features.dtype == twin.output.dtype == "float32"
        assert difference(features, model(pixels, training=False)) < 0.02
        assert {variable.dtype for variable in twin.variables} == {"float32"}


@pytest.mark.parametrize("name", ["ResNet50V2", "MobileNetV2"])
def test_the_twin_has_the_variables_of_the_backbone_and_no_others(name: str) -> None:
    backbone = family(name)
    twin = fused_twin(backbone, compute_dtype="float32")
    assert identities(twin.variables) == identities(backbone.variables)
    assert len(twin.variables) == len(backbone.variables)


def test_the_plain_backbone_is_left_as_it_was() -> None:
    backbone = build_graph(activation_read_twice)
    backbone.get_layer("conv1").trainable = False
    pixels = noise(backbone)

    def look() -> list[Any]:
        return [
            backbone.get_config(),
            [(layer.name, layer.trainable, layer.dtype_policy.name) for layer in backbone.layers],
            [id(layer.output) for layer in backbone.layers],
            [id(variable) for variable in backbone.trainable_variables],
            [np.asarray(variable).tolist() for variable in backbone.variables],
            np.asarray(backbone(pixels)).tolist(),
        ]

    before = look()
    for folded in (False, True):
        fused_twin(backbone, compute_dtype="bfloat16", folded=folded, input_shape=(20, 20, 3))(np.zeros((1, 20, 20, 3)))
    assert look() == before
    # And a twin can be made again, of the same layers.
    assert difference(fused_twin(backbone, compute_dtype="float32")(pixels), backbone(pixels)) < 1e-5


def test_the_gradients_of_a_resnet_are_those_of_the_plain_one() -> None:
    backbone = family("ResNet50")
    kernels = [layer.kernel for layer in backbone.layers if isinstance(layer, layers.Conv2D)]
    assert len(kernels) == 53
    twin = fused_twin(backbone, compute_dtype="float32")
    backbone.trainable = True
    for layer in backbone.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    try:
        pixels = noise(backbone)
        found, wanted = (outputs_and_gradients(model, pixels, kernels) for model in (twin, backbone))
    finally:
        backbone.trainable = False
    assert max(difference(*pair) for pair in zip(found, wanted, strict=True)) < 1e-4


def test_images_of_another_size() -> None:
    backbone = family("ResNet50")
    wanted = build_family("ResNet50", 48)
    wanted.set_weights(backbone.get_weights())
    twin = fused_twin(backbone, compute_dtype="float32", input_shape=(48, 48, 3))
    assert twin.input_shape == (None, 48, 48, 3)
    pixels = noise(wanted)
    assert difference(twin(pixels, training=False), wanted(pixels, training=False)) < 1e-4


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2"])
def test_bfloat16_is_near_float32(name: str) -> None:
    backbone = family(name)
    twin = fused_twin(backbone, compute_dtype="bfloat16")
    pixels = noise(backbone)
    features = twin(pixels, training=False)
    assert features.dtype == "float32"
    assert 1e-4 < difference(features, backbone(pixels, training=False)) < 0.05  # activations are rounded to 8 bits


def rounded(values: Any) -> NDArray[np.float32]:
    return np.asarray(tf.cast(tf.cast(values, "bfloat16"), "float32"))


def test_scale_and_shift_are_the_two_constants_of_a_normalization() -> None:
    normalization = build_graph(chain).get_layer("bn")
    gamma, beta, mean, variance = (np.asarray(variable, np.float64) for variable in normalization.variables)
    scale, shift = scale_and_shift(normalization)
    np.testing.assert_allclose(scale, gamma / np.sqrt(variance + 1e-3), rtol=1e-6)
    np.testing.assert_allclose(shift, beta - mean * gamma / np.sqrt(variance + 1e-3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inside", ["float32", "mixed_bfloat16"])
def test_kernel_and_shift_are_rounded_once_after_the_product(inside: str) -> None:
    """A variance of 1 + 1e-3 is 1 in bfloat16, and a mean of 100.3 is 100.5: rounded before the product, both would show.

    Inside a model of a mixed policy Keras rounds whatever variables its layers read, if they let it.
    """
    images = keras.Input((1, 1, 1))
    x = layers.Conv2D(256, 1, use_bias=False, name="conv")(images)
    x = layers.BatchNormalization(trainable=False, name="bn")(x)
    backbone = keras.Model(images, layers.GlobalAveragePooling2D(name="pool")(x), name="backbone")
    kernel = np.random.default_rng(0).uniform(1.0, 2.0, 256).astype(np.float32)
    backbone.get_layer("conv").kernel.assign(kernel.reshape(1, 1, 1, 256))
    twin = fused_twin(backbone, compute_dtype="bfloat16")
    keras.config.set_dtype_policy(inside)
    try:
        model = keras.Model(images, twin(images))
    finally:
        keras.config.set_dtype_policy("float32")
    scale = 1 / np.sqrt(1 + 1e-3 + 1e-3)
    for mean, beta in ((0.0, 0.0), (100.3, 100.3 * scale + 0.01)):
        normalization = backbone.get_layer("bn")
        normalization.set_weights([np.full(256, value) for value in (1.0, beta, mean, 1.0 + 1e-3)])
        _, shift = scale_and_shift(normalization)
        assert float(shift[0]) == pytest.approx(beta - mean * scale, abs=2e-5)
        found = model(np.ones((1, 1, 1, 1), np.float32))[0]
        np.testing.assert_array_equal(found, rounded(rounded(kernel * np.float32(scale)) + rounded(shift)))


def classifier_of(backbone: keras.Model) -> keras.Model:
    """A classifier whose backbone learns from the first step on, which it does not behind a head of zeros."""
    settle_normalizations(backbone)
    classifier = build_classifier(backbone, "tf", class_count=10, dropout=0.0, seed=0)
    head = classifier.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(0.0, 0.1, head.kernel.shape))
    return classifier


def small_classifier() -> keras.Model:
    """The same one each time."""
    keras.utils.set_random_seed(3)
    return classifier_of(small_backbone())


def resnet_classifier() -> keras.Model:
    return classifier_of(build_family("ResNet50", 32))


def batches(count: int) -> tf.data.Dataset:
    generator = np.random.default_rng(8)
    images = generator.integers(0, 256, (8 * count, 32, 32, 3), np.uint8)
    labels = np.eye(10, dtype=np.float32)[generator.integers(0, 10, 8 * count)]
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)


def fit(model: keras.Model, steps: int, learning_rate: float = 0.03) -> None:
    """As plain Keras does it."""
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False)
    model.fit(batches(steps), verbose=0, shuffle=False)


def twin_classifier(
    classifier: keras.Model, compute_dtype: str = "float32", kernel_gradient: Any = None
) -> keras.Model:
    model = assemble(classifier, fused_twin(classifier.get_layer("backbone"), compute_dtype=compute_dtype))
    for layer in model.get_layer("backbone").layers:
        if isinstance(layer, FusedConvolution) and kernel_gradient:
            layer.kernel_gradient = kernel_gradient
    return model


def weights_by_layer(classifier: keras.Model) -> dict[str, NDArray[np.float32]]:
    """Give the variables of each layer that has some, as one vector."""
    every = [*classifier.get_layer("backbone").layers, classifier.get_layer("head")]
    return {
        layer.name: np.concatenate([np.ravel(values) for values in layer.get_weights()])
        for layer in every
        if layer.weights
    }


def train_both(
    build: Callable[[], keras.Model], config: FinetuneConfig, kernel_gradient: KernelGradient, learning_rate: float
) -> tuple[keras.Model, keras.Model]:
    """Fit one classifier as its twin and one as it is, check that both end with the same weights, and give them."""
    fused, plain = build(), build()
    start = weights_by_layer(plain)
    for classifier in (fused, plain):
        set_trainable(classifier, "", train_batch_norm=config.train_batch_norm)
    fit(twin_classifier(fused, kernel_gradient=kernel_gradient), 20, learning_rate)
    fit(plain, 20, learning_rate)
    found, wanted = weights_by_layer(fused), weights_by_layer(plain)
    for name, weights in wanted.items():
        apart, moved = np.linalg.norm(found[name] - weights), np.linalg.norm(start[name] - weights)
        assert apart < 1e-3 * np.linalg.norm(weights), name
        if name.endswith("_bn") and not config.train_batch_norm:
            assert moved == apart == 0.0, name
        else:
            assert moved > 20 * apart, f"{name} has to go much further than both may lie apart"
    return fused, plain


@pytest.mark.parametrize(("train_batch_norm", "kernel_gradient"), [(False, "matmul"), (True, "convolution")])
def test_twenty_steps_end_where_the_plain_classifier_ends(
    train_batch_norm: bool, kernel_gradient: KernelGradient, tmp_path: Path
) -> None:
    config = FinetuneConfig(train_batch_norm=train_batch_norm)
    fused, plain = train_both(small_classifier, config, kernel_gradient, 0.03)
    images, _ = next(iter(batches(1)))
    twin = twin_classifier(fused)
    logits = twin(images, training=False)
    assert difference(logits, plain(images, training=False)) < 1e-3
    # The trained weights are in the plain classifier, and so in its file, which holds standard layers only.
    fused.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert {type(layer) for layer in reloaded.get_layer("backbone").layers} == {
        layers.InputLayer,
        layers.Conv2D,
        layers.BatchNormalization,
        layers.ReLU,
        layers.GlobalAveragePooling2D,
    }
    assert difference(logits, reloaded(images, training=False)) < 1e-4


@pytest.mark.slow
def test_twenty_steps_of_a_resnet_end_where_the_plain_one_ends() -> None:
    """At a rate so low that rounding does not part them: at a usual one, it parts even two plain ones within ten steps."""
    train_both(resnet_classifier, FinetuneConfig(), "matmul", 1e-6)


def test_a_normalization_that_learns_is_not_fused_and_updates_its_statistics() -> None:
    classifier = small_classifier()
    set_trainable(classifier, "conv2", train_batch_norm=True)
    backbone = classifier.get_layer("backbone")
    fusions = find_fusions(backbone)
    assert {name: fusion.normalization is not None for name, fusion in fusions.items()} == {
        "conv1_conv": True,
        "conv2_conv": False,
    }
    assert all(fusion.normalization for fusion in find_fusions(backbone, inference=True).values())
    # The bias before a normalization that learns has no gradient but rounding.
    before = {variable.path: np.asarray(variable) for variable in backbone.variables if variable.name != "bias"}
    fit(twin_classifier(classifier), 2)
    after = {variable.path: np.asarray(variable) for variable in backbone.variables if variable.name != "bias"}
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {path for path in before if "conv2" in path}


@pytest.mark.parametrize("settings", [{}, {"scale": False, "momentum": 0.7}, {"center": False, "epsilon": 0.1}])
@pytest.mark.parametrize(("compute_dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.01)])
def test_a_normalization_that_learns_is_one_kernel_that_does_what_keras_does(
    settings: dict[str, Any], compute_dtype: str, tolerance: float
) -> None:
    """Outputs, statistics and gradients of one step, and outputs by these statistics; of pixels that bfloat16 knows exactly."""
    images = keras.Input((5, 7, 3))
    normalization = layers.BatchNormalization(name="bn", **settings)
    # With something after it, because what a twin gives is float32.
    model = keras.Model(images, layers.ReLU(name="relu")(normalization(images)))
    for variable in normalization.variables:
        variable.assign(np.random.default_rng(len(variable.path)).uniform(0.5, 1.5, variable.shape))
    start = model.get_weights()
    pixels = tf.cast(np.random.default_rng(1).normal(2.0, 3.0, (4, 5, 7, 3)), "bfloat16").numpy().astype(np.float32)
    wanted_of, found_of = model, fused_twin(model, compute_dtype=compute_dtype)
    assert isinstance(found_of.get_layer("bn"), FusedNormalization)

    def step(model: keras.Model) -> list[NDArray[np.float32]]:
        normalization.set_weights(start)
        watched = tf.constant(pixels)
        with tf.GradientTape() as tape:
            tape.watch(watched)
            outputs = model(watched, training=True)
            loss = tf.reduce_sum(outputs * tf.sin(watched))
        gradients = tape.gradient(loss, [watched, *model.trainable_variables])
        assert outputs.dtype == "float32"
        statistics = [np.asarray(values) for values in (normalization.moving_mean, normalization.moving_variance)]
        return [*statistics, *(np.asarray(value) for value in (outputs, *gradients, model(pixels, training=False)))]

    found, wanted = step(found_of), step(wanted_of)
    for number, (value, right) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(value, right, rtol=1e-5 if number < 2 else 0, atol=tolerance * np.abs(right).max())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ResNet50", "53 of 53 normalizations are part of a convolution while they are frozen"),
        ("ResNet50V2", "; 17 cannot be and stay as they are"),
        ("VGG16", "0 of 0 normalizations are part of a convolution while they are frozen"),
    ],
)
def test_what_is_not_fused_is_said(name: str, words: str) -> None:
    """A ResNetV2 normalizes before its convolutions: the first of each of 16 blocks, and the last of all."""
    assert fusions_in_words(family(name)).endswith(words)


def test_a_normalization_that_devices_share_is_left_to_keras() -> None:
    images = keras.Input((5, 7, 3))
    model = keras.Model(images, layers.BatchNormalization(synchronized=True, name="bn")(images))
    assert fused_twin(model, compute_dtype="float32").get_layer("bn") is model.get_layer("bn")


@pytest.mark.parametrize("kernel_gradient", ["convolution", "matmul"])
def test_training_in_bfloat16_moves_the_float32_kernels(kernel_gradient: KernelGradient) -> None:
    in_bfloat16, in_float32 = small_classifier(), small_classifier()
    start = {variable.path: np.asarray(variable) for variable in in_float32.variables}
    for classifier, dtype in ((in_bfloat16, "bfloat16"), (in_float32, "float32")):
        set_trainable(classifier, "")
        fit(twin_classifier(classifier, dtype, kernel_gradient), 3)
    for found, wanted in zip(in_bfloat16.trainable_variables, in_float32.trainable_variables, strict=True):
        assert found.dtype == "float32"
        moved, expected = found - start[wanted.path], wanted - start[wanted.path]
        assert np.abs(expected).max() > 0
        assert difference(moved, expected) < 0.1, wanted.path
