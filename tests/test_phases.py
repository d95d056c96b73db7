from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from small_networks import small_backbone

from cifar_keras.config import FinetuneConfig, HeadConfig, OptimizerName
from cifar_keras.data.pipeline import Batch, Targets
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.models.classifier import assemble, build_backbone, build_classifier
from cifar_keras.models.fused import fused_twin
from cifar_keras.training.fit import Learner, compile_phase, fit_phase, set_trainable
from cifar_keras.training.phases import Phase, finetune_phase, head_phase

STEPS = 3
HEAD = head_phase(HeadConfig(), STEPS, image_size=16)


def finetune(**settings: Any) -> Phase:
    return finetune_phase(FinetuneConfig(epochs=1, **settings), STEPS, image_size=16, first_epoch=1)


def batches(count: int = STEPS) -> tf.data.Dataset:
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (8 * count, 32, 32, 3), dtype=np.uint8)
    labels = np.eye(10, dtype=np.float32)[generator.integers(0, 10, 8 * count)]
    return tf.data.Dataset.from_tensor_slices(Batch(images, Targets(labels=labels))).batch(8)


def set_up(classifier: keras.Model, phase: Phase) -> Learner:
    """Give what a run would fit: the classifier with the fused twin of its backbone."""
    set_trainable(classifier, phase.stages[0].learns_from, train_batch_norm=phase.train_batch_norm)
    model = Learner(assemble(classifier, fused_twin(classifier.get_layer("backbone"), compute_dtype="float32")))
    compile_phase(model, phase, tf.distribute.get_strategy())
    return model


def run_phase(classifier: keras.Model, phase: Phase) -> None:
    fit_phase(set_up(classifier, phase), phase, batches(), batches(1), [])


def snapshot(classifier: keras.Model) -> dict[str, NDArray[np.float32]]:
    return {variable.path: np.asarray(variable) for variable in classifier.variables}


def changed(before: dict[str, NDArray[np.float32]], after: dict[str, NDArray[np.float32]]) -> set[str]:
    return {path for path in before if not np.array_equal(before[path], after[path])}


@pytest.fixture
def classifier() -> keras.Model:
    keras.utils.set_random_seed(1)
    return build_classifier(small_backbone(), "caffe", class_count=10, dropout=0.0, seed=0)


def test_the_head_phase_leaves_the_backbone_bit_identical(classifier: keras.Model) -> None:
    before = snapshot(classifier)
    run_phase(classifier, HEAD)
    assert {path.split("/")[0] for path in changed(before, snapshot(classifier))} == {"head"}


def test_batch_norm_does_not_move_in_either_phase(classifier: keras.Model) -> None:
    before = snapshot(classifier)
    run_phase(classifier, HEAD)
    run_phase(classifier, finetune())
    moved = changed(before, snapshot(classifier))
    assert not [path for path in moved if "_bn" in path]
    assert [path for path in moved if path.endswith("conv1_conv/kernel")], "the finetune phase has to move the backbone"
    assert not [path for path in moved if "input_transform" in path]


def test_batch_norm_moves_when_asked(classifier: keras.Model) -> None:
    before = snapshot(classifier)
    run_phase(classifier, HEAD)
    run_phase(classifier, finetune(train_batch_norm=True))
    moved = {path.rsplit("/", 1)[1] for path in changed(before, snapshot(classifier)) if "_bn" in path}
    assert moved == {"gamma", "beta", "moving_mean", "moving_variance"}


def test_unfreezing_from_a_stage_leaves_what_lies_before_it(classifier: keras.Model) -> None:
    run_phase(classifier, HEAD)
    before = snapshot(classifier)
    run_phase(classifier, finetune(unfreeze_from="conv2"))
    moved = {path.split("/")[-2] for path in changed(before, snapshot(classifier)) if "bn" not in path}
    assert moved == {"conv2_conv", "head"}


@pytest.mark.parametrize("stage", BACKBONES["resnet50"].block_groups)
def test_a_stage_of_a_resnet_is_every_convolution_from_it_on(stage: str) -> None:
    classifier = build_classifier(build_backbone("resnet50", 32), "caffe", class_count=10, dropout=0.0, seed=0)
    set_trainable(classifier, stage)
    trained = {variable.path.split("/")[-2].split("_")[0] for variable in classifier.trainable_variables}
    assert trained == {f"conv{number}" for number in range(int(stage[-1]), 6)} | {"head"}


def test_phases_can_be_set_back_and_forth(classifier: keras.Model) -> None:
    run_phase(classifier, HEAD)
    run_phase(classifier, finetune())
    before = snapshot(classifier)
    run_phase(classifier, HEAD)
    assert {path.split("/")[0] for path in changed(before, snapshot(classifier))} == {"head"}


def test_a_head_step_is_the_formula_of_logistic_regression(classifier: keras.Model) -> None:
    """One SGD step from zero: kernel = -rate * features^T (softmax(0) - y) / n, by hand in NumPy."""
    phase = head_phase(HeadConfig(optimizer=OptimizerName.SGD, learning_rate=0.1, warmup_share=0.0), 1, image_size=16)
    model = set_up(classifier, phase)
    images, targets = next(iter(batches(1)))
    labels = targets["labels"]
    features = keras.Model(classifier.inputs, classifier.get_layer("head").input).predict(images, verbose=0)
    model.train_on_batch(images, targets)
    wanted = -0.1 * features.T @ (0.1 - labels.numpy()) / len(features)
    np.testing.assert_allclose(classifier.get_layer("head").kernel, wanted, rtol=1e-4, atol=1e-6)


def test_the_loss_is_scaled_in_float16_and_the_rate_can_be_read(classifier: keras.Model) -> None:
    """Here with float32 activations, since no processor trains in float16: the steps have to be those without scaling."""
    other = keras.models.clone_model(classifier)
    other.set_weights(classifier.get_weights())
    optimizers = []
    for whole, compute_dtype in ((classifier, "float16"), (other, "float32")):
        set_trainable(whole, "")
        model = Learner(whole)
        compile_phase(model, finetune(), tf.distribute.get_strategy(), compute_dtype=compute_dtype)
        assert float(model.optimizer.learning_rate) > 0
        fit_phase(model, finetune(), batches(), batches(1), [])
        optimizers.append(model.optimizer)
    assert isinstance(optimizers[0], keras.optimizers.LossScaleOptimizer)
    for scaled, plain in zip(classifier.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-6)


def test_label_smoothing_reaches_the_loss(classifier: keras.Model) -> None:
    head = classifier.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    model = set_up(classifier, finetune(label_smoothing=0.2))
    images, targets = next(iter(batches(1)))
    logits = np.asarray(classifier(images, training=False), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = -((0.8 * targets["labels"].numpy() + 0.02) * log_probabilities).sum(axis=1).mean()
    assert model.evaluate(images, targets, verbose=0)[0] == pytest.approx(wanted, rel=1e-4)
