import math

import keras
import numpy as np
import pytest

from cifar_keras.config import OptimizerName, PhaseConfig
from cifar_keras.training.schedules import make_optimizer, warmup_cosine


@pytest.mark.parametrize(("steps", "share"), [(100, 0.1), (100, 0.0), (7, 0.5), (1, 0.1), (3, 1.0)])
def test_warmup_cosine_is_its_formula(steps: int, share: float) -> None:
    schedule = warmup_cosine(0.4, steps, share)
    warmup = min(round(share * steps), steps - 1)
    for step in range(steps):
        if step < warmup:
            wanted = 0.4 * (1 / (warmup + 1) + (1 - 1 / (warmup + 1)) * step / warmup)
        else:
            wanted = 0.2 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        assert float(schedule(step)) == pytest.approx(wanted, abs=1e-6)
    assert float(schedule(steps)) == pytest.approx(0, abs=1e-6)


def one_step(config: PhaseConfig, names: list[str]) -> list[float]:
    """Values of variables at 1 after a step with gradient 0: only the decay moves them."""
    variables = [keras.Variable(np.ones((2,)), name=name) for name in names]
    optimizer = make_optimizer(config, steps=10)
    optimizer.apply([np.zeros((2,)) for _ in variables], variables)
    return [float(np.asarray(variable)[0]) for variable in variables]


@pytest.mark.parametrize("optimizer", list(OptimizerName))
def test_weight_decay_is_decoupled_and_leaves_biases_and_norms(optimizer: OptimizerName) -> None:
    config = PhaseConfig(optimizer=optimizer, learning_rate=0.5, weight_decay=0.1, warmup_share=0.0)
    kernel, bias, gamma, beta = one_step(config, ["kernel", "bias", "gamma", "beta"])
    assert kernel == pytest.approx(1 - 0.5 * 0.1, rel=1e-5)
    assert bias == gamma == beta == 1


def test_sgd_is_momentum_by_hand() -> None:
    config = PhaseConfig(learning_rate=0.5, momentum=0.8, warmup_share=0.0)
    optimizer = make_optimizer(config, steps=10)
    variable = keras.Variable(np.ones(()))
    value, velocity = 1.0, 0.0
    for step, gradient in enumerate((0.3, -0.2, 0.1)):
        optimizer.apply([np.asarray(gradient, np.float32)], [variable])
        rate = 0.25 * (1 + math.cos(math.pi * step / 10))
        velocity = 0.8 * velocity - rate * gradient
        value += velocity
    assert float(np.asarray(variable)) == pytest.approx(value, rel=1e-5)
