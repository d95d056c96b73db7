"""On a GPU, if there is one: `python -m pytest -m gpu --numprocesses=0`. Other tests are for the processor, whatever the machine has."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_devices
import test_kills

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.gpu

FLAGS = {
    "data_source": "synthetic",
    "backbone": "resnet20",
    "weights": "none",
    "image_size": 32,
    "global_batch_size": 40,
    "head_epochs": 0,
    "finetune_epochs": 40,
    "finetune_train_batch_norm": True,
    "finetune_learning_rate": 0.05,
}


@pytest.fixture(autouse=True)
def visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that a test starts see the GPUs which `conftest.py` hides from this one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "-1":
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def train(workdir: Path, **flags: Any) -> dict[str, Any]:
    arguments = [f"--{name}={value}" for name, value in {"workdir": workdir, **FLAGS, **flags}.items()]
    subprocess.run([sys.executable, "-m", "cifar_keras.train", *arguments], check=True, cwd=ROOT)
    result: dict[str, Any] = json.loads((workdir / "result.json").read_text())
    return result


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16", "float16"])
def test_a_run_learns_on_a_gpu_and_the_processor_measures_the_same(
    compute_dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(tmp_path / "run", compute_dtype=compute_dtype)
    assert not result["environment"]["devices"][0].startswith("CPU")
    assert result["compute_dtype"] == compute_dtype
    assert result["test"]["accuracy"] > 0.9
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    command = [sys.executable, "-m", "cifar_keras.evaluate", f"--model={tmp_path / 'run'}"]
    subprocess.run(command, check=True, cwd=ROOT)  # ends with another status where the metrics are others


def test_a_gpu_trains_the_model_that_the_processor_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = test_devices.train(tmp_path / "gpu.npz")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    on_processor = test_devices.train(tmp_path / "processor.npz")
    assert on_gpu.keys() == on_processor.keys()
    differences = {name: float(np.abs(value - on_processor[name]).max()) for name, value in on_gpu.items()}
    assert max(differences.values()) > 0, "the same bits would say that both ran on the processor"
    for name, value in on_gpu.items():
        np.testing.assert_allclose(value, on_processor[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("train_batch_norm", [0, 1])
def test_deterministic_runs_on_a_gpu_are_bit_identical(train_batch_norm: int, tmp_path: Path) -> None:
    first, second = (
        test_devices.train(tmp_path / f"{name}.npz", deterministic=1, train_batch_norm=train_batch_norm)
        for name in ("first", "second")
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_a_run_killed_on_a_gpu_ends_with_the_same_bits(tmp_path: Path) -> None:
    sources, kind = test_kills.make_sources(tmp_path), test_kills.Kind(0)
    assert test_kills.start(sources, kind, tmp_path / "never_killed") == 0
    wanted = test_kills.values_of(tmp_path / "never_killed")
    for moment, number in (("step", 3), ("arrays written", 3), ("step", 8), ("validation", 1)):
        assert test_kills.start(sources, kind, tmp_path / "killed", moment, number) == -signal.SIGKILL
    assert test_kills.start(sources, kind, tmp_path / "killed") == 0
    test_kills.assert_identical(tmp_path / "killed", wanted)
