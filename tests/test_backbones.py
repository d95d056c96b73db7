"""Every row of the table of backbones: that it is the network, and takes the pixels, that keras.applications says."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from small_networks import settle_normalizations

from cifar_keras.config import AugmentationConfig, FinetuneConfig, HeadConfig, from_values
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.pipeline import Examples, Targets, evaluation_batches, training_batches
from cifar_keras.evaluation.attribution import explaining_maps
from cifar_keras.exporting import saved_model
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.models.classifier import (
    assemble,
    build_application,
    build_backbone,
    build_classifier,
    input_transform_weights,
    pooling_of,
)
from cifar_keras.models.fused import SharedDropout, fused_twin
from cifar_keras.models.weights import load_weights
from cifar_keras.training.fit import Learner, compile_phase, fit_phase, set_trainable
from cifar_keras.training.phases import Phase, finetune_phase, head_phase, plan_phases

# The smallest of each family.
FAMILIES = {
    "resnet50": keras.applications.resnet,
    "resnet50v2": keras.applications.resnet_v2,
    "vgg16": keras.applications.vgg16,
    "inception_v3": keras.applications.inception_v3,
    "inception_resnet_v2": keras.applications.inception_resnet_v2,
    "xception": keras.applications.xception,
    "densenet121": keras.applications.densenet,
    "mobilenet": keras.applications.mobilenet,
    "mobilenet_v2": keras.applications.mobilenet_v2,
    "mobilenet_v3_small": keras.applications.mobilenet_v3,
    "nasnet_mobile": keras.applications.nasnet,
    "efficientnet_b0": keras.applications.efficientnet,
    "efficientnet_v2_b0": keras.applications.efficientnet_v2,
    "efficientnet_v2_s": keras.applications.efficientnet_v2,
    "convnext_tiny": keras.applications.convnext,
}
LARGE = (
    *("densenet121", "efficientnet_b0", "efficientnet_v2_b0", "efficientnet_v2_s"),
    *("inception_resnet_v2", "inception_v3", "nasnet_mobile"),
)
SMALL = [name for name in FAMILIES if name not in LARGE]


def some_images(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def by_family(names: Any) -> list[Any]:
    """Those that are built in seconds in the fast tier, the others in the slow one."""
    return [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_row_names_the_convention_of_its_own_family(name: str) -> None:
    """As `preprocess_input` has it, or the layers that Keras puts before the network where that does nothing."""
    row, pixels = BACKBONES[name], some_images(2, 80).astype(np.float32)
    wanted = FAMILIES[name].preprocess_input(pixels.copy())
    if row.preprocessing == "left out":
        whole = getattr(keras.applications, row.application)(weights=None, include_top=False, input_shape=(80, 80, 3))
        scales = keras.layers.Rescaling | keras.layers.Normalization
        last = [layer for layer in whole.layers if isinstance(layer, scales)][-1]
        wanted = keras.Model(whole.input, last.output).predict(pixels, verbose=0)
    if row.preprocessing == "cut off":
        assert np.array_equal(wanted, pixels)  # see the test of its weights
        return
    kernel, bias = input_transform_weights(row.input_convention)
    np.testing.assert_allclose(pixels @ kernel[0, 0] + bias, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_an_efficientnet_that_begins_without_its_preprocessing_is_kerass_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras's network with ImageNet's weights, which scales the pixels twice, and ours from the same file."""
    file = tmp_path / "models" / BACKBONES["efficientnet_b0"].weights_file
    file.parent.mkdir()
    donor = keras.applications.EfficientNetB0(weights=None, include_top=False, pooling="avg")
    deviation = np.array([0.229, 0.224, 0.225], np.float32)  # which the real file has for the variance
    donor.get_layer(index=2).set_weights([np.array([0.485, 0.456, 0.406], np.float32), deviation, np.array(0)])
    donor.save_weights(tmp_path / "donor.weights.h5")
    legacy_file(donor, file)
    module = __import__("keras.src.applications.efficientnet", fromlist=["file_utils"])
    monkeypatch.setattr(module.file_utils, "get_file", lambda *_, **__: str(file))
    plain = keras.applications.EfficientNetB0(include_top=False, pooling="avg", input_shape=(64, 64, 3))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setitem(BACKBONES, "efficientnet_b0", BACKBONES["efficientnet_b0"]._replace(weights_digest=""))
    backbone = build_backbone("efficientnet_b0", 64)
    load_weights(backbone, "efficientnet_b0", "imagenet", 1.0, fetch=False)
    classifier = build_classifier(backbone, "torch", 10, 0.0, 0)
    images = some_images(3, 64)
    found = keras.Model(classifier.input, classifier.get_layer("head").input).predict(images, verbose=0)
    wanted = plain.predict(images.astype(np.float32), verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def legacy_file(model: keras.Model, file: Path) -> None:
    """Write weights as Keras publishes them: a group for each layer, in the order of the network."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(file, "w") as opened:
        save_weights_to_hdf5_group(opened, model)


@pytest.mark.parametrize("name", by_family(BACKBONES))
def test_every_row_builds_at_its_minimum_size_and_has_its_stages_in_order(name: str) -> None:
    row = BACKBONES[name]
    backbone = build_backbone(name, row.minimum_size)
    names = [layer.name for layer in backbone.layers]
    firsts = [
        next(i for i, layer in enumerate(names) if layer.startswith(row.layer_prefix + stage))
        for stage in row.block_groups
    ]
    assert firsts == sorted(set(firsts))
    assert pooling_of(backbone).output.shape == backbone.output.shape
    if row.application:
        with pytest.raises(ValueError, match="Input size must be at least"):
            build_backbone(name, row.minimum_size - 1)


@pytest.mark.parametrize("name", by_family(name for name in FAMILIES if BACKBONES[name].preprocessing != "cut off"))
def test_a_backbone_is_the_network_of_keras(name: str) -> None:
    """The same variables in the same order, which is how a file of weights is read."""
    row = BACKBONES[name]
    whole = getattr(keras.applications, row.application)(weights=None, include_top=False, pooling="avg")
    ours = build_backbone(name, row.minimum_size)
    # Keras numbers the names of some variables through the process.
    found, wanted = (
        [(v.path.split("/")[-1].rstrip("_0123456789"), tuple(v.shape)) for v in model.weights]
        for model in (ours, whole)
    )
    assert found == wanted


def fit_one_step(classifier: keras.Model, phase: Phase, side: int) -> None:
    set_trainable(classifier, phase.stages[0].learns_from)
    twin = fused_twin(classifier.get_layer("backbone"), compute_dtype="float32", input_shape=(side, side, 3))
    model = Learner(assemble(classifier, twin))
    compile_phase(model, phase, tf.distribute.get_strategy())
    examples = Examples(tf.constant(some_images(4, 32)), Targets(labels=tf.one_hot([0, 1, 2, 3], 10)))
    batches = training_batches(
        examples,
        global_batch_size=4,
        steps_per_epoch=1,
        steps=phase.steps_of(phase.epochs),
        seed=0,
        augment=make_augmentation(AugmentationConfig()),
    )
    fit_phase(model, phase, batches, evaluation_batches(examples, global_batch_size=4), [])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_trains_is_exported_and_explained(name: str, tmp_path: Path) -> None:
    """One step of both phases, the second from the middle stage on; the SavedModel is the classifier, and Grad-CAM its gradient."""
    row, side = BACKBONES[name], max(BACKBONES[name].minimum_size, 64)
    keras.utils.set_random_seed(1)
    classifier = build_classifier(build_backbone(name, side), row.input_convention, 10, 0.0, 0)
    settle_normalizations(classifier.get_layer("backbone"))  # through random ones nothing would be left in the end
    before = [np.asarray(v).copy() for v in classifier.weights]
    fit_one_step(classifier, head_phase(HeadConfig(learning_rate=0.01), 1, image_size=side), side)
    moved = {v.path for v, old in zip(classifier.weights, before, strict=True) if not np.array_equal(v, old)}
    assert {path.split("/")[0] for path in moved} == {"head"}
    stage = row.layer_prefix + row.block_groups[len(row.block_groups) // 2]
    settings = FinetuneConfig(epochs=1, learning_rate=1e-3, unfreeze_from=stage)
    fit_one_step(classifier, finetune_phase(settings, 1, image_size=side), side)
    names = [layer.name for layer in classifier.get_layer("backbone").layers]
    first = next(place for place, layer in enumerate(names) if layer.startswith(stage))
    learned = {
        path.split("/")[-2]
        for path in (
            {v.path for v, old in zip(classifier.weights, before, strict=True) if not np.array_equal(v, old)} - moved
        )
    }
    assert learned
    assert not learned & set(names[:first])
    reloaded = saved_model.save_and_reload(classifier, tmp_path / "model.keras")
    saved_model.export_saved_model(reloaded, CLASS_NAMES, tmp_path / "saved_model")
    model, images = saved_model.load_saved_model(tmp_path), some_images(3, 40)
    trained = classifier.predict(images, verbose=0)
    saved_model.check_same_logits(trained, saved_model.serve_all(model, images, 3, "test").logits, "saved_model")
    assert np.ptp(trained) > 0
    predicted = trained.argmax(axis=1)
    maps = explaining_maps(
        classifier,
        lambda pixels: model.serve(tf.constant(pixels))["probabilities"].numpy(),
        images,
        [("predicted", predicted)],
    )
    backbone = classifier.get_layer("backbone")
    tail = keras.Model(pooling_of(backbone).input, backbone.output)
    features = assemble(
        classifier, keras.Model(backbone.input, pooling_of(backbone).input, name="backbone"), last="backbone"
    )(images)
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = tf.gather(classifier.get_layer("head")(tail(features, training=False)), predicted, batch_dims=1)
    gradient = tape.gradient(logits, features)
    wanted = np.maximum((np.asarray(features) * np.asarray(gradient).mean(axis=(1, 2), keepdims=True)).sum(axis=-1), 0)
    wanted /= np.maximum(wanted.max(axis=(1, 2), keepdims=True), 1e-30)
    np.testing.assert_allclose(maps[0][1], wanted, atol=2e-3)


def test_what_is_frozen_drops_nothing_and_what_learns_draws_from_the_runs_own_seeds() -> None:
    backbone = build_backbone("efficientnet_b0", 32)
    classifier = build_classifier(backbone, "torch", 10, 0.0, 0)
    images = some_images(2, 32)
    set_trainable(classifier, None)
    twin = assemble(classifier, fused_twin(backbone, compute_dtype="float32"), last="backbone")
    np.testing.assert_array_equal(twin(images, training=True), twin(images, training=False))
    set_trainable(classifier, "")
    twin = fused_twin(backbone, compute_dtype="float32")
    inputs = np.ones((64, *twin.input.shape[1:]), np.float32)
    assert not np.array_equal(twin(inputs, training=True), twin(inputs, training=True))
    dropping = [layer for layer in twin.layers if isinstance(layer, SharedDropout)]
    assert len(dropping) == 9
    kept = {id(variable) for variable in classifier.variables}
    assert all(id(layer.dropout.seed_generator.state) in kept for layer in dropping)


def test_a_stage_of_a_convnext_is_named_without_its_networks_name() -> None:
    config = from_values({"backbone": "convnext_tiny", "finetune_unfreeze_from": "stage_2,", "finetune_epochs": 2})
    assert [stage.learns_from for stage in plan_phases(config, 64)[1].stages] == ["convnext_tiny_stage_2", ""]
    assert build_application(BACKBONES["convnext_tiny"], (32, 32, 3)).name == "convnext_tiny"


def test_an_unknown_convention_is_refused() -> None:
    unknown: Any = "theano"
    with pytest.raises(ValueError, match=r"one of caffe, tf, torch, efficientnet_v2\. Received: theano$"):
        input_transform_weights(unknown)
