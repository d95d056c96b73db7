"""Rehearse a run: set it up, train a few steps of each stage, and say what it would take. No workdir is made."""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cifar_keras.config import RunConfig
from cifar_keras.data.pipeline import PARALLEL_CALLS, training_batches
from cifar_keras.files.environment import peak_gib
from cifar_keras.models.classifier import assemble
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.inference import predict_part
from cifar_keras.training.fit import compile_phase
from cifar_keras.training.operations import count_operations
from cifar_keras.training.phases import Phase, Stage, stage_in_words
from cifar_keras.training.setup import RunSetup, set_up
from cifar_keras.training.tasks import freeze, from_images

# The first step builds the graph, and the second one still fills caches.
WARM_UP_STEPS, TIMED_STEPS = 2, 5


class StageEstimate(NamedTuple):
    """What a stage of a phase would take."""

    title: str
    steps: int
    learning_parameters: int
    pflop: float  # of the whole stage, with its validation, in 10^15 floating point operations
    minutes: float  # the same
    cached_features: bool


def rehearse(config: RunConfig) -> str:
    """Return a text about a run: its classes and images, and what its stages would take.

    Raises:
        UserError: as in `setup.set_up`.
    """
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(config, Path(folder))
    return describe(config, setup, estimate_stages(config, setup))


def estimate_stages(config: RunConfig, setup: RunSetup) -> list[StageEstimate]:
    """Return what each stage of a run would take. The weights of the classifier change.

    Args:
        config: the config of the run.
        setup: what the run trains with.
    """
    return [
        _estimate(config, setup, phase, left.stage, stage_in_words(phase, left))
        for phase in setup.phases
        for left in phase.stages_from(phase.first_epoch)
    ]


def describe(config: RunConfig, setup: RunSetup, estimates: list[StageEstimate]) -> str:
    """Return a text about a run that was rehearsed: its classes and images, its stages, and what it takes altogether."""
    names, counts = setup.dataset.class_names, dict(setup.dataset.contents.images)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} others" if len(names) > 10 else "")
    lines = [
        f"{config.data.dataset}: {len(names)} classes: {shown}",
        f"images: {', '.join(f'{count:,} {name}' for name, count in counts.items())}; "
        f"{' x '.join(map(str, setup.dataset.train.images.shape[1:3]))} px",
        f"parameters: {setup.classifier.count_params():,}",
    ]
    for each in estimates:
        cached = ", from cached features" if each.cached_features else ""
        lines.append(
            f"{each.title}: {each.steps:,} steps{cached}, {each.learning_parameters:,} parameters learn, {each.pflop:.3g} PFLOP, "
            f"{each.minutes:.1f} minutes"
        )
    measuring = _forward_seconds(config, setup, config.model.image_size) * (counts["validation"] + counts["test"]) / 60
    total = measuring + sum(each.minutes for each in estimates)
    lines += [
        f"measuring validation and test: {measuring:.1f} minutes",
        f"in all: {sum(each.pflop for each in estimates):.3g} PFLOP and about {total:.1f} minutes, besides the export, the report and "
        f"what a teacher is asked before training; memory up to now: {peak_gib():.1f} GiB",
        "this was a dry run: no workdir was made",
    ]
    return "\n".join(lines)


def _estimate(config: RunConfig, setup: RunSetup, phase: Phase, stage: Stage, title: str) -> StageEstimate:
    cached = freeze(config, setup, phase, stage) is not None
    ahead, per_epoch, _ = count_operations(config, setup, phase, stage, cached=cached)
    steps, seconds = stage.epochs * phase.steps_per_epoch, _forward_seconds(config, setup, stage.image_size)
    if cached:
        # Computing the features takes nearly all of the time.
        images = setup.train.total * (2 if config.augmentation.flip else 1) + setup.validation.total
        whole = seconds * images
    else:
        whole = _step_seconds(config, setup, phase, stage) * steps + seconds * stage.epochs * setup.validation.total
    learning = sum(int(np.prod(weight.shape)) for weight in setup.classifier.trainable_weights)
    return StageEstimate(title, steps, learning, (ahead + stage.epochs * per_epoch) / 1e15, whole / 60, cached)


def _step_seconds(config: RunConfig, setup: RunSetup, phase: Phase, stage: Stage) -> float:
    """Return the seconds of a training step."""
    with setup.strategy.scope():
        task = from_images(config, setup, stage)
    train = task.train
    if setup.teacher is not None and not setup.teacher.is_asked_in_steps:
        # A step takes as long with any logits, and asking the teacher about all images takes minutes.
        blank = tf.zeros((train.total, 1, len(setup.dataset.class_names)))
        train = train._replace(targets={**train.targets, "teacher": blank})
    compile_phase(task.model, phase, setup.strategy, compute_dtype=setup.compute_dtype)
    batches = training_batches(
        train,
        global_batch_size=config.data.global_batch_size,
        steps_per_epoch=phase.steps_per_epoch,
        steps=range(WARM_UP_STEPS + TIMED_STEPS),
        seed=config.seed,
        augment=task.augment,
        parallel_calls=None if config.deterministic else PARALLEL_CALLS,
    )
    ends: list[float] = []
    note_time = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
    task.model.fit(
        batches, steps_per_epoch=WARM_UP_STEPS + TIMED_STEPS, callbacks=[note_time], shuffle=False, verbose=0
    )
    return (ends[-1] - ends[WARM_UP_STEPS - 1]) / TIMED_STEPS


def _forward_seconds(config: RunConfig, setup: RunSetup, image_size: int) -> float:
    """Return the seconds in which the network classifies an image of a size."""
    shape = (image_size, image_size, 3)
    with setup.strategy.scope():
        twin = fused_twin(
            setup.classifier.get_layer("backbone"), compute_dtype=setup.compute_dtype, input_shape=shape, folded=True
        )
        network = assemble(setup.classifier, twin)
    batch_size = config.data.global_batch_size
    images = setup.dataset.validation.images[: TIMED_STEPS * batch_size]
    predict_part(network, images[:batch_size], batch_size)
    started = time.perf_counter()
    predict_part(network, images, batch_size)
    return (time.perf_counter() - started) / len(images)
