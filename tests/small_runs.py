"""Small runs: one that is ready to train, as `training.setup` makes one of a whole network, and one that is finished."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from small_networks import settle_normalizations, small_backbone, small_classifier

from cifar_keras.config import RunConfig, from_values, to_values
from cifar_keras.data import synthetic
from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.data.pipeline import to_examples
from cifar_keras.data.splits import make_splits
from cifar_keras.data.types import Dataset, LabelledImages, contents_of
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.exporting.saved_model import export_saved_model, save_classifier
from cifar_keras.files import paths, writing
from cifar_keras.files.paths import CHECKPOINTS
from cifar_keras.models.classifier import build_classifier
from cifar_keras.reporting import figures
from cifar_keras.training.checkpoints import Checkpoints
from cifar_keras.training.class_weights import make_class_weights
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.phases import plan_phases
from cifar_keras.training.setup import RunSetup
from cifar_keras.training.stopwatch import Stopwatch
from cifar_keras.training.tracking import RunLog
from cifar_keras.training.trainer import Trainer

TRAIN, VALIDATION, TEST = 96, 30, 20  # images
TEMPERATURE = 1.5
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


def set_up_small(
    config: RunConfig,
    strategy: tf.distribute.Strategy | None = None,
    compute_dtype: str = "float32",
    dropout: float = 0.0,
    dataset: Dataset | None = None,
) -> RunSetup:
    """The same weights and images each time, with normalizations like trained ones."""
    dataset = dataset or small_dataset()
    train, validation, classes = dataset.train, dataset.validation, len(dataset.class_names)
    strategy = strategy or tf.distribute.get_strategy()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        classifier = build_classifier(small_backbone(), "caffe", class_count=classes, dropout=dropout, seed=0)
    settle_normalizations(classifier.get_layer("backbone"))
    return RunSetup(
        dataset,
        to_examples(train, classes)[0],
        to_examples(validation, classes)[0],
        plan_phases(config, len(train.labels)),
        strategy,
        classifier,
        compute_dtype,
        class_weights=make_class_weights(config.objective.class_weights, train.labels, dataset.class_names),
    )


def small_dataset() -> Dataset:
    """A few images of the synthetic set."""
    dataset = synthetic.make_dataset(0)
    train, validation, test = (
        LabelledImages(split.images[start : start + count], split.labels[start : start + count])
        for split, start, count in (
            (dataset.train, 0, TRAIN),
            (dataset.train, TRAIN, VALIDATION),
            (dataset.test, 0, TEST),
        )
    )
    return Dataset(train, validation, test, CLASS_NAMES)


def train_small(config: RunConfig, setup: RunSetup, log: RunLog, folder: Path) -> Trainer:
    """Train from the newest checkpoint in the folder, or from the beginning."""
    checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoint.keep_checkpoints)
    interruption = Interruption()
    trainer = Trainer(config, setup, log=log, watch=Stopwatch(), checkpoints=checkpoints, interruption=interruption)
    with interruption.listening():
        trainer.train(checkpoints.newest())
    return trainer


def finish_small_run(folder: Path, *, weights: str = "none") -> Path:
    """A workdir like that of a finished run: a small classifier, whose head is a regression, on the synthetic set."""
    splits = make_splits(synthetic.make_dataset(0), 0.1, seed=0)
    classifier = small_classifier()
    settle_normalizations(classifier.get_layer("backbone"))
    fit_head(classifier, splits.train)
    folder.mkdir(parents=True)
    save_classifier(classifier, folder / paths.MODEL)
    export_saved_model(classifier, CLASS_NAMES, folder / paths.SAVED_MODEL, temperature=TEMPERATURE)
    logits = {name: classifier.predict(getattr(splits, name).images, verbose=0) for name in ("test", "validation")}
    metrics = {
        name: classification_metrics(values, getattr(splits, name).labels, CLASS_NAMES)
        for name, values in logits.items()
    }
    calibrated = classification_metrics(logits["test"] / np.float32(TEMPERATURE), splits.test.labels, CLASS_NAMES)
    result = {
        **metrics,
        "calibration": {"temperature": TEMPERATURE, "test": calibrated},
        "minutes": {"total": 1.5},
        "images_per_second": {"evaluate": 100.0},
        "config": to_values(from_values({"data_source": "synthetic", "global_batch_size": BATCH, "weights": weights})),
        "environment": {"cores": 2, "processor": "a processor", "devices": ["CPU:0"]},
        "seed": 0,
        "commit": "0123456789",
    }
    writing.write_json(folder / paths.RESULT, result)
    writing.write_json(folder / paths.DATASET, {"digest": contents_of(splits).digest})
    records = [
        {
            "phase": "head",
            "epoch": 0,
            "step": 9,
            "learning_rate": 0.1,
            "loss": 0.9,
            "accuracy": 0.6,
            "cross_entropy": 0.9,
        }
        | {"validation_loss": 0.8, "validation_accuracy": 0.7}
    ]
    (folder / paths.METRICS).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    kept = {f"{name}_logits": values for name, values in logits.items()}
    np.savez(
        folder / paths.PREDICTIONS,
        test_labels=splits.test.labels,
        validation_labels=splits.validation.labels,
        **kept,
    )
    drawn = {
        "reliability": figures.reliability_picture(logits["test"], splits.test.labels, TEMPERATURE),
        "confusion_matrix": figures.confusion_matrix_picture(metrics["test"]["confusion_matrix"], CLASS_NAMES),
        "learning_curves": figures.learning_curves_picture(records),
    }
    for name, picture in drawn.items():
        (folder / f"{name}.png").write_bytes(picture)
    return folder


def fit_head(classifier: keras.Model, train: LabelledImages) -> None:
    """Give the head the ridge regression of the labels on the features, which no training could be as quick as."""
    head = classifier.get_layer("head")
    features = keras.Model(classifier.inputs, head.input).predict(train.images, verbose=0).astype(np.float64)
    mean, wanted = features.mean(axis=0), 20 * np.eye(10)[train.labels] - 2
    centred = features - mean
    kernel = np.linalg.solve(centred.T @ centred + 1e-3 * np.eye(centred.shape[1]) * len(centred), centred.T @ wanted)
    head.kernel.assign(kernel)
    head.bias.assign(wanted.mean(axis=0) - mean @ kernel)
