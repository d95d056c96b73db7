"""Build what a stage trains: the whole classifier on images, or the part above its frozen layers on cached features."""

from typing import NamedTuple

import keras

from cifar_keras.config import KernelGradientChoice, RunConfig
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pipeline import Augmentation, Examples
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.partition import Partition, partition
from cifar_keras.training.compute import choose_kernel_gradients
from cifar_keras.training.features import choose_view, compute_features, features_gib, only_view
from cifar_keras.training.fit import Learner, set_trainable
from cifar_keras.training.phases import Phase, Stage
from cifar_keras.training.setup import RunSetup
from cifar_keras.training.teacher import Ask, Distillation


class Task(NamedTuple):
    """What a stage trains: the whole classifier on images, or its trainable part on cached features, computed once."""

    model: Learner
    train: Examples
    validation: Examples
    augment: Augmentation
    cached: bool


def make_task(config: RunConfig, setup: RunSetup, phase: Phase, stage: Stage) -> Task:
    """Freeze the layers that do not learn in a stage of a phase, and return the task that the stage trains."""
    parts = freeze(config, setup, phase, stage)
    with setup.strategy.scope():
        return _from_features(config, setup, phase, parts) if parts else from_images(config, setup, stage)


def freeze(config: RunConfig, setup: RunSetup, phase: Phase, stage: Stage) -> Partition | None:
    """Freeze the layers that do not learn in a stage. Return the two parts of the classifier if it trains on cached features."""
    set_trainable(
        setup.classifier,
        stage.learns_from,
        train_batch_norm=phase.train_batch_norm,
        synchronize=setup.strategy.num_replicas_in_sync > 1,
    )
    if not phase.config.cached_features:
        return None
    with setup.strategy.scope():
        parts = partition(setup.classifier, compute_dtype=setup.compute_dtype, image_size=stage.image_size)
        return parts if parts and caching_pays(config, setup, phase, stage, parts) else None


def from_images(config: RunConfig, setup: RunSetup, stage: Stage) -> Task:
    """Return the task that trains the whole classifier on images, with the layers frozen as they are. Call it in the strategy's scope."""
    classifier, dtype, size = setup.classifier, setup.compute_dtype, stage.image_size
    twin = fused_twin(classifier.get_layer("backbone"), compute_dtype=dtype, input_shape=(size, size, 3))
    teacher = setup.teacher
    ask = teacher.ask(dtype) if teacher is not None and teacher.is_asked_in_steps else None
    model = _learner(config, setup, assemble(classifier, twin), ask)
    return Task(model, setup.train, setup.validation, make_augmentation(config.augmentation), False)


def _from_features(config: RunConfig, setup: RunSetup, phase: Phase, parts: Partition) -> Task:
    model, train = _learner(config, setup, parts.trainable), setup.train
    # A teacher needs images, not features, so it is asked about each image before training.
    if setup.teacher is not None and setup.teacher.is_asked_in_steps:
        train = setup.teacher.beside(train, "train")
    train, validation = (
        compute_features(
            parts.frozen,
            split,
            mirrored=mirrored,
            dtype=setup.compute_dtype,
            batch_size=config.data.global_batch_size,
            title=f"{phase.name} phase: features of {name}",
        )
        for name, split, mirrored in (
            ("train", train, config.augmentation.flip),
            ("validation", setup.validation, False),
        )
    )
    return Task(model, train, only_view(validation), choose_view, True)


def _learner(config: RunConfig, setup: RunSetup, network: keras.Model, ask: Ask | None = None) -> Learner:
    """Return a model that learns from labels, and from the teacher if there is one."""
    _choose_kernel_gradients(config, setup, network)
    distillation = Distillation(config.distillation, ask) if setup.teacher is not None else None
    return Learner(network, distillation, setup.class_weights)


def _choose_kernel_gradients(config: RunConfig, setup: RunSetup, model: keras.Model) -> None:
    wanted = config.compute.kernel_gradient
    if config.deterministic and wanted is KernelGradientChoice.AUTO:
        # A measurement can come out differently in the next run.
        wanted = KernelGradientChoice.CONVOLUTION
    images = config.data.global_batch_size // setup.strategy.num_replicas_in_sync
    choose_kernel_gradients(model, wanted, setup.compute_dtype, images)


def caching_pays(config: RunConfig, setup: RunSetup, phase: Phase, stage: Stage, parts: Partition) -> bool:
    """Return whether a stage trains on cached features. Print how many they are, or why there are none."""
    views = setup.train.total * (2 if config.augmentation.flip else 1)
    seen = stage.epochs * phase.steps_per_epoch * config.data.global_batch_size
    gib = features_gib(parts.frozen, views + setup.validation.total, setup.compute_dtype)
    if seen <= views:
        print(
            f"{phase.name} phase: no cached features: it sees {seen:,} images, no more than the {views:,} to be cached"
        )
    elif gib > config.compute.cache_gib:
        limit = config.compute.cache_gib
        print(f"{phase.name} phase: no cached features: they take {gib:.1f} GiB, and --cache_gib={limit:g}")
    else:
        print(f"{phase.name} phase: {views:,} cached features, {gib:.1f} GiB", flush=True)
        return True
    return False
