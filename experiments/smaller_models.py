"""`python -m experiments.smaller_models RUN...`: measure accuracy, size and speed of finished runs and of their int8 exports.

All models are timed in turns on the same images, at the batch size that their runtime takes. The result is
`experiments/results/smaller_models.json`, from which `python -m experiments.tables` makes the table.
"""

import statistics
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cifar_keras import command
from cifar_keras.errors import UserError
from cifar_keras.exporting.formats import FORMATS
from cifar_keras.exporting.runtimes import RUNTIMES, Run
from cifar_keras.files import environment, paths, writing
from cifar_keras.files.finished_run import FinishedRun, read_finished_run

RESULT = Path(__file__).parent / "results" / "smaller_models.json"
SHOWN = ("saved_model", "litert_int8")
TRIALS = 5
SECONDS = 3.0  # of each trial


class Model(NamedTuple):
    """A model that is timed."""

    run: FinishedRun
    format_name: str
    file: Path
    predict: Run
    batch_size: int


def main(argv: Sequence[str]) -> None:
    """Measure the runs that the command line names, and write the result.

    Raises:
        UserError: the command line names no run, or one that is not complete.
    """
    if not argv[1:]:
        raise UserError("name workdirs of runs, whose metrics replace the published ones. Received: none")
    environment.load_keras()
    runs = [read_finished_run(Path(name)) for name in argv[1:]]
    models = [model for run in runs for model in models_of(run)]
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    speeds: list[list[float]] = [[] for _ in models]
    for _ in tqdm(range(TRIALS), desc="trials"):
        for model, measured in zip(models, speeds, strict=True):
            measured.append(images_per_second(model, images))
    content = {
        "commit": environment.source_commit(),
        "environment": environment.describe_environment(),
        "rows": [row_of(model, measured) for model, measured in zip(models, speeds, strict=True)],
    }
    writing.write_json(RESULT, content)


def models_of(run: FinishedRun) -> list[Model]:
    """Return a run's SavedModel, and its int8 export if it has one, both loaded."""
    files = {name: run.path / FORMATS[name].path for name in SHOWN}
    return [
        Model(run, name, file, RUNTIMES[name][0](str(file)), RUNTIMES[name][2])
        for name, file in files.items()
        if file.exists()
    ]


def images_per_second(model: Model, images: NDArray[np.uint8]) -> float:
    """Return the speed of one trial, after a first batch that is not timed."""
    batch = images[: model.batch_size]
    model.predict(batch)
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < SECONDS:
        model.predict(batch)
        count += len(batch)
    return count / passed


def row_of(model: Model, speeds: Sequence[float]) -> dict[str, Any]:
    """Return the row of a model: its settings, accuracy, size and speed."""
    run, exports = model.run, model.run.path / paths.EXPORTS
    served = model.format_name == "saved_model"
    metrics = run.result["test"] if served else writing.read_json(exports)[model.format_name]
    files = sorted(file for file in model.file.rglob("*") if file.is_file()) if model.file.is_dir() else [model.file]
    contents = [file.read_bytes() for file in files]
    return {
        "run": run.path.resolve().name,
        "format": model.format_name,
        "backbone": run.config.model.backbone,
        "image_size": run.config.model.image_size,
        # A run from before pruning existed has no sparsity in its result.
        "sparsity": run.result.get("sparsity", 0.0),
        "teacher": bool(run.config.distillation.teacher),
        "accuracy": metrics["accuracy"],
        "intervals": {"accuracy": metrics["intervals"]["accuracy"]},
        "bytes": sum(map(len, contents)),
        "deflated_bytes": sum(len(zlib.compress(content)) for content in contents),
        "images_per_second": statistics.median(speeds),
        "low": min(speeds),
        "high": max(speeds),
        "batch_size": model.batch_size,
        "commit": run.result["commit"],
    }


if __name__ == "__main__":
    command.run(main)
