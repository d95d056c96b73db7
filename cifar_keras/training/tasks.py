"""What a phase fits: the whole classifier on images, or the part above its frozen layers on features computed once."""

from typing import NamedTuple

import keras
import tensorflow as tf

from cifar_keras.config import DistillationConfig, KernelGradientChoice, RunConfig
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pipeline import Change, Examples
from cifar_keras.data.splits import Splits
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.partition import Halves, halve
from cifar_keras.training.compute import choose_kernel_gradients
from cifar_keras.training.features import choose_view, compute_features, features_gib, only_view
from cifar_keras.training.phases import Phase, set_trainable


class Prepared(NamedTuple):
    """What a run needs before it trains."""

    splits: Splits  # train and validation are NumPy's views of the examples below
    train: Examples
    validation: Examples
    phases: list[Phase]
    strategy: tf.distribute.Strategy
    classifier: keras.Model
    compute_dtype: str
    teacher: tf.Module | None = None  # its SavedModel, until it has been asked
    distillation: DistillationConfig | None = None  # where a teacher's logits are behind the labels


class Lesson(NamedTuple):
    """What a phase fits: the whole classifier and images, or its upper half and features that were computed once."""

    model: keras.Model
    train: Examples
    validation: Examples
    change: Change
    cached: bool


def make_lesson(config: RunConfig, prepared: Prepared, phase: Phase) -> Lesson:
    """Freeze what does not learn, and build what a phase fits."""
    classifier, dtype = prepared.classifier, prepared.compute_dtype
    set_trainable(classifier, phase.config, synchronize=prepared.strategy.num_replicas_in_sync > 1)
    size = phase.config.image_size or config.model.image_size
    with prepared.strategy.scope():
        halves = halve(classifier, compute_dtype=dtype, image_size=size) if phase.config.cached_features else None
        if halves and caching_pays(config, prepared, phase, halves):
            return _from_features(config, prepared, phase, halves)
        twin = fused_twin(classifier.get_layer("backbone"), compute_dtype=dtype, input_shape=(size, size, 3))
        model = assemble(classifier, twin)
        _choose_kernel_gradients(config, prepared, model)
    return Lesson(model, prepared.train, prepared.validation, make_augmentation(config.augmentation), False)


def _from_features(config: RunConfig, prepared: Prepared, phase: Phase, halves: Halves) -> Lesson:
    _choose_kernel_gradients(config, prepared, halves.upper)
    train, validation = (
        compute_features(
            halves.lower,
            split,
            mirrored=mirrored,
            dtype=prepared.compute_dtype,
            batch_size=config.data.global_batch_size,
            title=f"{phase.name} phase: features of {name}",
        )
        for name, split, mirrored in (
            ("train", prepared.train, config.augmentation.flip),
            ("validation", prepared.validation, False),
        )
    )
    return Lesson(halves.upper, train, only_view(validation), choose_view, True)


def _choose_kernel_gradients(config: RunConfig, prepared: Prepared, model: keras.Model) -> None:
    wanted = config.compute.kernel_gradient
    if config.deterministic and wanted is KernelGradientChoice.AUTO:
        wanted = KernelGradientChoice.CONVOLUTION  # what is measured can come out differently in the next run
    images = config.data.global_batch_size // prepared.strategy.num_replicas_in_sync
    choose_kernel_gradients(model, wanted, prepared.compute_dtype, images)


def caching_pays(config: RunConfig, prepared: Prepared, phase: Phase, halves: Halves) -> bool:
    """Say whether the features of a phase are computed once, and why not if they are not."""
    views = prepared.train.total * (2 if config.augmentation.flip else 1)
    seen = phase.steps * config.data.global_batch_size
    gib = features_gib(halves.lower, views + prepared.validation.total, prepared.compute_dtype)
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
