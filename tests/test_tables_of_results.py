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
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| quickstart |"))
    assert f"| {100 * accuracy:.2f} %" in row
    assert f"n={len(runs)} |" in row
    assert all(run["test"]["n"] == 10_000 for run in runs)


def test_a_row_gives_mean_and_sample_standard_deviation() -> None:
    run = json.loads(RESULTS[0].read_text())
    runs = [run | {"test": run["test"] | {"accuracy": accuracy}} for accuracy in (0.90, 0.92)]
    assert tables.result_row("quickstart", runs)[1:3] == ["91.00 % ± 1.41", "2"]
    assert "91.00 % ± 1.41, n=2" in tables.recipes_table({"quickstart": runs})


def test_a_row_of_one_run_gives_the_interval_of_its_test_images() -> None:
    run = json.loads(RESULTS[0].read_text())
    accuracy = run["test"] | {"accuracy": 0.9, "intervals": {"accuracy": [0.89, 0.9111]}}
    error = {"loss": 0.25, "calibration_error": 0.012, "intervals": {"calibration_error": [0.01, 0.0142]}}
    row = tables.result_row("quickstart", [run | {"test": accuracy, "calibration": {"test": error}}])
    assert row[1:5] == ["90.00 % (89.00 to 91.11)", "1", "0.2500", "1.20 % (1.00 to 1.42)"]


def test_the_recipes_are_in_order_of_their_minutes() -> None:
    run = json.loads(RESULTS[0].read_text())
    runs = {name: [run | {"minutes": {"total": minutes}}] for name, minutes in (("a", 8.0), ("b", 12.0), ("c", 4.0))}
    assert [line.split(" | ")[0] for line in tables.recipes_table(runs).splitlines()[2:]] == ["| c", "| a", "| b"]


def test_a_trial_has_its_spread_and_a_sentence() -> None:
    name = "quickstart-sparsity_0.5"
    trial = json.loads((tables.RESULTS / "trials" / f"{name}.json").read_text())
    low, high = (100 * end for end in trial["validation"]["intervals"]["accuracy"])
    recipe = json.loads((tables.RESULTS / "quickstart.json").read_text())
    row = tables.trial_row(name, trial, recipe, "It showed this.")
    assert row[1] == "`--finetune_sparsity=0.5`"
    assert row[2] == f"{100 * trial['validation']['accuracy']:.2f} % ({low:.2f} to {high:.2f})"
    assert row[3] == "It showed this."


def test_every_trial_has_a_conclusion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conclusions = json.loads(tables.CONCLUSIONS.read_text())
    conclusions["quickstart-of_nobody"] = conclusions.pop("quickstart-sgd")
    (tmp_path / "conclusions.json").write_text(json.dumps(conclusions))
    monkeypatch.setattr(tables, "CONCLUSIONS", tmp_path / "conclusions.json")
    with pytest.raises(ValueError, match=r"Received: quickstart-of_nobody, quickstart-sgd$"):
        tables.trials_table(tables.read_results())


def test_every_table_stands_on_a_page_and_none_is_by_hand() -> None:
    pages = [path for pattern in tables.PAGES for path in ROOT.glob(pattern)]
    marks = {mark for page in pages for mark in tables.MARK.findall(page.read_text())}
    assert marks == tables.make_tables().keys()


def test_a_processor_is_named_by_its_newest_instructions() -> None:
    cpu = {"cores": 2, "processor": "A", "instruction_sets": ["b", "c"], "devices": ["CPU:0"]}
    gpu = {"cores": 16, "processor": "A", "instruction_sets": ["b"], "devices": ["NVIDIA H100"]}
    assert tables._processors([{"environment": cpu}]) == "A, `c`"
    assert tables._processors([{"environment": cpu | {"cores": 8}}]) == "8 cores, A, `c`"
    assert tables._processors([{"environment": gpu}]) == "NVIDIA H100"


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
