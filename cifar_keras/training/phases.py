"""A phase is data: what learns, how, for how long.

Keras ignores a change of `trainable` after compile, so each phase builds and compiles a model of its own.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import keras
import tensorflow as tf

from cifar_keras.config import DistillationConfig, FinetuneConfig, PhaseConfig, RunConfig
from cifar_keras.data.pipeline import whole_steps
from cifar_keras.training.optimizers import make_optimizer
from cifar_keras.training.teacher import DistillationLoss

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


def set_trainable(classifier: keras.Model, config: PhaseConfig, *, synchronize: bool) -> None:
    """Freeze what does not learn in a phase.

    Args:
        classifier: what `models.classifier.build_classifier` made. Models that share its layers have to be built afterwards.
        config: of the phase.
        synchronize: let BatchNormalization that learns share its statistics over devices.
    """
    backbone = classifier.get_layer("backbone")
    if isinstance(config, FinetuneConfig):
        _unfreeze(backbone, config, synchronize=synchronize)
    else:
        backbone.trainable = False


def compile_phase(
    model: keras.Model,
    phase: Phase,
    strategy: tf.distribute.Strategy,
    *,
    compute_dtype: str = "float32",
    distillation: DistillationConfig | None = None,
) -> None:
    """Compile a model for a phase inside the strategy's scope.

    Args:
        model: the classifier, or what shares its variables, built since `set_trainable`.
        phase: the phase that comes next.
        strategy: the strategy of the run.
        compute_dtype: of the activations; in float16 small gradients would vanish if the loss were not scaled.
        distillation: how to learn from a teacher, whose logits are behind the labels; None where there is none.
    """
    smoothing = phase.config.label_smoothing
    with strategy.scope():
        optimizer = make_optimizer(phase.config, phase.steps)
        if compute_dtype == "float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(
            optimizer=optimizer,
            loss=DistillationLoss(distillation, smoothing)
            if distillation
            else keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, name="loss"),
            metrics=[
                _of_labels(keras.metrics.categorical_accuracy, "accuracy"),
                # The loss without label smoothing, which is the same measure in both phases and at the evaluation.
                _of_labels(functools.partial(keras.losses.categorical_crossentropy, from_logits=True), "cross_entropy"),
            ],
            jit_compile=False,  # XLA makes a ResNet50's training step on a CPU half as fast
        )


def fit_phase(
    model: keras.Model,
    phase: Phase,
    batches: tf.data.Dataset,
    validation_batches: tf.data.Dataset,
    callbacks: Sequence[keras.callbacks.Callback],
    *,
    first_epoch: int | None = None,
    first_step: int = 0,
) -> None:
    """Fit a phase, or what is left of it.

    Args:
        model: what `compile_phase` compiled.
        phase: the same phase.
        batches: inputs of the model and one-hot labels, for all steps that are to be done.
        validation_batches: the validation split, gone through at the end of each epoch.
        callbacks: called by Keras.
        first_epoch: the epoch to begin with; None is the phase's first.
        first_step: steps of that epoch that have been done.
    """
    first = phase.first_epoch if first_epoch is None else first_epoch
    last = phase.first_epoch + phase.config.epochs
    begins = f", from step {first_step} of epoch {first - phase.first_epoch + 1}" if first_epoch is not None else ""
    print(f"{phase.name} phase: {phase.config.epochs} epochs of {phase.steps_per_epoch} steps{begins}", flush=True)

    def fit(batches: tf.data.Dataset, epochs: range, steps: int) -> None:
        model.fit(
            batches,
            initial_epoch=epochs.start,
            epochs=epochs.stop,
            steps_per_epoch=steps,
            validation_data=validation_batches,
            callbacks=list(callbacks),
            shuffle=False,  # the batches are
            verbose=1 if sys.stdout.isatty() else 2,  # a line an epoch where a bar would fill a file
        )

    if first_step:  # Keras knows epochs of one length only
        left = phase.steps_per_epoch - first_step
        fit(batches.take(left), range(first, first + 1), left)
        if model.stop_training:
            return
        batches, first = batches.skip(left), first + 1
    if first < last:
        fit(batches, range(first, last), phase.steps_per_epoch)


def _of_labels(function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], name: str) -> keras.metrics.Metric:
    """Make a metric of a function of labels and logits; a teacher's logits, which may be behind the labels, are left out."""

    def of_labels(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return function(y_true[:, : y_pred.shape[-1]], y_pred)

    return keras.metrics.MeanMetricWrapper(of_labels, name=name)


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
