"""What a run needs before it trains: devices, images, phases, and a network with its starting weights."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

from cifar_keras.config import DistillationConfig, RunConfig
from cifar_keras.data.datasets import is_prepared, load_dataset
from cifar_keras.data.pipeline import Examples, hold
from cifar_keras.data.types import Dataset
from cifar_keras.errors import UserError
from cifar_keras.exporting.saved_model import check_classes, load_saved_model
from cifar_keras.files import paths
from cifar_keras.models.classifier import make_classifier
from cifar_keras.models.fused import fusions_in_words
from cifar_keras.models.weights import check_weights
from cifar_keras.training.compute import choose_compute_dtype
from cifar_keras.training.devices import check_no_empty_share, device_names, make_strategy, set_up_devices
from cifar_keras.training.phases import Phase, plan_phases
from cifar_keras.training.teacher import keep_teacher_logits, read_teacher_logits, teacher_logits, with_teacher


class RunSetup(NamedTuple):
    """What a run needs before it trains."""

    dataset: Dataset  # train and validation are NumPy's views of the examples below
    train: Examples
    validation: Examples
    phases: list[Phase]
    strategy: tf.distribute.Strategy
    classifier: keras.Model
    compute_dtype: str
    teacher: tf.Module | None = None  # its SavedModel, until it has been asked
    distillation: DistillationConfig | None = None  # where a teacher's logits are behind the labels


def set_up(config: RunConfig) -> RunSetup:
    """Set up the devices, and load data and weights.

    Raises:
        UserError: something cannot be had, or does not fit together.
    """
    set_up_devices(config.virtual_devices, deterministic=config.deterministic)
    keras.utils.set_random_seed(config.seed)
    strategy = make_strategy(config.data.global_batch_size)
    print(f"devices: {', '.join(device_names())}", flush=True)
    compute_dtype, reason = choose_compute_dtype(config.compute.compute_dtype, deterministic=config.deterministic)
    print(f"activations in {compute_dtype}: {reason}", flush=True)
    check_weights(config.model.weights)  # before the data, which can take minutes
    named = config.distillation.teacher
    teacher = load_saved_model(paths.expand_model("teacher", named), "teacher") if named else None
    dataset, train, validation = _load_examples(config)
    _check_fits(config, dataset)
    if teacher is not None:
        check_classes(teacher, dataset.class_names, named, "teacher")
    phases = plan_phases(config, train.total)
    check_no_empty_share(validation.total, config.data.global_batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        classifier = make_classifier(
            config.model, len(dataset.class_names), seed=config.seed, timeout_seconds=config.source_timeout_seconds
        )
    print(f"{config.model.backbone}: {fusions_in_words(classifier.get_layer('backbone'))}", flush=True)
    return RunSetup(dataset, train, validation, phases, strategy, classifier, compute_dtype, teacher)


def _check_fits(config: RunConfig, dataset: Dataset) -> None:
    side = min(dataset.train.images.shape[1:3])
    if config.augmentation.cutout > side:
        raise UserError(
            f"--cutout has to be at most {side}, the side of the images in pixels. Received: {config.augmentation.cutout}"
        )


def _load_examples(config: RunConfig) -> tuple[Dataset, Examples, Examples]:
    """Load the images, and move the splits that training sees to where `tf.data` reads them."""
    dataset = load_dataset(config.data, seed=config.seed, timeout_seconds=config.source_timeout_seconds)
    train, train_split = hold(dataset.train, len(dataset.class_names))
    validation, validation_split = hold(dataset.validation, len(dataset.class_names))
    return dataset._replace(train=train_split, validation=validation_split), train, validation


def still_needed(config: RunConfig, path: Path) -> RunConfig:
    """Return the config of what a run that goes on still has to read: its state has the weights, and its workdir the teacher's logits."""
    distillation, data = config.distillation, config.data
    if read_teacher_logits(_teacher_file(path)) is not None:
        distillation = dataclasses.replace(distillation, teacher="")
    if data.archive and is_prepared(data):
        data = dataclasses.replace(data, archive="")
    model = dataclasses.replace(config.model, weights="none")
    return dataclasses.replace(config, model=model, distillation=distillation, data=data)


def ask_teacher(config: RunConfig, setup: RunSetup, path: Path) -> RunSetup:
    """Put the teacher's logits behind the labels, if there is a teacher."""
    if not config.distillation.teacher:
        return setup
    file = _teacher_file(path)
    logits = read_teacher_logits(file)
    if logits is None:
        logits = teacher_logits(setup.teacher, setup.dataset, config.data.global_batch_size)
        keep_teacher_logits(logits, file)
    return setup._replace(
        train=with_teacher(setup.train, logits["train"]),
        validation=with_teacher(setup.validation, logits["validation"]),
        teacher=None,  # it has said all that it knows
        distillation=config.distillation,
    )


def _teacher_file(path: Path) -> Path:
    return path / paths.CHECKPOINTS / "teacher_logits.npz"
