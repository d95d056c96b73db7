"""Learning rates over a phase."""

import keras


def warmup_cosine(peak: float, steps: int, warmup_share: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """Rise linearly to `peak` over the first steps, then fall to 0 along half a cosine (arXiv:1608.03983, equation 5).

    Args:
        peak: highest learning rate.
        steps: steps of the whole phase, at least 1.
        warmup_share: fraction of them that the rise takes, 0..1.
    """
    warmup_steps = min(round(warmup_share * steps), steps - 1)
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(peak, decay_steps=steps)
    return keras.optimizers.schedules.CosineDecay(
        # From 0 the first step would be lost.
        initial_learning_rate=peak / (warmup_steps + 1),
        warmup_target=peak,
        warmup_steps=warmup_steps,
        decay_steps=steps - warmup_steps,
    )
