"""What each phase of a run fits, and the `Trainer` on top of it."""

import contextlib
import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from small_networks import small_backbone
from small_runs import BATCH, SHORT, TRAIN, VALIDATION, set_up_small, small_config, train_small

from cifar_keras.config import RunConfig
from cifar_keras.data.pipeline import Batch, Targets, evaluation_batches, training_batches
from cifar_keras.models.classifier import build_classifier
from cifar_keras.models.convolution import KernelGradient
from cifar_keras.models.partition import Partition, partition
from cifar_keras.training import compute, trainer
from cifar_keras.training.fit import Learner, compile_phase, fit_phase, set_trainable
from cifar_keras.training.keep_best import KeepBest
from cifar_keras.training.phases import Phase, Stage
from cifar_keras.training.progress import PhaseSummary
from cifar_keras.training.setup import RunSetup
from cifar_keras.training.tasks import Task, caching_pays, make_task
from cifar_keras.training.tracking import RunLog

PLAIN: dict[str, Any] = SHORT | {"crop_padding": 0}
HEAD, FINETUNE = 0, 1  # places in the list of phases


def task_of(number: int, compute_dtype: str = "float32", **flags: Any) -> tuple[RunConfig, RunSetup, Phase, Task]:
    config = small_config(**flags)
    setup = set_up_small(config, compute_dtype=compute_dtype)
    phase = setup.phases[number]
    return config, setup, phase, make_task(config, setup, phase, phase.stages[0])


def fit(config: RunConfig, setup: RunSetup, phase: Phase, task: Task, *callbacks: keras.callbacks.Callback) -> None:
    compile_phase(task.model, phase, setup.strategy)
    batches = training_batches(
        task.train,
        global_batch_size=BATCH,
        steps_per_epoch=phase.steps_per_epoch,
        seed=config.seed,
        steps=phase.steps_of(phase.epochs),
        augment=task.augment,
    )
    validation_batches = evaluation_batches(task.validation, global_batch_size=BATCH)
    fit_phase(task.model, phase, batches, validation_batches, callbacks)


def by_matmul(task: Task) -> int:
    return list(compute.kernel_gradients(task.model).values()).count("matmul")


def logits_of(classifier: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(classifier(images, training=False))


# What is fitted learns what the plain Keras classifier would.


@functools.cache
def plainly_fitted(number: int) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """The classifier's weights before and after Keras itself has fitted it, whole, on images as they are."""
    config = small_config(**PLAIN)
    setup = set_up_small(config)
    phase, classifier = setup.phases[number], setup.classifier
    before = classifier.get_weights()
    set_trainable(classifier, phase.stages[0].learns_from)
    images = Task(Learner(classifier), setup.train, setup.validation, lambda batch, key: batch, False)
    fit(config, setup, phase, images)
    return before, classifier.get_weights()


@pytest.mark.parametrize(("number", "cached"), [(HEAD, True), (FINETUNE, True), (FINETUNE, False)])
def test_a_task_teaches_what_fitting_the_plain_classifier_does(number: int, cached: bool) -> None:
    flags: dict[str, Any] = PLAIN | {"head_cached_features": cached, "finetune_cached_features": cached}
    config, setup, phase, task = task_of(number, **flags)
    assert task.cached is cached
    fit(config, setup, phase, task)
    before, after = plainly_fitted(number)
    for wanted, weights in zip(after, setup.classifier.get_weights(), strict=True):
        np.testing.assert_allclose(weights, wanted, atol=1e-4)
    moves = [np.abs(new - old).max() for old, new in zip(before, after, strict=True)]
    # The head's kernel and bias; and before them the upper convolution's.
    assert sum(move > 0.01 for move in moves) == (2 if number == HEAD else 4)


@pytest.mark.parametrize(("number", "flip"), [(HEAD, True), (FINETUNE, True), (FINETUNE, False)])
def test_cached_features_are_those_of_train_and_validation(number: int, flip: bool) -> None:
    _, setup, _, task = task_of(number, flip=flip)
    backbone = setup.classifier.get_layer("backbone")
    boundary = backbone.output if number == HEAD else backbone.get_layer("conv1_relu").output
    below = keras.Model(backbone.input, boundary)

    def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = np.ascontiguousarray(images)
        for name in ("to_float", "resize", "input_transform"):
            pixels = setup.classifier.get_layer(name)(pixels)
        return np.asarray(below(pixels, training=False))

    images = setup.dataset.train.images[:]
    shape = (16,) if number == HEAD else (7, 7, 8)
    assert task.train.inputs.shape == (TRAIN, 1 + flip, *shape)
    for view, shown in enumerate([images, np.flip(images, axis=2)][: 1 + flip]):
        np.testing.assert_allclose(np.asarray(task.train.inputs)[:, view], features(shown), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        np.asarray(task.validation.inputs), features(setup.dataset.validation.images[:]), rtol=1e-4, atol=1e-4
    )
    assert task.train.targets is setup.train.targets
    assert task.validation.targets is setup.validation.targets


def test_features_are_kept_in_the_compute_dtype_and_learned_from() -> None:
    # At a rate that goes straight down: at 0.03 the first steps overshoot, and where that ends depends on the processor's rounding.
    config, setup, phase, task = task_of(FINETUNE, "bfloat16", finetune_learning_rate=0.001)
    assert task.train.inputs.dtype == task.validation.inputs.dtype == "bfloat16"
    fit(config, setup, phase, task)
    images, labels = setup.dataset.train
    logits = logits_of(setup.classifier, images[:])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    assert float(loss) < 0.6 * np.log(10)  # what the zero head begins with
    # The trainable part says of features what the classifier says of the images, in eight bits.
    upper = logits_of(task.model, np.asarray(task.validation.inputs))
    assert upper.dtype == np.float32
    np.testing.assert_allclose(
        upper, logits_of(setup.classifier, setup.dataset.validation.images[:]), rtol=0.01, atol=0.1
    )


@pytest.mark.parametrize(("number", "cached"), [(HEAD, True), (FINETUNE, True), (FINETUNE, False)])
def test_an_image_size_of_the_phase_is_what_its_network_sees(number: int, cached: bool) -> None:
    flags: dict[str, Any] = {"finetune_cached_features": cached, "head_image_size": 24, "finetune_image_size": 24}
    _, setup, _, task = task_of(number, **flags)
    assert task.cached is cached
    classifier = setup.classifier
    classifier.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(16, 10)))
    other = build_classifier(small_backbone(24), "caffe", class_count=10, dropout=0.0, seed=0)
    other.set_weights(classifier.get_weights())
    wanted = logits_of(other, setup.dataset.validation.images[:])
    np.testing.assert_allclose(logits_of(task.model, np.asarray(task.validation.inputs)), wanted, rtol=1e-3, atol=1e-3)
    assert not np.allclose(wanted, logits_of(classifier, setup.dataset.validation.images[:]), atol=0.01)


# When features are cached.


def parts_of(number: int, **flags: Any) -> tuple[RunConfig, RunSetup, Phase, Stage, Partition]:
    config = small_config(**flags)
    setup = set_up_small(config)
    phase = setup.phases[number]
    set_trainable(setup.classifier, phase.stages[0].learns_from)
    parts = partition(setup.classifier, compute_dtype="float32", image_size=16)
    assert parts is not None
    return config, setup, phase, phase.stages[0], parts


@pytest.mark.parametrize(
    ("flip", "epochs", "pays"),
    [(False, 1, False), (False, 2, True), (True, 1, False), (True, 2, False), (True, 3, True)],
)
def test_caching_pays_where_more_images_are_seen_than_cached(
    flip: bool, epochs: int, pays: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """96 images an epoch: each of them, and its mirror image, has to be seen more than once."""
    assert caching_pays(*parts_of(HEAD, flip=flip, head_epochs=epochs)) is pays
    said = capsys.readouterr().out
    views = 192 if flip else 96
    if pays:
        assert said == f"head phase: {views} cached features, 0.0 GiB\n"
    else:
        assert said.startswith(f"head phase: no cached features: it sees {96 * epochs} images, ")
        assert f"the {views} to be cached" in said


def test_steps_that_are_left_out_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert not caching_pays(*parts_of(FINETUNE, flip=False, finetune_epochs=4, finetune_steps_per_epoch=1))
    assert "finetune phase: no cached features: it sees 96 images" in capsys.readouterr().out


def test_caching_stops_at_the_memory_limit(capsys: pytest.CaptureFixture[str]) -> None:
    # 96 images, 96 mirror images and 30 of validation, each 7 * 7 * 8 float32.
    gib = (2 * TRAIN + VALIDATION) * 7 * 7 * 8 * 4 / 2**30
    assert caching_pays(*parts_of(FINETUNE, cache_gib=gib))
    capsys.readouterr()
    assert not caching_pays(*parts_of(FINETUNE, cache_gib=float(np.nextafter(gib, 0))))
    said = capsys.readouterr().out
    assert said == f"finetune phase: no cached features: they take 0.0 GiB, and --cache_gib={gib:g}\n"
    _, _, phase, stage, parts = parts_of(FINETUNE)
    config = small_config(cache_gib=gib / 2)
    assert not caching_pays(config, set_up_small(config), phase, stage, parts)
    assert caching_pays(config, set_up_small(config, compute_dtype="bfloat16"), phase, stage, parts)


def test_what_does_not_pay_is_taught_on_images(capsys: pytest.CaptureFixture[str]) -> None:
    too_few: dict[str, Any] = {"head_epochs": 1}
    too_large: dict[str, Any] = {"cache_gib": 0}
    for flags in (too_few, too_large):
        _, setup, _, task = task_of(HEAD, **flags)
        assert not task.cached
        assert (task.train, task.validation) == (setup.train, setup.validation)
        assert "head phase: no cached features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (HEAD, {"head_cached_features": False}),
        (FINETUNE, {"finetune_cached_features": False}),
        (FINETUNE, {"finetune_unfreeze_from": ""}),  # nothing is frozen
    ],
)
def test_nothing_is_said_where_nothing_can_be_cached(
    number: int, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, setup, _, task = task_of(number, **flags)
    assert (task.cached, task.train) == (False, setup.train)
    assert capsys.readouterr().out == ""


def test_images_are_augmented_and_features_are_not() -> None:
    key = tf.constant([1, 2], tf.int64)
    for cached in (True, False):
        _, _, _, task = task_of(HEAD, flip=False, crop_padding=4, head_cached_features=cached)
        inputs = task.train.inputs[:BATCH]
        unchanged = inputs[:, 0] if cached else inputs
        augmented = task.augment(Batch(inputs, Targets(labels=task.train.targets["labels"][:BATCH])), key)
        assert np.array_equal(augmented.inputs, unchanged) is cached


# Kernel gradients.


def test_a_deterministic_run_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measure(*shape: Any) -> KernelGradient:
        asked.append(shape)
        return "matmul"

    monkeypatch.setattr(compute, "faster_kernel_gradient", measure)
    assert by_matmul(task_of(FINETUNE, deterministic=True, kernel_gradient="auto")[3]) == 0
    assert asked == []
    assert by_matmul(task_of(FINETUNE, kernel_gradient="auto")[3]) == 1
    assert [shape[-1] for shape in asked] == [BATCH]  # images of a step on the one device


@pytest.mark.parametrize("cached", [True, False])
def test_matrix_products_are_counted_where_convolutions_learn(cached: bool) -> None:
    flags: dict[str, Any] = {"kernel_gradient": "matmul", "deterministic": True}
    for number, count in ((HEAD, 0), (FINETUNE, 1)):
        task = task_of(number, head_cached_features=cached, finetune_cached_features=cached, **flags)[3]
        assert (task.cached, by_matmul(task)) == (cached, count)


# Whole trainings.


def test_the_best_epoch_of_a_cached_head_phase_comes_back_in_the_classifier() -> None:
    """Three epochs with the right labels, then three with wrong ones: the last of the first three is the best."""
    config, setup, phase, task = task_of(HEAD)
    classifier = setup.classifier
    keep_best = KeepBest(classifier)
    fit(config, setup, phase, task, keep_best)
    keep_best.go_back()
    best = classifier.get_weights()
    images, labels = setup.dataset.validation
    accuracy = (logits_of(classifier, images[:]).argmax(axis=1) == labels).mean()
    assert keep_best.best is not None
    assert keep_best.best[0] == pytest.approx(accuracy, abs=1e-6)
    assert accuracy > 0.15

    last: list[NDArray[np.float32]] = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: last.append(classifier.get_layer("head").get_weights()[0])
    )
    wrong = task.train._replace(targets=Targets(labels=tf.roll(task.train.targets["labels"], 1, axis=1)))
    later = phase._replace(first_epoch=3)
    again = make_task(config, setup, later, later.stages[0])._replace(train=wrong)
    fit(config, setup, later, again, keep_best, record)
    keep_best.go_back()
    assert np.abs(last[-1] - np.asarray(classifier.get_layer("head").kernel)).max() > 0.01
    assert all(np.array_equal(left, right) for left, right in zip(best, classifier.get_weights(), strict=True))


class Training(NamedTuple):
    """What a trainer made, and what it said."""

    setup: RunSetup
    records: list[dict[str, Any]]
    summaries: dict[str, PhaseSummary]
    stderr: str


def train(folder: Path, **flags: Any) -> Training:
    """Train with a pipeline that gives an image a second."""
    config = small_config(**SHORT | flags)
    setup, log, stderr = set_up_small(config), RunLog(folder), io.StringIO()
    with contextlib.redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "measure_speed", lambda batches: 1.0)
        summaries = train_small(config, setup, log, folder).progress.summaries
    return Training(setup, log.records, summaries, stderr.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return train(tmp_path_factory.mktemp("cached"))


def test_a_training_goes_through_both_phases_and_ends_at_its_best_epoch(trained: Training) -> None:
    epochs = [record for record in trained.records if "validation_accuracy" in record]
    assert [(record["phase"], record["epoch"], record["step"]) for record in epochs] == [
        *(("head", 0, 4), ("head", 1, 8), ("finetune", 2, 12), ("finetune", 3, 16))
    ]
    images, labels = trained.setup.dataset.validation
    accuracy = (logits_of(trained.setup.classifier, images[:]).argmax(axis=1) == labels).mean()
    assert accuracy == pytest.approx(max(record["validation_accuracy"] for record in epochs), abs=1e-6)


def test_a_phase_with_cached_features_is_timed_whole_and_waits_for_no_images(trained: Training) -> None:
    assert list(trained.summaries) == ["head", "finetune"]
    for summary in trained.summaries.values():
        assert summary._replace(images_per_second=None) == PhaseSummary(None, 1.0, True, 0)
        assert summary.images_per_second
        logged = max(record["images_per_second"] for record in trained.records if "images_per_second" in record)
        assert 0 < summary.images_per_second < logged  # of the steps alone
    assert "warning" not in trained.stderr


def test_a_phase_that_waits_for_images_says_so(tmp_path: Path) -> None:
    training = train(tmp_path, head_cached_features=False, finetune_epochs=0)
    speed = training.records[-1]["images_per_second"]
    assert training.summaries == {"head": PhaseSummary(speed, 1.0, False, 0)}
    assert training.stderr.strip().endswith(
        "warning: the head phase waited for data: the input pipeline alone gives 1 images/s, "
        f"and training went at {speed:,.0f}"
    )


# On two devices.


@pytest.mark.slow
def test_two_devices_learn_from_cached_features_what_one_does(trained: Training, tmp_path: Path) -> None:
    program = Path(__file__).with_name("cached_program.py")
    environment = {**os.environ, "PYTHONPATH": str(program.parent.parent)}
    subprocess.run([sys.executable, str(program), "2", str(tmp_path)], check=True, env=environment)
    two = dict(np.load(tmp_path / "values.npz"))
    assert int(two["replicas"]) == 2
    assert two["cached"].tolist() == [True, True]
    assert float(two["largest_difference"]) == 0
    for number, weights in enumerate(trained.setup.classifier.get_weights()):
        np.testing.assert_allclose(two[f"weight {number}"], weights, rtol=2e-3, atol=2e-4)
    # The model computes where it was asked to, as on a GPU it has to: what keeps features in the host's memory is for them alone.
    assert str(two["device_of_features"]).endswith("CPU:1")
