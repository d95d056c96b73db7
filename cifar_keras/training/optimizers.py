"""Keras's optimizers with updates that are one pass over memory.

Keras composes an update of several operations, each of which reads and writes all variables. TensorFlow has kernels that compute the
same formula in one operation.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cifar_keras.config import OptimizerName, PhaseConfig
from cifar_keras.training.schedules import warmup_cosine

# Biases and the scales and shifts of BatchNormalization are few and are not decayed (arXiv:1812.01187, section 3.1).
_UNDECAYED = ["bias", "gamma", "beta"]


class FusedSGD(keras.optimizers.SGD):
    """Stochastic gradient descent with momentum and decoupled weight decay, like `keras.optimizers.SGD`."""

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Set momentum to `self.momentum * momentum - learning_rate * gradient`, and add it to the variable."""
        # The kernel crashes the process if a dtype is not the variable's.
        rate, gradient = tf.cast(learning_rate, variable.dtype), tf.cast(gradient, variable.dtype)
        # Without momentum Keras creates no variables for it.
        if not self.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=rate,
            grad=gradient,
            momentum=self.momentum,
        )


class FusedAdam(keras.optimizers.Adam):
    """Adam (arXiv:1412.6980, algorithm 1 in the form of section 2) with decoupled weight decay, like `keras.optimizers.AdamW`.

    `first_steps` holds the step at which each variable began to learn; empty means that all began at step 0. The moments of a variable
    begin at 0 at that step, and their bias is corrected (section 3) by the steps since. If it were corrected by all steps of the phase,
    the variable's first update would be 3 times too large.
    """

    first_steps: Sequence[int] = ()

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Move both moments towards the gradient and its square, and the variable by the first moment over the root of the second."""
        rate, gradient = tf.cast(learning_rate, variable.dtype), tf.cast(gradient, variable.dtype)
        index = self._get_variable_index(variable)
        first_step = self.first_steps[index] if self.first_steps else 0
        step = tf.cast(self.iterations + 1 - first_step, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def make_optimizer(config: PhaseConfig, steps: int) -> keras.optimizers.Optimizer:
    """Return the optimizer of a phase of `steps` steps."""
    rate = warmup_cosine(config.learning_rate, steps, config.warmup_share)
    # A decay of 0 would still be a pass over all variables.
    decay = config.weight_decay or None
    if config.optimizer is OptimizerName.SGD:
        optimizer = FusedSGD(rate, momentum=config.momentum, weight_decay=decay)
    else:
        optimizer = FusedAdam(rate, weight_decay=decay)
    optimizer.exclude_from_weight_decay(var_names=_UNDECAYED)
    return optimizer
