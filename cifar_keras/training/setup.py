"""Set up what a run needs before it trains: devices, images, phases, and a network with its starting weights."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import RunConfig
from cifar_keras.data.augmentation import check_fits
from cifar_keras.data.datasets import check_outside, is_prepared, load_dataset
from cifar_keras.data.pipeline import Examples, to_examples
from cifar_keras.data.types import Dataset
from cifar_keras.files import paths
from cifar_keras.files.finished_run import with_kept_exclude
from cifar_keras.models.classifier import make_classifier
from cifar_keras.models.fused import fusions_in_words
from cifar_keras.models.weights import check_weights
from cifar_keras.training.class_weights import begin_class_weights, check_class_weights
from cifar_keras.training.compute import choose_compute_dtype
from cifar_keras.training.devices import check_no_idle_device, device_names, make_strategy, set_up_devices
from cifar_keras.training.phases import Phase, plan_phases
from cifar_keras.training.teacher import Teacher


class RunSetup(NamedTuple):
    """Everything that a run needs before it trains."""

    dataset: Dataset  # its train and validation splits are NumPy views of the examples below
    train: Examples
    validation: Examples
    phases: list[Phase]
    strategy: tf.distribute.Strategy
    classifier: keras.Model
    compute_dtype: str
    teacher: Teacher | None = None
    class_weights: NDArray[np.float32] | None = None  # [classes], in the training loss; None if all count 1


def set_up(config: RunConfig, path: Path) -> RunSetup:
    """Configure the devices, load data and weights, and return all that the run needs.

    Args:
        config: the config of the run.
        path: the workdir of the run.

    Raises:
        UserError: something that the run needs is missing, or two things do not fit together.
    """
    set_up_devices(config.virtual_devices, deterministic=config.deterministic)
    keras.utils.set_random_seed(config.seed)
    strategy = make_strategy(config.data.global_batch_size)
    print(f"devices: {', '.join(device_names())}", flush=True)
    compute_dtype, reason = choose_compute_dtype(config.compute.compute_dtype, deterministic=config.deterministic)
    print(f"activations in {compute_dtype}: {reason}", flush=True)
    # These come before the data, whose loading can take minutes.
    check_outside(config)
    check_weights(config.model.weights)
    check_class_weights(config.objective.class_weights)
    teacher = Teacher(config, path / paths.CHECKPOINTS, strategy) if config.distillation.teacher else None
    if teacher is not None:
        teacher.check_is_there()
    dataset, train, validation = _load_examples(config)
    check_fits(config.augmentation, min(dataset.train.images.shape[1:3]))
    if teacher is not None:
        teacher.check_classes(dataset.class_names)
    class_weights = begin_class_weights(config.objective.class_weights, dataset.train.labels, dataset.class_names, path)
    phases = plan_phases(config, train.total)
    check_no_idle_device(validation.total, config.data.global_batch_size, strategy.num_replicas_in_sync)
    count, patience = len(dataset.class_names), config.source_timeout_seconds
    with strategy.scope():
        classifier = make_classifier(config.model, count, seed=config.seed, timeout_seconds=patience)
    print(f"{config.model.backbone}: {fusions_in_words(classifier.get_layer('backbone'))}", flush=True)
    return RunSetup(dataset, train, validation, phases, strategy, classifier, compute_dtype, teacher, class_weights)


def _load_examples(config: RunConfig) -> tuple[Dataset, Examples, Examples]:
    """Return the images. The splits that training sees are moved to where `tf.data` reads them."""
    dataset = load_dataset(config)
    train, train_split = to_examples(dataset.train, len(dataset.class_names))
    validation, validation_split = to_examples(dataset.validation, len(dataset.class_names))
    return dataset._replace(train=train_split, validation=validation_split), train, validation


def still_needed(config: RunConfig, path: Path) -> RunConfig:
    """Return a resumed run's config without inputs it no longer reads: starting weights, archive, and what its workdir `path` keeps."""
    config, data = with_kept_exclude(config, path), config.data
    if data.archive and is_prepared(data):
        data = dataclasses.replace(data, archive="")
    model = dataclasses.replace(config.model, weights="none")
    return dataclasses.replace(config, model=model, data=data)


def ask_teacher(setup: RunSetup) -> RunSetup:
    """Return the setup with the teacher's logits in the targets, except in a train split whose teacher is asked in every step."""
    teacher, train = setup.teacher, setup.train
    if teacher is None:
        return setup
    if not teacher.is_asked_in_steps:
        train = teacher.beside(train, "train")
    validation = teacher.beside(setup.validation, "validation")
    return setup._replace(train=train, validation=validation)
