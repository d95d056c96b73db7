import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from experiments import tables
from experiments.benchmarks import limit, profile
from experiments.benchmarks.cases import BATCH_SIZES, FIXED, Case

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "experiments" / "results" / "benchmarks.json"


def test_the_limit_counts_the_operations_of_the_paper() -> None:
    # arXiv:1512.03385, table 1: 3.8e9 multiply-adds at 224 px, of which the last layer has 2e6.
    assert limit.forward_operations(224) / 2 == pytest.approx(3.86e9, rel=0.01)
    # By hand: 32 px is 1/49 of the area of 224 px, and every stage divides it evenly.
    assert limit.forward_operations(32) * 49 == pytest.approx(limit.forward_operations(224), rel=1e-6)


@pytest.mark.slow
def test_a_small_benchmark_writes_rows_that_others_read(tmp_path: Path) -> None:
    output = tmp_path / "benchmarks.json"
    command = [sys.executable, "-m", "experiments.benchmarks", "--systems", "ours", "keras_float32", "torch_float32"]
    command += ["--works", "pipeline", "--trials", "3", "--seconds", "0.1", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ)
    assert "not measured for torch_float32" in done.stdout
    content = json.loads(output.read_text())
    assert {row["system"] for row in content["rows"]} == {"ours", "keras_float32"}
    for row in content["rows"]:
        assert (row["work"], row["image_size"], row["trials"]) == ("pipeline", 32, 3)
        assert row["batch_size"] in BATCH_SIZES["pipeline", 32]
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
    assert content["environment"]["cores"] >= 1
    assert {"rows", "environment", "commit"} <= content.keys()


def test_the_table_shows_every_row_once() -> None:
    row: dict[str, Any] = {
        "work": "train_step",
        "image_size": 64,
        "batch_size": 32,
        "system": "ours",
        "images_per_second": 1234.4,
        "low": 1200.0,
        "high": 1300.0,
        "trials": 5,
    }
    rows = [row, row | {"system": "keras_float32", "batch_size": 64, "images_per_second": 99.0, "low": 98, "high": 100}]
    lines = tables.benchmark_table({"rows": rows}).splitlines()
    assert lines == [
        "| work | px | ours | Keras float32 |",  # systems that were not measured have no column
        "| --- | --- | --- | --- |",
        "| train_step | 64 | 1,234 (1,200 to 1,300; 32) | 99 (98 to 100; 64) |",
    ]
    rows.append(row | {"system": "keras_float32_onednn", "images_per_second": 617.2})
    rows.append(row | {"system": "limit_float32", "images_per_second": 2468.8})
    assert tables.ratios_table({"rows": rows}).splitlines()[2:] == [
        "| train_step | 64 | 32 | 12.47 | 2.00 | - | 0.50 |"
    ]


def test_a_profile_adds_up_what_onednn_says() -> None:
    told = """I0000 something else
onednn_verbose,v1,info,oneDNN v3.7.3
onednn_verbose,v1,primitive,create:cache_miss,cpu,convolution,jit:avx2,forward_training,src:f32,,,mb1,9.5
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx2,forward_training,src:f32,,,mb1,0.5
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx2,backward_weights,src:f32,,,mb1,2
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx2,forward_training,src:f32,,,mb1,0.25
onednn_verbose,primitive,exec,cpu,reorder,jit:uni,undef,src_f32,,,3x3,1
"""
    assert profile.milliseconds_of(told) == {
        "convolution forward_training": 0.75,
        "convolution backward_weights": 2,
        "reorder": 1,
    }
    rows = [{"image_size": 64, "batch_size": 32, "shares": {"a": 0.25, "b": 0.75}}]
    assert tables.profile_table({"rows": rows}).splitlines() == [
        *("| part | 64 px, batch 32 |", "| --- | --- |", "| b | 75.0 % |", "| a | 25.0 % |")
    ]


def test_the_published_benchmark_has_what_is_asked_for() -> None:
    """Every case, with ours and plain Keras beside each other, in one run of one commit."""
    if not RESULT.exists():
        pytest.skip("not measured yet")
    content = json.loads(RESULT.read_text())
    measured = {(row["work"], row["image_size"], row["system"]) for row in content["rows"]}
    for work, image_size in [*BATCH_SIZES, *((case.work, case.image_size) for case in FIXED)]:
        assert {(work, image_size, "ours"), (work, image_size, "keras_float32")} <= measured
    assert len(content["commit"]) == 40
    assert content["environment"]["cores"] >= 1


def test_torch_computes_the_same_network_as_keras() -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import plain_torch

    model = plain_torch.ResNet50(64)
    base = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    ours = sorted(tuple(layer.kernel.shape) for layer in base.layers if isinstance(layer, keras.layers.Conv2D))
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sorted((*c.kernel_size, c.in_channels, c.out_channels) for c in convolutions) == ours
    sizes: list[int] = []
    for convolution in convolutions:
        convolution.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[-1]))
    with torch.inference_mode():
        logits = model.eval()(torch.zeros([2, 3, 32, 32], dtype=torch.uint8))
    assert logits.shape == (2, 10)
    wanted = [layer.output.shape[1] for layer in base.layers if isinstance(layer, keras.layers.Conv2D)]
    assert sorted(sizes) == sorted(wanted)


@pytest.mark.slow
def test_systems_work_on_the_same_number_of_images() -> None:
    from experiments.benchmarks import ours, plain_keras

    case = Case("head_phase", 32, 8)
    runnable = ours.System("auto").set_up(case)
    runnable.run(2)
    assert runnable.images_per_batch == 80  # ten epochs of eight
    assert plain_keras.System("float32").set_up(case).images_per_batch == 8
    for system in (ours.System("auto"), plain_keras.System("float32")):
        runnable = system.set_up(Case("train_step", 32, 8))
        seconds = runnable.run(2)
        assert seconds
        assert seconds > 0
        assert runnable.images_per_batch == 8
    images, labels = plain_keras.some_examples(8)
    assert images.shape == (8, 32, 32, 3)
    assert np.array_equal(labels.sum(axis=1), np.ones(8))
