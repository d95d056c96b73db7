import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar_keras import flags
from cifar_keras.config import from_values, with_later_settings
from experiments import tables

ROOT = Path(__file__).parent.parent
RESULTS = sorted(path for path in tables.RESULTS.glob("*.json") if path.stem not in tables.MEASURED_AT_ONCE)


def test_the_readmes_hold_what_the_results_say() -> None:
    subprocess.run([sys.executable, "-m", "experiments.tables", "--check"], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_is_a_run_of_its_recipe(path: Path) -> None:
    """All but workdir, seed, whether it went on, and what only the fetching depends on are as the recipe says today."""
    recipe = ROOT / "experiments" / f"{path.stem.split('_seed')[0]}.flags"
    ran = from_values(with_later_settings(json.loads(path.read_text())["config"]))
    own = [f"--workdir={ran.workdir}", f"--seed={ran.seed}", f"--data_dir={ran.data.data_dir}"]
    own += [f"--source_timeout_seconds={ran.source_timeout_seconds}", f"--resume={ran.checkpoint.resume}"]
    assert flags.parse_config(["train", f"--flagfile={recipe}", *own]) == ran


def metrics_with_intervals(content: Any) -> Iterator[tuple[str, float, float, float]]:
    """Give each metric that has an interval: its name, itself, and the interval's ends."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        for name, (low, high) in content.get("intervals", {}).items():
            yield name, content[name], low, high
        for part in content.values():
            yield from metrics_with_intervals(part)


def test_published_intervals_hold_their_metrics() -> None:
    count = 0
    for path in tables.RESULTS.rglob("*.json"):
        for name, metric, low, high in metrics_with_intervals(json.loads(path.read_text())):
            assert low <= metric <= high, f"{path}: {name} {metric} is not in {low} to {high}"
            count += 1
    assert count > 500


def test_the_quickstart_is_a_row_of_the_readme() -> None:
    runs = [json.loads(path.read_text()) for path in RESULTS if path.stem.startswith("quickstart")]
    accuracy = statistics.mean(run["test"]["accuracy"] for run in runs)
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| [`quickstart`]"))
    assert f"| {100 * accuracy:.2f} %" in row
    assert all(run["test"]["n"] == 10_000 for run in runs)


def test_a_row_gives_mean_and_sample_standard_deviation() -> None:
    run = json.loads(RESULTS[0].read_text())
    runs = [run | {"test": run["test"] | {"accuracy": accuracy}} for accuracy in (0.90, 0.92)]
    assert "| 91.00 % ± 1.41 | 2 |" in tables.result_row("quickstart", runs)


def test_a_row_of_one_run_gives_the_interval_of_its_test_images() -> None:
    run = json.loads(RESULTS[0].read_text())
    accuracy = run["test"] | {"accuracy": 0.9, "intervals": {"accuracy": [0.89, 0.9111]}}
    error = {"loss": 0.25, "calibration_error": 0.012, "intervals": {"calibration_error": [0.01, 0.0142]}}
    row = tables.result_row("quickstart", [run | {"test": accuracy, "calibration": {"test": error}}])
    assert "| 90.00 % (89.00 to 91.11) | 1 | 0.2500 | 1.20 % (1.00 to 1.42) |" in row


def test_a_table_replaces_the_one_between_its_marks() -> None:
    begin, end = "<!-- results: begin, written by experiments/tables.py -->", "<!-- results: end -->"
    text = f"a\n{begin}\nold\n{end}\nb"
    assert tables.with_table(text, "results", "new") == f"a\n{begin}\nnew\n{end}\nb"


def test_speeds_say_what_measured_them() -> None:
    machine = {"cores": 2, "processor": "A", "instruction_sets": ["b", "c"], "devices": []}
    measured = tables.measured_on({"commit": "0123456789", "environment": machine})
    assert measured == "Measured at `0123456`: 2 cores, A, b c."


def test_corruptions_are_a_line_each() -> None:
    rows = [{"kind": "corruption", "name": "none", "accuracy": 0.9}]
    rows += [
        {"kind": "corruption", "name": f"{name} {severity}", "accuracy": accuracy - severity / 10}
        for name, accuracy in (("blur", 0.9), ("jpeg", 0.8))
        for severity in (1, 2)
    ]
    table = tables.corruptions_table({"rows": rows})
    assert table.splitlines() == [
        "| corruption | 1 | 2 | mean |",
        "| --- | --- | --- | --- |",
        "| blur | 80.0 | 70.0 | 75.0 |",
        "| jpeg | 70.0 | 60.0 | 65.0 |",
        "| all | 75.0 | 65.0 | 70.0 |",
    ]
