"""The story of a run: data, classifier, two phases, artifacts, evaluation, report."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cifar_keras import artifacts, environment, export, paths
from cifar_keras.config import PhaseConfig, RunConfig, to_values
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pipeline import (
    Change,
    Examples,
    evaluation_batches,
    hold,
    measure_speed,
    training_batches,
    whole_steps,
)
from cifar_keras.data.sources import load_dataset
from cifar_keras.data.splits import Splits, make_splits
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.models.classifier import build_backbone, build_classifier
from cifar_keras.models.weights import check_weights, load_weights
from cifar_keras.reporting import pictures
from cifar_keras.reporting.evaluation import Evaluation, evaluate
from cifar_keras.reporting.tables import metrics_table
from cifar_keras.training.compute import choose_compute_dtype
from cifar_keras.training.devices import check_no_empty_share, device_names, make_strategy, set_up_devices
from cifar_keras.training.features import predict_all
from cifar_keras.training.keep_best import KeepBest
from cifar_keras.training.lessons import Prepared, make_lesson
from cifar_keras.training.phases import Phase, PhaseName, compile_phase, fit_phase
from cifar_keras.training.run_log import LogPhase, RunLog

PIPELINE_SHARE = 0.5  # of what the pipeline gives alone: from there on a model that shares its cores waits for it
SHOWN_IMAGES = 32  # augmented training images in the picture, 4 rows of 8


class Stopwatch:
    """Minutes by name."""

    def __init__(self) -> None:
        self.minutes = dict.fromkeys(("prepare", "head", "finetune", "evaluate"), 0.0)
        self._started = time.monotonic()

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add what the block takes to `minutes[name]`."""
        started = time.monotonic()
        yield
        self.minutes[name] += (time.monotonic() - started) / 60

    def total(self) -> float:
        """Minutes since the watch was made."""
        return (time.monotonic() - self._started) / 60


def train_and_evaluate(config: RunConfig) -> dict[str, Any]:
    """Run a whole config and return what `result.json` says.

    Raises:
        UserError: data, weights or the workdir cannot be had, before anything is trained; or the loss diverges.
        RuntimeError: a reloaded artifact is not the model that was trained.
    """
    watch = Stopwatch()
    commit = environment.source_commit()  # now, since the files may be others when the run ends
    path = paths.check_unused(config.workdir)
    with watch.time("prepare"):
        prepared = prepare(config)
    paths.make_workdir(path)
    log = RunLog(path)
    describe_run(config, prepared, path, log)
    phases = train(config, prepared, log, watch)
    with watch.time("evaluate"):
        save_artifacts(prepared.classifier, prepared.splits, path)
        batch_size = config.data.global_batch_size
        test, validation = evaluate_artifact(prepared.classifier, prepared.splits, path, batch_size)
        draw(test, prepared.splits, log, path)
    result = {
        "test": test.metrics,
        "validation": validation.metrics,
        "minutes": watch.minutes | {"total": watch.total()},
        "images_per_second": {"head": None, "finetune": None}
        | {name: summary.images_per_second for name, summary in phases.items()}
        | {"evaluate": test.images_per_second},
        "compute_dtype": prepared.compute_dtype,
        "phases": {name: summary._asdict() for name, summary in phases.items()},
        "config": to_values(config),
        "environment": artifacts.read_json(path / paths.ENVIRONMENT),
        "seed": config.seed,
        "commit": commit,
    }
    print(metrics_table(test.metrics, f"test, {path / paths.SAVED_MODEL}"))
    artifacts.write_json(path / paths.RESULT, result)  # last: where it is, the run is whole
    return result


def prepare(config: RunConfig) -> Prepared:
    """Set up the devices, and load data and weights."""
    set_up_devices(config.virtual_devices, deterministic=config.deterministic)
    keras.utils.set_random_seed(config.seed)
    strategy = make_strategy(config.data.global_batch_size)
    print(f"devices: {', '.join(device_names())}", flush=True)
    compute_dtype, reason = choose_compute_dtype(config.compute.compute_dtype)
    print(f"activations in {compute_dtype}: {reason}", flush=True)
    check_weights(config.model.weights)  # before the data, which can take minutes
    splits = load_splits(config)
    class_count = len(splits.class_names)
    train_examples, train_split = hold(splits.train, class_count)
    validation_examples, validation_split = hold(splits.validation, class_count)
    splits = splits._replace(train=train_split, validation=validation_split)
    phases = plan_phases(config, len(splits.train.labels))
    replicas = strategy.num_replicas_in_sync
    check_no_empty_share(len(splits.validation.labels), config.data.global_batch_size, replicas)
    with strategy.scope():
        classifier = make_classifier(config, class_count)
    return Prepared(splits, train_examples, validation_examples, phases, strategy, classifier, compute_dtype)


class PhaseSummary(NamedTuple):
    """How a phase was computed. `result.json` holds it."""

    images_per_second: float | None  # of training steps; with cached features, of the whole phase
    pipeline_images_per_second: float  # of the input pipeline alone
    cached_features: bool
    kernel_gradients_by_matmul: int  # convolutions


def train(config: RunConfig, prepared: Prepared, log: RunLog, watch: Stopwatch) -> dict[str, PhaseSummary]:
    """Go through the phases, leave the classifier at its best epoch, and return how each phase was computed, by its name."""
    batch_size = config.data.global_batch_size
    keep_best = KeepBest(prepared.classifier)
    summaries: dict[str, PhaseSummary] = {}
    for phase in prepared.phases:
        started, first_step = time.monotonic(), log.step
        with watch.time(phase.name):
            lesson = make_lesson(config, prepared, phase)
            compile_phase(lesson.model, phase, prepared.strategy, compute_dtype=prepared.compute_dtype)
            batches = phase_batches(phase, config, lesson.train, lesson.change)
            pipeline_speed = measure_speed(batches)
            keep_best.patience = phase.config.early_stopping_patience
            logger = LogPhase(log, phase, batch_size)
            validation_batches = evaluation_batches(lesson.validation, global_batch_size=batch_size)
            fit_phase(lesson.model, phase, batches, validation_batches, [logger, keep_best])
        speed = logger.images_per_second
        if lesson.cached:  # the features are learned from in no time; what counts is their making
            speed = (log.step - first_step) * batch_size / (time.monotonic() - started)
        elif speed and speed > PIPELINE_SHARE * pipeline_speed:
            print(
                f"warning: the {phase.name} phase waited for data: the input pipeline alone gives {pipeline_speed:,.0f} images/s, "
                f"and training went at {speed:,.0f}",
                file=sys.stderr,
            )
        summaries[phase.name] = PhaseSummary(speed, pipeline_speed, lesson.cached, lesson.kernel_gradients_by_matmul)
    return summaries


def load_splits(config: RunConfig) -> Splits:
    """Load the verified images of a run and divide them."""
    data = config.data
    dataset = load_dataset(data.data_source, data.data_dir, data.archive, config.source_timeout_seconds, config.seed)
    return make_splits(dataset, data.validation_share, config.seed)


def plan_phases(config: RunConfig, train_count: int) -> list[Phase]:
    """List the phases that have epochs, head phase first; epochs are counted on.

    Raises:
        UserError: the train split has fewer whole batches than asked for.
    """
    settings: list[tuple[PhaseName, PhaseConfig]] = [("head", config.head), ("finetune", config.finetune)]
    phases: list[Phase] = []
    for name, phase_config in settings:
        if phase_config.epochs:
            batch_size, flag = config.data.global_batch_size, f"{name}_steps_per_epoch"
            steps = whole_steps(train_count, batch_size, phase_config.steps_per_epoch, flag)
            first_epoch = sum(phase.config.epochs for phase in phases)
            phases.append(Phase(name, phase_config, steps, first_epoch))
    return phases


def make_classifier(config: RunConfig, class_count: int) -> keras.Model:
    """Build the classifier of a run with its starting weights, in the strategy's scope that is open."""
    settings = config.model
    backbone = build_backbone(settings.backbone, settings.image_size)
    load_weights(backbone, settings.backbone, settings.weights, config.source_timeout_seconds)
    convention = BACKBONES[settings.backbone].input_convention
    return build_classifier(backbone, convention, class_count, settings.dropout, config.seed)


def phase_batches(phase: Phase, config: RunConfig, examples: Examples, change: Change) -> tf.data.Dataset:
    """Return the training batches of a phase, all its epochs one after the other."""
    return training_batches(
        examples,
        global_batch_size=config.data.global_batch_size,
        steps_per_epoch=phase.steps_per_epoch,
        seed=config.seed,
        first_epoch=phase.first_epoch,
        epochs=phase.config.epochs,
        change=change,
    )


def describe_run(config: RunConfig, prepared: Prepared, path: Path, log: RunLog) -> None:
    """Write what the run will be before it begins: config, environment, and some of its augmented training images."""
    values = to_values(config)
    artifacts.write_json(path / paths.CONFIG, values)
    artifacts.write_json(path / paths.ENVIRONMENT, environment.describe_environment(device_names()))
    rows = [f"|`--{flag}`|`{value}`|" for flag, value in values.items()]
    log.write_text("config", "\n".join(["|flag|value|", "|-|-|", *rows]))
    batches = phase_batches(prepared.phases[0], config, prepared.train, make_augmentation(config.augmentation))
    images, labels = next(iter(batches.unbatch().batch(SHOWN_IMAGES).take(1)))
    titles = [prepared.splits.class_names[label] for label in np.argmax(labels, axis=-1)]
    picture = pictures.image_grid_picture(images.numpy(), titles, columns=8)
    artifacts.write_whole(path / "augmented_images.png", picture)
    log.write_picture("augmented_images", picture)


def save_artifacts(classifier: keras.Model, splits: Splits, path: Path) -> None:
    """Write `model.keras`, and the SavedModel from what `model.keras` gives when it is read back.

    Raises:
        RuntimeError: the weights that are read back are not the trained ones.
    """
    export.save_classifier(classifier, path / paths.MODEL)
    reloaded = keras.models.load_model(path / paths.MODEL, compile=False)
    pairs = zip(classifier.get_weights(), reloaded.get_weights(), strict=True)
    if not all(np.array_equal(trained, read) for trained, read in pairs):
        raise RuntimeError(f"the weights are not the trained ones. Received: {path / paths.MODEL}")
    export.export_saved_model(reloaded, splits.class_names, path / paths.SAVED_MODEL)


def evaluate_artifact(
    classifier: keras.Model, splits: Splits, path: Path, batch_size: int
) -> tuple[Evaluation, Evaluation]:
    """Measure the reloaded SavedModel on test and validation, after checking that it is the trained classifier.

    Raises:
        RuntimeError: its test logits are not the classifier's.
    """
    # TF32 would round the products of a newer GPU to 10 bits, each kernel in its own way; on a CPU it changes nothing.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    model = export.load_saved_model(path)
    test, validation = (
        evaluate(model, split, splits.class_names, batch_size, title)
        for title, split in (("test", splits.test), ("validation", splits.validation))
    )
    trained = predict_all(classifier, splits.test.images, batch_size, "test, model.keras")
    difference = export.check_same_logits(trained, test.logits, str(path / paths.SAVED_MODEL))
    print(f"the reloaded model is the trained one: logits within {difference:.1e} on {len(trained):,} test images")
    return test, validation


def draw(test: Evaluation, splits: Splits, log: RunLog, path: Path) -> None:
    """Draw what people look at into the workdir and into TensorBoard, and close the log."""
    drawn = {
        "confusion_matrix": pictures.confusion_matrix_picture(test.metrics["confusion_matrix"], splits.class_names),
        "predictions": pictures.predictions_picture(
            splits.test.images, splits.test.labels, test.logits, splits.class_names
        ),
        "learning_curves": pictures.learning_curves_picture(log.records),
    }
    for name, picture in drawn.items():
        artifacts.write_whole(path / f"{name}.png", picture)
        log.write_picture(name, picture)
    log.close()
