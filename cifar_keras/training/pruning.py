"""Magnitude pruning while a phase trains: the smallest weights become zero and stay zero."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifar_keras.training.phases import Phase

# Steps between two choices of the weights that become zero. A choice sorts all kernels, which takes as long as ten training steps.
# For the 23 million weights of a ResNet50 it takes 5 s, and a step of 32 images at 96 px takes 0.5 s (2 cores, AMD EPYC with bfloat16).
STEPS_BETWEEN = 10


def sparsity_at(step: int, phase: Phase) -> float:
    """Return the fraction of zeros after a step of a phase: `final * (1 - (1 - step / ramp)^3)` (arXiv:1710.01878, equation 1).

    Examples:
        >>> from cifar_keras.config import FinetuneConfig
        >>> from cifar_keras.training.phases import Stage
        >>> stages = (Stage(image_size=64, learns_from="", epochs=2),)
        >>> phase = Phase("finetune", FinetuneConfig(), 100, 0, stages, sparsity=0.8, sparsity_ramp=0.5)
        >>> [round(sparsity_at(step, phase), 2) for step in (0, 50, 100, 200)]
        [0.0, 0.7, 0.8, 0.8]
    """
    return phase.sparsity * (1.0 - (1.0 - min(1.0, step / _ramp(phase))) ** 3)


def sparsity_of(model: keras.Model) -> float:
    """Return the fraction of zeros among the weights of all convolution kernels of a model, including those of nested layers."""
    kernels = [np.asarray(kernel) for kernel in _kernels_of(model.weights)]
    total = sum(kernel.size for kernel in kernels)
    return sum(int((kernel == 0).sum()) for kernel in kernels) / total if total else 0.0


def first_sparse_epoch(phase: Phase) -> int:
    """Return the first epoch of a phase that ends at full sparsity, counted through all phases."""
    # Rounded, because 0.28 * 25 is 7.000000000000001.
    return phase.first_epoch + int(np.ceil(round(_ramp(phase) / phase.steps_per_epoch, 9))) - 1


def _ramp(phase: Phase) -> float:
    """Return the number of steps over which the fraction of zeros grows."""
    return max(1.0, phase.sparsity_ramp * phase.steps)


class Prune(keras.callbacks.Callback):
    """A callback that sets the smallest weights of every learning kernel to zero after each step.

    While the fraction of zeros grows, the weights that become zero are chosen every `STEPS_BETWEEN` steps, for each kernel on its own,
    by magnitude. The zeros in the kernels record the choice, so a resumed run needs no other state.

    Args:
        phase: the phase whose model the callback is used with.
        first_step: number of steps of the first epoch that are done already.
    """

    def __init__(self, phase: Phase, *, first_step: int = 0) -> None:
        super().__init__()
        self._phase, self._first_step = phase, first_step
        self._step = 0
        self._masks: list[tuple[Any, tf.Tensor]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the weights of the kernels that are zero already."""
        kernels = _kernels_of(self.model.trainable_weights)
        self._masks = [(kernel, tf.cast(tf.not_equal(kernel.value, 0), kernel.dtype)) for kernel in kernels]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the step counter to the step from which the epoch begins or continues."""
        self._step = (epoch - self._phase.first_epoch) * self._phase.steps_per_epoch + self._first_step
        self._first_step = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set pruned weights to zero again, because the optimizer has moved them. If a choice is due, choose more of them first."""
        self._step += 1
        before, now = (sparsity_at(step, self._phase) for step in (self._step - 1, self._step))
        last = now == self._phase.sparsity != before
        if last or (now > before and self._step % STEPS_BETWEEN == 0):
            # The old mask is applied before the choice, because the optimizer has just moved some pruned weights above the threshold.
            # `now` is the fraction of all zeros, including those weights.
            self._masks = [(kernel, mask * _mask(kernel.value * mask, now)) for kernel, mask in self._masks]
        for kernel, mask in self._masks:
            kernel.assign(kernel.value * mask)


def _mask(kernel: tf.Tensor, sparsity: float) -> tf.Tensor:
    """Return a mask in a kernel's shape: 0 for the smallest magnitudes, 1 for the others. Of equal magnitudes, the first are 0."""
    size = int(np.prod(kernel.shape))
    order = tf.argsort(tf.reshape(tf.abs(kernel), [-1]), stable=True)
    flat = tf.tensor_scatter_nd_update(
        tf.ones([size], kernel.dtype),
        order[: round(sparsity * size), None],
        tf.zeros([round(sparsity * size)], kernel.dtype),
    )
    return tf.reshape(flat, kernel.shape)


def _kernels_of(weights: list[Any]) -> Iterator[Any]:
    """Yield the kernels of convolutions, which have four axes. Biases, normalizations and the head have fewer axes."""
    return (weight for weight in weights if len(weight.shape) == 4)
