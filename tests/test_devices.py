import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from cifar_keras.errors import UserError
from cifar_keras.training.devices import check_no_idle_device, make_strategy, set_up_devices

Values = dict[str, NDArray[np.float32]]


def train(output: Path, *, virtual_devices: int = 0, train_batch_norm: int = 0, deterministic: int = 0) -> Values:
    program = Path(__file__).with_name("mirrored_program.py")
    arguments = [str(value) for value in (virtual_devices, train_batch_norm, deterministic, output)]
    environment = {**os.environ, "PYTHONPATH": str(program.parent.parent)}
    subprocess.run([sys.executable, str(program), *arguments], check=True, env=environment)
    return dict(np.load(output))


@pytest.mark.slow
def test_two_devices_train_the_model_that_one_trains(tmp_path: Path) -> None:
    one = train(tmp_path / "one.npz")
    two = train(tmp_path / "two.npz", virtual_devices=2)
    assert (int(one["replicas"]), int(two["replicas"])) == (1, 2)
    assert int(two["copies"]) == 2
    # It is no mean of the devices' values. Both had the same images.
    np.testing.assert_allclose(one["macro_f1"], two["macro_f1"], atol=0.02)
    assert float(two["macro_f1"][1]) == pytest.approx(float(two["macro_f1_by_scikit_learn"]), abs=1e-6)
    assert float(two["largest_difference"]) == 0
    assert one.keys() == two.keys()
    for name in one.keys() - {"replicas", "copies"}:
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_batch_norm_that_learns_on_two_devices_stays_one_model(tmp_path: Path) -> None:
    one = train(tmp_path / "one.npz", train_batch_norm=1)
    two = train(tmp_path / "two.npz", virtual_devices=2, train_batch_norm=1)
    assert float(two["largest_difference"]) == 0
    statistics = [name for name in one if "moving_" in name]
    assert len(statistics) == 4
    for name in statistics:
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_float32_is_not_tf32() -> None:
    tf.config.experimental.enable_tensor_float_32_execution(True)
    set_up_devices(0, deterministic=False)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.slow
def test_deterministic_runs_are_bit_identical(tmp_path: Path) -> None:
    first = train(tmp_path / "first.npz", deterministic=1)
    second = train(tmp_path / "second.npz", deterministic=1)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.slow
def test_a_whole_run_on_four_devices_with_early_stopping(tmp_path: Path) -> None:
    """At a rate that changes no bit, the head phase stops after its second epoch of nine.

    The six errors that are explained would be shared out as 2, 2, 2 and none.
    """
    flags = {
        "workdir": tmp_path / "run",
        "virtual_devices": 4,
        "data_source": "synthetic",
        "backbone": "resnet20",
        "weights": "none",
        "image_size": 32,
        "global_batch_size": 60,  # leaves 40 of 100 test images for the last batch
        "head_epochs": 9,
        "head_steps_per_epoch": 2,
        "head_learning_rate": 1e-30,
        "head_early_stopping_patience": 1,
        "finetune_epochs": 1,
        "finetune_steps_per_epoch": 2,
        "finetune_unfreeze_from": "conv4",
    }
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run(
        [sys.executable, "-m", "cifar_keras.train", *arguments], check=True, cwd=Path(__file__).parent.parent
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["environment"]["devices"]) == 4
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(record["phase"], record["epoch"]) for record in records] == [("head", 0), ("head", 1), ("finetune", 9)]
    best = max(record["validation_accuracy"] for record in records)
    assert result["validation"]["accuracy"] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("replicas", [2, 3, 4, 8, 16])
def test_what_leaves_a_device_without_images_is_refused(replicas: int) -> None:
    """Against the dealing itself: ceil(last / replicas) each, until there are none left."""
    for image_count in range(1, 200):
        last = image_count % 48
        per_device = math.ceil(last / replicas)
        dealt = [max(0, min(per_device, last - per_device * replica)) for replica in range(replicas)]
        if last and 0 in dealt:
            with pytest.raises(UserError, match=r"--global_batch_size .* Received: 48$"):
                check_no_idle_device(image_count, 48, replicas)
        else:
            check_no_idle_device(image_count, 48, replicas)


def test_a_batch_that_does_not_divide_by_the_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    three = tf.config.list_logical_devices("CPU") * 3
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: three if kind == "CPU" else [])
    with pytest.raises(UserError, match=r"--global_batch_size has to be a multiple of .* 3\. Received: 64$"):
        make_strategy(64)
