import math

import pytest

from cifar_keras.training.schedules import warmup_cosine


@pytest.mark.parametrize(("steps", "fraction"), [(100, 0.1), (100, 0.0), (7, 0.5), (1, 0.1), (3, 1.0)])
def test_warmup_cosine_is_its_formula(steps: int, fraction: float) -> None:
    schedule = warmup_cosine(0.4, steps, fraction)
    warmup = min(round(fraction * steps), steps - 1)
    for step in range(steps):
        if step < warmup:
            wanted = 0.4 * (1 / (warmup + 1) + (1 - 1 / (warmup + 1)) * step / warmup)
        else:
            wanted = 0.2 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        assert float(schedule(step)) == pytest.approx(wanted, abs=1e-6)
    assert float(schedule(steps)) == pytest.approx(0, abs=1e-6)
