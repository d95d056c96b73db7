"""`python -m cifar_keras.evaluate --model=WORKDIR`: measure a run's SavedModel again, and on more than its own dataset."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cifar_keras import command, flags
from cifar_keras.config import EvaluationConfig, other_sets_of
from cifar_keras.data.datasets import is_prepared
from cifar_keras.files import environment, paths, workdir
from cifar_keras.files.finished_run import FinishedRun, check_found, read_finished_run

if TYPE_CHECKING:  # it imports TensorFlow
    from cifar_keras.data.types import Dataset
    from cifar_keras.evaluation.measure import Evaluation

# The same SavedModel in another process or on another day may choose other kernels; float32 logits then move by about
# 1e-6, and with them means over the images. One image may have another prediction.
TOLERANCE = 1e-4
COMPARED = ("loss", "brier")  # beside accuracy; what else is reported follows from the same logits


def main(argv: Sequence[str]) -> None:
    """Evaluate on test and validation, compare with what the run reported, and go on to what the flags ask for."""
    arguments = flags.parse_evaluate(argv)
    run = read_finished_run(arguments.model).with_data_dir(arguments.data_dir, is_prepared)
    if arguments.settings != EvaluationConfig():
        check_found(run.path)
    data, seed = run.config.data, run.config.seed
    environment.load_keras()
    import tensorflow as tf

    from cifar_keras.data.datasets import load_dataset
    from cifar_keras.evaluation.measure import evaluate
    from cifar_keras.evaluation.test_sets import find_other_sets
    from cifar_keras.exporting.saved_model import check_classes, load_saved_model
    from cifar_keras.reporting.tables import metrics_table

    tf.config.experimental.enable_tensor_float_32_execution(False)  # as when the run was measured
    model = load_saved_model(arguments.model)  # before the data, which can take minutes
    find_other_sets(other_sets_of(arguments.settings), data.data_dir)
    dataset = load_dataset(data, seed=seed, timeout_seconds=run.config.source_timeout_seconds)
    check_classes(model, dataset.class_names, arguments.model)
    measured = {
        name: evaluate(model, split, dataset.class_names, data.global_batch_size, name, seed=seed)
        for name, split in (("test", dataset.test), ("validation", dataset.validation))
    }
    for name, found in measured.items():
        print(metrics_table(found.metrics, f"{name}, {arguments.model}"))
    check_as_reported(measured, run.result, arguments.model / paths.RESULT)
    if arguments.settings != EvaluationConfig():  # else the workdir stays as it is
        with workdir.claimed(run.path, "--model"):
            measure_further(run, model, dataset, measured["test"].logits, arguments.settings)


def measure_further(
    run: FinishedRun, model: Any, dataset: "Dataset", logits: NDArray[np.float32], settings: EvaluationConfig
) -> None:
    """Measure what the settings ask for beside the test split, print it, and put it into the workdir and its report.

    Args:
        run: the run.
        model: its SavedModel, loaded.
        dataset: its images.
        logits: float32 `[n, classes]`, that the model gives of the test images.
        settings: which views and which other test sets.
    """
    from cifar_keras.evaluation.robustness import measure_robustness, predict_at
    from cifar_keras.reporting import pages
    from cifar_keras.reporting.tables import further_table

    data, temperature = run.config.data, run.result["calibration"]["temperature"]
    found = measure_robustness(
        predict_at(model, temperature, data.global_batch_size),
        logits / np.float32(temperature),
        dataset,
        settings,
        data_dir=data.data_dir,
        seed=run.config.seed,
    )
    print(further_table(found.rows))
    pages.keep_robustness(found, run.path)
    pages.write_report_again(run, dataset)


def check_as_reported(measured: "Mapping[str, Evaluation]", reported: Mapping[str, Any], file: Path) -> None:
    """Say that splits were measured as a run's `result.json` reports, or end the program with status 1."""
    from cifar_keras.evaluation.measure import serves_at

    temperature = reported["calibration"]["temperature"]
    others = differences({name: found.metrics for name, found in measured.items()}, reported)
    others += [
        f"{name} at another temperature" for name, found in measured.items() if not serves_at(found, temperature)
    ]
    if others:
        sys.exit(f"error: {file} reports others. Received: {'; '.join(others)}")
    print(f"as {file} reports")


def differences(measured: Mapping[str, Mapping[str, Any]], reported: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which figures of which splits are not those that were reported: accuracy by more than an image, others by `TOLERANCE`."""
    found = []
    for split, metrics in measured.items():
        # Of whole images, because the difference of two rounded shares can be above a bound that it is equal to.
        right, reported_right = (round(each["accuracy"] * metrics["n"]) for each in (metrics, reported[split]))
        if abs(right - reported_right) > 1:
            found.append(f"{split} accuracy {metrics['accuracy']:.6f}, not {reported[split]['accuracy']:.6f}")
        found += [
            f"{split} {figure} {metrics[figure]:.6f}, not {reported[split][figure]:.6f}"
            for figure in COMPARED
            if not abs(metrics[figure] - reported[split][figure]) <= TOLERANCE
        ]
    return found


if __name__ == "__main__":
    command.run(main)
