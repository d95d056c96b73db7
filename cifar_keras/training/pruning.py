"""Magnitude pruning while a phase trains: the smallest weights become zero, and stay it."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cifar_keras.training.phases import Phase

# Steps between two choices of which weights are zero. A choice sorts all kernels, which takes as long as ten training steps: 5 s for
# the 23 million weights of a ResNet50, where a step of 32 images at 96 px takes 0.5 s (2 cores, AMD EPYC with bfloat16).
STEPS_BETWEEN = 10


def sparsity_at(step: int, phase: Phase) -> float:
    """Return the fraction of zeros after a step of a phase: `final * (1 - (1 - step / ramp)^3)` (arXiv:1710.01878, equation 1)."""
    return phase.sparsity * (1.0 - (1.0 - min(1.0, step / _ramp(phase))) ** 3)


def sparsity_of(model: keras.Model) -> float:
    """Return the fraction of zeros among the weights of all convolution kernels of a model, those inside of its layers too."""
    kernels = [np.asarray(kernel) for kernel in _kernels_of(model.weights)]
    total = sum(kernel.size for kernel in kernels)
    return sum(int((kernel == 0).sum()) for kernel in kernels) / total if total else 0.0


def first_sparse_epoch(phase: Phase) -> int:
    """Return the first epoch of a phase, counted on through the phases, at whose end nothing more is pruned."""
    # Rounded, because 0.28 * 25 is 7.000000000000001.
    return phase.first_epoch + int(np.ceil(round(_ramp(phase) / phase.steps_per_epoch, 9))) - 1


def _ramp(phase: Phase) -> float:
    """Return the steps over which the fraction of zeros grows."""
    return max(1.0, phase.sparsity_ramp * phase.steps)


class Prune(keras.callbacks.Callback):
    """Sets the smallest weights of every kernel that learns to zero after each step.

    Which are zero is chosen for each kernel on its own, by magnitude, every `STEPS_BETWEEN` steps while their fraction grows. The
    kernels themselves tell it, so that a run that goes on needs no other state.

    Args:
        phase: the phase, whose model this is used with.
        first_step: steps of its first epoch that are done.
    """

    def __init__(self, phase: Phase, *, first_step: int = 0) -> None:
        super().__init__()
        self._phase, self._first_step = phase, first_step
        self._step = 0
        self._masks: list[tuple[Any, tf.Tensor]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Read from the kernels which weights are zero already."""
        kernels = _kernels_of(self.model.trainable_weights)
        self._masks = [(kernel, tf.cast(tf.not_equal(kernel.value, 0), kernel.dtype)) for kernel in kernels]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count on from where the epoch begins."""
        self._step = (epoch - self._phase.first_epoch) * self._phase.steps_per_epoch + self._first_step
        self._first_step = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set pruned weights, which the optimizer has moved, to zero again; if it is time to, choose more of them first."""
        self._step += 1
        before, now = (sparsity_at(step, self._phase) for step in (self._step - 1, self._step))
        last = now == self._phase.sparsity != before
        if last or (now > before and self._step % STEPS_BETWEEN == 0):
            # The masks come first: the optimizer has just moved some of the weights that are zero already above the threshold, and
            # `now` is the fraction of all zeros, theirs included.
            self._masks = [(kernel, mask * _mask(kernel.value * mask, now)) for kernel, mask in self._masks]
        for kernel, mask in self._masks:
            kernel.assign(kernel.value * mask)


def _mask(kernel: tf.Tensor, sparsity: float) -> tf.Tensor:
    """Return 0 for the smallest magnitudes of a kernel and 1 for the others, in its shape; of equal ones the first are 0."""
    size = int(np.prod(kernel.shape))
    order = tf.argsort(tf.reshape(tf.abs(kernel), [-1]), stable=True)
    flat = tf.tensor_scatter_nd_update(
        tf.ones([size], kernel.dtype),
        order[: round(sparsity * size), None],
        tf.zeros([round(sparsity * size)], kernel.dtype),
    )
    return tf.reshape(flat, kernel.shape)


def _kernels_of(weights: list[Any]) -> Iterator[Any]:
    """Yield the kernels of convolutions, which have four axes; biases, normalizations and the head have fewer."""
    return (weight for weight in weights if len(weight.shape) == 4)
