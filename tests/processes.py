"""Whole commands as processes of their own, on a machine that is set up by the test."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 300  # ends a test that hangs

# The shortest run that there is, the same bit by bit on every machine of a kind.
SYNTHETIC = shlex.split(
    "--data_source=synthetic --backbone=resnet20 --weights=none --image_size=32 --global_batch_size=40 --finetune_train_batch_norm "
    "--head_epochs=0 --finetune_epochs=2 --deterministic --compute_dtype=float32"
)

# What parent programs and home folders have in them.
HOSTILE_VARIABLES = {
    "KERAS_BACKEND": "torch",
    "KERAS_MAX_EPOCHS": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "2",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONWARNINGS": "error",
    "TF_USE_LEGACY_KERAS": "1",
    "TQDM_NCOLS": "none",
}
HOSTILE_FILES = {
    ".keras/keras.json": json.dumps({"floatx": "float16", "image_data_format": "channels_first", "epsilon": 0.5}),
    ".config/matplotlib/matplotlibrc": "image.origin: lower\ntext.color: white\ntext.usetex: True\nsavefig.dpi: 30\n",
}


def variables(**others: str) -> dict[str, str]:
    """Those of a new machine: `conftest.py` has set some for the tests."""
    of_tests = ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES", *HOSTILE_VARIABLES)
    return {name: value for name, value in os.environ.items() if name not in of_tests} | {
        "PYTHONPATH": str(ROOT),
        **others,
    }


def run(
    name: str, *arguments: object, cwd: Path, environment: Mapping[str, str] | None = None, before: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*before, sys.executable, "-m", f"cifar_keras.{name}", *map(str, arguments)],
        cwd=cwd,
        env=environment or variables(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def results(run_folder: Path) -> dict[str, Any]:
    result = json.loads((run_folder / "result.json").read_text())
    return {name: result[name] for name in ("test", "validation", "calibration")}


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def plain_run(folder: Path) -> Path:
    """Make the run on a machine that nobody has set up, and return the folder where it is as `run`."""
    done = run("train", *SYNTHETIC, "--workdir=run", cwd=folder, environment=variables(HOME=str(folder)))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing is wrong, and so nothing is said
    return folder
