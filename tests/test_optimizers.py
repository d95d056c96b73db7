import math
from typing import Any

import keras
import numpy as np
import pytest

from cifar_keras.config import OptimizerName, PhaseConfig
from cifar_keras.training.optimizers import make_optimizer
from cifar_keras.training.schedules import warmup_cosine


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


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.9), ("sgd", 0.0), ("adamw", 0.0)])
def test_an_optimizer_is_that_of_keras(name: str, momentum: float, weight_decay: float) -> None:
    config = PhaseConfig(
        optimizer=OptimizerName(name), learning_rate=0.05, momentum=momentum, weight_decay=weight_decay
    )
    rate = warmup_cosine(0.05, 20, config.warmup_share)
    plain: Any = (
        keras.optimizers.SGD(rate, momentum=momentum, weight_decay=weight_decay)
        if name == "sgd"
        else keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    )
    plain.exclude_from_weight_decay(var_names=["bias"])
    ours = make_optimizer(config, steps=20)
    generator = np.random.default_rng(0)
    begin = {"kernel": generator.normal(size=(3, 5)), "bias": generator.normal(size=5)}
    gradients = [[generator.normal(size=value.shape) for value in begin.values()] for _ in range(20)]
    ended = []
    for optimizer in (plain, ours):
        variables = [keras.Variable(value, dtype="float32", name=name) for name, value in begin.items()]
        for step in gradients:
            optimizer.apply([keras.ops.cast(gradient, "float32") for gradient in step], variables)
        ended.append([np.asarray(variable) for variable in [*variables, *optimizer.variables]])
    assert [value.shape for value in ended[0]] == [value.shape for value in ended[1]]
    for wanted, value in zip(*ended, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
