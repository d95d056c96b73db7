"""`python -m experiments.tables`: write the tables of results into the pages, from `experiments/results/`.

A result is the `result.json` of a run, copied there as RECIPE.json, or as RECIPE_seedN.json for further seeds of it. A
trial is one of a run with other flags, copied to `trials/RECIPE-WHAT.json`; the lab book lists what it changed, and what it
showed, by `lab_book/conclusions.json`. Trials are told apart by validation alone, because validation chooses. What `export`
and `evaluate` left in the quickstart's workdir is copied to `exports/quickstart.json` and `further/quickstart.json`.

A page says where a table stands by two marks, `<!-- NAME: begin, ... -->` and `<!-- NAME: end -->`. `--check` writes nothing and
ends with status 1 where a table is not what the results say.
"""

import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_keras import flags
from cifar_keras.config import RunConfig, settings_of, to_values
from cifar_keras.reporting.report import short_commit
from cifar_keras.reporting.tables import exports_table, pflop_in_words, robustness_table, with_interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
CONCLUSIONS = ROOT / "experiments" / "lab_book" / "conclusions.json"
PAGES = ("README.md", "docs/*.md", "experiments/**/*.md")

# A run that was measured, and whose result was not kept (lab book, "Wall time on three processors").
INTEL_QUICKSTART = [
    "Intel Xeon (Sapphire Rapids), `avx512_bf16`, AMX hidden",
    "float32",
    "12.3",
    "92.33 %, one run at `83b9307`, not kept",
]

BENCHMARK_COLUMNS = {
    "ours": "ours",
    "ours_float32": "ours float32",
    "keras_float32": "Keras float32",
    "keras_float32_onednn": "the same, oneDNN on",
    "keras_bfloat16": "Keras bfloat16",
    "torch_float32": "PyTorch float32",
    "torch_bfloat16": "PyTorch bfloat16",
    "limit_float32": "matmul limit float32",
    "limit_bfloat16": "matmul limit bfloat16",
}

MARK = re.compile(r"<!-- (\w+): begin, written by experiments/tables.py -->")

RATIO_COLUMNS = {
    "to Keras as it comes": ["keras_float32"],
    "to the fastest Keras": ["keras_float32", "keras_float32_onednn", "keras_bfloat16"],
    "to the fastest PyTorch": ["torch_float32", "torch_bfloat16"],
    "to the matmul limit": ["limit_float32", "limit_bfloat16"],
}

# Tables whose speeds are of one command.
MEASURED_AT_ONCE = (
    *("benchmarks", "benchmarks_without_bfloat16", "benchmarks_float32_at_32_px"),
    *("profile", "profile_float32_at_32_px", "smaller_models", "photographs"),
    *("predict_files", "large_set", "imbalance"),
)

NOT_COMPARED = ("workdir", "seed", "data_dir", "source_timeout_seconds", "resume")

Result = dict[str, Any]


def read_results() -> dict[str, list[Result]]:
    """Return the results of each recipe, one for each seed."""
    results: dict[str, list[Result]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "test" in content:
            results.setdefault(path.stem.split("_seed")[0], []).append(content)
    return results


def recipes_table(recipes: dict[str, list[Result]]) -> str:
    """Return the README's table: how good each recipe is, how long it takes, and how to run it; shortest first."""
    lines = [["recipe", "test accuracy", "wall time", "command: `cifar-keras train`"], ["---"] * 4]
    for recipe, results in sorted(recipes.items(), key=lambda item: _minutes(item[1])):
        lines.append(
            [
                recipe,
                _percent([result["test"] for result in results], "accuracy") + f", n={len(results)}",
                f"{_minutes(results):.1f} min, {_processors(results)}",
                f"`--flagfile=experiments/{recipe}.flags`",
            ]
        )
    return _markdown(lines)


def wall_times_table(recipes: dict[str, list[Result]]) -> str:
    """Return the table of how long the quickstart takes on each kind of processor that was measured."""
    lines = [["processor, two cores", "activations", "minutes", "test accuracy"], ["---"] * 4]
    without_bfloat16 = RESULTS / "trials" / "quickstart-without_bfloat16.json"
    for results in (recipes["quickstart"], [_read(without_bfloat16)]):
        percent = _percent([result["test"] for result in results], "accuracy")
        dtypes = " or ".join(sorted({result["compute_dtype"] for result in results}))
        lines.append([_processors(results), dtypes, f"{_minutes(results):.1f}", f"{percent}, n={len(results)}"])
    lines.insert(3, INTEL_QUICKSTART)
    return _markdown(lines)


def settings_tables() -> str:
    """Return a table of the settings for each part of the config: flag, default, and meaning with bounds."""
    parts: dict[str, list[list[str]]] = {}
    for leaf in settings_of():
        default = to_values(RunConfig())[leaf.flag]
        row = [f"`--{leaf.flag}`", "" if default == "" else f"`{default}`", flags.help_of(leaf)]
        parts.setdefault(flags.topic_of(leaf.section), []).append(row)
    header = [["flag", "default", "meaning, and what it may be"], ["---"] * 3]
    return "\n\n".join(f"## {topic}\n\n{_markdown(header + rows)}" for topic, rows in parts.items())


def results_table(recipes: dict[str, list[Result]]) -> str:
    """Return the lab book's table of recipes: means over the runs, with their spread as in `_percent`."""
    header = ["recipe", "test accuracy", "n", "test loss", "calibration error", "PFLOP", "minutes"]
    header += ["images/s: head, finetune, evaluation", "hardware", "commit"]
    return _markdown([header, ["---"] * len(header), *(result_row(*recipe) for recipe in recipes.items())])


def result_row(recipe: str, results: list[Result]) -> list[str]:
    """Return a line of the lab book's table of recipes."""
    served = [result["calibration"]["test"] for result in results]
    return [
        f"[`{recipe}`]({recipe}.flags)",
        _percent([result["test"] for result in results], "accuracy"),
        str(len(results)),
        f"{statistics.mean(metrics['loss'] for metrics in served):.4f}",
        _percent(served, "calibration_error"),
        pflop_in_words(results[0]),
        f"{_minutes(results):.1f}",
        _speeds(results),
        _hardware(results),
        ", ".join(sorted({_commit(result) for result in results})),
    ]


def trials_table(recipes: dict[str, list[Result]]) -> str:
    """Return the table of trials.

    Raises:
        ValueError: a trial has no conclusion, or a conclusion no trial.
    """
    trials = {path.stem: _read(path) for path in sorted(RESULTS.glob("trials/*.json"))}
    conclusions = _read(CONCLUSIONS)
    if missing := sorted(trials.keys() ^ conclusions.keys()):
        raise ValueError(f"trials and conclusions have to have the same names. Received: {', '.join(missing)}")
    header = ["trial", "differs in", "validation accuracy", "what it showed"]
    header += ["commit, processor; minutes; images/s: head, finetune, evaluation"]
    rows = [trial_row(name, trial, recipes[name.split("-")[0]][0], conclusions[name]) for name, trial in trials.items()]
    return _markdown([header, ["---"] * len(header), *rows])


def trial_row(name: str, trial: Result, recipe: Result, conclusion: str) -> list[str]:
    """Return a line of the table of trials."""
    validation, minutes = trial["validation"], trial["minutes"]["total"]
    accuracy = (
        _percent([validation], "accuracy") if "intervals" in validation else f"{100 * validation['accuracy']:.2f} %"
    )
    return [
        f"[`{name}`](../results/trials/{name}.json)",
        " ".join(f"`{difference}`" for difference in _differences(trial, recipe)) or "no flag",
        accuracy,
        conclusion,
        f"{_commit(trial)}, {_processors([trial])}; {'-' if minutes is None else f'{minutes:.1f}'}; {_speeds([trial])}",
    ]


def benchmark_table(benchmarks: Result) -> str:
    """Return the table of speeds: medians in images/s, with the lowest and the highest trial, and the batch size."""
    measured = {row["system"] for row in benchmarks["rows"]}
    columns = {system: title for system, title in BENCHMARK_COLUMNS.items() if system in measured}
    header = ["work", "px", *columns.values()]
    lines = [header, ["---"] * len(header)]
    for (work, image_size, _), systems in _by_work(benchmarks).items():
        cells = {
            name: f"{row['images_per_second']:,.0f} ({row['low']:,.0f} to {row['high']:,.0f}; {row['batch_size']})"
            for name, row in systems.items()
        }
        lines.append([work, str(image_size), *(cells.get(system, "-") for system in columns)])
    return _markdown(lines)


def ratios_table(benchmarks: Result) -> str:
    """Return the table of how many times as fast ours is: our median over the others', the fastest of their kind."""
    header = ["work", "px", "images at a time", *RATIO_COLUMNS]
    lines = [header, ["---"] * len(header)]
    for (work, image_size, _), systems in _by_work(benchmarks).items():
        speeds = {name: row["images_per_second"] for name, row in systems.items()}
        ratios = []
        for others in RATIO_COLUMNS.values():
            best = max((speeds[name] for name in others if name in speeds), default=None)
            ratios.append("-" if best is None else f"{speeds['ours'] / best:.2f}")
        lines.append([work, str(image_size), str(systems["ours"]["batch_size"]), *ratios])
    return _markdown(lines)


def profile_table(profile: Result) -> str:
    """Return the table of what oneDNN's time in a training step goes into, in percent, largest first."""
    fractions = {f"{row['image_size']} px, batch {row['batch_size']}": row["shares"] for row in profile["rows"]}
    names = sorted(
        {name for fraction in fractions.values() for name in fraction},
        key=lambda name: -sum(fraction.get(name, 0) for fraction in fractions.values()),
    )
    lines = [["part", *fractions], ["---"] * (1 + len(fractions))]
    lines += [[name, *(f"{100 * fraction.get(name, 0):.1f} %" for fraction in fractions.values())] for name in names]
    return _markdown(lines)


def smaller_models_table(smaller: Result) -> str:
    """Return the table of smaller models: how good, how large and how fast each is."""
    header = ["run", "format", "network", "zeros", "test accuracy", "MB", "deflated MB"]
    header += ["images/s (low to high; at a time)", "commit"]
    lines = [header, ["---"] * len(header)]
    for row in smaller["rows"]:
        taught = ", with a teacher" if row["teacher"] else ""
        cells = [
            f"`{row['run']}`",
            row["format"],
            f"{row['backbone']} at {row['image_size']} px{taught}",
            f"{100 * row['sparsity']:.1f} %",
            with_interval(row, "accuracy"),
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['deflated_bytes'] / 1e6:.2f}",
            f"{row['images_per_second']:,.0f} ({row['low']:,.0f} to {row['high']:,.0f}; {row['batch_size']})",
            _commit(row),
        ]
        lines.append(cells)
    return _markdown(lines)


def measured_on(content: Result) -> str:
    """Return the sentence that names the commit and the machine of measured speeds."""
    return f"Measured at {_commit(content)}: {_hardware([content])}."


def exports_text(exports: Result) -> str:
    """Return the table that `export` prints, as it prints it."""
    return f"```\n{exports_table(exports)}\n```"


def robustness_text(robustness: Result) -> str:
    """Return the table that `evaluate` prints of all but single corruptions, as it prints it."""
    return f"```\n{robustness_table([row for row in robustness['rows'] if row['kind'] != 'corruption'])}\n```"


def corruptions_table(robustness: Result) -> str:
    """Return the table of accuracies in percent: a line for each corruption, a column for each severity, and the means of both."""
    accuracies: dict[str, list[float]] = {}
    for row in robustness["rows"]:
        if row["kind"] == "corruption" and row["name"] != "none":
            accuracies.setdefault(row["name"].rpartition(" ")[0], []).append(100 * row["accuracy"])
    severities = max(map(len, accuracies.values()))
    accuracies["all"] = [statistics.mean(values) for values in zip(*accuracies.values(), strict=True)]
    lines = [["corruption", *map(str, range(1, severities + 1)), "mean"], ["---"] * (severities + 2)]
    lines += [
        [name, *(f"{value:.1f}" for value in values), f"{statistics.mean(values):.1f}"]
        for name, values in accuracies.items()
    ]
    return _markdown(lines)


def with_table(text: str, name: str, table: str) -> str:
    """Return a document with the table between its two marks replaced."""
    begin, end = f"<!-- {name}: begin, written by experiments/tables.py -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def photographs_table(content: Result) -> str:
    """Lay out how photographs are classified, in Markdown."""
    lines = [["system", "images", "accuracy"], ["---"] * 3]
    for row in content["rows"]:
        low, high = (100 * end for end in row["interval"])
        lines.append([row["system"], f"{row['n']:,}", f"{100 * row['accuracy']:.2f} % ({low:.2f} to {high:.2f})"])
    return _markdown(lines)


def predict_files_table(content: Result) -> str:
    """Lay out what `predict` takes for many files, in Markdown."""
    speed, found = content["speed"], content["differences"]
    low, high = speed["interval"]
    lines = [["what", "measured"], ["---"] * 2]
    lines += [
        [f"peak of the memory, {row['files']:,} files", f"{row['peak_gib']:.2f} GiB"] for row in content["memory"]
    ]
    lines += [
        [
            "largest difference of a probability from `serve_bytes` of the file alone",
            f"{found['largest_difference']:.1e}",
        ],
        ["files with another label than that", f"{found['other_labels']}"],
        ["images/s of files", f"{speed['images_per_second_of_files']:.0f}"],
        ["images/s of the network alone", f"{speed['images_per_second_of_forward_passes']:.0f}"],
        [
            f"time of files over time of the network, mean of {len(speed['ratios'])} pairs",
            f"{speed['ratio']:.2f} ({low:.2f} to {high:.2f})",
        ],
    ]
    return _markdown(lines)


def large_set_table(content: Result) -> str:
    """Lay out what training from a set of pictures on the disk takes, in Markdown."""
    parts = {
        "load": "decode into the cache, and open it",
        "pipeline": "open it; batches alone",
        "training": "open it; training steps of a ResNet50 at 224 px",
    }
    lines = [["what the process does", "peak of the memory", "images/s", "minutes until the set is open"], ["---"] * 4]
    for row in content["rows"]:
        speed = "" if row["images_per_second"] is None else f"{row['images_per_second']:,.1f}"
        lines.append([parts[row["part"]], f"{row['peak_gib']:.2f} GiB", speed, f"{row['seconds_to_load'] / 60:.1f}"])
    size = f"{content['pictures']:,} pictures, {content['decoded_bytes'] / 1e9:.1f} GB decoded."
    return f"{_markdown(lines)}\n\n{size}"


def imbalance_table(content: Result) -> str:
    """Lay out what class weights do for a rare class, in Markdown."""
    none, auto = (content["rows"][weights] for weights in ("none", "auto"))
    lines = [
        ["metric of the test split", "`none`", "`auto`", "difference in points, 95 % interval, for each seed"],
        ["---"] * 4,
    ]
    for name, title in (
        ("balanced_accuracy", "balanced accuracy"),
        ("macro_f1", "macro F1"),
        ("accuracy", "accuracy"),
        ("calibration_error", "calibration error before the temperature"),
        ("served_calibration_error", "calibration error as served"),
    ):
        cells = [_mean_and_deviation([row[name] for row in rows]) for rows in (none, auto)]
        paired = [found[name] for found in content["differences"] if name in found]
        lines.append([title, *cells, "; ".join(map(_difference, paired))])
    found = [
        ", ".join(f"{row['rare_found']}" for row in rows) + f" of {rows[0]['rare_images']}" for rows in (none, auto)
    ]
    lines.append(["images of the rare class that are found", *found, ""])
    return f"{_markdown(lines)}\n\n{content['test_images']:,} test images, {len(content['seeds'])} seeds: mean ± standard deviation."


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} % ± {100 * statistics.stdev(values):.1f}"


def _difference(found: Result) -> str:
    low, high = found["interval"]
    return f"{100 * found['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def make_tables() -> dict[str, str]:
    """Return every table by the name of its marks."""
    recipes = read_results()
    tables = {
        "recipes": recipes_table(recipes),
        "wall_times": wall_times_table(recipes),
        "results": results_table(recipes),
        "trials": trials_table(recipes),
        "settings": settings_tables(),
    }
    for mark, source, table in (
        ("benchmarks", "benchmarks", benchmark_table),
        ("ratios", "benchmarks", ratios_table),
        ("benchmarks_without_bfloat16", "benchmarks_without_bfloat16", benchmark_table),
        ("ratios_without_bfloat16", "benchmarks_without_bfloat16", ratios_table),
        ("benchmarks_float32_at_32_px", "benchmarks_float32_at_32_px", benchmark_table),
        ("profile", "profile", profile_table),
        ("profile_float32_at_32_px", "profile_float32_at_32_px", profile_table),
        ("smaller_models", "smaller_models", smaller_models_table),
        ("photographs", "photographs", photographs_table),
        ("predict_files", "predict_files", predict_files_table),
        ("large_set", "large_set", large_set_table),
        ("imbalance", "imbalance", imbalance_table),
        ("exports", "exports/quickstart", exports_text),
        ("robustness", "further/quickstart", robustness_text),
        ("corruptions", "further/quickstart", corruptions_table),
    ):
        content = _read(RESULTS / f"{source}.json")
        measured = f"\n\n{measured_on(content)}" if source in MEASURED_AT_ONCE else ""
        tables[mark] = table(content) + measured
    return tables


def filled_pages(tables: dict[str, str]) -> dict[Path, str]:
    """Return what each page that has marks should say."""
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    filled = {}
    for path in pages:
        text = path.read_text(encoding="utf-8")
        for name in MARK.findall(text):
            text = with_table(text, name, tables[name])
            filled[path] = text
    return filled


def main() -> None:
    """Write the tables, or check them."""
    wanted = filled_pages(make_tables())
    stale = [path for path, content in wanted.items() if path.read_text(encoding="utf-8") != content]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
    elif stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"run `python -m experiments.tables`: the results are not in {names}")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _minutes(results: list[Result]) -> float:
    minutes: list[float] = [result["minutes"]["total"] for result in results]
    return statistics.mean(minutes)


def _by_work(benchmarks: Result) -> dict[tuple[str, int, int], dict[str, Result]]:
    """Return the rows of each line of a table, by their systems."""
    lines: dict[tuple[str, int, int], dict[str, Result]] = {}
    for row in benchmarks["rows"]:
        # Where systems chose their batch sizes themselves, they share a line.
        own_batch = row["batch_size"] if row["work"] == "inference" else 0
        lines.setdefault((row["work"], row["image_size"], own_batch), {})[row["system"]] = row
    return lines


def _differences(trial: Result, recipe: Result) -> list[str]:
    defaults = to_values(RunConfig())  # what was not a setting yet when a run was made; what is none any more was empty
    flags = [
        f"--{flag}={value}"
        for flag, value in (defaults | trial["config"]).items()
        if flag not in NOT_COMPARED and value != (defaults | recipe["config"]).get(flag, "")
    ]
    own, usual = trial["environment"]["variables"], recipe["environment"]["variables"]
    changed = sorted(name for name in own.keys() | usual.keys() if own.get(name) != usual.get(name))
    return [f"{name}={own.get(name, '')}" for name in changed] + flags


def _hardware(results: list[Result]) -> str:
    machines = {
        f"{environment['cores']} cores, {environment['processor']}, {' '.join(environment['instruction_sets'])}"
        + (f"; {', '.join(environment['devices'])}" if environment["devices"] else "")
        for environment in (result["environment"] for result in results)
    }
    return "; ".join(sorted(machines))


def _processors(results: list[Result]) -> str:
    """Return the processor with its newest instruction set, or the GPU; and the number of cores where it is not two."""
    names = set()
    for environment in (result["environment"] for result in results):
        gpus = [device for device in environment["devices"] if "CPU" not in device]
        cores = "" if environment["cores"] == 2 else f"{environment['cores']} cores, "
        names.add(", ".join(gpus) or f"{cores}{environment['processor']}, `{environment['instruction_sets'][-1]}`")
    return "; ".join(sorted(names))


def _commit(result: Result) -> str:
    return f"`{short_commit(result['commit'])}`"


def _percent(metrics: list[Result], metric: str) -> str:
    """Return a mean with the sample standard deviation of several runs, or with the 95 % interval of one run's test images."""
    values = [100 * each[metric] for each in metrics]
    if len(values) > 1:
        return f"{statistics.mean(values):.2f} % ± {statistics.stdev(values):.2f}"
    low, high = metrics[0]["intervals"][metric]
    return f"{values[0]:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def _speeds(results: list[Result]) -> str:
    speeds = [
        [result["images_per_second"].get(phase) for result in results] for phase in ("head", "finetune", "evaluate")
    ]
    return ", ".join("-" if None in phase else f"{statistics.mean(phase):.0f}" for phase in speeds)


if __name__ == "__main__":
    main()
