"""A phase is data; one function sets it. Keras ignores a change of `trainable` after compile, so setting recompiles."""

import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

import keras
import tensorflow as tf

from cifar_keras.config import FinetuneConfig, PhaseConfig
from cifar_keras.training.schedules import make_optimizer

PhaseName = Literal["head", "finetune"]


class Phase(NamedTuple):
    """One phase of a run: what learns, how, and for how long."""

    name: PhaseName
    config: PhaseConfig
    steps_per_epoch: int  # of the global batch size
    first_epoch: int  # epochs are counted on through the phases

    @property
    def steps(self) -> int:
        """Steps of the whole phase."""
        return self.config.epochs * self.steps_per_epoch


def set_phase(classifier: keras.Model, phase: Phase, strategy: tf.distribute.Strategy) -> None:
    """Freeze what does not learn in this phase, then compile inside the strategy's scope.

    Args:
        classifier: what `models.classifier.build_classifier` made, inside the same scope.
        phase: the phase that comes next.
        strategy: the strategy of the run.
    """
    backbone = classifier.get_layer("backbone")
    if isinstance(phase.config, FinetuneConfig):
        _unfreeze(backbone, phase.config, synchronize=strategy.num_replicas_in_sync > 1)
    else:
        backbone.trainable = False
    with strategy.scope():
        classifier.compile(
            optimizer=make_optimizer(phase.config, phase.steps),
            loss=keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=phase.config.label_smoothing, name="loss"
            ),
            metrics=[
                keras.metrics.CategoricalAccuracy(name="accuracy"),
                # The loss without label smoothing, which is the same measure in both phases and at the evaluation.
                keras.metrics.CategoricalCrossentropy(from_logits=True, name="cross_entropy"),
            ],
            jit_compile=False,  # XLA makes a ResNet50's training step on a CPU half as fast
        )


def fit_phase(
    classifier: keras.Model,
    phase: Phase,
    batches: tf.data.Dataset,
    validation_batches: tf.data.Dataset,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Fit a phase that has been set.

    Args:
        classifier: the classifier, as `set_phase` left it.
        phase: the same phase.
        batches: uint8 images and one-hot labels, `phase.steps` batches.
        validation_batches: the validation split, gone through at the end of each epoch.
        callbacks: called by Keras.
    """
    print(f"{phase.name} phase: {phase.config.epochs} epochs of {phase.steps_per_epoch} steps", flush=True)
    classifier.fit(
        batches,
        initial_epoch=phase.first_epoch,
        epochs=phase.first_epoch + phase.config.epochs,
        steps_per_epoch=phase.steps_per_epoch,
        validation_data=validation_batches,
        callbacks=list(callbacks),
        shuffle=False,  # the batches are
        verbose=1 if sys.stdout.isatty() else 2,  # a line an epoch where a bar would fill a file
    )


def _unfreeze(backbone: keras.Model, config: FinetuneConfig, *, synchronize: bool) -> None:
    backbone.trainable = True  # this sets every layer, so it comes first
    learns = not config.unfreeze_from
    for layer in backbone.layers:
        learns = learns or layer.name.startswith(config.unfreeze_from)
        layer.trainable = learns
        if isinstance(layer, keras.layers.BatchNormalization):
            # `training=False` at the call would not hold in `fit`; `trainable=False` does (keras#20285).
            layer.trainable = learns and config.train_batch_norm
            # Without it the devices' statistics drift apart and the saved model is none of the trained ones.
            layer.synchronized = synchronize and layer.trainable
