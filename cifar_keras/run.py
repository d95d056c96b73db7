"""Train a classifier up to its validation; then export it, measure the test split once, and report."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import PHASES, RunConfig, to_values
from cifar_keras.data.subset import keep_corrections
from cifar_keras.data.types import Dataset
from cifar_keras.evaluation.calibration import fit_temperature, softmax
from cifar_keras.evaluation.measure import Evaluation, calibrated_metrics, evaluate, serves_at
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.evaluation.robustness import check_wanted, measure_robustness
from cifar_keras.exporting import saved_model
from cifar_keras.files import environment, paths, workdir, writing
from cifar_keras.files.finished_run import write_predictions
from cifar_keras.models.inference import predict_all
from cifar_keras.reporting import figures, markdown, pages
from cifar_keras.reporting.tables import metrics_table, with_interval
from cifar_keras.training.checkpoints import Checkpoints
from cifar_keras.training.class_weights import keep_class_weights
from cifar_keras.training.devices import device_names
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.progress import check_format
from cifar_keras.training.pruning import sparsity_of
from cifar_keras.training.setup import RunSetup, ask_teacher, set_up, still_needed
from cifar_keras.training.stopwatch import Stopwatch
from cifar_keras.training.tracking import RunLog
from cifar_keras.training.trainer import Trainer

# The exported weights are read back and equal the trained ones bit by bit. So only the exported graph is left to check.
CHECKED_IMAGES = 1000
WAY_OUT = "; with room to write, --resume goes on from the last checkpoint"


class Trained(NamedTuple):
    """A classifier at its best epoch, measured on the validation split alone."""

    config: RunConfig
    path: Path  # the workdir
    dataset: Dataset
    classifier: keras.Model
    validation_logits: NDArray[np.float32]  # [n, classes]
    validation: dict[str, Any]  # their metrics
    temperature: float  # that fits them best
    history: dict[str, Any]  # of the training, as `result.json` has it, and the commit
    log: RunLog
    watch: Stopwatch


def run(config: RunConfig, callbacks: Sequence[keras.callbacks.Callback] = ()) -> dict[str, Any]:
    """Train and finish a run, or the rest of it, and return the content of `result.json`.

    Raises:
        UserError: data, weights or the workdir cannot be used, before anything is trained; or the loss diverges.
        InterruptedRunError: the run was asked to end.
        RuntimeError: an exported model is not the classifier that was trained.
    """
    with _occupied(config) as (path, interruption):
        if (path / paths.RESULT).is_file():
            print(f"the run is finished: nothing is left to do in {path}")
            Checkpoints(path / paths.CHECKPOINTS, config.checkpoint.keep_checkpoints).remove()
            result: dict[str, Any] = writing.read_json(path / paths.RESULT)
            return result
        return _finish(_train(config, path, interruption, callbacks))


def train(config: RunConfig, callbacks: Sequence[keras.callbacks.Callback] = ()) -> Trained:
    """Train a classifier, or resume its training, and measure it on the validation split. The test split is not looked at.

    Args:
        config: of the run.
        callbacks: any Keras callbacks. `fit` of every phase calls them after the run's own.

    Raises:
        UserError: data, weights or the workdir cannot be used, before anything is trained; or the loss diverges.
        InterruptedRunError: the run was asked to end. It left a checkpoint.
    """
    with _occupied(config) as (path, interruption):
        return _train(config, path, interruption, callbacks)


def finish(trained: Trained) -> dict[str, Any]:
    """Export a trained classifier, measure the test split once on the exported model, report, and return the content of `result.json`.

    Raises:
        UserError: the workdir cannot be written any more.
        InterruptedRunError: the run was asked to end.
        RuntimeError: an exported model is not the classifier that was trained.
    """
    with workdir.claimed(trained.path, way_out=WAY_OUT), Interruption().listening():
        return _finish(trained)


@contextlib.contextmanager
def _occupied(config: RunConfig) -> Iterator[tuple[Path, Interruption]]:
    """Keep other processes out of the workdir, and listen for signals that end a run."""
    path, interruption = workdir.check_workdir(config.workdir, config.checkpoint.resume), Interruption()
    with workdir.claimed(path, way_out=WAY_OUT), interruption.listening():
        if workdir.holds_run(path):
            workdir.check_same_settings(config, path)
        yield path, interruption


def _train(
    config: RunConfig, path: Path, interruption: Interruption, callbacks: Sequence[keras.callbacks.Callback]
) -> Trained:
    # First, because a missing test set should be an error before the training, not after it.
    check_wanted(config.evaluation, config.data.data_dir)
    watch = Stopwatch()
    # Now, because somebody may edit the source during the run.
    commit = environment.source_commit()
    checkpoints = Checkpoints(path / paths.CHECKPOINTS, config.checkpoint.keep_checkpoints)
    checkpoint = checkpoints.newest()
    if checkpoint is not None:
        check_format(checkpoint.values)
    with watch.time("prepare"):
        setup = set_up(config if checkpoint is None else still_needed(config, path), path)
    if checkpoint is not None:
        # `auto` measures, and a measurement can come out differently in another process.
        setup = setup._replace(compute_dtype=checkpoint.values["compute_dtype"])
    # Before the log begins again: with other images nothing of the run may change.
    workdir.describe_dataset(path, *setup.dataset.contents)
    log = RunLog(path)
    # Before the teacher is asked, which takes minutes: from here on the workdir holds a run that --resume goes on with.
    describe_run(config, setup, path, log)
    with watch.time("prepare"):
        setup = ask_teacher(setup)
    trainer = Trainer(
        config, setup, log=log, watch=watch, checkpoints=checkpoints, interruption=interruption, callbacks=callbacks
    )
    trainer.train(checkpoint)
    with watch.time("evaluate"):
        validated = _validate(config, setup)
    history = trainer.history() | {"commit": commit}
    return Trained(config, path, setup.dataset, setup.classifier, *validated, history=history, log=log, watch=watch)


def _validate(config: RunConfig, setup: RunSetup) -> tuple[NDArray[np.float32], dict[str, Any], float]:
    """Return the trained classifier's logits of the validation split, their metrics, and the temperature that fits them."""
    images, labels = setup.dataset.validation
    logits = predict_all(setup.classifier, images, config.data.global_batch_size, "validation")
    metrics = classification_metrics(logits, labels, setup.dataset.class_names, seed=config.seed)
    return logits, metrics, fit_temperature(logits, labels)


def _finish(trained: Trained) -> dict[str, Any]:
    config, path, dataset = trained.config, trained.path, trained.dataset
    with trained.watch.time("evaluate"):
        model = export_trained(trained)
        test = measure_test(trained, model)
        calibrated = calibrated_metrics(
            test.logits, dataset.test.labels, dataset.class_names, temperature=trained.temperature, seed=config.seed
        )
        write_predictions(
            path,
            test_logits=test.logits,
            test_labels=dataset.test.labels,
            validation_logits=trained.validation_logits,
            validation_labels=dataset.validation.labels,
        )
        _draw(trained, test, model)
        robustness = measure_robustness(model, test.logits, trained.temperature, dataset, config)
        pages.keep_robustness(robustness, path)
    result = _result_of(trained, test, calibrated)
    print(metrics_table(test.metrics, f"test, {path / paths.SAVED_MODEL}"))
    print(
        f"calibration error {with_interval(test.metrics, 'calibration_error')}; "
        f"at temperature {trained.temperature:.2f}: {with_interval(calibrated, 'calibration_error')}"
    )
    pages.write_report(
        path, result, trained.log.records, logits=test.logits, test=dataset.test, class_names=dataset.class_names
    )
    # Last, because a run with this file is finished.
    writing.write_json(path / paths.RESULT, result)
    # Later still, because until then a run that was killed would go on from the checkpoints.
    Checkpoints(path / paths.CHECKPOINTS, config.checkpoint.keep_checkpoints).remove()
    print(f"written: {path / paths.REPORT}", flush=True)
    return result


def export_trained(trained: Trained) -> tf.Module:
    """Write `model.keras` and the SavedModel, and return the SavedModel, loaded.

    Raises:
        RuntimeError: one of them is not the classifier that was trained.
    """
    folder = trained.path / paths.SAVED_MODEL
    reloaded = saved_model.save_and_reload(trained.classifier, trained.path / paths.MODEL)
    saved_model.export_saved_model(reloaded, trained.dataset.class_names, folder, temperature=trained.temperature)
    model = saved_model.load_saved_model(trained.path)
    check_is_trained(model, trained)
    return model


def check_is_trained(model: tf.Module, trained: Trained) -> None:
    """Check that a SavedModel, loaded, gives the trained classifier's logits of validation images.

    Raises:
        RuntimeError: it does not.
    """
    wanted = trained.validation_logits[:CHECKED_IMAGES]
    images, batch_size = trained.dataset.validation.images[: len(wanted)], trained.config.data.global_batch_size
    served = saved_model.serve_all(model, images, batch_size, "validation, as exported").logits
    difference = saved_model.check_same_logits(wanted, served, str(trained.path / paths.SAVED_MODEL))
    print(f"the exported model is the trained one: logits within {difference:.1e} on {len(wanted):,} validation images")


def measure_test(trained: Trained, model: tf.Module) -> Evaluation:
    """Measure the exported model on the test split.

    Raises:
        RuntimeError: its probabilities are not those of its logits at the temperature.
    """
    config, dataset = trained.config, trained.dataset
    batch_size = config.data.global_batch_size
    test = evaluate(model, dataset.test, dataset.class_names, batch_size, "test", seed=config.seed)
    if not serves_at(test, trained.temperature):
        raise RuntimeError(
            f"the probabilities are not those of the logits over {trained.temperature}. "
            f"Received: {trained.path / paths.SAVED_MODEL}"
        )
    return test


def _draw(trained: Trained, test: Evaluation, model: tf.Module) -> None:
    """Write the pictures into the workdir and into TensorBoard, and close the log."""
    dataset, temperature = trained.dataset, trained.temperature
    drawn = pages.pictures_of_test(dataset.test, test.logits, test.metrics, dataset.class_names, temperature)
    drawn["learning_curves"] = figures.learning_curves_picture(trained.log.records)
    drawn |= pages.pictures_of_errors(
        trained.classifier, model, dataset.test, softmax(test.logits, temperature), dataset.class_names
    )
    for name, picture in drawn.items():
        writing.write_whole(trained.path / f"{name}.png", picture)
        trained.log.write_picture(name, picture)
    trained.log.close()


def _result_of(trained: Trained, test: Evaluation, calibrated: dict[str, Any]) -> dict[str, Any]:
    speeds = {name: phase["images_per_second"] for name, phase in trained.history["phases"].items()}
    return {
        "test": test.metrics,
        "validation": trained.validation,
        "calibration": {"temperature": trained.temperature, "test": calibrated},
        "minutes": trained.watch.minutes(),
        "images_per_second": dict.fromkeys(PHASES) | speeds | {"evaluate": test.images_per_second},
        **trained.history,
        "sparsity": sparsity_of(trained.classifier.get_layer("backbone")),
        "config": to_values(trained.config),
        "environment": writing.read_json(trained.path / paths.ENVIRONMENT),
        "seed": trained.config.seed,
    }


def describe_run(config: RunConfig, setup: RunSetup, path: Path, log: RunLog) -> None:
    """Write what describes a run before it begins: config, environment, and some augmented training images."""
    values = to_values(config)
    writing.write_json(path / paths.CONFIG, values)
    writing.write_json(path / paths.ENVIRONMENT, environment.describe_environment(device_names()))
    keep_class_weights(setup.class_weights, setup.dataset.class_names, path)
    keep_corrections(config.subset.exclude, path)
    rows = [f"|`--{flag}`|{markdown.code(value)}|" for flag, value in values.items()]
    log.write_text("config", "\n".join(["|flag|value|", "|-|-|", *rows]))
    picture = pages.augmented_images_picture(setup.train, setup.dataset.class_names, config.augmentation, config.seed)
    writing.write_whole(path / "augmented_images.png", picture)
    log.write_picture("augmented_images", picture)
