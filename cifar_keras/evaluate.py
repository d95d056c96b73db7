"""`python -m cifar_keras.evaluate --model=WORKDIR`: measure a run's SavedModel again, and its robustness."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_keras import command, flags
from cifar_keras.config import EvaluationConfig, other_sets_of
from cifar_keras.data.datasets import is_prepared
from cifar_keras.files import environment, paths, workdir
from cifar_keras.files.finished_run import check_found, read_finished_run

if TYPE_CHECKING:  # it imports TensorFlow
    from cifar_keras.evaluation.measure import Evaluation

# The same SavedModel in another process or on another day may choose other kernels; float32 logits then move by about
# 1e-6, and with them means over the images. One image may have another prediction.
TOLERANCE = 1e-4
# Compared in addition to accuracy. All other metrics follow from the same logits.
COMPARED = ("loss", "brier")


def main(argv: Sequence[str]) -> None:
    """Evaluate on test and validation, compare with what the run reported, and go on to what the flags ask for."""
    arguments = flags.parse_evaluate(argv)
    run = read_finished_run(arguments.model).with_data_dir(arguments.data_dir, is_prepared)
    if arguments.settings != EvaluationConfig():
        check_found(run.path)
    data, seed = run.config.data, run.config.seed
    environment.load_keras()
    import tensorflow as tf

    from cifar_keras.data.cifar10.test_sets import find_other_sets
    from cifar_keras.data.datasets import load_dataset
    from cifar_keras.evaluation.measure import evaluate
    from cifar_keras.evaluation.robustness import measure_robustness
    from cifar_keras.exporting.saved_model import check_classes, load_saved_model
    from cifar_keras.reporting import pages
    from cifar_keras.reporting.tables import metrics_table

    # As when the run was measured.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    # Before the data, which can take minutes.
    model = load_saved_model(arguments.model)
    find_other_sets(other_sets_of(arguments.settings), data.data_dir)
    dataset = load_dataset(run.config)
    check_classes(model, dataset.class_names, arguments.model)
    measured = {
        name: evaluate(model, split, dataset.class_names, data.global_batch_size, name, seed=seed)
        for name, split in (("test", dataset.test), ("validation", dataset.validation))
    }
    for name, found in measured.items():
        print(metrics_table(found.metrics, f"{name}, {arguments.model}"))
    check_as_reported(measured, run.result, arguments.model / paths.RESULT)
    # Without such settings the workdir stays as it is.
    if arguments.settings != EvaluationConfig():
        wanted = dataclasses.replace(run.config, evaluation=arguments.settings)
        with workdir.claimed(run.path, "--model"):
            temperature = run.result["calibration"]["temperature"]
            robustness = measure_robustness(model, measured["test"].logits, temperature, dataset, wanted)
            pages.keep_robustness(robustness, run.path)
            pages.write_report_again(run, dataset)


def check_as_reported(measured: "Mapping[str, Evaluation]", reported: Mapping[str, Any], file: Path) -> None:
    """Check that splits were measured as a run's `result.json` reports; otherwise end the program with status 1."""
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
    """Return which metrics of which splits differ from what was reported: accuracy by more than an image, others by `TOLERANCE`."""
    found = []
    for split, metrics in measured.items():
        # Of whole images, because the difference of two rounded fractions can be above a bound that it is equal to.
        right, reported_right = (round(each["accuracy"] * metrics["n"]) for each in (metrics, reported[split]))
        if abs(right - reported_right) > 1:
            found.append(f"{split} accuracy {metrics['accuracy']:.6f}, not {reported[split]['accuracy']:.6f}")
        found += [
            f"{split} {metric} {metrics[metric]:.6f}, not {reported[split][metric]:.6f}"
            for metric in COMPARED
            if not abs(metrics[metric] - reported[split][metric]) <= TOLERANCE
        ]
    return found


if __name__ == "__main__":
    command.run(main)
