"""The batches of a stage. At the end of a phase they can have whole images instead of mixed ones."""

import functools

import tensorflow as tf

from cifar_keras.config import RunConfig
from cifar_keras.data.augmentation import make_augmentation, without_mixing
from cifar_keras.data.pipeline import PARALLEL_CALLS, training_batches
from cifar_keras.training.phases import Phase
from cifar_keras.training.tasks import Task


def batches_of(config: RunConfig, phase: Phase, steps: range, task: Task) -> tf.data.Dataset:
    """Return a `Batch` for each of some steps of a phase.

    Args:
        config: the config of the run.
        phase: the phase.
        steps: which steps, as `Phase.steps_of` counts them.
        task: what the stage trains.
    """
    make = functools.partial(
        training_batches,
        task.train,
        global_batch_size=config.data.global_batch_size,
        steps_per_epoch=phase.steps_per_epoch,
        seed=config.seed,
        parallel_calls=None if config.deterministic else PARALLEL_CALLS,
    )
    all_steps = phase.steps_of(phase.epochs)
    change = all_steps.stop - round(config.augmentation.unmixed_share * len(all_steps))
    unmixed = without_mixing(config.augmentation)
    if task.cached or unmixed == config.augmentation or change >= steps.stop:
        return make(steps=steps, augment=task.augment)
    whole = make(steps=range(max(steps.start, change), steps.stop), augment=make_augmentation(unmixed))
    if change <= steps.start:
        return whole
    return make(steps=range(steps.start, change), augment=task.augment).concatenate(whole)
