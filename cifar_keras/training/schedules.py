"""Schedules of the learning rate over a phase."""

import keras


def warmup_cosine(peak: float, steps: int, warmup_share: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return a schedule that rises linearly to `peak`, then falls to 0 along half a cosine (arXiv:1608.03983, equation 5).

    Args:
        peak: highest learning rate.
        steps: steps of the whole phase, at least 1.
        warmup_share: fraction of the steps that the rise takes, 0..1.

    Examples:
        >>> rate = warmup_cosine(peak=0.1, steps=10, warmup_share=0.4)
        >>> [round(float(rate(step)), 3) for step in (0, 2, 4, 7)]
        [0.02, 0.06, 0.1, 0.05]
    """
    warmup_steps = min(round(warmup_share * steps), steps - 1)
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(peak, decay_steps=steps)
    return keras.optimizers.schedules.CosineDecay(
        # With a rate of 0 the first step would change nothing.
        initial_learning_rate=peak / (warmup_steps + 1),
        warmup_target=peak,
        warmup_steps=warmup_steps,
        decay_steps=steps - warmup_steps,
    )
