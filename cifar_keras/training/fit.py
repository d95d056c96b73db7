"""Prepare and run Keras's `fit`: freeze layers, compile the model, and train the epochs of a phase.

Keras ignores a change of `trainable` after compile, so each stage builds and compiles a model of its own.
"""

import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.config import ChooseBy
from cifar_keras.data.pipeline import Batch, Targets
from cifar_keras.training.macro_metrics import macro_metrics
from cifar_keras.training.optimizers import make_optimizer
from cifar_keras.training.phases import Phase
from cifar_keras.training.teacher import Distillation


def set_trainable(
    classifier: keras.Model, learns_from: str | None, *, train_batch_norm: bool = False, synchronize: bool = False
) -> None:
    """Freeze the layers that do not learn in a stage.

    Args:
        classifier: what `models.classifier.build_classifier` returned. Models that share its layers have to be built afterwards.
        learns_from: the first stage of the backbone that learns; "" means the whole backbone learns, None means nothing does.
        train_batch_norm: whether BatchNormalization learns too, in the part of the backbone that learns.
        synchronize: whether learning BatchNormalization shares its statistics over the devices.
    """
    backbone = classifier.get_layer("backbone")
    # This sets every layer, so it comes first.
    backbone.trainable = learns_from is not None
    learns = learns_from == ""
    for layer in backbone.layers if learns_from is not None else []:
        learns = learns or layer.name.startswith(learns_from)
        layer.trainable = learns
        if isinstance(layer, keras.layers.BatchNormalization):
            # `training=False` at the call would not hold in `fit`; `trainable=False` does (keras#20285).
            layer.trainable = learns and train_batch_norm
            # Otherwise the devices' statistics drift apart, and the saved model is none of the trained ones.
            layer.synchronized = synchronize and layer.trainable


class Learner(keras.Model):
    """A network whose `fit` takes `Targets`. The `fit` of Keras's own models takes labels alone.

    Args:
        network: the network whose layers it shares.
        distillation: how to learn from a teacher; None without a teacher.
        class_weights: float32 `[classes]`, how much an image of each class counts in the training loss; None if all count 1.
    """

    def __init__(
        self,
        network: keras.Model,
        distillation: Distillation | None = None,
        class_weights: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(network.inputs, network.outputs, name=network.name)
        self._distillation, self._class_weights = distillation, class_weights

    def compute_loss(
        self,
        x: tf.Tensor,
        y: Targets,
        y_pred: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Return the mean loss of a batch. In training the loss of its labels is weighted by class; the distance from a teacher is not."""
        if training and self._class_weights is not None:
            # Of a mixed label, the mixed weight. Keras divides the sum by the images, not by their weights. With those, an image would
            # count for more in a batch without rare classes, and the devices' means would not add up to that of the batch.
            sample_weight = tf.reduce_sum(y["labels"] * self._class_weights, axis=-1)
        from_labels = super().compute_loss(x, y["labels"], y_pred, sample_weight, training)
        return self._distillation.add(from_labels, Batch(x, y), y_pred) if self._distillation else from_labels

    def compute_metrics(
        self, x: tf.Tensor, y: Targets, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> dict[str, Any]:
        """Return the metrics of a batch, measured against its labels."""
        return dict(super().compute_metrics(x, y["labels"], y_pred, sample_weight))


def compile_phase(
    model: Learner,
    phase: Phase,
    strategy: tf.distribute.Strategy,
    *,
    compute_dtype: str = "float32",
    choose_by: ChooseBy = ChooseBy.ACCURACY,
) -> None:
    """Compile a model for a phase inside the strategy's scope.

    Args:
        model: a learner of the classifier, or of a model that shares its variables; built after `set_trainable`.
        phase: the phase that comes next.
        strategy: the strategy of the run.
        compute_dtype: dtype of the activations. In float16 the loss is scaled, because small gradients would vanish otherwise.
        choose_by: the metric that chooses the best epoch, which is measured too.
    """
    with strategy.scope():
        optimizer = make_optimizer(phase.config, phase.steps)
        if compute_dtype == "float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=phase.config.label_smoothing, name="loss"
            ),
            metrics=[
                keras.metrics.CategoricalAccuracy(name="accuracy"),
                # The loss without label smoothing, class weights and teacher. It is the same metric in all phases and in the evaluation.
                keras.metrics.CategoricalCrossentropy(name="cross_entropy", from_logits=True),
                *macro_metrics(choose_by, model.output_shape[-1]),
            ],
            # XLA makes a ResNet50's training step on a CPU half as fast.
            jit_compile=False,
        )


def fit_phase(
    model: keras.Model,
    phase: Phase,
    batches: tf.data.Dataset,
    validation_batches: tf.data.Dataset,
    callbacks: Sequence[keras.callbacks.Callback],
    *,
    epochs: range | None = None,
    first_step: int = 0,
) -> None:
    """Train a model for epochs of a phase.

    Args:
        model: the model that `compile_phase` compiled.
        phase: the phase that it was compiled for.
        batches: a `Batch` for each step that is left.
        validation_batches: the validation split, evaluated at the end of each epoch.
        callbacks: callbacks that Keras calls.
        epochs: which epochs, counted through all phases; None means all epochs of the phase.
        first_step: number of steps of the first of these epochs that are done already.
    """
    first, last = (epochs.start, epochs.stop) if epochs is not None else (phase.epochs.start, phase.epochs.stop)

    def fit(batches: tf.data.Dataset, epochs: range, steps: int) -> None:
        model.fit(
            batches,
            initial_epoch=epochs.start,
            epochs=epochs.stop,
            steps_per_epoch=steps,
            validation_data=validation_batches,
            callbacks=list(callbacks),
            # The batches are shuffled already.
            shuffle=False,
            # In a file, a progress bar would take many lines; 2 prints one line per epoch.
            verbose=1 if sys.stdout.isatty() else 2,
        )

    # In one `fit` all epochs have the same length, so the rest of a begun epoch is a `fit` of its own.
    if first_step:
        left = phase.steps_per_epoch - first_step
        fit(batches.take(left), range(first, first + 1), left)
        if model.stop_training:
            return
        batches, first = batches.skip(left), first + 1
    if first < last:
        fit(batches, range(first, last), phase.steps_per_epoch)
