"""Optimizers and learning rates: pure policy, from a phase's settings to Keras objects."""

import keras

from cifar_keras.config import OptimizerName, PhaseConfig

# Biases and the scales and shifts of BatchNormalization are few and are not decayed (arXiv:1812.01187, section 3.1).
_UNDECAYED = ["bias", "gamma", "beta"]


def warmup_cosine(peak: float, steps: int, warmup_share: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """Rise linearly to `peak` over the first steps, then fall to 0 along half a cosine (arXiv:1608.03983, equation 5).

    Args:
        peak: highest learning rate.
        steps: steps of the whole phase, at least 1.
        warmup_share: share of them that the rise takes, 0..1.
    """
    warmup_steps = min(round(warmup_share * steps), steps - 1)
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(peak, decay_steps=steps)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / (warmup_steps + 1),  # from 0 the first step would be lost
        warmup_target=peak,
        warmup_steps=warmup_steps,
        decay_steps=steps - warmup_steps,
    )


def make_optimizer(config: PhaseConfig, steps: int) -> keras.optimizers.Optimizer:
    """Build the optimizer of a phase of `steps` steps."""
    rate = warmup_cosine(config.learning_rate, steps, config.warmup_share)
    decay = config.weight_decay or None
    if config.optimizer is OptimizerName.SGD:
        optimizer = keras.optimizers.SGD(rate, momentum=config.momentum, weight_decay=decay)
    else:
        # Keras's AdamW takes no None.
        optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=_UNDECAYED)
    return optimizer
