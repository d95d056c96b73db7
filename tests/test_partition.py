from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import settle_normalizations, small_backbone

from cifar_keras.config import FinetuneConfig, HeadConfig, PhaseConfig
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.models.classifier import build_backbone, build_classifier
from cifar_keras.models.partition import Partition, find_boundary, partition
from cifar_keras.training.fit import set_trainable


def classifier_of(backbone: keras.Model) -> keras.Model:
    """One whose logits say something, with dropout."""
    settle_normalizations(backbone)
    classifier = build_classifier(backbone, "tf", class_count=10, dropout=0.2, seed=0)
    head = classifier.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(0.0, 0.1, head.kernel.shape))
    return classifier


def small_classifier(image_size: int = 16) -> keras.Model:
    """The same weights each time."""
    keras.utils.set_random_seed(3)
    return classifier_of(small_backbone(image_size))


def some_images(count: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def difference(found: Any, wanted: Any) -> float:
    """Give the largest difference as a fraction of the largest value."""
    assert found.shape == wanted.shape
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max() / np.abs(wanted).max())


def freeze(classifier: keras.Model, config: PhaseConfig) -> None:
    """Let learn what learns in a phase."""
    if isinstance(config, FinetuneConfig):
        set_trainable(classifier, config.unfreeze_from, train_batch_norm=config.train_batch_norm)
    else:
        set_trainable(classifier, None)


def parts_of(
    classifier: keras.Model, config: PhaseConfig, compute_dtype: str = "float32", image_size: int = 0
) -> Partition:
    freeze(classifier, config)
    image_size = image_size or classifier.get_layer("backbone").input_shape[1]
    parts = partition(classifier, compute_dtype=compute_dtype, image_size=image_size)
    assert parts is not None
    return parts


def boundary_name(classifier: keras.Model, config: PhaseConfig) -> str | None:
    """Give the name of the backbone's layer that the boundary comes from."""
    freeze(classifier, config)
    backbone = classifier.get_layer("backbone")
    boundary = find_boundary(backbone)
    return next((layer.name for layer in backbone.layers if layer.output is boundary), None)


# What the first layers of a stage read. Of a ResNet v2's first block it is the activation that comes before both its ways; those
# of the InceptionV3 read their stage's joint in one way and its pooling in another, so there is no one tensor.
BOUNDARIES: dict[str, dict[str, str | None]] = {
    "resnet50": {
        "": None,
        "conv1": None,
        "conv2": "pool1_pool",
        "conv3": "conv2_block3_out",
        "conv4": "conv3_block4_out",
        "conv5": "conv4_block6_out",
    },
    "resnet50v2": {
        "": None,
        "conv1": None,
        "conv2": "conv2_block1_preact_relu",
        "conv3": "conv3_block1_preact_relu",
        "conv4": "conv4_block1_preact_relu",
        "conv5": "conv5_block1_preact_relu",
    },
    "vgg16": {
        "": None,
        "block1": None,
        "block2": "block1_pool",
        "block3": "block2_pool",
        "block4": "block3_pool",
        "block5": "block4_pool",
    },
    "inception_v3": dict.fromkeys(("", *BACKBONES["inception_v3"].block_groups)),
}
FEATURES = {
    "resnet50": "avg_pool",
    "resnet50v2": "avg_pool",
    "vgg16": "global_average_pooling2d",
    "inception_v3": "global_average_pooling2d",
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_the_boundary_of_each_stage(name: str) -> None:
    row = BACKBONES[name]
    assert set(BOUNDARIES[name]) == {"", *row.block_groups}
    classifier = build_classifier(build_backbone(name, row.minimum_size), "tf", class_count=10, dropout=0.0, seed=0)
    stages = BOUNDARIES[name]
    assert {stage: boundary_name(classifier, FinetuneConfig(unfreeze_from=stage)) for stage in stages} == stages
    backbone = classifier.get_layer("backbone")
    set_trainable(classifier, None)
    assert find_boundary(backbone) is backbone.output


def test_a_normalization_that_learns_belongs_to_what_learns() -> None:
    """A ResNet v2 normalizes what a stage reads before it splits, and the shortcut reads it normalized too."""
    classifier = build_classifier(build_backbone("resnet50v2", 32), "tf", class_count=10, dropout=0.0, seed=0)
    config = FinetuneConfig(unfreeze_from="conv4", train_batch_norm=True)
    assert boundary_name(classifier, config) == "conv3_block4_out"


def test_without_a_boundary_there_are_no_parts() -> None:
    classifier = small_classifier()
    set_trainable(classifier, "")
    assert partition(classifier, compute_dtype="float32", image_size=16) is None


def test_an_operator_between_two_layers_is_crossed_or_not() -> None:
    """Its operands are one tensor below what learns, and two where one of them learns."""
    images = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(4, 3, padding="same", name="first")(images)
    second = keras.layers.Conv2D(4, 3, padding="same", name="second")(first)
    third = keras.layers.Conv2D(4, 3, padding="same", name="third")(first + second)
    backbone = keras.Model(images, third, name="backbone")
    for layer in backbone.layers:
        layer.trainable = layer.name == "third"
    boundary = find_boundary(backbone)
    assert boundary is backbone.get_layer("third").input
    backbone.get_layer("second").trainable = True
    assert find_boundary(backbone) is first
    backbone.get_layer("third").trainable = False
    assert find_boundary(backbone) is first


@pytest.mark.parametrize(
    ("name", "stage"),
    [("resnet50", "conv4"), pytest.param("resnet50v2", "conv5", marks=pytest.mark.slow), ("vgg16", "block3")],
)
def test_both_parts_together_give_the_classifiers_logits(name: str, stage: str) -> None:
    keras.utils.set_random_seed(3)
    classifier = classifier_of(build_backbone(name, BACKBONES[name].minimum_size))
    wanted = np.asarray(classifier(some_images(), training=False))
    frozen, trainable = parts_of(classifier, FinetuneConfig(unfreeze_from=stage))
    features = frozen(some_images(), training=False)
    assert features.dtype == "float32"
    assert features.shape[1:] == frozen.output_shape[1:] == trainable.input_shape[1:]
    logits = trainable(features, training=False)
    assert logits.dtype == "float32"
    assert difference(logits, wanted) < 1e-4
    np.testing.assert_array_equal(classifier(some_images(), training=False), wanted)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [HeadConfig(), FinetuneConfig(unfreeze_from="conv2")], ids=["head", "conv2"])
def test_images_may_be_resized_to_another_size(config: PhaseConfig, compute_dtype: str) -> None:
    """As a classifier does that was built for that size, with the same weights."""
    classifier, wanted = small_classifier(16), small_classifier(24)
    wanted.set_weights(classifier.get_weights())
    frozen, trainable = parts_of(classifier, config, compute_dtype, image_size=24)
    features = frozen(some_images(), training=False)
    assert features.dtype == "float32"
    if isinstance(config, FinetuneConfig):
        assert features.shape == (2, 11, 11, 8)  # of 24 pixels, a 3x3 kernel in steps of two
    tolerance = 1e-4 if compute_dtype == "float32" else 0.05
    assert difference(trainable(features, training=False), wanted(some_images(), training=False)) < tolerance


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("config", "learning"),
    [
        (HeadConfig(), {"head"}),
        (FinetuneConfig(unfreeze_from="conv2"), {"conv2_conv", "head"}),
        (FinetuneConfig(unfreeze_from="conv2", train_batch_norm=True), {"conv2_conv", "conv2_bn", "head"}),
    ],
    ids=["head", "conv2", "conv2-with-normalization"],
)
def test_training_the_trainable_part_moves_the_classifiers_own_variables(
    config: PhaseConfig, learning: set[str], compute_dtype: str
) -> None:
    classifier = small_classifier()
    frozen, trainable = parts_of(classifier, config, compute_dtype)
    own = {id(variable) for variable in classifier.variables}
    assert {id(variable) for variable in trainable.variables} <= own
    assert {id(variable) for variable in trainable.trainable_variables} == {
        id(variable) for variable in classifier.trainable_variables
    }
    assert not frozen.trainable_variables
    assert not own & {id(variable) for variable in frozen.get_layer("backbone").variables}, "its kernels are folded"
    images = some_images(16)
    labels = np.eye(10, dtype=np.float32)[np.arange(16) % 10]
    features = np.asarray(frozen(images, training=False))
    before = {variable.path: np.asarray(variable) for variable in classifier.weights}
    trainable.compile(keras.optimizers.SGD(0.1), keras.losses.CategoricalCrossentropy(from_logits=True))
    trainable.fit(features, labels, batch_size=8, epochs=2, verbose=0)
    moved = {
        variable.path.split("/")[-2]
        for variable in classifier.weights
        if not np.array_equal(variable, before[variable.path])
    }
    assert moved == learning
    # What lies below stands still, so the features are the same, and the classifier gives what its parts give.
    np.testing.assert_array_equal(frozen(images, training=False), features)
    tolerance = 1e-4 if compute_dtype == "float32" else 0.05
    assert difference(trainable(features, training=False), classifier(images, training=False)) < tolerance


def test_the_trainable_part_drops_features_in_training_only() -> None:
    _, trainable = parts_of(small_classifier(), HeadConfig())
    features = np.random.default_rng(0).normal(size=(2, *trainable.input_shape[1:])).astype(np.float32)
    np.testing.assert_array_equal(trainable(features, training=False), trainable(features, training=False))
    assert difference(trainable(features, training=True), trainable(features, training=False)) > 0.01


def test_phases_can_be_halved_one_after_another(tmp_path: Path) -> None:
    """And the classifier can be saved afterwards, with nothing in it of the parts."""
    classifier = small_classifier()
    wanted = np.asarray(classifier(some_images(), training=False))
    for config in (
        HeadConfig(),
        FinetuneConfig(unfreeze_from="conv2"),
        HeadConfig(),
        FinetuneConfig(unfreeze_from="conv2"),
    ):
        frozen, trainable = parts_of(classifier, config)
        assert difference(trainable(frozen(some_images()), training=False), wanted) < 1e-4
    classifier.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(reloaded(some_images(), training=False), wanted)
