import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.errors import UserError
from cifar_keras.training.devices import make_strategy

Values = dict[str, NDArray[np.float32]]


def train(output: Path, *, virtual_devices: int = 0, train_batch_norm: int = 0, deterministic: int = 0) -> Values:
    program = Path(__file__).with_name("mirrored_program.py")
    arguments = [str(value) for value in (virtual_devices, train_batch_norm, deterministic, output)]
    environment = {**os.environ, "PYTHONPATH": str(program.parent.parent)}
    subprocess.run([sys.executable, str(program), *arguments], check=True, env=environment)
    return dict(np.load(output))


def test_two_devices_train_the_model_that_one_trains(tmp_path: Path) -> None:
    one = train(tmp_path / "one.npz")
    two = train(tmp_path / "two.npz", virtual_devices=2)
    assert (int(one["replicas"]), int(two["replicas"])) == (1, 2)
    assert int(two["copies"]) == 2
    assert float(two["largest_difference"]) == 0
    assert one.keys() == two.keys()
    for name in one.keys() - {"replicas", "copies"}:
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_batch_norm_that_learns_on_two_devices_stays_one_model(tmp_path: Path) -> None:
    one = train(tmp_path / "one.npz", train_batch_norm=1)
    two = train(tmp_path / "two.npz", virtual_devices=2, train_batch_norm=1)
    assert float(two["largest_difference"]) == 0
    statistics = [name for name in one if "moving_" in name]
    assert len(statistics) == 4
    for name in statistics:
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_deterministic_runs_are_bit_identical(tmp_path: Path) -> None:
    first = train(tmp_path / "first.npz", deterministic=1)
    second = train(tmp_path / "second.npz", deterministic=1)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_a_batch_that_does_not_divide_by_the_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    three = tf.config.list_logical_devices("CPU") * 3
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: three if kind == "CPU" else [])
    with pytest.raises(UserError, match=r"--global_batch_size has to be a multiple of .* 3\. Received: 64$"):
        make_strategy(64)
