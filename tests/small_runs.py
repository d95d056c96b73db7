"""A small run that is ready to train, as `run.prepare` gives one of a whole network of keras.applications."""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from small_networks import settle_normalizations, small_backbone

from cifar_keras.config import RunConfig, from_values
from cifar_keras.data import synthetic
from cifar_keras.data.cifar10 import CLASS_NAMES, LabelledImages
from cifar_keras.data.pipeline import hold
from cifar_keras.data.splits import Splits
from cifar_keras.models.classifier import build_classifier
from cifar_keras.paths import CHECKPOINTS
from cifar_keras.run import plan_phases
from cifar_keras.stopwatch import Stopwatch
from cifar_keras.training.checkpoints import Checkpoints
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.lessons import Prepared
from cifar_keras.training.run_log import RunLog
from cifar_keras.training.trainer import Trainer

TRAIN, VALIDATION, TEST = 96, 30, 20  # images
BATCH = 24  # so that the last batch of validation is smaller, and an epoch has 4 steps

SMALL = {
    "image_size": 16,
    "global_batch_size": BATCH,
    "head_epochs": 3,
    "head_learning_rate": 0.01,
    "finetune_epochs": 3,
    "finetune_learning_rate": 0.03,
    "finetune_unfreeze_from": "conv2",
    "finetune_cached_features": True,
    "kernel_gradient": "convolution",  # nothing measured, so that two runs are equal
}

# The shortest run in which features of both phases are cached: each image is seen twice.
SHORT = {"flip": False, "head_epochs": 2, "finetune_epochs": 2}


def small_config(**flags: Any) -> RunConfig:
    """A config of both phases with cached features; not validated, because no network in the table is that small."""
    return from_values(SMALL | flags)


def prepare_small(
    config: RunConfig,
    strategy: tf.distribute.Strategy | None = None,
    compute_dtype: str = "float32",
    dropout: float = 0.0,
) -> Prepared:
    """The same weights and images each time, with normalizations like trained ones."""
    dataset = synthetic.make_dataset(0)
    train, validation, test = (
        LabelledImages(split.images[start : start + count], split.labels[start : start + count])
        for split, start, count in (
            (dataset.train, 0, TRAIN),
            (dataset.train, TRAIN, VALIDATION),
            (dataset.test, 0, TEST),
        )
    )
    strategy = strategy or tf.distribute.get_strategy()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        classifier = build_classifier(small_backbone(), "caffe", class_count=10, dropout=dropout, seed=0)
    settle_normalizations(classifier.get_layer("backbone"))
    return Prepared(
        Splits(train, validation, test, CLASS_NAMES),
        hold(train, 10)[0],
        hold(validation, 10)[0],
        plan_phases(config, TRAIN),
        strategy,
        classifier,
        compute_dtype,
    )


def train_small(config: RunConfig, prepared: Prepared, log: RunLog, folder: Path) -> Trainer:
    """Train from the newest state in the folder, or from the beginning."""
    checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoint.keep_checkpoints)
    interruption = Interruption()
    trainer = Trainer(config, prepared, log=log, watch=Stopwatch(), checkpoints=checkpoints, interruption=interruption)
    with interruption.listening():
        trainer.train(checkpoints.newest())
    return trainer
