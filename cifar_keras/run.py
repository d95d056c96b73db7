"""The story of a run: data, classifier, two phases, artifacts, evaluation, report."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cifar_keras import delivery
from cifar_keras.config import FREE_WHEN_RESUMED, PhaseConfig, RunConfig, other_sets_of, to_values
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.cifar10.layout import Dataset, is_prepared
from cifar_keras.data.cifar10.sources import load_dataset
from cifar_keras.data.pipeline import hold, training_batches, whole_steps
from cifar_keras.data.splits import Splits, make_splits
from cifar_keras.errors import UserError
from cifar_keras.evaluation.test_sets import find_other_sets
from cifar_keras.exporting.saved_model import check_classes, load_saved_model
from cifar_keras.files import environment, paths, workdir, writing
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.models.classifier import build_backbone, build_classifier
from cifar_keras.models.fused import fusions_in_words
from cifar_keras.models.weights import check_weights, load_weights
from cifar_keras.reporting import figures, markdown
from cifar_keras.reporting.tables import metrics_table, with_interval
from cifar_keras.training.checkpoints import Checkpoints
from cifar_keras.training.compute import choose_compute_dtype
from cifar_keras.training.devices import check_no_empty_share, device_names, make_strategy, set_up_devices
from cifar_keras.training.interruption import Interruption
from cifar_keras.training.phases import Phase, PhaseName
from cifar_keras.training.pruning import sparsity_of
from cifar_keras.training.stopwatch import Stopwatch
from cifar_keras.training.tasks import Prepared
from cifar_keras.training.teacher import keep_teacher_logits, read_teacher_logits, teacher_logits, with_teacher
from cifar_keras.training.tracking import RunLog
from cifar_keras.training.trainer import Trainer

SHOWN_IMAGES = 32  # augmented training images in the picture, 4 rows of 8


def train_and_evaluate(config: RunConfig) -> dict[str, Any]:
    """Run a whole config, or what is left of it, and return what `result.json` says.

    Raises:
        UserError: data, weights or the workdir cannot be had, before anything is trained; or the loss diverges.
        InterruptedRunError: the run was asked to end.
        RuntimeError: a reloaded artifact is not the model that was trained.
    """
    path = workdir.check_workdir(config.workdir, config.checkpoint.resume)
    checkpoints = Checkpoints(path / paths.CHECKPOINTS, config.checkpoint.keep_checkpoints)
    interruption = Interruption()
    way_out = "; with room to write, --resume goes on from the state that was saved last"
    with workdir.claimed(path, way_out=way_out), interruption.listening():
        if workdir.holds_run(path):
            check_same_settings(config, path)
        if (path / paths.RESULT).is_file():
            print(f"the run is whole: nothing is left to do in {path}")
            result: dict[str, Any] = writing.read_json(path / paths.RESULT)
        else:
            result = _train_and_evaluate(config, path, checkpoints, interruption)
        checkpoints.remove()
        return result


def check_same_settings(config: RunConfig, path: Path) -> None:
    """Check that a run goes on with the settings that it began with, but for those that do not change what it gives.

    Raises:
        UserError: others differ; the message names them.
    """
    began, now = writing.read_json(path / paths.CONFIG), to_values(config)
    differ = [
        f"--{flag}={now.get(flag)} (was {began.get(flag)})"
        for flag in sorted(began.keys() | now.keys())
        if flag not in FREE_WHEN_RESUMED and began.get(flag) != now.get(flag)
    ]
    if differ:
        raise UserError(
            f"--resume goes on with the settings that the run began with; others are: {', '.join(differ)}. Received: {path}"
        )


def _train_and_evaluate(
    config: RunConfig, path: Path, checkpoints: Checkpoints, interruption: Interruption
) -> dict[str, Any]:
    watch = Stopwatch()
    commit = environment.source_commit()  # now, since the files may be others when the run ends
    state = checkpoints.newest()
    with watch.time("prepare"):
        prepared = prepare(config if state is None else still_needed(config, path))
    if state is not None:  # a measurement can come out differently
        prepared = prepared._replace(compute_dtype=state.values["compute_dtype"])
    log = RunLog(path)
    describe_run(config, prepared, path, log)
    with watch.time("prepare"):
        prepared = ask_teacher(config, prepared, path)
    trainer = Trainer(config, prepared, log=log, watch=watch, checkpoints=checkpoints, interruption=interruption)
    trainer.train(state)
    with watch.time("evaluate"):
        measured = _deliver(config, prepared, path, log)
    summaries = trainer.summaries
    result = {
        "test": measured.test.metrics,
        "validation": measured.validation.metrics,
        "calibration": {"temperature": measured.temperature, "test": measured.calibrated_test},
        "minutes": watch.minutes(),
        "images_per_second": {"head": None, "finetune": None}
        | {name: summary.images_per_second for name, summary in summaries.items()}
        | {"evaluate": measured.test.images_per_second},
        "compute_dtype": prepared.compute_dtype,
        "phases": {name: summary._asdict() for name, summary in summaries.items()},
        "sparsity": sparsity_of(prepared.classifier.get_layer("backbone")),
        "rollbacks": trainer.rollbacks,
        "states": trainer.saving,
        "config": to_values(config),
        "environment": writing.read_json(path / paths.ENVIRONMENT),
        "seed": config.seed,
        "commit": commit,
    }
    print(metrics_table(measured.test.metrics, f"test, {path / paths.SAVED_MODEL}"))
    print(
        f"calibration error {with_interval(measured.test.metrics, 'calibration_error')}; "
        f"at temperature {measured.temperature:.2f}: {with_interval(measured.calibrated_test, 'calibration_error')}"
    )
    delivery.write_report(path, result, log.records, measured.test.logits, prepared.splits)
    writing.write_json(path / paths.RESULT, result)  # last: where it is, the run is whole
    return result


def _deliver(config: RunConfig, prepared: Prepared, path: Path, log: RunLog) -> delivery.Measured:
    batch_size, seed = config.data.global_batch_size, config.seed
    measured = delivery.measure(prepared.classifier, prepared.splits, path, batch_size=batch_size, seed=seed)
    delivery.draw(prepared.classifier, measured, prepared.splits, log, path)
    delivery.evaluate_further(
        measured.model,
        measured.test.logits,
        prepared.splits,
        path,
        config.evaluation,
        data_dir=config.data.data_dir,
        temperature=measured.temperature,
        batch_size=batch_size,
        seed=seed,
    )
    return measured


def still_needed(config: RunConfig, path: Path) -> RunConfig:
    """Return the config of what a run that goes on still has to read: its state has the weights, and its workdir the teacher's logits."""
    distillation, data = config.distillation, config.data
    if read_teacher_logits(_teacher_file(path)) is not None:
        distillation = dataclasses.replace(distillation, teacher="")
    if data.archive and is_prepared(data.data_dir):
        data = dataclasses.replace(data, archive="")
    model = dataclasses.replace(config.model, weights="none")
    return dataclasses.replace(config, model=model, distillation=distillation, data=data)


def prepare(config: RunConfig) -> Prepared:
    """Set up the devices, and load data and weights."""
    set_up_devices(config.virtual_devices, deterministic=config.deterministic)
    keras.utils.set_random_seed(config.seed)
    strategy = make_strategy(config.data.global_batch_size)
    print(f"devices: {', '.join(device_names())}", flush=True)
    compute_dtype, reason = choose_compute_dtype(config.compute.compute_dtype, deterministic=config.deterministic)
    print(f"activations in {compute_dtype}: {reason}", flush=True)
    check_weights(config.model.weights)  # before the data, which can take minutes
    named = config.distillation.teacher
    teacher = load_saved_model(paths.expand_model("teacher", named), "teacher") if named else None
    splits = load_splits(config)
    if teacher is not None:
        check_classes(teacher, splits.class_names, named, "teacher")
    find_other_sets(other_sets_of(config.evaluation), config.data.data_dir)  # rather now than after the training
    class_count = len(splits.class_names)
    train_examples, train_split = hold(splits.train, class_count)
    validation_examples, validation_split = hold(splits.validation, class_count)
    splits = splits._replace(train=train_split, validation=validation_split)
    phases = plan_phases(config, len(splits.train.labels))
    replicas = strategy.num_replicas_in_sync
    check_no_empty_share(len(splits.validation.labels), config.data.global_batch_size, replicas)
    with strategy.scope():
        classifier = make_classifier(config, class_count)
    print(f"{config.model.backbone}: {fusions_in_words(classifier.get_layer('backbone'))}", flush=True)
    return Prepared(splits, train_examples, validation_examples, phases, strategy, classifier, compute_dtype, teacher)


def ask_teacher(config: RunConfig, prepared: Prepared, path: Path) -> Prepared:
    """Put the teacher's logits behind the labels, if there is a teacher."""
    if not config.distillation.teacher:
        return prepared
    file = _teacher_file(path)
    logits = read_teacher_logits(file)
    if logits is None:
        logits = teacher_logits(prepared.teacher, prepared.splits, config.data.global_batch_size)
        keep_teacher_logits(logits, file)
    return prepared._replace(
        train=with_teacher(prepared.train, logits["train"]),
        validation=with_teacher(prepared.validation, logits["validation"]),
        teacher=None,  # it has said all that it knows
        distillation=config.distillation,
    )


def _teacher_file(path: Path) -> Path:
    return path / paths.CHECKPOINTS / "teacher_logits.npz"


def load_images(config: RunConfig) -> Dataset:
    """Load the verified images of a run."""
    data = config.data
    return load_dataset(data.data_source, data.data_dir, data.archive, config.source_timeout_seconds, config.seed)


def load_splits(config: RunConfig) -> Splits:
    """Load the verified images of a run and divide them."""
    return make_splits(load_images(config), config.data.validation_share, config.seed)


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


def make_classifier(config: RunConfig, class_count: int, *, fetch: bool = True) -> keras.Model:
    """Build the classifier of a run with its starting weights, in the strategy's scope that is open.

    Args:
        config: of the run.
        class_count: number of logits.
        fetch: weights may come from the network.
    """
    settings = config.model
    backbone = build_backbone(settings.backbone, settings.image_size)
    load_weights(backbone, settings.backbone, settings.weights, config.source_timeout_seconds, fetch=fetch)
    convention = BACKBONES[settings.backbone].input_convention
    return build_classifier(backbone, convention, class_count, settings.dropout, config.seed)


def describe_run(config: RunConfig, prepared: Prepared, path: Path, log: RunLog) -> None:
    """Write what the run will be before it begins: config, environment, and some of its augmented training images."""
    values = to_values(config)
    writing.write_json(path / paths.CONFIG, values)
    writing.write_json(path / paths.ENVIRONMENT, environment.describe_environment(device_names()))
    rows = [f"|`--{flag}`|{markdown.code(value)}|" for flag, value in values.items()]
    log.write_text("config", "\n".join(["|flag|value|", "|-|-|", *rows]))
    batches = training_batches(
        prepared.train,
        global_batch_size=min(SHOWN_IMAGES, prepared.train.total),
        steps_per_epoch=1,
        seed=config.seed,
        first_epoch=0,
        epochs=1,
        change=make_augmentation(config.augmentation),
        parallel_calls=None,
    )
    images, labels = next(iter(batches))
    titles = [prepared.splits.class_names[label] for label in np.argmax(labels, axis=-1)]
    picture = figures.image_grid_picture(images.numpy(), titles, columns=8)
    writing.write_whole(path / "augmented_images.png", picture)
    log.write_picture("augmented_images", picture)
