"""Damaged files, for a few seconds each reader; for longer with CIFAR_KERAS_FUZZ_SECONDS, and others with CIFAR_KERAS_FUZZ_SEED."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fuzz_program.py")
SECONDS = float(os.environ.get("CIFAR_KERAS_FUZZ_SECONDS", "1"))
SEED = os.environ.get("CIFAR_KERAS_FUZZ_SEED", "0")
PEAK_GIB = 2.0  # TensorFlow's own half, and three of the largest thing a reader takes


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["archive", "npm", "weights", "image"])
def test_a_damaged_file_is_refused_or_read_and_nothing_else(reader: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(PROGRAM), reader, str(SECONDS), SEED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(reader, found)
    assert found["refused"] > 0.3 * found["fed"] > 3
    assert found["peak_gib"] < PEAK_GIB
