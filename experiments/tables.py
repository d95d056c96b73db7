"""`python -m experiments.tables`: write the tables of results into the READMEs, from `experiments/results/*.json`.

A result is the `result.json` of a run, copied there as RECIPE.json, or as RECIPE_seedN.json for further seeds of it.
`--check` writes nothing and ends with status 1 where a table is not what the results say.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
BEGIN, END = "<!-- results: begin, written by experiments/tables.py -->", "<!-- results: end -->"
HEADER = (
    "| recipe | test accuracy | n | test loss | minutes | images/s: head, finetune, evaluation | hardware | commit |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def read_results() -> dict[str, list[dict[str, Any]]]:
    """Return the results of each recipe, one for each seed."""
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "test" in content:
            results.setdefault(path.stem.split("_seed")[0], []).append(content)
    return results


def table_row(recipe: str, results: list[dict[str, Any]]) -> str:
    """Return a line of the table: means over the runs, with their sample standard deviation where there are several."""
    accuracies = [100 * result["test"]["accuracy"] for result in results]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(results) > 1 else ""
    speeds = [
        statistics.mean(_speed(result, phase) for result in results) for phase in ("head", "finetune", "evaluate")
    ]
    environment = results[0]["environment"]
    hardware = f"{environment['cores']} cores, {environment['processor']}, {' '.join(environment['instruction_sets'])}"
    cells = [
        f"[`{recipe}`](experiments/{recipe}.flags)",
        f"{statistics.mean(accuracies):.2f} %{spread}",
        str(len(results)),
        f"{statistics.mean(result['test']['loss'] for result in results):.4f}",
        f"{statistics.mean(result['minutes']['total'] for result in results):.1f}",
        ", ".join(f"{speed:.0f}" for speed in speeds),
        hardware,
        ", ".join(sorted({f"`{result['commit'][:7]}`" for result in results})),
    ]
    return f"| {' | '.join(cells)} |"


def with_table(text: str, table: str) -> str:
    """Return a document with the table between its two marks replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    """Write the tables, or check them."""
    table = "\n".join([HEADER, *(table_row(recipe, results) for recipe, results in read_results().items())])
    stale = []
    for path, links in ((ROOT / "README.md", table), (ROOT / "experiments" / "README.md", _from_experiments(table))):
        text = path.read_text(encoding="utf-8")
        if text != with_table(text, links):
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.write_text(with_table(text, links), encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"run `python -m experiments.tables`: the results are not in {', '.join(stale)}")


def _speed(result: dict[str, Any], phase: str) -> float:
    return float(result["images_per_second"].get(phase) or float("nan"))


def _from_experiments(table: str) -> str:
    return table.replace("](experiments/", "](")


if __name__ == "__main__":
    main()
